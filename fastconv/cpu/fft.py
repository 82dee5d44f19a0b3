"""Convolution by the fast Fourier transform, in overlapping tiles: for kernels of a hundred taps and more.

A circular convolution is a product of spectra. With F the transform of a tile of n samples and w' the kernel backwards,
filled up with zeros to n,

    y = F^-1(sum over channels of  F(x) F(w'))

but for the first ``reach - 1`` results, which have wrapped round. An output costs a share of two transforms, of some
``5 log2 n`` operations for each channel in and out, and a complex product for each pair of channels, however many taps
there are. Tiles overlap by what is dropped ("overlap-save": Stockham, "High-speed convolution and correlation", AFIPS
1966). Dilated kernels are transformed with their gaps; of strided outputs all are computed and some kept.

`fourier` transforms as many lines at once as a vector has lanes, `fft_tiling` chooses the tiles and what the lanes
hold, `fft_kernels` stages, multiplies and writes. Where there is one input channel, a task goes all the way with a few
tiles that stay in its cache. Otherwise three steps follow each other, each shared by all threads: all transforms; at
each frequency the product of a matrix (outputs, inputs) and one (inputs, tiles) on the register tile of `microkernel`,
a complex product being two real ones of twice the length; all inverses.

Rounding errors
---------------
Each pass of a transform rounds the numbers of a whole tile, so an output has errors of products that are not its own,
and no bound can hold against its own ``|x| conv |w|``, which may be zero. Against the largest of its tile one does.

A pass of F leaves in a number v_j, made of some samples, an error e_j with ``|e_j| <= eta |v_j|``. It reaches output t
with a factor m_tj, which is the same transform of the taps that meet those samples. Take the e_j to be independent and
of mean zero (Higham and Mary, SIAM J. Sci. Comput. 41, 2019): their sum has the variance ``eta^2 sum |m_tj v_j|^2``.
By Parseval's equation that is ``eta^2`` times a mean, over outputs spread evenly round the circle, of the squares of
what those samples and those taps contribute there. So with M^2 the mean square of the circular ``|x| conv |w|``, each
pass adds at most ``eta^2 M^2``, and the same holds for the transform of w and for the inverse. All p passes together
have a standard deviation of ``eta sqrt(3 p) M``. (The worst case is ``3 p eta ||x|| ||w||`` to first order: Higham,
"Accuracy and Stability of Numerical Algorithms", theorem 24.2; Percival, Math. Comp. 72, 2003.)

In units of roundoff squared, eta^2 is 1 for each addition that follows another (two in a butterfly of four), 5 for a
complex product and 1 for the rounding of its factor; the sum over C channels adds 2 C. Of n circular results
``reach - 1`` have wrapped and are sums of two that the full ``|x| conv |w|`` has, so M^2 is at most the largest of it,
squared, times ``1 + 3 (reach - 1) / n`` along each axis. Two real numbers in one complex number share their errors, so
that each meets the other's taps too, which doubles M^2. Eight standard deviations are exceeded with a probability below
1e-12, as in what the other algorithms promise.

From about 500 taps on, channels counted, that is less than a sum of the products promises. (Measured on random data its
errors are the smaller ones already from 100 taps on: they grow with the square root of log n, not with that of n.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from fastconv import settings
from fastconv.arrays import named_dtype
from fastconv.cpu import direct, fft_kernels, fourier, parallel
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.costs import CostModel, Work
from fastconv.cpu.fft_tiling import PACKING, RUNNING, Cut, cuts
from fastconv.cpu.jit import array, contiguous_taps, integer, records
from fastconv.cpu.microkernel import tile_channels
from fastconv.cpu.plan import PiecewisePlan
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.problem import ConvProblem, Triple
from fastconv.registry import UNIT_ROUNDOFF, Plan, register
from fastconv.settings import USUAL_WORKSPACE

_ALL = (slice(None),) * 3
_ONE = (1, 1, 1)


@cache
def _transforms(dtype_name: str, result_name: str, accumulator_name: str) -> tuple[Any, Any, Any]:
    """The kernels that transform samples and taps, and back."""
    dtype, result, accumulator = map(named_dtype, (dtype_name, result_name, accumulator_name))
    real, index = np.dtype(accumulator.char.lower()), integer
    memory = array(real, 1, contiguous=True, readonly=False)
    common = (
        records(GEOMETRY), records(fft_kernels.TILING), array(np.dtype(np.int64), 2, contiguous=True),
        array(real, 1, contiguous=True), array(real, 2, contiguous=True, readonly=False), memory,
        array(accumulator, 1, contiguous=True, readonly=False),
        array(np.dtype(np.int64), 2, contiguous=True, readonly=False), index,
    )  # fmt: skip
    samples, taps = (
        fft_kernels.forward.compile(index, index, index, array(source, 6), *common) for source in (dtype, accumulator)
    )
    vector = array(accumulator, 1, contiguous=True)
    failed = array(np.dtype(np.uint8), 3, contiguous=True, readonly=False)
    back = fft_kernels.inverse.compile(
        index, index, index, array(result, 6, readonly=False), *common, vector, array(result, 6), index, vector, failed
    )
    return samples, taps, back


@cache
def _products(real: np.dtype[Any], contracts: bool) -> tuple[Any, ...]:
    """The kernels that multiply spectra; where they sum over channels, also the one that rearranges taps for it."""
    index, units = integer, array(real, 2, contiguous=True, readonly=False)
    taps = array(real, 3, contiguous=True, readonly=False)
    if not contracts:
        return (fft_kernels.multiply.compile(index, index, index, units, taps, units, index, index),)
    memory, numbers = (array(kind, 1, contiguous=True, readonly=False) for kind in (real, np.dtype(np.int64)))
    return (
        fft_kernels.contract.compile(*(index,) * 4, units, taps, units, *(index,) * 5, memory, numbers),
        fft_kernels.interleave.compile(index, index, units, taps, *(index,) * 5),
    )


class _Tables:
    """What kernels need to know of a cut beside its geometry: the tiling, passes of transforms and their factors."""

    def __init__(self, cut: Cut) -> None:
        self.tiling = tiling = np.zeros(1, fft_kernels.TILING)
        self.passes = np.zeros((3, fft_kernels.MOST_PASSES), np.int64)
        depth, height, width = cut.length
        factors: list[np.ndarray[Any, Any]] = []
        for axis, n in enumerate((depth, height, width // 2 if cut.folded else width)):
            passes = fourier.radices(n)
            self.passes[axis, : len(passes)] = passes
            tiling["passes"][0, axis], tiling["factors"][0, axis] = len(passes), sum(map(len, factors))
            factors.append(fourier.twiddles(n, cut.real))
        for i, inverse in enumerate((False, True)):
            tiling["fold"][0, i] = sum(map(len, factors))
            factors.append(fourier.fold_factors(width, cut.real, inverse))
        self.factors = np.concatenate(factors)
        for name in ("length", "reach", "tiles", "kept", "bins", "lanes", "folded"):
            tiling[name] = getattr(cut, name)
        tiling["across_tiles"], tiling["across_groups"] = cut.across == "tiles", cut.across == "groups"
        # Taps are one tile of an image for each output channel. Lanes hold output channels where products are summed,
        # and otherwise what those of the samples hold: groups, or the same taps for all tiles.
        self.taps_tiling = tiling.copy()
        self.taps_tiling["tiles"] = self.taps_tiling["kept"] = 1
        self.taps_tiling["across_tiles"] = cut.contracts


class _FftPlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem, workspace_limit: int) -> None:
        chosen = cuts(problem, workspace_limit)
        super().__init__(problem, lambda piece: next((cut, _Tables(cut)) for cut in chosen if cut.piece == piece))
        self.pack_key = self.pack_key, tuple((cut.length, cut.across, cut.contracts) for cut in chosen)
        self._problem, self._limit = problem, workspace_limit
        self._samples, self._taps, self._back = _transforms(
            problem.dtype, problem.result_dtype, problem.accumulator_dtype
        )

    def pack(self, w: Any) -> Any:
        """For each piece, the spectra of its taps as they are multiplied, and the taps."""
        pairs = zip(self._pieces, self._cuts, strict=True)
        return [self._pack_piece(piece, cut, tables, w) for piece, (cut, tables) in pairs]

    def _pack_piece(self, piece: Correlation, cut: Cut, tables: _Tables, w: Any) -> tuple[Any, Any]:
        p = piece
        taps = contiguous_taps(p, w, self._accumulator).reshape(p.groups, p.out_channels, p.in_channels, *p.kernel)
        spaced = np.zeros((p.out_channels, p.groups, p.in_channels, *cut.reach), self._accumulator)
        if taps.size:
            gaps = spaced[:, :, :, :: p.dilation[0], :: p.dilation[1], :: p.dilation[2]]
            # Samples and taps are each twice too large where they are folded, and the inverse has no factor 1 / n.
            scale = cut.real.type(1 / ((4 if cut.folded else 1) * math.prod(cut.length)))
            np.multiply(taps.swapaxes(0, 1)[..., ::-1, ::-1, ::-1], scale, out=gaps)
        images = replace(p, batch=p.out_channels, size=cut.reach, count=_ONE, offset=(0, 0, 0), padding_mode="zeros")
        units = np.empty((cut.tap_units, cut.size), cut.real)

        def work(first: int, last: int) -> None:
            row, memory, _ = self._scratch(cut)
            self._taps(first, last, 0, spaced, images.geometry, tables.taps_tiling, tables.passes, tables.factors,
                       units, memory, row, cut.places(), 0)  # fmt: skip

        with settings.threads(cut.threads(self._limit)):
            parallel.run(work, cut.tap_units, units.size)
        return (self._woven(p, cut, units) if cut.contracts else units.reshape(p.out_channels, -1, cut.size)), taps

    def _woven(self, piece: Correlation, cut: Cut, units: Any) -> Any:
        p = piece
        _, interleave = _products(cut.real, True)
        woven = np.empty((p.groups, cut.vectors, p.out_channels * p.in_channels * 2), cut.real)

        def work(first: int, last: int) -> None:
            interleave(first, last, units, woven, p.groups, p.in_channels, p.out_channels, cut.lanes, tile_channels())

        parallel.run(work, p.groups * cut.vectors, woven.size)
        return woven

    def _scratch(self, cut: Cut) -> tuple[Any, Any, Any]:
        """Memory of this thread: a row of numbers as they are summed, what transforms need, and the rest."""
        memory = parallel.scratch(cut.scratch, cut.real)
        end = cut.row + cut.work
        return memory[: cut.row].view(self._accumulator), memory[cut.row : end], memory[end : cut.scratch]

    def _run_piece(self, piece: Correlation, cut: Any, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        (cut, tables), (spectra, taps) = cut, weights
        failed = np.zeros((piece.batch * math.prod(cut.tiles), piece.groups, piece.out_channels), np.uint8)
        common = piece.geometry, tables.tiling, tables.passes, tables.factors

        def forward(first: int, last: int, origin: int, units: Any, memory: Any, row: Any) -> None:
            self._samples(first, last, origin, x, *common, units, memory, row, cut.places(), self._half)

        def inverse(first: int, last: int, origin: int, units: Any, memory: Any, row: Any) -> None:
            self._back(first, last, origin, y, *common, units, memory, row, cut.places(), self._half, bias, residual,
                       *self._activation, failed)  # fmt: skip

        with settings.threads(cut.threads(self._limit)):
            convolve = self._contract if cut.contracts else self._multiply
            convolve(piece, cut, spectra, forward, inverse)
        if failed.any():
            self._mend(piece, cut, failed, taps, x, y, bias, residual)

    def _multiply(self, piece: Correlation, cut: Cut, taps: Any, forward: Any, inverse: Any) -> None:
        """Each task all the way, a few units at once; several outputs of a unit one after another."""
        (multiply,) = _products(cut.real, False)
        outputs = piece.out_channels

        def work(first: int, last: int) -> None:
            row, memory, units = self._scratch(cut)
            units = units.reshape(-1, cut.size)
            samples, results = units[: cut.batch], units[-1:] if outputs > 1 else units
            for outer in range(first, last, cut.batch):
                end = min(outer + cut.batch, last)
                forward(outer, end, outer, samples, memory, row)
                for unit in range(outer * outputs, end * outputs, len(results)):
                    stop = min(unit + len(results), end * outputs)
                    multiply(unit, stop, outer, samples, taps, results, outputs, cut.lanes)
                    inverse(unit, stop, unit, results, memory, row)

        parallel.run(work, cut.outers, piece.macs)

    def _contract(self, piece: Correlation, cut: Cut, taps: Any, forward: Any, inverse: Any) -> None:
        """Step by step for all channels, as many tiles at once as the workspace holds."""
        contract, _ = _products(cut.real, True)
        inputs, outputs = piece.in_channels, piece.out_channels
        together = cut.together(self._limit)
        units = np.empty((together * (inputs + outputs), cut.size), cut.real)
        samples, results = units[: together * inputs], units[together * inputs :]

        def ahead(first: int, last: int) -> None:
            row, memory, _ = self._scratch(cut)
            forward(outer * inputs + first, outer * inputs + last, outer * inputs, samples, memory, row)

        def products(first: int, last: int) -> None:
            panel, offsets = parallel.scratch(cut.scratch, cut.real), np.empty(2 * inputs, np.int64)
            contract(first, last, outer, end, samples, taps, results, piece.groups, inputs, outputs, cut.lanes,
                     tile_channels(), panel, offsets)  # fmt: skip

        def back(first: int, last: int) -> None:
            row, memory, _ = self._scratch(cut)
            inverse(outer * outputs + first, outer * outputs + last, outer * outputs, results, memory, row)

        for outer in range(0, cut.outers, together):
            end = min(outer + together, cut.outers)
            parallel.run(ahead, (end - outer) * inputs, piece.macs)
            parallel.run(products, cut.vectors, piece.macs)
            parallel.run(back, (end - outer) * outputs, piece.macs)

    def _mend(
        self, piece: Correlation, cut: Cut, failed: Any, taps: Any, x: Any, y: Any, bias: Any, residual: Any
    ) -> None:
        """Compute directly the tiles in which something was not finite."""
        p, plan = piece, direct.DirectPlan(self._problem)
        for tile, g, o in zip(*failed.nonzero(), strict=True):
            n, *index = (int(i) for i in np.unravel_index(tile, (p.batch, *cut.tiles)))
            first = [i * kept for i, kept in zip(index, cut.kept, strict=True)]
            last = [min(i + kept, count) for i, kept, count in zip(first, cut.kept, p.count, strict=True)]
            part = replace(
                p, batch=1, groups=1, out_channels=1, taps=_ALL, targets=_ALL,
                count=_triple(end - i for i, end in zip(first, last, strict=True)),
                offset=_triple(at - i * step for at, i, step in zip(p.offset, first, p.stride, strict=True)),
            )  # fmt: skip
            where = (slice(n, n + 1), slice(g, g + 1), slice(o, o + 1), *map(slice, first, last))
            channel = g * p.out_channels + o
            plan.run_part(part, taps[g : g + 1, o : o + 1], x[n : n + 1, g : g + 1], y[where],
                          bias[channel : channel + 1], residual[where] if residual.size else residual)  # fmt: skip


def _triple(values: Iterable[int]) -> Triple:
    d, h, w = values
    return d, h, w


def _running(problem: ConvProblem) -> Iterable[Work]:
    return (cut.running for cut in cuts(problem, USUAL_WORKSPACE))


def _packing(problem: ConvProblem) -> Iterable[Work]:
    return (cut.packing for cut in cuts(problem, USUAL_WORKSPACE))


class Fft(CpuAlgorithm):
    """Overlapping tiles transformed, multiplied by the spectra of the taps, and transformed back."""

    name = "fft"
    running = CostModel(_running, RUNNING, in_vectors=frozenset())
    packing = CostModel(_packing, PACKING, in_vectors=frozenset())

    def why_not(self, problem: ConvProblem) -> str | None:
        if "int" in problem.dtype:
            return f"{problem.dtype} results are exact, a Fourier transform is not"
        if problem.precision == "highest":
            return "precision='highest' takes no transform: its rounding errors reach over whole tiles"
        if all(math.prod(piece.kernel) <= 1 for piece in lower(problem)):
            return "with a kernel of one tap a transform has nothing to save"
        excess = max((cut.excess(USUAL_WORKSPACE) for cut in cuts(problem, USUAL_WORKSPACE)), default=0)
        return f"the spectra take {-(-excess >> 20)} MiB more than there may be" if excess else None

    def tolerance(self, problem: ConvProblem) -> float:
        """As :mod:`fastconv.cpu.fft` derives it, plus the rounding of the result."""
        transformed = max((cut.error for cut in cuts(problem, USUAL_WORKSPACE)), default=0.0)
        return transformed + UNIT_ROUNDOFF[problem.result_dtype]

    def spread(self, problem: ConvProblem) -> Triple:
        """The length of a tile."""
        spreads = [cut.spread for cut in cuts(problem, USUAL_WORKSPACE)]
        return _triple(max((spread[axis] for spread in spreads), default=0) for axis in range(3))

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        return max((cut.workspace_bytes(workspace_limit) for cut in cuts(problem, workspace_limit)), default=0)

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _FftPlan(problem, workspace_limit)


register(Fft())
