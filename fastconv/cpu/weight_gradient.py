"""The weight gradient as an implicit GEMM of its own, for dense convolution of any stride, in either format.

    dw[(c, k), o] = sum over images n and positions t of  x[n, c, t * stride + k * dilation - offset] * dy[n, o, t]

As a correlation its kernel is as large as the image and its result as small as the weight: what other algorithms cut
into blocks is short here, and what they keep whole is long. As a matrix product it is an ordinary one, with the rows
(c, k), the columns o, and sums over all positions of all images. Rows of x that a window meets are staged once for all
its taps; ``x[...] = staged[places[c, k] + offsets[t]]``, so that a stride costs nothing. dy is transposed as it is
staged, which puts output channels side by side, and the register tile of `microkernel` takes single numbers of x, each
against whole vectors of dy.

    for some rows of positions of an image:     256 positions
        stage x of some input channels          L2
        for a tile of output channels:
            stage dy, transposed                L1
            for a tile of (c, k):               sums in registers, all the positions

Sums stay in L2 until all positions are done, and are transposed as they are written. Where the weight is so small that
blocks of it would leave threads idle, the positions are split too, into parts that the problem alone determines; the
parts are added up in their order.

Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC 2018, section II.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.costs import CostModel, Work
from fastconv.cpu.jit import HALF_FORMATS, TaskKernel, array, generic, integer, records
from fastconv.cpu.microkernel import TILE_VECTORS, multiply_pixels, odd_lines, padded, tile_pixels
from fastconv.cpu.plan import is_flat
from fastconv.cpu.rows import read_row, read_run, without_gaps
from fastconv.cpu.staging import STAGING, Window, sees_padding, stage
from fastconv.cpu.transpose import transpose_block
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores, get_num_threads

_POSITIONS = 256  # multiplied in one go: a tile of dy fills half of L1
_ROWS = 288  # (c, k) of a task: so many products share what is staged of dy
_SUMS = 64 << 10  # of a task
_STAGED = 64 << 10  # elements of x, about
_PARTS_BYTES = 16 << 20  # of parts, if there are more than one
_MOST_BYTES = 64 << 20  # of sums that have to be put in order

#: How the gradient is cut. A task has `inputs` input and `outputs` output channels, `blocks` of them and of groups, and
#: one of `parts` of the positions, which go by in steps of `rows` by `columns`, `steps` of them along depth, height and
#: width. A `panel` has one `tile` of outputs of dy, which come in lines of `line` elements.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("inputs", "outputs", "parts", "rows", "columns", "staged")]
    + [(name, np.int64) for name in ("lanes", "tile", "panel", "line")]
    + [("blocks", np.int64, (2,)), ("steps", np.int64, (3,)), ("staging", STAGING)]
)


def _weight_gradient(  # type: ignore[no-untyped-def]
    first, last, x, gradient, parts, geometry, blocking, offsets, places, tile_rows, half, scratch
):  # fmt: skip
    """Compute tasks `first` to `last` of ``parts (parts, G, O, C * taps)`` from ``x (C, G, N, D, H, W)``.

    `gradient` is ``(G, O, N, TD, TH, TW)``; `geometry` is that of the correlation, whose kernel are the positions.
    """
    geo, block = geometry[0], blocking[0]
    mode, lanes, tile, line = geo.padding_mode, block.lanes, block.tile, block.line
    taps = geo.count[0] * geo.count[1] * geo.count[2]
    pitch = (block.outputs + lanes - 1) // lanes * lanes
    # The scratch memory: what is staged of x; a tile of dy, transposed; the same as it came; sums ((c, k), o).
    staged, rest = scratch[: block.staged], scratch[block.staged :]
    panel, lines, sums = rest[: block.panel], rest[block.panel : block.panel + lanes * line], rest[block.panel :]
    sums = sums[lanes * line :]
    all_steps = geo.in_channels * block.steps[0] * block.steps[1] * block.steps[2]

    for task in range(first, last):
        rest_of, o_block = divmod(task, block.blocks[1])
        rest_of, c_block = divmod(rest_of, block.blocks[0])
        part, g = divmod(rest_of, geo.groups)
        c_first, o_first = c_block * block.inputs, o_block * block.outputs
        inputs, outputs = min(block.inputs, geo.batch - c_first), min(block.outputs, geo.out_channels - o_first)
        n_rows = inputs * taps
        sums[: n_rows * pitch] = 0
        for number in range(part * all_steps // block.parts, (part + 1) * all_steps // block.parts):
            rest_of, w_step = divmod(number, block.steps[2])
            rest_of, h_step = divmod(rest_of, block.steps[1])
            n, d = divmod(rest_of, block.steps[0])
            h_first, w_first = h_step * block.rows, w_step * block.columns
            rows, columns = min(block.rows, geo.kernel[1] - h_first), min(block.columns, geo.kernel[2] - w_first)
            positions = rows * columns
            if block.staging.padded:
                staged[:] = 0
            stage(
                x[c_first : c_first + inputs, g, n], d * geo.dilation[0] - geo.offset[0], geo.stride[0],
                h_first * geo.dilation[1] - geo.offset[1], w_first * geo.dilation[2] - geo.offset[2],
                mode, half, block.staging, staged,
            )  # fmt: skip
            for o in range(0, outputs, tile):
                here = min(outputs - o, tile)
                width = (here + lanes - 1) // lanes * lanes
                channels = gradient[g, o_first + o : o_first + o + here, n, d]
                if channels.strides[0] == channels.itemsize:
                    if here < width:
                        panel[:] = 0
                    for r in range(rows):
                        for q in range(columns):
                            to = panel[(r * columns + q) * width :]
                            read_run(without_gaps(channels[:, h_first + r, w_first + q]), 0, half, to[:here])
                else:
                    # Whole squares are transposed where they lie, if positions lie side by side there.
                    in_order = (
                        gradient.itemsize == panel.itemsize
                        and channels.strides[2] == channels.itemsize
                        and (rows == 1 or channels.strides[1] == columns * channels.itemsize)
                    )
                    begin = g * gradient.strides[0] + (o_first + o) * gradient.strides[1] + n * gradient.strides[2]
                    begin += d * gradient.strides[3] + h_first * gradient.strides[4]
                    begin = begin // gradient.itemsize + w_first
                    step = gradient.strides[1] // gradient.itemsize
                    for v in range(0, width, lanes):
                        squares = positions // lanes * lanes if in_order and v + lanes <= here else 0
                        for t in range(0, squares, lanes):
                            _turn(gradient, begin + v * step + t, step, panel, t * width + v, width)
                        if squares == positions:
                            continue
                        for i in range(lanes):
                            if v + i >= here:
                                lines[i * line : i * line + positions] = 0
                                continue
                            for r in range(squares // columns, rows):
                                at = i * line + r * columns
                                read_row(channels[v + i, h_first + r], w_first, 1, 0, half, lines[at : at + columns])
                        for t in range(squares, positions, lanes):
                            transpose_block(lines, t, line, panel, t * width + v, width)
                row = 0
                tiles = (n_rows + tile_rows - 1) // tile_rows
                for i in range(tiles):
                    some = (n_rows - row) // (tiles - i)
                    at = row * pitch + o
                    multiply_pixels(
                        sums, at, pitch, at, pitch, staged, places, row, offsets, positions, panel, 0, some,
                        width // lanes,
                    )  # fmt: skip
                    row += some

        step_o = parts.strides[2] // parts.itemsize
        begin = part * parts.strides[0] + g * parts.strides[1] + o_first * parts.strides[2]
        begin = begin // parts.itemsize + c_first * taps
        whole_o, whole_rows = outputs // lanes * lanes, n_rows // lanes * lanes
        for o in range(0, whole_o, lanes):
            for row in range(0, whole_rows, lanes):
                transpose_block(sums, row * pitch + o, pitch, parts, begin + o * step_o + row, step_o)
        for o in range(outputs):
            for row in range(whole_rows if o < whole_o else 0, n_rows):
                parts[part, g, o_first + o, c_first * taps + row] = sums[row * pitch + o]


@generic
def _turn(source: Any, source_at: Any, source_pitch: Any, target: Any, target_at: Any, target_pitch: Any) -> Any:
    """Transpose a square of the caller's array, if its elements are numbers as they are added up."""
    if source.dtype != target.dtype:
        return lambda source, source_at, source_pitch, target, target_at, target_pitch: None

    def turn(source, source_at, source_pitch, target, target_at, target_pitch):  # type: ignore[no-untyped-def]
        transpose_block(source, source_at, source_pitch, target, target_at, target_pitch)

    return turn


_kernel = TaskKernel(_weight_gradient)


@cache
def _compiled(dtype_name: str, accumulator_name: str) -> Any:
    dtype, accumulator = named_dtype(dtype_name), named_dtype(accumulator_name)
    table = array(np.dtype(np.int64), 1, contiguous=True)
    return _kernel.compile(
        array(dtype, 6), array(dtype, 6), array(accumulator, 4, readonly=False), records(GEOMETRY),
        records(BLOCKING), table, table, integer, integer, array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip


class _Cut:
    """How a weight gradient is cut into tasks."""

    def __init__(self, correlation: Correlation, accumulator: np.dtype[Any], channels_last: bool) -> None:
        c = correlation
        self.lanes = lanes = vector_bytes() // accumulator.itemsize
        self.tile = tile = TILE_VECTORS * lanes
        self.taps = taps = math.prod(c.count)
        depth, height, width = (max(n, 1) for n in c.kernel)
        columns = -(-width // -(-width // _POSITIONS))
        rows = min(_POSITIONS // columns, height) if columns == width else 1
        rows = -(-height // -(-height // max(rows, 1)))
        window = Window((rows, columns), c.count, c.dilation, c.stride)
        inputs = max(min(_ROWS // taps, _STAGED // window.elements, c.batch), 1)
        inputs = max(-(-c.batch // max(-(-c.batch // inputs), 1)), 1)
        outputs = max(min(_SUMS // (inputs * taps) // tile * tile, c.out_channels), tile)
        o_blocks = -(-c.out_channels // outputs)
        if o_blocks > 1:
            outputs = -(-c.out_channels // o_blocks // tile) * tile
        blocks = -(-c.batch // inputs), -(-c.out_channels // outputs)
        steps = depth, -(-height // rows), -(-width // columns)
        in_one = c.groups * math.prod(blocks)
        weight = c.groups * c.out_channels * c.batch * taps
        self.parts = max(min(-(-2 * available_cores() // max(in_one, 1)), c.in_channels * math.prod(steps),
                             _PARTS_BYTES // max(weight * accumulator.itemsize, 1)), 1)  # fmt: skip
        self.tasks = in_one * self.parts
        staging = window.staging(inputs, accumulator.itemsize, channels_last=channels_last, padded=sees_padding(c))
        self.places, self.offsets = staging.offsets, staging.places  # positions are the taps here
        block = self.blocking = np.zeros(1, BLOCKING)
        block["inputs"], block["outputs"], block["parts"] = inputs, outputs, self.parts
        block["rows"], block["columns"], block["blocks"], block["steps"] = rows, columns, blocks, steps
        block["lanes"], block["tile"] = lanes, tile
        block["staging"], block["staged"] = staging.how, staging.elements
        positions = padded(rows * columns, accumulator.itemsize)
        block["panel"], block["line"] = panel, line = positions * tile, odd_lines(positions, accumulator.itemsize)
        sums = inputs * taps * padded(outputs, accumulator.itemsize)
        self.scratch = staging.elements + panel + lanes * line + sums
        self.work = self._count(c, window.elements)

    def _count(self, c: Correlation, window: int) -> Work:
        block = self.blocking[0]
        steps = c.in_channels * math.prod(map(int, block["steps"])) * c.groups
        c_blocks, o_blocks = map(int, block["blocks"])
        lanes_used = -(-c.out_channels // self.lanes) * self.lanes
        rows = c.batch * self.taps
        counts = {
            "product": c.groups * c.in_channels * math.prod(c.kernel) * rows * lanes_used,
            "tile": steps * (rows / tile_pixels()) * -(-c.out_channels // self.tile),
            "staged": steps * o_blocks * c.batch * window,
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
        self._pieces = [[(form, _cut(problem, form)) for form in _forms(piece)] for piece in lower(problem)]
        self._kernel = _compiled(self._accumulator.name if self._complex else problem.dtype, self._accumulator.name)

    def pack(self, w: Any) -> Any:
        """The output gradient as it is: it is transposed as it is staged."""
        return w

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        weight = y.transpose(1, 2, 0, 3, 4, 5)
        operands = (x.view(np.uint16), packed.view(np.uint16)) if self._half else (x, packed)
        for forms in self._pieces:
            # Results go where they belong at once if the taps of an output channel lie side by side there.
            if forms[0][1].parts == 1 and residual is None and y.dtype == self._accumulator and _in_order(weight):
                self._add_up(forms, *operands, weight)
                continue
            with np.errstate(all="ignore"):  # NaN and infinity are data
                total = self._complex_sums(forms, x, packed) if self._complex else self._add_up(forms, *operands)
                total = total.reshape(weight.shape)
                weight[...] = total if residual is None else total + residual.transpose(1, 2, 0, 3, 4, 5)

    def _add_up(self, forms: list[_Form], x: Any, gradient: Any, weight: Any = None) -> Any:
        """The sums ``(G, O, C * taps)``, written into `weight` if that is given."""
        flat = len(forms) > 1 and is_flat(x) and is_flat(gradient)
        piece, cut = forms[-1 if flat else 0]
        if flat:
            x, gradient = (a.reshape(*a.shape[:3], *piece.size) for a in (x, gradient))
        shape = piece.groups, piece.out_channels, piece.batch * cut.taps
        if weight is None:
            parts = recycling.empty((cut.parts, *shape), self._accumulator)
        else:
            strides = 0, *weight.strides[:2], weight.itemsize
            parts = np.lib.stride_tricks.as_strided(weight, (1, *shape), strides)
        self._kernel(cut.tasks, piece.macs, cut.scratch, x, gradient, parts, piece.geometry, cut.blocking, cut.offsets,
                     cut.places, tile_pixels(), self._half)  # fmt: skip
        return parts.sum(axis=0) if weight is None else None

    def _complex_sums(self, forms: list[_Form], x: Any, gradient: Any) -> Any:
        """Four real products make a complex one."""
        real = self._add_up(forms, x.real, gradient.real) - self._add_up(forms, x.imag, gradient.imag)
        imaginary = self._add_up(forms, x.real, gradient.imag) + self._add_up(forms, x.imag, gradient.real)
        return real + 1j * imaginary


def _forms(piece: Correlation) -> list[Correlation]:
    """The piece; and, if each position meets the one input at its own place, that of images laid out as one row."""
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


def _cut(problem: ConvProblem, form: Correlation) -> _Cut:
    return _Cut(form, _number(problem), problem.channels_last)


def _work(problem: ConvProblem) -> Iterable[Work]:
    # The products of complex numbers are counted by the cost model; all else comes four times too.
    times = 4 if problem.dtype.startswith("complex") else 1
    for piece in lower(problem):
        work = _cut(problem, _forms(piece)[-1]).work
        yield Work(work.tasks, {kind: n if kind == "product" else times * n for kind, n in work.counts.items()})


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
        cuts = [_cut(problem, form) for piece in lower(problem) for form in _forms(piece)]
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
    parts = max((_cut(problem, form).parts for piece in lower(problem) for form in _forms(piece)), default=0)
    parts += 4 if problem.dtype.startswith("complex") else 0
    return parts * math.prod(problem.w_shape) * named_dtype(problem.accumulator_dtype).itemsize


register(WeightGradient())
