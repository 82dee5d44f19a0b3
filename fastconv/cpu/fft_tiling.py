"""How a correlation is cut into overlap-save tiles, what that costs, and how exact it is.

Along each axis a tile of `length` samples and a kernel that reaches over `reach` of them give ``length - reach + 1``
outputs by a circular convolution; the first ``reach - 1`` results have wrapped round and are dropped. Longer tiles drop
less of their work, shorter ones need fewer doublings and less memory, and leave more tiles to share among lanes and
cores. Lengths that divide the outputs evenly are tried against the cost model, one axis after another.

A vector holds a number of as many tiles as it has lanes: of `lanes` tiles of one channel, or of one tile in `lanes`
groups, whichever leaves fewer lanes idle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu import fourier
from fastconv.cpu.costs import Work
from fastconv.cpu.fft_kernels import PANEL
from fastconv.lowering import Correlation, lower
from fastconv.problem import ConvProblem, Triple
from fastconv.registry import UNIT_ROUNDOFF
from fastconv.remembering import once
from fastconv.settings import available_cores, get_num_threads

_MOST_TAPS = 256 << 20  # bytes of the spectra of a weight
_TASK = 1 << 18  # bytes of spectra that a task holds at once, where one alone is not longer
_LEAST_GAIN = 1.15  # tiles are worth trying down to this many times the reach

#: Seconds for one of each kind of work, measured step by step on one core of an AMD EPYC 7003. Counted in complex
#: vectors are `doubling`, the part of one in a doubling of a transform's length, `multiplied`, `gathered` for a product
#: of matrices, and `product`, one multiply-add of real vectors there.
RUNNING = {
    "doubling": 1.5e-9,
    "line": 1.2e-7,
    "multiplied": 9e-9,
    "gathered": 3e-8,
    "product": 3e-10,
    "staged": 7e-10,
    "result": 1e-9,
    "unit": 5e-7,
    "call": 4e-5,
}
PACKING = {"doubling": 1.5e-9, "line": 1.2e-7, "staged": 7e-10, "woven": 2.9e-9, "unit": 5e-7, "call": 6e-5}


def reach(piece: Correlation) -> Triple:
    """Samples over which a kernel reaches, along each axis."""
    d, h, w = (max(d * (k - 1), 0) + 1 for k, d in zip(piece.kernel, piece.dilation, strict=True))
    return d, h, w


@dataclass(frozen=True)
class Cut:
    """One way to tile a correlation.

    Parameters
    ----------
    piece : Correlation
    dtype : numpy.dtype
        In which products are summed.
    length : triple of int
        Samples of a tile.
    across : {"tiles", "groups"}
        What the lanes of a vector hold.
    contracts : bool
        Whether products are summed over input channels; where there is one, they may simply be multiplied.
    """

    piece: Correlation
    dtype: np.dtype[Any]
    length: Triple
    across: str
    contracts: bool

    @once
    def real(self) -> np.dtype[Any]:
        """The dtype of the parts of a complex number."""
        return np.dtype(self.dtype.char.lower())

    @once
    def folded(self) -> bool:
        """Whether rows are real, and half their frequencies are kept."""
        return self.dtype.kind == "f"

    @once
    def lanes(self) -> int:
        """Lanes of a vector."""
        return fourier.lanes(self.real.itemsize)

    @once
    def reach(self) -> Triple:
        """Samples over which the kernel reaches."""
        return reach(self.piece)

    @once
    def kept(self) -> Triple:
        """Outputs of a tile along each axis; with a stride only these of all that are computed."""
        lengths = zip(self.length, self.reach, self.piece.stride, self.piece.count, strict=True)
        d, h, w = (min((length - reach) // stride + 1, count) for length, reach, stride, count in lengths)
        return d, h, w

    @once
    def tiles(self) -> Triple:
        """Tiles of an image along each axis."""
        d, h, w = (-(-count // kept) for count, kept in zip(self.piece.count, self.kept, strict=True))
        return d, h, w

    @once
    def bins(self) -> int:
        """Frequencies of a row."""
        return self.length[2] // 2 + 1 if self.folded else self.length[2]

    @once
    def vectors(self) -> int:
        """Complex vectors of a unit: its frequencies."""
        return self.length[0] * self.length[1] * self.bins

    @once
    def size(self) -> int:
        """Numbers of a unit, which is a tile of one channel in each lane."""
        return self.vectors * 2 * self.lanes

    @once
    def outers(self) -> int:
        """Units of each channel."""
        tiles, groups = self.piece.batch * math.prod(self.tiles), self.piece.groups
        return -(-tiles // self.lanes) * groups if self.across == "tiles" else tiles * self.group_units

    @once
    def group_units(self) -> int:
        """Units that hold the groups of one tile."""
        return -(-self.piece.groups // self.lanes) if self.across == "groups" else self.piece.groups

    @once
    def tap_units(self) -> int:
        """Units of the spectra of the taps: lanes hold output channels where products are summed."""
        p = self.piece
        if self.contracts:
            return -(-p.out_channels // self.lanes) * p.groups * p.in_channels
        return p.out_channels * self.group_units

    @once
    def batch(self) -> int:
        """Units of input that a task holds at once, where products are not summed."""
        return 1 if self.piece.out_channels > 1 else max(_TASK // (self.size * self.real.itemsize), 1)

    def places(self) -> np.ndarray[Any, Any]:
        """Room for where the lanes of a unit come from."""
        return np.empty((self.lanes, 8), np.int64)

    @once
    def row(self) -> int:
        """Real numbers of a row of samples."""
        return self.length[2] if self.folded else 2 * self.length[2]

    @once
    def work(self) -> int:
        """Real numbers of scratch memory for a transform: a staged line, and two that passes go between."""
        return (self.bins + 2 * max(self.length)) * 2 * self.lanes

    @once
    def scratch(self) -> int:
        """Real numbers of scratch memory of a task."""
        p = self.piece
        if self.contracts:
            return max(self.row + self.work, PANEL * self.lanes * (3 * p.in_channels + 2 * p.out_channels))
        return self.row + self.work + (self.batch + (p.out_channels > 1)) * self.size

    @once
    def shared(self) -> int:
        """Real numbers of spectra that tasks share, for one unit of each channel."""
        p = self.piece
        return (p.in_channels + p.out_channels) * self.size if self.contracts else 0

    def threads(self, workspace_limit: int) -> int:
        """Threads that may run at once, lest their scratch memory be more than half the limit."""
        return max(min(get_num_threads(), workspace_limit // 2 // (self.scratch * self.real.itemsize)), 1)

    def together(self, workspace_limit: int) -> int:
        """Units of each channel whose spectra are held at once, within the other half of the limit."""
        return max(min(self.outers, workspace_limit // 2 // max(self.shared * self.real.itemsize, 1)), 1)

    def workspace_bytes(self, workspace_limit: int) -> int:
        """Scratch bytes of a call."""
        shared = self.shared * self.together(workspace_limit)
        return (self.scratch * self.threads(workspace_limit) + shared) * self.real.itemsize

    def excess(self, workspace_limit: int) -> int:
        """Bytes that the least it can do with takes beyond the limits; 0 if it keeps to them."""
        half, itemsize = workspace_limit // 2, self.real.itemsize
        needs = ((self.scratch, half), (self.shared, half), (self.tap_units * self.size, _MOST_TAPS))
        return sum(max(numbers * itemsize - most, 0) for numbers, most in needs)

    # -- what it costs ------------------------------------------------------------------------------------------------

    def _transform(self, planes: int, rows: int) -> tuple[float, int]:
        """Doublings of vectors, and lines, of a transform of which so many planes and rows of each hold anything."""
        depth, height, width = self.length
        along_rows = planes * rows * self.bins * (math.log2(width) + self.folded)
        doublings = along_rows + self.bins * height * (planes * math.log2(height) + depth * math.log2(depth))
        return doublings, planes * rows + self.bins * (planes * (height > 1) + height * (depth > 1))

    @once
    def running(self) -> Work:
        """Work of a call."""
        p = self.piece
        needed = [(k - 1) * s + r for k, s, r in zip(self.kept, p.stride, self.reach, strict=True)]
        ahead, back = self._transform(*needed[:2]), self._transform(*self.kept[:2])
        doublings, lines = (
            self.outers * (p.in_channels * a + p.out_channels * b) for a, b in zip(ahead, back, strict=True)
        )
        units = self.outers * (p.in_channels + p.out_channels)
        pairs = self.outers * p.in_channels * p.out_channels
        counts = {
            "doubling": doublings,
            "line": lines,
            "multiplied": 0 if self.contracts else pairs * self.vectors,
            "gathered": units * self.vectors if self.contracts else 0,
            "product": 4 * pairs * self.vectors if self.contracts else 0,
            "staged": self.outers * p.in_channels * math.prod(needed) * self.lanes,
            "result": p.batch * p.groups * p.out_channels * p.positions,
            "unit": units,
        }
        return Work(self.outers * (p.in_channels if self.contracts else 1), counts)

    @once
    def packing(self) -> Work:
        """Work of packing the weight."""
        doublings, lines = self._transform(*self.reach[:2])
        counts = {
            "doubling": self.tap_units * doublings,
            "line": self.tap_units * lines,
            "woven": self.tap_units * self.size if self.contracts else 0,
            "staged": self.tap_units * math.prod(self.reach) * self.lanes,
            "unit": self.tap_units,
        }
        return Work(self.tap_units, counts)

    @once
    def seconds(self) -> float:
        """Predicted time of packing and running."""
        total = 0.0
        for (tasks, counts), rates in ((self.running, RUNNING), (self.packing, PACKING)):
            one_core = sum(count * rates[kind] for kind, count in counts.items())
            total += one_core * -(-tasks // available_cores()) / max(tasks, 1)
        return total

    # -- how exact it is ----------------------------------------------------------------------------------------------

    @once
    def error(self) -> float:
        """Bound on an output's error, in units of the largest ``|x| conv |w|`` of its tile: see `fft`."""
        variance = 0.0
        for axis, length in enumerate(self.length):
            variance += sum(map(_variance, fourier.radices(length // 2 if axis == 2 and self.folded else length)))
        variance += _variance(2) if self.folded else 0
        variance = 3 * variance + _variance(1) + 2 * self.piece.in_channels
        wrapped = math.prod(1 + 3 * (r - 1) / n for r, n in zip(self.reach, self.length, strict=True))
        return 8 * math.sqrt(variance * wrapped * (2 if self.folded else 1)) * UNIT_ROUNDOFF[self.real.name]

    @once
    def spread(self) -> Triple:
        """Results of the problem over which a rounding error may reach."""
        p = self.piece
        steps = zip(self.length, p.stride, (part.step or 1 for part in p.targets), strict=True)
        d, h, w = (-(-(length - 1) // stride) * step for length, stride, step in steps)
        return d, h, w


def _variance(radix: int) -> float:
    """Squared rounding errors, in units of roundoff, of a pass: its additions, and the product with a factor."""
    additions = radix if radix % 2 else math.log2(radix)
    return additions + 6


def _lengths(piece: Correlation, axis: int, least: int) -> list[int]:
    """Tile lengths along one axis that cover the outputs in equal parts, of ever more tiles."""
    samples, stride, count = reach(piece)[axis], piece.stride[axis], piece.count[axis]
    if samples == 1 and least == 1:
        return [1]
    lengths, tiles = [], 1
    while tiles <= count:
        length = fourier.next_length(max((-(-count // tiles) - 1) * stride + samples, least), even=least == 4)
        lengths.append(length)
        if length <= _LEAST_GAIN * samples:
            break
        tiles = max(tiles + 1, tiles * 3 // 2)
    return list(dict.fromkeys(lengths))


def _best(piece: Correlation, dtype: np.dtype[Any], workspace_limit: int) -> Cut:
    """One axis after another, from tiles of three times the reach."""
    lengths = [_lengths(piece, axis, least) for axis, least in enumerate((1, 1, 2 if dtype.kind == "c" else 4))]
    samples = reach(piece)
    d, h, w = (min(lengths[axis], key=lambda n: abs(n - 3 * samples[axis])) for axis in range(3))

    def preferred(cuts: Iterable[Cut]) -> Cut:
        return min(cuts, key=lambda cut: (cut.excess(workspace_limit), cut.seconds))

    ways = [("tiles", True)] + [("tiles", False), ("groups", False)] * (piece.in_channels == 1)
    best = preferred(Cut(piece, dtype, (d, h, w), *way) for way in ways)
    for axis in (2, 1, 0):
        others = [(*best.length[:axis], n, *best.length[axis + 1 :]) for n in lengths[axis]]
        best = preferred(Cut(piece, dtype, (d, h, w), *way) for d, h, w in others for way in ways)
    return best


@lru_cache(maxsize=4096)
def cuts(problem: ConvProblem, workspace_limit: int) -> tuple[Cut, ...]:
    """For each piece of a problem the cut that is predicted fastest, of those that keep to the limit if any does."""
    dtype = named_dtype(problem.accumulator_dtype)
    best: dict[tuple[Triple, Triple], Cut] = {}  # of 64 pieces, with a stride of 8, most are alike but for their place
    found = []
    for piece in lower(problem):
        if (shape := (piece.kernel, piece.count)) not in best:
            best[shape] = _best(piece, dtype, workspace_limit)
        found.append(replace(best[shape], piece=piece))
    return tuple(found)
