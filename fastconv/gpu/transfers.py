"""Between host and GPU: lanes on which copies and kernels run beside those of other lanes, and what copying costs.

A GPU fetches from pinned memory by itself, while the host and its kernels go on; from other memory the driver copies,
and the host waits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastconv import machine, settings
from fastconv.remembered import digest, write

_MOST_PINNED = 256 << 20  # bytes of a buffer; pages that cannot be moved are few, and making more takes long
_SAMPLE = 32 << 20  # bytes copied to measure a rate
_REPEATS = 8  # of which the shortest counts


class Transfers(NamedTuple):
    """What moving arrays to a GPU and back costs on this machine, measured."""

    to_device: float  # bytes per second, from pinned memory
    to_host: float
    staging: float  # bytes per second that the host copies between pinned memory and its own
    chunk: float  # seconds that a copy there, one back and waiting for them take, however short


class Lane(Protocol):
    """A queue of copies and kernels; inside a ``with`` block, what is allocated and launched goes to it."""

    def __enter__(self) -> Any:
        """Also lets the lane wait for all that the current stream has been given."""

    def __exit__(self, *error: Any) -> None: ...

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Host memory to copy from and to."""

    def send(self, host: np.ndarray[Any, Any], device: Any) -> None:
        """Begin to fill a device array from a buffer."""

    def fetch(self, device: Any, host: np.ndarray[Any, Any]) -> None:
        """Begin to fill a buffer from a device array."""

    def wait(self) -> None:
        """Return when all that the lane was given is done."""


@dataclass(frozen=True)
class CupyLane:
    """A stream of CuPy's."""

    stream: Any

    @classmethod
    def new(cls) -> CupyLane:
        """A lane on the current device."""
        import cupy

        return cls(cupy.cuda.Stream(non_blocking=True))

    def __enter__(self) -> None:
        import cupy

        self.stream.wait_event(cupy.cuda.get_current_stream().record())
        self.stream.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.stream.__exit__(*error)

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        if math.prod(shape) * dtype.itemsize > _MOST_PINNED:
            return np.empty(shape, dtype)
        import cupyx

        pinned: np.ndarray[Any, Any] = cupyx.empty_pinned(shape, dtype)
        return pinned

    def send(self, host: np.ndarray[Any, Any], device: Any) -> None:
        device.data.copy_from_host_async(host.ctypes.data, host.nbytes, self.stream)

    def fetch(self, device: Any, host: np.ndarray[Any, Any]) -> None:
        device.data.copy_to_host_async(host.ctypes.data, host.nbytes, self.stream)

    def wait(self) -> None:
        self.stream.synchronize()


def recall(measured: Callable[[], Transfers]) -> Transfers:
    """What is remembered of this machine; if nothing is, it is measured now and remembered, so that choices stay."""
    path = settings.cache_directory() / "transfers" / f"{digest(machine.identity('gpu').encode())}.json"
    try:
        found = Transfers(**json.loads(path.read_text(encoding="utf-8")))
        if all(isinstance(value, float) and 0 < value < math.inf for value in found):
            return found
    except (OSError, ValueError, TypeError):  # there is none, or none that can be read
        pass
    found = measured()
    with suppress(OSError):  # where nothing can be written, each process measures
        write(path, found._asdict())
    return found


def measure(lane: Lane, empty: Callable[[int, Any], Any]) -> Transfers:
    """Time copies on a lane; `empty` makes device arrays of a length and dtype."""
    with lane:
        device, host = empty(_SAMPLE, np.uint8), lane.buffer((_SAMPLE,), np.dtype(np.uint8))
    own = np.ones(_SAMPLE, np.uint8)

    def least(work: Callable[[], None]) -> float:
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            work()
            lane.wait()
            times.append(time.perf_counter() - start)
        return min(times)

    def there_and_back() -> None:
        lane.send(host[:1], device)
        lane.fetch(device, host[:1])

    return Transfers(
        to_device=_SAMPLE / least(lambda: lane.send(host, device)),
        to_host=_SAMPLE / least(lambda: lane.fetch(device, host)),
        staging=_SAMPLE / least(lambda: np.copyto(host, own)),
        chunk=least(there_and_back),
    )
