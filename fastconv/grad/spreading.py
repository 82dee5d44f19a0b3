"""What gradients of pooling share: numbers scattered to where maxima were, or spread over windows.

That of a maximum goes to where the maximum was found. That of a mean is shared out over its window: a window is the
product of one on each axis, so the sharing is done axis by axis, tap by tap, with whole arrays of NumPy or CuPy. An Lp
pooling ``y = (scale * mean(x ** p)) ** (1 / p)`` has the same gradient times ``y ** (1 - p)`` at its result and
``x ** (p - 1)`` at its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv.arrays import adopt, named_dtype
from fastconv.dispatch import adopt_all, library
from fastconv.parsing import DataFormat
from fastconv.pooling_execution import images, pool
from fastconv.pooling_problem import Axis, PoolProblem
from fastconv.problem import DTYPES, compute_dtype
from fastconv.unfolding import meeting


def scatter(ndim: int, input_size: Any, indices: Any, grad_output: Any, data_format: str) -> Any:
    """Add each number to the element of its image that an index names."""
    (gradient, found, *_), kind = adopt_all(grad_output, indices, None, None, None, ("grad_output", "indices"))
    layout = DataFormat.parse(ndim, data_format)
    batch, channels, size = layout.split("input_size", input_size)
    expected = layout.split("grad_output", gradient.shape)
    if found.shape != gradient.shape or expected[:2] != (batch, channels):
        raise ValueError(
            f"grad_output has shape {gradient.shape} and indices {found.shape}: expected equal ones with the batch and "
            f"the channels of input_size={tuple(input_size)}"
        )
    if found.dtype != np.int64:
        raise TypeError(f"indices have dtype {found.dtype}: expected int64")
    positions = math.prod(size)
    if found.size and not (int(found.min()) >= 0 and int(found.max()) < positions):
        raise ValueError(f"indices reach from {found.min()} to {found.max()}: expected 0 to {positions - 1}")
    if gradient.dtype.kind == "c":
        raise TypeError(f"grad_output has dtype {gradient.dtype}: expected a real one, as max pooling has")
    names = "grad_output", "grad_output"
    accumulator = named_dtype(DTYPES[compute_dtype(gradient.dtype, gradient.dtype, names)][1])
    flat = (math.prod(batch) * (1 if layout.channels_last else channels), -1, channels if layout.channels_last else 1)
    if kind.device == "gpu":
        from fastconv.gpu import pooling

        result = pooling.scatter(gradient.reshape(flat), found.reshape(flat), positions)
    else:
        result = np.zeros((flat[0], positions, flat[2]), accumulator)
        image, _, channel = np.ogrid[: flat[0], :1, : flat[2]]
        np.add.at(result, (image, found.reshape(flat), channel), gradient.reshape(flat))
    return kind.give(result.astype(gradient.dtype, copy=False).reshape(layout.join(batch, channels, size)))


def spread(
    build: Callable[..., PoolProblem], ndim: int, input_size: Any, size: Any, grad_output: Any, x: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Share each number out over its window; `x` is wanted for exponents other than 1."""
    (gradient, x, *_), kind = adopt_all(grad_output, grad_output if x is None else x, None, None, None)
    problem = build("sum", ndim, input_size, size, dtype=gradient.dtype.name, **options)
    if gradient.shape != problem.y_shape:
        raise ValueError(f"grad_output has shape {gradient.shape}: expected {problem.y_shape} for {problem}")
    wide, xp = named_dtype(problem.accumulator_dtype), library(kind.device)
    share = images(problem, gradient, problem.out_size).astype(wide)
    if problem.exponent != 1:
        if x.dtype != gradient.dtype:
            raise TypeError(f"x has dtype {x.dtype} and grad_output {gradient.dtype}: expected equal ones")
        x = x.astype(wide, copy=False)  # so that half types are rounded once, at the end
        y, _ = pool(replace(problem, dtype=problem.accumulator_dtype), x, None, False, kind.device)
        y = images(problem, y, problem.out_size)
        steep = xp.where(y == 0, 1, y) ** (1 - problem.exponent)
        share = xp.where(y == 0, 0, share * steep)
    if problem.divisor is None:
        spans = [axis.windows(problem.count_include_pad)["span"] for axis in problem.axes]
        counts = spans[0][:, None, None, None] * spans[1][:, None, None] * spans[2][:, None]
        share = share * wide.type(problem.scale) / xp.asarray(counts, wide)
    else:
        share = share * wide.type(problem.scale) / wide.type(problem.divisor)
    for number, axis in enumerate(problem.axes):
        share = _spread_axis(share, axis, number + 2, xp)
    if problem.exponent != 1:
        share = share * images(problem, x, problem.size) ** (problem.exponent - 1)
    return kind.give(share.astype(gradient.dtype).reshape(problem.x_shape))


def _spread_axis(share: Any, axis: Axis, number: int, xp: Any) -> Any:
    """Add up along one axis, for each element, the shares of the windows that hold it."""
    shape = (*share.shape[:number], axis.size, *share.shape[number + 1 :])
    result, before = xp.zeros(shape, share.dtype), (slice(None),) * number
    if axis.kernel is None:
        for t, (first, taps, _) in enumerate(axis.windows().tolist()):
            result[(*before, slice(first, first + taps))] += share[(*before, slice(t, t + 1))]
        return result
    for k in range(axis.kernel):
        places, elements = meeting(k * axis.dilation - axis.padding[0], axis.stride, axis.count, axis.size)
        result[(*before, elements)] += share[(*before, places)]
    return result


def output_size(ndim: int, grad_output: Any, data_format: str) -> tuple[int, ...]:
    """The lengths of a result's spatial axes."""
    gradient, _ = adopt("grad_output", grad_output)
    return DataFormat.parse(ndim, data_format).split("grad_output", gradient.shape)[2][3 - ndim :]
