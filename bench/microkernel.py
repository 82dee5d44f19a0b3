"""The register tiles beside the peak of this core: ``python bench/microkernel.py [DTYPE]``.

For each shape, GFLOP/s of `multiply_tile` (channels by vectors of a row) and of `multiply_pixels` (pixels by vectors of
channels), and the share of the measured peak of multiply-adds: with the input in the L1 cache, and walking along input
that only the L2 cache holds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from numba import njit

from fastconv.commands.ceilings import fma_peak
from fastconv.cpu.microkernel import TILE_VECTORS, multiply_pixels, multiply_tile, tile_channels, tile_pixels
from fastconv.machine import vector_bytes

ROW_TAPS, PIXEL_TAPS = 128, 256  # as many as the algorithms add in one go
INPUT_BYTES = {"L1": 12 << 10, "L2": 240 << 10}
SECONDS = 0.1


@njit(nogil=True)
def _row_tiles(sums, lines, offsets, weights, channels, width, repeats):
    pitch = sums.shape[0] // channels
    for _ in range(repeats):
        for j in range(0, pitch, width):
            multiply_tile(sums, j, pitch, lines[j:], offsets, offsets.shape[0], weights, 0, channels, width)


@njit(nogil=True)
def _pixel_tiles(sums, lines, offsets, weights, places, pixels, vectors, repeats):
    pitch = sums.shape[0] // places.shape[0]
    for _ in range(repeats):
        for p in range(0, places.shape[0], pixels):
            multiply_pixels(
                sums, p * pitch, pitch, p * pitch, pitch, lines, places, p, offsets, offsets.shape[0], weights, 0,
                pixels, vectors,
            )  # fmt: skip


def row_tile_rate(dtype: str, channels: int, vectors: int, input_bytes: int) -> float:
    """Operations per second of `multiply_tile`, `channels` by `vectors`, on about so much input."""
    width = vectors * vector_bytes() // np.dtype(dtype).itemsize
    pitch = max(input_bytes // (ROW_TAPS * vectors * vector_bytes()), 1) * width
    sums, lines = np.zeros(channels * pitch, dtype), np.ones(ROW_TAPS * pitch, dtype)
    offsets, weights = np.arange(ROW_TAPS, dtype=np.int64) * pitch, np.full(ROW_TAPS * channels, 1e-6, dtype)
    return _rate(lambda n: _row_tiles(sums, lines, offsets, weights, channels, width, n), 2 * sums.size * ROW_TAPS)


def pixel_tile_rate(dtype: str, pixels: int, vectors: int, input_bytes: int) -> float:
    """Operations per second of `multiply_pixels`, `pixels` by `vectors`, on about so much input."""
    itemsize = np.dtype(dtype).itemsize
    pitch = vectors * vector_bytes() // itemsize
    places = np.arange(max(input_bytes // (PIXEL_TAPS * itemsize * pixels), 1) * pixels)
    sums, lines = np.zeros(places.size * pitch, dtype), np.ones(PIXEL_TAPS * places.size, dtype)
    offsets, weights = np.arange(PIXEL_TAPS, dtype=np.int64) * places.size, np.full(PIXEL_TAPS * pitch, 1e-6, dtype)
    return _rate(
        lambda n: _pixel_tiles(sums, lines, offsets, weights, places, pixels, vectors, n), 2 * sums.size * PIXEL_TAPS
    )


def _rate(run: Callable[[int], None], operations: int) -> float:
    """Operations per second of ``run(repeats)``, which does so many each time."""
    repeats = -(-100_000_000 // operations)
    best = np.inf
    run(1)
    stop = time.perf_counter() + SECONDS
    while time.perf_counter() < stop:
        start = time.thread_time()
        run(repeats)
        best = min(best, time.thread_time() - start)
    return repeats * operations / best


def main() -> None:
    """Print a line for each shape of both tiles."""
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    print(f"{dtype}, one thread; peak of multiply-adds in registers: {fma_peak(dtype) / 1e9:.1f} GFLOP/s")
    for name, rate, most, widths in (
        ("channels", row_tile_rate, tile_channels(), (1, 2, 3, 4, 6)),
        ("pixels", pixel_tile_rate, tile_pixels(), range(1, TILE_VECTORS + 1)),
    ):
        print(f"{name:>8}  vectors" + "".join(f"{level:>10} GFLOP/s (share)" for level in INPUT_BYTES))
        for count in range(1, most + 1):
            for vectors in widths:
                line = f"{count:8}  {vectors:7}"
                for size in INPUT_BYTES.values():
                    peak, reached = fma_peak(dtype), rate(dtype, count, vectors, size)
                    line += f"{reached / 1e9:18.1f} ({reached / peak:5.1%})"
                print(line, flush=True)


if __name__ == "__main__":
    main()
