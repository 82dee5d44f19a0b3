"""What the plans of all CPU algorithms share: half types as their bits, absent operands, one piece after another."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.elements import activation_arguments
from fastconv.cpu.jit import HALF_FORMATS, as_bits
from fastconv.lowering import Correlation, lower
from fastconv.problem import ConvProblem
from fastconv.registry import Plan


class PiecewisePlan(Plan):
    """A plan that runs the pieces of its problem in turn.

    Parameters
    ----------
    problem : ConvProblem
    cut : callable
        How the algorithm cuts a piece into tasks.
    """

    def __init__(self, problem: ConvProblem, cut: Callable[[Correlation], Any]) -> None:
        self._pieces = lower(problem)
        self._accumulator = named_dtype(problem.accumulator_dtype)
        self._cuts = [cut(piece) for piece in self._pieces]
        self._flat_cuts = [None if piece.flat is None else cut(piece.flat) for piece in self._pieces]
        self.pack_key = f"{type(self).__name__}: {[piece.taps for piece in self._pieces]}"
        self._half = HALF_FORMATS.get(problem.dtype, 0)
        self._activation = activation_arguments(problem)
        self._no_bias = np.empty(0, self._accumulator)
        self._no_residual = np.empty((0,) * 6, named_dtype(problem.result_dtype))

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        bias = self._no_bias if bias is None else bias
        residual = self._no_residual if residual is None else residual
        x, y, residual = as_bits(x), as_bits(y), as_bits(residual)
        for piece, cut, flat_cut, weights in zip(self._pieces, self._cuts, self._flat_cuts, packed, strict=True):
            arrays = x, piece.target_view(y), piece.target_view(residual)
            if piece.flat is not None and all(_is_flat(a) for a in arrays):
                source, target, added = (a.reshape(*a.shape[:3], 1, 1, math.prod(a.shape[3:])) for a in arrays)
                self._run_piece(piece.flat, flat_cut, weights, source, target, bias, added)
            else:
                self._run_piece(piece, cut, weights, arrays[0], arrays[1], bias, arrays[2])

    @abstractmethod
    def _run_piece(self, piece: Correlation, cut: Any, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        """Write one piece; `bias` and `residual` have no elements where there is none."""


def _is_flat(a: np.ndarray[Any, Any]) -> bool:
    """Whether the spatial axes of a six-axis view can be seen as one."""
    (depth, height, width), (step_d, step_h, step_w) = a.shape[3:], a.strides[3:]
    return a.size == 0 or (step_h == width * step_w and (depth == 1 or step_d == height * step_h))
