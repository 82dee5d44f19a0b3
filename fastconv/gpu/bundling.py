"""Several groups in one tile of an implicit GEMM.

A group of 4 input and 4 output channels fills a sixteenth of a tile's columns, and a quarter of what one instruction of
the tensor cores sums. So neighbouring groups are bundled: their channels, which neighbour each other in memory too, are
those of one group, whose weight is block-diagonal,

    w'[(a, o), (b, c)] = w[a, o, c] if a = b else 0        a, b: groups of the bundle

and the kernel leaves out the instructions all of whose weights are such zeros. An instruction takes 32 bytes of
channels times 8 output channels; those with more than one group in them multiply some zeros. As zero times infinity is
NaN, the kernel sums an output anew, by its definition, where it is not finite.

The sums of a weight gradient run over images. There the input's channels are rows of the tile and the output
gradient's are columns, so that it is the result whose blocks off the diagonal are of no use,

    y'[(a, c, tap), (b, o)] = y[a, c, tap, o] if a = b

and the kernel neither writes them nor computes those that the rows of a warp do not meet. Alone, a group of 4 channels
and 3 x 3 taps has 36 rows of a tile's 64; 16 of them together have 576, nine whole tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fastconv.gpu.algorithm import MOST_INDEX
from fastconv.gpu.runtime import runtime
from fastconv.gpu.tensor_cores import GROUPED_CHANNELS, Grouping, Operands
from fastconv.lowering import Correlation
from fastconv.remembering import once

_ROWS, _COLUMNS = 32, 8  # positions that a warp has in a tile for several groups, output channels of one instruction


@dataclass(frozen=True)
class Bundling:
    """A piece of which every `size` groups are computed as one, by instructions that sum `depth` products each.

    Here that is one; the others inherit.
    """

    piece: Correlation
    size: int
    depth: int

    grouping: ClassVar[Grouping] = Grouping.ONE

    @property
    def merged(self) -> Correlation:
        """The piece with bundles in place of groups."""
        return self.piece

    @property
    def group_channels(self) -> int:
        """Of the input's channels that are merged, those of one group."""
        return self.piece.in_channels

    @property
    def share(self) -> float:
        """The share of a bundle's products that are computed."""
        return 1.0

    @property
    def instructions(self) -> int:
        """How many of them at most have products of one output."""
        return -(-self.piece.reduction // self.depth)

    def view(self, x: Any) -> Any:
        """An ``(N, G, C, D, H, W)`` view of the input as that of the merged piece."""
        return x

    def target(self, y: Any) -> Any:
        """An ``(N, G, O, D, H, W)`` view of the result as the kernel writes it."""
        return y

    def pack(self, w: Any, step: int) -> Any:
        """A weight in ``(G, O, K)`` order, channels fastest, K filled up with zeros to whole steps."""
        m = self.merged
        packed = runtime().xp.zeros((m.groups, m.out_channels, -(-m.reduction // step) * step), w.dtype)
        blocks = self._blocks(packed)
        blocks[...] = w.transpose(0, 1, 3, 4, 5, 2).reshape(blocks.shape)
        return packed

    def unpack(self, packed: Any) -> Any:
        """A packed weight as the ``(G, O, C, KD, KH, KW)`` array that it was made of."""
        p = self.piece
        blocks = self._blocks(packed).reshape(p.groups, p.out_channels, *p.kernel, p.in_channels)
        return blocks.transpose(0, 1, 5, 2, 3, 4)

    def _blocks(self, packed: Any) -> Any:
        """What of a packed weight is not filled up with zeros: ``(G, O, KD, KH, KW, C)``."""
        p = self.piece
        rows = packed.reshape(p.groups, p.out_channels, packed.shape[-1])[..., : p.reduction]
        return rows.reshape(p.groups, p.out_channels, *p.kernel, p.in_channels)


class BundledSums(Bundling):
    """Channels of all groups of a bundle are in every sum."""

    grouping = Grouping.SUMS

    @once
    def merged(self) -> Correlation:
        p, size = self.piece, self.size
        return replace(p, groups=p.groups // size, in_channels=size * p.in_channels, out_channels=size * p.out_channels)

    @once
    def share(self) -> float:
        inner, outer = self.piece.in_channels, self.piece.out_channels
        met = 0
        for channel in range(0, self.size * inner, self.depth):
            first, last = channel // inner, (channel + self.depth - 1) // inner
            met += -(-(last + 1) * outer // _COLUMNS) - first * outer // _COLUMNS
        return met / (self.size * inner // self.depth * -(-self.size * outer // _COLUMNS))

    @once
    def instructions(self) -> int:
        p = self.piece
        return math.prod(p.kernel) * ((p.in_channels + self.depth - 2) // self.depth + 1)

    def view(self, x: Any) -> Any:
        # The channels of all groups are one axis of the caller's array, so this is a view as well.
        batch, groups, channels, *rest = x.shape
        return x.reshape(batch, groups // self.size, self.size * channels, *rest)

    def target(self, y: Any) -> Any:
        return self.view(y)

    def _blocks(self, packed: Any) -> Any:
        """The blocks on the diagonal, as ``(bundle, group, O, KD, KH, KW, C)``."""
        p, m, (bundle, row, one) = self.piece, self.merged, packed.strides
        height, width = (n * one * m.in_channels for n in (p.kernel[1] * p.kernel[2], p.kernel[2]))
        group = p.out_channels * row + p.in_channels * one
        return runtime().xp.lib.stride_tricks.as_strided(
            packed,
            (m.groups, self.size, p.out_channels, *p.kernel, p.in_channels),
            (bundle, group, row, height, width, m.in_channels * one, one),
        )


class BundledResults(Bundling):
    """Each group of a bundle has rows and columns of its own: the `batch` of a weight gradient is its channels."""

    grouping = Grouping.RESULTS

    @once
    def merged(self) -> Correlation:
        p, size = self.piece, self.size
        return replace(p, groups=p.groups // size, batch=size * p.batch, out_channels=size * p.out_channels)

    @property
    def group_channels(self) -> int:
        return self.piece.batch

    @once
    def share(self) -> float:
        """As many as there are where neighbouring rows are those of neighbouring channels, which meet most groups."""
        p = self.piece
        groups = min(-(-(_ROWS - 1) // p.batch) + 1, self.size)
        return min(-(-groups * p.out_channels // _COLUMNS) / -(-self.size * p.out_channels // _COLUMNS), 1.0)

    def view(self, x: Any) -> Any:
        batch, groups, *rest = x.shape
        bundles = x.transpose(1, 0, 2, 3, 4, 5).reshape(groups // self.size, self.size * batch, *rest)
        return bundles.transpose(1, 0, 2, 3, 4, 5)


def bundled(piece: Correlation, operands: Operands, op: str) -> Bundling:
    """As many groups together as fill the columns of a tile, if channels that are summed fill whole instructions."""
    kind: type[Bundling] = BundledResults if op == "weight_grad" else BundledSums
    sizes = [
        size
        for size in range(2, min(piece.groups, GROUPED_CHANNELS) + 1)
        if piece.groups % size == 0
        and size * piece.out_channels <= GROUPED_CHANNELS
        and (kind is BundledResults or size * piece.in_channels % operands.depth == 0)
        and piece.batch
        and piece.reduction
        and size * max(piece.batch, piece.reduction) <= MOST_INDEX
    ]
    return kind(piece, max(sizes), operands.depth) if sizes else Bundling(piece, 1, operands.depth)
