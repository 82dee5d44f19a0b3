"""Direct convolution: any problem, any dtype, nothing copied but a few rows at a time.

A task computes a block of outputs: some channels of one group, some rows, part of their length. It *stages* the input
rows it needs into scratch memory, one line for each (channel, kd, kh), and there every difficulty ends: padding of any
mode, strides in memory, half types. A line with stride s is laid down as s interleaved parts, so that element j of an
output row reads ``line[tap offset + j]`` at unit stride whatever the stride of the convolution. What remains,

    sums[j] += w[tap] * lines[offset[tap] + j],

runs along several output rows at once (the few sums between two rows are computed and thrown away), four taps to a
pass, so that a sum is loaded and stored once for four products. The order in which an output's products are summed
depends on the problem alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from fastconv.arrays import named_dtype
from fastconv.cpu import parallel
from fastconv.cpu.costs import seconds
from fastconv.cpu.elements import HALF_FORMATS, activate, activation_arguments, load, resolve, store
from fastconv.cpu.jit import Kernel, array, as_bits, contiguous_taps, inline, records
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import Machine
from fastconv.problem import ConvProblem
from fastconv.registry import Algorithm, Plan, register
from fastconv.settings import get_num_threads

_LINE = 768  # sums of one channel in a task: long enough to amortise the loop, short enough for L1
_WIDTH = 1024  # longest part of a row in one task
_STAGED = 128 << 10  # bytes of lines staged at once: every channel reads them again, from L2
_CHANNELS = 32  # output channels of one task: they share what was staged
_TASKS = 16  # so many tasks keep the threads of most machines busy

# Seconds for a product, a pass of the inner loop, an element staged, a result, a task (bench/fit_costs.py); for a call.
_RATES = (3.0e-11, 3.1e-8, 1.8e-9, 1.5e-9, 4e-7)
_CALL = 2e-5

#: How a correlation is cut: `blocks` tasks along channels, height and width, of so many channels, rows and columns;
#: `lines` staged at once; a line holds `stride` parts of `rows` rows of `period` elements.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("channels", "rows", "width", "lines", "period")] + [("blocks", np.int64, (3,))]
)


@inline
def _stage_row(row, lines, at, part_length, period, parts, start, mode, half):  # type: ignore[no-untyped-def]
    """Lay one input row down from padded index `start` on: every `parts`-th element into each of `parts` parts."""
    size = row.shape[0]
    for part in range(parts):
        to, first = at + part * part_length, start + part
        low = min(max((parts - 1 - first) // parts, 0), period)
        high = max(min((size - first + parts - 1) // parts, period), low)
        _stage_padding(row, lines, to, 0, low, first, parts, mode, half)
        for i in range(low, high):
            lines[to + i] = load(row[first + i * parts], half)
        _stage_padding(row, lines, to, high, period, first, parts, mode, half)


@inline
def _stage_padding(row, lines, to, begin, end, first, parts, mode, half):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        source = resolve(first + i * parts, row.shape[0], mode)
        if source >= 0:
            lines[to + i] = load(row[source], half)
        else:
            lines[to + i] = 0


@inline
def _accumulate(sums, lines, offsets, weights):  # type: ignore[no-untyped-def]
    """Add every tap, each a weight times the part of `lines` at its offset, to the sums."""
    taps, length = weights.shape[0], sums.shape[0]
    together = taps - taps % 4
    for t in range(0, together, 4):
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        x0, x1 = lines[offsets[t] :], lines[offsets[t + 1] :]
        x2, x3 = lines[offsets[t + 2] :], lines[offsets[t + 3] :]
        for j in range(length):
            sums[j] = sums[j] + w0 * x0[j] + w1 * x1[j] + w2 * x2[j] + w3 * x3[j]
    for t in range(together, taps):
        w0, x0 = weights[t], lines[offsets[t] :]
        for j in range(length):
            sums[j] = sums[j] + w0 * x0[j]


def _direct(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, offsets, scratch, half, activation, parameters
):  # fmt: skip
    """Compute tasks `first` to `last`; `weights` is (G, O, taps), and `bias`, `residual` may have no elements."""
    geo, block = geometry[0], blocking[0]
    in_channels, out_channels, mode = geo.in_channels, geo.out_channels, geo.padding_mode
    size_d, size_h = geo.size[0], geo.size[1]
    kernel_d, kernel_h, kernel_w = geo.kernel[0], geo.kernel[1], geo.kernel[2]
    count_d, count_h, count_w = geo.count[0], geo.count[1], geo.count[2]
    parts, period = geo.stride[2], block.period
    all_lines = in_channels * kernel_d * kernel_h
    part_length = block.rows * period
    line_length = parts * part_length
    lines, all_sums = scratch[: block.lines * line_length], scratch[block.lines * line_length :]

    for task in range(first, last):
        rest, o_block = divmod(task, block.blocks[0])
        rest, w_block = divmod(rest, block.blocks[2])
        rest, h_block = divmod(rest, block.blocks[1])
        rest, d = divmod(rest, count_d)
        n, g = divmod(rest, geo.groups)
        o_first, h_first, w_first = o_block * block.channels, h_block * block.rows, w_block * block.width
        channels = min(block.channels, out_channels - o_first)
        rows = min(block.rows, count_h - h_first)
        width = min(block.width, count_w - w_first)
        length = (rows - 1) * period + width
        all_sums[: channels * part_length] = 0

        for line_first in range(0, all_lines, block.lines):
            line_last = min(line_first + block.lines, all_lines)
            start = w_first * parts - geo.offset[2]
            for line in range(line_first, line_last):
                rest, kh = divmod(line, kernel_h)
                c, kd = divmod(rest, kernel_d)
                at = (line - line_first) * line_length
                source_d = resolve(d * geo.stride[0] + kd * geo.dilation[0] - geo.offset[0], size_d, mode)
                for row in range(rows):
                    padded_h = (h_first + row) * geo.stride[1] + kh * geo.dilation[1] - geo.offset[1]
                    source_h = resolve(padded_h, size_h, mode)
                    to = at + row * period
                    if source_d < 0 or source_h < 0:
                        for part in range(parts):
                            lines[to + part * part_length : to + part * part_length + period] = 0
                    else:
                        input_row = x[n, g, c, source_d, source_h]
                        _stage_row(input_row, lines, to, part_length, period, parts, start, mode, half)
            taps_first, taps_last = line_first * kernel_w, line_last * kernel_w
            for o in range(channels):
                sums = all_sums[o * part_length : o * part_length + length]
                _accumulate(sums, lines, offsets, weights[g, o_first + o, taps_first:taps_last])

        for o in range(channels):
            channel = o_first + o
            for row in range(rows):
                target = y[n, g, channel, d, h_first + row]
                sums = all_sums[o * part_length + row * period :]
                for j in range(width):
                    value = sums[j]
                    if bias.shape[0] > 0:
                        value += bias[g * out_channels + channel]
                    if residual.shape[0] > 0:
                        value += load(residual[n, g, channel, d, h_first + row, w_first + j], half)
                    store(target, w_first + j, activate(value, activation, parameters), half)


_kernel = Kernel(_direct)


def _compiled(problem: ConvProblem) -> Any:
    dtype, result = named_dtype(problem.dtype), named_dtype(problem.result_dtype)
    accumulator = named_dtype(problem.accumulator_dtype)
    vector = array(accumulator, 1, contiguous=True, readonly=False)
    return _kernel.compile(
        types.int64, types.int64, array(dtype, 6), array(accumulator, 3, contiguous=True),
        array(result, 6, readonly=False), array(accumulator, 1, contiguous=True), array(result, 6),
        records(GEOMETRY), records(BLOCKING), array(np.dtype(np.int64), 1, contiguous=True), vector, types.int64,
        types.int64, array(accumulator, 1, contiguous=True),
    )  # fmt: skip


class _Piece:
    """A correlation cut into tasks."""

    def __init__(self, correlation: Correlation, itemsize: int) -> None:
        self.correlation = c = correlation
        depth, height, width = c.count
        block = self.blocking = np.zeros(1, BLOCKING)
        columns = min(width, _WIDTH)
        period = ((columns - 1) * c.stride[2] + max(c.kernel[2] - 1, 0) * c.dilation[2]) // c.stride[2] + 1
        rows = min(max(_LINE // period, 1), height)
        line_length = c.stride[2] * rows * period
        spatial_tasks = c.batch * c.groups * depth * -(-height // rows) * -(-width // columns)
        spread = -(-c.out_channels * spatial_tasks // _TASKS)
        channels = max(min(c.out_channels, _CHANNELS, max(spread, 8)), 1)
        all_lines = c.in_channels * c.kernel[0] * c.kernel[1]
        block["rows"], block["width"], block["period"], block["channels"] = rows, columns, period, channels
        lines = min(max(_STAGED // (line_length * itemsize), 1), max(all_lines, 1))
        block["lines"] = lines
        block["blocks"] = -(-c.out_channels // channels), -(-height // rows), -(-width // columns)
        self.tasks = spatial_tasks * int(block["blocks"][0, 0])
        self.scratch = lines * line_length + channels * rows * period
        # What it costs: products (those between the rows included), passes of the inner loop, elements staged, results.
        self.work = (
            spatial_tasks * ((rows - 1) * period + columns) * c.out_channels * c.reduction,
            (
                spatial_tasks * c.out_channels * -(-c.reduction // 4),
                self.tasks * all_lines * line_length,
                spatial_tasks * rows * columns * c.out_channels,
                self.tasks,
            ),
        )
        taps = np.arange(c.kernel[2]) * c.dilation[2]
        within = taps % c.stride[2] * (rows * period) + taps // c.stride[2]
        self.offsets = (np.arange(lines)[:, None] * line_length + within).ravel()


class _DirectPlan(Plan):
    pack_key = "direct"

    def __init__(self, problem: ConvProblem) -> None:
        self._kernel = _compiled(problem)
        self._accumulator = named_dtype(problem.accumulator_dtype)
        self._pieces = [_Piece(piece, self._accumulator.itemsize) for piece in lower(problem)]
        self._half = HALF_FORMATS.get(problem.dtype, 0)
        self._activation = activation_arguments(problem)
        self._no_bias = np.empty(0, self._accumulator)
        self._no_residual = np.empty((0,) * 6, named_dtype(problem.result_dtype))

    def pack(self, w: Any) -> Any:
        """For each piece, its taps as a contiguous (G, O, taps) array."""
        return [contiguous_taps(piece.correlation, w, self._accumulator) for piece in self._pieces]

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        bias = self._no_bias if bias is None else bias
        residual = self._no_residual if residual is None else residual
        x, y, residual = as_bits(x), as_bits(y), as_bits(residual)
        for piece, weights in zip(self._pieces, packed, strict=True):
            c = piece.correlation
            target = c.target_view(y)
            added = c.target_view(residual)

            def work(first: int, last: int) -> None:
                memory = parallel.scratch(piece.scratch, self._accumulator)  # noqa: B023
                self._kernel(first, last, x, weights, target, bias, added, c.geometry, piece.blocking,  # noqa: B023
                             piece.offsets, memory, self._half, *self._activation)  # noqa: B023  # fmt: skip

            parallel.run(work, piece.tasks, c.macs)


class Direct(Algorithm):
    """The sum as it is written, with staged rows."""

    name = "direct"
    device = "cpu"

    def why_not(self, problem: ConvProblem) -> str | None:
        return None

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        pieces = [_Piece(piece, 4) for piece in lower(problem)]
        return _CALL + sum(
            seconds(*piece.work, _RATES, machine, piece.tasks, problem.accumulator_dtype) for piece in pieces
        )

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        itemsize = named_dtype(problem.accumulator_dtype).itemsize
        scratch = max((_Piece(piece, itemsize).scratch for piece in lower(problem)), default=0)
        return scratch * itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _DirectPlan(problem)


register(Direct())
