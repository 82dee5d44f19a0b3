"""Calls timed on one thread of one process, in turns, by CPU time: for peers whose threads do not spin."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from fastconv.timing import turn

ROUNDS = 5


def least(*calls: Callable[[], object], seconds: float) -> list[float]:
    """Least CPU seconds of each call, in rounds of turns that take so many seconds each."""
    best = [math.inf] * len(calls)
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            best[i] = min(best[i], *turn(call, "cpu", seconds, time.thread_time))
    return best
