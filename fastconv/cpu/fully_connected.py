"""Fully connected layers: outputs that see all of their image are products of a matrix and vectors.

An image is a vector, laid out in the order of the weights, and so are all taps of an output:

    sums[n, o] = sum over t of  weights[o, t] * images[n, t]

With few images each weight is used so seldom that the rate at which weights come from memory is all that matters. They
are read where they lie, nothing is packed; a task takes some outputs, whose rows `row_products` reads side by side, and
multiplies all its images with some taps of them while these are in L1.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.costs import CostModel, Work, gathering, scattering
from fastconv.cpu.jit import TaskKernel, array, contiguous_taps, integer
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.row_products import multiply_rows, rows_at_once
from fastconv.cpu.rows import add_row, write_row
from fastconv.lowering import Correlation, lower
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import get_num_threads

_PART = 64 << 10  # bytes of weights of a task, or a few rows: a task costs little beside reading them
_OUTPUTS, _IMAGES = 512, 64  # of a task, at most
_RUN = 256  # taps of some rows that stay in L1, with those of images, while these are multiplied with them


def _fully_connected(  # type: ignore[no-untyped-def]
    first, last, images, weights, y, bias, residual, outputs, rows, half, activation, parameters, scratch
):
    """Compute tasks `first` to `last`, of `outputs` channels each, a multiple of `rows`.

    Of ``images (N, G, T)`` and ``weights (G, O, T)`` taps lie side by side.
    """
    groups, channels, taps, itemsize = weights.shape[0], weights.shape[1], weights.shape[2], weights.itemsize
    blocks = -(-channels // outputs)
    row, step = weights.strides[1] // itemsize, images.strides[0] // itemsize
    for task in range(first, last):
        rest, block = divmod(task, blocks)
        some, g = divmod(rest, groups)
        n_first, o_first = some * _IMAGES, block * outputs
        here, count = min(outputs, channels - o_first), min(_IMAGES, images.shape[0] - n_first)
        for n in range(count):
            for o in range(here):
                scratch[n * outputs + o] = bias[g * channels + o_first + o] if bias.shape[0] > 0 else 0
        run = _RUN if count > 1 else taps
        for o in range(0, here, rows):
            lines = (g * weights.strides[0]) // itemsize + (o_first + o) * row
            for t in range(0, taps, max(run, 1)):
                for n in range(count):
                    multiply_rows(
                        weights, lines + t, row, min(rows, here - o), min(run, taps - t), images,
                        (n_first + n) * step + g * images.strides[1] // itemsize + t, scratch, n * outputs + o,
                    )  # fmt: skip
        for n in range(count):
            sums, channel = scratch[n * outputs : n * outputs + here], slice(o_first, o_first + here)
            if residual.shape[0] > 0:
                add_row(sums, residual[n_first + n, g, channel, 0, 0, 0], half)
            write_row(
                sums, sums.dtype.type(0), activation, parameters, half, y[n_first + n, g, channel, 0, 0, 0]
            )  # fmt: skip


_kernel = TaskKernel(_fully_connected)


@cache
def _compiled(name: str) -> Any:
    dtype = named_dtype(name)
    vector, matrices = array(dtype, 1, contiguous=True), array(dtype, 3, contiguous=True)
    return _kernel.compile(
        matrices, matrices, array(dtype, 6, readonly=False), vector, array(dtype, 6), *[integer] * 4, vector,
        array(dtype, 1, contiguous=True, readonly=False),
    )  # fmt: skip


class _Cut(NamedTuple):
    """Into how many tasks, of how many outputs, what lies between sums and needs how many elements."""

    tasks: int
    outputs: int
    scratch: int


def _cut(piece: Correlation, itemsize: int) -> _Cut:
    rows = rows_at_once(itemsize)
    parts = max(piece.out_channels * piece.reduction * itemsize // _PART, -(-piece.out_channels // _OUTPUTS), 1)
    outputs = -(-max(-(-piece.out_channels // parts), 1) // rows) * rows
    blocks = piece.groups * -(-piece.out_channels // outputs)
    return _Cut(blocks * -(-piece.batch // _IMAGES), outputs, min(piece.batch, _IMAGES) * outputs)


class _FullyConnectedPlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, lambda piece: _cut(piece, self._accumulator.itemsize))
        self._rows = rows_at_once(self._accumulator.itemsize)
        self._kernel = _compiled(problem.dtype)

    def pack(self, w: Any) -> Any:
        """For each piece, its taps as a contiguous (G, O, taps) matrix: as they lie, if that is their order."""
        return [contiguous_taps(piece, w, self._accumulator) for piece in self._pieces]

    def _run_piece(self, piece: Correlation, cut: _Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        images = np.ascontiguousarray(x).reshape(x.shape[0], piece.groups, piece.reduction)
        self._kernel(cut.tasks, piece.macs, cut.scratch, images, weights, y, bias, residual, cut.outputs, self._rows,
                     self._half, *self._activation)  # fmt: skip


def sees_all(piece: Correlation) -> bool:
    """Whether an image has one output, which sees all of it once."""
    dense = all(d == 1 or k == 1 for d, k in zip(piece.dilation, piece.kernel, strict=True))
    return piece.positions == 1 and piece.kernel == piece.size and piece.offset == (0, 0, 0) and dense


def _work(problem: ConvProblem) -> Iterable[Work]:
    itemsize = named_dtype(problem.accumulator_dtype).itemsize
    for piece in lower(problem):
        tasks, channels = _cut(piece, itemsize).tasks, piece.groups * piece.out_channels
        weights, results = channels * piece.reduction, piece.batch * channels
        counts = {
            "product": piece.macs,
            "weight": weights * -(-piece.batch // _IMAGES),
            "rows": results / rows_at_once(itemsize) * -(-piece.reduction // _RUN),
            "result": results,
            "task": tasks,
        }
        images = {"image": piece.batch * piece.groups * piece.reduction}
        yield Work(tasks, counts | scattering(problem, images, "image"))


class FullyConnected(CpuAlgorithm):
    """Rows of weights, as they lie, times images."""

    name = "fully_connected"
    running = CostModel(
        _work,
        {
            "product": 3.3e-11, "weight": 6e-11, "rows": 2e-9, "result": 1.3e-9, "scattered": 1.2e-9, "task": 5e-7,
            "call": 4e-6,
        },
    )  # fmt: skip
    packing = CostModel(gathering, {"gathered": 3.5e-9, "call": 1.6e-6})

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype not in ("float32", "float64"):
            return f"its rows are of float32 or float64, not of {problem.dtype}"
        if not all(map(sees_all, lower(problem))):
            return "outputs see only a part of their image, or padding"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        itemsize = named_dtype(problem.accumulator_dtype).itemsize
        scratch = max((_cut(piece, itemsize).scratch for piece in lower(problem)), default=0)
        return scratch * itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _FullyConnectedPlan(problem)


register(FullyConnected())
