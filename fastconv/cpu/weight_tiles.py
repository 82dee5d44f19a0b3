"""Weights in the order in which the tile of pixels reads them: tile by tile of outputs, (taps, outputs) in each.

All pieces of a problem are arranged in one pass that reads the weight once, in whatever layout it comes:

* outputs side by side (HWIO): rows of outputs are copied;
* inputs side by side (OHWI; 1 x 1; and OIHW, whose inputs and taps make one run): squares of outputs by inputs are
  transposed in registers;
* the taps of an output and an input side by side (IOHW, as transposed convolutions have it, and kernels that are
  flipped): squares of outputs by taps are transposed, and each row goes to the piece that has the tap; taps too few
  for a square are gathered.

Bytes bound it, and most of these runs are too short for the prefetching of a CPU: the code prefetches the next ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter, methodcaller
from typing import Any, NamedTuple

import numpy as np

from fastconv import recycling
from fastconv.arrays import named_dtype
from fastconv.cpu.copying import copy_planes, prefetch
from fastconv.cpu.costs import Work
from fastconv.cpu.jit import TaskKernel, array, inline, integer
from fastconv.cpu.microkernel import TILE_VECTORS, odd_lines, padded
from fastconv.cpu.transpose import gather_vector, scatter_block, transpose_block
from fastconv.lowering import Correlation, lower
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem

Array = np.ndarray[Any, Any]

_AHEAD = 8  # inputs: how far ahead their taps are prefetched
_CHUNK = 16  # inputs of a tap that are arranged together: a cache line of those that lie side by side
_BASE, _STEP, _PLACE = range(3)  # of a tap: where its piece begins, how many taps that has, which of them it is


@inline
def arrange(w, g, o_first, here, first, last, table, lanes, tiles, lines):  # type: ignore[no-untyped-def]
    """Arrange a tile of outputs, `here` of them, for inputs `first` to `last` of ``w (G, O, C, taps)``.

    Tap t of input c goes to ``base + place * width + step * (lines + c * width)`` of `tiles`, with what the table has
    for t, where the width is that of the tile in whole vectors.
    """
    volume, itemsize = w.shape[3], w.itemsize
    step_o, step_c, step_t = w.strides[1] // itemsize, w.strides[2] // itemsize, w.strides[3] // itemsize
    end = 1
    for axis in range(4):
        end += (w.shape[axis] - 1) * w.strides[axis] // itemsize
    width, whole = -(-here // lanes) * lanes, here // lanes * lanes
    rows, run = (1, here * volume) if step_o == volume else (here, volume)  # that the taps of an input make
    source = g * w.strides[0] // itemsize + o_first * step_o
    for c_first in range(first, last, _CHUNK):
        some = min(_CHUNK, last - c_first)
        if step_t == 1 and step_o > 1 and volume > 1:
            for c in range(c_first, c_first + some):
                line, begin = lines + c * width, source + c * step_c
                for o in range(rows):
                    for i in range(0, run, 64 // itemsize):  # cache lines
                        prefetch(w, begin + _AHEAD * step_c + o * step_o + i)
                for t in range(0, volume, lanes):
                    few = volume - t < lanes // 2  # taps: with 8 lanes one is left of 9, of 25 and of 49
                    for o in range(0, width, lanes):
                        at = begin + o * step_o + t
                        if not few and o < whole and at + (lanes - 1) * step_o + lanes <= end:
                            scatter_block(w, at, step_o, tiles, o, table, t, width, line)
                            continue
                        for j in range(t, min(t + lanes, volume)):
                            to = table[j, _BASE] + table[j, _PLACE] * width + table[j, _STEP] * line
                            if o < whole:
                                gather_vector(w, at + j - t, step_o, tiles, to + o)
                                continue
                            for i in range(o, o + lanes):
                                tiles[to + i] = w[g, o_first + i, c, j] if i < here else 0
            continue
        for t in range(volume):
            pitch = table[t, _STEP] * width
            target = table[t, _BASE] + table[t, _PLACE] * width + table[t, _STEP] * lines + c_first * pitch
            begin = source + t * step_t + c_first * step_c
            done_o, done_c = 0, 0  # so many outputs of so many inputs are in place
            ahead = begin + _CHUNK * step_c
            if step_o == 1:
                done_o, done_c = here, some
                for c in range(some):
                    prefetch(w, ahead + c * step_c)
                copy_planes(tiles, target, pitch, 0, w, begin * itemsize, step_c * itemsize, 0, some, 1, here)
            elif step_c == 1:
                done_o, done_c = whole, some // lanes * lanes
                for o in range(here):
                    prefetch(w, ahead + o * step_o)
                for o in range(0, done_o, lanes):
                    for c in range(0, done_c, lanes):
                        transpose_block(w, begin + o * step_o + c, step_o, tiles, target + c * pitch + o, pitch)
            for c in range(some):
                for i in range(done_o if c < done_c else 0, width):
                    tiles[target + c * pitch + i] = w[g, o_first + i, c_first + c, t] if i < here else 0


def _arrange(first, last, w, table, lanes, tile, outputs, tiles, _):  # type: ignore[no-untyped-def]
    """Fill `tiles` from ``w (G, O, C, taps)``; a task is a tile of outputs, which are padded to `outputs`."""
    blocks, inputs = -(-w.shape[1] // tile), w.shape[2]
    for task in range(first, last):
        g, block = divmod(task, blocks)
        o_first = block * tile
        here = min(tile, w.shape[1] - o_first)
        arrange(w, g, o_first, here, 0, inputs, table, lanes, tiles, (g * outputs + o_first) * inputs)


_kernel = TaskKernel(_arrange)


def arranging(problem: ConvProblem) -> Iterable[Work]:
    """What it costs to arrange the weights of a problem: `"arranging"`, and elements `"arranged"`."""
    yield Work(1, {"arranging": 1})
    for piece in lower(problem):
        channels = piece.groups * padded(piece.out_channels, named_dtype(problem.accumulator_dtype).itemsize)
        yield Work(-(-channels // (TILE_VECTORS * 8)), {"arranged": channels * piece.reduction})


class _Layout(NamedTuple):
    """How weights of one shape and layout are arranged."""

    #: Gives their taps as the kernel takes them, ``(G, O, C, taps)``.
    view: Callable[[Array], Array]
    table: Array
    tasks: int
    #: Outputs of a group, padded.
    outputs: int
    #: Where in the tiles the pieces lie, and how many elements there are in all.
    parts: list[slice]
    elements: int


class WeightTiles:
    """How the pieces of a problem want their weights.

    Parameters
    ----------
    problem : ConvProblem
    pieces : sequence of Correlation, optional
        Those of its lowering, or others of which each has some of its taps.
    """

    def __init__(self, problem: ConvProblem, pieces: Sequence[Correlation] | None = None) -> None:
        self._pieces = lower(problem) if pieces is None else pieces
        self._dtype = named_dtype(problem.accumulator_dtype)
        self._lanes = vector_bytes() // self._dtype.itemsize
        self._tile = TILE_VECTORS * self._lanes
        vector = array(self._dtype, 1, contiguous=True, readonly=False)
        matrix = array(np.dtype(np.int64), 2, contiguous=True)
        self._kernel = _kernel.compile(array(self._dtype, 4), matrix, *[integer] * 3, vector, vector)
        self._layout = lru_cache(maxsize=8)(self._layout_of)
        self._in_pieces = lru_cache(maxsize=8)(self._taps_in_pieces)

    def __call__(self, w: Array) -> list[Array]:
        """For each piece, the tiles of its part of ``w (G, O, C, KD, KH, KW)``: ``(G, taps * O)``, O padded."""
        tiles, parts = self._arranged(w)
        return [tiles[part].reshape(len(w), -1) for part in parts]

    def in_rows(self, w: Array) -> Array:
        """For pieces of equal size, a row of tiles for each: ``(pieces, G * taps * O)``, padded at its end."""
        tiles, parts = self._arranged(w)
        return tiles.reshape(len(parts), tiles.size // max(len(parts), 1))

    def of_a_task(self, w: Array) -> tuple[Array, Array]:
        """For a problem of one piece: the weights and the table from which a task arranges a tile of its own."""
        taps = self._taps(w)
        used, table = self._in_pieces(w.shape[3:], (0,), taps.strides[3] < 0)
        return taps[..., used], table

    def _arranged(self, w: Array) -> tuple[Array, list[slice]]:
        """The tiles of all pieces, and which are whose."""
        taps = self._taps(w)
        where = self._layout(w.shape, taps.strides)
        tiles = recycling.empty((where.elements,), self._dtype)
        used = where.view(taps)
        self._kernel(where.tasks, used.size, 0, used, where.table, self._lanes, self._tile, where.outputs, tiles)
        return tiles, where.parts

    def _taps(self, w: Array) -> Array:
        w = w if w.dtype is self._dtype else w.astype(self._dtype, copy=False)
        return w.reshape(*w.shape[:3], math.prod(w.shape[3:]))

    def _layout_of(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> _Layout:
        """How weights of some shape are arranged, of whose taps these are the strides."""
        groups, outputs, inputs, *kernel = shape
        whole, volume = padded(outputs, self._dtype.itemsize), math.prod(kernel)
        sizes = [groups * whole * inputs * math.prod(piece.kernel) for piece in self._pieces]
        # Each begins on a cache line, in another set than the one before: an input's weights go to all of them.
        bases = (0, *itertools.accumulate(odd_lines(size, self._dtype.itemsize) for size in sizes))
        if len(sizes) == 1 and self._pieces[0].whole and strides[2:] == (volume * strides[3], self._dtype.itemsize):
            run = groups, outputs, inputs * volume, 1
            view: Callable[[Array], Array] = methodcaller("reshape", run)
            table = np.array([[0, 1, 0]])
        else:
            used, table = self._in_pieces(tuple(kernel), bases, strides[3] < 0)
            view = itemgetter((..., used))
        parts = [slice(base, base + size) for base, size in zip(bases, sizes, strict=False)]
        return _Layout(view, table, groups * -(-outputs // self._tile), whole, parts, bases[-1])

    def _taps_in_pieces(self, kernel: tuple[int, ...], bases: tuple[int, ...], falling: bool) -> tuple[Any, Array]:
        """Which taps pieces use, in the order of memory, in which they may be `falling`, and where each goes."""
        numbers = np.arange(math.prod(kernel)).reshape(kernel)
        table = np.zeros((numbers.size, 3), np.int64)
        for piece, base in zip(self._pieces, bases, strict=False):
            chosen = piece.weight_view(numbers).ravel()
            table[chosen, _BASE], table[chosen, _STEP], table[chosen, _PLACE] = base, len(chosen), range(len(chosen))
        used: Any = slice(None, None, -1 if falling else 1)
        if not table[:, _STEP].all():  # there are fewer outputs than the stride has residues
            used = table[:, _STEP].nonzero()[0][used]
        table = table[used]
        last = (len(table) - 1) // self._lanes * self._lanes  # its square ends with places that it may overwrite
        return used, np.concatenate([table, table[last : last + 1].repeat(self._lanes, 0)])
