"""What CPU algorithms have in common."""

from __future__ import annotations

from typing import ClassVar

from fastconv.cpu.costs import CostModel
from fastconv.machine import Machine
from fastconv.problem import ConvProblem
from fastconv.registry import Algorithm


class CpuAlgorithm(Algorithm):
    """An algorithm whose time is predicted by cost models, so that ``bench/fit_costs.py`` can fit their rates."""

    device = "cpu"
    running: ClassVar[CostModel]
    packing: ClassVar[CostModel]

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        return self.running.seconds(problem, machine)

    def pack_cost(self, problem: ConvProblem, machine: Machine) -> float:
        return self.packing.seconds(problem, machine)
