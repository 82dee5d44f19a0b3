"""Timing engines fairly: each in a process of its own, taking turns in rounds on the same arrays.

On the CPU the minimum over all turns is kept: everything that disturbs a run makes it slower. All engines get the same
time on a layer, so that none has more chances of an undisturbed run. On a GPU, calls are timed
by events on the device, on copies of the arrays that together exceed its L2 cache twice over, and the median is kept.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from fastconv.commands.engine import Declined, EngineError, layer_operands
from fastconv.networks import TF32, Layer
from fastconv.registry import UNIT_ROUNDOFF
from fastconv.timing import seconds_of

_TURN_SECONDS = 0.05
_LEAST_TURNS = 3
_PAUSE_SECONDS = 0.02  # lets the threads of the engine before stop spinning
_GPU_CALLS = 20
_GPU_TURN_SECONDS = 0.02
_MOST_COPIES = 1024
_MOST_COMPARED = 1 << 22  # elements of a result, if its first axis can be thinned so far
_UNIT_ROUNDOFF = UNIT_ROUNDOFF | {TF32: UNIT_ROUNDOFF["float16"]}  # as many bits


@dataclass(frozen=True)
class Entry:
    """What one engine did with one layer: its time, or why there is none.

    `difference` is the largest one from the first engine's result, relative to that result's largest element; it is
    `wrong` if not even half of the dtype's digits agree, or any integer differs. Where `median` is far above `seconds`,
    the least of the same times, other work disturbed the race. An engine that `failed` raised what `why_not` says; one
    that did not declined the layer.
    """

    engine: str
    algorithm: str = ""
    seconds: float | None = None
    median: float | None = None
    difference: float | None = None
    wrong: bool = False
    why_not: str | None = None
    failed: bool = False


class Racer:
    """This process's end of an engine."""

    def __init__(self, engine: str, device: str, threads: int) -> None:
        self.engine = engine
        self._arguments = engine, device, threads
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, *request: Any) -> Any:
        """Send a request to the engine's process and wait for its answer.

        Raises
        ------
        EngineError
            If the engine declined or failed; or its process died, in whose place a new one is started.
        """
        try:
            self._pipe.send(request)
            error, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self.close()
            status = self._process.exitcode
            self._start()
            raise EngineError(f"its process ended with status {status}") from None
        if error is not None:
            raise error(answer)
        return answer

    def close(self) -> None:
        """End the engine's process."""
        self._pipe.close()
        self._process.join()


def race(racers: list[Racer], layer: Layer, dtype: str, device: str, seconds: float) -> list[Entry]:
    """Time a layer on every engine for so long; the first result is what the others are compared with.

    What an engine declines or fails to compute is noted in its entry.
    """
    entries: dict[Racer, Entry] = {}
    times: dict[Racer, list[float]] = {}
    expected = None
    for racer in racers:
        try:
            algorithm, result = racer.ask("load", layer, dtype)
        except EngineError as error:
            entries[racer] = _untimed(racer, error)
            continue
        expected = result if expected is None else expected
        difference = _difference(result, expected)
        right = difference <= math.sqrt(_UNIT_ROUNDOFF.get(dtype, 0.0))
        entries[racer], times[racer] = Entry(racer.engine, algorithm, difference=difference, wrong=not right), []
    left = dict.fromkeys(times, seconds)
    turns = 0
    while waiting := [racer for racer in times if left[racer] > 0 or turns < _LEAST_TURNS]:
        turns += 1
        for racer in waiting:
            if device == "cpu":
                time.sleep(_PAUSE_SECONDS)
            start = time.perf_counter()
            try:
                times[racer] += racer.ask("turn")
            except EngineError as error:
                entries[racer] = _untimed(racer, error)
                del times[racer]
                continue
            left[racer] -= time.perf_counter() - start
    keep = min if device == "cpu" else statistics.median
    for racer, measured in times.items():
        entries[racer] = replace(entries[racer], seconds=keep(measured), median=statistics.median(measured))
    return list(entries.values())


def _untimed(racer: Racer, error: EngineError) -> Entry:
    return Entry(racer.engine, why_not=str(error), failed=not isinstance(error, Declined))


def _difference(result: Any, expected: Any) -> float:
    if result.shape != expected.shape:
        return math.inf
    scale = float(np.max(np.abs(expected), initial=0)) or 1.0
    return float(np.max(np.abs(result - expected), initial=0)) / scale


# -- the engine's process ------------------------------------------------------------------------------------------


def _serve(pipe: Connection, name: str, device: str, threads: int) -> None:
    """Answer requests, which are methods of :class:`_Server` and their arguments, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both ends; the other one ends this
    server = None
    while True:
        try:
            method, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            server = server or _Server(name, device, threads)
            pipe.send((None, getattr(server, method)(*arguments)))
        except Declined as declined:
            pipe.send((Declined, str(declined)))
        except Exception as error:  # whatever an engine raises is a fact about it, to be reported
            pipe.send((EngineError, f"{type(error).__name__}: {error}".partition("\n")[0]))


class _Server:
    """An engine and the layer it has loaded."""

    def __init__(self, name: str, device: str, threads: int) -> None:
        from fastconv.commands.engines import start

        self._engine = start(name, device, threads)
        self._device = device
        self._calls: Iterator[Callable[[], Any]] = iter(())

    def version(self) -> str:
        return self._engine.version()

    def load(self, layer: Layer, dtype: str) -> tuple[str, Any]:
        """Prepare a layer and run it once; the algorithm's name, and the result or some images of it."""
        if layer.op not in self._engine.ops:
            raise Declined(f"it has no {layer.op}")
        if layer.fused and not self._engine.fuses:
            raise Declined("it is raced without bias and activation")
        x, w, bias = layer_operands(layer, dtype)
        copies = 1 if self._device == "cpu" else _copies(x.nbytes + w.nbytes)
        calls = [self._engine.prepare(layer, dtype, x, w, bias) for _ in range(copies)]
        for call in calls:
            result = call()
        self._calls = itertools.cycle(calls)
        compared = result[:: -(-math.prod(result.shape) // _MOST_COMPARED)]
        return self._engine.algorithm(layer, dtype), self._engine.fetch(compared).astype(np.float64)

    def turn(self) -> list[float]:
        """Seconds of each of a few calls, or on a GPU of each of a few rows of calls."""
        calls, seconds = (1, _TURN_SECONDS) if self._device == "cpu" else (_GPU_CALLS, _GPU_TURN_SECONDS)
        times: list[float] = []
        stop = time.perf_counter() + seconds
        while not times or time.perf_counter() < stop:
            times.append(seconds_of(lambda: next(self._calls)(), self._device, calls))
        return times


def _copies(nbytes: int) -> int:
    """How many copies of `nbytes` fill the L2 cache of the GPU twice."""
    import cupy

    return min(2 * int(cupy.cuda.Device().attributes["L2CacheSize"]) // nbytes + 1, _MOST_COPIES)
