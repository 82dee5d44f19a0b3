"""Implicit GEMM with output channels across the vector: dense convolution of any stride, in either format.

A convolution is the matrix product ``sums[pixel, o] = sum over k of patches[pixel, k] * weights[k, o]``, where row k of
the patches is one tap of one channel. The patches are never written down. A task stages the part of the input that its
pixels see, padding included, and ``patches[pixel, k] = staged[places[pixel] + offsets[k]]``: two small tables hold the
whole geometry. The register tile of `microkernel` takes single numbers of the staged input, each against whole vectors
of weights. So a stride costs nothing, rows of seven pixels waste no lane, and it does not matter whether the input has
its channels first or last: only the tables differ.

    for a block of input channels:              weights of a block and a tile of outputs stay in L1
        stage the block                         L2
        for a tile of output channels:
            for a tile of pixels:               sums in registers, all taps of the block

Sums go to scratch memory between blocks. At the end they are transposed (channels first), and bias, residual and
activation are applied as they are written. The products of an output are added to its bias in the order of (channel,
kd, kh, kw), however the work is cut.

Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC 2018.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.costs import CostModel, Work, gathering
from fastconv.cpu.elements import resolve
from fastconv.cpu.jit import TaskKernel, array, integer, records
from fastconv.cpu.microkernel import TILE_VECTORS, multiply_pixels, odd_lines, padded, tile_pixels
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.rows import add_row, read_pixels, read_planes, write_plane, write_row
from fastconv.cpu.transpose import transpose_block
from fastconv.cpu.weight_tiles import WeightTiles
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores, get_num_threads

_TAPS = 256  # products added to a tile in one go: their weights fill half of L1
_PIXELS = 256  # of a task
_SUMS = 64 << 10  # sums of a task, over all its channels, which share what was staged
_GATHER = 1.5  # staging single elements costs as much as staging so many in whole rows

#: How a correlation is cut: tasks of `rows` by `columns` pixels and `channels` outputs, `blocks` of them along
#: channels, height and width; `inputs` channels staged at once, in `staged` elements. The element (c, kd, h, w) of them
#: lies at its product with `pitches`; `padded` says whether any of them may be padding. Along h and w there are
#: `length`, in runs of `span`: those of a run are `step` apart in the input, and runs `jump`; two pixels are
#: `pixel_step` apart.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("rows", "columns", "channels", "inputs", "staged", "padded")]
    + [(name, np.int64) for name in ("channels_last", "lanes")]
    + [(name, np.int64, (2,)) for name in ("length", "span", "step", "jump", "pixel_step", "tile")]
    + [("blocks", np.int64, (3,)), ("pitches", np.int64, (4,))]
)


def _implicit_gemm(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, offsets, places, half, activation, parameters,
    scratch,
):  # fmt: skip
    """Compute tasks `first` to `last`; `weights` is (G, O padded * taps), tile by tile of outputs."""
    geo, block = geometry[0], blocking[0]
    mode, lanes = geo.padding_mode, block.lanes
    volume = geo.kernel[0] * geo.kernel[1] * geo.kernel[2]
    all_taps = geo.in_channels * volume
    pitch_c, pitch_d, pitch_h, pitch_w = block.pitches[0], block.pitches[1], block.pitches[2], block.pitches[3]
    # The scratch memory: what is staged; sums (pixel, channel); where sums start; sums (channel, pixel) of a vector.
    pitch = -(-block.channels // lanes) * lanes
    line = -(-block.rows * block.columns // lanes) * lanes
    staged, memory = scratch[: block.staged], scratch[block.staged :]
    start_at = line * pitch
    lines_at = start_at + pitch

    for task in range(first, last):
        rest, o_block = divmod(task, block.blocks[0])
        rest, w_block = divmod(rest, block.blocks[2])
        rest, h_block = divmod(rest, block.blocks[1])
        rest, d = divmod(rest, geo.count[0])
        n, g = divmod(rest, geo.groups)
        o_first, h_first, w_first = o_block * block.channels, h_block * block.rows, w_block * block.columns
        channels = min(block.channels, geo.out_channels - o_first)
        rows = min(block.rows, geo.count[1] - h_first)
        columns = min(block.columns, geo.count[2] - w_first)
        pixels = rows * block.columns  # columns past the end of the image are computed and not written
        memory[start_at : start_at + pitch] = 0
        if bias.shape[0] > 0:
            for o in range(channels):
                memory[start_at + o] = bias[g * geo.out_channels + o_first + o]
        if block.padded:
            staged[:] = 0  # zero padding stays through all blocks
        start_h = h_first * geo.stride[1] - geo.offset[1]
        start_w = w_first * geo.stride[2] - geo.offset[2]
        tiles = -(-pixels // block.tile[0])

        for c_first in range(0, max(geo.in_channels, 1), block.inputs):
            inputs = min(block.inputs, geo.in_channels - c_first)
            for kd in range(geo.kernel[0]):
                source_d = resolve(d * geo.stride[0] + kd * geo.dilation[0] - geo.offset[0], geo.size[0], mode)
                if source_d < 0:
                    continue
                planes = x[n, g, c_first : c_first + inputs, source_d]
                for h in range(0, block.length[0], block.span[0]):
                    for w in range(0, block.length[1], block.span[1]):
                        from_h = start_h + h // block.span[0] * block.jump[0]
                        from_w = start_w + w // block.span[1] * block.jump[1]
                        part = staged[kd * pitch_d + h * pitch_h + w * pitch_w :]
                        if block.channels_last:
                            read_pixels(
                                planes, from_h, block.step[0], from_w, block.step[1], mode, half, part, pitch_w,
                                pitch_h, block.span[0], block.span[1],
                            )  # fmt: skip
                        else:
                            read_planes(
                                planes, from_h, block.step[0], from_w, block.step[1], mode, half, part, pitch_c,
                                pitch_h, block.span[0], block.span[1],
                            )  # fmt: skip

            for o in range(0, channels, block.tile[1]):
                width = min(-(-(channels - o) // lanes) * lanes, block.tile[1])
                weights_at = (o_first + o) * all_taps + c_first * volume * width
                p = 0
                for tile in range(tiles):
                    here = (pixels - p) // (tiles - tile)
                    begin, step = (p * pitch + o, pitch) if c_first > 0 else (start_at + o, 0)
                    multiply_pixels(
                        memory, p * pitch + o, pitch, begin, step, staged, places, p, offsets, inputs * volume,
                        weights[g], weights_at, here, width // lanes,
                    )  # fmt: skip
                    p += here

        nothing, has_residual = memory.dtype.type(0), residual.shape[0] > 0
        if block.channels_last:
            side_by_side = y.strides[2] == y.itemsize and y.strides[5] == channels * y.itemsize and pitch == channels
            together = columns if side_by_side and not has_residual else 1  # pixels written at once
            for row in range(rows):
                for column in range(0, columns, together):
                    at, h, w = (row * block.columns + column) * pitch, h_first + row, w_first + column
                    done = memory[at : at + together * channels]
                    if has_residual:
                        add_row(done, residual[n, g, o_first : o_first + channels, d, h, w], half)
                    results = y[n, g, o_first : o_first + channels, d, h, w]
                    write_row(done, nothing, activation, parameters, half, results)
        else:
            for o in range(0, channels, lanes):
                for p in range(0, pixels, lanes):
                    transpose_block(memory, p * pitch + o, pitch, memory, lines_at + p, line)
                for i in range(min(lanes, channels - o)):
                    channel, at = o_first + o + i, lines_at + i * line
                    h_last, w_last = h_first + rows, w_first + columns
                    plane = y[n, g, channel, d, h_first:h_last, w_first:w_last]
                    added = residual[n, g, channel, d, h_first:h_last, w_first:w_last]
                    write_plane(
                        memory[at : at + pixels],
                        columns,
                        nothing,
                        has_residual,
                        added,
                        activation,
                        parameters,
                        half,
                        plane,
                    )


_kernel = TaskKernel(_implicit_gemm)


@cache
def _compiled(dtype_name: str, result_name: str, accumulator_name: str) -> Any:
    dtype, result, accumulator = map(named_dtype, (dtype_name, result_name, accumulator_name))
    vector = array(accumulator, 1, contiguous=True)
    matrix = array(accumulator, 2, contiguous=True, readonly=False)
    table = array(np.dtype(np.int64), 1, contiguous=True)
    return _kernel.compile(
        array(dtype, 6), matrix, array(result, 6, readonly=False), vector, array(result, 6), records(GEOMETRY),
        records(BLOCKING), table, table, integer, integer, vector,
        array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip


@dataclass(frozen=True)
class _Axis:
    """How the input is staged along height or width: see :data:`BLOCKING`; taps are `tap_step` apart."""

    length: int
    span: int
    step: int
    jump: int
    pixel_step: int
    tap_step: int


def _axis(pixels: int, kernel: int, stride: int, dilation: int, gather: float) -> _Axis:
    """All from the first to the last that is needed; or, where most of that is not, the pixels' own for each tap."""
    together = (pixels - 1) * stride + (kernel - 1) * dilation + 1 if kernel else 0
    if together <= kernel * pixels * gather:
        return _Axis(together, max(together, 1), 1, 0, stride, dilation)
    return _Axis(kernel * pixels, pixels, stride, dilation, 1, pixels)


class _Cut:
    """How a correlation is cut into tasks."""

    def __init__(self, correlation: Correlation, accumulator: np.dtype[Any], channels_last: bool) -> None:
        c = correlation
        self.lanes = vector_bytes() // accumulator.itemsize
        self.tile = TILE_VECTORS * self.lanes
        depth, height, width = c.count
        wanted = -(-width // _PIXELS)
        columns = -(-width // wanted)
        rows = min(max(_PIXELS // columns, 1), height)
        rows = -(-height // -(-height // rows))
        spatial = c.batch * c.groups * depth * -(-height // rows) * -(-width // columns)
        channels = self._channels(c.out_channels, spatial, rows * columns)
        volume = math.prod(c.kernel)
        most = max(_TAPS // max(volume, 1), 1)
        inputs = max(-(-c.in_channels // max(-(-c.in_channels // most), 1)), 1)
        h = _axis(rows, c.kernel[1], c.stride[1], c.dilation[1], 1)
        w = _axis(columns, c.kernel[2], c.stride[2], c.dilation[2], _GATHER)
        pitches = self._pitches(inputs, c.kernel[0], h.length, w.length, accumulator.itemsize, channels_last)
        block = self.blocking = np.zeros(1, BLOCKING)
        block["rows"], block["columns"], block["channels"], block["inputs"] = rows, columns, channels, inputs
        block["blocks"] = blocks = -(-c.out_channels // channels), -(-height // rows), -(-width // columns)
        block["padded"] = any(
            offset > 0 or (count - 1) * stride + (kernel - 1) * dilation - offset >= size
            for offset, count, stride, kernel, dilation, size in zip(
                c.offset, c.count, c.stride, c.kernel, c.dilation, c.size, strict=True
            )
        )
        block["channels_last"], block["lanes"], block["tile"] = channels_last, self.lanes, (tile_pixels(), self.tile)
        for name in ("length", "span", "step", "jump", "pixel_step"):
            block[name] = getattr(h, name), getattr(w, name)
        block["pitches"] = pitches
        last = (inputs - 1, c.kernel[0] - 1, h.length - 1, w.length - 1)
        block["staged"] = staged = 1 + sum(max(n, 0) * pitch for n, pitch in zip(last, pitches, strict=True))
        self.tasks = spatial * blocks[0]
        sums, line = padded(channels, accumulator.itemsize), padded(rows * columns, accumulator.itemsize)
        self.scratch = staged + (line + 1) * sums + self.lanes * line
        # Where the pixels of a task, and where the taps of its channels, lie among what is staged.
        self.places = _grid((rows, columns), (h.pixel_step * pitches[2], w.pixel_step * pitches[3]))
        steps = (pitches[0], pitches[1], h.tap_step * pitches[2], w.tap_step * pitches[3])
        self.offsets = _grid((inputs, *c.kernel), steps)
        self.work = self._count(c, h, w, channels_last)

    def _channels(self, out_channels: int, spatial: int, pixels: int) -> int:
        """Output channels of a task: whole tiles, as many as share the staging without leaving threads idle."""
        wanted = min(_SUMS // pixels, -(-out_channels * spatial // (2 * available_cores())))
        wanted = -(-max(wanted, 1) // self.tile) * self.tile
        blocks = -(-out_channels // wanted)
        return max(min(-(-out_channels // blocks // self.tile) * self.tile if blocks else 1, max(out_channels, 1)), 1)

    def _count(self, c: Correlation, h: _Axis, w: _Axis, channels_last: bool) -> Work:
        """What it costs: products (those of idle lanes included), tiles, staging, results, tasks."""
        block = self.blocking[0]
        images = c.batch * c.groups * c.positions
        across = -(-c.out_channels // self.tile)
        staged = self.tasks * c.in_channels * c.kernel[0] * h.length
        counts = {
            "product": images * c.reduction * -(-c.out_channels // self.lanes) * self.lanes,
            "tile": images / tile_pixels() * across * -(-c.in_channels // int(block["inputs"])),
            "staged": staged * w.length,
            "run": staged * w.length / int(block["inputs"]) if channels_last else staged * w.length / w.span,
            "transposed": 0 if channels_last else images * c.out_channels,
            "row": images if channels_last else images * c.out_channels / int(block["columns"]),
            "weight": self.tasks * int(block["channels"]) * c.reduction,
            "task": self.tasks,
        }
        return Work(self.tasks, counts)

    def _pitches(
        self, inputs: int, depth: int, height: int, width: int, itemsize: int, channels_last: bool
    ) -> tuple[int, int, int, int]:
        if channels_last:
            return 1, height * width * inputs, width * inputs, inputs
        plane = odd_lines(height * width, itemsize)
        return depth * plane, plane, width, 1


def _grid(counts: tuple[int, ...], steps: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The sums of multiples of the steps, the last one running fastest."""
    axes = np.ix_(*(np.arange(count) * step for count, step in zip(counts, steps, strict=True)))
    return sum(axes[1:], axes[0]).ravel()


class _ImplicitGemmPlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, lambda piece: _Cut(piece, self._accumulator, problem.channels_last))
        self._kernel = _compiled(problem.dtype, problem.result_dtype, problem.accumulator_dtype)
        self._arrange = WeightTiles(problem)

    def pack(self, w: Any) -> Any:
        """For each piece, its weights in the order in which tiles use them."""
        return self._arrange(w)

    def _run_piece(self, piece: Correlation, cut: _Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        self._kernel(cut.tasks, piece.macs, cut.scratch, x, weights, y, bias, residual, piece.geometry, cut.blocking,
                     cut.offsets, cut.places, self._half, *self._activation)  # fmt: skip


def _work(problem: ConvProblem) -> Iterable[Work]:
    accumulator = named_dtype(problem.accumulator_dtype)
    return (_Cut(piece.flat or piece, accumulator, problem.channels_last).work for piece in lower(problem))


def _packing(problem: ConvProblem) -> Iterable[Work]:
    yield from gathering(problem)
    for piece in lower(problem):
        channels = piece.groups * piece.out_channels
        yield Work(-(-channels // (TILE_VECTORS * 8)), {"arranged": channels * piece.reduction})


class ImplicitGemm(CpuAlgorithm):
    """Patches that are never written down times weights, output channels across the vector."""

    name = "implicit_gemm"
    running = CostModel(
        _work,
        {
            "product": 2e-11, "tile": 5.3e-8, "staged": 2.9e-10, "run": 2.3e-9, "transposed": 2.5e-10, "row": 2.6e-9,
            "weight": 2.1e-10, "task": 8.4e-8, "call": 1e-5,
        },
    )  # fmt: skip
    packing = CostModel(_packing, {"gathered": 3e-10, "arranged": 4.5e-10, "call": 1.5e-5})

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype.startswith("complex"):
            return "its register tile multiplies real numbers"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        accumulator = named_dtype(problem.accumulator_dtype)
        cuts = [_Cut(piece.flat or piece, accumulator, problem.channels_last) for piece in lower(problem)]
        return max((cut.scratch for cut in cuts), default=0) * accumulator.itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _ImplicitGemmPlan(problem)


register(ImplicitGemm())
