"""``direct``: correlation by its definition, one output a thread or a warp. Takes every problem."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from fastconv.gpu.algorithm import GpuAlgorithm, launch_linear
from fastconv.gpu.arguments import EPILOGUE, VIEW, channels_fastest, epilogue, geometry, record, view
from fastconv.gpu.runtime import KernelSpec, dtype_defines
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import Machine
from fastconv.problem import DTYPES, ConvProblem
from fastconv.registry import Plan, register

DIRECT = np.dtype(
    [
        ("x", VIEW),
        ("w", VIEW),
        ("y", VIEW),
        ("geometry", GEOMETRY),
        ("epilogue", EPILOGUE),
        ("channels_fastest", np.int64),
    ]
)

_WARP = 32

# Below this many outputs the threads of a large GPU are not all busy, and above this length a warp's lanes are.
_FEW_OUTPUTS = 1 << 16
_LONG_SUM = 2 * _WARP

# Estimated, not measured: the share of the peak that one multiply-add with two loads reaches.
_EFFICIENCY = 0.03


class DirectPlan(Plan):
    """Runs one piece after another on the arrays as they are."""

    pack_key = "as it is"

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem

    def pack(self, w: Any) -> Any:
        return w

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        for piece in lower(self.problem):
            run_piece(self.problem, piece, x, piece.weight_view(packed), y, bias, residual)


def run_piece(
    problem: ConvProblem, piece: Correlation, x: Any, weight: Any, y: Any, bias: Any = None, residual: Any = None
) -> None:
    """Compute one piece from its own ``(G, O, C, KD, KH, KW)`` weight."""
    target = piece.target_view(y)
    if not target.size:
        return
    entry, threads = _shape(piece)
    params = record(
        DIRECT,
        x=view(x),
        w=view(weight),
        y=view(target),
        geometry=geometry(piece),
        epilogue=epilogue(problem, bias, None if residual is None else piece.target_view(residual)),
        channels_fastest=channels_fastest(target.strides),
    )
    launch_linear(_spec(entry, problem.dtype), target.size * threads, params)


def _shape(piece: Correlation) -> tuple[str, int]:
    """Which kernel runs a piece, and how many of its threads share an output."""
    outputs = piece.batch * piece.groups * piece.out_channels * piece.positions
    few = outputs < _FEW_OUTPUTS and piece.reduction >= _LONG_SUM
    return ("direct_warp", _WARP) if few else ("direct_thread", 1)


@cache
def _spec(entry: str, dtype: str) -> KernelSpec:
    return KernelSpec("direct.cu", entry, dtype_defines(dtype))


class Direct(GpuAlgorithm):
    """The definition, output by output."""

    name = "direct"

    def why_not(self, problem: ConvProblem) -> str | None:
        return None

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        pieces = lower(problem)
        return len(pieces) * machine.launch + sum(2 * p.macs for p in pieces) / (machine.flops * _EFFICIENCY)

    def plan(self, problem: ConvProblem, workspace_limit: int) -> DirectPlan:
        return DirectPlan(problem)

    def variants(self) -> Iterable[KernelSpec]:
        return (_spec(entry, dtype) for dtype in DTYPES for entry in ("direct_thread", "direct_warp"))


register(Direct())
