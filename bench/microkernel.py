"""The register tile beside the peak of this core: ``python bench/microkernel.py [DTYPE]``.

For each number of output channels and each width in vectors, GFLOP/s of `multiply_tile` and its share of the measured
peak of multiply-adds: with the lines in the L1 cache, and walking along lines that only the L2 cache holds.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from numba import njit

from fastconv.commands.ceilings import fma_peak
from fastconv.cpu.microkernel import multiply_tile, tile_channels
from fastconv.machine import vector_bytes

TAPS = 128
ROW_BYTES = {"L1": 192, "L2": 1920}  # of sums: the lines of all taps take 24 and 240 KB
SECONDS = 0.1


@njit(nogil=True)
def _tiles(sums, lines, offsets, weights, channels, width, repeats):
    pitch = sums.shape[0] // channels
    for _ in range(repeats):
        for j in range(0, pitch, width):
            multiply_tile(sums, j, pitch, lines[j:], offsets, offsets.shape[0], weights, 0, channels, width)


def tile_rate(dtype: str, channels: int, vectors: int, row_bytes: int) -> float:
    """Operations per second of tiles of so many channels and vectors along rows of about `row_bytes` of sums."""
    width = vectors * vector_bytes() // np.dtype(dtype).itemsize
    pitch = max(row_bytes // (vectors * vector_bytes()), 1) * width
    sums, lines = np.zeros(channels * pitch, dtype), np.ones(TAPS * pitch, dtype)
    offsets, weights = np.arange(TAPS, dtype=np.int64) * pitch, np.full(TAPS * channels, 1e-6, dtype)
    operations = 2 * sums.size * TAPS
    repeats = -(-100_000_000 // operations)
    best = np.inf
    _tiles(sums, lines, offsets, weights, channels, width, 1)
    stop = time.perf_counter() + SECONDS
    while time.perf_counter() < stop:
        start = time.thread_time()
        _tiles(sums, lines, offsets, weights, channels, width, repeats)
        best = min(best, time.thread_time() - start)
    return repeats * operations / best


def main() -> None:
    """Print a line for each number of channels and each width."""
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    print(f"{dtype}, one thread; peak of multiply-adds in registers: {fma_peak(dtype) / 1e9:.1f} GFLOP/s")
    print("channels  vectors" + "".join(f"{level:>10} GFLOP/s (share)" for level in ROW_BYTES))
    for channels in range(1, tile_channels() + 1):
        for vectors in (1, 2, 3, 4, 6):
            line = f"{channels:8}  {vectors:7}"
            for row_bytes in ROW_BYTES.values():
                peak, rate = fma_peak(dtype), tile_rate(dtype, channels, vectors, row_bytes)
                line += f"{rate / 1e9:18.1f} ({rate / peak:5.1%})"
            print(line, flush=True)


if __name__ == "__main__":
    main()
