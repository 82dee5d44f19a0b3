"""Weights in the order in which the tile of pixels reads them: tile by tile of outputs, (taps, outputs) in each.

Outputs that lie side by side in memory are copied in whole vectors. Where it is the taps of an output that do, as in
OIHW, squares of outputs by taps are transposed in registers. A transposed convolution's weight (C_in, C_out, taps) has
its outputs a kernel apart and is used piece by piece, some taps at a time: `outputs_last` transposes all of it once,
after which every piece copies vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.cpu import parallel
from fastconv.cpu.jit import Kernel, array, integer
from fastconv.cpu.rows import read_run, without_gaps
from fastconv.cpu.transpose import transpose_block

Array = np.ndarray[Any, Any]


def _arrange(first, last, w, lanes, tile, tiles):  # type: ignore[no-untyped-def]
    """Fill ``tiles (G, O padded * taps)`` from ``w (G, O, C, KD, KH, KW)``; a task is a tile of outputs."""
    channels, volume, itemsize = w.shape[1], w.shape[3] * w.shape[4] * w.shape[5], w.itemsize
    taps = w.shape[2] * volume
    in_order = w.strides[5] == itemsize and w.strides[4] == w.shape[5] * itemsize
    in_order = in_order and w.strides[3] == w.shape[4] * w.strides[4] and w.strides[2] == volume * itemsize
    blocks = -(-channels // tile)
    for task in range(first, last):
        g, block = divmod(task, blocks)
        o_first = block * tile
        here = min(tile, channels - o_first)
        width = -(-here // lanes) * lanes
        target = tiles[g, o_first * taps : o_first * taps + width * taps]
        if here < width:
            target[:] = 0
        whole = here // lanes * lanes if in_order else 0  # outputs of squares
        squares = taps // lanes * lanes if whole > 0 else 0  # and their taps
        step = w.strides[1] // itemsize
        source = (g * w.strides[0]) // itemsize + o_first * step
        for o in range(0, whole, lanes):
            for t in range(0, squares, lanes):
                transpose_block(w, source + o * step + t, step, target, t * width + o, width)
        t = 0
        for c in range(w.shape[2]):
            for kd in range(w.shape[3]):
                for kh in range(w.shape[4]):
                    for kw in range(w.shape[5]):
                        row = w[g, o_first : o_first + here, c, kd, kh, kw]
                        at = t * width
                        if step == 1:
                            read_run(without_gaps(row), 0, 0, target[at : at + here])
                        else:
                            for o in range(whole if t < squares else 0, here):
                                target[at + o] = row[o]
                        t += 1


def _outputs_last(first, last, w, lanes, moved):  # type: ignore[no-untyped-def]
    """Fill ``moved (G * C, taps * O)``; the taps of an output and a channel lie side by side. A task is a row."""
    channels, volume, step = w.shape[1], w.shape[3] * w.shape[4] * w.shape[5], w.strides[1] // w.itemsize
    whole_o, whole_t = channels // lanes * lanes, volume // lanes * lanes
    for task in range(first, last):
        g, c = divmod(task, w.shape[2])
        source = (g * w.strides[0] + c * w.strides[2]) // w.itemsize
        target = moved[task]
        for o in range(0, whole_o, lanes):
            for t in range(0, whole_t, lanes):
                transpose_block(w, source + o * step + t, step, target, t * channels + o, channels)
        for t in range(volume):
            rest, kw = divmod(t, w.shape[5])
            kd, kh = divmod(rest, w.shape[4])
            for o in range(whole_o if t < whole_t else 0, channels):
                target[t * channels + o] = w[g, o, c, kd, kh, kw]


_arrange_kernel, _outputs_last_kernel = Kernel(_arrange), Kernel(_outputs_last)


def compile_arranging(dtype: np.dtype[Any], pieces: int) -> None:
    """Have the kernels that weights of so many pieces need before the first one comes."""
    _arranger(dtype)
    if pieces > 1:
        _mover(dtype)


def arrange(w: Array, lanes: int, tile: int) -> Array:
    """The tiles of ``w (G, O, C, KD, KH, KW)``: ``(G, taps * O)``, O rounded up to whole vectors of `lanes`."""
    groups, channels = w.shape[:2]
    outputs = -(-channels // lanes) * lanes
    tiles = recycling.empty((groups, outputs * (w.size // max(groups * channels, 1))), w.dtype)
    kernel = _arranger(w.dtype)
    parallel.run(lambda first, last: kernel(first, last, w, lanes, tile, tiles), groups * -(-channels // tile), w.size)
    return tiles


def outputs_last(w: Array, lanes: int) -> Array:
    """``w (G, O, C, KD, KH, KW)`` as a view of memory in which outputs lie side by side; itself if it cannot be."""
    groups, channels, inputs, *taps = w.shape
    depth, height, width = w.strides[3:]
    if width != w.itemsize or height != taps[2] * width or depth != taps[1] * height or w.strides[1] == w.itemsize:
        return w
    moved = recycling.empty((groups * inputs, math.prod(taps) * channels), w.dtype)
    kernel = _mover(w.dtype)
    parallel.run(lambda first, last: kernel(first, last, w, lanes, moved), groups * inputs, w.size)
    return moved.reshape(groups, inputs, *taps, channels).transpose(0, 5, 1, 2, 3, 4)


def _arranger(dtype: np.dtype[Any]) -> Any:
    return _arrange_kernel.compile(integer, integer, array(dtype, 6), integer, integer, _filled(dtype))


def _mover(dtype: np.dtype[Any]) -> Any:
    return _outputs_last_kernel.compile(integer, integer, array(dtype, 6), integer, _filled(dtype))


def _filled(dtype: np.dtype[Any]) -> Any:
    return array(dtype, 2, contiguous=True, readonly=False)
