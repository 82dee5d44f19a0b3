"""What an implicit GEMM reads of its input: the table of products, and how wide its loads may be.

The kernels' side is ``cuda/gather.cuh``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from fastconv.gpu.algorithm import LEAST_WORKSPACE, MOST_INDEX
from fastconv.gpu.arguments import Words, element_strides
from fastconv.gpu.runtime import runtime
from fastconv.lowering import Correlation, lower
from fastconv.problem import ConvProblem

DIVISOR = np.dtype([("value", np.int64), ("magic", np.int64), ("shift", np.int64)])
TAP = np.dtype([("offset", np.int64), ("w", np.int32), ("h", np.int16), ("d", np.int16)])

#: Orders of a table's entries: every product, with channels or taps changing fastest, or the taps of channel 0 alone.
Order = Literal["channels of taps", "taps of channels", "taps"]

_MOST_TAP = (1 << 15, 1 << 15, MOST_INDEX)  # of a tap along depth, height and width


def why_no_table(problem: ConvProblem, order: Order) -> str | None:
    """Why a table of that order cannot describe `problem`; None if it can."""
    for piece in lower(problem):
        if max(piece.reach, piece.positions, piece.batch, piece.reduction) > MOST_INDEX:
            return f"a batch, an axis, an image or a sum of more than {MOST_INDEX} elements"
        taps = [k * d for k, d in zip(piece.kernel, piece.dilation, strict=True)]
        if any(tap > most for tap, most in zip(taps, _MOST_TAP, strict=True)):
            return f"a kernel that reaches over more than {_MOST_TAP[0]} elements in depth or height"
    table = table_bytes(problem, order)
    if table > LEAST_WORKSPACE:
        return f"the table of {order} takes {table} bytes, more than the smallest workspace ({LEAST_WORKSPACE})"
    return None


def table_bytes(problem: ConvProblem, order: Order) -> int:
    """Bytes of the tables of all pieces."""
    return sum(_channels(piece, order) * math.prod(piece.kernel) for piece in lower(problem)) * TAP.itemsize


def _channels(piece: Correlation, order: Order) -> int:
    return 1 if order == "taps" else piece.in_channels


class Tables:
    """The tables of a problem's pieces, on the device; those of the last few memory layouts are kept.

    Parameters
    ----------
    problem : ConvProblem
    order : Order
    """

    def __init__(self, problem: ConvProblem, order: Order) -> None:
        self._pieces = lower(problem)
        self._order = order
        # The tables depend on the input's strides, which seldom differ between calls.
        self._table: Callable[..., Any] = lru_cache(maxsize=4 * max(len(self._pieces), 1))(self._make)

    def address(self, index: int, x: Any) -> int:
        """Where the table of piece `index` lies, on the current device, for an input laid out like `x`."""
        table = self._table(index, element_strides(x.strides, x.itemsize), runtime().device())
        return runtime().address(table)

    def _make(self, index: int, strides: tuple[int, ...], device: int) -> Any:
        piece = self._pieces[index]
        channels = _channels(piece, self._order)
        axes = np.indices((channels, *piece.kernel), np.int64).reshape(4, channels, math.prod(piece.kernel))
        channel, *tap = (axis.T.ravel() if self._order == "channels of taps" else axis.ravel() for axis in axes)
        table = np.zeros(channel.size, TAP)
        table["offset"] = channel * strides[2]
        for name, along, dilation, stride in zip("dhw", tap, piece.dilation, strides[3:], strict=True):
            table[name] = along * dilation
            table["offset"] += along * dilation * stride
        return runtime().upload(table)


def adjacent_channels(piece: Correlation, strides: Words, first: int, most: int) -> int:
    """How many channels one aligned load can take, whatever the tap and the position: a power of two up to `most`.

    `strides` of the input count elements, and `first` is where it begins: elements from an address that is a multiple
    of `most` of them.
    """
    if strides[2] != 1:
        return 1
    return math.gcd(most, first, piece.in_channels, *strides[:2], *strides[3:])


def divisor(value: int) -> Words:
    """A `Divisor`: the numbers that stand for division by `value`, 1 <= value < 2^31."""
    shift = (value - 1).bit_length()
    return value, (1 << 32) * ((1 << shift) - value) // value + 1, shift
