"""Winograd convolution: fewer products for kernels of two to five taps at stride 1.

The output is cut into tiles of m x m, each computed from a window of n x n inputs, n = m + r - 1 for r x r taps. With
windows of 6 x 6, a 3 x 3 kernel takes 36 products for 16 outputs of a channel, not 144; a 5 x 5 kernel 36 for 4, not
100. `fastconv.winograd` has the arithmetic, and what it does to rounding errors.

Everything between input and output lies in scratch memory with channels side by side, so that all vectors are full
however small the image. A task takes some tiles and some output channels of a group:

    for a block of input channels:
        stage the windows, padded                                        (pixel, channel)
        transform them: component f of each window                       (f, tile, input channel)
        for each f: multiply by the transformed weights                  (f, tile, output channel)
    transform the sums; add bias and residual, activate, write

Transformed weights are up to four times as large as the taps. Where many tasks use them they are made ahead, and read
from memory by each. Where the image is so small that one task has all of its tiles, the task transforms the taps of a
register tile after another, of which nothing leaves the cache: a function then reads each weight twice in all. The
weights of an input gradient, other ones in each call, the task also arranges: they are read once.

The products are those of the register tile of `microkernel`. Depth is summed along with the channels. A dilated
convolution falls apart into one for each residue of the dilation, whose pixels are read and written with that step.
Along an axis with one tap the window is one pixel, so that 1-D convolutions are transformed along their only axis.

An input that is not finite spoils its whole tile, and so may an overflow. So a row of tiles with outputs that are not
finite is not written, but computed directly when all others are done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from fastconv import recycling
from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.costs import CostModel, Work, gathering
from fastconv.cpu.direct import DirectPlan
from fastconv.cpu.microkernel import TILE_VECTORS, padded, tile_pixels
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.weight_tiles import WeightTiles
from fastconv.cpu.winograd_kernels import BLOCKING, CHUNK, compiled, compiled_pack
from fastconv.lowering import Correlation, lower, once_a_kind
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem, Triple
from fastconv.registry import Plan, register
from fastconv.settings import USUAL_WORKSPACE, available_cores, get_num_threads
from fastconv.winograd import spread, tolerance, why_not, windows

_TILES = 64  # of a task
_FEW = 4  # tasks of a core
_INPUTS = 256  # input channels (times kernel depth) transformed at once
_GROUP = 64  # bytes of channels that are staged, and written, together: a cache line
_INPUTS_BY_TASK = 128  # the same where a task transforms its weights: both are to be in L2
_ALL = (slice(None),) * 3
_NEAR = 768 << 10  # bytes of scratch memory that are in L2 when they are next used, for the most part
_SHARES = 16  # a task takes at most this part of the workspace: so many threads may run one


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


class _Cut:
    """How a correlation is cut into tasks: see :data:`fastconv.cpu.winograd_kernels.BLOCKING`."""

    def __init__(self, correlation: Correlation, window: int, problem: ConvProblem, workspace_limit: int) -> None:
        accumulator = named_dtype(problem.accumulator_dtype)
        # The weights of a gradient are other ones in each call: tasks take them as they lie.
        self._as_they_lie = problem.op == "input_grad" and len(lower(problem)) == 1
        self._correlation = c = correlation
        self._itemsize, self._channels_last = accumulator.itemsize, problem.channels_last
        self.lanes, self._group = vector_bytes() // self._itemsize, _GROUP // self._itemsize
        self.windows, self.taps = windows(c, window), c.kernel[1:]
        self._outputs = [n + 1 - taps for n, taps in zip(self.windows, self.taps, strict=True)]
        self._tiles = [_ceil(c.count[i + 1], self._outputs[i] * c.dilation[i + 1]) for i in (0, 1)]
        self._rows = c.batch * c.count[0] * self._tiles[0] * math.prod(min(c.dilation[i], c.count[i]) for i in (1, 2))
        self.lines = c.in_channels * c.kernel[0]
        self.tile = TILE_VECTORS * self.lanes
        most, tiles = max(workspace_limit // self._itemsize // _SHARES, 1), _TILES
        inputs, channels = max(min(_INPUTS // c.kernel[0], c.in_channels), 1), c.out_channels
        while not self._fits(tiles, inputs, channels, most) and max(tiles, inputs, channels) > 1:
            # Weights are read once for the tiles of a task: those come last.
            if channels > 4 * self.tile:
                channels //= 2
            elif inputs > 4 * self.tile:
                inputs //= 2
            else:
                tiles, inputs, channels = _ceil(tiles, 2), _ceil(inputs, 2), _ceil(channels, 2)

    def _fits(self, tiles: int, inputs: int, channels: int, most: int) -> bool:
        """Cut into tasks of about so many tiles, input and output channels; whether `most` elements hold one."""
        c = self._correlation
        cores, blocks_w = available_cores(), _ceil(self._tiles[1], tiles)
        if self._rows == 1 and cores < blocks_w < _FEW * cores:  # as rows, below
            blocks_w = _ceil(blocks_w, cores) * cores
        columns = _ceil(self._tiles[1], blocks_w)
        blocks_r = _ceil(self._rows, max(tiles // columns, 1))
        # No core is to be idle for want of tasks, nor to wait while others do the last ones of few.
        blocks_r = max(blocks_r, _ceil(cores, max(c.groups * blocks_w * _ceil(c.out_channels, self.tile), 1)))
        if cores < blocks_r < _FEW * cores:
            blocks_r = _ceil(blocks_r, cores) * cores
        blocks_r = min(blocks_r, self._rows)
        rows = _ceil(self._rows, max(blocks_r, 1))
        spatial = c.groups * blocks_w * blocks_r
        channels = min(channels, _ceil(c.out_channels * spatial, cores))
        blocks_o = _ceil(c.out_channels, _ceil(max(channels, 1), self.tile) * self.tile)
        channels = _ceil(_ceil(c.out_channels, max(blocks_o, 1)), self.tile) * self.tile
        inputs = _ceil(c.in_channels, max(_ceil(c.in_channels, inputs), 1))
        self.ahead = blocks_w * blocks_r > 1  # those that many tasks use
        if not self.ahead:
            inputs = min(inputs, max(_INPUTS_BY_TASK // c.kernel[0], 1))
            inputs = _ceil(c.in_channels, max(_ceil(c.in_channels, inputs), 1))
        run = min(rows, self._tiles[0])
        width = columns * self._outputs[1] + self.taps[1] - 1
        components, high = math.prod(self.windows), self._outputs[0]
        pitch = padded(inputs, self._itemsize) * c.kernel[0], padded(channels, self._itemsize)
        # A cache line more: what lies at one place of all components must not meet in one set of a cache.
        plane = [rows * columns * n + self._group for n in pitch]
        weights = inputs * c.kernel[0] * self.tile + self._group
        line = padded(width, self._itemsize)
        self.arranges = self._as_they_lie and not self.ahead
        chunk = max(CHUNK // c.kernel[0], 1) if self.arranges else 0
        sizes = (
            (run * high + self.taps[0] - 1) * width * self._group,
            max(
                max(self.windows[0] * width, high * self.windows[1] * columns) * self._group,
                0 if self.ahead else CHUNK * self.windows[0] * self.taps[1] * self.tile,
            ),
            (high * columns * self._outputs[1] + self.lanes) * self._group,
            line * self._group,
            self._group,
            components * plane[0],
            self.tile,
            components * plane[1],
            0 if self.ahead else components * weights,
            chunk * c.kernel[0] * math.prod(self.taps) * self.tile,
        )
        *parts, self.scratch = np.cumsum((0, *sizes)).tolist()
        block = self.blocking = np.zeros(1, BLOCKING)
        for name, value in {
            "channels": channels, "columns": columns, "run": run, "inputs": inputs, "group": self._group,
            "lanes": self.lanes, "line": line, "ahead": self.ahead, "chunk": chunk, "weights": weights,
            "window": self.windows, "outputs": self._outputs, "tiles": self._tiles,
            "tile": self.tile, "pitch": pitch, "plane": plane,
            "blocks": (max(blocks_o, 1), blocks_w, blocks_r), "parts": parts,
        }.items():  # fmt: skip
            block[name] = value
        # Where the lines of a window lie, one channel after another, and the windows.
        depths = np.arange(c.kernel[0]) * (pitch[0] // c.kernel[0])
        self.offsets, self.places = (np.arange(inputs)[:, None] + depths).ravel(), np.arange(rows * columns) * pitch[0]
        self.tasks = spatial * blocks_o
        #: Of the array in which the kernel notes what it leaves alone.
        self.failures = self._rows, blocks_w, c.groups, _ceil(c.out_channels, self.lanes)
        return self.scratch <= most

    def outputs(self, row: int, block: int) -> tuple[int, int, slice, slice]:
        """Image, depth, rows and columns of the outputs of a row of tiles, as far as it is in a block of columns."""
        c = self._correlation
        residues = min(c.dilation[1], c.count[1]), min(c.dilation[2], c.count[2])
        n, d, *begin, tile = map(int, np.unravel_index(row, (c.batch, c.count[0], *residues, self._tiles[0])))
        lengths = self._outputs[0], int(self.blocking[0]["columns"]) * self._outputs[1]
        rows, columns = (
            slice(start := residue + index * length * step, min(start + length * step, count), step)
            for residue, index, length, step, count in zip(
                begin, (tile, block), lengths, c.dilation[1:], c.count[1:], strict=True
            )
        )
        return n, d, rows, columns

    def taps_of(self, taps: Any, first: int, last: int) -> Any:
        """The taps of some channels of a group, all of one register tile, as ``(1, O, C, KD, KH, KW)``."""
        c = self._correlation
        if self.arranges:
            return taps[None, first:last]
        begin, one = first // self.tile * self.tile, self.lines * math.prod(self.taps)
        here = taps[begin * one : (begin + self.tile) * one].reshape(c.in_channels, *c.kernel, -1)
        return np.moveaxis(here[..., first - begin : last - begin], -1, 0)[None]

    @property
    def work(self) -> Work:
        """What it costs. Vectors partly used count whole; each task reads its weights."""
        c, block = self._correlation, self.blocking[0]
        blocks_o, outputs = int(block["blocks"][0]), padded(c.out_channels, self._itemsize)
        components, tiles = math.prod(self.windows), self._rows * self._tiles[1] * c.groups
        calls = self.tasks * _ceil(len(self.places), tile_pixels()) * _ceil(int(block["channels"]), self.tile)
        # Pixels of a sub-grid lie apart; what is vectors of channels is so in any case.
        apart = c.dilation[2] > 1 and not self._channels_last
        pixels = tiles * math.prod(self._outputs) if apart else 0
        passes = sum(n > 1 for n in self.windows) / 2  # the rates are those of two axes, one after the other
        counts = {
            "product": tiles * outputs * self.lines,
            "tile": calls * _ceil(c.in_channels, int(block["inputs"])),
            "input": passes * tiles * padded(c.in_channels, self._itemsize) * c.kernel[0] * blocks_o,
            "weight": tiles * outputs * self.lines / len(self.places) if self.ahead else 0,
            "transformed": 0 if self.ahead else passes * c.groups * outputs * self.lines,
            "far": 0,
        }
        if self.scratch * self._itemsize > _NEAR:  # windows are read from beyond L2, and sums go there and back
            rounds = _ceil(c.in_channels, max(int(block["inputs"]), 1))
            counts["far"] = counts["input"] / passes + tiles * outputs * (2 * rounds - 1)
        counts = {kind: components * count for kind, count in counts.items()}
        lines = [_ceil(n, self._group) for n in (c.in_channels, c.out_channels)]
        rows = self._rows * int(block["blocks"][1]) * c.groups * (lines[0] * c.kernel[0] * blocks_o + lines[1])
        counts |= {
            "result": tiles * outputs * math.prod(self._outputs),
            "dilated": pixels * (self.lines * blocks_o + c.out_channels),
            "row": rows,
            "arranged": c.groups * outputs * self.lines * math.prod(self.taps) if self.arranges else 0,
            "task": self.tasks,
        }
        return Work(self.tasks, counts)

    @property
    def packing(self) -> Work:
        """What it costs to pack the weights."""
        c = self._correlation
        lines = c.groups * c.out_channels * self.lines
        counts = {
            "arranged": 0 if self.arranges else lines * math.prod(self.taps),
            "transformed": lines * math.prod(self.windows) if self.ahead else 0,
        }
        return Work(c.groups * _ceil(c.out_channels, self.tile), counts)


class _WinogradPlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem, window: int, workspace_limit: int) -> None:
        super().__init__(problem, lambda piece: _Cut(piece, window, problem, workspace_limit))
        self.pack_key = f"windows of {window}, {self.pack_key}, {[(cut.ahead, cut.arranges) for cut in self._cuts]}"
        self._problem = problem
        self._kernel = compiled(problem.dtype, problem.result_dtype, problem.accumulator_dtype)
        if any(cut.ahead for cut in self._cuts):
            self._pack = compiled_pack(problem.accumulator_dtype)
        self._arrange = WeightTiles(problem)
        self._nothing = np.empty((0, 0), self._accumulator)
        self._no_taps = np.empty((0,) * 4, self._accumulator), np.empty((0, 0), np.int64)

    def pack(self, w: Any) -> Any:
        """For each piece, its weights as tasks use them, transformed if that is done ahead, and its taps."""
        if self._cuts and self._cuts[0].arranges:
            w = w.astype(self._accumulator, copy=False)
            return [(self._nothing, *self._arrange.of_a_task(w), self._pieces[0].weight_view(w))]
        return [self._pack_piece(cut, taps) for cut, taps in zip(self._cuts, self._arrange(w), strict=True)]

    def _pack_piece(self, cut: _Cut, taps: Any) -> Any:
        if not cut.ahead:
            return taps, *self._no_taps, taps
        groups, elements = taps.shape[0], taps.shape[1] // math.prod(cut.taps)
        packed = recycling.empty((groups, elements * math.prod(cut.windows)), self._accumulator)
        self._pack(groups * _ceil(elements // cut.lines, cut.tile), packed.size,
                   CHUNK * cut.windows[0] * cut.taps[1] * cut.tile, taps, cut.lines, *cut.taps, *cut.windows,
                   cut.lanes, cut.tile, packed)  # fmt: skip
        return packed, *self._no_taps, taps

    def _run_piece(self, piece: Correlation, cut: _Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        used, as_they_lie, table, taps = weights
        failed = np.zeros(cut.failures, np.uint8)
        self._kernel(cut.tasks, piece.macs, cut.scratch, x, used, as_they_lie, table, y, bias, residual, failed,
                     piece.geometry, cut.blocking, cut.offsets, cut.places, self._half, *self._activation)  # fmt: skip
        if np.count_nonzero(failed):
            self._mend(piece, cut, failed, taps, x, y, bias, residual)

    def _mend(
        self, piece: Correlation, cut: _Cut, failed: Any, taps: Any, x: Any, y: Any, bias: Any, residual: Any
    ) -> None:
        """Compute directly the rows of tiles in which something was not finite."""
        p, plan = piece, DirectPlan(self._problem)
        for where in zip(*failed.nonzero(), strict=True):
            g, first = int(where[2]), int(where[3]) * cut.lanes
            last = first + int(failed[where])
            n, depth, *outputs = cut.outputs(*map(int, where[:2]))
            chosen = slice(n, n + 1), slice(g, g + 1), slice(first, last), slice(depth, depth + 1), *outputs
            part = replace(
                p, batch=1, groups=1, out_channels=last - first, taps=_ALL, targets=_ALL,
                count=y[chosen].shape[3:], stride=(p.stride[0], *p.dilation[1:]),
                offset=(
                    p.offset[0] - depth * p.stride[0], p.offset[1] - outputs[0].start, p.offset[2] - outputs[1].start
                ),
            )  # fmt: skip
            channel = g * p.out_channels
            plan.run_part(part, cut.taps_of(taps[g], first, last), x[chosen[:2]], y[chosen],
                          bias[channel + first : channel + last],
                          residual[chosen] if residual.size else residual)  # fmt: skip


class _Winograd(CpuAlgorithm):
    """Winograd's F(m x m, r x r) with windows of m + r - 1 inputs along each axis that has taps."""

    window: ClassVar[int]

    def why_not(self, problem: ConvProblem) -> str | None:
        return why_not(problem, self.window)

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        accumulator = named_dtype(problem.accumulator_dtype)
        cuts = _cuts(problem, self.window, workspace_limit)
        return max((cut.scratch for cut in cuts), default=0) * accumulator.itemsize * min(get_num_threads(), _SHARES)

    def tolerance(self, problem: ConvProblem) -> float:
        return tolerance(problem, self.window)

    def spread(self, problem: ConvProblem) -> Triple:
        return spread(problem, self.window)

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _WinogradPlan(problem, self.window, workspace_limit)


@lru_cache(maxsize=1024)
def _cuts(problem: ConvProblem, window: int, workspace_limit: int = USUAL_WORKSPACE) -> Sequence[_Cut]:
    """For predictions."""
    return once_a_kind(lower(problem), lambda piece: _Cut(piece, window, problem, workspace_limit))


def _running(window: int) -> CostModel:
    rates = {
        4: {"product": 2.2e-11, "tile": 2e-8, "input": 1.1e-10, "far": 5.9e-11, "weight": 3.9e-11,
            "transformed": 3.7e-10, "result": 5.4e-10, "dilated": 1.1e-9, "arranged": 1e-10, "row": 3.1e-7,
            "task": 4.1e-7, "call": 1.4e-5},
        6: {"product": 2.1e-11, "tile": 1.7e-8, "input": 1.3e-10, "far": 1.4e-10, "weight": 3.9e-11,
            "transformed": 2.7e-10, "result": 7.2e-10, "dilated": 1.1e-9, "arranged": 3.1e-10, "row": 5e-7,
            "task": 4.7e-7, "call": 1.4e-5},
    }  # fmt: skip
    return CostModel(lambda problem: (cut.work for cut in _cuts(problem, window)), rates[window])


def _packing(window: int) -> CostModel:
    def work(problem: ConvProblem) -> Iterable[Work]:
        if not all(cut.arranges for cut in _cuts(problem, window)):
            yield from gathering(problem)
        yield from (cut.packing for cut in _cuts(problem, window))

    return CostModel(work, {"gathered": 3e-10, "arranged": 4.5e-10, "transformed": 4.5e-10, "call": 2e-5})


class Winograd4(_Winograd):
    """F(2 x 2, 3 x 3) and F(3 x 3, 2 x 2)."""

    name = "winograd4"
    window = 4
    running, packing = _running(4), _packing(4)


class Winograd6(_Winograd):
    """F(4 x 4, 3 x 3), and F(5 x 5, 2 x 2) to F(2 x 2, 5 x 5)."""

    name = "winograd6"
    window = 6
    running, packing = _running(6), _packing(6)


register(Winograd4())
register(Winograd6())
