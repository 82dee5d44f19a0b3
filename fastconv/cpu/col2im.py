"""Transposed convolution as one matrix product whose rows are folded into the result (col2im).

    products[(k, o), q] = sum over c of  w[o, c, k] * x[c, q]
    y[o, q * stride + k * dilation - offset] += products[(k, o), q]

A correlation has as many rows of results as output channels. Where those are few, as in the gradient of an image or in
the last layer of a decoder, a register tile is half empty, and an input that has been brought to L1 is multiplied by a
few weights. In the product of all taps each input meets ``K`` times as many; no product meets padding, and none is
computed for a tap that meets no sample: a stride needs no pieces. What it costs is one addition for each product of
``C`` multiply-adds. If the kernel is no longer than the stride, no two products meet, and folding is copying.

A task has a block of results: some output channels, some rows, and a part of their length. It goes through the rows of
the input that reach them, a band of some 100 pixels at a time:

    write the band down in panels of pixels         L2 (`panels`)
    for a tile of (kh, o, kw):                      sums in registers, all the channels
    add the products to lines of results            L2

A line holds the results of one residue of the stride, so that products are added side by side. Of a band that reaches
past the task, only the rows of taps that stay within it are multiplied. A correlation of stride 1 is the transposed
convolution with its kernel flipped, and is computed likewise. Each result is the sum of its products over channels, tap
by tap, in an order that the problem alone determines.

Anderson, Vasudevan, Keane and Gregg, "Low-memory GEMM-based convolution algorithms for deep neural networks",
arXiv:1709.03395, 2017.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.copying import add_planes
from fastconv.cpu.costs import CostModel, Work, scattering
from fastconv.cpu.elements import activation_arguments, extremes
from fastconv.cpu.jit import HALF_FORMATS, TaskKernel, array, inline, integer, records
from fastconv.cpu.microkernel import TILE_VECTORS, complete_pixels, odd_lines, padded
from fastconv.cpu.panels import flat_memory, pack_panels
from fastconv.cpu.rows import add_row, read_planes, write_row
from fastconv.lowering import GEOMETRY
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores, get_num_threads

_PANELS = 24 << 10  # elements of a band
_PIXELS = 96  # of one, at least
_COLUMNS = 256  # of a task
_TAPS = 256  # channels multiplied in one go: their weights and panels fill half of L1
_PRODUCTS = 32 << 10  # of a band
_SUMS = 32 << 10  # of a task
_PACKED = 24 << 10  # weights that are put in order at once: what is read again and again stays in L2

#: How the result is cut: `blocks` tasks along channels, height and width, of so many `channels`, `rows`, and `columns`
#: of each residue of the stride; `band` rows of the input, of at most `width` pixels, at a time, of `inputs` channels.
#: Lines of results, which begin and end with a `margin`, lie a `line` apart, rows of products a `pitch`. The scratch
#: memory holds `staged` elements of the input, channels `apart`, `panels`, `products` and lines.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("channels", "rows", "columns", "band", "width", "inputs", "margin", "line", "pitch")]
    + [(name, np.int64) for name in ("staged", "apart", "panels", "products", "lanes", "tile_width")]
    + [("blocks", np.int64, (3,))]
)


@inline
def _up(a, b):  # type: ignore[no-untyped-def]
    """The quotient rounded up."""
    return -(-a // b)


def _col2im(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, in_place, places, offsets, rows_at, taps_at,
    lines_at, half, activation, parameters, scratch,
):  # fmt: skip
    """Compute tasks `first` to `last`; `weights` is (G, blocks * KD * KH * channels * KW * C)."""
    geo, block = geometry[0], blocking[0]
    step, low, dilation, kernel = geo.stride, geo.offset, geo.dilation, geo.kernel
    lanes, line, pitch, margin = block.lanes, block.line, block.pitch, block.margin
    staged, panels = scratch[: block.staged], scratch[block.staged : block.staged + block.panels]
    memory = scratch[block.staged + block.panels :]  # products; a row of zeros; lines of results
    zeros_at = block.products
    sums_at = zeros_at + block.tile_width
    memory[zeros_at:sums_at] = 0
    lines, (lowest, highest) = flat_memory(x, memory) if in_place else staged, extremes(memory)
    row_taps = block.channels * kernel[2]  # rows of products for one kh
    plane = kernel[1] * row_taps * geo.in_channels

    for task in range(first, last):
        rest, o_block = divmod(task, block.blocks[0])
        rest, w_block = divmod(rest, block.blocks[2])
        rest, h_block = divmod(rest, block.blocks[1])
        rest, d = divmod(rest, geo.count[0])
        n, g = divmod(rest, geo.groups)
        o_first, h_first = o_block * block.channels, h_block * block.rows
        channels = min(block.channels, geo.out_channels - o_first)
        h_last = min(h_first + block.rows, geo.count[1])
        # Column i of residue r is the result i * step + r - low.
        i_first = low[2] // step[2] + w_block * block.columns
        i_last = min(i_first + block.columns, (low[2] + geo.count[2] - 1) // step[2] + 1)
        w_first, w_last = max(i_first - margin, 0), min(i_last, geo.size[2])
        q_first = max(_up(h_first + low[1] - (kernel[1] - 1) * dilation[1], step[1]), 0)
        q_last = min((h_last - 1 + low[1]) // step[1] + 1, geo.size[1])
        memory[sums_at : sums_at + channels * block.rows * step[2] * line] = 0

        for kd in range(kernel[0]):
            source_d, between = divmod(d + low[0] - kd * dilation[0], step[0])
            if between != 0 or source_d < 0 or source_d >= geo.size[0]:
                continue
            for q in range(q_first, q_last, block.band):
                some = min(block.band, q_last - q)
                k_first = max(_up(h_first + low[1] - (q + some - 1) * step[1], dilation[1]), 0)
                k_last = min((h_last - 1 + low[1] - q * step[1]) // dilation[1] + 1, kernel[1])
                if k_first >= k_last:
                    continue
                rows = (k_last - k_first) * row_taps
                for w in range(w_first, w_last, block.width):
                    width = min(block.width, w_last - w)
                    pixels = some * width
                    for c_first in range(0, max(geo.in_channels, 1), block.inputs):
                        inputs = min(block.inputs, geo.in_channels - c_first)
                        begin = 0
                        if in_place:
                            begin = n * x.strides[0] + g * x.strides[1] + c_first * x.strides[2]
                            begin += source_d * x.strides[3] + q * x.strides[4] + w * x.strides[5]
                            begin //= x.itemsize
                        else:
                            read_planes(
                                x[n, g, c_first : c_first + inputs, source_d], q, 1, w, 1, 0, half, staged,
                                block.apart, width, some, width,
                            )  # fmt: skip
                        whole = pixels // block.tile_width * block.tile_width
                        pack_panels(lines, begin, places, 0, whole, offsets, inputs, panels)
                        if whole < pixels:
                            last_panel = panels[whole * inputs :]
                            pack_panels(lines, begin, places, whole, pixels - whole, offsets, inputs, last_panel)
                        own = weights[g, (o_block * kernel[0] + kd) * plane + k_first * row_taps * geo.in_channels :]
                        begin_at, begin_pitch, column = (0, pitch, 1) if c_first > 0 else (zeros_at, 0, 0)
                        whole_panels = 0, block.tile_width, whole // block.tile_width
                        for v, wide, panels_there in (whole_panels, (whole, _up(pixels - whole, lanes) * lanes, 1)):
                            complete_pixels(
                                memory, v, pitch, memory, begin_at + v * column, begin_pitch, lanes, column,
                                own[c_first:], 0, rows_at, 0, taps_at, inputs, panels, v * inputs, rows, wide // lanes,
                                panels_there, lowest, highest, 0, 0,
                            )  # fmt: skip
                    for k in range(k_first, k_last):
                        # Those rows of the band whose results are the task's.
                        beyond = low[1] - k * dilation[1]
                        r_first = max(_up(h_first + beyond, step[1]) - q, 0)
                        r_last = min((h_last - 1 + beyond) // step[1] + 1 - q, some)
                        h = (q + r_first) * step[1] - beyond - h_first
                        for kw in range(kernel[2]):
                            at = (k - k_first) * row_taps + kw
                            add_planes(
                                memory, sums_at + h * step[2] * line + margin + w - i_first + lines_at[kw],
                                block.rows * step[2] * line, step[1] * step[2] * line, memory,
                                (at * pitch + r_first * width) * memory.itemsize, kernel[2] * pitch * memory.itemsize,
                                width * memory.itemsize, channels, r_last - r_first, width,
                            )  # fmt: skip

        for o in range(channels):
            added = bias[g * geo.out_channels + o_first + o] if bias.shape[0] > 0 else memory.dtype.type(0)
            for h in range(h_first, h_last):
                for residue in range(step[2]):
                    i = max(_up(low[2] - residue, step[2]), i_first)
                    count = max(min((low[2] + geo.count[2] - 1 - residue) // step[2] + 1, i_last) - i, 0)
                    at = sums_at + ((o * block.rows + h - h_first) * step[2] + residue) * line + margin + i - i_first
                    sums, w = memory[at : at + count], i * step[2] + residue - low[2]
                    if residual.shape[0] > 0:
                        add_row(sums, residual[n, g, o_first + o, d, h, w :: step[2]], half)
                    results = y[n, g, o_first + o, d, h, w :: step[2]][:count]
                    write_row(sums, added, activation, parameters, half, results)


_kernel = TaskKernel(_col2im)


def _evenly(length: int, most: int) -> int:
    """The length of equal parts, each of at most so many, or of 1."""
    parts = max(-(-length // max(most, 1)), 1)
    return max(-(-length // parts), 1)


@cache
def _compiled(dtype_name: str, result_name: str, accumulator_name: str) -> Any:
    dtype, result, accumulator = map(named_dtype, (dtype_name, result_name, accumulator_name))
    vector, table = array(accumulator, 1, contiguous=True), array(np.dtype(np.int64), 1, contiguous=True)
    return _kernel.compile(
        array(dtype, 6), array(accumulator, 2, contiguous=True), array(result, 6, readonly=False), vector,
        array(result, 6), records(GEOMETRY), records(BLOCKING), integer, table, table, table, table, table, integer,
        integer, vector, array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip


def _scatter(problem: ConvProblem) -> np.ndarray[Any, Any]:
    """The geometry of the scattering: result ``q * stride + k * dilation - offset`` is met by input q and tap k."""
    p = problem
    geometry = np.zeros(1, GEOMETRY)
    geometry["batch"], geometry["groups"], geometry["kernel"] = p.batch, p.groups, p.kernel
    geometry["stride"], geometry["dilation"] = p.stride, p.dilation
    inner, outer = p.in_channels // p.groups, p.out_channels // p.groups
    lows = [low for low, _ in p.padding]
    if p.op == "input_grad":
        geometry["in_channels"], geometry["out_channels"] = outer, inner
        geometry["size"], geometry["count"], geometry["offset"] = p.out_size, p.size, lows
    else:
        geometry["in_channels"], geometry["out_channels"] = inner, outer
        geometry["size"], geometry["count"] = p.size, p.out_size
        geometry["offset"] = [(k - 1) * d - low for k, d, low in zip(p.kernel, p.dilation, lows, strict=True)]
    return geometry


class _Cut:
    """How a result is cut into tasks."""

    def __init__(self, problem: ConvProblem) -> None:
        self.geometry = _scatter(problem)
        names = ("size", "kernel", "count", "stride", "offset", "dilation")
        size, kernel, count, step, low, dilation = (self.geometry[name][0].tolist() for name in names)
        images = problem.batch * problem.groups
        in_channels, out_channels = (int(self.geometry[name][0]) for name in ("in_channels", "out_channels"))
        accumulator = named_dtype(problem.accumulator_dtype)
        itemsize = accumulator.itemsize
        lanes = vector_bytes() // itemsize
        tile, taps = TILE_VECTORS * lanes, kernel[1] * kernel[2]
        margin = (kernel[2] - 1) * dilation[2] // step[2]
        begin = low[2] // step[2]
        across = max((low[2] + count[2] - 1) // step[2] + 1 - begin, 1)
        columns = -(-across // -(-across // max(_COLUMNS, 4 * margin)))
        w_blocks = -(-across // columns)
        inputs = _evenly(in_channels, _TAPS)
        most = max(min(_PANELS // inputs, _PRODUCTS // max(taps * out_channels, 1)), _PIXELS)
        width = max(min(begin + across, size[2]) - max(begin - margin, 0), 1)
        band = _evenly(size[1], most // width) if w_blocks == 1 else 1
        if band == 1:
            width = -(-_evenly(min(width, columns + margin), most) // tile) * tile
        pixels = band * width
        pitch = odd_lines(padded(pixels, itemsize), itemsize)
        channels = _evenly(out_channels, _PRODUCTS // max(taps * pitch, 1))
        o_blocks = -(-out_channels // channels)
        line = padded(columns + 2 * margin, itemsize)
        rows = -(-count[1] * images * count[0] * o_blocks * w_blocks // (2 * available_cores()))
        rows = _evenly(count[1], max(min(rows, _SUMS // (channels * step[2] * line)), step[1]))
        block = self.blocking = np.zeros(1, BLOCKING)
        block["channels"], block["rows"], block["columns"], block["band"] = channels, rows, columns, band
        block["width"], block["inputs"], block["margin"], block["line"] = width, inputs, margin, line
        block["pitch"], block["apart"] = pitch, (apart := odd_lines(pixels, itemsize))
        block["staged"], block["panels"], block["products"] = parts = (
            inputs * apart, inputs * padded(pixels, itemsize), taps * channels * pitch
        )  # fmt: skip
        block["lanes"], block["tile_width"] = lanes, tile
        block["blocks"] = blocks = o_blocks, -(-count[1] // rows), w_blocks
        self.tasks = images * count[0] * math.prod(blocks)
        self.scratch = sum(parts) + tile + channels * rows * step[2] * line
        # Where the taps of a row add to a line, and where rows of weights and their channels lie.
        along = np.arange(kernel[2]) * dilation[2]
        self.lines_at = along % step[2] * line + along // step[2]
        self.rows_at, self.taps_at = np.arange(taps * channels) * in_channels, np.arange(inputs)
        self._staged = np.arange(pixels), np.arange(inputs) * apart
        self._plain = problem.dtype == problem.accumulator_dtype
        self._shape = band, width, inputs, size[2], itemsize
        self.tables = lru_cache(maxsize=8)(self._tables)

        weights = math.prod(kernel) * o_blocks * channels * in_channels
        positions = images * math.prod(size)
        halo = 1 + margin / columns if w_blocks > 1 else 1.0
        pieces = -(-size[2] // width)
        bands = images * size[0] * -(-size[1] // band) * pieces
        self.counts = {
            "product": positions * padded(pixels, itemsize) / pixels * halo * weights,
            "weight": bands * weights,
            "packed": positions * kernel[0] * in_channels * o_blocks,
            "folded": positions * math.prod(kernel) * out_channels,
            "row": images * size[0] * size[1] * pieces * math.prod(kernel) * out_channels,
            "result": images * math.prod(count) * out_channels,
            "task": self.tasks,
        }

    def _tables(self, strides: tuple[int, ...]) -> tuple[bool, Any, Any]:
        """Whether input of those strides is read where it lies, and where a band's pixels and channels then are."""
        band, width, inputs, row, itemsize = self._shape
        channel, _, height, along = (stride // itemsize for stride in strides[2:])
        # Pixels must lie in order, as they do where rows do not overlap.
        if not self._plain or along <= 0 or (band > 1 and height <= (row - 1) * along):
            return False, *self._staged
        places = (np.arange(band)[:, None] * height + np.arange(width) * along).ravel()
        return True, places, np.arange(inputs) * channel


class _Col2imPlan(Plan):
    def __init__(self, problem: ConvProblem) -> None:
        self._cut, self._macs, self._flip = _Cut(problem), problem.macs, problem.op == "forward"
        self._accumulator = named_dtype(problem.accumulator_dtype)
        self._half = HALF_FORMATS.get(problem.dtype, 0)
        self._activation = activation_arguments(problem)
        self._no_bias = np.empty(0, self._accumulator)
        self._no_residual = np.empty((0,) * 6, named_dtype(problem.result_dtype))
        self._kernel = _compiled(problem.dtype, problem.result_dtype, problem.accumulator_dtype)
        self.pack_key = "col2im", int(self._cut.blocking["channels"][0])

    def pack(self, w: Any) -> Any:
        """The weight in the order of rows of products: (G, O / channels, KD, KH, channels, KW, C)."""
        groups, outputs, inputs, *kernel = w.shape
        taps = w[..., ::-1, ::-1, ::-1] if self._flip else w
        block = self._cut.blocking[0]
        blocks, channels = int(block["blocks"][0]), int(block["channels"])
        packed = np.zeros((groups, blocks, *kernel[:2], channels, kernel[2], inputs), self._accumulator)
        chunk = max(_PACKED // max(outputs * math.prod(kernel), 1), 16)
        for b, c in itertools.product(range(blocks), range(0, inputs, chunk)):
            some = taps[:, b * channels : (b + 1) * channels, c : c + chunk].transpose(0, 3, 4, 1, 5, 2)
            packed[:, b, :, :, : some.shape[3], :, c : c + chunk] = some
        return packed.reshape(groups, -1)

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        bias = self._no_bias if bias is None else bias
        residual = self._no_residual if residual is None else residual
        if self._half:
            x, y, residual = x.view(np.uint16), y.view(np.uint16), residual.view(np.uint16)
        cut = self._cut
        self._kernel(
            cut.tasks, self._macs, cut.scratch, x, packed, y, bias, residual, cut.geometry, cut.blocking,
            *cut.tables(x.strides), cut.rows_at, cut.taps_at, cut.lines_at, self._half, *self._activation,
        )  # fmt: skip


def _work(problem: ConvProblem) -> Iterable[Work]:
    cut = _Cut(problem)
    scattered = scattering(problem, cut.counts, "packed", "result")
    if problem.stride[2] > 1:
        scattered = {"scattered": scattered["scattered"] + cut.counts["result"]}
    yield Work(cut.tasks, cut.counts | scattered)


def _packing(problem: ConvProblem) -> Iterable[Work]:
    yield Work(1, {"gathered": math.prod(problem.w_shape)})


class Col2im(CpuAlgorithm):
    """One matrix product for all taps, folded into the result."""

    name = "col2im"
    running = CostModel(
        _work,
        {"product": 2.2e-11, "weight": 4.7e-10, "packed": 1.1e-10, "folded": 1.4e-10, "row": 2e-9, "result": 5.2e-10,
         "scattered": 1.3e-10, "task": 1.2e-6, "call": 1.35e-5},
    )  # fmt: skip
    packing = CostModel(_packing, {"gathered": 2.5e-9, "call": 1.9e-5})

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype.startswith("complex"):
            return "its register tile multiplies real numbers"
        if problem.padding_mode != "zeros":
            return f"it has no padding, and that of this problem is {problem.padding_mode}"
        if problem.op == "weight_grad":
            return "the kernel is as large as the image"
        if problem.op == "forward" and max(problem.stride) > 1:
            return "of a product with all pixels, a stride uses a few"
        if math.prod(problem.kernel) == max(problem.stride) == 1:
            return "the products of a single tap are the result"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        return _Cut(problem).scratch * named_dtype(problem.accumulator_dtype).itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _Col2imPlan(problem)


register(Col2im())
