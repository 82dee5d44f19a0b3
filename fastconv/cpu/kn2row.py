"""kn2row: a product with a matrix for each tap, of those pixels alone for which the tap meets a sample.

A tap (kd, kh, kw) is a 1 x 1 convolution of a shifted image, and a convolution the sum of these:

    sums[pixel, o] = sum over taps of  sum over c of  x[pixel * stride + tap, c] * weights[tap][c, o]

Where the tap of a pixel lies in zero padding, nothing is to be added. Tap by tap such pixels are left out, which no
product over (channel, kd, kh, kw) at once can do: on a plane of 7 x 7, 3 x 3 taps with padding 1 meet a sample 361
times of 441, dilated by 12 on 33 x 33 57 times of 100, and in a volume of two planes a third of them is spared again.

    for a block of input channels:
        stage the block, unless it is read where it lies           L2
        for a tap:
            list the pixels that meet a sample
            for a tile of outputs:                                 weights of the block and the tap in L1
                for rows of listed pixels:                         sums in registers, all channels of the block

Channels go across the vector, of both factors: numbers of a pixel's channels are taken side by side, so channels first
is transposed as it is staged. Sums stay in scratch memory, in L2, and go through registers once for each tap and block;
with few channels that costs more than it spares. The products of an output are added to its bias in the order of
(block, kd, kh, kw, channel), however the work is cut.

Anderson, Vasudevan, Keane and Gregg, "Low-memory GEMM-based convolution algorithms for deep neural networks",
arXiv:1709.03395.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.costs import CostModel, Work, interleaving
from fastconv.cpu.jit import TaskKernel, array, inline, integer, records
from fastconv.cpu.kn2row_cut import BLOCKING, Cut
from fastconv.cpu.microkernel import AHEAD
from fastconv.cpu.panels import flat_memory
from fastconv.cpu.pixel_tasks import locate, write_task
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.rows import inside
from fastconv.cpu.scattered_tile import SPOT, add_pixels
from fastconv.cpu.staging import sees_padding, stage
from fastconv.cpu.weight_tiles import WeightTiles, arranging
from fastconv.lowering import GEOMETRY, Correlation, lower, once_a_kind
from fastconv.problem import ConvProblem, Triple
from fastconv.registry import Plan, register
from fastconv.settings import get_num_threads

_NEAR = 256 << 10  # bytes of weights that stay in L2; others are asked for before they are multiplied


def _kn2row(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, in_place, places, offsets, half, activation,
    parameters, scratch,
):  # fmt: skip
    """Compute tasks `first` to `last`.

    `weights` is ``(taps, G * O padded * C)``, tile by tile of outputs for each tap. A pixel's channels begin at its
    place plus the tap's offset.
    """
    geo, block = geometry[0], blocking[0]
    listed = block.spots * 8 // scratch.itemsize
    spots, staged = scratch[:listed].view(np.int64), scratch[listed : listed + block.staged]
    memory = scratch[listed + block.staged :]
    start = memory[block.sums : block.sums + block.start]
    lines = flat_memory(x, staged) if in_place else staged
    for number in range(first, last):
        task = locate(number, geo, block)
        for o in range(block.start):
            known = bias.shape[0] > 0 and o < task.channels
            start[o] = bias[task.g * geo.out_channels + task.o + o] if known else 0
        for p in range((task.rows - 1) * block.columns + task.columns):
            sums = memory[p * block.pitch : p * block.pitch + block.start]
            for o in range(block.start):
                sums[o] = start[o]
        first_d = task.d * geo.stride[0] - geo.offset[0]
        first_h, first_w = task.h * geo.stride[1] - geo.offset[1], task.w * geo.stride[2] - geo.offset[2]
        for c_first in range(0, geo.in_channels, block.inputs):
            inputs = min(block.inputs, geo.in_channels - c_first)
            lines_at = 0
            if in_place:
                lines_at = task.n * x.strides[0] + task.g * x.strides[1] + c_first * x.strides[2]
                lines_at += first_d * x.strides[3] + first_h * x.strides[4] + first_w * x.strides[5]
                lines_at //= x.itemsize
            else:
                stage(
                    x[task.n, task.g, c_first : c_first + inputs], first_d, geo.dilation[0], first_h, first_w, 0, half,
                    block.staging, staged,
                )  # fmt: skip
            for tap in range(offsets.shape[0]):
                kd, rest = divmod(tap, geo.kernel[1] * geo.kernel[2])
                kh, kw = divmod(rest, geo.kernel[2])
                if not 0 <= first_d + kd * geo.dilation[0] < geo.size[0]:
                    continue
                low_h, high_h = inside(first_h + kh * geo.dilation[1], geo.stride[1], geo.size[1], task.rows)
                low_w, high_w = inside(first_w + kw * geo.dilation[2], geo.stride[2], geo.size[2], task.columns)
                pixels = 0
                for h in range(low_h, high_h):
                    for w in range(low_w, high_w):
                        p = h * block.columns + w
                        spots[SPOT * pixels], spots[SPOT * pixels + 1] = places[p], p * block.pitch
                        pixels += 1
                _multiply(task, geo, block, tap, c_first, inputs, lines, lines_at + offsets[tap], spots, pixels,
                          weights, memory)  # fmt: skip
        write_task(task, block, memory, y, residual, activation, parameters, half)


@inline
def _multiply(task, geo, block, tap, c_first, inputs, lines, lines_at, spots, pixels, weights, memory):  # type: ignore[no-untyped-def]
    """Add the products of some input channels with a tap's weights to the sums of the listed pixels."""
    lanes, widest = block.lanes, block.tile[1]
    outputs = -(-geo.out_channels // lanes) * lanes
    row, base = weights.shape[1], tap * weights.shape[1] + (task.g * outputs + task.o) * geo.in_channels
    tiles = max(-(-pixels // block.tile[0]), 1)
    share = 0
    if tiles == 1 or weights.size * weights.itemsize > _NEAR:
        share = -(-widest * weights.itemsize // tiles)  # bytes, for each channel of a tile
    for o in range(0, task.channels if pixels > 0 else 0, widest):
        wide = min(-(-(task.channels - o) // lanes) * lanes, widest)
        weights_at = base + o * geo.in_channels + c_first * wide
        # Weights that come next are brought while these are multiplied.
        ahead = weights_at + widest * geo.in_channels if o + widest < task.channels else base + row + c_first * widest
        if tiles == 1:  # then these are: they are used once
            ahead = weights_at + AHEAD // weights.itemsize
        add_pixels(
            memory, o, lines, lines_at, spots, 0, inputs, weights, weights_at, pixels, wide // lanes, ahead, share
        )


_kernel = TaskKernel(_kn2row)


@cache
def _compiled(dtype_name: str, result_name: str, accumulator_name: str) -> Any:
    dtype, result, accumulator = map(named_dtype, (dtype_name, result_name, accumulator_name))
    vector, table = array(accumulator, 1, contiguous=True), array(np.dtype(np.int64), 1, contiguous=True)
    return _kernel.compile(
        array(dtype, 6), array(accumulator, 2, contiguous=True), array(result, 6, readonly=False), vector,
        array(result, 6), records(GEOMETRY), records(BLOCKING), integer, table, table, integer, integer, vector,
        array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip


def _single_taps(piece: Correlation, kernel: Triple) -> list[Correlation]:
    """A piece for each of the piece's taps, of a weight with that kernel."""
    chosen = (range(size)[some] for size, some in zip(kernel, piece.taps, strict=True))
    alone = ([slice(k, k + 1) for k in taps] for taps in chosen)
    return [replace(piece, kernel=(1, 1, 1), taps=(d, h, w)) for d, h, w in itertools.product(*alone)]


class _Kn2rowPlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, lambda piece: Cut(piece, problem))
        self._kernel = _compiled(problem.dtype, problem.result_dtype, problem.accumulator_dtype)
        taps = [_single_taps(piece, problem.kernel) for piece in self._pieces]
        self._volumes = [len(of_piece) for of_piece in taps]
        self._arrange = WeightTiles(problem, list(itertools.chain(*taps)))

    def pack(self, w: Any) -> Any:
        """For each piece, the weights of its taps, ``(taps, G * O padded * C)``: tile by tile of outputs."""
        ends = itertools.accumulate(self._volumes)
        rows = self._arrange.in_rows(w)
        return [rows[end - volume : end] for end, volume in zip(ends, self._volumes, strict=True)]

    def _run_piece(self, piece: Correlation, cut: Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        self._kernel(len(x) * cut.image_tasks, piece.macs, cut.scratch, x, weights, y, bias, residual, piece.geometry,
                     cut.blocking, *cut.tables(x.strides), self._half, *self._activation)  # fmt: skip


@lru_cache(maxsize=1024)
def _cuts(problem: ConvProblem) -> list[tuple[Correlation, Cut]]:
    """For predictions: each piece, and how it is cut."""
    pieces = lower(problem)
    return list(zip(pieces, once_a_kind(pieces, lambda piece: Cut(piece, problem)), strict=True))


def _work(problem: ConvProblem) -> Iterable[Work]:
    for piece, cut in _cuts(problem):
        yield Work(cut.tasks, cut.counts | interleaving(problem, piece))


class Kn2row(CpuAlgorithm):
    """A matrix product for each tap, of the pixels that meet a sample."""

    name = "kn2row"
    running = CostModel(
        _work,
        {
            "product": 2.05e-11, "tile": 1.4e-8, "spot": 3.2e-9, "staged": 1.8e-10, "result": 3e-10, "line": 1e-8,
            "row": 9e-9, "weight": 4.5e-11, "late weight": 7e-11, "task": 3e-7, "call": 1.1e-5,
        },
    )  # fmt: skip
    packing = CostModel(arranging, {"arranged": 8e-10, "arranging": 3.5e-6, "call": 2e-6})

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.accumulator_dtype not in ("float32", "float64"):
            return f"its register tile multiplies real floating-point numbers, not {problem.dtype}"
        if problem.op == "weight_grad":
            return "a gradient of the weight would take a product for each position of the other gradient"
        if problem.padding_mode != "zeros":
            return f"padding of mode {problem.padding_mode!r} is to be multiplied"
        if not any(map(sees_padding, lower(problem))):
            return "no tap meets padding, implicit_gemm does the same"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        itemsize = named_dtype(problem.accumulator_dtype).itemsize
        return max((cut.scratch for _, cut in _cuts(problem)), default=0) * itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _Kn2rowPlan(problem)


register(Kn2row())
