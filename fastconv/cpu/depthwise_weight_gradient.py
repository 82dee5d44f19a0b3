"""The weight gradient of depthwise convolution, and of grouped convolution with few channels in a group.

    dw[g, o, c, k] = sum over images n and positions t of  dy[n, g, o, t] * x[n, g, c, t * stride + k * dilation - offset]

Nine products for each number of dy are no matrix product: each tap is the dot product of two planes. Input is staged as
the forward convolution stages it, padded and laid out so that all reads are at unit stride; dy is read where it lies.
The tile of `depthwise_weight_tile` keeps the sums of up to twelve taps in registers, a vector each, while it goes over
all rows and columns of a block of positions. Sums stay in scratch memory until all blocks and images of a task are
done, and only then are the lanes of each added up:

    for a block of groups (and outputs):        sums in L1 or L2
        for a block of positions, an image:
            stage x
            for an output, an input, a depth of the kernel, a tile of its taps:     sums in registers

Of the sums of the last vector of a row only the lanes that lie in the row are kept: masking sums costs nothing, and what
lies beyond a row, NaN or not, is never multiplied by zero. A vector that would end beyond the array is read from a copy.
Where channels lie side by side in memory, in groups of one or another power of two, vectors hold neighbouring ones and
lanes are never added up. dy is then copied to scratch memory in the order in which x is staged (`depthwise_pixels`).

Where there are too few groups to keep threads busy, positions and images are split too, into parts that the problem
alone determines, and the parts are added up in their order.
"""  # noqa: E501

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.copying import deal_pixels
from fastconv.cpu.costs import CostModel, Work
from fastconv.cpu.depthwise_cut import grouped_in_vectors
from fastconv.cpu.depthwise_pixels import stage_pixels
from fastconv.cpu.depthwise_planes import stage_planes
from fastconv.cpu.depthwise_weight_tile import MOST_BESIDE, SIDE_BY_SIDE, STEPS, TILE, add_taps, sum_lanes
from fastconv.cpu.elements import load
from fastconv.cpu.jit import HALF_FORMATS, TaskKernel, array, inline, integer, records
from fastconv.cpu.microkernel import padded
from fastconv.cpu.rows import read_row
from fastconv.cpu.weight_gradient import _in_order as in_order
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores, get_num_threads

_PLANE = 20 << 10  # bytes of one staged plane, and
_STAGED = 96 << 10  # of those of one group together
_STAGED_PIXELS = 192 << 10  # bytes staged of pixels
_TOGETHER = 12 << 10  # bytes staged for several groups in planes
_PIXEL = 256  # bytes that a task takes of each pixel of the input, if there is room for some _PIXEL_ROWS of positions
_PIXEL_ROWS = 6
_WIDTH = 1024  # columns of a block in planes
_FEWEST_ROWS = 4  # fewer are better covered by tiles that lie along the row
_SUMS = 128 << 10  # bytes of a task's sums
_LATENCY = 8  # multiply-adds that a core has under way: fewer sums take no less time
_MOST_CHANNELS = 64  # of input in a group: more are a matrix product
_MOST_STAGED = 256 << 10  # half of L2: beyond, the algorithm declines

#: How a gradient is cut. A task has `slots` (of groups, or of vectors of them) and `outputs`, one of `parts` of all
#: blocks of positions; `blocks` of slots, of outputs, and of depth, height and width. What is staged is described as in
#: `depthwise_cut`; rows of the gradient are copied to `copied`, and the sums begin at `sums`, `vectors` for an output
#: of a slot. `along` says whether tiles lie along the row.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("slots", "outputs", "parts", "lanes", "vectors", "copied", "sums", "along")]
    + [(name, np.int64) for name in ("plane", "row", "pixel", "part")]
    + [("blocks", np.int64, (5,))]
)


@inline
def _slots_of(task, geo, block):  # type: ignore[no-untyped-def]
    """Of a task: its part, the first output and how many, the first slot and how many."""
    rest, s_block = divmod(task, block.blocks[0])
    part, o_block = divmod(rest, block.blocks[1])
    o_first, first = o_block * block.outputs, s_block * block.slots
    return part, o_first, min(block.outputs, geo.out_channels - o_first), first


@inline
def _positions_of(place, geo, block):  # type: ignore[no-untyped-def]
    """Of a block of positions: depth, first row, how many, first column, how many."""
    rest, w = divmod(place, block.blocks[4])
    d, h = divmod(rest, block.blocks[3])
    h_first, h_end = h * geo.count[1] // block.blocks[3], (h + 1) * geo.count[1] // block.blocks[3]
    w_first, w_end = w * geo.count[2] // block.blocks[4], (w + 1) * geo.count[2] // block.blocks[4]
    return d, h_first, h_end - h_first, w_first, w_end - w_first


@inline
def _add_rows(  # type: ignore[no-untyped-def]
    scratch, sums, sums_slot, staged, tiles, steps, gradient, begin, leap, stride, groups, rows, columns, block
):  # fmt: skip
    """Add the products of all tiles, of rows of the gradient that lie a `stride` apart, in whole vectors."""
    lanes, size = block.lanes, scratch.itemsize
    whole, rest = columns // lanes, columns % lanes
    for tile in range(tiles.shape[0]):
        for vectors, at, used in ((whole, 0, lanes), (1 if rest > 0 else 0, whole, rest)):
            down, across = (vectors, rows) if block.along else (rows, vectors)
            down_step, across_step = (lanes * size, stride) if block.along else (stride, lanes * size)
            if vectors > 0:
                add_taps(
                    scratch, sums, sums_slot, staged + at * lanes, tiles, tile, steps, gradient,
                    begin + at * lanes * size, leap, down_step, across_step, groups, across, down, used,
                )  # fmt: skip


def _from_planes(  # type: ignore[no-untyped-def]
    first, last, x, gradient, weight, geometry, blocking, steps, tiles, order, half, scratch
):  # fmt: skip
    """Compute tasks `first` to `last` of ``weight (parts, G, O, C * taps)``; vectors lie along the row.

    `gradient` is ``(G, O, N, TD, TH, TW)`` and x ``(N, G, C, D, H, W)``; `geometry` is that of the forward convolution.
    """
    geo, block = geometry[0], blocking[0]
    lanes, size, slot = block.lanes, scratch.itemsize, steps[0].slot
    sums_slot = block.outputs * block.vectors * lanes
    all_blocks = geo.batch * block.blocks[2] * block.blocks[3] * block.blocks[4]
    in_place = gradient.itemsize == size and gradient.strides[5] == size and half == 0
    extent = size
    for axis in range(6):
        in_place = in_place and gradient.strides[axis] >= 0
        extent += (gradient.shape[axis] - 1) * gradient.strides[axis]
    known = -1
    for task in range(first, last):
        part, o_first, outputs, g_first = _slots_of(task, geo, block)
        groups = min(block.slots, geo.groups - g_first)
        scratch[block.sums : block.sums + groups * sums_slot] = 0
        for number in range(part * all_blocks // block.parts, (part + 1) * all_blocks // block.parts):
            place, n = divmod(number, geo.batch)
            d, h, rows, w, columns = _positions_of(place, geo, block)
            if place != known:
                known = place
                scratch[: block.copied] = 0
            stage_planes(
                x, n, g_first, groups, d, h * geo.stride[1] - geo.offset[1], w * geo.stride[2] - geo.offset[2],
                (rows - 1) * geo.stride[1] + (geo.kernel[1] - 1) * geo.dilation[1] + 1,
                (columns - 1) * geo.stride[2] + (geo.kernel[2] - 1) * geo.dilation[2] + 1,
                geo, block, slot, half, scratch,
            )  # fmt: skip
            vectors = (columns + lanes - 1) // lanes
            for o in range(outputs):
                sums = block.sums + o * block.vectors * lanes
                begin = (
                    g_first * gradient.strides[0] + (o_first + o) * gradient.strides[1] + n * gradient.strides[2]
                    + d * gradient.strides[3] + h * gradient.strides[4] + w * gradient.strides[5]
                )  # fmt: skip
                last_row = begin + (rows - 1) * gradient.strides[4] + vectors * lanes * size
                here = groups if in_place else 0  # whose last vectors end in the array
                while here > 0 and last_row + (here - 1) * gradient.strides[0] > extent:
                    here -= 1
                if here > 0:
                    _add_rows(
                        scratch, sums, sums_slot, 0, tiles, steps, gradient, begin, gradient.strides[0],
                        gradient.strides[4], here, rows, columns, block,
                    )  # fmt: skip
                for i in range(here, groups):
                    for r in range(rows):
                        at = block.copied + r * vectors * lanes
                        line = gradient[g_first + i, o_first + o, n, d, h + r]
                        read_row(line, w, 1, 0, half, scratch[at : at + columns])
                    _add_rows(
                        scratch, sums + i * sums_slot, 0, i * slot, tiles, steps, scratch, block.copied * size, 0,
                        vectors * lanes * size, 1, rows, columns, block,
                    )  # fmt: skip
        for i in range(groups):
            for o in range(outputs):
                sums = block.sums + (i * block.outputs + o) * block.vectors * lanes
                for tap in range(order.shape[0]):
                    weight[part, g_first + i, o_first + o, tap] = sum_lanes(scratch, sums + order[tap] * lanes)


def _from_pixels(  # type: ignore[no-untyped-def]
    first, last, x, gradient, weight, geometry, blocking, steps, tiles, order, half, scratch
):  # fmt: skip
    """The same where vectors hold neighbouring output channels, and tiles lie along the row.

    `geometry` counts each output channel as a group; `tiles` has axes as :func:`parts_of` says.
    """
    geo, block = geometry[0], blocking[0]
    inner = geo.in_channels
    lanes, size, slot = block.lanes, scratch.itemsize, steps[0].slot
    sums_slot = block.vectors * lanes
    all_blocks = geo.batch * block.blocks[2] * block.blocks[3] * block.blocks[4]
    side_by_side = gradient.strides[0] == inner * gradient.itemsize
    side_by_side = side_by_side and (inner == 1 or gradient.strides[1] == gradient.itemsize)
    in_place = side_by_side and inner == 1 and gradient.itemsize == size and half == 0
    known = -1
    for task in range(first, last):
        part, _, _, s_first = _slots_of(task, geo, block)
        g_first = s_first * lanes
        groups = min(block.slots * lanes, geo.groups - g_first)
        slots = (groups + lanes - 1) // lanes
        scratch[block.sums : block.sums + slots * sums_slot] = 0
        for number in range(part * all_blocks // block.parts, (part + 1) * all_blocks // block.parts):
            place, n = divmod(number, geo.batch)
            d, h, rows, w, columns = _positions_of(place, geo, block)
            if place != known:
                known = place
                scratch[: block.copied] = 0
            stage_pixels(
                x, n, s_first, slots, d, h * geo.stride[1] - geo.offset[1], w * geo.stride[2] - geo.offset[2], 0,
                (rows - 1) * geo.stride[1] + (geo.kernel[1] - 1) * geo.dilation[1] + 1, 0,
                (columns - 1) * geo.stride[2] + (geo.kernel[2] - 1) * geo.dilation[2] + 1,
                geo, block, slot, half, tiles, scratch,
            )  # fmt: skip
            for i in range(slots):
                g, here = g_first + i * lanes, min(lanes, groups - i * lanes)
                sums, staged = block.sums + i * sums_slot, i * slot
                begin = g * gradient.itemsize + n * gradient.strides[2] + d * gradient.strides[3]
                begin += h * gradient.strides[4] + w * gradient.strides[5]
                if in_place and here == lanes:
                    for tile in range(tiles.shape[0]):
                        add_taps(
                            scratch, sums, 0, staged, tiles, tile, steps, gradient, begin, 0, gradient.strides[5],
                            gradient.strides[4], 1, rows, columns, lanes,
                        )  # fmt: skip
                    continue
                for r in range(rows):
                    at = block.copied + r * columns * lanes
                    if side_by_side:
                        deal_pixels(
                            scratch, at, 0, lanes, gradient, begin + r * gradient.strides[4], gradient.strides[5],
                            columns, here, half, tiles,
                        )  # fmt: skip
                        continue
                    for q in range(columns):
                        for j in range(here):
                            of_group, o = divmod(g + j, inner)
                            to = at + q * lanes + o * (lanes // inner) + j // inner
                            scratch[to] = load(gradient[of_group, o, n, d, h + r, w + q], half)
                for tile in range(tiles.shape[0]):
                    add_taps(
                        scratch, sums, 0, staged, tiles, tile, steps, scratch, block.copied * size, 0, lanes * size,
                        columns * lanes * size, 1, rows, columns, lanes,
                    )  # fmt: skip
        for i in range(slots):
            for tap in range(order.shape[0]):
                sums = block.sums + i * sums_slot + order[tap] * lanes
                for j in range(min(lanes, groups - i * lanes)):
                    g, o = divmod(g_first + i * lanes + j, inner)
                    weight[part, g, o, tap] = scratch[sums + o * (lanes // inner) + j // inner]


_planes_kernel, _pixels_kernel = TaskKernel(_from_planes), TaskKernel(_from_pixels)


def _axes(inner: int) -> int:
    """How many axes tell groups of so many channels to :func:`parts_of`; one where vectors lie along the row."""
    return 2 + inner.bit_length() if inner else 1


@cache
def _compiled(dtype_name: str, accumulator_name: str, inner: int) -> Any:
    dtype, accumulator = named_dtype(dtype_name), named_dtype(accumulator_name)
    return (_pixels_kernel if inner else _planes_kernel).compile(
        array(dtype, 6), array(dtype, 6), array(accumulator, 4, readonly=False), records(GEOMETRY), records(BLOCKING),
        records(STEPS), records(TILE, _axes(inner)), array(np.dtype(np.int64), 1, contiguous=True), integer,
        array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip


def _evenly(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    """The items in as few pieces of at most so many as there can be, all about as long."""
    pieces = -(-len(items) // most)
    for i in range(pieces):
        yield items[i * len(items) // pieces : (i + 1) * len(items) // pieces]


def _runs(taps: int, apart: int, longest: int) -> Iterator[Sequence[int]]:
    """Taps in runs of those that are so many `apart`."""
    for first in range(min(apart, taps)):
        yield from _evenly(range(first, taps, apart), longest)


class _Cut:
    """How the gradient of a forward correlation's weight is cut into tasks, and its taps into tiles."""

    def __init__(self, correlation: Correlation, itemsize: int, inner: int) -> None:
        self.inner, pixels = inner, inner > 0
        if pixels:
            correlation = replace(correlation, groups=correlation.groups * correlation.out_channels, out_channels=1)
        self.correlation = c = correlation
        self.lanes = lanes = padded(1, itemsize)
        depth, height, width = (max(n, 1) for n in c.count)
        (_, stride, stride_w), (_, dilation, dilation_w) = c.stride, c.dilation
        reach, reach_w = (c.kernel[1] - 1) * dilation + 1, (c.kernel[2] - 1) * dilation_w + 1
        planes = max(c.kernel[0] * (1 if pixels else c.in_channels), 1)
        slots = max(-(-c.groups // lanes) if pixels else c.groups, 1)
        if pixels:
            pixel, columns = lanes, width
            row = part = ((columns - 1) * stride_w + reach_w) * pixel
            for together in (min(_PIXEL // itemsize // lanes, slots), 1):
                room = _STAGED_PIXELS // itemsize // together
                if room // (planes * row) >= (min(_PIXEL_ROWS, height) - 1) * stride + reach:
                    break
        else:
            columns, pixel = -(-width // -(-width // _WIDTH)), 1
            part = padded(padded(columns, itemsize) + (reach_w - 1) // stride_w, itemsize)
            row, room = stride_w * part, min(_PLANE * planes, _STAGED) // itemsize
        along = pixels or height < _FEWEST_ROWS
        rows = min(max((room // (planes * row) - reach) // stride + 1, 1), height)
        blocks = -(-height // rows), -(-width // columns)
        rows = -(-height // blocks[0])
        plane = ((rows - 1) * stride + reach) * row
        staged = planes * plane
        if not pixels:
            together = max(min(_TOGETHER // itemsize // staged, slots, -(-slots // (4 * available_cores()))), 1)
        # Rows of results whose taps meet the same input lie `classes` apart, taps that do, `apart`.
        axis, least = (2, width // blocks[1]) if pixels else (1, 1 if along else height // blocks[0])
        common = math.gcd(c.stride[axis], c.dilation[axis])
        apart, classes = c.stride[axis] // common, 1 if least == 1 else c.dilation[axis] // common
        longest = min(max(SIDE_BY_SIDE), max(least // classes, 1))
        runs = list(_runs(c.kernel[axis], apart, longest))
        self.tiles, self.order, vectors = self._tiles(runs, plane, row, part, pixel)
        outputs = max(min(_SUMS // itemsize // max(together * vectors * lanes, 1), c.out_channels), 1)
        outputs = -(-max(c.out_channels, 1) // -(-max(c.out_channels, 1) // outputs))

        steps = self.steps = np.zeros(1, STEPS)
        steps["slot"] = staged
        steps["pitch"], steps["step"] = stride * row, stride_w * pixel if pixels else lanes
        if along:
            steps["pitch"], steps["step"] = steps["step"], steps["pitch"].copy()
        steps["classes"] = classes
        in_one = -(-slots // together), -(-max(c.out_channels, 1) // outputs)
        positions = c.batch * depth * math.prod(blocks)
        self.parts = max(min(-(-2 * available_cores() // math.prod(in_one)), positions), 1)
        self.tasks = math.prod(in_one) * self.parts
        block = self.blocking = np.zeros(1, BLOCKING)
        block["slots"], block["outputs"], block["parts"], block["lanes"] = together, outputs, self.parts, lanes
        block["plane"], block["row"], block["pixel"], block["part"] = plane, row, pixel, part
        block["along"] = along
        block["blocks"] = *in_one, c.count[0], *blocks
        copied = rows * (columns * lanes if pixels else padded(columns, itemsize))
        self.staged = together * staged
        self.sums = together * outputs * vectors * lanes
        block["copied"], block["sums"], block["vectors"] = self.staged, self.staged + copied, vectors
        self.scratch = self.staged + copied + self.sums
        across = height if pixels else blocks[1] * -(-columns // lanes)
        met = c.batch * depth * across * (width if pixels else height) * lanes * slots * max(c.out_channels, 1)
        products = int(np.maximum(self.tiles["run"] * self.tiles["beside"], _LATENCY).sum())
        self.counts = {
            "product": met * products,
            "tile": in_one[0] * positions * c.out_channels * len(self.tiles) * together,
            "staged": math.prod(in_one) * positions * self.staged,
            "result": slots * c.out_channels * vectors * self.parts * (lanes if pixels else 1),
            "task": self.tasks,
        }

    def _tiles(
        self, runs: Sequence[Sequence[int]], plane: int, row: int, part: int, pixel: int
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
        """The tiles; for each tap in order (c, kd, kh, kw) the vector of its sums; and how many there are of those."""
        c = self.correlation
        _, height, width = c.kernel
        places = {}
        for kh, kw in itertools.product(range(height), range(width)):
            along, of_part = divmod(kw * c.dilation[2], row // part)
            places[kh, kw] = kh * c.dilation[1] * row + of_part * part + along * pixel
        found: list[Any] = []  # for each tile, for each of its runs, the taps
        for length, counts in SIDE_BY_SIDE.items():
            chosen = [run for run in runs if len(run) == length]
            if self.inner:
                columns = [[(other, k) for k in run] for run in chosen for other in range(height)]
            else:
                columns = [[(k, other) for k in run] for run in chosen for other in range(width)]
            found += _evenly(columns, max(counts))
        tiles, order, sums = [], [], 0
        for channel, kd in itertools.product(range(c.in_channels), range(c.kernel[0])):
            # A pixel has all channels, number by number; elsewhere each has planes of its own.
            start = kd * plane + channel * (self.lanes // self.inner if self.inner else c.kernel[0] * plane)
            at = {}
            for columns in found:
                length = len(columns[0])
                beside = min(n for n in SIDE_BY_SIDE[length] if n >= len(columns))
                begins = [start + places[column[0]] for column in columns]
                begins += begins[:1] * (MOST_BESIDE - len(begins))  # of sums that nobody reads
                tiles.append((length, beside, sums, begins))
                at.update({tap: sums + i for i, tap in enumerate(itertools.chain(*columns))})
                sums += length * beside
            order += [at[tap] for tap in places]
        axes = [1] * (_axes(self.inner) - 1)
        return np.array(tiles, TILE).reshape(-1, *axes), np.array(order, np.int64), sums


@lru_cache(maxsize=1024)
def _cuts(problem: ConvProblem) -> tuple[_Cut, ...]:
    cuts = []
    for piece in lower(problem):
        c = piece.undone()
        itemsize = named_dtype(problem.accumulator_dtype).itemsize
        cuts.append(_Cut(c, itemsize, grouped_in_vectors(c, itemsize) if problem.channels_last else 0))
    return tuple(cuts)


class _DepthwiseWeightPlan(Plan):
    pack_key = "as it is"

    def __init__(self, problem: ConvProblem) -> None:
        self._accumulator = named_dtype(problem.accumulator_dtype)
        self._half = HALF_FORMATS.get(problem.dtype, 0)
        self._cuts = _cuts(problem)
        self._kernels = [_compiled(problem.dtype, problem.accumulator_dtype, cut.inner) for cut in self._cuts]

    def pack(self, w: Any) -> Any:
        """The output gradient as it is."""
        return w

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        if self._half:
            x, packed = x.view(np.uint16), packed.view(np.uint16)
        for cut, kernel in zip(self._cuts, self._kernels, strict=True):
            weight = y.transpose(1, 2, 0, 3, 4, 5)
            shape = cut.parts, *weight.shape[:2], len(cut.order)
            in_place = cut.parts == 1 and residual is None and y.dtype == self._accumulator and in_order(weight)
            parts = weight.reshape(shape) if in_place else recycling.empty(shape, self._accumulator)
            kernel(cut.tasks, cut.correlation.macs, cut.scratch, x.transpose(2, 1, 0, 3, 4, 5), packed, parts,
                   cut.correlation.geometry, cut.blocking, cut.steps, cut.tiles, cut.order, self._half)  # fmt: skip
            if not in_place:
                with np.errstate(all="ignore"):  # NaN and infinity are data
                    total = parts.sum(axis=0).reshape(weight.shape)
                    weight[...] = total if residual is None else total + residual.transpose(1, 2, 0, 3, 4, 5)


def _work(problem: ConvProblem) -> Iterable[Work]:
    contiguous = problem.dtype == problem.accumulator_dtype
    for cut in _cuts(problem):
        c = cut.correlation
        in_order = contiguous and (cut.inner > 0) == problem.channels_last
        read = 0 if in_order and c.padding_mode == "zeros" else cut.counts["staged"]
        read += 0 if in_order else c.batch * c.groups * c.out_channels * c.positions
        yield Work(cut.tasks, cut.counts | {"read": read})


class DepthwiseWeightGradient(CpuAlgorithm):
    """Dot products of the output gradient with shifted input, all taps of a kernel in one pass."""

    name = "depthwise_weight_gradient"
    running = CostModel(
        _work,
        {"product": 2.5e-11, "tile": 2.4e-8, "staged": 2.5e-10, "result": 2e-9, "read": 2.2e-9, "task": 1e-7,
         "call": 1e-5},
    )  # fmt: skip
    packing = CostModel(lambda problem: (), {"call": 1e-6})

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.op != "weight_grad":
            return "it computes the gradients of weights alone"
        if problem.activation.kind != "none":
            return f"it applies no activation to a gradient, and {problem.activation.kind} is asked for"
        if problem.accumulator_dtype.startswith("complex"):
            return f"it computes real numbers and integers, not {problem.dtype}"
        channels = problem.in_channels // problem.groups
        if channels > _MOST_CHANNELS:
            return f"groups have {channels} input channels: it is made for few, and takes up to {_MOST_CHANNELS}"
        itemsize = named_dtype(problem.accumulator_dtype).itemsize
        staged = max((cut.staged for cut in _cuts(problem)), default=0) * itemsize
        if staged > _MOST_STAGED:
            return f"a row of positions needs {staged >> 10} KiB of input in cache, more than {_MOST_STAGED >> 10}"
        sums = max((cut.sums for cut in _cuts(problem)), default=0) * itemsize
        if sums > _MOST_STAGED:
            return f"the taps of one output need {sums >> 10} KiB of sums in cache, more than {_MOST_STAGED >> 10}"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        itemsize = named_dtype(problem.accumulator_dtype).itemsize
        scratch = max((cut.scratch for cut in _cuts(problem)), default=0) * get_num_threads()
        parts = max((cut.parts for cut in _cuts(problem)), default=0) * math.prod(problem.w_shape)
        return (scratch + parts) * itemsize

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _DepthwiseWeightPlan(problem)


register(DepthwiseWeightGradient())
