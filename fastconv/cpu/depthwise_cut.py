"""How depthwise convolution is cut into tasks, and its taps into runs.

A task takes some groups, rows and columns of the results, of one depth. What it stages of the input is laid out in one
of two ways. *Planes*: the vectors of a tile lie along the row, a group has a slot of its own, and the stride along the
row is taken out by splitting it into parts, part p of elements p, p + s, p + 2 s, … *Pixels*: the vectors hold
neighbouring groups, which therefore share a slot; a pixel is a vector, and strides need no care. In both a slot has its
planes to itself: what a tile reads fills whole lines of L1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.cpu.depthwise_phases import Phases
from fastconv.cpu.depthwise_tile import HEIGHTS, LONGEST_RUN, STRIP
from fastconv.cpu.jit import inline
from fastconv.cpu.microkernel import odd_lines, padded
from fastconv.cpu.parallel import CACHE_LINE
from fastconv.cpu.staging import sees_padding
from fastconv.lowering import Correlation
from fastconv.remembering import once
from fastconv.settings import available_cores

_STAGED = 32 << 10  # bytes staged of the planes of one group in a task, if a tile's own rows do not need more
_TOGETHER = 12 << 10  # bytes staged of several groups: with as much of results they stay in L1
_WIDTH = 1024  # elements of the longest part of a row of planes in one task
_NEAR = 20 << 10  # bytes: the planes of one group beyond it leave L1, and are read from L2 for each of its results
_STAGED_PIXELS = 128 << 10  # bytes of pixels staged by a task: a quarter of L2
# Bytes that a task takes of each pixel of the input, where it stages it and where it reads it; fewer, lest there be no
# room for _COLUMNS of results.
_PIXEL, _PIXEL_IN_PLACE = 256, 1024
_COLUMNS = 16
_SETS = 64  # of L1
# Cache lines of a tile in one set of 8: so few are there for the next tile, and more cost as much as staging.
_FITTING, _CROWD = 9, 12
_FEWEST_ROWS = 4  # fewer rows of results are better covered by tiles that lie along the row

#: How a correlation is cut: `blocks` tasks along groups, height and width, of so many `slots` of groups, rows and
#: columns; `padded` says whether any sees padding. A `plane` is what is staged of one (channel, kd); its rows are
#: `row` elements apart, its pixels or elements `pixel`, the parts of a row `part`. Results in scratch memory begin at
#: `sums` and go on for the next phase of a row every `sums_phase`, for a group every `sums_slot`, for a row of the tile
#: every `sums_pitch`, for a tile, or a row of those that lie along it, every `sums_step`; a vector of `bias` follows.
#: `grid` says how many phases there are along height and width.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("slots", "rows", "columns", "lanes", "pixels", "along", "padded", "plane", "row")]
    + [(name, np.int64) for name in ("pixel", "part", "sums", "sums_phase", "sums_slot", "sums_pitch", "sums_step")]
    + [("bias", np.int64), ("blocks", np.int64, (3,)), ("grid", np.int64, (2,))]
)


@inline
def task_of(task, geo, block):  # type: ignore[no-untyped-def]
    """Of a task: its place, the image, the first slot and how many, depth, first row and column, rows, columns.

    Tasks at one place follow one another: their padding lies where it lay, and is written once.
    """
    place, rest = divmod(task, geo.batch * block.blocks[0])
    n, slots = divmod(rest, block.blocks[0])
    rest, w = divmod(place, block.blocks[2])
    d, h = divmod(rest, block.blocks[1])
    first, h, w = slots * block.slots, h * block.rows, w * block.columns
    vector = block.lanes if block.pixels else 1
    slots = min(block.slots, (geo.groups + vector - 1) // vector - first)
    return place, n, first, slots, d, h, w, min(block.rows, geo.count[1] - h), min(block.columns, geo.count[2] - w)


def grouped_in_vectors(c: Correlation, itemsize: int) -> int:
    """Of how many channels the groups are, in and out, if vectors hold whole groups of them; else 0."""
    inner = c.in_channels
    return inner if inner == c.out_channels > 0 and padded(1, itemsize) % inner == 0 else 0


def _up(n: int, to: int) -> int:
    """The least multiple that is not smaller."""
    return -(-n // to) * to


def _tasks() -> int:
    """At least so many tasks a piece should have, if there is work for them."""
    return 4 * available_cores()


def _runs(taps: int, apart: int) -> list[np.ndarray[Any, Any]]:
    """The taps of a column of the kernel in runs of three, two and one: an array (runs, taps) for each length.

    Taps of a run are so many `apart`; 0 if there are no longer runs.
    """
    chains = [range(first, taps, apart) for first in range(min(apart, taps))] if apart else [[k] for k in range(taps)]
    runs = [chain[i : i + LONGEST_RUN] for chain in chains for i in range(0, len(chain), LONGEST_RUN)]
    return [
        np.array([run for run in runs if len(run) == length], np.int64).reshape(-1, length)
        for length in range(LONGEST_RUN, 0, -1)
    ]


class Cut:
    """How a correlation is cut into tasks.

    Parameters
    ----------
    correlation : Phases
    itemsize : int
        Bytes of the accumulator.
    pixels : bool
        Whether vectors hold neighbouring groups, not neighbouring elements of a row.
    readable : bool
        Whether what vectors hold may lie in the input as it is staged.
    """

    def __init__(self, correlation: Phases, itemsize: int, pixels: bool, *, readable: bool) -> None:
        self._correlation = c = correlation
        # Large windows of stride 1 overlap so much that what is staged is read often, faster than the input itself.
        self._readable = readable and (math.prod(c.stride[1:]) > 1 or c.kernel[2] <= LONGEST_RUN)
        # Windows without an element in common gain nothing from what is staged.
        reaches = [(kernel - 1) * dilation + 1 for kernel, dilation in zip(c.kernel, c.dilation, strict=True)]
        self._apart = all(stride >= reach for stride, reach in zip(c.stride[1:], reaches[1:], strict=True))
        self.tables = lru_cache(maxsize=8)(self._tables)
        depth, height, width = c.count
        (_, stride, stride_w), (_, reach, reach_w) = c.stride, reaches
        lanes = padded(1, itemsize)
        planes = c.kernel[0] * (1 if pixels else c.in_channels) if c.reduction else 0
        along = height < _FEWEST_ROWS
        if pixels and self._readable and not along and width >= _FEWEST_ROWS:
            pixel_bytes = c.groups * c.in_channels * itemsize
            contiguous = c.size[2] * pixel_bytes, pixel_bytes
            down, across = (self._in_a_set(contiguous, max(HEIGHTS), axis) for axis in (1, 2))
            along = across < down if self._apart else across <= _FITTING < down
        self._turned = along and pixels

        columns = min(width, _WIDTH)
        vectors = columns if pixels else -(-columns // lanes)
        tall = min(HEIGHTS, key=lambda tile: (_up(vectors if along else height, tile), -tile))
        least = 1 if along else tall
        slots = -(-c.groups // lanes) if pixels else c.groups
        spread = c.batch * slots * depth
        if pixels:
            room = _STAGED_PIXELS // itemsize
            pixel = lanes
            together = (_PIXEL_IN_PLACE if self._readable else _PIXEL) // itemsize // lanes
            together = max(min(together, slots), 1)

            def fitting() -> int:
                """Columns of results that there is room for."""
                a_column = max(planes * ((least - 1) * stride + reach) * pixel * together, 1)
                return (room // a_column - reach_w) // stride_w + 1

            while together > 1 and fitting() < min(_COLUMNS, width):
                together = _up(together, 2) // 2
            most = _COLUMNS if along and height >= _FEWEST_ROWS else max(fitting(), _COLUMNS)
            columns = vectors = -(-columns // -(-columns // most))
            part = row = odd_lines(((_up(columns, tall if along else 1) - 1) * stride_w + reach_w) * pixel, itemsize)
            across, step = _up(columns, tall if along else 1) * lanes, stride * row if along else stride_w * pixel
            room //= together
        else:
            room, pixel, step = _STAGED // itemsize, 1, tall * lanes if along else lanes
            across = _up(columns, tall * lanes if along else lanes)
            part = _up(across + (reach_w - 1) // stride_w, lanes)
            row = stride_w * part

        def plane(rows: int) -> int:
            """Elements staged of one (channel, kd) for so many rows of results."""
            elements = ((_up(rows, least) - 1) * stride + reach) * row
            return odd_lines(elements, itemsize) if pixels else elements

        most = least + max(room - planes * plane(least), 0) // max(planes * stride * row, 1)
        rows = _up(-(-height // -(-height // most)), least)
        rows = min(rows, max(_up(height * spread // _tasks(), least), least))
        staged = planes * plane(rows)
        if not pixels:
            together = max(min(_TOGETHER // itemsize // max(staged, 1), slots, spread // _tasks()), 1)
        slot = staged
        staged *= together
        blocks = -(-slots // together), -(-height // rows), -(-width // columns)
        sums = _up(rows, least) * across
        self.tasks = c.batch * depth * math.prod(blocks)
        self.staged = staged
        self.scratch = staged + c.grid[1] * together * sums + lanes

        # Where pixels are staged, a plane has the inputs of all channels.
        self._planes = np.arange(c.in_channels * c.kernel[0])[:, None, None]
        self._places = self._planes % max(planes, 1)
        pitch = (stride_w * pixel if pixels else lanes) if along else stride * row
        turned = 2 if self._turned else 1
        unit = lanes if pixels else 1
        strips = self.strips = np.zeros(len(c.phases), STRIP)
        strips["slot"], strips["pitch"], strips["step"] = slot, pitch, step
        strips["group_weights"], strips["group_biases"] = c.out_channels * c.reduction * unit, c.out_channels * unit
        strips["height"] = tall
        self._runs = []
        first = weights = 0
        for phase, strip in zip(c.phases, strips, strict=True):
            taps, steps, spaced = phase.kernel[turned], phase.stride[turned], phase.dilation[turned]
            apart = 0 if steps % spaced or along != self._turned else steps // spaced
            runs = _runs(taps, apart)
            strip["apart"] = apart * (1 if self._turned else phase.kernel[2]) * unit
            strip["runs"] = [len(of_length) * phase.reduction // max(taps, 1) for of_length in runs]
            strip["first"], strip["weights"], strip["taps"] = first, weights, phase.reduction
            first, weights = first + strip["runs"].sum(), weights + c.out_channels * phase.reduction
            self._runs.append(runs)
        block = self.blocking = np.zeros(1, BLOCKING)
        block["slots"], block["rows"], block["columns"], block["blocks"] = together, rows, columns, blocks
        block["lanes"], block["pixels"], block["along"], block["padded"] = lanes, pixels, along, sees_padding(c)
        block["plane"], block["row"], block["pixel"], block["part"] = plane(rows), row, pixel, part
        block["sums"], block["sums_slot"], block["sums_phase"] = staged, sums, together * sums
        block["grid"], block["bias"] = c.grid, staged + c.grid[1] * together * sums
        block["sums_pitch"], block["sums_step"] = (lanes, across) if along else (across, lanes)

        near = pixels or slot * itemsize <= _NEAR
        reads = sum(int(n) * (tall + LONGEST_RUN - 1 - k) for k, n in enumerate(strips["runs"].sum(axis=0)))
        tiles = spread * blocks[1] * blocks[2] * c.out_channels * sums // (tall * lanes)
        #: What a piece costs, idle products and padding included, if all is read and written in vectors.
        self.counted = {
            ("product" if near else "far read"): tiles * lanes * (tall * c.reduction if near else reads),
            "strip": self.tasks * c.out_channels * -(-rows // least) * len(c.phases),
            "tile": tiles * len(c.phases),
            "staged": self.tasks * staged,
            "result": sum(phase.positions for phase in c.phases) * c.batch * c.groups * c.out_channels,
            "task": self.tasks,
        }

    @once
    def geometry(self) -> np.ndarray[Any, Any]:
        """That of the correlation, as kernels receive it."""
        return self._correlation.geometry

    def _tables(self, strides: tuple[int, ...], itemsize: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The strips of all phases, and the table of their runs; where pixels can be read in place, of that too."""
        c, block = self._correlation, self.blocking[0]
        staged = self._table(block["plane"], block["row"], block["part"], block["pixel"])
        lanes = int(block["lanes"])
        steps, odd = zip(*(divmod(stride, itemsize) for stride in strides[3:]), strict=True)
        tile = [stride * step for stride, step in zip(c.stride[1:], steps[1:], strict=True)]
        lines = self._in_a_set((strides[4], strides[5]), int(self.strips["height"][0]), 2 if block["along"] else 1)
        crowded = lines > _CROWD and not self._apart
        if not self._readable or strides[1] != itemsize or any(odd) or crowded:
            return self.strips, staged
        strips = np.concatenate([self.strips, self.strips])
        strips["step"][1], strips["first"][1] = lanes, len(staged) // 2
        strips["slot"][1], strips["pitch"][1] = tile if block["along"] else reversed(tile)
        for what in ("weights", "biases"):
            strips[f"tile_{what}"][1], strips[f"group_{what}"][1] = strips[f"group_{what}"][1], 0
        in_place = self._table(c.dilation[0] * steps[0], steps[1], steps[1], steps[2])
        return strips, np.concatenate([staged, in_place])

    def _in_a_set(self, strides: tuple[int, int], height: int, axis: int) -> int:
        """How many cache lines fall into one set of L1, of those that a tile of that height along axis 1 or 2 reads.

        Rows and columns are so many bytes apart.
        """
        c = self._correlation
        seen = [np.arange(kernel) * dilation for kernel, dilation in zip(c.kernel[1:], c.dilation[1:], strict=True)]
        seen[axis - 1] = np.unique(np.add.outer(np.arange(height) * c.stride[axis], seen[axis - 1]))
        pixels = np.add.outer(seen[0] * strides[0], seen[1] * strides[1]).ravel()
        return int(np.bincount(pixels // CACHE_LINE % _SETS, minlength=1).max())

    def _table(self, plane: int, row: int, part: int, pixel: int) -> np.ndarray[Any, Any]:
        """For each run of each phase, where it begins in a slot, and where its first weight is."""
        c, block = self._correlation, self.blocking[0]
        parts, unit = row // part, block["lanes"] if block["pixels"] else 1
        found = []
        for phase, runs in zip(c.phases, self._runs, strict=True):
            _, height, width = phase.kernel
            rows, columns = (
                np.arange(phase.kernel[axis]) * phase.dilation[axis] + c.offset[axis] - phase.offset[axis]
                for axis in (1, 2)
            )
            places = rows[:, None] * row + columns % parts * part + columns // parts * pixel
            weights = np.arange(height * width).reshape(height, width)
            if self._turned:
                places, weights = places.T, weights.T
            found += [
                (places[first] + self._places * plane, (weights[first] + self._planes * weights.size) * unit)
                for first in (of_length[:, 0] for of_length in runs)
            ]
        return np.concatenate([np.stack(pair, axis=-1).ravel() for pair in found])
