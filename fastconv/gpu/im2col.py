"""``im2col``: patches copied into the columns of a matrix, a cuBLAS product, and the epilogue; tile by tile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from fastconv.gpu.algorithm import LEAST_WORKSPACE, GpuAlgorithm, cublas_rounds, launch_linear
from fastconv.gpu.arguments import EPILOGUE, VIEW, Words, epilogue, geometry, record, view
from fastconv.gpu.runtime import KernelSpec, dtype_defines, runtime
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import Machine
from fastconv.problem import DTYPES, ConvProblem
from fastconv.registry import Plan, register

TILE = np.dtype([("geometry", GEOMETRY), ("first", np.int64), ("positions", np.int64)])
PACK = np.dtype([("x", VIEW), ("columns", np.int64), ("tile", TILE)])
UNPACK = np.dtype([("product", np.int64), ("y", VIEW), ("tile", TILE), ("epilogue", EPILOGUE)])

# Estimated, not measured: the share of the peak at which cuBLAS runs these products.
_EFFICIENCY = 0.5


@dataclass(frozen=True)
class Part:
    """What one tile covers: images, groups and target positions of a piece."""

    images: slice
    groups: slice
    positions: slice


class Im2colPlan(Plan):
    """For each piece and each tile: pack, multiply, finish."""

    def __init__(self, problem: ConvProblem, workspace_limit: int) -> None:
        self.problem = problem
        self.pack_key = f"matrices of {[piece.taps for piece in lower(problem)]}"
        dtype = problem.accumulator_dtype
        self._pieces = [
            (piece, geometry(piece), list(_parts(piece, dtype, workspace_limit))) for piece in lower(problem)
        ]

    def pack(self, w: Any) -> Any:
        """One ``(G, O, K)`` matrix of the accumulator's dtype for each piece."""
        xp, dtype = runtime().xp, self.problem.accumulator_dtype
        return [
            xp.ascontiguousarray(piece.weight_view(w), dtype=dtype).reshape(
                piece.groups, piece.out_channels, piece.reduction
            )
            for piece in lower(self.problem)
        ]

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        for (piece, numbers, parts), weight in zip(self._pieces, packed, strict=True):
            target = piece.target_view(y)
            beside = None if residual is None else piece.target_view(residual)
            for part in parts:
                self._run_part(piece, numbers, part, x, weight, target, bias, beside)

    def _run_part(
        self, piece: Correlation, numbers: Words, part: Part, x: Any, weight: Any, y: Any, bias: Any, residual: Any
    ) -> None:
        xp, at = runtime().xp, (part.images, part.groups)
        source, target = x[at], y[at]
        images, groups = target.shape[:2]
        positions = part.positions.stop - part.positions.start
        # The tile is a smaller correlation of its own: batch and groups are the first two numbers.
        tile = (images, groups, *numbers[2:], part.positions.start, positions)
        dtype = self.problem.accumulator_dtype
        allocate = xp.empty if piece.reduction else xp.zeros
        result = allocate((images, groups, piece.out_channels, positions), dtype)
        if piece.reduction:
            columns = xp.empty((images, groups, piece.reduction, positions), dtype)
            params = record(PACK, x=view(source), columns=runtime().address(columns), tile=tile)
            launch_linear(
                _spec("pack_patches", self.problem.dtype), images * groups * piece.in_channels * positions, params
            )
            xp.matmul(weight[part.groups], columns, out=result)
        if bias is not None:
            bias = bias[part.groups.start * piece.out_channels :]
        finish = epilogue(self.problem, bias, None if residual is None else residual[at])
        params = record(UNPACK, product=runtime().address(result), y=view(target), tile=tile, epilogue=finish)
        launch_linear(_spec("finish_product", self.problem.dtype), result.size, params)


def _parts(piece: Correlation, dtype: str, limit: int) -> Iterator[Part]:
    """Cut a piece into tiles whose columns and products fit into `limit` bytes: whole images if they do, else less."""
    steps = _steps(piece, dtype, limit)
    ends = (piece.batch, piece.groups, piece.positions)
    ranges = (
        [slice(i, min(i + step, end)) for i in range(0, end, step)] for step, end in zip(steps, ends, strict=True)
    )
    return (Part(*slices) for slices in product(*ranges) if piece.out_channels)


def _steps(piece: Correlation, dtype: str, limit: int) -> tuple[int, int, int]:
    """Images, groups and positions of a tile."""
    fit = max(limit // max(_column_bytes(piece, dtype), 1), 1)  # columns
    positions = min(fit, piece.positions)
    groups = max(min(fit // positions, piece.groups), 1)
    images = max(min(fit // (positions * groups), piece.batch), 1)
    return images, groups, positions


def _column_bytes(piece: Correlation, dtype: str) -> int:
    """Bytes of one position: its column and its products."""
    return (piece.reduction + piece.out_channels) * np.dtype(dtype).itemsize


@cache
def _spec(entry: str, dtype: str) -> KernelSpec:
    return KernelSpec("im2col.cu", entry, dtype_defines(dtype))


_DTYPES = tuple(name for name in DTYPES if "int" not in name)


class Im2col(GpuAlgorithm):
    """Patches, matrix product, epilogue."""

    name = "im2col"

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype not in _DTYPES:
            return f"cuBLAS has no matrix product of {problem.dtype}"
        rounds = cublas_rounds(problem)
        if rounds is not None:
            return rounds
        column = max((_column_bytes(p, problem.accumulator_dtype) for p in lower(problem)), default=0)
        if column > LEAST_WORKSPACE:
            return f"one column of patches takes {column} bytes, more than the smallest workspace ({LEAST_WORKSPACE})"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        dtype = problem.accumulator_dtype
        return max(
            (_column_bytes(p, dtype) * int(np.prod(_steps(p, dtype, workspace_limit))) for p in lower(problem)),
            default=0,
        )

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        seconds, dtype = 0.0, problem.accumulator_dtype
        for piece in lower(problem):
            columns = piece.batch * piece.groups * piece.positions
            moved = 2 * columns * _column_bytes(piece, dtype)  # written once, read once
            seconds += 3 * machine.launch + moved / machine.bandwidth + 2 * piece.macs / (machine.flops * _EFFICIENCY)
        return seconds

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Im2colPlan:
        return Im2colPlan(problem, workspace_limit)

    def variants(self) -> Iterable[KernelSpec]:
        return (_spec(entry, dtype) for dtype in _DTYPES for entry in ("pack_patches", "finish_product"))


register(Im2col())
