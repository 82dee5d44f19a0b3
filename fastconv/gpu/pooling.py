"""Pooling on NVIDIA GPUs, and the scatter that is the gradient of max pooling; the kernels say how."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.gpu.algorithm import MOST_INDEX, launch_linear
from fastconv.gpu.arguments import NO_VIEW, VIEW, element_strides, record, view
from fastconv.gpu.runtime import KernelSpec, dtype_defines, runtime
from fastconv.pooling_problem import PoolProblem
from fastconv.problem import DTYPES

POOLING = np.dtype(
    [("x", VIEW), ("y", VIEW), ("indices", VIEW), ("windows", np.int64, (3,))]
    + [(name, np.int64) for name in ("batch", "groups", "channels")]
    + [(name, np.int64, (3,)) for name in ("size", "count", "dilation")]
    + [("divisor", np.int64), ("scale", np.float64), ("exponent", np.float64)]
)
SCATTER = np.dtype(
    [(name, np.int64) for name in ("numbers", "indices", "result", "images", "length", "elements", "channels")]
)

_WARP = 32
_VECTOR_BYTES = 16  # the widest load
_LONG_WINDOW = 2 * _WARP  # keeps the lanes of a warp busy
_FEW_RESULTS = 1 << 16  # do not keep the threads of a large GPU busy
# Enough to fill any GPU some times over; with more, threads would spend their time on beginning.
_MOST_BLOCKS = 1 << 13

_FLOATS = tuple(name for name in DTYPES if "float" in name)
_NUMBERS = tuple(name for name in DTYPES if "complex" not in name)


class PoolPlan:
    """A pooling made ready for its arrays, six-axis views of which it takes; its result is not empty.

    Parameters
    ----------
    problem : PoolProblem
    with_indices : bool
        Whether to find where each maximum stands.

    Raises
    ------
    ValueError
        If an axis is too long.
    """

    def __init__(self, problem: PoolProblem, with_indices: bool) -> None:
        p = self._problem = problem
        if max(p.batch, p.channels, *p.size, *p.out_size) > MOST_INDEX:
            raise ValueError(f"x has shape {p.x_shape}: on a GPU an axis can have at most {MOST_INDEX} elements")
        self._with_indices = with_indices
        self._op = "Max" if p.op == "max" else "Mean" if p.exponent == 1 else "PowerMean"
        self._results = p.batch * p.channels * math.prod(p.out_size)
        scale, exponent = np.array([p.scale, p.exponent], np.float64).view(np.int64).tolist()
        self._numbers = {
            "batch": p.batch, "groups": 1 if p.channels_last else p.channels,
            "channels": p.channels if p.channels_last else 1, "size": p.size, "count": p.out_size,
            "dilation": tuple(axis.dilation for axis in p.axes), "divisor": p.divisor or 0, "scale": scale,
            "exponent": exponent,
        }  # fmt: skip
        self._windows = lru_cache(maxsize=8)(self._upload_windows)

    def run(self, x: Any, y: Any, *indices: Any) -> None:
        """Write every element of `y`, and of the indices where they are wanted."""
        entry, lanes = self._shape(x, y)
        params = record(
            POOLING, x=view(x), y=view(y), indices=view(indices[0]) if indices else NO_VIEW,
            windows=tuple(map(runtime().address, self._windows(runtime().device()))), **self._numbers,
        )  # fmt: skip
        threads = self._results * _WARP if entry == "pool_warp" else self._results // lanes
        launch_linear(_spec(entry, self._problem.dtype, self._op, lanes), threads, params, most=_MOST_BLOCKS)

    def _upload_windows(self, device: int) -> list[Any]:
        return [runtime().upload(axis.windows(self._problem.count_include_pad)) for axis in self._problem.axes]

    def _shape(self, x: Any, y: Any) -> tuple[str, int]:
        """Which kernel runs, and how many channels of a result a thread has."""
        if self._with_indices:
            return "find_thread", 1
        window = math.prod(axis.full for axis in self._problem.axes)
        lanes = _lanes(self._problem.dtype, x, y)
        if window >= _LONG_WINDOW and (not self._problem.channels_last or self._results // lanes < _FEW_RESULTS):
            return "pool_warp", 1
        return "pool_thread", lanes


def _most_lanes(dtype: str) -> int:
    return _VECTOR_BYTES // named_dtype(dtype).itemsize


def _lanes(dtype: str, *arrays: Any) -> int:
    """As many neighbouring channels as one aligned load takes; 1 if they do not lie together in all arrays."""
    lanes = _most_lanes(dtype)
    for array in arrays:
        strides = element_strides(array.strides, array.itemsize)
        together = strides[5] == 1 and array.shape[5] % lanes == 0 and not any(s % lanes for s in strides[:5])
        if not together or runtime().address(array) % _VECTOR_BYTES:
            return 1
    return lanes


@cache
def _spec(entry: str, dtype: str, op: str, lanes: int) -> KernelSpec:
    return KernelSpec("pooling.cu", entry, (*dtype_defines(dtype), ("OP", op), ("LANES", str(lanes))))


@lru_cache(maxsize=1024)
def plan(problem: PoolProblem, with_indices: bool = False) -> PoolPlan:
    """The plan of a problem, made once."""
    return PoolPlan(problem, with_indices)


def scatter(numbers: Any, indices: Any, elements: int) -> Any:
    """Add numbers of shape (images, length, channels) to the elements of their images that the indices name.

    Returns
    -------
    array
        ``(images, elements, channels)`` of the accumulator's dtype. What an index outside of the image names is
        nowhere.
    """
    images, length, channels = numbers.shape
    xp, dtype = runtime().xp, numbers.dtype.name
    result = xp.zeros((images, elements, channels), named_dtype(DTYPES[dtype][1]))
    numbers, indices = xp.ascontiguousarray(numbers), xp.ascontiguousarray(indices)
    addresses = map(runtime().address, (numbers, indices, result))
    words = *addresses, images, length, elements, channels
    params = record(SCATTER, **dict(zip(SCATTER.names or (), words, strict=True)))
    if numbers.size:
        launch_linear(_scatter_spec(dtype), images * channels * _WARP, params)
    return result


@cache
def _scatter_spec(dtype: str) -> KernelSpec:
    return KernelSpec("scatter.cu", "scatter", dtype_defines(dtype))


def variants() -> Iterable[KernelSpec]:
    """Every kernel that a pooling or its gradient can launch."""
    for dtype in _NUMBERS:
        yield _spec("find_thread", dtype, "Max", 1)
        yield _scatter_spec(dtype)
        for op in ("Max", "Mean", "PowerMean") if dtype in _FLOATS else ("Max",):
            yield _spec("pool_warp", dtype, op, 1)
            yield from (_spec("pool_thread", dtype, op, lanes) for lanes in (1, _most_lanes(dtype)))
