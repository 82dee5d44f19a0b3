"""``winograd4`` and ``winograd6``: Winograd's short convolutions, their products by cuBLAS.

`fastconv.winograd` has the arithmetic, ``cuda/winograd.cu`` the transforms. The matrices between the three steps are
made for as many tiles at a time as fit the workspace, which is about the size of a large GPU's second-level cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

import numpy as np

from fastconv.gpu.algorithm import LEAST_WORKSPACE, MOST_INDEX, GpuAlgorithm, cublas_rounds, launch_linear
from fastconv.gpu.arguments import EPILOGUE, NO_VIEW, VIEW, Words, epilogue, geometry, record, view
from fastconv.gpu.runtime import KernelSpec, dtype_defines, runtime
from fastconv.lowering import GEOMETRY, Correlation, exchanged, lower
from fastconv.machine import Machine
from fastconv.problem import ConvProblem, Triple
from fastconv.registry import Plan, register
from fastconv.settings import USUAL_WORKSPACE
from fastconv.winograd import Matrix, matrices, spread, tolerance, why_not, windows

_ENTRIES = ("transform_weights", "transform_windows", "transform_sums")
_MOST_WINDOW, _MOST_TAPS, _THREADS = 6, 5, 128  # in cuda/winograd.cu

# Estimated, not measured: the share of the peak at which cuBLAS runs these products.
_EFFICIENCY = 0.6


_NUMBERS = _MOST_WINDOW * _MOST_WINDOW + 2 * _MOST_WINDOW * _MOST_TAPS
WINOGRAD = np.dtype(
    [
        ("x", VIEW),
        ("w", VIEW),
        ("weights", np.int64),
        ("windows", np.int64),
        ("sums", np.int64),
        ("y", VIEW),
        ("geometry", GEOMETRY),
        ("epilogue", EPILOGUE),
        ("high", np.float32, (_NUMBERS,)),
        ("wide", np.float32, (_NUMBERS,)),
        ("first", np.int64),
        ("tiles", np.int64),
        ("channels_fastest", np.int64),
    ]
)


class _Cut:
    """The numbers of one piece: windows, matrices, tiles."""

    def __init__(self, piece: Correlation, window: int) -> None:
        self.turned = piece.kernel[2] == 1  # one axis alone is transformed along the width
        self.piece = c = piece.turned() if self.turned else piece
        self.windows = windows(c, window)
        self.components = math.prod(self.windows)
        self.lines = c.in_channels * c.kernel[0]
        self.tiles = c.batch * c.count[0]
        for axis, length in enumerate(self.windows, start=1):
            outputs = length + 1 - c.kernel[axis]
            self.tiles *= -(-c.count[axis] // (outputs * c.dilation[axis])) * min(c.dilation[axis], c.count[axis])

    @property
    def tile_bytes(self) -> int:
        """Of all matrices, for one tile."""
        return 4 * self.components * self.piece.groups * (self.lines + self.piece.out_channels)

    @property
    def weight_bytes(self) -> int:
        """Of the transformed weights."""
        return 4 * self.components * self.piece.groups * self.lines * self.piece.out_channels

    def tiles_at_once(self, workspace_limit: int) -> int:
        """Tiles whose matrices fit the workspace."""
        return max(min(self.tiles, workspace_limit // max(self.tile_bytes, 1)), 1)

    def coefficients(self) -> tuple[Words, Words]:
        """The matrices along height and along width, as a kernel receives them."""
        high, wide = (
            _words(matrices(length, taps)) for length, taps in zip(self.windows, self.piece.kernel[1:], strict=True)
        )
        return high, wide


def _words(transforms: tuple[Matrix, Matrix, Matrix]) -> Words:
    shapes = (_MOST_WINDOW, _MOST_WINDOW), (_MOST_WINDOW, _MOST_TAPS), (_MOST_TAPS, _MOST_WINDOW)
    whole = [np.zeros(shape, np.float32) for shape in shapes]
    for padded, matrix in zip(whole, transforms, strict=True):
        padded[: len(matrix), : len(matrix[0])] = [[float(number) for number in row] for row in matrix]
    return tuple(np.concatenate([padded.ravel() for padded in whole]).view(np.int64).tolist())


class WinogradPlan(Plan):
    """Transformed weights; for each piece and each share of its tiles two transforms and a product."""

    def __init__(self, problem: ConvProblem, window: int, workspace_limit: int) -> None:
        self.problem = problem
        self._channels_fastest = problem.channels_last and problem.op != "weight_grad"
        self._cuts = [_Cut(piece, window) for piece in lower(problem)]
        self._limit = workspace_limit
        self._numbers = [(geometry(cut.piece), cut.coefficients()) for cut in self._cuts]
        self.pack_key = f"windows of {window}", self._channels_fastest, tuple(str(cut.piece.taps) for cut in self._cuts)

    def pack(self, w: Any) -> Any:
        """For each piece, the taps as they are and transformed."""
        return [self._pack_piece(i, cut, exchanged(w) if cut.turned else w) for i, cut in enumerate(self._cuts)]

    def _pack_piece(self, index: int, cut: _Cut, w: Any) -> Any:
        piece, xp = cut.piece, runtime().xp
        taps = xp.ascontiguousarray(piece.weight_view(w))
        matrix = (cut.lines, piece.out_channels) if self._channels_fastest else (piece.out_channels, cut.lines)
        weights = xp.empty((cut.components * piece.groups, *matrix), np.float32)
        params = self._record(index, w=view(taps), weights=runtime().address(weights))
        self._launch(cut, "transform_weights", piece.groups * piece.out_channels * cut.lines, params)
        return taps, weights

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        for index, (cut, (taps, weights)) in enumerate(zip(self._cuts, packed, strict=True)):
            source, result, beside = (
                exchanged(array) if cut.turned and array is not None else array for array in (x, y, residual)
            )
            target = cut.piece.target_view(result)
            if target.size:
                added = None if beside is None else cut.piece.target_view(beside)
                finish = epilogue(self.problem, bias, added)
                self._run_piece(index, cut, taps, weights, source, target, finish)

    def _run_piece(self, index: int, cut: _Cut, taps: Any, weights: Any, x: Any, y: Any, finish: Words) -> None:
        piece, xp = cut.piece, runtime().xp
        most = cut.tiles_at_once(self._limit)
        for first in range(0, cut.tiles, most):
            tiles = min(most, cut.tiles - first)
            planes = cut.components * piece.groups
            if self._channels_fastest:
                transformed = xp.empty((planes, tiles, cut.lines), np.float32)
                sums = xp.empty((planes, tiles, piece.out_channels), np.float32)
            else:
                transformed = xp.empty((planes, cut.lines, tiles), np.float32)
                sums = xp.empty((planes, piece.out_channels, tiles), np.float32)
            params = self._record(
                index, x=view(x), w=view(taps), windows=runtime().address(transformed), sums=runtime().address(sums),
                y=view(y), epilogue=finish, first=first, tiles=tiles,
            )  # fmt: skip
            self._launch(cut, "transform_windows", piece.groups * cut.lines * tiles, params)
            factors = (transformed, weights) if self._channels_fastest else (weights, transformed)
            xp.matmul(*factors, out=sums)
            self._launch(cut, "transform_sums", piece.groups * piece.out_channels * tiles, params)

    def _record(self, index: int, **fields: Words | int) -> np.ndarray[Any, Any]:
        """Parameters of a kernel; what it does not read is zero."""
        numbers, (high, wide) = self._numbers[index]
        absent: dict[str, Words | int] = dict.fromkeys(("weights", "windows", "sums", "first", "tiles"), 0)
        absent |= dict.fromkeys(("x", "w", "y"), NO_VIEW) | {"epilogue": epilogue(self.problem, None, None)}
        return record(
            WINOGRAD,
            **absent | fields,
            geometry=numbers,
            high=high,
            wide=wide,
            channels_fastest=int(self._channels_fastest),
        )

    def _launch(self, cut: _Cut, entry: str, threads: int, params: np.ndarray[Any, Any]) -> None:
        launch_linear(_spec(cut.windows, entry), threads, params, _THREADS)


@cache
def _spec(lengths: tuple[int, int], entry: str) -> KernelSpec:
    high, wide = lengths
    sizes = ("WINDOW_H", str(high)), ("WINDOW_W", str(wide))
    return KernelSpec("winograd.cu", entry, (*dtype_defines("float32"), *sizes))


class _Winograd(GpuAlgorithm):
    """Winograd's F(m x m, r x r) with windows of m + r - 1 inputs along each axis that has taps."""

    window: ClassVar[int]

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype != "float32":
            return f"written for float32, not {problem.dtype}"
        reason = why_not(problem, self.window) or cublas_rounds(problem)
        if reason is not None:
            return reason
        for cut in self._cuts(problem):
            if max(cut.tiles, cut.piece.reach) > MOST_INDEX:
                return f"more than {MOST_INDEX} tiles, or elements along an axis"
            if cut.tile_bytes > LEAST_WORKSPACE:
                return f"one tile takes {cut.tile_bytes} bytes, more than the smallest workspace ({LEAST_WORKSPACE})"
        return None

    def _cuts(self, problem: ConvProblem) -> list[_Cut]:
        return [_Cut(piece, self.window) for piece in lower(problem)]

    def tolerance(self, problem: ConvProblem) -> float:
        return tolerance(problem, self.window)

    def spread(self, problem: ConvProblem) -> Triple:
        return spread(problem, self.window)

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        cuts = self._cuts(problem)
        return max((cut.tile_bytes * cut.tiles_at_once(workspace_limit) for cut in cuts), default=0)

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        seconds = 0.0
        for cut in self._cuts(problem):
            shares = -(-cut.tiles // cut.tiles_at_once(USUAL_WORKSPACE))
            products = cut.components * cut.tiles * cut.lines * cut.piece.out_channels * cut.piece.groups
            moved = 2 * cut.tile_bytes * cut.tiles  # written once, read once
            seconds += 3 * shares * machine.launch + moved / machine.bandwidth
            seconds += 2 * products / (machine.flops * _EFFICIENCY)
        return seconds

    def pack_cost(self, problem: ConvProblem, machine: Machine) -> float:
        cuts = self._cuts(problem)
        return 2 * len(cuts) * machine.launch + sum(cut.weight_bytes for cut in cuts) / machine.bandwidth

    def plan(self, problem: ConvProblem, workspace_limit: int) -> WinogradPlan:
        return WinogradPlan(problem, self.window, workspace_limit)

    def variants(self) -> Iterable[KernelSpec]:
        lengths = (self.window, self.window), (1, self.window)
        return (_spec(pair, entry) for pair in lengths for entry in _ENTRIES)


class Winograd4(_Winograd):
    """F(2 x 2, 3 x 3) and F(3 x 3, 2 x 2)."""

    name = "winograd4"
    window = 4


class Winograd6(_Winograd):
    """F(4 x 4, 3 x 3), and F(5 x 5, 2 x 2) to F(2 x 2, 5 x 5)."""

    name = "winograd6"
    window = 6


register(Winograd4())
register(Winograd6())
