"""Depthwise convolution, and grouped convolution with few channels in a group: staged in L1, tall tiles.

Between such channels there is no matrix product to be had, and a plane of 56 x 56 by 3 x 3 is done in less than a
microsecond: what counts is that nothing else takes as long. A task *stages* the input it needs into scratch memory,
padded with zeros, in whole vectors, laid out so that all reads are at unit stride from then on. Then the register tile
of `depthwise_tile` slides over it, once for each output channel, and writes the finished rows, bias added and clipped,
where the caller wants them. Only what cannot be written as vectors goes through scratch memory: the phases of a strided
input gradient (`depthwise_phases`), results with gaps or in half precision, smooth activations, a residual. Where
channels lie side by side in memory, vectors hold neighbouring groups (`depthwise_pixels`); elsewhere they lie along the
row (`depthwise_planes`).

Taps in one column of the kernel form vertical runs. With stride s and dilation d, output rows r and r + 1 read input
rows that are s apart, so the taps of a run must be s / d apart: 1 for the plain convolution, 2 for stride 2 (rows 0 and
2 of a 3 x 3 kernel form a run, row 1 is alone). If d does not divide s, every tap is a run of its own. Few rows of
results, 1-D convolution above all, turn the tile round to lie along the row. Where vectors lie along it too, they are
neighbours, and every tap a run of its own; where they hold groups, the runs of taps lie along the row as well.

The products of an output are summed run by run, first the runs of three taps, then of two, then of one, each in the
order (channel, kd, kh, kw), however the work is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.copying import SPLITS
from fastconv.cpu.costs import CostModel, Work, gathering
from fastconv.cpu.depthwise_cut import BLOCKING, Cut, grouped_in_vectors
from fastconv.cpu.depthwise_phases import Phases, alone, together
from fastconv.cpu.depthwise_pixels import convolve_pixels
from fastconv.cpu.depthwise_planes import convolve_planes
from fastconv.cpu.depthwise_tile import STRIP
from fastconv.cpu.elements import CLIP
from fastconv.cpu.jit import TaskKernel, array, contiguous_taps, integer, records
from fastconv.cpu.microkernel import padded
from fastconv.cpu.plan import PiecewisePlan
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import get_num_threads

_MOST_STAGED = 256 << 10  # half of L2: beyond, the algorithm declines

_planes_kernel, _pixels_kernel = TaskKernel(convolve_planes), TaskKernel(convolve_pixels)


@cache
def _compiled(dtype_name: str, result_name: str, accumulator_name: str, parts: int) -> Any:
    dtype, result, accumulator = map(named_dtype, (dtype_name, result_name, accumulator_name))
    vector, numbers = array(accumulator, 1, contiguous=True), array(np.dtype(np.int64), 1, contiguous=True)
    axes = 2 + parts.bit_length()  # of the weights: see `parts_of`
    return (_pixels_kernel if parts else _planes_kernel).compile(
        array(dtype, 6), array(accumulator, axes, contiguous=True), array(result, 6, readonly=False),
        vector, array(result, 6), records(GEOMETRY), records(BLOCKING), records(STRIP), numbers, integer, integer,
        vector, array(accumulator, 1, contiguous=True, readonly=False),
    )  # fmt: skip


def _parts(problem: ConvProblem) -> int:
    """Of how many channels the groups are, where vectors hold neighbouring output channels; elsewhere 0."""
    pieces = lower(problem)
    if not (problem.channels_last and pieces):
        return 0
    return grouped_in_vectors(pieces[0], named_dtype(problem.accumulator_dtype).itemsize)


def _phases(problem: ConvProblem) -> tuple[Phases, ...]:
    """What is computed in turn: each piece by itself where vectors hold channels, as its results have no gaps there."""
    return tuple(map(alone, lower(problem))) if _parts(problem) else together(lower(problem))


def _cut(problem: ConvProblem, phases: Phases) -> Cut:
    """How phases are cut; where vectors hold output channels, each of them counts as a group."""
    parts = _parts(problem)
    pixels, readable = parts > 0, parts == 1 and problem.dtype == problem.accumulator_dtype
    if pixels:
        phases = replace(phases, groups=phases.groups * phases.out_channels, out_channels=1)
    return Cut(phases, named_dtype(problem.accumulator_dtype).itemsize, pixels, readable=readable)


@lru_cache(maxsize=1024)
def _cuts(problem: ConvProblem) -> tuple[Cut, ...]:
    return tuple(_cut(problem, phases.flat or phases) for phases in _phases(problem))


class _DepthwisePlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem) -> None:
        self._parts = _parts(problem)
        self._phases = _phases(problem)
        super().__init__(problem, lambda phases: _cut(problem, phases), self._phases)
        self.pack_key = self.pack_key, self._parts
        self._no_bias = np.zeros(problem.result_channels, self._accumulator)
        self._kernel = _compiled(problem.dtype, problem.result_dtype, problem.accumulator_dtype, self._parts)

    def pack(self, w: Any) -> Any:
        """The taps of every group one after another, phase by phase; or of as many outputs as a vector holds."""
        return [
            self._arrange([contiguous_taps(phase, w, self._accumulator) for phase in phases.phases])
            for phases in self._phases
        ]

    def _arrange(self, taps: Sequence[Any]) -> Any:
        if not self._parts:
            flat = [of_phase.reshape(of_phase.shape[0], math.prod(of_phase.shape[1:])) for of_phase in taps]
            return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
        groups, out_channels, count = taps[0].shape
        lanes, outputs = padded(1, self._accumulator.itemsize), groups * out_channels
        slots = -(-outputs // lanes)
        whole = np.zeros((slots * lanes, count), self._accumulator)
        whole[:outputs] = taps[0].reshape(outputs, count)
        by_number = whole.reshape(slots, lanes // self._parts, self._parts, count).transpose(0, 3, 2, 1)
        axes = [1] * (self._parts.bit_length() - 1)  # see `parts_of`
        return np.ascontiguousarray(by_number).reshape(slots, count, lanes, *axes)

    def _run_piece(self, piece: Correlation, cut: Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        if self._parts and piece.out_channels > 1:
            y, residual = (_outputs_as_groups(a) for a in (y, residual))
        strips, table = cut.tables(x.strides, x.itemsize)
        self._kernel(cut.tasks, piece.macs, cut.scratch, x, weights, y, bias, residual, cut.geometry, cut.blocking,
                     strips, table, self._half, *self._activation)  # fmt: skip


def _outputs_as_groups(a: Any) -> Any:
    """See ``(N, G, O, …)``, whose channels are one axis of the caller's array, as ``(N, G * O, 1, …)``."""
    return a.reshape(a.shape[0], a.shape[1] * a.shape[2], 1, *a.shape[3:])


def _work(problem: ConvProblem) -> Iterable[Work]:
    pixels = _parts(problem) > 0
    contiguous = pixels == problem.channels_last
    converted = problem.dtype != problem.accumulator_dtype
    plain = contiguous and problem.activation.code <= CLIP
    woven = SPLITS if problem.result_dtype == problem.accumulator_dtype else ()
    for piece, cut in zip(_phases(problem), _cuts(problem), strict=True):
        in_vectors = pixels or not converted or piece.stride[2] <= 2
        in_vectors = in_vectors and contiguous and piece.padding_mode == "zeros"
        in_place = plain and not problem.residual and (pixels or piece.grid[1] in (1, *woven))
        counts = cut.counted | {
            "read": 0 if in_vectors else cut.counted["staged"],  # element by element, like those written
            "written": 0 if in_place else cut.counted["result"],
        }
        yield Work(cut.tasks, counts)


def _packing(problem: ConvProblem) -> Iterable[Work]:
    yield from gathering(problem)
    if _parts(problem):
        yield Work(1, {"arranged": sum(piece.groups * piece.reduction for piece in lower(problem))})


class Depthwise(CpuAlgorithm):
    """Depthwise and grouped convolution from staged planes, in tiles that share input down the rows."""

    name = "depthwise"
    running = CostModel(
        _work,
        {"product": 2.3e-11, "far read": 7.5e-11, "strip": 5e-8, "tile": 5e-9, "staged": 1e-10, "result": 8e-11,
         "read": 1.2e-9, "written": 7e-10, "task": 5e-8, "call": 1.2e-5},
        frozenset({"product", "far read"}),
    )  # fmt: skip
    packing = CostModel(_packing, {"gathered": 1e-9, "arranged": 1.4e-9, "call": 6e-6})

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.accumulator_dtype.startswith("complex"):
            return f"it computes real numbers and integers, not {problem.dtype}"
        staged = max((cut.staged for cut in _cuts(problem)), default=0)
        staged *= named_dtype(problem.accumulator_dtype).itemsize
        if staged > _MOST_STAGED:
            return f"a tile of results needs {staged >> 10} KiB of input in cache, more than {_MOST_STAGED >> 10}"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        scratch = max((cut.scratch for cut in _cuts(problem)), default=0)
        return scratch * named_dtype(problem.accumulator_dtype).itemsize * get_num_threads()

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _DepthwisePlan(problem)


register(Depthwise())
