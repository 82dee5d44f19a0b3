"""Cut work into tasks for all threads: how many are worth it, what each gets, where it finds scratch memory.

Numba's layers are no choice for a library: GNU OpenMP aborts in a forked child, the work queue aborts on concurrent
callers. Here any number of Python threads may call at once, and a child starts workers of its own after ``fork``
(:mod:`fastconv.cpu.team`). Tasks are handed out as they are finished; which thread runs a task never changes what the
task computes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.cpu import team
from fastconv.settings import get_num_threads

# A thread is worth having only for more than this many multiply-adds.
_LEAST_WORK = 100_000
_CHUNKS_PER_THREAD = 4
_FEW_PER_THREAD = 16  # tasks, which are handed out one by one: ranges of one and of two would be shared unevenly

CACHE_LINE = 64  # bytes

_local = threading.local()


def threads_for(tasks: int, macs: int) -> int:
    """Threads worth having for so many tasks of so many multiply-adds in all."""
    return 1 if macs < _LEAST_WORK else min(get_num_threads(), tasks, 1 + macs // _LEAST_WORK)


def chunks_for(tasks: int, threads: int) -> int:
    """Into how many ranges to cut the tasks, so that threads that are late get less."""
    return tasks if tasks <= threads * _FEW_PER_THREAD else threads * _CHUNKS_PER_THREAD


def run(work: Callable[[int, int], None], tasks: int, macs: int) -> None:
    """Call ``work(first, last)`` on ranges that together cover ``range(tasks)``, on several threads.

    A :class:`fastconv.cpu.jit.TaskKernel` does the same with less delay.

    Parameters
    ----------
    work : callable
        Must release the GIL for most of its time, and must not care which ranges it gets.
    tasks : int
    macs : int
        Multiply-adds in all, to tell whether other threads are worth having.
    """
    threads = threads_for(tasks, macs)
    if threads <= 1:
        if tasks:
            work(0, tasks)
        return
    errors: list[BaseException] = []

    def part(_: Any, first: int, last: int, number: int) -> int:
        try:
            if not errors:
                work(first, last)
        except BaseException as error:  # handed to the caller, who raises it
            errors.append(error)
        return len(errors)

    team.share(threads - 1, team.PART(part), tasks, chunks_for(tasks, threads))
    if errors:
        raise errors[0]


def scratch(length: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """At least `length` elements of this thread's uninitialised memory, valid until it next asks.

    Fresh pages would cost more than the work done in them. It begins on a cache line, so that vectors do not cross two.
    """
    buffers = _local.__dict__
    buffer = buffers.get(dtype.char)
    if buffer is None or buffer.size < length:
        buffers.clear()
        block = np.empty(length * dtype.itemsize + CACHE_LINE, np.uint8)
        start = -block.ctypes.data % CACHE_LINE
        buffer = buffers[dtype.char] = block[start : start + length * dtype.itemsize].view(dtype)
    return buffer
