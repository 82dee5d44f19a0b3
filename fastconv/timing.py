"""How long a call takes, on either device: what `tune`, `bench` and the fit of the cost models share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def seconds_of(
    call: Callable[[], Any], device: str, calls: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one of `calls` calls in a row.

    On a GPU the row stands between two events on the device, so that the host's work for a call is hidden behind the
    device's for the one before.

    Parameters
    ----------
    call : callable
    device : str
        ``"cpu"`` or ``"gpu"``.
    calls : int
        Enough that the clock's own time does not count.
    clock : callable
        Of the CPU; ``time.thread_time`` leaves out other processes, where one thread does all the work.

    Returns
    -------
    float
    """
    if device == "cpu":
        start = clock()
        for _ in range(calls):
            call()
        return (clock() - start) / calls
    import cupy

    first, last = cupy.cuda.Event(), cupy.cuda.Event()
    first.record()
    for _ in range(calls):
        call()
    last.record()
    last.synchronize()
    return float(cupy.cuda.get_elapsed_time(first, last)) * 1e-3 / calls
