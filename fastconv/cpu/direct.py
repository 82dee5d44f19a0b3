"""Direct convolution: any problem, any dtype, nothing copied but a few rows at a time.

A task computes a block of outputs: some channels of one group, some rows, part of their length. It *stages* the input
rows it needs into scratch memory, one line for each (channel, kd), and there every difficulty ends: padding of any
mode, strides in memory, half types. A line holds the rows of all kh one after another, a `period` apart; with strides s
and t it is laid down as s x t interleaved parts, so that element j of the output reads ``lines[offset of the tap + j]``
at unit stride whatever the strides of the convolution, through several output rows at once. The few sums between two
rows are computed and thrown away.

What remains is ``sums[o, j] += w[o, tap] * lines[offset[tap] + j]``, a matrix product whose second factor is never
copied out: the register tile of `microkernel` computes it from the lines as they are. The products of an output are
summed in the order of (channel, kd, kh, kw) however the work is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu import parallel
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.costs import CostModel, Work, gathering, scattering
from fastconv.cpu.elements import CLIP, resolve
from fastconv.cpu.jit import Kernel, TaskKernel, array, contiguous_taps, generic, integer, records
from fastconv.cpu.microkernel import complete_tile, multiply_tile, odd_lines, padded, tile_channels
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.rows import add_row, read_row, write_row
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores, get_num_threads

_LINE = 512  # sums of one channel in a task
_WIDTH = 256  # longest part of a row in one task
_TAPS = 128  # taps of the lines staged at once: a tile's part of them stays in L1
_SUMS = 48 << 10  # sums of one task, over all its channels, which share what was staged
_STRIP = 6  # vectors of a line that all channels use before going on to the next ones
_LONGEST = 1 << 19  # elements of a line of several taps, beyond which each gets its own


#: How a correlation is cut: `blocks` tasks along channels, height and width, of so many channels, rows and columns;
#: `lines` staged at once, each of `taps` taps and of `parts` parts (along height and width) of `part` elements, that is
#: `extra` rows more than the task's, a `period` apart; `pitch` sums for each channel.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("channels", "rows", "columns", "lines", "taps", "extra", "period", "part", "pitch")]
    + [
        ("parts", np.int64, (2,)),
        ("blocks", np.int64, (3,)),
        ("strip", np.int64),
        ("tile", np.int64),
        ("vector", np.int64),
    ]
)


@generic
def _accumulate(sums: Any, *arguments: Any) -> Any:
    """Add taps to sums from `first` to `last` of some channels; weights are (taps, tile) for each tile, from `at`."""
    from numba import types

    def in_registers(  # type: ignore[no-untyped-def]
        sums, pitch, channels, first, last, lines, offsets, taps, weights, at, all_taps, tile, strip
    ):
        for j in range(first, last, strip):
            for o in range(0, channels, tile):
                here = min(tile, channels - o)
                multiply_tile(
                    sums, o * pitch + j, pitch, lines[j:], offsets, taps, weights, at * here + o * all_taps, here,
                    min(strip, last - j),
                )  # fmt: skip

    def in_memory(  # type: ignore[no-untyped-def]
        sums, pitch, channels, first, last, lines, offsets, taps, weights, at, all_taps, tile, strip
    ):
        for o in range(channels):
            row = sums[o * pitch : o * pitch + last]
            for t in range(taps):
                weight, line = weights[at + o * all_taps + t], lines[offsets[t] :]
                for j in range(first, last):
                    row[j] += weight * line[j]

    return in_memory if isinstance(sums.dtype, types.Complex) else in_registers


@generic
def _complete(results: Any, start: Any, *arguments: Any) -> Any:
    """Write the whole vectors of a row of results of some channels, all of whose taps are staged; tell their length.

    Nothing is written, and that is 0, if results are not of the sums' dtype or not side by side.
    """
    from numba import types

    def write(results, start, lines, offsets, taps, weights, tile, strip, vector, clipped, parameters):  # type: ignore[no-untyped-def]
        if results.strides[1] != results.itemsize:
            return 0
        least, most = start.dtype.type(-np.inf), start.dtype.type(np.inf)
        if clipped:
            least, most = parameters[0], parameters[1]
        channels, whole = results.shape[0], results.shape[1] // vector * vector
        pitch = results.strides[0] // results.itemsize
        for j in range(0, whole, strip):
            for o in range(0, channels, tile):
                complete_tile(
                    results, o * pitch + j, pitch, lines[j:], offsets, taps, weights, o * taps,
                    min(tile, channels - o), min(strip, whole - j), start, o, least, most,
                )  # fmt: skip
        return whole

    def leave(results, start, lines, offsets, taps, weights, tile, strip, vector, clipped, parameters):  # type: ignore[no-untyped-def]
        return 0

    return write if isinstance(start.dtype, types.Float) and results.dtype == start.dtype else leave


def _direct(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, offsets, half, activation, parameters, scratch
):  # fmt: skip
    """Compute tasks `first` to `last`; `weights` is (G, O * taps), and `bias`, `residual` may have no elements."""
    geo, block = geometry[0], blocking[0]
    mode, stride_h, stride_w = geo.padding_mode, geo.stride[1], geo.stride[2]
    kernel_d, kernel_h, kernel_w = geo.kernel[0], geo.kernel[1], geo.kernel[2]
    if block.taps > 1:
        kernel_h, kernel_w = 1, 1  # a line serves all taps of its channel and kd
    all_lines = geo.in_channels * kernel_d * kernel_h * kernel_w
    all_taps = all_lines * block.taps
    parts_h, parts_w = block.parts[0], block.parts[1]
    part, period, pitch = block.part, block.period, block.pitch
    line_length = parts_h * parts_w * part
    lines, sums = scratch[: block.lines * line_length], scratch[block.lines * line_length :]
    start = sums[block.channels * pitch + block.vector :]  # a tile for the end of a row may pass the last sum
    at_once = all_lines <= block.lines and residual.shape[0] == 0 and activation <= CLIP

    for task in range(first, last):
        rest, o_block = divmod(task, block.blocks[0])
        rest, w_block = divmod(rest, block.blocks[2])
        rest, h_block = divmod(rest, block.blocks[1])
        rest, d = divmod(rest, geo.count[0])
        n, g = divmod(rest, geo.groups)
        o_first, h_first, w_first = o_block * block.channels, h_block * block.rows, w_block * block.columns
        channels = min(block.channels, geo.out_channels - o_first)
        rows = min(block.rows, geo.count[1] - h_first)
        width = min(block.columns, geo.count[2] - w_first)
        for o in range(channels):
            start[o] = bias[g * geo.out_channels + o_first + o] if bias.shape[0] > 0 else 0
        done = 0  # results of each row that are written

        for line_first in range(0, max(all_lines, 1), block.lines):
            line_last = min(line_first + block.lines, all_lines)
            for line in range(line_first, line_last):
                rest, kw = divmod(line, kernel_w)
                rest, kh = divmod(rest, kernel_h)
                c, kd = divmod(rest, kernel_d)
                source_d = resolve(d * geo.stride[0] + kd * geo.dilation[0] - geo.offset[0], geo.size[0], mode)
                start_h = h_first * stride_h + kh * geo.dilation[1] - geo.offset[1]
                start_w = w_first * stride_w + kw * geo.dilation[2] - geo.offset[2]
                at = (line - line_first) * line_length
                for padded_h in range((rows + block.extra) * parts_h):
                    row, part_h = divmod(padded_h, parts_h)
                    source_h = resolve(start_h + row * stride_h + part_h, geo.size[1], mode)
                    for part_w in range(parts_w):
                        to = at + (part_h * parts_w + part_w) * part + row * period
                        staged = lines[to : to + period]
                        if source_d < 0 or source_h < 0:
                            staged[:] = 0
                        else:
                            read_row(x[n, g, c, source_d, source_h], start_w + part_w, stride_w, mode, half, staged)
            taps = (line_last - line_first) * block.taps
            own_weights = weights[g, o_first * all_taps :]
            for row in range(rows if at_once else 0):
                results = y[n, g, o_first : o_first + channels, d, h_first + row, w_first : w_first + width]
                done = _complete(
                    results, start, scratch[row * period :], offsets, taps, own_weights, block.tile, block.strip,
                    block.vector, activation == CLIP, parameters,
                )  # fmt: skip
            if line_first == 0 and done < width:
                sums[: channels * pitch] = 0
            if done == 0:
                _accumulate(
                    sums, pitch, channels, 0, (rows - 1) * period + width, scratch, offsets, taps, own_weights,
                    line_first * block.taps, all_taps, block.tile, block.strip,
                )  # fmt: skip
            else:  # of each row less than a vector is left
                for row in range(rows if done < width else 0):
                    _accumulate(
                        sums, pitch, channels, row * period + done, row * period + width, scratch, offsets, taps,
                        own_weights, 0, all_taps, block.tile, block.strip,
                    )  # fmt: skip

        for o in range(channels if done < width else 0):
            channel = o_first + o
            for row in range(rows):
                h, at = h_first + row, o * pitch + row * period
                left = sums[at + done : at + width]
                if residual.shape[0] > 0:
                    add_row(left, residual[n, g, channel, d, h, w_first : w_first + width], half)
                results = y[n, g, channel, d, h, w_first + done : w_first + width]
                write_row(left, start[o], activation, parameters, half, results)


def _arrange(first, last, taps, tile, tiles):  # type: ignore[no-untyped-def]
    """Rearrange ``taps (G, O, T)`` into ``tiles (G, O * T)``: tile by tile of channels, (T, channels) in each."""
    channels, count = taps.shape[1], taps.shape[2]
    for task in range(first, last):
        g, block = divmod(task, -(-channels // tile))
        o = block * tile
        here = min(tile, channels - o)
        to = tiles[g, o * count : (o + here) * count]
        for t in range(count):
            for i in range(here):
                to[t * here + i] = taps[g, o + i, t]


_kernel, _arrange_kernel = TaskKernel(_direct), Kernel(_arrange)


@cache
def _compiled(dtype_name: str, result_name: str, accumulator_name: str) -> tuple[Any, Any]:
    """The kernel, and the one that arranges weights."""
    dtype, result, accumulator = map(named_dtype, (dtype_name, result_name, accumulator_name))
    vector = array(accumulator, 1, contiguous=True)
    matrix = array(accumulator, 2, contiguous=True, readonly=False)
    kernel = _kernel.compile(
        array(dtype, 6), matrix, array(result, 6, readonly=False), vector, array(result, 6), records(GEOMETRY),
        records(BLOCKING), array(np.dtype(np.int64), 1, contiguous=True), integer, integer, vector,
        array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip
    return kernel, _arrange_kernel.compile(integer, integer, array(accumulator, 3, contiguous=True), integer, matrix)


def _tasks() -> int:
    """At least so many tasks a piece should have, if there is work for them."""
    return 2 * available_cores()


@dataclass(frozen=True)
class _Line:
    """How the input is staged for a task of some rows: see :data:`BLOCKING`."""

    taps: int
    parts: tuple[int, int]
    extra: int
    period: int
    rows: int

    @property
    def staged(self) -> int:
        """Elements written for one line."""
        return self.parts[0] * self.parts[1] * (self.rows + self.extra) * self.period


class _Cut:
    """How a correlation is cut into tasks."""

    def __init__(self, correlation: Correlation, accumulator: np.dtype[Any]) -> None:
        self._correlation = c = correlation
        depth, height, width = c.count
        vector = vector_bytes() // accumulator.itemsize
        parts = -(-width // _WIDTH)
        columns = width if parts <= 1 else -(-width // (parts * vector)) * vector
        line = self._line(columns)
        spatial = c.batch * c.groups * depth * -(-height // line.rows) * -(-width // columns)
        all_lines = c.reduction // line.taps
        self.tile = 1 if accumulator.kind == "c" else tile_channels()
        block = self.blocking = np.zeros(1, BLOCKING)
        block["taps"], block["parts"], block["extra"], block["period"] = line.taps, line.parts, line.extra, line.period
        block["rows"], block["columns"], block["tile"] = line.rows, columns, self.tile
        block["vector"], block["strip"] = vector, (strip := _STRIP * vector)
        block["lines"] = lines = min(max(_TAPS // line.taps, 1), max(all_lines, 1))
        block["part"] = part = odd_lines((line.rows + line.extra) * line.period, accumulator.itemsize)
        block["pitch"] = pitch = padded((line.rows - 1) * line.period + columns, accumulator.itemsize)
        block["channels"] = channels = self._channels(spatial, pitch)
        block["blocks"] = blocks = -(-c.out_channels // channels), -(-height // line.rows), -(-width // columns)
        self.tasks = spatial * blocks[0]
        line_length = math.prod(line.parts) * part
        # Tiles read whole vectors, past the end of the last line: into the sums, which are there anyway.
        self.scratch = lines * line_length + channels * pitch + vector + channels
        self.offsets = (np.arange(lines)[:, None] * line_length + self._offsets(line, part)).ravel()
        # Where all taps are staged at once, sums of whole vectors do not pass through memory.
        at_once, results = all_lines <= lines and accumulator.kind == "f", line.rows * columns
        counts = {
            "product": spatial * (results if at_once else pitch) * c.out_channels * c.reduction,  # idle ones included
            "tile": spatial * -(-pitch // strip) * -(-c.out_channels // self.tile) * -(-all_lines // lines),
            "staged": self.tasks * all_lines * line.staged,
            "result": c.batch * c.groups * c.positions * c.out_channels,
            "task": self.tasks,
        }
        self.work = Work(self.tasks, counts)

    def _line(self, columns: int) -> _Line:
        """One line for all taps of a channel and kd; one for each tap where dilation would make that very long."""
        c = self._correlation
        apart = _Line(1, (1, 1), 0, columns, self._rows(columns))
        taps = c.kernel[1] * c.kernel[2]
        if taps <= 1:
            return apart
        (_, stride_h, stride_w), (_, dilation_h, dilation_w) = c.stride, c.dilation
        period = columns + (c.kernel[2] - 1) * dilation_w // stride_w
        extra = (c.kernel[1] - 1) * dilation_h // stride_h
        together = _Line(taps, (stride_h, stride_w), extra, period, self._rows(period))
        return together if together.staged <= _LONGEST else apart

    def _rows(self, period: int) -> int:
        """Rows of a task: as many as make a line, but not all of a small image, lest threads be idle."""
        c = self._correlation
        spread = -(-2 * c.batch * c.groups * c.count[0] * c.count[1] // _tasks())
        return max(min(_LINE // period, spread, c.count[1]), 1)

    def _offsets(self, line: _Line, part: int) -> np.ndarray[Any, Any]:
        """Where each tap of a line begins."""
        if line.taps == 1:
            return np.zeros(1, np.int64)
        c, (parts_h, parts_w) = self._correlation, line.parts
        h = np.arange(c.kernel[1])[:, None] * c.dilation[1]
        w = np.arange(c.kernel[2]) * c.dilation[2]
        return ((h % parts_h * parts_w + w % parts_w) * part + h // parts_h * line.period + w // parts_w).ravel()

    def _channels(self, spatial_tasks: int, pitch: int) -> int:
        """Output channels of a task: whole tiles, as many as share the staging without leaving threads idle."""
        c = self._correlation
        wanted = max(min(_SUMS // pitch, c.out_channels * spatial_tasks // _tasks()), self.tile)
        return max(min(-(-wanted // self.tile) * self.tile, c.out_channels), 1)


class DirectPlan(PiecewisePlan):
    """A direct convolution made ready; also for the parts of others that a transform cannot compute."""

    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, lambda piece: _Cut(piece, self._accumulator))
        self._kernel, self._arrange = _compiled(problem.dtype, problem.result_dtype, problem.accumulator_dtype)

    def pack(self, w: Any) -> Any:
        """For each piece, its taps in the order in which tiles use them."""
        return [self._pack_piece(piece, cut, w) for piece, cut in zip(self._pieces, self._cuts, strict=True)]

    def _pack_piece(self, piece: Correlation, cut: _Cut, w: Any) -> Any:
        taps = contiguous_taps(piece, w, self._accumulator)
        tiles = np.empty((taps.shape[0], taps.shape[1] * taps.shape[2]), self._accumulator)
        tasks = taps.shape[0] * -(-taps.shape[1] // cut.tile)
        parallel.run(lambda first, last: self._arrange(first, last, taps, cut.tile, tiles), tasks, taps.size)
        return tiles

    def _run_piece(self, piece: Correlation, cut: _Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        self._kernel(cut.tasks, piece.macs, cut.scratch, x, weights, y, bias, residual, piece.geometry, cut.blocking,
                     cut.offsets, self._half, *self._activation)  # fmt: skip

    def run_part(self, part: Correlation, w: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        """Write a correlation that is not one of the problem's pieces but has its dtypes and activation."""
        cut = _Cut(part, self._accumulator)
        self._run_piece(part, cut, self._pack_piece(part, cut, w), x, y, bias, residual)


def _work(problem: ConvProblem) -> Iterable[Work]:
    accumulator = named_dtype(problem.accumulator_dtype)
    for piece in lower(problem):
        work = _Cut(piece.flat or piece, accumulator).work
        yield work._replace(counts=dict(work.counts) | scattering(problem, work.counts, "staged", "result"))


def _packing(problem: ConvProblem) -> Iterable[Work]:
    yield from gathering(problem)
    for piece in lower(problem):
        channels = piece.groups * piece.out_channels
        yield Work(-(-channels // tile_channels()), {"arranged": channels * piece.reduction})


class Direct(CpuAlgorithm):
    """The sum as it is written, from staged rows, in register tiles."""

    name = "direct"
    running = CostModel(
        _work,
        {
            "product": 2.2e-11, "tile": 5.9e-8, "staged": 9.2e-10, "result": 1e-10, "scattered": 9.5e-10,
            "task": 2.1e-7, "call": 1.3e-5,
        },
    )  # fmt: skip
    packing = CostModel(_packing, {"gathered": 2.8e-9, "arranged": 1.2e-9, "call": 9.5e-6})

    def why_not(self, problem: ConvProblem) -> str | None:
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        accumulator = named_dtype(problem.accumulator_dtype)
        scratch = max((_Cut(piece.flat or piece, accumulator).scratch for piece in lower(problem)), default=0)
        return scratch * accumulator.itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return DirectPlan(problem)


register(Direct())
