"""What an algorithm is, and the list of those there are.

A new algorithm is one new file in ``fastconv/cpu`` or ``fastconv/gpu`` that ends in ``register(MyAlgorithm())``.
The packages are searched when first asked for, so nothing else has to be told: dispatch, ``explain``, ``verify``, the
tests and the benchmarks all walk this registry.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any, ClassVar

from fastconv.lowering import Views, lower
from fastconv.machine import Machine
from fastconv.problem import ConvProblem, Triple
from fastconv.settings import USUAL_WORKSPACE

#: unit roundoff: half the distance from 1 to the next number
UNIT_ROUNDOFF = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float32": 2.0**-24,
    "float64": 2.0**-53,
    "complex64": 2.0**-24,
    "complex128": 2.0**-53,
}


class Plan(ABC):
    """An algorithm made ready for one problem: call it as often as there is data.

    ``pack_key`` names the form into which :meth:`pack` brings the weight; plans of one layer with equal keys can share
    what it returned.
    """

    pack_key: Hashable

    @abstractmethod
    def pack(self, w: Any) -> Any:
        """Bring the weight, a ``(G, O, C, KD, KH, KW)`` view, into the form :meth:`run` wants."""

    @abstractmethod
    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        """Write every element of `y`.

        ``x`` is an ``(N, G, C, D, H, W)`` view; ``y`` and ``residual`` (None where there is none) are
        ``(N, G, O, TD, TH, TW)`` views; ``bias`` is a contiguous array of the accumulator's dtype, or None.
        """


class Algorithm(ABC):
    """A way to compute convolutions, registered under a name for one device."""

    name: ClassVar[str]
    device: ClassVar[str]

    #: What is fixed that the algorithm would else predict, in words: a tile, for instance.
    configuration: str = ""

    @property
    def key(self) -> str:
        """Under which its measured times are remembered."""
        return f"{self.name} {self.configuration}".rstrip()

    def configurations(self, problem: ConvProblem) -> Iterable[Algorithm]:
        """What else `tune` measures on `problem`: this algorithm in each of its configurations, if it has any."""
        return ()

    @abstractmethod
    def why_not(self, problem: ConvProblem) -> str | None:
        """Why this algorithm declines `problem`, in words for the user; None if it takes it."""

    @abstractmethod
    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        """Predicted seconds of a call whose weight is packed already."""

    def pack_cost(self, problem: ConvProblem, machine: Machine) -> float:
        """Predicted seconds that packing the weight takes; a prepared layer pays them once, a function in each call."""
        return 0.0

    @abstractmethod
    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        """Make ready; scratch memory of a call must stay within `workspace_limit` bytes."""

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        """Scratch bytes that a call takes beside its arrays."""
        return 0

    def apply(
        self, problem: ConvProblem, a: Any, b: Any, out: Any, bias: Any = None, residual: Any = None,
        workspace_limit: int = USUAL_WORKSPACE,
    ) -> None:  # fmt: skip
        """Compute `problem` into `out`: plan, pack and run at once, with arrays already of the right dtype."""
        plan, views = self.plan(problem, workspace_limit), Views(problem)
        packed = plan.pack(views.weight(b))
        plan.run(views.source(a), packed, views.result(out), bias, None if residual is None else views.result(residual))

    def tolerance(self, problem: ConvProblem) -> float:
        """Promised bound on ``|y - exact| / (|x| conv |w| + |bias| + |residual|)``; 0 for integers.

        By default that of summing products one after another: the worst case ``n u`` or, for long sums, the bound
        ``8 sqrt(n) u`` which holds except with probability below 1e-12 (Higham and Mary, "A new approach to
        probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019); plus the rounding of the result.
        """
        if problem.accumulator_dtype not in UNIT_ROUNDOFF:
            return 0.0
        n = 2 + max((piece.reduction for piece in lower(problem)), default=0)
        # A complex product is two real products and a sum; its error constant is 2 sqrt(2) larger (Higham, 3.6).
        factor = 2 * math.sqrt(2) if problem.dtype.startswith("complex") else 1.0
        summed = factor * min(n, 8 * math.sqrt(n)) * UNIT_ROUNDOFF[problem.accumulator_dtype]
        return summed + UNIT_ROUNDOFF[problem.result_dtype]

    def spread(self, problem: ConvProblem) -> Triple:
        """How many results away, along depth, height and width, the products may be whose rounding errors a result has.

        A sum of an output's own products has none of its neighbours'. A transform mixes the inputs of a whole tile, so
        a large one may leave an error in an output whose window it is not in: ``|x| conv |w|`` is then the largest
        within this distance, products counted that no output needs (see :func:`fastconv.accuracy.error`).
        """
        return 0, 0, 0


_ALGORITHMS: dict[tuple[str, str], Algorithm] = {}


def register(algorithm: Algorithm) -> None:
    """Add an algorithm; its name must be new on its device."""
    key = (algorithm.device, algorithm.name)
    if key in _ALGORITHMS:
        raise ValueError(f"an algorithm named {algorithm.name!r} is already registered for {algorithm.device}")
    _ALGORITHMS[key] = algorithm


@cache
def _discover(device: str) -> None:
    package = importlib.import_module(f"fastconv.{device}")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):  # those are for whoever needs them
            importlib.import_module(f"fastconv.{device}.{module.name}")


def algorithms(device: str) -> tuple[Algorithm, ...]:
    """Every algorithm registered for ``"cpu"`` or ``"gpu"``, by name."""
    _discover(device)
    return tuple(_ALGORITHMS[key] for key in sorted(_ALGORITHMS) if key[0] == device)
