"""How long a call takes, on either device: what ``tune``, ``bench`` and the fit of the cost models share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.problem import ConvProblem

_ROW_SECONDS = 5e-4


def operands(problem: ConvProblem, device: str) -> tuple[Any, Any]:
    """Arrays to time a problem with, on its device."""
    rng, dtype = np.random.default_rng(0), named_dtype(problem.dtype)
    x, w = (rng.standard_normal(shape, np.float32).astype(dtype, copy=False) for shape in problem.operand_shapes)
    if device == "cpu":
        return x, w
    import cupy

    return cupy.asarray(x), cupy.asarray(w)


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


def turn(
    call: Callable[[], Any], device: str, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of a call, measured for about `seconds`, in rows so long that the clock's own time does not count."""
    enough = time.perf_counter() + seconds
    calls = max(1, int(_ROW_SECONDS / max(seconds_of(call, device), 1e-7)))
    measured = [seconds_of(call, device, calls, clock)]
    while time.perf_counter() < enough:
        measured.append(seconds_of(call, device, calls, clock))
    return measured
