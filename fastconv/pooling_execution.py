"""From arrays to a running pooling kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.arrays import adopt, at_home, check_out
from fastconv.calling import remembered
from fastconv.dispatch import adopt_all, library
from fastconv.parsing import flag
from fastconv.pooling_problem import PoolProblem


def apply(
    build: Callable[..., PoolProblem], op: str, ndim: int, x: Any, size: Any, return_indices: bool, out: Any,
    **options: Any,
) -> Any:  # fmt: skip
    """Pool as :func:`fastconv.max_pool2d` says: `build` makes the problem of `op`, `size` and the options."""
    compute = _apply if type(x) is np.ndarray else _apply_at_home
    return compute(x, build, op, ndim, size, return_indices, out, options)


def _apply(
    x: Any, build: Callable[..., PoolProblem], op: str, ndim: int, size: Any, return_indices: bool, out: Any,
    options: dict[str, Any],
) -> Any:  # fmt: skip
    return_indices = flag("return_indices", return_indices)
    if out is None:
        x, kind = adopt("x", x)
        target = None
    else:
        (x, _, _, _, target), kind = adopt_all(x, x, None, None, out)
    problem = describe(build, op, ndim, x.shape, size, x.dtype, options)
    if out is not None:
        check_out(target, problem.y_shape, x.dtype, {"x": x})
    y, indices = pool(problem, x, target, return_indices, kind.device)
    y = kind.give(y) if out is None else out
    return (y, kind.give(indices)) if return_indices else y


_apply_at_home = at_home(_apply)


def describe(
    build: Callable[..., PoolProblem], op: str, ndim: int, x_shape: tuple[int, ...], size: Any, dtype: Any,
    options: dict[str, Any],
) -> PoolProblem:  # fmt: skip
    """The problem that `build` makes; for equal arguments the same one."""
    return remembered(_problem, (build, op, ndim, x_shape, dtype, tuple(options)), (size, *options.values()))


def _problem(
    build: Callable[..., PoolProblem], op: str, ndim: int, x_shape: tuple[int, ...], dtype: Any, names: tuple[str, ...],
    size: Any, *values: Any,
) -> PoolProblem:  # fmt: skip
    return build(op, ndim, x_shape, size, dtype=dtype.name, **dict(zip(names, values, strict=True)))


def pool(problem: PoolProblem, x: Any, out: Any, with_indices: bool, device: str) -> tuple[Any, Any]:
    """Pool a NumPy or CuPy array, into `out` unless that is None; also gives indices, or None."""
    empty = recycling.empty if device == "cpu" else library(device).empty
    indices = empty(problem.y_shape, np.dtype(np.int64)) if with_indices else None
    y = empty(problem.y_shape, x.dtype) if out is None else out
    if y.size == 0:
        return y, indices
    before, after = problem.views
    target = y.reshape(after)
    found = () if indices is None else (indices.reshape(after),)
    _plan(problem, with_indices, device).run(x.reshape(before), target, *found)
    if out is not None and not library(device).may_share_memory(target, y):  # the axes of `out` cannot be merged
        y[...] = target.reshape(y.shape)
    return y, indices


@lru_cache(maxsize=1024)
def _plan(problem: PoolProblem, with_indices: bool, device: str) -> Any:
    if device == "cpu":
        from fastconv.cpu.pooling import PoolPlan

        return PoolPlan(problem, with_indices)
    from fastconv.gpu import pooling

    return pooling.plan(problem, with_indices)
