"""Pooling, window by window or by lines, whichever reads less.

Windows come as a table for each axis (:data:`fastconv.pooling_problem.WINDOW`): padding, rounding and adaptive windows
are in it already, and so are gradients, whose windows hold places of the result. An image is (D, H, W, C), with C of 1
where channels come first. Where they come last, a pixel is a run of channels, and a window is folded for all of them at
once (:mod:`fastconv.cpu.folding`). Where they come first, so are the windows of a *run* along the row: equally long,
and equally far from one to the next. Windows that are cut off at the ends of rows make runs along the column. Where
runs are short throughout, channels are folded together although they lie far apart.

Large windows that overlap are folded separably. The rows of a window become one line, then its columns one result:

    line[w] = fold over (kd, kh) of x[d, h, w]        y[t] = fold over kw of line[t * stride + kw * dilation]

so that a window of K x K costs 2 K folds an element instead of K * K. Half types, and exponents other than 2 and 3, are
brought into scratch memory row by row, so they go by lines too. All else is read where it lies and written where it
belongs. A line is cut into blocks of channels so that it stays in L1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.elements import load, store
from fastconv.cpu.finding import find
from fastconv.cpu.folding import LONG, fold
from fastconv.cpu.jit import HALF_FORMATS, TaskKernel, array, generic, inline, records
from fastconv.cpu.rows import read_run, without_gaps
from fastconv.pooling_problem import WINDOW, PoolProblem

_COMMON = [(name, np.int64) for name in ("half", "staged", "block", "rows", "line")] + [("dilation", np.int64, (3,))]

#: The numbers of a pooling as kernels receive them. A task is `rows` rows of results by `block` channels. By lines,
#: these lie `line` elements apart in scratch memory, and are `staged` if elements must be widened or raised to a power.
#: Whether a kernel sums, and takes roots, it is told by type, so that no call compiles what it does not need. No type
#: begins with another's fields: Numba would take the one for the other.
MAXIMUM = np.dtype(_COMMON)
MEAN = np.dtype([("divisor", np.int64), ("scale", np.int64), ("exponent", np.float64), *_COMMON])
NORM = np.dtype([("root", np.int64), *MEAN.descr])

#: Windows along a row: `count` of them, at places `place, place + pace, ...`, of `taps` elements; they begin at
#: elements `first, first + step, ...`.
RUN = np.dtype([(name, np.int64) for name in ("place", "pace", "count", "first", "step", "taps", "span")])

#: Windows of a plane that are folded at once: of a run along the row `row` of results, whose windows begin at row `top`
#: and are `high`; or, `upright`, of a run along a column. The rest is as for a run; `span` is that of both axes.
SEGMENT = np.dtype([(name, np.int64) for name in ("row", "top", "high", "upright", *(RUN.names or ()))])

_IN_WINDOWS = 1, 2, 3  # exponents of what is raised as windows are folded
_BLOCK = 4096  # elements of a line that is cut into blocks of channels: half of L1
_LEAST_CHANNELS = 64
_SHARED_CHANNELS = 256  # of a task, where there are few rows of results
_PLANES = 16  # with fewer planes of results than so many, each row is a task
_SMALL_IMAGE = 1024  # elements of an image that is one window, up to which several make a row
_IMAGES = 64  # of a row at most
_MOST_OFFSET = 2**31
_FEWER = 2  # times as few runs make up for results that are not side by side
_LEAST_RUN = 4  # windows, on average, lest channels be folded together although they lie far apart
_LANES = 8  # by which to tell how much slower elements are read one by one


@generic
def _divisor(p: Any, span: Any, number: Any) -> Any:
    """By what the sum of a window is divided, None for a maximum."""
    if "divisor" not in p.fields:
        return lambda p, span, number: None
    return lambda p, span, number: number((span if p.divisor == 0 else p.divisor) / p.scale)


@generic
def _root(p: Any) -> Any:
    """Which root of a sum is taken, None if it is none."""
    return (lambda p: p.root) if "root" in p.fields else lambda p: None


@generic
def _one(p: Any, number: Any) -> Any:
    """By what a sum is divided that is summed further, None for a maximum."""
    return (lambda p, number: number(1)) if "divisor" in p.fields else lambda p, number: None


@generic
def _raise(values: Any, p: Any, inverse: Any) -> Any:
    """Raise numbers that are to be summed to the exponent, or their sums to its inverse."""
    if "exponent" not in p.fields:
        return lambda values, p, inverse: None

    def power(values, p, inverse):  # type: ignore[no-untyped-def]
        number = values.dtype.type
        exponent = 1 / p.exponent if inverse else p.exponent
        if exponent == 2:
            for i in range(np.uintp(values.shape[0])):
                values[i] = values[i] * values[i]
        elif exponent == 3:
            for i in range(np.uintp(values.shape[0])):
                values[i] = values[i] * values[i] * values[i]
        elif exponent == 0.5:
            for i in range(np.uintp(values.shape[0])):
                values[i] = math.sqrt(values[i])
        elif exponent != 1:
            for i in range(values.shape[0]):
                values[i] = number(math.pow(values[i], exponent))

    return power


@generic
def _fold_windows(
    target: Any, to: Any, pace: Any, source: Any, begin: Any, step: Any, leaps: Any, taps: Any, width: Any, runs: Any,
    channels: Any, area: Any, p: Any,
) -> Any:  # fmt: skip
    """Fold the windows of a row of `source`, from byte `begin` on, to those of `target`, from byte `to` on.

    `pace` and `step` are the bytes from pixel to pixel and from channel to channel; leaps, and the taps along the first
    two axes, are those of :func:`fastconv.cpu.folding.fold`.
    """
    from numba import types

    if target.dtype == types.uint16:  # half types are folded in float32
        return lambda target, to, pace, source, begin, step, leaps, taps, width, runs, channels, area, p: None

    def fold_windows(target, to, pace, source, begin, step, leaps, taps, width, runs, channels, area, p):  # type: ignore[no-untyped-def]
        number = target.dtype.type
        for r in range(runs.shape[0]):
            run = runs[r]
            fold(
                target, to + run.place * pace[0], run.pace * pace[0], source, begin + run.first * step[0],
                run.step * step[0], leaps, (taps[0], taps[1], run.taps), run.count,
                _divisor(p, area * run.span, number), _root(p),
            )  # fmt: skip
        for t in range(width.shape[0] if runs.shape[0] == 0 else 0):
            fold(
                target, to + t * pace[0], pace[1], source, begin + width[t].first * step[0], step[1], leaps,
                (taps[0], taps[1], width[t].taps), channels, _divisor(p, area * width[t].span, number), _root(p),
            )  # fmt: skip

    return fold_windows


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
    _raise(out, p, False)


@inline
def _fold_rows(x, n, g, c, channels, deep, high, p, scratch):  # type: ignore[no-untyped-def]
    """Fold the rows of a window into a line, and say from which element of scratch memory on it lies."""
    length, size, one = x.shape[4] * channels, scratch.itemsize, _one(p, scratch.dtype.type)
    if p.staged == 0:
        begin = n * x.strides[0] + g * x.strides[1] + deep.first * x.strides[2] + high.first * x.strides[3]
        leaps, taps = (p.dilation[0] * x.strides[2], p.dilation[1] * x.strides[3], 0), (deep.taps, high.taps, 1)
        joined = x.strides[5] == x.itemsize and x.strides[4] == channels * x.itemsize
        runs, step = 1 if channels == 1 or joined else x.shape[4], x.strides[4 if channels == 1 else 5]
        for w in range(runs):
            fold(
                scratch, w * channels * size, size, x, begin + w * x.strides[4] + c * x.strides[5], step, leaps, taps,
                length // runs, one, None,
            )  # fmt: skip
        return 0
    at = 0
    if deep.taps * high.taps == 0:
        scratch[:length] = 0
    for kd in range(deep.taps):
        d = deep.first + kd * p.dilation[0]
        for kh in range(high.taps):
            h = high.first + kh * p.dilation[1]
            if kd + kh == 0:
                _stage(x, n, g, d, h, c, channels, p, scratch[:length])
                continue
            # The staged row lies between two lines, which take turns to hold what is folded so far.
            _stage(x, n, g, d, h, c, channels, p, scratch[p.line : p.line + length])
            towards, to = (p.line if at == 0 else -p.line) * size, 2 * p.line - at
            fold(scratch, to * size, size, scratch, at * size, size, (0, 0, towards), (1, 1, 2), length, one, None)
            at = to
    return at


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


@inline
def _place(task, y, blocks, strips):  # type: ignore[no-untyped-def]
    """Image, group, plane, block of channels and strip of rows of a task."""
    rest, strip = divmod(task, strips)
    rest, d = divmod(rest, y.shape[2])
    rest, block = divmod(rest, blocks)
    n, g = divmod(rest, y.shape[1])
    return n, g, d, block, strip


def _whole(first, last, x, y, depth, height, width, runs, segments, strips, pooling, scratch):  # type: ignore[no-untyped-def]
    """Compute tasks `first` to `last` of ``y (N, G, TD, TH, TW, C)`` from windows of ``x (N, G, D, H, W, C)``."""
    p = pooling[0]
    blocks, number = -(-x.shape[5] // p.block), y.dtype.type
    pace, step = (y.strides[4], y.strides[5]), (x.strides[4], x.strides[5])
    leaps = p.dilation[0] * x.strides[2], p.dilation[1] * x.strides[3], p.dilation[2] * x.strides[4]
    for task in range(first, last):
        n, g, d, block, strip = _place(task, y, blocks, strips.shape[0] - 1)
        c, deep = block * p.block, depth[d]
        channels = min(p.block, x.shape[5] - c)
        begin = n * x.strides[0] + g * x.strides[1] + deep.first * x.strides[2] + c * x.strides[5]
        to = n * y.strides[0] + g * y.strides[1] + d * y.strides[2] + c * y.strides[5]
        for k in range(strips[strip], strips[strip + 1] if segments.shape[0] > 0 else 0):
            s = segments[k]
            fold(
                y, to + s.row * y.strides[3] + s.place * y.strides[4],
                s.pace * (y.strides[3] if s.upright else y.strides[4]),
                x, begin + s.top * x.strides[3] + s.first * x.strides[4],
                s.step * (x.strides[3] if s.upright else x.strides[4]),
                leaps, (deep.taps, s.high, s.taps), s.count, _divisor(p, deep.span * s.span, number), _root(p),
            )  # fmt: skip
        for h in range(strip * p.rows, min((strip + 1) * p.rows, y.shape[3]) if segments.shape[0] == 0 else 0):
            high = height[h]
            _fold_windows(
                y, to + h * y.strides[3], pace, x, begin + high.first * x.strides[3], step, leaps,
                (deep.taps, high.taps), width, runs, channels, deep.span * high.span, p,
            )  # fmt: skip


def _lines(first, last, x, y, depth, height, width, runs, strips, pooling, scratch):  # type: ignore[no-untyped-def]
    """The same, by lines."""
    p = pooling[0]
    blocks = -(-x.shape[5] // p.block)
    size, end = scratch.itemsize, 3 * p.line
    for task in range(first, last):
        n, g, d, block, strip = _place(task, y, blocks, strips.shape[0] - 1)
        c, deep = block * p.block, depth[d]
        channels = min(p.block, x.shape[5] - c)
        beside = channels * size, size
        leaps = 0, 0, p.dilation[2] * beside[0]
        for h in range(strip * p.rows, min((strip + 1) * p.rows, y.shape[3])):
            high = height[h]
            area = deep.span * high.span
            begin = _fold_rows(x, n, g, c, channels, deep, high, p, scratch) * size
            if p.staged == 0:
                to = n * y.strides[0] + g * y.strides[1] + d * y.strides[2] + h * y.strides[3] + c * y.strides[5]
                pace = y.strides[4], y.strides[5]
                _fold_windows(y, to, pace, scratch, begin, beside, leaps, (1, 1), width, runs, channels, area, p)
                continue
            _fold_windows(
                scratch, end * size, beside, scratch, begin, beside, leaps, (1, 1), width, runs, channels, area, p
            )
            sums = scratch[end : end + y.shape[4] * channels]
            _raise(sums, p, True)
            _write(sums, y, n, g, d, h, c, channels, p.half)


def _find(first, last, x, y, indices, depth, height, width, runs, segments, strips, pooling, scratch):  # type: ignore[no-untyped-def]
    """As :func:`_whole`, for a maximum and where it stands in its image."""
    p = pooling[0]
    blocks = -(-x.shape[5] // p.block)
    plane, row = x.shape[3] * x.shape[4], x.shape[4]
    leaps = p.dilation[0] * x.strides[2], p.dilation[1] * x.strides[3], p.dilation[2] * x.strides[4]
    units = p.dilation[0] * plane, p.dilation[1] * row, p.dilation[2]
    for task in range(first, last):
        n, g, d, block, strip = _place(task, y, blocks, strips.shape[0] - 1)
        c, deep = block * p.block, depth[d]
        channels = min(p.block, x.shape[5] - c)
        to = n * y.strides[0] + g * y.strides[1] + d * y.strides[2] + c * y.strides[5]
        there = n * indices.strides[0] + g * indices.strides[1] + d * indices.strides[2] + c * indices.strides[5]
        begin = n * x.strides[0] + g * x.strides[1] + deep.first * x.strides[2] + c * x.strides[5]
        for k in range(strips[strip], strips[strip + 1] if segments.shape[0] > 0 else 0):
            s = segments[k]
            find(
                p.half, y, to + s.row * y.strides[3] + s.place * y.strides[4],
                s.pace * (y.strides[3] if s.upright else y.strides[4]),
                indices, there + s.row * indices.strides[3] + s.place * indices.strides[4],
                s.pace * (indices.strides[3] if s.upright else indices.strides[4]),
                x, begin + s.top * x.strides[3] + s.first * x.strides[4],
                s.step * (x.strides[3] if s.upright else x.strides[4]),
                leaps, (deep.taps, s.high, s.taps), units,
                deep.first * plane + s.top * row + s.first, s.step * (row if s.upright else 1), s.count,
            )  # fmt: skip
        for h in range(strip * p.rows, min((strip + 1) * p.rows, y.shape[3]) if segments.shape[0] == 0 else 0):
            high = height[h]
            for t in range(width.shape[0]):
                find(
                    p.half, y, to + h * y.strides[3] + t * y.strides[4], y.strides[5],
                    indices, there + h * indices.strides[3] + t * indices.strides[4], indices.strides[5],
                    x, begin + high.first * x.strides[3] + width[t].first * x.strides[4], x.strides[5],
                    leaps, (deep.taps, high.taps, width[t].taps), units,
                    deep.first * plane + high.first * row + width[t].first, 0, channels,
                )  # fmt: skip


_whole_kernel, _lines_kernel, _find_kernel = TaskKernel(_whole), TaskKernel(_lines), TaskKernel(_find)


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
        If indices are wanted, and a window reaches over more elements of its image than 32 bits count.
    """

    def __init__(self, problem: PoolProblem, with_indices: bool) -> None:
        if with_indices and _reach(problem) > _MOST_OFFSET:
            raise ValueError(f"{problem}: a window reaches over {_reach(problem)} elements, too many for its indices")
        p = problem if with_indices else _joined(problem)
        self._joined = None if p is problem else p.views
        self._elements, self._half = p.elements, p.dtype in HALF_FORMATS
        staged = bool(self._half) or p.exponent not in _IN_WINDOWS
        by_lines = not with_indices and (staged or (p.exponent == 1 and _is_separable(p)))
        depth, height, width = (axis.windows(p.count_include_pad) for axis in p.axes)
        runs = _runs(width, p.axes[2].period)
        self._across = not by_lines and not p.channels_last and len(runs) * _LEAST_RUN > len(width)
        if self._across:
            p = replace(p, channels_last=True)
        images = p.batch * (1 if p.channels_last else p.channels) * p.out_size[0]
        channels = p.channels if p.channels_last else 1
        if by_lines:
            block = min(channels, max(_BLOCK // p.size[2], _LEAST_CHANNELS))
        elif self._across:
            block = min(channels, _LEAST_CHANNELS)
        else:
            block = channels if images * p.out_size[1] >= _PLANES else min(channels, _SHARED_CHANNELS)
        planes = images * -(-channels // block)
        rows = p.out_size[1] if planes >= _PLANES else 1
        self._tasks = planes * -(-p.out_size[1] // rows)
        line = p.size[2] * block if by_lines else 0
        self._scratch = 3 * line + p.out_size[2] * block if by_lines else 0
        values = {
            "half": HALF_FORMATS.get(p.dtype, 0), "staged": staged, "block": block, "rows": rows, "line": line,
            "divisor": p.divisor or 0, "scale": p.scale, "dilation": [axis.dilation for axis in p.axes],
            "exponent": p.exponent, "root": p.exponent,
        }  # fmt: skip
        kind = MAXIMUM if p.op == "max" else MEAN if p.exponent == 1 or by_lines else NORM
        self._pooling = np.zeros(1, kind)
        for name in kind.names or ():
            self._pooling[name] = values[name]
        bounds, parts = range(0, p.out_size[1] + rows, rows), []
        if channels == 1 and not by_lines:
            upright = np.array(_runs_of(height, 1), RUN)
            parts = [_segments(runs, height, upright, *pair) for pair in pairwise(bounds)]
        ends = np.zeros(len(bounds), np.int64)
        ends[1 : len(parts) + 1] = np.cumsum(list(map(len, parts)))
        segments = np.array(list(chain(*parts)), SEGMENT)
        parts_of_rows = () if by_lines else (segments,)
        self._windows = depth, height, width, runs[: len(runs) if channels == 1 else 0], *parts_of_rows, ends
        table, image = records(WINDOW), array(named_dtype(p.dtype), 6)
        result = array(named_dtype(p.dtype), 6, readonly=False)
        found = (array(np.dtype(np.int64), 6, readonly=False),) if with_indices else ()
        scratch = array(named_dtype(p.accumulator_dtype), 1, contiguous=True, readonly=False)
        kernel = _find_kernel if with_indices else _lines_kernel if by_lines else _whole_kernel
        self._run = kernel.compile(
            image, result, *found, table, table, table, records(RUN), *(records(SEGMENT) for _ in parts_of_rows),
            array(np.dtype(np.int64), 1, contiguous=True), records(kind), scratch,
        )  # fmt: skip

    def run(self, x: Any, y: Any, *indices: Any) -> None:
        """Write every element of `y`, and of the indices where they are wanted."""
        if self._half:
            x, y = x.view(np.uint16), y.view(np.uint16)
        if self._joined is not None:
            before, after = self._joined
            x, y = x.reshape(before), y.reshape(after)
        if self._across:
            x, y, *found = (a.transpose(0, 5, 2, 3, 4, 1) for a in (x, y, *indices))
            indices = tuple(found)
        self._run(self._tasks, self._elements, self._scratch, x, y, *indices, *self._windows, self._pooling)


def _reach(p: PoolProblem) -> int:
    """Elements from the first one of a window to the last."""
    units = p.size[1] * p.size[2], p.size[2], 1
    return sum((axis.full - 1) * axis.dilation * unit for axis, unit in zip(p.axes, units, strict=True)) + 1


def _joined(p: PoolProblem) -> PoolProblem:
    """The same pooling with images of several channels side by side in a row, where each is small and one window."""
    length = math.prod(axis.window_size for axis in p.axes)
    if p.channels_last or length > _SMALL_IMAGE or not all(axis.is_one_window for axis in p.axes):
        return p
    images = math.gcd(p.channels, _IMAGES)
    one = p.axes[0].scaled(1, 1)
    return replace(p, channels=p.channels // images, axes=(one, one, p.axes[0].scaled(length, images)))


def _is_separable(p: PoolProblem) -> bool:
    """Whether to read each row once for a line, and then windows of the line, takes fewer loads than whole windows."""
    depth, height, width = (axis.full for axis in p.axes)
    step = 1 if p.channels_last else abs(p.axes[2].stride)
    load = {1: 1, 2: 3}.get(step, _LANES) if width < LONG or p.axes[2].dilation > 1 else 1
    lines = (depth * height + 1) * p.size[2] / max(p.out_size[2], 1) + width * load + 2
    return lines < depth * height * width * load


def _runs(windows: np.ndarray[Any, Any], period: int) -> np.ndarray[Any, Any]:
    """The windows of a row in runs: of windows next to each other, or a period apart if those are far fewer."""
    near, far = _runs_of(windows, 1), _runs_of(windows, period)
    return np.array(far if len(near) > _FEWER * len(far) else near, RUN)


def _runs_of(windows: np.ndarray[Any, Any], pace: int) -> list[tuple[int, ...]]:
    """Runs of windows that lie `pace` places apart."""
    runs = []
    for phase in range(min(pace, len(windows))):
        table = windows[phase::pace].tolist()
        begin = 0
        while begin < len(table):
            first, *rest = table[begin]
            end, step = begin + 1, 0
            while end < len(table) and table[end][1:] == tuple(rest):
                further = table[end][0] - table[end - 1][0]
                if end == begin + 1:
                    step = further
                elif further != step:
                    break
                end += 1
            runs.append((phase + begin * pace, pace, end - begin, first, step, *rest))
            begin = end
    return runs


def _segments(
    runs: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], upright: np.ndarray[Any, Any], begin: int, end: int
) -> list[tuple[int, ...]]:
    """Of the rows from `begin` to `end` of a plane: runs along each row, but of lone windows, runs along the column."""
    found: list[tuple[int, ...]] = []
    for run in runs.tolist():
        place, pace, count, first, step, taps, span = run
        if count > 1:
            for row, (top, high, over) in enumerate(rows[begin:end].tolist(), begin):
                found.append((row, top, high, 0, place, pace, count, first, step, taps, over * span))
            continue
        for row, _, length, top, fall, high, over in upright.tolist():
            low, until = max(row, begin), min(row + length, end)
            if low < until:
                top += (low - row) * fall
                found.append((low, top, high, 1, place, 1, until - low, first, fall, taps, over * span))
    return found
