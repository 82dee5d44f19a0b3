"""Algorithms that write a problem as another one, and hand that to whichever algorithm is fastest at it."""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache

from fastconv import machine
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.machine import Machine
from fastconv.problem import ConvProblem, Triple
from fastconv.registry import Algorithm, Plan, algorithms
from fastconv.settings import USUAL_WORKSPACE


@lru_cache(maxsize=4096)
def fastest(problem: ConvProblem) -> Algorithm:
    """The algorithm that is predicted fastest, its weight packed in each call."""
    here = machine.cpu()
    able = (algorithm for algorithm in algorithms("cpu") if algorithm.why_not(problem) is None)
    return min(able, key=lambda algorithm: algorithm.cost(problem, here) + algorithm.pack_cost(problem, here))


class Rewriting(CpuAlgorithm):
    """An algorithm whose cost models count what rewriting costs; the rest is the other algorithm's."""

    #: By how much the rewritten problem's errors are enlarged.
    enlarged: float = 1.0

    @abstractmethod
    def rewritten(self, problem: ConvProblem) -> ConvProblem:
        """The other problem."""

    @abstractmethod
    def copied_bytes(self, problem: ConvProblem) -> int:
        """Scratch memory that rewritten operands and results take."""

    def too_large(self, problem: ConvProblem) -> str | None:
        """Why copies cannot be made, in words for the user; None if they can."""
        taken, most = self.copied_bytes(problem), USUAL_WORKSPACE
        return f"its copies take {taken >> 20} MiB, more than {most >> 20} MiB" if taken > most else None

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        other = self.rewritten(problem)
        return super().cost(problem, machine) + fastest(other).cost(other, machine)

    def pack_cost(self, problem: ConvProblem, machine: Machine) -> float:
        other = self.rewritten(problem)
        return super().pack_cost(problem, machine) + fastest(other).pack_cost(other, machine)

    def tolerance(self, problem: ConvProblem) -> float:
        """That of the other algorithm, enlarged."""
        other = self.rewritten(problem)
        return self.enlarged * fastest(other).tolerance(other)

    def spread(self, problem: ConvProblem) -> Triple:
        """That of the other algorithm."""
        other = self.rewritten(problem)
        return fastest(other).spread(other)

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        copies, other = self.copied_bytes(problem), self.rewritten(problem)
        return copies + fastest(other).workspace_bytes(other, max(workspace_limit - copies, 0))


class RewritingPlan(Plan):
    """What a rewriting algorithm's plan keeps: the plan `_other` of the algorithm that computes the other problem."""

    def __init__(self, algorithm: Rewriting, problem: ConvProblem, workspace_limit: int) -> None:
        other = algorithm.rewritten(problem)
        left = max(workspace_limit - algorithm.copied_bytes(problem), 0)
        self._other = fastest(other).plan(other, left)
        self.pack_key = algorithm.name, fastest(other).name, self._other.pack_key
