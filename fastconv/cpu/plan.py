"""What the plans of all CPU algorithms share: half types as their bits, absent operands, one piece after another."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.elements import activation_arguments
from fastconv.cpu.jit import HALF_FORMATS
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
    pieces : sequence of Correlation, optional
        Those the problem has been lowered to, if the algorithm computes other ones.
    """

    def __init__(
        self, problem: ConvProblem, cut: Callable[[Any], Any], pieces: Sequence[Correlation] | None = None
    ) -> None:
        self._pieces = lower(problem) if pieces is None else pieces
        self._accumulator = named_dtype(problem.accumulator_dtype)
        self._cuts = [cut(piece) for piece in self._pieces]
        self._flat_cuts = [None if piece.flat is None else cut(piece.flat) for piece in self._pieces]
        flat = [piece.flat for piece in self._pieces]
        self._steps = list(zip(self._pieces, self._cuts, flat, self._flat_cuts, strict=True))
        self.pack_key = f"{type(self).__name__}: {[piece.taps for piece in lower(problem)]}"
        self._half = HALF_FORMATS.get(problem.dtype, 0)
        self._activation = activation_arguments(problem)
        self._no_bias = np.empty(0, self._accumulator)
        self._no_residual = np.empty((0,) * 6, named_dtype(problem.result_dtype))

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        bias = self._no_bias if bias is None else bias
        residual = self._no_residual if residual is None else residual
        if self._half:
            x, y, residual = x.view(np.uint16), y.view(np.uint16), residual.view(np.uint16)
        for (piece, cut, flat, flat_cut), weights in zip(self._steps, packed):  # noqa: B905 - it costs 0.2 us
            target, added = (y, residual) if piece.whole else (piece.target_view(y), piece.target_view(residual))
            if flat is not None and is_flat(x) and is_flat(target) and is_flat(added):
                source, target, added = [a.reshape(a.shape[:3] + flat.count) for a in (x, target, added)]
                self._run_piece(flat, flat_cut, weights, source, target, bias, added)
            else:
                self._run_piece(piece, cut, weights, x, target, bias, added)

    @abstractmethod
    def _run_piece(self, piece: Correlation, cut: Any, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        """Write one piece; `bias` and `residual` have no elements where there is none."""


def is_flat(a: np.ndarray[Any, Any]) -> bool:
    """Whether the spatial axes of a six-axis view can be seen as one."""
    if a.flags.c_contiguous:
        return True
    (depth, height, width), (step_d, step_h, step_w) = a.shape[3:], a.strides[3:]
    return bool(step_h == width * step_w and (depth == 1 or step_d == height * step_h))
