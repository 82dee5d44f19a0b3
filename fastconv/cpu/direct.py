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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu import parallel
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.copying import SPLITS
from fastconv.cpu.costs import CostModel, Work, gathering, interleaving, scattering
from fastconv.cpu.direct_tile import complete_row
from fastconv.cpu.elements import CLIP, resolve
from fastconv.cpu.jit import Kernel, TaskKernel, array, contiguous_taps, generic, integer, records
from fastconv.cpu.microkernel import multiply_tile, odd_lines, padded, tile_channels, tile_vectors
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.rows import add_row, read_row, split_row, write_row
from fastconv.lowering import GEOMETRY, Correlation, lower, once_a_kind
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores, get_num_threads

_LINE = 512  # sums of one channel in a task
# All taps are staged at once, and no sums pass through memory, where
_READ = 16 << 10  # so many bytes, half of L1, hold what a tile reads of the lines, and
_STAGED = 128 << 10  # so many, a quarter of L2, the lines;
_LONGER = 2048  # then a task has so many sums of one channel, staged by less overlapping rows.
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
    """Add taps to sums of some channels; weights are (taps, tile) for each tile, from `at` on."""
    from numba import types

    def in_registers(  # type: ignore[no-untyped-def]
        sums, pitch, channels, length, lines, offsets, taps, weights, at, all_taps, tile, strip
    ):
        for j in range(0, length, strip):
            for o in range(0, channels, tile):
                here = min(tile, channels - o)
                multiply_tile(
                    sums, o * pitch + j, pitch, lines[j:], offsets, taps, weights, at * here + o * all_taps, here,
                    min(strip, length - j),
                )  # fmt: skip

    def in_memory(  # type: ignore[no-untyped-def]
        sums, pitch, channels, length, lines, offsets, taps, weights, at, all_taps, tile, strip
    ):
        for o in range(channels):
            row = sums[o * pitch : o * pitch + length]
            for t in range(taps):
                weight, line = weights[at + o * all_taps + t], lines[offsets[t] :]
                for j in range(length):
                    row[j] += weight * line[j]

    return in_memory if isinstance(sums.dtype, types.Complex) else in_registers


@generic
def _complete(results: Any, start: Any, *arguments: Any) -> Any:
    """Write a row of results of some channels, all of whose taps are staged; tell whether that was possible.

    It is if results are of the sums' dtype and side by side, at least a vector of them.
    """
    from numba import types

    def write(results, start, lines, offsets, taps, weights, tile, vector, clipped, parameters):  # type: ignore[no-untyped-def]
        if results.strides[1] != results.itemsize or results.shape[1] < vector:
            return False
        channels, pitch = results.shape[0], results.strides[0] // results.itemsize
        for o in range(0, channels, tile):
            complete_row(
                results, o * pitch, pitch, lines, offsets, taps, weights, o * taps, min(tile, channels - o),
                results.shape[1], start, o, parameters, clipped,
            )  # fmt: skip
        return True

    def leave(results, start, lines, offsets, taps, weights, tile, vector, clipped, parameters):  # type: ignore[no-untyped-def]
        return False

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
    at_once = all_lines <= block.lines
    known = -1  # the place that all lines are staged for

    for task in range(first, last):
        place, o_block = divmod(task, block.blocks[0])
        rest, w_block = divmod(place, block.blocks[2])
        rest, h_block = divmod(rest, block.blocks[1])
        rest, d = divmod(rest, geo.count[0])
        n, g = divmod(rest, geo.groups)
        o_first, h_first, w_first = o_block * block.channels, h_block * block.rows, w_block * block.columns
        channels = min(block.channels, geo.out_channels - o_first)
        rows = min(block.rows, geo.count[1] - h_first)
        width = min(block.columns, geo.count[2] - w_first)
        for o in range(channels):
            start[o] = bias[g * geo.out_channels + o_first + o] if bias.shape[0] > 0 else 0
        done = False

        for line_first in range(0, max(all_lines, 1), block.lines):
            line_last = min(line_first + block.lines, all_lines)
            for line in range(line_last if place == known else line_first, line_last):
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
                    to = at + part_h * parts_w * part + row * period
                    if source_d < 0 or source_h < 0:
                        for part_w in range(parts_w):
                            lines[to + part_w * part : to + part_w * part + period] = 0
                    elif parts_w == stride_w:
                        staged = lines[to:]
                        split_row(x[n, g, c, source_d, source_h], start_w, stride_w, mode, half, staged, part, period)
                    else:  # a line of one tap
                        staged = lines[to : to + period]
                        read_row(x[n, g, c, source_d, source_h], start_w, stride_w, mode, half, staged)
            known = place if at_once else -1
            taps = (line_last - line_first) * block.taps
            own_weights = weights[g, o_first * all_taps :]
            for row in range(rows if at_once and residual.shape[0] == 0 and activation <= CLIP else 0):
                results = y[n, g, o_first : o_first + channels, d, h_first + row, w_first : w_first + width]
                done = _complete(
                    results, start, scratch[row * period :], offsets, taps, own_weights, block.tile,
                    block.vector, activation == CLIP, parameters,
                )  # fmt: skip
            if not done:
                if line_first == 0:
                    sums[: channels * pitch] = 0
                _accumulate(
                    sums, pitch, channels, (rows - 1) * period + width, scratch, offsets, taps, own_weights,
                    line_first * block.taps, all_taps, block.tile, block.strip,
                )  # fmt: skip

        for o in range(0 if done else channels):
            channel = o_first + o
            for row in range(rows):
                h, at = h_first + row, o * pitch + row * period
                left = sums[at : at + width]
                if residual.shape[0] > 0:
                    add_row(left, residual[n, g, channel, d, h, w_first : w_first + width], half)
                results = y[n, g, channel, d, h, w_first : w_first + width]
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
    resident: bool = False  # whether the lines of all channels stay staged

    @property
    def staged(self) -> int:
        """Elements written for one line."""
        return self.parts[0] * self.parts[1] * (self.rows + self.extra) * self.period


class _Cut:
    """How a correlation is cut into tasks."""

    def __init__(self, correlation: Correlation, accumulator: np.dtype[Any]) -> None:
        self._correlation = c = correlation
        self._itemsize = accumulator.itemsize
        self.tile = 1 if accumulator.kind == "c" else tile_channels()
        depth, height, width = c.count
        vector = vector_bytes() // accumulator.itemsize
        parts = -(-width // _WIDTH)
        columns = width if parts <= 1 else -(-width // (parts * vector)) * vector
        line = self._line(columns)
        spatial = c.batch * c.groups * depth * -(-height // line.rows) * -(-width // columns)
        all_lines = c.reduction // line.taps
        block = self.blocking = np.zeros(1, BLOCKING)
        block["taps"], block["parts"], block["extra"], block["period"] = line.taps, line.parts, line.extra, line.period
        block["rows"], block["columns"], block["tile"] = line.rows, columns, self.tile
        block["vector"], block["strip"] = vector, (strip := _STRIP * vector)
        lines = all_lines if line.resident else min(_TAPS // line.taps, all_lines)
        block["lines"] = lines = max(lines, 1)
        block["part"] = part = odd_lines((line.rows + line.extra) * line.period, accumulator.itemsize)
        block["pitch"] = pitch = padded((line.rows - 1) * line.period + columns, accumulator.itemsize)
        block["channels"] = channels = self._channels(spatial, pitch)
        block["blocks"] = blocks = -(-c.out_channels // channels), -(-height // line.rows), -(-width // columns)
        self.tasks = spatial * blocks[0]
        line_length = math.prod(line.parts) * part
        # Tiles read whole vectors, past the end of the last line: into the sums, which are there anyway.
        self.scratch = lines * line_length + channels * pitch + vector + channels
        self.offsets = (np.arange(lines)[:, None] * line_length + self._offsets(line, part)).ravel()
        #: Whether sums need not pass through memory, and whether all that is staged lies side by side in whole rows.
        self.at_once = all_lines <= lines and accumulator.kind == "f" and columns >= vector
        self.in_runs = c.stride[2] == 1 or line.parts[1] in SPLITS
        sums = line.rows * padded(columns, accumulator.itemsize) if self.at_once else pitch  # idle ones included
        product = {"i": "integer product", "c": "complex product"}.get(accumulator.kind, "product")
        self.counts = {
            product: spatial * sums * c.out_channels * c.reduction,
            "tile": spatial * -(-pitch // strip) * -(-c.out_channels // self.tile) * -(-all_lines // lines),
            "staged": (staged := (spatial if self.at_once else self.tasks) * all_lines * line.staged),
            "row": staged / line.period / (line.parts[1] if self.in_runs else 1),
            "result": c.batch * c.groups * c.positions * c.out_channels,
            "task": self.tasks,
        }

    def _line(self, columns: int) -> _Line:
        """One line for all taps of a channel and kd; one for each tap where dilation would make that very long."""
        c = self._correlation
        apart = self._fitted(_Line(1, (1, 1), 0, columns, 1), 0)
        taps = c.kernel[1] * c.kernel[2]
        if taps <= 1:
            return apart
        (_, stride_h, stride_w), (_, dilation_h, dilation_w) = c.stride, c.dilation
        more = (c.kernel[2] - 1) * dilation_w // stride_w
        extra = (c.kernel[1] - 1) * dilation_h // stride_h
        together = self._fitted(_Line(taps, (stride_h, stride_w), extra, columns + more, 1), more)
        return together if together.staged <= _LONGEST else apart

    def _fitted(self, line: _Line, more: int) -> _Line:
        """The same line for as many rows as a task has; a tile reads `more` elements beside its own of each row."""
        c, itemsize = self._correlation, self._itemsize
        lines = c.reduction // line.taps
        rows = c.kernel[1] * min(c.kernel[2], c.stride[2]) if line.taps > 1 else 1
        read = lines * rows * (tile_vectors(self.tile) * vector_bytes() + more * itemsize)
        row = max(lines * math.prod(line.parts) * line.period * itemsize, 1)
        resident = read <= _READ and row * (1 + line.extra) <= _STAGED
        most = min(_STAGED // row - line.extra, _LONGER // line.period) if resident else _LINE // line.period
        # Not all rows of a small image, lest threads be idle.
        spread = -(-2 * c.batch * c.groups * c.count[0] * c.count[1] // _tasks())
        rows = max(min(most, spread, c.count[1]), 1)
        return replace(line, rows=-(-c.count[1] // -(-c.count[1] // rows)), resident=resident)

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


@lru_cache(maxsize=1024)
def _cuts(problem: ConvProblem) -> Sequence[_Cut]:
    """For predictions."""
    accumulator = named_dtype(problem.accumulator_dtype)
    return once_a_kind(lower(problem), lambda piece: _Cut(piece.flat or piece, accumulator))


def _work(problem: ConvProblem) -> Iterable[Work]:
    plain = problem.result_dtype == problem.accumulator_dtype and problem.activation.code <= CLIP
    in_rows = plain and not (problem.channels_last or problem.residual)
    for piece, cut in zip(lower(problem), _cuts(problem), strict=True):
        scattered = scattering(problem, cut.counts, "staged", "result")
        if not (cut.in_runs or problem.channels_last):
            scattered = {"scattered": cut.counts["staged"]}
        # A tile of one channel waits for its loads instead.
        tiles = {"tile": 0.0} if cut.at_once and in_rows and piece.out_channels > 1 else {}
        yield Work(cut.tasks, cut.counts | tiles | scattered | interleaving(problem, piece))


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
            "product": 2.05e-11, "integer product": 4.6e-11, "complex product": 8e-10, "tile": 5.9e-8,
            "staged": 1.5e-10, "row": 4e-8, "result": 1.1e-10, "scattered": 1.1e-9, "line": 5e-9, "task": 2.1e-7,
            "call": 1.25e-5,
        },
        frozenset({"product", "integer product"}),
    )  # fmt: skip
    packing = CostModel(_packing, {"gathered": 2.8e-9, "arranged": 1.2e-9, "call": 1e-5})

    def why_not(self, problem: ConvProblem) -> str | None:
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        scratch = max((cut.scratch for cut in _cuts(problem)), default=0)
        return scratch * named_dtype(problem.accumulator_dtype).itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return DirectPlan(problem)


register(Direct())
