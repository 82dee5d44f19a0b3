"""Seconds predicted from counted work.

An algorithm counts what it does, kind by kind (products, elements staged, tasks, …); a :class:`CostModel` multiplies
each count by a rate measured on one core and shares the tasks among the cores. The prediction is linear in the rates,
so ``bench/fit_costs.py`` can fit them, for any algorithm, to what it measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fastconv.arrays import named_dtype
from fastconv.cpu.parallel import CACHE_LINE
from fastconv.lowering import Correlation, lower
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

#: The rates were measured on one core of an AMD EPYC 7003 (Zen 3, AVX2: 8 float32 lanes), whose nominal peak is this.
REFERENCE_FLOPS = 8 * 2 * 2 * 3.5e9

# A complex product is four real ones; other widths fill a vector with fewer elements.
_PRODUCTS = {"complex64": 4.0, "complex128": 8.0, "float64": 2.0, "int64": 2.0}


class Work(NamedTuple):
    """Work that falls into `tasks` equal tasks, which can run at once: how much of each kind, in all."""

    tasks: int
    counts: Mapping[str, float]


@dataclass(frozen=True)
class CostModel:
    """What an algorithm does and how long that takes.

    Parameters
    ----------
    work : callable
        The work of a problem, counted; each kind must have a rate.
    rates : mapping of str to float
        Seconds for one of each kind, on one core; that of ``"call"``, if there is one, is paid once.
    in_vectors : frozenset of str
        Kinds whose time goes with the vector width and the dtype; the others are bound by memory or by calls.
    widest : float
        Where vectors are wider than the reference's, how many times wider the code uses them.

    Examples
    --------
    >>> problem = ConvProblem.forward(1, (1, 1, 9), (1, 1, 2))
    >>> model = CostModel(lambda problem: [Work(3, {"row": 6})], {"row": 1e-3, "call": 1e-4})
    >>> model.seconds(problem, Machine(cores=2, flops=2 * REFERENCE_FLOPS))  # a core has two tasks, thus four rows
    0.0041
    """

    work: Callable[[ConvProblem], Iterable[Work]]
    rates: Mapping[str, float]
    in_vectors: frozenset[str] = frozenset({"product"})
    widest: float = math.inf

    def counts(self, problem: ConvProblem, machine: Machine) -> dict[str, float]:
        """How often each rate is paid, one after another, on that machine."""
        width = min(machine.flops / machine.cores / REFERENCE_FLOPS, self.widest)
        vectors = _PRODUCTS.get(problem.accumulator_dtype, 1.0) / width
        total = dict.fromkeys(self.rates, 0.0)
        if "call" in total:
            total["call"] = 1.0
        for tasks, counts in self.work(problem):
            rounds = -(-tasks // machine.cores)  # a last round that is not full keeps some cores waiting
            for kind, count in counts.items():
                total[kind] += count * rounds / max(tasks, 1) * (vectors if kind in self.in_vectors else 1.0)
        return total

    def seconds(self, problem: ConvProblem, machine: Machine) -> float:
        """Predicted time."""
        return sum(count * self.rates[kind] for kind, count in self.counts(problem, machine).items())


def gathering(problem: ConvProblem) -> Iterable[Work]:
    """The weight elements, ``"gathered"``, that all pieces of a problem use, unless the weight is in order.

    Kernels want taps in the order (group, out, in, kernel), which is the user's own for a forward convolution alone.
    """
    if problem.op != "forward" or problem.weight_order != "OI*" or problem.flip_kernel:
        yield from (
            Work(1, {"gathered": piece.groups * piece.out_channels * piece.reduction}) for piece in lower(problem)
        )


def interleaving(problem: ConvProblem, piece: Correlation) -> dict[str, float]:
    """The cache lines, ``"line"``, to which a piece of a transposed convolution writes beside the results of others.

    Each piece brings them to the cache and leaves them to be written back, where one piece alone does so once.
    """
    step = piece.targets[2].step or 1
    together = problem.result_channels if problem.channels_last else 1
    bytes_together = together * named_dtype(problem.result_dtype).itemsize
    if step == 1 or bytes_together >= CACHE_LINE:
        return {"line": 0.0}
    places = piece.batch * piece.groups * piece.out_channels * piece.positions / together
    return {"line": places * min(step * bytes_together / CACHE_LINE, 1.0)}


def scattering(problem: ConvProblem, counts: Mapping[str, float], *kinds: str) -> dict[str, float]:
    """The elements of those kinds, ``"scattered"``, where rows of a channel are no runs of memory: channels last."""
    return {"scattered": sum(counts[kind] for kind in kinds) if problem.channels_last else 0.0}
