"""What the plans of all CPU algorithms share: half types as their bits, absent operands, one piece after another."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
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
    cuts : sequence
        For each piece, how the algorithm cuts it into tasks.
    """

    def __init__(self, problem: ConvProblem, cuts: Sequence[Any]) -> None:
        self._pieces, self._cuts = lower(problem), cuts
        self.pack_key = f"{type(self).__name__}: {[piece.taps for piece in self._pieces]}"
        self._accumulator = named_dtype(problem.accumulator_dtype)
        self._half = HALF_FORMATS.get(problem.dtype, 0)
        self._activation = activation_arguments(problem)
        self._no_bias = np.empty(0, self._accumulator)
        self._no_residual = np.empty((0,) * 6, named_dtype(problem.result_dtype))

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        bias = self._no_bias if bias is None else bias
        residual = self._no_residual if residual is None else residual
        x, y, residual = as_bits(x), as_bits(y), as_bits(residual)
        for piece, cut, weights in zip(self._pieces, self._cuts, packed, strict=True):
            self._run_piece(piece, cut, weights, x, piece.target_view(y), bias, piece.target_view(residual))

    @abstractmethod
    def _run_piece(self, piece: Correlation, cut: Any, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        """Write one piece; `bias` and `residual` have no elements where there is none."""
