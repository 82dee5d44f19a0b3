"""Depthwise convolution, and grouped convolution with few channels in a group: planes staged in L1, tall tiles.

Between such channels there is no matrix product to be had, and a plane of 56 x 56 by 3 x 3 is done in less than a
microsecond. What counts is that nothing else takes as long. A task takes a few groups. It *stages* the input rows it
needs into scratch memory, padded with zeros, in whole vectors; the stride along the row is taken out on the way (part p
of a row holds elements p, p + s, p + 2 s, …), so that all reads are at unit stride from then on. Then the register tile
of `depthwise_tile` slides over the staged planes, once for each output channel, and writes the finished rows, with
bias and clip applied, where the caller wants them. Only what cannot be written as vectors goes through scratch memory:
results with gaps or in half precision, smooth activations, a residual.

Taps in one column of the kernel form vertical runs. With stride s and dilation d, output rows r and r + 1 read input
rows that are s apart, so the taps of a run must be s / d apart: 1 for the plain convolution, 2 for stride 2 (rows 0 and
2 of a 3 x 3 kernel form a run, row 1 is alone). If d does not divide s, every tap is a run of its own. Results of fewer
than `_FEWEST_ROWS` rows, 1-D convolution above all, turn the tile round: its rows are neighbouring vectors of one row.

The products of an output are summed run by run, first the runs of three taps, then of two, then of one, each in the
order (channel, kd, kh, kw), however the work is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.copying import copy_rows, split_rows
from fastconv.cpu.costs import CostModel, Work, gathering
from fastconv.cpu.depthwise_tile import HEIGHTS, LONGEST_RUN, convolve_strip
from fastconv.cpu.elements import CLIP, resolve
from fastconv.cpu.jit import TaskKernel, array, contiguous_taps, inline, integer, records
from fastconv.cpu.microkernel import padded
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.rows import add_row, read_row, write_row
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores, get_num_threads

_STAGED = 16 << 10  # bytes staged by a task, half of L1, if a tile's own rows do not need more
_MOST_STAGED = 256 << 10  # half of L2: beyond, the algorithm declines
_WIDTH = 1024  # longest part of a row in one task
_FEWEST_ROWS = 4  # below, the tile lies along the row

#: How a correlation is cut: `blocks` tasks along groups, height and width, of so many groups, rows and columns. Staged
#: rows are `row` elements apart and have parts of `part` elements; a `plane` is what is staged of one (channel, kd),
#: `slot` of one group. `pitch` and `step` lead from one vector of the tile to the next, and from tile to tile;
#: `sums_pitch` and `sums_step` likewise for results in scratch memory, which begin at `sums`.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("groups", "rows", "columns", "lanes", "height", "along", "part", "row", "plane")]
    + [(name, np.int64) for name in ("slot", "pitch", "step", "sums", "sums_pitch", "sums_step")]
    + [("blocks", np.int64, (3,))]
)


@inline
def _inside(start, length, size):  # type: ignore[no-untyped-def]
    """Of `length` padded indices from `start` on: the first inside an axis, and the first past its end."""
    low = min(max(-start, 0), length)
    return low, max(min(size - start, length), low)


@inline
def _stage(  # type: ignore[no-untyped-def]
    x, n, first, groups, d, start_h, start_w, rows, columns, geo, block, half, scratch
):  # fmt: skip
    """Stage `rows` by `columns` padded elements of every (channel, kd) of some groups; zeros are there already."""
    mode, step = geo.padding_mode, geo.stride[2]
    low_h, high_h = _inside(start_h, rows, geo.size[1])
    low_w, high_w = _inside(start_w, columns, geo.size[2])
    in_vectors = mode == 0 and step <= 2 and x.itemsize == scratch.itemsize and x.strides[5] == x.itemsize
    corner = n * x.strides[0] + (start_h + low_h) * x.strides[4] + (start_w + low_w) * x.strides[5]
    to = low_h * block.row + low_w % step * block.part + low_w // step
    other = low_h * block.row + (low_w + 1) % step * block.part + (low_w + 1) // step
    for c in range(geo.in_channels):
        for kd in range(geo.kernel[0]):
            plane = (c * geo.kernel[0] + kd) * block.plane
            source_d = resolve(d * geo.stride[0] + kd * geo.dilation[0] - geo.offset[0], geo.size[0], mode)
            if in_vectors and source_d >= 0:
                for i in range(groups):
                    begin = corner + (first + i) * x.strides[1] + c * x.strides[2] + source_d * x.strides[3]
                    at = i * block.slot + plane
                    if step == 1:
                        copy_rows(scratch, at + to, block.row, x, begin, x.strides[4], high_h - low_h, high_w - low_w)
                    else:
                        split_rows(
                            scratch, at + to, at + other, block.row, x, begin, x.strides[4], high_h - low_h,
                            high_w - low_w,
                        )  # fmt: skip
            elif not in_vectors:
                for i in range(groups):
                    for h in range(rows):
                        source_h = resolve(start_h + h, geo.size[1], mode)
                        for part in range(min(step, columns)):
                            at = i * block.slot + plane + h * block.row + part * block.part
                            staged = scratch[at : at + (columns - part + step - 1) // step]
                            if source_d < 0 or source_h < 0:
                                staged[:] = 0
                            else:
                                row = x[n, first + i, c, source_d, source_h]
                                read_row(row, start_w + part, step, mode, half, staged)


def _depthwise(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, offsets, runs, half, activation, parameters, scratch
):  # fmt: skip
    """Compute tasks `first` to `last`; `weights` is (G, O * taps), and `residual` may have no elements."""
    geo, block = geometry[0], blocking[0]
    lanes, height, size = block.lanes, block.height, scratch.itemsize
    taps = weights.shape[1] // max(geo.out_channels, 1)
    clipped = activation == CLIP
    in_place = (
        residual.shape[0] == 0 and activation <= CLIP and half == 0 and not block.along and y.strides[5] == y.itemsize
    )
    y_pitch = y.strides[4] // y.itemsize
    spot = -1
    d, h, w, rows, columns = 0, 0, 0, 0, 0
    for task in range(first, last):
        place, rest = divmod(task, geo.batch * block.blocks[0])
        n, group = divmod(rest, block.blocks[0])
        if place != spot:
            # Tasks at one place follow one another: their padding lies where it lay, and is written once.
            spot = place
            place, w = divmod(place, block.blocks[2])
            d, h = divmod(place, block.blocks[1])
            h, w = h * block.rows, w * block.columns
            rows, columns = min(block.rows, geo.count[1] - h), min(block.columns, geo.count[2] - w)
            scratch[: block.sums] = 0
        g_first = group * block.groups
        groups = min(block.groups, geo.groups - g_first)
        if taps > 0:
            _stage(
                x, n, g_first, groups, d, h * geo.stride[1] - geo.offset[1], w * geo.stride[2] - geo.offset[2],
                (rows - 1) * geo.stride[1] + (geo.kernel[1] - 1) * geo.dilation[1] + 1,
                (columns - 1) * geo.stride[2] + (geo.kernel[2] - 1) * geo.dilation[2] + 1,
                geo, block, half, scratch,
            )  # fmt: skip
        vectors = (columns + lanes - 1) // lanes
        down, across = (vectors, rows) if block.along else (rows, vectors)
        corner = n * y.strides[0] + d * y.strides[3] + h * y.strides[4] + w * y.strides[5]
        for i in range(groups):
            g = g_first + i
            for o in range(geo.out_channels):
                channel, at = g * geo.out_channels + o, g * weights.shape[1] + o * taps
                begin = corner + g * y.strides[1] + o * y.strides[2]
                for r in range(0, down, height):
                    source = i * block.slot + r * block.pitch
                    direct = columns // lanes if in_place and r + height <= down else 0
                    if direct > 0:
                        convolve_strip(
                            y, begin + r * y.strides[4], y.strides[4], lanes * size, scratch, source, block.pitch,
                            block.step, direct, offsets, runs, weights, at, bias, channel, parameters, clipped, height,
                        )  # fmt: skip
                    if direct < across:
                        sums = block.sums + r * block.sums_pitch + direct * block.sums_step
                        convolve_strip(
                            scratch, sums * size, block.sums_pitch * size, block.sums_step * size, scratch,
                            source + direct * block.step, block.pitch, block.step, across - direct, offsets, runs,
                            weights, at, bias, channel, parameters, clipped and in_place, height,
                        )  # fmt: skip
                        if in_place:
                            copy_rows(
                                y, begin // size + r * y_pitch + direct * lanes, y_pitch, scratch, sums * size,
                                block.sums_pitch * size, min(height, down - r), columns - direct * lanes,
                            )  # fmt: skip
                if in_place:
                    continue
                line = block.sums_step if block.along else block.sums_pitch
                for row in range(rows):
                    done = scratch[block.sums + row * line : block.sums + row * line + columns]
                    if residual.shape[0] > 0:
                        add_row(done, residual[n, g, o, d, h + row, w : w + columns], half)
                    target = y[n, g, o, d, h + row, w : w + columns]
                    write_row(done, scratch.dtype.type(0), activation, parameters, half, target)


_kernel = TaskKernel(_depthwise)


@cache
def _compiled(dtype_name: str, result_name: str, accumulator_name: str) -> Any:
    dtype, result, accumulator = map(named_dtype, (dtype_name, result_name, accumulator_name))
    vector, numbers = array(accumulator, 1, contiguous=True), array(np.dtype(np.int64), 1, contiguous=True)
    return _kernel.compile(
        array(dtype, 6), array(accumulator, 2, contiguous=True), array(result, 6, readonly=False), vector,
        array(result, 6), records(GEOMETRY), records(BLOCKING), numbers, numbers, integer, integer, vector,
        array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip


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


class _Cut:
    """How a correlation is cut into tasks."""

    def __init__(self, correlation: Correlation, itemsize: int) -> None:
        self._correlation = c = correlation
        depth, height, width = c.count
        (_, stride, stride_w), (_, dilation, dilation_w) = c.stride, c.dilation
        self._planes = planes = c.in_channels * c.kernel[0] if c.reduction else 0
        lanes, columns = padded(1, itemsize), min(width, _WIDTH)
        along = height < _FEWEST_ROWS
        tall = min(HEIGHTS, key=lambda tile: (_up(-(-columns // lanes) if along else height, tile), -tile))
        least, across = (1, _up(columns, tall * lanes)) if along else (tall, _up(columns, lanes))
        part = _up(across + (c.kernel[2] - 1) * dilation_w // stride_w, lanes)
        row = stride_w * part

        def staged(rows: int) -> int:
            """Elements staged of one group for so many rows of results."""
            return planes * ((_up(rows, least) - 1) * stride + (c.kernel[1] - 1) * dilation + 1) * row

        room = _STAGED // itemsize
        most = least + max(room - staged(least), 0) // max(planes * stride * row, 1)
        rows = _up(-(-height // -(-height // most)), least)
        rows = min(rows, max(_up(height * c.batch * c.groups * depth // _tasks(), least), least))
        slot = staged(rows)
        groups = max(min(room // max(slot, 1), c.groups, c.batch * c.groups * depth // _tasks()), 1)
        blocks = -(-c.groups // groups), -(-height // rows), -(-width // columns)
        self.tasks = c.batch * depth * math.prod(blocks)
        self.staged = groups * slot

        sums = _up(rows, least) * across
        block = self.blocking = np.zeros(1, BLOCKING)
        block["groups"], block["rows"], block["columns"], block["blocks"] = groups, rows, columns, blocks
        block["lanes"], block["height"], block["along"] = lanes, tall, along
        block["part"], block["row"], block["plane"], block["slot"] = part, row, slot // max(planes, 1), slot
        block["pitch"], block["step"] = (lanes, stride * row) if along else (stride * row, lanes)
        block["sums"] = self.staged
        block["sums_pitch"], block["sums_step"] = (lanes, across) if along else (across, lanes)
        self.scratch = self.staged + sums

        self.runs = _runs(c.kernel[1], 0 if along or stride % dilation else stride // dilation)
        self.counts = np.array([len(runs) * planes * c.kernel[2] for runs in self.runs], np.int64)
        self.spatial = c.batch * c.groups * depth * blocks[1] * blocks[2]
        self.tile, self.tiles = tall * lanes, self.spatial * c.out_channels * sums // (tall * lanes)

    def work(self, problem: ConvProblem) -> Work:
        """What it costs, idle products and padding included."""
        c, block = self._correlation, self.blocking[0]
        staged, results = self.spatial * int(block["slot"]), c.batch * c.groups * c.out_channels * c.positions
        plain = problem.dtype == problem.accumulator_dtype and not problem.channels_last
        in_vectors = plain and c.padding_mode == "zeros" and c.stride[2] <= 2
        in_place = plain and not (block["along"] or problem.residual) and problem.activation.code <= CLIP
        counts = {
            "product": self.tiles * self.tile * c.reduction,
            "tile": self.tiles,
            "staged": staged,
            "read": 0 if in_vectors else staged,  # element by element, like those written
            "written": 0 if in_place else results,
            "task": self.tasks,
        }
        return Work(self.tasks, counts)

    def order(self) -> np.ndarray[Any, Any]:
        """The taps, numbered as in (channel, kd, kh, kw), in the order of the runs."""
        _, height, width = self._correlation.kernel
        planes = np.arange(self._planes)[:, None, None, None] * (height * width)
        return np.concatenate(
            [planes + runs[:, None, :] * width + np.arange(width)[:, None] for runs in self.runs], axis=None
        )

    def offsets(self) -> np.ndarray[Any, Any]:
        """Where each run begins in what is staged of a group."""
        c, block = self._correlation, self.blocking[0]
        planes = np.arange(self._planes)[:, None, None] * block["plane"]
        column = np.arange(c.kernel[2]) * c.dilation[2]
        column = column % c.stride[2] * block["part"] + column // c.stride[2]
        rows = [runs[:, :1] * (c.dilation[1] * block["row"]) for runs in self.runs]
        return np.concatenate([planes + row + column for row in rows], axis=None)


class _DepthwisePlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, lambda piece: _Cut(piece, self._accumulator.itemsize))
        self._no_bias = np.zeros(problem.result_channels, self._accumulator)
        cuts = [cut for cut in (*self._cuts, *self._flat_cuts) if cut is not None]
        self._tables = {id(cut): (cut.offsets(), cut.order()) for cut in cuts}
        self._kernel = _compiled(problem.dtype, problem.result_dtype, problem.accumulator_dtype)

    def pack(self, w: Any) -> Any:
        """For each piece, its taps in the order of the runs."""
        return [self._pack_piece(piece, cut, w) for piece, cut in zip(self._pieces, self._cuts, strict=True)]

    def _pack_piece(self, piece: Correlation, cut: _Cut, w: Any) -> Any:
        taps = contiguous_taps(piece, w, self._accumulator)
        return np.take(taps, self._tables[id(cut)][1], axis=2).reshape(taps.shape[0], -1)

    def _run_piece(self, piece: Correlation, cut: _Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        offsets, _ = self._tables[id(cut)]
        self._kernel(cut.tasks, piece.macs, cut.scratch, x, weights, y, bias, residual, piece.geometry, cut.blocking,
                     offsets, cut.counts, self._half, *self._activation)  # fmt: skip


def _cuts(problem: ConvProblem) -> list[_Cut]:
    itemsize = named_dtype(problem.accumulator_dtype).itemsize
    return [_Cut(piece.flat or piece, itemsize) for piece in lower(problem)]


def _work(problem: ConvProblem) -> Iterable[Work]:
    return (cut.work(problem) for cut in _cuts(problem))


def _packing(problem: ConvProblem) -> Iterable[Work]:
    yield from gathering(problem)
    for piece in lower(problem):
        yield Work(1, {"arranged": piece.groups * piece.out_channels * piece.reduction})


class Depthwise(CpuAlgorithm):
    """Depthwise and grouped convolution from planes staged in L1, in tiles down the rows."""

    name = "depthwise"
    running = CostModel(
        _work,
        {"product": 2.3e-11, "tile": 5e-9, "staged": 1e-10, "read": 1.2e-9, "written": 7e-10, "task": 5e-8,
         "call": 1.5e-5},
    )  # fmt: skip
    packing = CostModel(_packing, {"gathered": 1.1e-9, "arranged": 1.4e-9, "call": 5e-6})

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.accumulator_dtype.startswith("complex"):
            return f"it computes real numbers and integers, not {problem.dtype}"
        staged = max((cut.staged for cut in _cuts(problem)), default=0)
        staged *= named_dtype(problem.accumulator_dtype).itemsize
        if staged > _MOST_STAGED:
            return f"a tile of results needs {staged >> 10} KiB of input in cache, more than {_MOST_STAGED >> 10}"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        scratch = max((cut.scratch for cut in _cuts(problem)), default=0)
        return scratch * named_dtype(problem.accumulator_dtype).itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _DepthwisePlan(problem)


register(Depthwise())
