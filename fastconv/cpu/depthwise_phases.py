"""The phases of a strided input gradient, computed together.

Along an axis of stride s the results of an input gradient fall into s *phases*, t mod s, each a correlation of its own
(see :mod:`fastconv.lowering`). One after another they would read the output gradient once each, and each line of the
result would be read and written again for every phase along the row. Together they read one window, which holds what
all of them need of the gradient, and their results fill whole rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastconv.lowering import Correlation
from fastconv.remembering import once


@dataclass(frozen=True)
class Phases(Correlation):
    """Correlations whose results interleave along height and width, seen as one that reads what all of them read.

    Its `kernel` is the window that they meet, without dilation along height and width, and its `count` the longest of
    theirs. There are ``grid[0]`` rows of `phases`, each of ``grid[1]``, one after another.
    """

    phases: tuple[Correlation, ...]
    grid: tuple[int, int]

    @once
    def reduction(self) -> int:
        """Number of products summed into a result of every phase."""
        return sum(phase.reduction for phase in self.phases)

    @once
    def macs(self) -> int:
        """Multiply-adds, products with padding counted."""
        return sum(phase.macs for phase in self.phases)

    @once
    def flat(self) -> Phases | None:
        """The same for images laid out as one row each; results of several phases are no row."""
        return cast("Phases | None", super().flat) if len(self.phases) == 1 else None


def alone(piece: Correlation) -> Phases:
    """A correlation computed by itself."""
    return _joined([piece])


def together(pieces: Sequence[Correlation]) -> tuple[Phases, ...]:
    """The pieces of a problem, those whose results have the same depths as one."""
    by_depth = itertools.groupby(pieces, lambda piece: piece.targets[0])
    return tuple(_joined(list(phases)) for _, phases in by_depth)


def _joined(phases: Sequence[Correlation]) -> Phases:
    first = phases[0]
    wide = sum(phase.targets[1] == first.targets[1] for phase in phases)
    (top, height), (left, width) = _window(phases, 1), _window(phases, 2)
    shared: dict[str, Any] = {name: getattr(first, name) for name in Correlation.__dataclass_fields__}
    shared |= {
        "kernel": (first.kernel[0], height, width),
        "dilation": (first.dilation[0], 1, 1),
        "offset": (first.offset[0], top, left),
        "count": tuple(max(phase.count[axis] for phase in phases) for axis in range(3)),
    }
    if len(phases) > 1:
        shared["taps"], shared["targets"] = (
            (each[0], slice(None), slice(None)) for each in (first.taps, first.targets)
        )
    return Phases(**shared, phases=tuple(phases), grid=(len(phases) // wide, wide))


def _window(phases: Sequence[Correlation], axis: int) -> tuple[int, int]:
    """How far before a position the input begins that any phase meets there, and how many elements it is of."""
    met = [(p.offset[axis], (p.kernel[axis] - 1) * p.dilation[axis] + 1) for p in phases if p.kernel[axis]]
    before = max((offset for offset, _ in met), default=0)
    return before, max((before - offset + reach for offset, reach in met), default=0)
