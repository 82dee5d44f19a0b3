"""Small integers in pairs: two channels' int16 in one 32-bit word, multiplied and added by one instruction.

A product of two 16-bit integers fits 32 bits, and CPUs have an instruction that multiplies such integers and adds them
two by two: `vpmaddwd` since MMX, `vpdpwssd`, which adds to a third operand too, since VNNI. So integers of 8 and of 16
bits are widened to int16 and laid down two channels to a word,

    word[c] = x[2c] + 2**16 * x[2c + 1]        a . b = low(a) * low(b) + high(a) * high(b)

and a convolution of C channels of such integers is one of C / 2 channels of words, in which the product of two words is
their scalar product. A sum of words' products is exact modulo 2**32, as int32 sums are promised: of all products only
(-2**15)**2 + (-2**15)**2 = 2**31 leaves int32, and the instruction wraps it round. A last channel that has no partner
is paired with weights of zero.

Widening reads each integer once and writes two bytes for it; each is then multiplied by all outputs and taps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.cpu import parallel
from fastconv.cpu.jit import TaskKernel, array, inline
from fastconv.cpu.plan import is_flat
from fastconv.cpu.rows import without_gaps
from fastconv.lowering import Correlation
from fastconv.problem import ConvProblem

Array = np.ndarray[Any, Any]

#: What is multiplied in pairs; there is no other use of words of this dtype.
SMALL = "int8", "uint8", "int16"
WORD = np.dtype(np.uint32)


def paired(problem: ConvProblem) -> ConvProblem:
    """The problem of half the channels (for a weight gradient, of half the batch) whose elements are words."""
    if problem.op == "weight_grad":
        return replace(problem, dtype="int32", batch_shape=(-(-problem.batch // 2),))
    name = "in_channels" if problem.op == "forward" else "out_channels"
    inputs = -(-getattr(problem, name) // max(problem.groups, 1) // 2)
    return replace(problem, dtype="int32", **{name: inputs * problem.groups})


def word_bytes(piece: Correlation) -> int:
    """Bytes of the words of an image that a correlation of them reads."""
    return max(piece.groups * piece.in_channels * math.prod(piece.size), 1) * WORD.itemsize


def images_at_once(piece: Correlation, workspace_limit: int) -> int:
    """Of how many images the words exist at a time."""
    return min(max(workspace_limit // word_bytes(piece), 1), max(piece.batch, 1))


@inline
def _join(low, high, words):  # type: ignore[no-untyped-def]
    for i in range(np.uintp(words.shape[0])):  # unsigned, so that LLVM vectorises
        words[i] = np.uint32(np.uint16(low[i])) | np.uint32(np.uint16(high[i])) << np.uint32(16)


@inline
def _widen(low, words):  # type: ignore[no-untyped-def]
    for i in range(np.uintp(words.shape[0])):
        words[i] = np.uint16(low[i])


def _pair(first, last, x, words, _):  # type: ignore[no-untyped-def]
    """Fill ``words (N, G, pairs, D, H, W)`` from ``x (N, G, C, D, H, W)``, in both of which rows have no gaps."""
    groups, pairs, depth, height = words.shape[1:5]
    for task in range(first, last):
        rest, pair = divmod(task, pairs)
        n, g = divmod(rest, groups)
        for d in range(depth):
            for h in range(height):
                low, row = without_gaps(x[n, g, 2 * pair, d, h]), without_gaps(words[n, g, pair, d, h])
                if 2 * pair + 1 < x.shape[2]:
                    _join(low, without_gaps(x[n, g, 2 * pair + 1, d, h]), row)
                else:
                    _widen(low, row)


_kernel = TaskKernel(_pair)


class Words:
    """Makes words of small integers.

    Parameters
    ----------
    dtype : str
        One of :data:`SMALL`.
    """

    def __init__(self, dtype: str) -> None:
        words, scratch = array(WORD, 6, readonly=False), array(WORD, 1, contiguous=True, readonly=False)
        self._kernel = _kernel.compile(array(np.dtype(dtype), 6), words, scratch)

    def __call__(self, x: Array) -> Array:
        """The words of a six-axis view, whose third axis is halved.

        Rows of a channel stay rows. Anything else is laid down channels last, where to widen is all there is to do.
        """
        batch, groups, channels, *size = x.shape
        pairs = -(-channels // 2)
        if x.strides[5] == x.itemsize and (channels == 1 or x.strides[2] != x.itemsize):
            words = recycling.empty((batch, groups, pairs, *size), WORD)
            run = 1, 1, math.prod(size)
            rows, target = (a.reshape(*a.shape[:3], *run) if is_flat(x) else a for a in (x, words))
            self._kernel(batch * groups * pairs, x.size, 0, rows, target)
            return words
        pixels = x.transpose(0, 3, 4, 5, 1, 2)
        halves = recycling.empty((*pixels.shape[:5], 2 * pairs), np.dtype(np.int16))
        halves[..., channels:] = 0

        def widen(first: int, last: int) -> None:
            halves[:, :, :, first:last, :, :channels] = pixels[:, :, :, first:last]

        parallel.run(widen, size[2], x.size)
        return halves.view(WORD).transpose(0, 4, 5, 1, 2, 3)
