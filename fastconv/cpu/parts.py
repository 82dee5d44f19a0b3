"""Complex convolution as a real one of twice the channels, which any algorithm for real numbers can compute.

With the real parts of all channels before the imaginary ones, on both sides,

    (re y)   (re w  -im w)   (re x)
    (im y) = (im w   re w) * (im x)

so that a complex product is four real ones, summed where the real algorithm sums: in its registers. On the six-axis
views of :mod:`fastconv.lowering` this holds for every ``op``; a weight gradient sums over the batch, which is doubled.
What it costs is a copy of the operands and one of the result, in which parts lie apart.

An error of at most ``t (|re x| conv |re w| + |im x| conv |im w|)`` in a real part, and of as much in an imaginary one,
is one of at most ``sqrt(2) t (|x| conv |w|)``, by Cauchy and Schwarz.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.arrays import named_dtype
from fastconv.cpu.costs import CostModel, Work
from fastconv.cpu.rewriting import Rewriting, RewritingPlan
from fastconv.lowering import lower
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register


@lru_cache(maxsize=4096)
def _real(problem: ConvProblem) -> ConvProblem:
    """The real convolution of twice the channels, of arrays in the order of the six-axis views."""
    p = problem
    summed = {"batch_shape": (2 * p.batch,)} if p.op == "weight_grad" else {"in_channels": 2 * p.in_channels}
    return replace(
        p, **summed, out_channels=2 * p.out_channels, dtype=_number(p).name, channels_last=False, weight_order="OI*",
        flip_kernel=False,
    )  # fmt: skip


def _number(problem: ConvProblem) -> np.dtype[Any]:
    """The dtype of parts."""
    return np.empty(0, named_dtype(problem.dtype)).real.dtype


def _apart(array: Any) -> Any:
    """The parts of ``(N, G, C, D, H, W)``, one after the other along C."""
    n, groups, channels, *size = array.shape
    parts = recycling.empty((n, groups, 2 * channels, *size), array.real.dtype)
    parts[:, :, :channels], parts[:, :, channels:] = array.real, array.imag
    return parts


class _PartsPlan(RewritingPlan):
    def pack(self, w: Any) -> Any:
        """The matrix of parts, in the form that the real algorithm wants."""
        groups, outer, inner, *kernel = w.shape
        parts = np.empty((groups, 2, outer, 2, inner, *kernel), w.real.dtype)
        parts[:, 0, :, 0] = parts[:, 1, :, 1] = w.real
        parts[:, 1, :, 0] = w.imag
        np.negative(w.imag, out=parts[:, 0, :, 1])
        return self._other.pack(parts.reshape(groups, 2 * outer, 2 * inner, *kernel))

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        n, groups, outer, *size = y.shape
        if bias is not None:
            bias = np.stack((bias.real.reshape(groups, outer), bias.imag.reshape(groups, outer)), axis=1).ravel()
        sums = recycling.empty((n, groups, 2 * outer, *size), y.real.dtype)
        self._other.run(_apart(x), packed, sums, bias, None if residual is None else _apart(residual))
        y.real, y.imag = sums[:, :, :outer], sums[:, :, outer:]


def _copied(problem: ConvProblem) -> int:
    """Complex elements of operand, result and residual, which are copied."""
    p = problem
    x, y, w = (math.prod(shape) for shape in (p.x_shape, p.y_shape, p.w_shape))
    source, result = {"forward": (x, y), "input_grad": (y, x), "weight_grad": (x, w)}[p.op]
    return source + result * (1 + p.residual)


def _running(problem: ConvProblem) -> Iterable[Work]:
    return [Work(1, {"copied": _copied(problem)})]


def _packing(problem: ConvProblem) -> Iterable[Work]:
    return (Work(1, {"gathered": piece.groups * piece.out_channels * piece.reduction}) for piece in lower(problem))


class Parts(Rewriting):
    """Real and imaginary parts as channels of a real convolution."""

    name = "parts"
    running = CostModel(_running, {"copied": 7e-10, "call": 1.2e-5})
    packing = CostModel(_packing, {"gathered": 4e-9, "call": 1e-5})
    enlarged = math.sqrt(2)

    def rewritten(self, problem: ConvProblem) -> ConvProblem:
        return _real(problem)

    def copied_bytes(self, problem: ConvProblem) -> int:
        return _copied(problem) * named_dtype(problem.dtype).itemsize

    def why_not(self, problem: ConvProblem) -> str | None:
        if not problem.dtype.startswith("complex"):
            return f"{problem.dtype} has no imaginary part"
        return self.too_large(problem)

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _PartsPlan(self, problem, workspace_limit)


register(Parts())
