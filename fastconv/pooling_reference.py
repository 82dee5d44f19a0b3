"""The oracle of pooling: its definition, window by window, in NumPy float64, sharing no code with any kernel.

Slow, short, and meant to be checked by eye.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from fastconv.pooling_problem import Axis, PoolProblem

Array = Any  # numpy.ndarray; its generic types say nothing about axes


def pool(problem: PoolProblem, x: Any) -> Array:
    """Pool an array of shape ``problem.x_shape``; the result is float64, or int64 for integers.

    Examples
    --------
    >>> problem = PoolProblem.sliding("max", 1, (1, 4), 2)
    >>> pool(problem, np.array([[1.0, 3.0, 2.0, np.nan]]))
    array([[ 3., nan]])
    """
    p, x = problem, _channels_first(problem, x)
    y = np.empty((*x.shape[:2], *p.out_size), x.dtype)
    for place, window, divisor in _windows(p):
        held = x[(..., *np.ix_(*window))].reshape(*x.shape[:2], -1)
        if p.op == "max":
            y[(..., *place)] = held.max(-1)
        else:
            with np.errstate(all="ignore"):
                total = (held**p.exponent).sum(-1) * p.scale / divisor
                y[(..., *place)] = total ** (1 / p.exponent)
    return _users_format(p, y)


def indices(problem: PoolProblem, x: Any) -> Array:
    """Where each maximum stands in its image, rows joined to one line: the first of equal ones, of NaN the last."""
    p, x = problem, _channels_first(problem, x)
    y = np.empty((*x.shape[:2], *p.out_size), np.int64)
    for place, window, _ in _windows(p):
        held = x[(..., *np.ix_(*window))].reshape(*x.shape[:2], -1)
        nan = np.isnan(held)
        best = np.where(nan.any(-1), held.shape[-1] - 1 - nan[..., ::-1].argmax(-1), held.argmax(-1))
        y[(..., *place)] = np.ravel_multi_index(np.ix_(*window), p.size).ravel()[best]
    return _users_format(p, y)


def gradient(problem: PoolProblem, x: Any, y_grad: Any) -> Array:
    """The gradient with respect to `x` of ``(pool(x) * y_grad).sum()``, in float64."""
    p = problem
    found = np.moveaxis(indices(p, x), -1, -1 - p.ndim) if p.channels_last else indices(p, x)
    found = found.reshape(p.batch, p.channels, *p.out_size)
    x, given = _channels_first(p, x).astype(np.float64), _channels_first(p, y_grad, p.out_size)
    result = np.zeros_like(x)
    with np.errstate(all="ignore"):
        for place, window, divisor in _windows(p):
            box, g = (..., *np.ix_(*window)), given[(..., *place)]
            if p.op == "max":
                flat = result.reshape(*x.shape[:2], -1)
                n, c = np.indices(x.shape[:2])
                flat[n, c, found[(..., *place)]] += g
                continue
            share = np.expand_dims(g * p.scale / divisor, (2, 3, 4))
            if p.exponent != 1:
                total = (x[box] ** p.exponent).sum((2, 3, 4), keepdims=True) * p.scale / divisor
                steep = np.where(total == 0, 0, total ** (1 / p.exponent - 1))
                share = share * steep * x[box] ** (p.exponent - 1)
            result[box] += share
    return _users_format(p, result)


def _windows(p: PoolProblem) -> Any:
    """For each place of the result: the place, the elements of its window along each axis, and what to divide by."""
    for place in itertools.product(*map(range, p.out_size)):
        taps = [_taps(axis, t) for axis, t in zip(p.axes, place, strict=True)]
        ends = [axis.size + (axis.padding[1] if p.count_include_pad else 0) for axis in p.axes]
        starts = [-axis.padding[0] if p.count_include_pad else 0 for axis in p.axes]
        counted = [[i for i in line if lo <= i < hi] for line, lo, hi in zip(taps, starts, ends, strict=True)]
        window = [[i for i in line if 0 <= i < axis.size] for line, axis in zip(taps, p.axes, strict=True)]
        yield place, window, math.prod(map(len, counted)) if p.divisor is None else p.divisor


def _taps(axis: Axis, t: int) -> list[int]:
    """The elements of window t of an axis, those in the padding included."""
    if axis.kernel is None:
        return list(range(math.floor(t * axis.size / axis.count), math.ceil((t + 1) * axis.size / axis.count)))
    return [t * axis.stride - axis.padding[0] + k * axis.dilation for k in range(axis.kernel)]


def _channels_first(p: PoolProblem, a: Any, size: Any = None) -> Array:
    a = np.asarray(a)
    a = a.astype(np.int64 if a.dtype.kind in "iu" else np.float64)
    a = np.moveaxis(a, -1, -1 - p.ndim) if p.channels_last else a
    return a.reshape(p.batch, p.channels, *(size or p.size))


def _users_format(p: PoolProblem, a: Array) -> Array:
    a = a.reshape(*p.batch_shape, p.channels, *a.shape[5 - p.ndim :])
    return np.moveaxis(a, -1 - p.ndim, -1) if p.channels_last else a
