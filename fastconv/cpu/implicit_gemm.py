"""Implicit GEMM: dense convolution of any stride, with channels or with pixels across the vector.

A convolution is the matrix product ``sums[pixel, o] = sum over k of patches[pixel, k] * weights[k, o]``, where row k of
the patches is one tap of one channel, and ``patches[pixel, k] = lines[places[pixel] + offsets[k]]``: two small tables
hold the whole geometry. The lines are the input itself where it needs no padding and no conversion, otherwise the part
of it that a task's pixels see, staged with its padding. The register tile of `microkernel` takes single numbers of one
factor, each against whole vectors of the other. Which is which, the results decide:

Channels across the vector, for channels last: patches are never written down, their numbers are taken from the lines,
and weights come in tiles of outputs, each brought from memory while the one before is multiplied. A stride costs
nothing, and rows of seven pixels waste no lane.

Pixels across the vector, for channels first: a panel of patches is written down, some vectors of pixels wide
(`panels`), weights are taken one by one as they lie, and rows of results leave the registers as the caller wants them.
In an input gradient the weights that a tile takes lie far apart, at what is often one place of a cache after another:
an input channel's make a run, and the runs of some tiles are copied to scratch memory before they are multiplied.
Where the panel would cost more than it spares (many taps, few outputs, a plane that fills its vectors badly), channels
go across here too: planes are transposed as they are staged, and sums as they are written.

    for a block of input channels:
        stage the block, unless it is read where it lies           L2
        for a tile of outputs, or for some panels:                 weights or panels of the block in L1
            for rows of pixels, or of outputs:                     sums in registers, all taps of the block

Integers of 8 and 16 bits are widened and multiplied two channels at a time (`pairs`): to this file they are problems of
half the channels, whose elements are words.

Sums go to scratch memory between blocks; the last block writes results of the sums' dtype straight to their place,
clipped. Others are written from scratch memory, with residual and activation. The products of an output are added to
its bias in the order of (channel, kd, kh, kw), however the work is cut.

Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC 2018; Goto and van
de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.copying import copy_planes
from fastconv.cpu.costs import CostModel, Work, interleaving
from fastconv.cpu.elements import CLIP, extremes
from fastconv.cpu.implicit_gemm_cut import BLOCKING, Cut
from fastconv.cpu.jit import TaskKernel, array, inline, integer, records
from fastconv.cpu.microkernel import AHEAD, complete_pixels
from fastconv.cpu.pairs import SMALL, WORD, Words, images_at_once, paired, word_bytes
from fastconv.cpu.panels import flat_memory, pack_panels
from fastconv.cpu.pixel_tasks import locate, write_task
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.staging import clear, stage
from fastconv.cpu.transpose import transpose_plane
from fastconv.cpu.weight_tiles import WeightTiles, arranging
from fastconv.lowering import GEOMETRY, Correlation, lower, once_a_kind
from fastconv.machine import Machine
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import USUAL_WORKSPACE, get_num_threads

_NEAR = 256 << 10  # bytes of weights that stay in L2; others are asked for before they are multiplied


class _Begin(NamedTuple):
    """Where sums start in scratch memory: at what element, and how far on rows, vectors of a tile and columns are."""

    at: int
    pitch: int
    step: int
    column: int


class _End(NamedTuple):
    """Where sums go: from what element on, in rows how far apart and how long, and within what limits."""

    memory: Any
    at: int
    pitch: int
    length: int
    least: Any
    most: Any


def _implicit_gemm(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, in_place, places, offsets, run_at, rows_at,
    taps_at, half, activation, parameters, scratch,
):  # fmt: skip
    """Compute tasks `first` to `last`.

    `weights` is ``(G, O, C, KD, KH, KW)`` if pixels are across the vector, of which outputs and taps lie at `rows_at`
    and `taps_at`, or do so in the copy of a tile if `run_at` is not negative: see :meth:`Cut.tables`. Otherwise
    it is ``(G, O padded * taps, 1, 1, 1, 1)``, tile by tile of outputs.
    """
    geo, block = geometry[0], blocking[0]
    # The scratch memory: what is staged; panels; copies of weights; sums, row by row; where sums start; sums transposed
    # for writing.
    operands = scratch.view(weights.dtype)
    staged, panels = operands[: block.staged], operands[block.staged : block.staged + block.panels]
    copies = operands[block.staged + block.panels :][: block.copies]
    memory = scratch[block.staged + block.panels + block.copies :]
    start = memory[block.sums : block.sums + block.start]
    start[:] = 0
    lines, results = flat_memory(x, staged) if in_place else staged, flat_memory(y, memory)
    step_o, step_h, step_w = y.strides[2] // y.itemsize, y.strides[4] // y.itemsize, y.strides[5] // y.itemsize
    lowest, highest = extremes(memory)
    # Results whose sums need nothing more are written as they are.
    unlimited = activation <= CLIP and residual.shape[0] == 0 and y.itemsize == memory.itemsize

    for number in range(first, last):
        task = locate(number, geo, block)
        pixels = (task.rows - 1) * block.columns + task.columns
        wide = block.lanes if block.across_pixels else 1
        for o in range(task.channels if bias.shape[0] > 0 else 0):
            start[o * wide : (o + 1) * wide] = bias[task.g * geo.out_channels + task.o + o]
        first_d = task.d * geo.stride[0] - geo.offset[0]
        first_h, first_w = task.h * geo.stride[1] - geo.offset[1], task.w * geo.stride[2] - geo.offset[2]
        # Zero padding stays through all blocks of inputs.
        clear(x.shape, first_d, geo.dilation[0], first_h, first_w, block.staging, staged)

        # Tiles write their sums as results where these lie in rows of theirs; or all are turned or moved at the end.
        in_order = unlimited and (task.rows == 1 or step_h == task.columns * step_w)  # pixels lie at one distance
        if block.across_pixels:
            across, step = pixels, step_o
            direct = in_order and step_w == 1 and pixels >= block.lanes
        else:
            across, step = task.channels, step_w
            direct = in_order and step_o == 1 and task.channels % block.lanes == 0
        turned = in_order and step_w == 1 and not block.across_pixels and not direct
        moved = in_order and step_o == 1 and not block.across_pixels and not direct and not turned
        results_at = task.n * y.strides[0] + task.g * y.strides[1] + task.o * y.strides[2] + task.d * y.strides[3]
        results_at = (results_at + task.h * y.strides[4] + task.w * y.strides[5]) // y.itemsize
        for c_first in range(0, max(geo.in_channels, 1), block.inputs):
            inputs = min(block.inputs, geo.in_channels - c_first)
            lines_at = 0
            if in_place:
                lines_at = task.n * x.strides[0] + task.g * x.strides[1] + c_first * x.strides[2]
                lines_at += first_d * x.strides[3] + first_h * x.strides[4] + first_w * x.strides[5]
                lines_at //= x.itemsize
            else:
                stage(
                    x[task.n, task.g, c_first : c_first + inputs], first_d, geo.dilation[0], first_h, first_w,
                    geo.padding_mode, half, block.staging, staged,
                )  # fmt: skip
            begin = _Begin(0, block.pitch, block.lanes, 1)
            if c_first == 0:
                begin = _Begin(block.sums, 0, block.lanes, 1)
                if block.across_pixels:
                    begin = _Begin(block.sums, block.lanes, 0, 0)
            last, least, most = c_first + inputs == geo.in_channels, lowest, highest
            if last and (direct or turned or moved) and activation == CLIP:
                least, most = parameters[0], parameters[1]
            end = _End(memory, 0, block.pitch, block.pitch, least, most)
            if last and direct:
                end = _End(results, results_at, step, across, least, most)
            _multiply(
                task, geo, block, direct, c_first, inputs, lines, lines_at, places, offsets, weights, run_at, rows_at,
                taps_at, panels, copies, memory, begin, end,
            )  # fmt: skip
        if turned:
            transpose_plane(memory, 0, block.pitch, results, results_at, step_o, pixels, task.channels)
        elif moved:
            apart = block.pitch * memory.itemsize
            copy_planes(results, results_at, 0, step_w, memory, 0, 0, apart, 1, pixels, task.channels)
        elif not direct:
            write_task(task, block, memory, y, residual, activation, parameters, half)


@inline
def _multiply(  # type: ignore[no-untyped-def]
    task, geo, block, direct, c_first, inputs, lines, lines_at, places, offsets, weights, run_at, rows_at, taps_at,
    panels, copies, memory, begin, end,
):  # fmt: skip
    """Add the products of some input channels to the sums of a task, tile by tile."""
    lanes, volume = block.lanes, geo.kernel[0] * geo.kernel[1] * geo.kernel[2]
    taps, pixels = inputs * volume, (task.rows - 1) * block.columns + task.columns
    flat, copied = flat_memory(weights, panels), block.across_pixels and run_at >= 0
    if block.across_pixels:
        across, along, numbers, vectors = pixels, task.channels, copies if copied else flat, panels
        widest = min(block.tile[1], pixels // lanes * lanes) if direct else block.tile[1]
        numbers_at = task.g * weights.strides[0] + task.o * weights.strides[1] + c_first * weights.strides[2]
        numbers_at //= weights.itemsize
    else:
        across, along, numbers, vectors = task.channels, pixels, lines, flat
        widest, numbers_at = block.tile[1], lines_at
    runs_at = numbers_at - run_at
    all_taps = geo.in_channels * volume
    base = task.g * weights.shape[1] + task.o * all_taps
    tiles = -(-along // block.tile[0])
    chunks = -(-along // block.together) if copied else 1
    vectors_at = ahead = share = 0
    if not block.across_pixels and (tiles == 1 or weights.shape[0] * weights.shape[1] * weights.itemsize > _NEAR):
        share = -(-widest * weights.itemsize // tiles)  # bytes, for each tap of a tile

    for v_first in range(0, across, widest * block.group):
        v_last = min(v_first + widest * block.group, across)
        if block.across_pixels:
            whole = (v_last - v_first) // widest * widest
            pack_panels(lines, lines_at, places, v_first, whole, offsets, taps, panels)
            if whole < v_last - v_first:
                wide = -(-(v_last - v_first - whole) // lanes) * lanes
                first = pixels - wide if direct else v_first + whole  # the last panel ends where pixels do
                pack_panels(lines, lines_at, places, first, pixels - first, offsets, taps, panels[whole * taps :])
        else:
            wide = min(-(-(across - v_first) // lanes) * lanes, widest)
            vectors_at = base + v_first * all_taps + c_first * volume * wide
            # Weights that come next are brought while these are multiplied.
            if v_last < across:
                ahead = vectors_at + (v_last - v_first) * all_taps
            elif c_first + inputs < geo.in_channels:
                ahead = base + (c_first + inputs) * volume * widest
            else:
                ahead = base + task.channels * all_taps
            if tiles == 1:  # then these are: they are used once
                ahead = vectors_at + AHEAD // weights.itemsize
        row = 0
        for chunk in range(chunks):
            rows, from_row = (along - row) // (chunks - chunk), row
            if copied:  # runs of their weights, which lie far apart
                copy_planes(
                    copies, 0, block.copies // block.inputs, 0, flat, (runs_at + row * volume) * weights.itemsize,
                    weights.strides[2], 0, inputs, 1, rows * volume,
                )  # fmt: skip
                numbers_at, from_row = 0, 0
            v = v_first
            while v < v_last:
                wide = min(-(-(across - v) // lanes) * lanes, widest)
                side_by_side = max((v_last - v) // widest, 1)
                before = (v - v_first) // widest * tiles * taps
                complete_pixels(
                    end.memory, end.at + row * end.pitch + min(v, end.length - wide), end.pitch, memory,
                    begin.at + row * begin.pitch + v * begin.column, begin.pitch, begin.step, begin.column, numbers,
                    numbers_at, rows_at, from_row, taps_at, taps, vectors, vectors_at + (v - v_first) * taps, rows,
                    wide // lanes, side_by_side, end.least, end.most, ahead + before * share // weights.itemsize, share,
                )  # fmt: skip
                v += side_by_side * widest
            row += rows


_kernel = TaskKernel(_implicit_gemm)


@cache
def _compiled(dtype_name: str, weight_name: str, result_name: str, accumulator_name: str) -> Any:
    names = dtype_name, weight_name, result_name, accumulator_name
    dtype, weight, result, accumulator = map(named_dtype, names)
    vector = array(accumulator, 1, contiguous=True)
    table = array(np.dtype(np.int64), 1, contiguous=True)
    return _kernel.compile(
        array(dtype, 6), array(weight, 6), array(result, 6, readonly=False), vector, array(result, 6),
        records(GEOMETRY), records(BLOCKING), integer, table, table, integer, table, table, integer, integer, vector,
        array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip


class _ImplicitGemmPlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem, unpacked: bool, operand: str = "") -> None:
        super().__init__(problem, lambda piece: Cut(piece, problem, unpacked=unpacked))
        self.pack_key = self.pack_key, any(cut.across_pixels for cut in self._cuts)
        dtype, weight = problem.dtype, problem.accumulator_dtype
        self._kernel = _compiled(operand or dtype, operand or weight, problem.result_dtype, problem.accumulator_dtype)
        # Numbers are taken from a weight as it lies.
        self._arrange = None if self.pack_key[1] else WeightTiles(problem)

    def pack(self, w: Any) -> Any:
        """For each piece, its weights: tile by tile of outputs, or as they lie."""
        if self._arrange is not None:
            return [tiles[..., None, None, None, None] for tiles in self._arrange(w)]
        w = w if w.dtype is self._accumulator else w.astype(self._accumulator, copy=False)
        return [piece.weight_view(w) for piece in self._pieces]

    def _run_piece(self, piece: Correlation, cut: Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        self._kernel(len(x) * cut.image_tasks, piece.macs, cut.scratch, x, weights, y, bias, residual, piece.geometry,
                     cut.blocking, *cut.tables(x.strides, weights.strides), self._half, *self._activation)  # fmt: skip


class _PairsPlan(_ImplicitGemmPlan):
    """The plan for small integers: half the channels, each of words, made of some images at a time."""

    def __init__(self, problem: ConvProblem, unpacked: bool, workspace_limit: int) -> None:
        super().__init__(paired(problem), unpacked, WORD.name)
        self._words, self._limit = Words(problem.dtype), workspace_limit

    def pack(self, w: Any) -> Any:
        return [weights.view(WORD) for weights in super().pack(self._words(w).view(self._accumulator))]

    def _run_piece(self, piece: Correlation, cut: Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        images = images_at_once(piece, self._limit)
        for n in range(0, piece.batch, images):
            some = slice(n, n + images)
            super()._run_piece(piece, cut, weights, self._words(x[some]), y[some], bias, residual[some])


@lru_cache(maxsize=1024)
def _cuts(problem: ConvProblem, unpacked: bool) -> Sequence[tuple[Correlation, Cut]]:
    """For predictions: each piece, and how it is cut, if it can be as one row."""
    pieces = lower(problem)
    cuts = once_a_kind(pieces, lambda piece: Cut(piece.flat or piece, problem, unpacked=unpacked))
    return list(zip(pieces, cuts, strict=True))


def _work(problem: ConvProblem, unpacked: bool = False) -> Iterable[Work]:
    words = problem.dtype in SMALL
    product = "word product" if words else "integer product" if "int" in problem.dtype else "product"
    computed = paired(problem) if words else problem
    for piece, cut in _cuts(computed, unpacked):
        tasks, counts = cut.work
        widened = piece.batch * word_bytes(piece) // WORD.itemsize if words else 0
        named = {product if kind == "product" else kind: n for kind, n in counts.items()}
        yield Work(tasks, named | {"word": widened} | interleaving(problem, piece))


def _packing(problem: ConvProblem, unpacked: bool = False) -> Iterable[Work]:
    if problem.dtype in SMALL:
        problem = paired(problem)
        yield Work(1, {"word": math.prod(problem.operand_shapes[1])})
    if any(cut.across_pixels for _, cut in _cuts(problem, unpacked)):
        return  # numbers are taken from the weight as it lies
    yield from arranging(problem)


class ImplicitGemm(CpuAlgorithm):
    """Patches times weights, output channels or pixels across the vector."""

    name = "implicit_gemm"
    running = CostModel(
        _work,
        {
            "product": 2e-11, "integer product": 2.7e-11, "word product": 2.5e-11, "word": 1.4e-10, "tile": 1.2e-8,
            "staged": 2.9e-10, "run": 2.3e-9, "scattered": 3e-9, "packed": 8e-11, "crossing": 2e-10, "gathered": 6e-10,
            "transposed": 4e-10, "line": 1.2e-8, "row": 2.6e-9, "weight": 1.7e-10, "copied": 4e-10, "task": 8.4e-8,
            "call": 1.15e-5,
        },
        frozenset({"product", "integer product", "word product"}),
    )  # fmt: skip
    packing = CostModel(_packing, {"word": 2.4e-9, "arranged": 4e-10, "arranging": 3.5e-6, "call": 2e-6})
    _unpacked: ClassVar[bool] = False

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype.startswith("complex"):
            return "its register tile multiplies real numbers"
        if problem.dtype in SMALL:
            words = max(map(word_bytes, lower(paired(problem))), default=0)
            if words > USUAL_WORKSPACE:
                return f"an image in words takes {words >> 20} MiB, more than {USUAL_WORKSPACE >> 20} MiB"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        words = problem.dtype in SMALL
        computed = paired(problem) if words else problem
        accumulator, needed = named_dtype(computed.accumulator_dtype), [0]
        for piece, cut in _cuts(computed, self._unpacked):
            scratch = cut.scratch * accumulator.itemsize * get_num_threads()
            widened = images_at_once(piece, workspace_limit) * word_bytes(piece) if words else 0
            needed.append(scratch + widened)
        return max(needed)

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        if problem.dtype in SMALL:
            return _PairsPlan(problem, self._unpacked, workspace_limit)
        return _ImplicitGemmPlan(problem, self._unpacked)


class ImplicitGemmUnpacked(ImplicitGemm):
    """For functions: weights are used as they lie where `implicit_gemm`, for layers that pack once, arranges them."""

    name = "implicit_gemm_unpacked"
    running = replace(ImplicitGemm.running, work=partial(_work, unpacked=True))
    packing = replace(ImplicitGemm.packing, work=partial(_packing, unpacked=True))
    _unpacked = True

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        # Arranged weights are no slower once they are arranged, or they would not be.
        return max(super().cost(problem, machine), _packed.cost(problem, machine))

    def why_not(self, problem: ConvProblem) -> str | None:
        computed = paired(problem) if problem.dtype in SMALL else problem
        reason = super().why_not(problem)
        if reason is None and not any(
            unpacked.across_pixels > packed.across_pixels
            for (_, unpacked), (_, packed) in zip(_cuts(computed, True), _cuts(computed, False), strict=True)
        ):
            reason = "implicit_gemm does the same"
        return reason


_packed = ImplicitGemm()
register(_packed)
register(ImplicitGemmUnpacked())
