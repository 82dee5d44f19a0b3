"""Several groups in one tile of an implicit GEMM.

A group of 4 input and 4 output channels fills a sixteenth of a tile's columns, and a quarter of what one instruction of
the tensor cores sums. So neighbouring groups are bundled: their channels, which neighbour each other in memory too, are
those of one group, whose weight is block-diagonal,

    w'[(a, o), (b, c)] = w[a, o, c] if a = b else 0        a, b: groups of the bundle

and the kernel leaves out the instructions all of whose weights are such zeros. An instruction takes 32 bytes of
channels times 8 output channels; those with more than one group in them multiply some zeros. As zero times infinity is
NaN, the kernel sums an output anew, by its definition, where it is not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from fastconv.gpu.runtime import runtime
from fastconv.gpu.tensor_cores import GROUPED_CHANNELS, Operands
from fastconv.lowering import Correlation
from fastconv.remembering import once

_COLUMNS = 8  # output channels of one instruction


@dataclass(frozen=True)
class Bundling:
    """A piece of which every `size` groups are computed as one, by instructions that sum `depth` products each."""

    piece: Correlation
    size: int
    depth: int

    @once
    def merged(self) -> Correlation:
        """The piece with bundles in place of groups."""
        p, size = self.piece, self.size
        return replace(p, groups=p.groups // size, in_channels=size * p.in_channels, out_channels=size * p.out_channels)

    @once
    def share(self) -> float:
        """The share of a bundle's products that are computed."""
        inner, outer = self.piece.in_channels, self.piece.out_channels
        if self.size == 1:
            return 1.0
        met = 0
        for channel in range(0, self.size * inner, self.depth):
            first, last = channel // inner, (channel + self.depth - 1) // inner
            met += -(-(last + 1) * outer // _COLUMNS) - first * outer // _COLUMNS
        return met / (self.size * inner // self.depth * -(-self.size * outer // _COLUMNS))

    @once
    def instructions(self) -> int:
        """How many of them at most have products of one output."""
        p = self.piece
        if self.size == 1:
            return -(-p.reduction // self.depth)
        return math.prod(p.kernel) * ((p.in_channels + self.depth - 2) // self.depth + 1)

    def view(self, array: Any) -> Any:
        """An ``(N, G, C, ...)`` view of data with the channels of a bundle as those of one group."""
        if self.size == 1:
            return array
        # The channels of all groups are one axis of the caller's array, so this is a view as well.
        batch, groups, channels, *rest = array.shape
        return array.reshape(batch, groups // self.size, self.size * channels, *rest)

    def pack(self, w: Any, step: int) -> Any:
        """A weight in ``(G, O, K)`` order, channels fastest, K filled up with zeros to whole steps."""
        m = self.merged
        packed = runtime().xp.zeros((m.groups, m.out_channels, -(-m.reduction // step) * step), w.dtype)
        diagonal = self._diagonal(packed)
        diagonal[...] = w.transpose(0, 1, 3, 4, 5, 2).reshape(diagonal.shape)
        return packed

    def unpack(self, packed: Any) -> Any:
        """A packed weight as the ``(G, O, C, KD, KH, KW)`` array that it was made of."""
        p = self.piece
        blocks = self._diagonal(packed).reshape(p.groups, p.out_channels, *p.kernel, p.in_channels)
        return blocks.transpose(0, 1, 5, 2, 3, 4)

    def _diagonal(self, packed: Any) -> Any:
        """The blocks of a packed weight that are not zeros: (bundle, group, O, KD, KH, KW, C)."""
        p, m, (bundle, row, one) = self.piece, self.merged, packed.strides
        height, width = (n * one * m.in_channels for n in (p.kernel[1] * p.kernel[2], p.kernel[2]))
        group = p.out_channels * row + p.in_channels * one
        return runtime().xp.lib.stride_tricks.as_strided(
            packed,
            (m.groups, self.size, p.out_channels, *p.kernel, p.in_channels),
            (bundle, group, row, height, width, m.in_channels * one, one),
        )


def bundled(piece: Correlation, operands: Operands, op: str) -> Bundling:
    """As many groups together as fill the columns of a tile, if their channels fill whole instructions."""
    sizes = [
        size
        for size in range(1, min(piece.groups, GROUPED_CHANNELS) + 1)
        if piece.groups % size == 0
        and size * piece.out_channels <= GROUPED_CHANNELS
        and size * piece.in_channels % operands.depth == 0
        and piece.reduction
        and op != "weight_grad"  # whose sums run over images
    ]
    return Bundling(piece, max(sizes, default=1), operands.depth)
