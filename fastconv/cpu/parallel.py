"""Run the tasks of a kernel on all threads: our own small pool, because kernels release the GIL.

Numba's layers are no choice for a library: GNU OpenMP aborts in a forked child, the work queue aborts on concurrent
callers. Here any number of Python threads may call at once, and a child starts workers of its own after ``fork``.
Tasks are handed out as they are finished; which thread runs a task never changes what the task computes.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

from fastconv.settings import get_num_threads

# A thread is worth waking (some 20 us) only for more than this many multiply-adds.
_LEAST_WORK = 300_000
_CHUNKS_PER_THREAD = 4

Work = Callable[[int, int], None]

_queue: SimpleQueue[_Job] = SimpleQueue()
_workers = 0
_growing = threading.Lock()
_local = threading.local()


class _Job:
    """A range of tasks cut into chunks, shared by the threads that work on it."""

    def __init__(self, work: Work, tasks: int, chunks: int) -> None:
        self.work, self.tasks, self.chunks = work, tasks, chunks
        self.error: BaseException | None = None
        self.finished = threading.Lock()
        self.finished.acquire()
        self._taken = itertools.count()  # next() on it is atomic
        self._done = itertools.count(1)

    def take_part(self) -> None:
        """Work until no chunk is left to take; whoever finishes the last one says so."""
        while (chunk := next(self._taken)) < self.chunks:
            first, last = (self.tasks * edge // self.chunks for edge in (chunk, chunk + 1))
            try:
                if self.error is None:
                    self.work(first, last)
            except BaseException as error:  # handed to the caller, who raises it
                self.error = error
            if next(self._done) == self.chunks:
                self.finished.release()


def run(work: Work, tasks: int, macs: int) -> None:
    """Call ``work(first, last)`` on ranges that together cover ``range(tasks)``, on several threads.

    Parameters
    ----------
    work : callable
        Must release the GIL for most of its time, and must not care which ranges it gets.
    tasks : int
    macs : int
        Multiply-adds in all, to tell whether other threads are worth waking.
    """
    threads = 1 if macs < _LEAST_WORK else min(get_num_threads(), tasks, 1 + macs // _LEAST_WORK)
    if threads <= 1:
        if tasks:
            work(0, tasks)
        return
    _grow(threads - 1)
    job = _Job(work, tasks, min(tasks, threads * _CHUNKS_PER_THREAD))
    for _ in range(threads - 1):
        _queue.put(job)
    job.take_part()
    job.finished.acquire()
    if job.error is not None:
        raise job.error


def _grow(workers: int) -> None:
    global _workers
    if _workers >= workers:
        return
    with _growing:
        while _workers < workers:
            threading.Thread(target=_serve, args=(_queue,), name=f"fastconv-{_workers}", daemon=True).start()
            _workers += 1


def _serve(queue: SimpleQueue[_Job]) -> None:
    while True:
        queue.get().take_part()


def _after_fork_in_child() -> None:
    """A child has none of its parent's threads, and its locks may be held by nobody."""
    global _queue, _workers, _growing
    _queue, _workers, _growing = SimpleQueue(), 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def scratch(length: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """At least `length` elements of this thread's uninitialised memory, valid until it next asks.

    Fresh pages would cost more than the work done in them.
    """
    buffers = _local.__dict__
    buffer = buffers.get(dtype.char)
    if buffer is None or buffer.size < length:
        buffers.clear()
        buffer = buffers[dtype.char] = np.empty(length, dtype)
    return buffer
