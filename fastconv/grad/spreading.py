"""What gradients of pooling share: numbers scattered to where maxima were, or spread over windows.

That of a maximum goes to where the maximum was found. That of a mean is shared out over its window, so that an element
gets the sum of what the windows have that hold it: a pooling itself, of the gradient, whose windows are those
(:class:`fastconv.pooling_problem.Covering`). An Lp pooling ``y = (scale * mean(x ** p)) ** (1 / p)`` has the same
gradient times ``y ** (1 - p)`` at its result and ``x ** (p - 1)`` at its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.arrays import adopt, at_home, named_dtype
from fastconv.dispatch import adopt_all, library
from fastconv.parsing import DataFormat, lengths
from fastconv.pooling_execution import describe, pool
from fastconv.pooling_problem import PoolProblem
from fastconv.problem import DTYPES, compute_dtype


@at_home
def scatter(ndim: int, input_size: Any, indices: Any, grad_output: Any, data_format: str) -> Any:
    """Add each number to the element of its image that an index names."""
    (gradient, found, *_), kind = adopt_all(grad_output, indices, None, None, None, ("grad_output", "indices"))
    layout = DataFormat.parse(ndim, data_format)
    input_size = lengths("input_size", input_size)
    batch, channels, size = layout.split("input_size", input_size)
    expected = layout.split("grad_output", gradient.shape)
    if found.shape != gradient.shape or expected[:2] != (batch, channels):
        raise ValueError(
            f"grad_output has shape {gradient.shape} and indices {found.shape}: expected equal ones with the batch and "
            f"the channels of input_size={input_size}"
        )
    if found.dtype != np.int64:
        raise TypeError(f"indices have dtype {found.dtype}: expected int64")
    accumulator = _accumulator(gradient.dtype)
    flat = (math.prod(batch) * (1 if layout.channels_last else channels), -1, channels if layout.channels_last else 1)
    numbers, places, positions = gradient.reshape(flat), found.reshape(flat), math.prod(size)
    if kind.device == "gpu":
        from fastconv.gpu import pooling
        from fastconv.gpu.runtime import runtime

        # While a graph is captured, nothing can be read back; the kernel leaves out what is not in its image.
        seen = found.size and not runtime().captured()
        inside = not seen or (int(found.min()) >= 0 and int(found.max()) < positions)
        result = pooling.scatter(numbers, places, positions)
    else:
        from fastconv.cpu import scattering

        result, inside = scattering.scatter(numbers, places, positions, accumulator)
    if not inside:
        raise ValueError(f"indices reach from {found.min()} to {found.max()}: expected 0 to {positions - 1}")
    return kind.give(result.astype(gradient.dtype, copy=False).reshape(layout.join(batch, channels, size)))


@cache
def _accumulator(dtype: Any) -> np.dtype[Any]:
    """The dtype in which numbers of another are added up."""
    if dtype.kind == "c":
        raise TypeError(f"grad_output has dtype {dtype}: expected a real one, as max pooling has")
    return named_dtype(DTYPES[compute_dtype(dtype, dtype, ("grad_output", "grad_output"))][1])


@at_home
def spread(
    build: Callable[..., PoolProblem], ndim: int, input_size: Any, size: Any, grad_output: Any, x: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Share each number out over its window; `x` is wanted for exponents other than 1."""
    (gradient, x, *_), kind = adopt_all(
        grad_output, grad_output if x is None else x, None, None, None, ("grad_output", "x")
    )
    problem = describe(build, "sum", ndim, lengths("input_size", input_size), size, gradient.dtype, options)
    if gradient.shape != problem.y_shape:
        raise ValueError(f"grad_output has shape {gradient.shape}: expected {problem.y_shape} for {problem}")
    if x.dtype != gradient.dtype:
        raise TypeError(f"x has dtype {x.dtype} and grad_output {gradient.dtype}: expected equal ones")
    adjoint, counts = _adjoint(problem)
    share, xp = gradient, library(kind.device)
    if problem.exponent != 1:
        share, x = share.astype(adjoint.dtype, copy=False), x.astype(adjoint.dtype, copy=False)
        y, _ = pool(replace(problem, dtype=adjoint.dtype), x, None, False, kind.device)
        steep = _raised(y, problem.exponent - 1)
        share = xp.where(y == 0, 0, share / xp.where(y == 0, 1, steep))
    if counts is not None:
        share = (share.reshape(problem.views[1]) / xp.asarray(counts)).reshape(problem.y_shape)
    result, _ = pool(adjoint, share, None, False, kind.device)
    if problem.exponent != 1:
        result *= _raised(x, problem.exponent - 1)
    return kind.give(result.astype(gradient.dtype, copy=False))


def _raised(numbers: Any, exponent: float) -> Any:
    """Numbers to an exponent; a library's own power takes a logarithm even for the third."""
    return math.prod([numbers] * int(exponent)) if exponent in (1, 2) else numbers**exponent


@lru_cache(maxsize=1024)
def _adjoint(problem: PoolProblem) -> tuple[PoolProblem, Any]:
    """The pooling of the gradient, and what its elements are divided by beforehand, if they are not all divided alike.

    Where anything is computed beforehand, it is in the accumulator's dtype, so that half types are rounded once.
    """
    spans = [axis.windows(problem.count_include_pad)["span"] for axis in problem.axes]
    divisor, counts = problem.divisor, None
    if divisor is None and all((span == span[:1]).all() for span in spans):
        divisor = math.prod(int(span.max(initial=1)) for span in spans)
    if divisor is None:
        divisor, counts = 1, spans[0][:, None, None, None] * spans[1][:, None, None] * spans[2][:, None]
        counts = counts.astype(problem.accumulator_dtype)
    if counts is not None or problem.exponent != 1:
        problem = replace(problem, dtype=problem.accumulator_dtype)
    return problem.gradient(divisor), counts


def output_size(ndim: int, grad_output: Any, data_format: str) -> tuple[int, ...]:
    """The lengths of a result's spatial axes."""
    gradient, _ = adopt("grad_output", grad_output)
    return DataFormat.parse(ndim, data_format).split("grad_output", gradient.shape)[2][3 - ndim :]
