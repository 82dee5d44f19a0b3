"""The weight gradient as an implicit GEMM of its own, for dense convolution of any stride, in either format.

    dw[(c, k), o] = sum over images n and positions t of  x[n, c, t * stride + k * dilation - offset] * dy[n, o, t]

As a correlation its kernel is as large as the image and its result as small as the weight: what other algorithms cut
into blocks is short here, and what they keep whole is long. As a matrix product it is an ordinary one, with the rows
(c, k), the columns o, and sums over all positions of all images. Rows of x that a window meets are staged once for all
its taps; ``x[...] = staged[places[c, k] + offsets[t]]``, so that a stride costs nothing. Planes that need no padding
and no conversion are read where they lie; channels last are turned into planes. dy is transposed as it is staged, which
puts output channels side by side, and the register tile of `microkernel` takes single numbers of x, each against whole
vectors of dy.

    for some rows of positions of an image:     288 positions
        stage x of some input channels          L2
        for a tile of output channels:
            stage dy, transposed                L1
            for a tile of (c, k):               sums in registers, all the positions

With one tap, dw^T is the gradient of a layer whose x and dy have traded places, and they do where fewer elements are
transposed then. Rows of sums are rows of dw in that case, and the last positions' are written there at once. Otherwise
sums stay in L2 until all positions are done, and are transposed as they are written. Where the weight is so small that
blocks of it would leave threads idle, the positions are split too, into parts that the problem alone determines; the
parts are added up in their order.

Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC 2018, section II.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.copying import copy_planes
from fastconv.cpu.costs import CostModel, Work
from fastconv.cpu.elements import extremes
from fastconv.cpu.jit import HALF_FORMATS, TaskKernel, array, inline, integer, records
from fastconv.cpu.microkernel import TILE_VECTORS, complete_pixels, odd_lines, padded, tile_pixels
from fastconv.cpu.panels import flat_memory
from fastconv.cpu.plan import is_flat
from fastconv.cpu.rows import read_planes, read_run, without_gaps
from fastconv.cpu.staging import STAGING, Table, Window, clear, grid, sees_padding, stage
from fastconv.cpu.transpose import transpose_plane
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores, get_num_threads

_POSITIONS = 288  # multiplied in one go: a tile of dy, and the rows of x that it meets, fit into L1
_ROWS = 288  # (c, k) of a task: so many products share what is staged of dy
_SUMS = 64 << 10  # of a task
_LEAST_ROWS = 128  # of a task, where blocks of x that is read in place keep all cores busy
_STAGED = 81 << 10  # elements of x, about
_WORTH_TURNING = 64  # output channels, or several taps, that use what is staged of x
_PARTS_BYTES = 16 << 20  # of parts, if there are more than one
_MOST_BYTES = 64 << 20  # of sums that have to be put in order

#: How the gradient is cut. A task has `inputs` input and `outputs` output channels, `blocks` of them and of groups, and
#: one of `parts` of the positions, which go by in steps of `rows` by `columns`, `steps` of them along depth, height and
#: width. A `panel` has one `tile` of outputs of dy, which come in lines of `line` elements; a task has so many `sums`,
#: and `real` says whether they are real numbers.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("inputs", "outputs", "parts", "rows", "columns", "staged")]
    + [(name, np.int64) for name in ("lanes", "tile", "panel", "line", "sums")]
    + [("blocks", np.int64, (2,)), ("steps", np.int64, (3,)), ("staging", STAGING)]
)


def _weight_gradient(  # type: ignore[no-untyped-def]
    first, last, x, gradient, parts, geometry, blocking, in_place, offsets, places, half, scratch
):  # fmt: skip
    """Compute tasks `first` to `last` of ``parts (parts, G, O, C * taps)`` from ``x (C, G, N, D, H, W)``.

    `gradient` is ``(G, O, N, TD, TH, TW)``; `geometry` is that of the correlation, whose kernel are the positions.
    """
    geo, block = geometry[0], blocking[0]
    mode, lanes, tile, line = geo.padding_mode, block.lanes, block.tile, block.line
    taps = geo.count[0] * geo.count[1] * geo.count[2]
    pitch = (block.outputs + lanes - 1) // lanes * lanes
    # The scratch memory: what is staged of x; a tile of dy, transposed; the same as it came; sums ((c, k), o); zeros.
    staged, rest = scratch[: block.staged], scratch[block.staged :]
    panel, rest = rest[: block.panel], rest[block.panel :]
    turning, sums = rest[: tile * line], rest[tile * line :]
    sums[block.sums : block.sums + tile] = 0
    lines, results = flat_memory(x, scratch) if in_place else staged, flat_memory(parts, scratch)
    lowest, highest = extremes(scratch)
    all_steps = geo.in_channels * block.steps[0] * block.steps[1] * block.steps[2]
    step_o, step_row = parts.strides[2] // parts.itemsize, parts.strides[3] // parts.itemsize

    for task in range(first, last):
        rest_of, o_block = divmod(task, block.blocks[1])
        rest_of, c_block = divmod(rest_of, block.blocks[0])
        part, g = divmod(rest_of, geo.groups)
        c_first, o_first = c_block * block.inputs, o_block * block.outputs
        inputs, outputs = min(block.inputs, geo.batch - c_first), min(block.outputs, geo.out_channels - o_first)
        n_rows = inputs * taps
        results_at = (part * parts.strides[0] + g * parts.strides[1]) // parts.itemsize
        results_at += o_first * step_o + c_first * taps * step_row
        direct = step_o == 1 and (outputs >= tile or outputs % lanes == 0)
        first_step, last_step = part * all_steps // block.parts, (part + 1) * all_steps // block.parts
        for number in range(first_step, last_step):
            rest_of, w_step = divmod(number, block.steps[2])
            rest_of, h_step = divmod(rest_of, block.steps[1])
            n, d = divmod(rest_of, block.steps[0])
            h_first, w_first = h_step * block.rows, w_step * block.columns
            rows, columns = min(block.rows, geo.kernel[1] - h_first), min(block.columns, geo.kernel[2] - w_first)
            positions = rows * columns
            from_d, from_h = d * geo.dilation[0] - geo.offset[0], h_first * geo.dilation[1] - geo.offset[1]
            from_w, lines_at = w_first * geo.dilation[2] - geo.offset[2], 0
            if in_place:
                lines_at = c_first * x.strides[0] + g * x.strides[1] + n * x.strides[2] + from_d * x.strides[3]
                lines_at = (lines_at + from_h * x.strides[4] + from_w * x.strides[5]) // x.itemsize
            else:
                clear(x.shape, from_d, geo.stride[0], from_h, from_w, block.staging, staged)
                stage(
                    x[c_first : c_first + inputs, g, n], from_d, geo.stride[0], from_h, from_w, mode, half,
                    block.staging, staged,
                )  # fmt: skip
            for o in range(0, outputs, tile):
                here = min(outputs - o, tile)
                width = (here + lanes - 1) // lanes * lanes
                o_from = o
                if direct:  # the last tile ends where outputs do
                    o_from, here = min(o, outputs - width), width
                _turn(
                    gradient[g, o_first + o_from : o_first + o_from + here, n, d], h_first, w_first, rows, columns,
                    half, panel[: positions * width], width, turning, line,
                )  # fmt: skip
                begin_at, begin_pitch = o, pitch
                if number == first_step:
                    begin_at, begin_pitch = block.sums, 0
                end, end_at, end_pitch = sums, o, pitch
                if direct and number + 1 == last_step:
                    end, end_at, end_pitch = results, results_at + o_from, step_row
                complete_pixels(
                    end, end_at, end_pitch, sums, begin_at, begin_pitch, lanes, 0, lines, lines_at, places, 0, offsets,
                    positions, panel, 0, n_rows, width // lanes, 1, lowest, highest, 0, 0,
                )  # fmt: skip

        if first_step == last_step:
            parts[part, g, o_first : o_first + outputs, c_first * taps : c_first * taps + n_rows] = 0
        elif not direct and step_row == 1:
            transpose_plane(sums, 0, pitch, results, results_at, step_o, n_rows, outputs)
        elif not direct:
            copy_planes(results, results_at, 0, step_row, sums, 0, 0, pitch * sums.itemsize, 1, n_rows, outputs)


@inline
def _turn(planes, h_first, w_first, rows, columns, half, panel, width, lines, line):  # type: ignore[no-untyped-def]
    """``panel[(r * columns + q) * width + o] = planes[o, h_first + r, w_first + q]``."""
    channels, positions = planes.shape[0], rows * columns
    if channels < width:
        panel[:] = 0
    alike = planes.itemsize == panel.itemsize
    if planes.strides[0] == planes.itemsize:
        if alike:
            begin = h_first * planes.strides[1] + w_first * planes.strides[2]
            copy_planes(
                panel, 0, columns * width, width, flat_memory(planes, panel), begin, planes.strides[1],
                planes.strides[2], rows, columns, channels,
            )  # fmt: skip
            return
        for r in range(rows):
            for q in range(columns):
                to = panel[(r * columns + q) * width :]
                read_run(without_gaps(planes[:, h_first + r, w_first + q]), 0, half, to[:channels])
        return
    # Planes are transposed where they lie, if positions lie side by side there.
    if alike and planes.strides[2] == planes.itemsize and (rows == 1 or planes.strides[1] == columns * planes.itemsize):
        begin = (h_first * planes.strides[1] + w_first * planes.strides[2]) // planes.itemsize
        pitch = planes.strides[0] // planes.itemsize
        transpose_plane(flat_memory(planes, panel), begin, pitch, panel, 0, width, channels, positions)
    else:
        read_planes(planes, h_first, 1, w_first, 1, 0, half, lines, line, columns, rows, columns)
        transpose_plane(lines, 0, line, panel, 0, width, channels, positions)


_kernel = TaskKernel(_weight_gradient)


@cache
def _compiled(dtype_name: str, accumulator_name: str) -> Any:
    dtype, accumulator = named_dtype(dtype_name), named_dtype(accumulator_name)
    table = array(np.dtype(np.int64), 1, contiguous=True)
    return _kernel.compile(
        array(dtype, 6), array(dtype, 6), array(accumulator, 4, readonly=False), records(GEOMETRY), records(BLOCKING),
        integer, table, table, integer, array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip


class _Cut:
    """How a weight gradient is cut into tasks."""

    def __init__(self, problem: ConvProblem, form: Correlation) -> None:
        self._correlation = c = form
        accumulator = _number(problem)
        padding, channels_last = sees_padding(c), problem.channels_last
        self.lanes = lanes = vector_bytes() // accumulator.itemsize
        self.tile = tile = TILE_VECTORS * lanes
        self.taps = taps = math.prod(c.count)
        # Positions side by side are in L1 for all tiles; channels side by side come from beyond it for each.
        turned = channels_last and problem.dtype == accumulator.name and c.padding_mode == "zeros"
        turned &= taps > 1 or c.out_channels >= _WORTH_TURNING
        self._readable = not padding and problem.dtype == problem.accumulator_dtype and not turned
        depth, height, width = (max(n, 1) for n in c.kernel)
        columns = -(-width // -(-width // _POSITIONS))
        rows = min(_POSITIONS // columns, height) if columns == width else 1
        rows = -(-height // -(-height // max(rows, 1)))
        window = Window((rows, columns), c.count, c.dilation, c.stride)
        cores, most = available_cores(), _ROWS
        if self._readable:
            most = min(most, max(-(-c.batch * taps // cores), _LEAST_ROWS))
        inputs = max(min(most // taps, _STAGED // window.elements, c.batch), 1)
        inputs = max(-(-c.batch // max(-(-c.batch // inputs), 1)), 1)
        outputs = max(min(_SUMS // (inputs * taps) // tile * tile, c.out_channels), tile)
        o_blocks = -(-c.out_channels // outputs)
        if o_blocks > 1:
            outputs = -(-c.out_channels // o_blocks // tile) * tile
        blocks = -(-c.batch // inputs), -(-c.out_channels // outputs)
        steps = depth, -(-height // rows), -(-width // columns)
        in_one = c.groups * math.prod(blocks)
        weight = c.groups * c.out_channels * c.batch * taps
        # Tasks are equally long: those that all cores share evenly are enough.
        wanted = 1 if in_one % cores == 0 else -(-2 * cores // in_one)
        self.parts = max(min(wanted, c.in_channels * math.prod(steps),
                             _PARTS_BYTES // max(weight * accumulator.itemsize, 1)), 1)  # fmt: skip
        self.tasks = in_one * self.parts
        side_by_side = channels_last and not turned
        staging = window.staging(inputs, accumulator.itemsize, channels_last=side_by_side, padded=padding)
        self._places, self._offsets = staging.offsets, staging.places  # positions are the taps here
        block = self.blocking = np.zeros(1, BLOCKING)
        block["inputs"], block["outputs"], block["parts"] = inputs, outputs, self.parts
        block["rows"], block["columns"], block["blocks"], block["steps"] = rows, columns, blocks, steps
        block["lanes"], block["tile"] = lanes, tile
        block["staging"], block["staged"] = staging.how, staging.elements
        positions = padded(rows * columns, accumulator.itemsize)
        block["panel"], block["line"] = panel, line = positions * tile, odd_lines(positions, accumulator.itemsize)
        block["sums"] = sums = inputs * taps * padded(outputs, accumulator.itemsize)
        self.scratch = staging.elements + panel + tile * line + sums + tile
        self.tables = lru_cache(maxsize=8)(self._tables)
        self.work = self._count(c, window.elements)

    def _tables(self, strides: tuple[int, ...], itemsize: int) -> tuple[bool, Table, Table]:
        """Whether x of those strides is read where it lies, and where its positions and its rows (c, k) then are."""
        c, block = self._correlation, self.blocking[0]
        steps, odd = zip(*(divmod(stride, itemsize) for stride in strides), strict=True)
        if not self._readable or any(odd):
            return False, self._offsets, self._places
        offsets = grid((block["rows"], block["columns"]), (c.dilation[1] * steps[4], c.dilation[2] * steps[5]))
        taps = tuple(step * stride for step, stride in zip(steps[3:], c.stride, strict=True))
        return True, offsets, grid((block["inputs"], *c.count), (steps[0], *taps))

    def _count(self, c: Correlation, window: int) -> Work:
        block = self.blocking[0]
        steps = c.in_channels * math.prod(map(int, block["steps"])) * c.groups
        c_blocks, o_blocks = map(int, block["blocks"])
        lanes_used = -(-c.out_channels // self.lanes) * self.lanes
        rows = c.batch * self.taps
        counts = {
            "product": c.groups * c.in_channels * math.prod(c.kernel) * rows * lanes_used,
            "tile": steps * (rows / tile_pixels()) * -(-c.out_channels // self.tile),
            "staged": 0 if self._readable else steps * o_blocks * c.batch * window,
            "gradient": c.groups * c.in_channels * math.prod(c.kernel) * c_blocks * lanes_used,
            "result": self.parts * c.groups * rows * c.out_channels,
            "task": self.tasks,
        }
        return Work(self.tasks, counts)


_Form = tuple[Correlation, _Cut]


class _WeightGradientPlan(Plan):
    pack_key = "as it is"

    def __init__(self, problem: ConvProblem) -> None:
        self._accumulator = _number(problem)
        self._complex = problem.dtype.startswith("complex")
        self._half = HALF_FORMATS.get(problem.dtype, 0)
        self._pieces = [
            (piece, _exchanged(piece), [(form, _Cut(problem, form)) for form in _forms(piece)])
            for piece in lower(problem)
        ]
        self._kernel = _compiled(self._accumulator.name if self._complex else problem.dtype, self._accumulator.name)

    def pack(self, w: Any) -> Any:
        """The output gradient as it is: it is transposed as it is staged."""
        return w

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        weight = y.transpose(1, 2, 0, 3, 4, 5)
        operands = (x.view(np.uint16), packed.view(np.uint16)) if self._half else (x, packed)
        for piece, exchanged, forms in self._pieces:
            # Results go where they belong at once if the taps of an output channel lie side by side there.
            if forms[0][1].parts == 1 and residual is None and y.dtype == self._accumulator and _in_order(weight):
                self._add_up(piece, exchanged, forms, *operands, weight)
                continue
            with np.errstate(all="ignore"):  # NaN and infinity are data
                sums = partial(self._add_up, piece, exchanged, forms)
                total = _complex_sums(sums, x, packed) if self._complex else sums(*operands)
                total = total.reshape(weight.shape)
                weight[...] = total if residual is None else total + residual.transpose(1, 2, 0, 3, 4, 5)

    def _add_up(
        self, piece: Correlation, exchanged: bool, forms: list[_Form], x: Any, gradient: Any, weight: Any = None
    ) -> Any:
        """The sums ``(G, O, C * taps)``, written into `weight` if that is given."""
        if exchanged:
            (depth, height, width), (d, h, w) = piece.kernel, piece.dilation
            x = x[..., : depth * d : d, : height * h : h, : width * w : w]
            x, gradient = gradient.transpose(1, 0, 2, 3, 4, 5), x.transpose(1, 0, 2, 3, 4, 5)
        flat = len(forms) > 1 and is_flat(x) and is_flat(gradient)
        form, cut = forms[-1 if flat else 0]
        if flat:
            x, gradient = (a.reshape(*a.shape[:3], *form.size) for a in (x, gradient))
        shape = piece.groups, piece.out_channels, piece.batch * math.prod(piece.count)
        if weight is None:
            parts = recycling.empty((cut.parts, *shape), self._accumulator)
        else:
            strides = 0, *weight.strides[:2], weight.itemsize
            parts = np.lib.stride_tricks.as_strided(weight, (1, *shape), strides)
        sums = parts.transpose(0, 1, 3, 2) if exchanged else parts
        self._kernel(cut.tasks, form.macs, cut.scratch, x, gradient, sums, form.geometry, cut.blocking,
                     *cut.tables(x.strides, x.itemsize), self._half)  # fmt: skip
        return parts.sum(axis=0) if weight is None else None


def _complex_sums(sums: Callable[[Any, Any], Any], x: Any, gradient: Any) -> Any:
    """Four real products make a complex one."""
    real = sums(x.real, gradient.real) - sums(x.imag, gradient.imag)
    imaginary = sums(x.real, gradient.imag) + sums(x.imag, gradient.real)
    return real + 1j * imaginary


def _exchanged(piece: Correlation) -> bool:
    """Whether x and dy trade places: with one tap, dw^T is the gradient of a layer that has them exchanged.

    It costs, in multiply-adds of a vector for each position, the products and the elements that are transposed.
    """
    if piece.count != (1, 1, 1) or sees_padding(piece):
        return False
    lanes, positions = vector_bytes() // 4, max(math.prod(piece.kernel) * piece.in_channels, 1)

    def cost(rows: int, across: int) -> int:
        return rows * -(-across // lanes) + across * -(-rows // _ROWS)

    turned = piece.batch * piece.out_channels / positions
    return cost(piece.out_channels, piece.batch) < cost(piece.batch, piece.out_channels) + turned


def _forms(piece: Correlation) -> list[Correlation]:
    """The piece as it is computed; and, if each position meets the one input at its own place, that of one row."""
    if _exchanged(piece):
        piece = replace(
            piece, batch=piece.out_channels, out_channels=piece.batch, size=piece.kernel, dilation=(1, 1, 1)
        )  # fmt: skip
    alone = piece.count == piece.dilation == (1, 1, 1) and piece.offset == (0, 0, 0) and piece.size == piece.kernel
    row = (1, 1, math.prod(piece.size))
    return [piece, replace(piece, size=row, kernel=row)] if alone and piece.size != row else [piece]


def _in_order(weight: np.ndarray[Any, Any]) -> bool:
    """Whether the last four axes of an array lie in memory like those of a contiguous one."""
    expected = weight.itemsize
    for length, stride in zip(weight.shape[:1:-1], weight.strides[:1:-1], strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


def _number(problem: ConvProblem) -> np.dtype[Any]:
    """The dtype of sums: of the parts of complex ones."""
    return np.empty(0, named_dtype(problem.accumulator_dtype)).real.dtype


def _work(problem: ConvProblem) -> Iterable[Work]:
    # The products of complex numbers are counted by the cost model. All else comes four times too, and parts, which
    # do not lie side by side, are read a third as fast.
    times = {"product": 1, "staged": 12, "gradient": 12} if problem.dtype.startswith("complex") else {}
    for piece in lower(problem):
        work = _Cut(problem, _forms(piece)[-1]).work
        yield Work(work.tasks, {kind: times.get(kind, 4 if times else 1) * n for kind, n in work.counts.items()})


class WeightGradient(CpuAlgorithm):
    """Rows of the input times transposed rows of the output gradient, over all positions."""

    name = "weight_gradient"
    running = CostModel(
        _work,
        {"product": 2e-11, "tile": 5.3e-8, "staged": 3.3e-10, "gradient": 3.6e-10, "result": 4e-10, "task": 2.1e-7,
         "call": 1.6e-5},
    )  # fmt: skip
    packing = CostModel(lambda problem: (), {"call": 1e-6})

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.op != "weight_grad":
            return "it computes the gradients of weights alone"
        if problem.activation.kind != "none":
            return f"it applies no activation to a gradient, and {problem.activation.kind} is asked for"
        if not _in_place(problem) and _parts_bytes(problem) > _MOST_BYTES:
            return f"the sums, which it puts in order at the end, take {_parts_bytes(problem) >> 20} MiB"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        cuts = [_Cut(problem, form) for piece in lower(problem) for form in _forms(piece)]
        scratch = max((cut.scratch for cut in cuts), default=0) * _number(problem).itemsize * get_num_threads()
        parts = max((cut.parts for cut in cuts), default=1)
        return scratch + (0 if parts == 1 and _in_place(problem) else _parts_bytes(problem))

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _WeightGradientPlan(problem)


def _in_place(problem: ConvProblem) -> bool:
    """Whether the gradient is in the order, and of the dtype, of its sums."""
    in_order = problem.weight_order == "OI*" and not problem.flip_kernel
    return in_order and not problem.residual and _number(problem).name == problem.result_dtype


def _parts_bytes(problem: ConvProblem) -> int:
    """Bytes of all parts of the sums, and of the four sums that make complex ones."""
    parts = max((_Cut(problem, form).parts for piece in lower(problem) for form in _forms(piece)), default=0)
    parts += 4 if problem.dtype.startswith("complex") else 0
    return parts * math.prod(problem.w_shape) * named_dtype(problem.accumulator_dtype).itemsize


register(WeightGradient())
