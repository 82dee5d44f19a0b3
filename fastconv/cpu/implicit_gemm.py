"""Implicit GEMM: dense convolution of any stride, with channels or with pixels across the vector.

A convolution is the matrix product ``sums[pixel, o] = sum over k of patches[pixel, k] * weights[k, o]``, where row k of
the patches is one tap of one channel, and ``patches[pixel, k] = lines[places[pixel] + offsets[k]]``: two small tables
hold the whole geometry. The lines are the input itself where it needs no padding and no conversion, otherwise the part
of it that a task's pixels see, staged with its padding. The register tile of `microkernel` takes single numbers of one
factor, each against whole vectors of the other. Which is which, the results decide:

Channels across the vector, for channels last: patches are never written down, their numbers are taken from the lines,
and weights come in tiles of outputs. A stride costs nothing, and rows of seven pixels waste no lane.

Pixels across the vector, for channels first: a panel of patches is written down, some vectors of pixels wide
(`panels`), weights are taken one by one as they lie, and rows of results leave the registers as the caller wants them.
Where the panel would cost more than it spares (many taps, few outputs), channels go across here too, and sums are
transposed.

    for a block of input channels:
        stage the block, unless it is read where it lies           L2
        for a tile of outputs, or for some panels:                 weights or panels of the block in L1
            for rows of pixels, or of outputs:                     sums in registers, all taps of the block

Sums go to scratch memory between blocks; the last block writes results of the sums' dtype straight to their place,
clipped. Others are written from scratch memory, with residual and activation. The products of an output are added to
its bias in the order of (channel, kd, kh, kw), however the work is cut.

Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC 2018; Goto and van
de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.costs import CostModel, Work, gathering
from fastconv.cpu.elements import CLIP, resolve
from fastconv.cpu.jit import TaskKernel, array, contiguous_taps, integer, records
from fastconv.cpu.microkernel import TILE_VECTORS, complete_pixels, odd_lines, padded, tile_pixels
from fastconv.cpu.panels import flat_memory, pack_panels
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.rows import add_row, read_pixels, read_planes, write_row
from fastconv.cpu.transpose import transpose_block
from fastconv.cpu.weight_tiles import WeightTiles
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores, get_num_threads

_TAPS = 256  # products added to a tile in one go: their weights fill half of L1
_PIXELS = 256  # of a task
_PANELS = 1 << 14  # elements of the panels between which a tile's weights stay in L1
_SUMS = 64 << 10  # sums of a task, over all its channels, which share what was staged
Table = np.ndarray[Any, np.dtype[np.int64]]

_LEAST_VECTORS = 4  # pixels across the vector must be worth so many
# What it costs, in multiply-adds of a vector, to write down an element of a patch, from runs and one by one; to turn
# a result; to stage an element.
_PACKED, _GATHERED, _TURNED, _STAGED = 0.5, 2.0, 2.0, 1.0
_GATHER = 1.5  # staging single elements costs as much as staging so many in whole rows

#: How a correlation is cut: tasks of `rows` by `columns` pixels and `channels` outputs, `blocks` of them along
#: channels, height and width; `inputs` channels staged at once, in `staged` elements. The element (c, kd, h, w) of them
#: lies at its product with `pitches`; `padded` says whether any of them may be padding. Along h and w there are
#: `length`, in runs of `span`: those of a run are `step` apart in the input, and runs `jump`; two pixels are
#: `pixel_step` apart. A `group` of panels takes `panels` elements, sums `sums`, in rows a `pitch` apart, and what they
#: start from `start`; `real` says whether they are real numbers.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("rows", "columns", "channels", "inputs", "staged", "padded")]
    + [
        (name, np.int64)
        for name in ("panels", "group", "pitch", "sums", "start", "across_pixels", "channels_last", "lanes", "real")
    ]
    + [(name, np.int64, (2,)) for name in ("length", "span", "step", "jump", "pixel_step", "tile")]
    + [("blocks", np.int64, (3,)), ("pitches", np.int64, (4,))]
)


def _implicit_gemm(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, in_place, places, offsets, rows_at, taps_at, half,
    activation, parameters, scratch,
):  # fmt: skip
    """Compute tasks `first` to `last`; `weights` is (G, O padded * taps), tile by tile of outputs, or (G, O * taps)."""
    geo, block = geometry[0], blocking[0]
    mode, lanes, across_pixels = geo.padding_mode, block.lanes, block.across_pixels
    volume = geo.kernel[0] * geo.kernel[1] * geo.kernel[2]
    all_taps = geo.in_channels * volume
    pitch_c, pitch_d, pitch_h, pitch_w = block.pitches[0], block.pitches[1], block.pitches[2], block.pitches[3]
    # The scratch memory: what is staged; a panel; sums, row by row; where sums start; sums transposed for writing.
    pitch = block.pitch
    staged, panels = scratch[: block.staged], scratch[block.staged : block.staged + block.panels]
    memory = scratch[block.staged + block.panels :]
    start_at = block.sums
    lines_at, line = start_at + block.start, -(-block.rows * block.columns // lanes) * lanes
    nothing = lowest = highest = memory.dtype.type(0)
    if block.real:
        lowest, highest = memory.dtype.type(-np.inf), memory.dtype.type(np.inf)
    # Results whose sums need nothing more are written as they are.
    unlimited = block.real != 0 and activation <= CLIP and residual.shape[0] == 0 and y.itemsize == memory.itemsize
    lines = flat_memory(x, memory) if in_place else staged
    step_o, step_h, step_w = y.strides[2] // y.itemsize, y.strides[4] // y.itemsize, y.strides[5] // y.itemsize

    memory[start_at : start_at + block.start] = 0

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
        pixels = (rows - 1) * block.columns + columns
        for o in range(channels if bias.shape[0] > 0 else 0):
            copies = lanes if across_pixels else 1
            for i in range(copies):
                memory[start_at + o * copies + i] = bias[g * geo.out_channels + o_first + o]
        if block.padded:
            staged[:] = 0  # zero padding stays through all blocks
        start_h = h_first * geo.stride[1] - geo.offset[1]
        start_w = w_first * geo.stride[2] - geo.offset[2]

        across, along, widest = (
            (pixels, channels, block.tile[1]) if across_pixels else (channels, pixels, block.tile[1])
        )
        even = rows == 1 or step_h == columns * step_w  # pixels lie at one distance
        if across_pixels:
            direct = unlimited and even and step_w == 1 and pixels >= lanes
            widest = min(widest, pixels // lanes * lanes) if direct else widest
        else:
            direct = unlimited and even and step_o == 1 and channels % lanes == 0
        tiles, most_vectors = -(-along // block.tile[0]), widest // lanes
        least_rows, larger_tiles = along // tiles, along % tiles  # tiles differ by no more than a row

        for c_first in range(0, max(geo.in_channels, 1), block.inputs):
            inputs = min(block.inputs, geo.in_channels - c_first)
            taps = inputs * volume
            lines_first = 0
            if in_place:
                source = n * x.strides[0] + g * x.strides[1] + c_first * x.strides[2] + start_h * x.strides[4]
                source += (d * geo.stride[0] - geo.offset[0]) * x.strides[3] + start_w * x.strides[5]
                lines_first = source // x.itemsize
            for kd in range(0 if in_place else geo.kernel[0]):
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

            # Where sums start and go: each position moves by a pitch with the row, and with the column of vectors.
            begin_first, begin_pitch, begin_step, begin_column = 0, pitch, lanes, 1
            if c_first == 0 and across_pixels:
                begin_first, begin_pitch, begin_step, begin_column = start_at, lanes, 0, 0
            elif c_first == 0:
                begin_first, begin_pitch = start_at, 0
            to_result = direct and c_first + inputs == geo.in_channels
            target, target_first, target_pitch, target_last = memory, 0, pitch, block.pitch
            least, most = lowest, highest
            if to_result:
                target, target_pitch, target_last = flat_memory(y, memory), step_o if across_pixels else step_w, across
                target_first = (n * y.strides[0] + g * y.strides[1] + d * y.strides[3]) // y.itemsize
                target_first += o_first * step_o + h_first * step_h + w_first * step_w
                if activation == CLIP:
                    least, most = parameters[0], parameters[1]

            for v_first in range(0, across, widest * block.group):
                v_last = min(v_first + widest * block.group, across)
                if across_pixels:
                    whole = (v_last - v_first) // widest * widest
                    pack_panels(lines, lines_first, places, v_first, whole, offsets, taps, panels)
                    if whole < v_last - v_first:
                        wide = -(-(v_last - v_first - whole) // lanes) * lanes
                        begin = pixels - wide if direct else v_first + whole  # the last panel ends where pixels do
                        pack_panels(
                            lines, lines_first, places, begin, pixels - begin, offsets, taps, panels[whole * taps :]
                        )
                    numbers, numbers_at = weights[g], o_first * all_taps + c_first * volume
                    vectors, vectors_at = panels, 0
                else:
                    wide = min(-(-(across - v_first) // lanes) * lanes, widest)
                    numbers, numbers_at = lines, lines_first
                    vectors, vectors_at = weights[g], (o_first + v_first) * all_taps + c_first * volume * wide
                r = 0
                for tile in range(tiles):
                    here = least_rows + (tile < larger_tiles)
                    for v in range(v_first, v_last, widest):
                        wide, count = widest, most_vectors
                        if v + wide > across:
                            count = -(-(across - v) // lanes)
                            wide = count * lanes
                        complete_pixels(
                            target, target_first + r * target_pitch + min(v, target_last - wide), target_pitch,
                            memory, begin_first + r * begin_pitch + v * begin_column, begin_pitch, begin_step,
                            numbers, numbers_at, rows_at, r, taps_at, taps, vectors, vectors_at + (v - v_first) * taps,
                            here, count, least, most,
                        )  # fmt: skip
                    r += here

        if direct:
            continue
        # Sums lie in rows of channels, or of pixels, which channels first needs; turned a vector of channels at a time.
        turned = not across_pixels and not block.channels_last
        for o in range(0, channels, channels if block.channels_last else lanes):
            for p in range(0, pixels if turned else 0, lanes):
                transpose_block(memory, p * pitch + o, pitch, memory, lines_at + p, line)
            parts = columns if block.channels_last else min(lanes, channels - o)
            for i in range(rows * parts):
                if block.channels_last:
                    row, column = divmod(i, columns)
                    at, h, w = (row * block.columns + column) * pitch, h_first + row, w_first + column
                    results = y[n, g, o_first : o_first + channels, d, h, w]
                    added = residual[n, g, o_first : o_first + channels, d, h, w]
                else:
                    channel, row = divmod(i, rows)
                    at = lines_at + channel * line if turned else (o + channel) * pitch
                    at, h, c = at + row * columns, h_first + row, o_first + o + channel
                    results = y[n, g, c, d, h, w_first : w_first + columns]
                    added = residual[n, g, c, d, h, w_first : w_first + columns]
                done = memory[at : at + results.shape[0]]
                if residual.shape[0] > 0:
                    add_row(done, added, half)
                write_row(done, nothing, activation, parameters, half, results)


_kernel = TaskKernel(_implicit_gemm)


@cache
def _compiled(dtype_name: str, result_name: str, accumulator_name: str) -> Any:
    dtype, result, accumulator = map(named_dtype, (dtype_name, result_name, accumulator_name))
    vector = array(accumulator, 1, contiguous=True)
    matrix = array(accumulator, 2, contiguous=True, readonly=False)
    table = array(np.dtype(np.int64), 1, contiguous=True)
    return _kernel.compile(
        array(dtype, 6), matrix, array(result, 6, readonly=False), vector, array(result, 6), records(GEOMETRY),
        records(BLOCKING), integer, table, table, table, table, integer, integer, vector,
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

    def __init__(self, correlation: Correlation, problem: ConvProblem) -> None:
        self._correlation = c = correlation
        accumulator = named_dtype(problem.accumulator_dtype)
        itemsize, channels_last = accumulator.itemsize, problem.channels_last
        self.lanes = vector_bytes() // itemsize
        self.tile = TILE_VECTORS * self.lanes
        padding = any(
            offset > 0 or (count - 1) * stride + (kernel - 1) * dilation - offset >= size
            for offset, count, stride, kernel, dilation, size in zip(
                c.offset, c.count, c.stride, c.kernel, c.dilation, c.size, strict=True
            )
        )
        readable = not padding and problem.dtype == problem.accumulator_dtype
        self.across_pixels = across_pixels = not channels_last and self._pixels_are_better(c.flat or c, readable)
        # Tiles of pixels that take numbers from planes far apart would find few of them in the cache.
        self._readable = readable and (across_pixels or channels_last)
        depth, height, width = c.count
        wanted = -(-width // _PIXELS)
        columns = width if wanted <= 1 else -(-width // (wanted * self.tile)) * self.tile
        rows = self._rows(height, columns)
        spatial = c.batch * c.groups * depth * -(-height // rows) * -(-width // columns)
        channels = self._channels(c.out_channels, spatial, rows * columns)
        volume = math.prod(c.kernel)
        most = max(_TAPS // max(volume, 1), 1)
        inputs = max(-(-c.in_channels // max(-(-c.in_channels // most), 1)), 1)
        h = _axis(rows, c.kernel[1], c.stride[1], c.dilation[1], 1)
        w = _axis(columns, c.kernel[2], c.stride[2], c.dilation[2], _GATHER)
        plane = odd_lines(h.length * w.length, itemsize)
        pitches = c.kernel[0] * plane, plane, w.length, 1
        if channels_last:
            pitches = 1, h.length * w.length * inputs, w.length * inputs, inputs
        block = self.blocking = np.zeros(1, BLOCKING)
        block["rows"], block["columns"], block["channels"], block["inputs"] = rows, columns, channels, inputs
        block["blocks"] = blocks = -(-c.out_channels // channels), -(-height // rows), -(-width // columns)
        block["padded"], block["real"] = padding, accumulator.kind == "f"
        block["channels_last"], block["across_pixels"] = channels_last, across_pixels
        block["lanes"], block["tile"] = self.lanes, (tile_pixels(), self.tile)
        for name in ("length", "span", "step", "jump", "pixel_step"):
            block[name] = getattr(h, name), getattr(w, name)
        block["pitches"] = pitches
        last = (inputs - 1, c.kernel[0] - 1, h.length - 1, w.length - 1)
        block["staged"] = staged = 1 + sum(max(n, 0) * pitch for n, pitch in zip(last, pitches, strict=True))
        self.tasks = spatial * blocks[0]
        pixels = padded(rows * columns, itemsize)
        if across_pixels:
            panel = max(inputs * volume * self.tile, 1)
            group = max(min(_PANELS // panel, -(-pixels // self.tile)), 1)
            pitch = odd_lines(pixels, itemsize)
            panels, sums, start, turned = group * panel, channels * pitch, channels * self.lanes, 0
        else:
            pitch = padded(channels, itemsize)
            panels, group, sums, start, turned = (
                0,
                1,
                pixels * pitch,
                pitch,
                0 if channels_last else self.lanes * pixels,
            )
        block["panels"], block["group"], block["pitch"], block["sums"], block["start"] = (
            panels,
            group,
            pitch,
            sums,
            start,
        )
        self.scratch = staged + panels + sums + start + turned
        # Where the pixels of a task, and where the taps of its channels, lie among what is staged.
        self.places = _grid((rows, columns), (h.pixel_step * pitches[2], w.pixel_step * pitches[3]))
        steps = (pitches[0], pitches[1], h.tap_step * pitches[2], w.tap_step * pitches[3])
        self.offsets = _grid((inputs, *c.kernel), steps)
        # And where the weights of a task's outputs, and of its taps, lie in (O, taps).
        self.weight_rows, self.weight_taps = np.arange(channels) * c.reduction, np.arange(inputs * volume)
        self.tables = lru_cache(maxsize=8)(partial(self._tables, itemsize))
        self.work = self._count(c, h, w, channels_last)

    def _pixels_are_better(self, c: Correlation, readable: bool) -> bool:
        """Whether to write patches down costs less than what it spares, each in multiply-adds of a vector per pixel."""
        if not c.whole or math.prod(c.count[1:]) < _LEAST_VECTORS * self.lanes:
            return False  # the taps of a piece are arranged with those of others
        idle = (-c.out_channels % self.lanes) * c.reduction / self.lanes
        staged = c.in_channels * math.prod(c.stride) if readable else 0
        packed = c.reduction * (_PACKED if c.stride[2] == 1 else _GATHERED)
        return packed < c.out_channels * _TURNED + staged * _STAGED + idle

    def _rows(self, height: int, columns: int) -> int:
        """Rows of a task: nearly as many in each; across pixels so that few lanes are idle."""
        most = min(max(_PIXELS // columns, 1), height)
        if not self.across_pixels:
            return -(-height // -(-height // most))
        return min(range(most, max(most // 2, 1) - 1, -1), key=lambda rows: self._panels(rows, columns))

    def _panels(self, rows: int, columns: int) -> int:
        """Panels of a plane that is cut into tasks of so many pixels."""
        _, height, width = self._correlation.count
        return sum(
            high * wide * -(-h * w // self.tile)
            for high, h in ((height // rows, rows), (1, height % rows))
            for wide, w in ((width // columns, columns), (1, width % columns))
        )

    def _tables(self, itemsize: int, strides: tuple[int, ...]) -> tuple[bool, Table, Table]:
        """Whether input of those strides is read where it lies, and where pixels and taps then are."""
        c, block = self._correlation, self.blocking[0]
        steps, odd = zip(*(divmod(stride, itemsize) for stride in strides[2:]), strict=True)
        # Pixels must lie in order, as they do where rows do not overlap.
        ordered = steps[3] > 0 and steps[2] > (c.size[2] - 1) * steps[3]
        if not self._readable or any(odd) or not ordered:
            return False, self.places, self.offsets
        places = _grid((block["rows"], block["columns"]), (c.stride[1] * steps[2], c.stride[2] * steps[3]))
        taps = (steps[0], *(step * dilation for step, dilation in zip(steps[1:], c.dilation, strict=True)))
        return True, places, _grid((block["inputs"], *c.kernel), taps)

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
        staged = 0 if self._readable else self.tasks * c.in_channels * c.kernel[0] * h.length
        counts = {
            "staged": staged * w.length,
            "run": staged * w.length / int(block["inputs"]) if channels_last else staged * w.length / w.span,
            "weight": self.tasks * int(block["channels"]) * c.reduction,
            "task": self.tasks,
        }
        rounds = -(-c.in_channels // int(block["inputs"]))
        if self.across_pixels:
            panels = c.batch * c.groups * c.count[0] * self._panels(int(block["rows"]), int(block["columns"]))
            across, along = panels * self.tile, c.out_channels
            counts["gathered" if c.stride[2] > 1 else "packed"] = images * c.reduction * int(block["blocks"][0])
        else:
            across, along = -(-c.out_channels // self.lanes) * self.lanes, images
            counts["transposed"] = 0 if channels_last else images * c.out_channels
            counts["row"] = images if channels_last else images * c.out_channels / int(block["columns"])
        counts["product"] = across * along * c.reduction
        counts["tile"] = across / self.tile * along / tile_pixels() * rounds
        return Work(self.tasks, counts)


def _grid(counts: tuple[int, ...], steps: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The sums of multiples of the steps, the last one running fastest."""
    axes = np.ix_(*(np.arange(count) * step for count, step in zip(counts, steps, strict=True)))
    return sum(axes[1:], axes[0]).ravel()


class _ImplicitGemmPlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, lambda piece: _Cut(piece, problem))
        self.pack_key = self.pack_key, any(cut.across_pixels for cut in self._cuts)
        self._kernel = _compiled(problem.dtype, problem.result_dtype, problem.accumulator_dtype)
        # Numbers are taken from a weight in the order (O, taps) as it lies.
        self._arrange = None if self.pack_key[1] else WeightTiles(problem)

    def pack(self, w: Any) -> Any:
        """For each piece, its weights in the order in which tiles use them."""
        if self._arrange is not None:
            return self._arrange(w)
        return [
            taps.reshape(taps.shape[0], taps.shape[1] * taps.shape[2])
            for taps in (contiguous_taps(piece, w, self._accumulator) for piece in self._pieces)
        ]

    def _run_piece(self, piece: Correlation, cut: _Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        in_place, places, offsets = cut.tables(x.strides)
        rows_at, taps_at = (cut.weight_rows, cut.weight_taps) if cut.across_pixels else (places, offsets)
        self._kernel(cut.tasks, piece.macs, cut.scratch, x, weights, y, bias, residual, piece.geometry, cut.blocking,
                     in_place, places, offsets, rows_at, taps_at, self._half, *self._activation)  # fmt: skip


def _work(problem: ConvProblem) -> Iterable[Work]:
    return (_Cut(piece.flat or piece, problem).work for piece in lower(problem))


def _packing(problem: ConvProblem) -> Iterable[Work]:
    yield from gathering(problem)
    for piece in lower(problem):
        channels = 0 if _Cut(piece, problem).across_pixels else piece.groups * piece.out_channels
        yield Work(-(-channels // (TILE_VECTORS * 8)), {"arranged": channels * piece.reduction})


class ImplicitGemm(CpuAlgorithm):
    """Patches times weights, output channels or pixels across the vector."""

    name = "implicit_gemm"
    running = CostModel(
        _work,
        {
            "product": 2e-11, "tile": 1.8e-8, "staged": 2.9e-10, "run": 2.3e-9, "packed": 8e-11, "gathered": 2e-10,
            "transposed": 2.5e-10, "row": 2.6e-9, "weight": 2.2e-10, "task": 8.4e-8, "call": 1e-5,
        },
    )  # fmt: skip
    packing = CostModel(_packing, {"gathered": 3e-10, "arranged": 4.5e-10, "call": 1.5e-5})

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype.startswith("complex"):
            return "its register tile multiplies real numbers"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        accumulator = named_dtype(problem.accumulator_dtype)
        cuts = [_Cut(piece.flat or piece, problem) for piece in lower(problem)]
        return max((cut.scratch for cut in cuts), default=0) * accumulator.itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _ImplicitGemmPlan(problem)


register(ImplicitGemm())
