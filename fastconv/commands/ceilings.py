"""What this CPU can do at most, measured: the lines above and beside every figure of ``bench``.

Two rates bound any kernel (Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for
multicore architectures", CACM 52(4), 2009): that of fused multiply-adds whose operands are all in registers, and that
at which bytes come from where they are. Small layers stay in a cache from one call to the next, so reading is measured
for working sets of several sizes, not from memory alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

import fastconv
from fastconv.cpu import parallel
from fastconv.cpu.microkernel import Combine, multiply_add, multiply_add_pairs
from fastconv.cpu.pairs import SMALL
from fastconv.machine import vector_bytes
from fastconv.problem import DTYPES

# Sums under way at once: 12 leave room for the operands in 16 registers, 24 in 32. The better one counts.
_SUMS = (12, 24)
_ROUNDS = 1 << 19
_MEMORY = 1 << 27  # bytes, more than caches hold
_SETS = (1 << 14, 1 << 18, 1 << 22, _MEMORY)
_BYTES_READ = 1 << 28  # at least so many in one run
_SECONDS = 0.3  # runs are repeated so long, and the shortest counts

_INDEX = ir.IntType(64)


@dataclass(frozen=True)
class Ceilings:
    """Rates of a number of threads together."""

    threads: int
    dtype: str
    flops: float  # a multiply-add is two
    reads: dict[int, float]  # bytes per second, for each size of a working set in bytes; the largest one is in memory
    copy: float  # bytes read and written per second, in memory

    @property
    def memory(self) -> float:
        """Bytes read from memory per second."""
        return self.reads[max(self.reads)]


def measure(dtype: str, threads: int) -> Ceilings:
    """Measure the ceilings of `threads` threads; takes some seconds."""
    reads = {size: read_rate(size, threads) for size in _SETS}
    return Ceilings(threads, dtype, fma_peak(dtype, threads), reads, copy_rate(threads))


def fma_peak(dtype: str, threads: int = 1) -> float:
    """Operations per second of multiply-adds on registers, two for each multiply-add.

    Half types are multiplied as float32, small integers in pairs.
    """
    summed, pair = DTYPES[dtype][1], dtype in SMALL
    lanes = vector_bytes() // np.dtype(summed).itemsize

    def rate(sums: int) -> float:
        loop = _multiply_adds(sums, multiply_add_pairs if pair else multiply_add)
        values = [np.ones((sums + 2) * lanes, summed) for _ in range(threads)]
        seconds = _least_seconds(lambda i: loop(values[i], _ROUNDS), threads)
        return 2.0 * (1 + pair) * threads * sums * lanes * _ROUNDS / seconds

    return max(map(rate, _SUMS))


def read_rate(size: int, threads: int = 1) -> float:
    """Bytes per second that threads read, each from `size` bytes of its own; together at most what memory needs."""
    words = [np.ones(max(min(size, _MEMORY // threads), 8) // 8, np.uint64) for _ in range(threads)]
    repeats = -(-_BYTES_READ // threads // words[0].nbytes)
    seconds = _least_seconds(lambda i: _read(words[i], repeats), threads)
    return threads * repeats * words[0].nbytes / seconds


def copy_rate(threads: int = 1) -> float:
    """Bytes per second that threads read and write when they copy in memory."""
    pairs = np.ones((threads, 2, _MEMORY // threads // 8))
    seconds = _least_seconds(lambda i: np.copyto(*pairs[i]), threads)
    return 2.0 * pairs[:, 0].nbytes / seconds


def _least_seconds(work: Callable[[int], Any], threads: int) -> float:
    """The shortest time in which each of the threads does its part, `work(i)`, once."""

    def part(first: int, last: int) -> None:
        for i in range(first, last):
            work(i)

    best = np.inf
    part(0, threads)  # compiles, and touches the memory
    stop = time.perf_counter() + _SECONDS
    with fastconv.threads(threads):
        while (start := time.perf_counter()) < stop:
            parallel.run(part, threads, macs=1 << 40)
            best = min(best, time.perf_counter() - start)
    return float(best)


@cache
def _multiply_adds(sums: int, combine: Combine) -> Any:
    """A kernel that multiplies and adds `rounds` times to each of some vectors; the last two are the operands."""

    @intrinsic  # type: ignore[untyped-decorator]
    def emit(typing_context, values, rounds):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            number = context.get_value_type(signature.args[0].dtype)
            itemsize = context.get_abi_sizeof(number)
            vector = ir.VectorType(number, vector_bytes() // itemsize)
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            data = builder.bitcast(data, vector.as_pointer())
            places = [builder.gep(data, [_INDEX(v)]) for v in range(sums + 2)]
            held = [cgutils.alloca_once(builder, vector) for _ in range(sums)]  # LLVM keeps these in registers
            for place, sum_ in zip(places, held, strict=False):
                builder.store(builder.load(place, align=itemsize), sum_)
            factor, addend = (builder.load(place, align=itemsize) for place in places[sums:])
            with cgutils.for_range(builder, arguments[1]):
                for sum_ in held:
                    builder.store(combine(builder, builder.load(sum_), factor, addend), sum_)
            for place, sum_ in zip(places, held, strict=False):
                builder.store(builder.load(sum_), place, align=itemsize)
            return context.get_dummy_value()

        return types.void(values, rounds), generate

    return njit(nogil=True)(lambda values, rounds: emit(values, rounds))


@njit(nogil=True)
def _read(words: Any, repeats: int) -> Any:
    found = np.uint64(0)
    for _ in range(repeats):
        for i in range(words.shape[0]):
            found ^= words[i]
    return found
