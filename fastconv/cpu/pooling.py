"""Pooling, separably: the rows of a window become one line, and then the columns of the line one result.

    line[w] = fold over (kd, kh) of x[d, h, w]        y[t] = fold over kw of line[t * stride + kw * dilation]

so that a window of K x K costs 2 K folds an element instead of K * K, and the rows, which lie in memory as they are,
are read in whole vectors. An image is (D, H, W, C), with C of 1 where channels come first. Where they come last, a
pixel is a run of channels, cut into blocks so that a line stays in L1, and both folds go along it.

Windows come as a table for each axis (:data:`fastconv.pooling_problem.WINDOW`): padding, rounding and adaptive windows
are in it already. Only along a row of single elements do whole windows, a stride apart, differ from those at its ends,
because they are folded many at a time.

Half types, exponents and rows with gaps are brought into scratch memory on the way; all else is read where it lies.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.elements import load, store
from fastconv.cpu.folding import MAX, SUM, fold
from fastconv.cpu.jit import HALF_FORMATS, TaskKernel, array, generic, inline, records
from fastconv.cpu.rows import read_run, without_gaps
from fastconv.pooling_problem import WINDOW, Axis, PoolProblem

#: The numbers of a pooling as kernels receive them. A task is `rows` rows of results by `block` channels; `whole` is
#: the range of windows along a row of which nothing is cut off; lines lie `line` elements apart in scratch memory.
POOLING = np.dtype(
    [(name, np.int64) for name in ("op", "half", "block", "rows", "line", "divisor", "scale", "stride")]
    + [("dilation", np.int64, (3,)), ("whole", np.int64, (2,)), ("exponent", np.float64)]
)

_BLOCK = 4096  # elements of a line that is cut into blocks of channels: half of L1
_LEAST_CHANNELS = 64
_PLANES = 16  # with fewer planes of results than so many, each row is a task
_SMALL_IMAGE = 256  # elements of a channel, beyond which collecting vectors across channels is slower
_LANES = 16  # partial results of a long window in a row of single elements


@generic
def _power(value: Any, exponent: Any) -> Any:
    """``value ** exponent``; integers have no exponent but 1."""
    from numba import types

    if not isinstance(value, types.Float):
        return lambda value, exponent: value
    number = np.float32 if value == types.float32 else np.float64

    def power(value, exponent):  # type: ignore[no-untyped-def]
        if exponent == 2:
            return value * value
        if exponent == 0.5:
            return number(math.sqrt(value))
        return number(math.pow(value, exponent))

    return power


@generic
def _average(sums: Any, spans: Any, area: Any, scale: Any, channels: Any) -> Any:
    """Divide each sum by the elements of its window: those along the row times the `area` across it."""
    from numba import types

    if not isinstance(sums.dtype, types.Float):
        return lambda sums, spans, area, scale, channels: None  # integers have no average

    def divide(sums, spans, area, scale, channels):  # type: ignore[no-untyped-def]
        number = sums.dtype.type
        if channels == 1:
            for t in range(np.uintp(spans.shape[0])):
                sums[t] = sums[t] * number(scale) / (spans[t] * number(area))
        else:
            for t in range(spans.shape[0]):
                count = spans[t] * number(area)
                for i in range(np.uintp(t * channels), np.uintp((t + 1) * channels)):
                    sums[i] = sums[i] * number(scale) / count

    return divide


@inline
def _stage(x, n, g, d, h, c, channels, p, out):  # type: ignore[no-untyped-def]
    """Bring a row of `x` into scratch memory, widened and raised to the exponent."""
    row = x[n, g, d, h]
    if (channels == 1 or x.strides[5] == x.itemsize) and x.strides[4] == channels * x.itemsize:
        read_run(without_gaps(row[:, c]), 0, p.half, out)
    else:
        for w in range(row.shape[0]):
            for i in range(channels):
                out[w * channels + i] = load(row[w, c + i], p.half)
    if p.exponent != 1:
        for i in range(out.shape[0]):
            out[i] = _power(out[i], p.exponent)


@inline
def _fold_rows(x, n, g, c, channels, deep, high, p, scratch):  # type: ignore[no-untyped-def]
    """Fold the rows of a window into a line, and say from which element of scratch memory on it lies."""
    length = x.shape[4] * channels
    if p.half == 0 and p.exponent == 1:
        begin = n * x.strides[0] + g * x.strides[1] + deep.first * x.strides[2] + high.first * x.strides[3]
        leap, stride = p.dilation[0] * x.strides[2], p.dilation[1] * x.strides[3]
        joined = x.strides[5] == x.itemsize and x.strides[4] == channels * x.itemsize
        runs, step = 1 if channels == 1 or joined else x.shape[4], x.strides[4 if channels == 1 else 5]
        for w in range(runs):
            fold(
                p.op, scratch, w * channels, x, begin + w * x.strides[4] + c * x.strides[5], step // x.itemsize, leap,
                stride, deep.taps, high.taps, length // runs,
            )  # fmt: skip
        return 0
    at, pitch = 0, p.line * scratch.itemsize
    for kd in range(deep.taps):
        d = deep.first + kd * p.dilation[0]
        for kh in range(high.taps):
            h = high.first + kh * p.dilation[1]
            if kd + kh == 0:
                _stage(x, n, g, d, h, c, channels, p, scratch[:length])
                continue
            # The staged row lies between two lines, which take turns to hold what is folded so far.
            _stage(x, n, g, d, h, c, channels, p, scratch[p.line : p.line + length])
            towards = pitch if at == 0 else -pitch
            fold(p.op, scratch, 2 * p.line - at, scratch, at * scratch.itemsize, 1, 0, towards, 1, 2, length)
            at = 2 * p.line - at
    return at


@inline
def _fold_window(line, wide, p, scratch, to):  # type: ignore[no-untyped-def]
    """Fold one window of a row of single elements into one result."""
    size, at, taps = scratch.itemsize, line + wide.first, wide.taps
    if p.dilation[2] == 1 and taps >= 2 * _LANES:
        partial, rest = p.line, taps % _LANES  # between the two lines, where nothing is staged any more
        fold(p.op, scratch, partial, scratch, at * size, 1, 0, _LANES * size, 1, taps // _LANES, _LANES)
        for i in range(rest):
            scratch[partial + _LANES + i] = scratch[at + taps - rest + i]
        at, taps = partial, _LANES + rest
    fold(p.op, scratch, to, scratch, at * size, 1, 0, p.dilation[2] * size, 1, taps, 1)


@inline
def _fold_columns(line, channels, width, p, scratch, to):  # type: ignore[no-untyped-def]
    """Fold the columns of each window of a line into one result."""
    size, stride = scratch.itemsize, p.dilation[2] * channels * scratch.itemsize
    if channels > 1:
        for t in range(width.shape[0]):
            begin = (line + width[t].first * channels) * size
            fold(p.op, scratch, to + t * channels, scratch, begin, 1, 0, stride, 1, width[t].taps, channels)
        return
    low, high = p.whole
    if low < high:
        begin = (line + width[low].first) * size
        fold(p.op, scratch, to + low, scratch, begin, p.stride, 0, stride, 1, width[low].taps, high - low)
    for t in range(low):
        _fold_window(line, width[t], p, scratch, to + t)
    for t in range(high, width.shape[0]):
        _fold_window(line, width[t], p, scratch, to + t)


@inline
def _write(sums, y, n, g, d, h, c, channels, half):  # type: ignore[no-untyped-def]
    """Write a row of results."""
    row = y[n, g, d, h]
    side_by_side = channels == 1 or y.strides[5] == y.itemsize
    if side_by_side and y.strides[4] == channels * y.itemsize:
        run = without_gaps(row[:, c])
        for i in range(np.uintp(sums.shape[0])):
            store(run, i, sums[i], half)
        return
    for t in range(row.shape[0]):
        for i in range(channels):
            store(row[t], c + i, sums[t * channels + i], half)


def _pool(first, last, x, y, depth, height, width, pooling, scratch):  # type: ignore[no-untyped-def]
    """Compute tasks `first` to `last` of ``y (N, G, TD, TH, TW, C)`` from ``x (N, G, D, H, W, C)``."""
    p = pooling[0]
    blocks, strips = -(-x.shape[5] // p.block), -(-y.shape[3] // p.rows)
    to, columns = 3 * p.line, y.shape[4]
    spans = scratch[to + columns * p.block : to + columns * p.block + columns]
    for t in range(columns):
        spans[t] = width[t].span if p.divisor == 0 else 1
    for task in range(first, last):
        rest, strip = divmod(task, strips)
        rest, d = divmod(rest, y.shape[2])
        rest, block = divmod(rest, blocks)
        n, g = divmod(rest, x.shape[1])
        c = block * p.block
        channels = min(p.block, x.shape[5] - c)
        sums = scratch[to : to + columns * channels]
        for h in range(strip * p.rows, min((strip + 1) * p.rows, y.shape[3])):
            line = _fold_rows(x, n, g, c, channels, depth[d], height[h], p, scratch)
            _fold_columns(line, channels, width, p, scratch, to)
            if p.op != MAX:
                area = depth[d].span * height[h].span if p.divisor == 0 else p.divisor
                _average(sums, spans, area, p.scale, channels)
                if p.exponent != 1:
                    for i in range(sums.shape[0]):
                        sums[i] = _power(sums[i], 1 / p.exponent)
            _write(sums, y, n, g, d, h, c, channels, p.half)


def _find(first, last, x, y, indices, depth, height, width, pooling, scratch):  # type: ignore[no-untyped-def]
    """The same for a maximum and where it stands in its image; tasks are rows of results of one channel group."""
    p = pooling[0]
    for task in range(first, last):
        rest, h = divmod(task, y.shape[3])
        rest, d = divmod(rest, y.shape[2])
        n, g = divmod(rest, x.shape[1])
        for t in range(y.shape[4]):
            for c in range(y.shape[5]):
                at = np.int64(-1)
                most = scratch[0]
                for kd in range(depth[d].taps):
                    i = depth[d].first + kd * p.dilation[0]
                    for kh in range(height[h].taps):
                        j = height[h].first + kh * p.dilation[1]
                        for kw in range(width[t].taps):
                            k = width[t].first + kw * p.dilation[2]
                            value = load(x[n, g, i, j, k, c], p.half)
                            if at < 0 or value > most or value != value:
                                most, at = value, (i * x.shape[3] + j) * x.shape[4] + k
                store(y[n, g, d, h, t], c, most, p.half)
                indices[n, g, d, h, t, c] = at


_pool_kernel, _find_kernel = TaskKernel(_pool), TaskKernel(_find)


class PoolPlan:
    """A pooling made ready for its arrays, six-axis views of which it takes; its result is not empty.

    Parameters
    ----------
    problem : PoolProblem
    with_indices : bool
        Whether to find where each maximum stands.
    """

    def __init__(self, problem: PoolProblem, with_indices: bool) -> None:
        self._across = not with_indices and _is_best_across(problem)
        p = self._problem = _across(problem) if self._across else problem
        self._half = p.dtype in HALF_FORMATS
        self._tables = [axis.windows(p.count_include_pad) for axis in p.axes]
        channels = p.channels if p.channels_last else 1
        block = min(channels, max(_BLOCK // p.size[2], _LEAST_CHANNELS))
        blocks = -(-channels // block)
        planes = p.batch * (1 if p.channels_last else p.channels) * blocks * p.out_size[0]
        rows = p.out_size[1] if planes >= _PLANES and not with_indices else 1
        line = max(p.size[2] * block, 2 * _LANES)
        self._pooling = _numbers(p, block, rows, line, self._tables[2])
        self._tasks = planes * -(-p.out_size[1] // rows)
        self._scratch = 3 * line + p.out_size[2] * (block + 1)
        table, image = records(WINDOW), array(named_dtype(p.dtype), 6)
        result = array(named_dtype(p.dtype), 6, readonly=False)
        found = (array(np.dtype(np.int64), 6, readonly=False),) if with_indices else ()
        scratch = array(named_dtype(p.accumulator_dtype), 1, contiguous=True, readonly=False)
        kernel = _find_kernel if with_indices else _pool_kernel
        self._run = kernel.compile(image, result, *found, table, table, table, records(POOLING), scratch)
        if with_indices:
            self._tasks = p.batch * (1 if p.channels_last else p.channels) * p.out_size[0] * p.out_size[1]

    def run(self, x: Any, y: Any, *indices: Any) -> None:
        """Write every element of `y`, and of the indices where they are wanted."""
        if self._half:
            x, y = x.view(np.uint16), y.view(np.uint16)
        if self._across:
            x, y = (a.transpose(0, 2, 3, 4, 1, 5).reshape(_across_shape(a)) for a in (x, y))
        self._run(self._tasks, self._problem.elements, self._scratch, x, y, *indices, *self._tables, self._pooling)


def _is_best_across(p: PoolProblem) -> bool:
    """Whether each image becomes one pixel, and its channels are near enough to each other to be folded as a row."""
    return (
        p.out_size == (1, 1, 1)
        and all(a.kernel == a.size and not any(a.padding) for a in p.axes)
        and (p.channels_last or math.prod(p.size) <= _SMALL_IMAGE)
    )


def _across(p: PoolProblem) -> PoolProblem:
    """The same pooling of images whose rows are channels: what was a row is a column, what was a column a plane."""
    depth, height, width = p.size
    axes = Axis(depth * height, 1, depth * height), Axis(width, 1, width), Axis(p.channels, p.channels, 1)
    return replace(p, channels=1, channels_last=False, axes=axes)


def _across_shape(a: Any) -> tuple[int, ...]:
    n, groups, depth, height, width, channels = a.shape
    return n, 1, depth * height, width, groups * channels, 1


def _numbers(p: PoolProblem, block: int, rows: int, line: int, width: Any) -> np.ndarray[Any, Any]:
    """The record of a pooling, a :data:`POOLING`."""
    record = np.zeros(1, POOLING)
    whole = np.flatnonzero(width["taps"] == p.axes[2].kernel)  # none if they are uneven: the kernel is None
    values = {
        "op": MAX if p.op == "max" else SUM, "half": HALF_FORMATS.get(p.dtype, 0), "block": block, "rows": rows,
        "line": line, "divisor": p.divisor or 0, "scale": p.scale, "stride": p.axes[2].stride,
        "dilation": [axis.dilation for axis in p.axes], "whole": (whole[0], whole[-1] + 1) if whole.size else (0, 0),
        "exponent": p.exponent,
    }  # fmt: skip
    for name, value in values.items():
        record[name] = value
    return record


@lru_cache(maxsize=1024)
def plan(problem: PoolProblem, with_indices: bool = False) -> PoolPlan:
    """The plan of a problem, made once."""
    return PoolPlan(problem, with_indices)
