"""Which tile an implicit GEMM on tensor cores takes, and how many blocks share a sum: predicted, or as told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fastconv.gpu.bundling import Bundling
from fastconv.gpu.runtime import runtime
from fastconv.gpu.tensor_cores import Gather, Grouping, Operands, Tile, operands_of, tiles
from fastconv.lowering import Correlation
from fastconv.problem import ConvProblem

MOST_BLOCKS_X = (1 << 31) - 1
MOST_BLOCKS_YZ = 65535

_LEAD_STEPS = 6  # filling the pipeline and writing results take about as long as so many steps
_LEAST_STEPS = 8  # of a block that has a part of a sum
_PRODUCTS_PER_BYTE = 100  # multiply-adds of a large GPU's cores in the time in which its memory moves a byte
_WAVES = (0, 1, 2)  # of blocks on the whole GPU into which sums may be cut; 0 for whole sums
_COPYING = 0.4  # the share of a step's time that copies take where no product is left out

#: A table of every product stays in L1 up to this size; above it, a table of taps and a division serve better.
_MOST_PRODUCTS = 1024


@dataclass(frozen=True)
class Config:
    """How one piece is computed: the tile, how many blocks share a sum, and the predicted time.

    `work` is in units of a multiply-add at the peak of all tensor cores.
    """

    tile: Tile
    splits: int
    work: float


@dataclass(frozen=True)
class Wish:
    """A tile, by name, and into how many waves of blocks sums are cut; what was measured fastest.

    It is followed where the memory at hand lets a kernel of that tile read it.
    """

    tile: str
    waves: int

    def __str__(self) -> str:
        return self.tile + (f", sums over {self.waves} waves" if self.waves else "")


def wishes(bundling: Bundling, operands: Operands, gather: Gather, limit: int) -> Iterator[Wish]:
    """Every tile, with sums cut in all ways that differ."""
    for tile in tiles(operands, gather):
        seen = set()
        for waves in _WAVES:
            splits = _splits(bundling, operands, tile, limit, waves)
            if splits not in seen:
                yield Wish(str(tile), waves)
            seen.add(splits)


def configure(bundling: Bundling, operands: Operands, gather: Gather, limit: int, wish: Wish | None) -> Config:
    """The tile and the split of least predicted work, with `limit` bytes for partial sums, or those of a wish."""
    fitting = tiles(operands, gather)
    wished = [tile for tile in fitting if wish and str(tile) == wish.tile]
    options = (
        _weigh(bundling, operands, tile, _splits(bundling, operands, tile, limit, waves))
        for tile in wished or fitting
        for waves in ((wish.waves,) if wish and wished else _WAVES)
    )
    return min(options, key=lambda config: config.work)


def blocks(piece: Correlation, tile: Tile) -> int:
    """Blocks of one group."""
    return -(-piece.batch * piece.positions // tile.positions) * -(-piece.out_channels // tile.channels)


def _at_once(tile: Tile) -> int:
    return runtime().processors() * tile.blocks_per_sm


def _splits(bundling: Bundling, operands: Operands, tile: Tile, limit: int, waves: int) -> int:
    """How many blocks share a sum, for so many waves in all; those over several groups' channels are short: not cut."""
    piece = bundling.merged
    if bundling.grouping is Grouping.SUMS:
        return 1
    steps = -(-piece.reduction // operands.step)
    most = min(steps // _LEAST_STEPS, limit // max(partial_bytes(bundling.piece), 1), MOST_BLOCKS_YZ)
    whole = max(blocks(piece, tile) * piece.groups, 1)
    return max(min(waves * _at_once(tile) // whole, most), 1)


def partial_bytes(piece: Correlation) -> int:
    """Bytes of one part of every sum."""
    return piece.batch * piece.groups * piece.positions * piece.out_channels * 4


def _weigh(bundling: Bundling, operands: Operands, tile: Tile, splits: int) -> Config:
    piece, at_once = bundling.merged, _at_once(tile)
    rounds = -(-blocks(piece, tile) * piece.groups * splits // at_once)
    steps = -(-piece.reduction // (operands.step * splits)) * max(bundling.share, _COPYING) + _LEAD_STEPS
    work = rounds * at_once * tile.positions * tile.channels * steps * operands.step / tile.efficiency
    moved = 2 * splits * partial_bytes(bundling.piece) if splits > 1 else 0
    return Config(tile, splits, work + moved * _PRODUCTS_PER_BYTE)


def gather_of(operands: Operands, adjacent: int, bundling: Bundling) -> Gather:
    """The fastest way to read an input of which `adjacent` channels can be taken at a time."""
    chunk, word, grouped = operands.chunk, 4 // operands.itemsize, bundling.grouping
    whole_chunks = bundling.merged.in_channels % chunk == 0
    if grouped is Grouping.RESULTS:
        return Gather(chunk if whole_chunks else 1, 1, grouped=grouped)
    if adjacent == chunk:
        return Gather(chunk, chunk, grouped=grouped)
    if grouped is Grouping.SUMS:
        return Gather(chunk, 1, grouped=grouped)
    if adjacent >= word > 1:
        return Gather(word, word)
    if whole_chunks:
        return Gather(chunk, 1)
    return Gather(1, 1, by_product=bundling.piece.reduction <= _MOST_PRODUCTS)


def expected_gather(problem: ConvProblem, bundling: Bundling) -> Gather:
    """How x will be read if the caller's array is contiguous."""
    operands = operands_of(problem)
    together = problem.channels_last and problem.op != "weight_grad"
    adjacent = math.gcd(bundling.merged.in_channels, operands.chunk) if together else 1
    return gather_of(operands, adjacent, bundling)
