"""Compile and launch: the one place that knows how a kernel gets onto a device.

Algorithms ask :func:`runtime` for it. It is CuPy's, unless :func:`use` put another one in its place: the tests run the
same kernels on the CPU that way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np

from fastconv.gpu import transfers
from fastconv.gpu.cubins import architecture, cubin
from fastconv.gpu.driver import driver
from fastconv.gpu.tensor_maps import Boxes, Pixels, encode
from fastconv.gpu.transfers import CupyLane, Lane, Transfers
from fastconv.problem import DTYPES
from fastconv.remembering import once

Dim = tuple[int, int, int]

_SHARED_UNASKED = 48 << 10  # bytes of dynamic shared memory that a block gets without asking


@dataclass(frozen=True)
class KernelSpec:
    """A kernel: an entry of a file in ``cuda/``, compiled with these macros."""

    file: str
    entry: str
    defines: tuple[tuple[str, str], ...]
    shared_bytes: int = 0  # dynamic shared memory of a block
    capability: int = 75  # the least compute capability, as 80 for 8.0
    specific: bool = False  # uses what no other compute capability has

    def __hash__(self) -> int:
        return self._hash

    @once
    def _hash(self) -> int:
        # Each launch looks its kernel up, and hashing all these words takes as long as the rest of it.
        return hash((self.file, self.entry, self.defines, self.shared_bytes))

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's arguments."""
        return ("-std=c++17", *(f"-D{name}={value}" for name, value in self.defines))

    def runs_on(self, capability: int) -> bool:
        """Whether devices of that compute capability can run it."""
        return capability == self.capability if self.specific else capability >= self.capability

    def architecture(self, capability: int) -> str:
        """The compiler's argument for devices of that compute capability."""
        return f"-arch=sm_{capability}{'a' if self.specific else ''}"

    def __str__(self) -> str:
        """Entry, dtype, and what else distinguishes the variant; the other dtypes follow from the first."""
        return " ".join((self.entry, *(value for name, value in self.defines if name not in ("RESULT", "ACCUMULATOR"))))


def dtype_defines(dtype: str) -> tuple[tuple[str, str], ...]:
    """The macros that every kernel takes: element types, which ``cuda/types.cuh`` calls by their NumPy names."""
    result, accumulator = DTYPES[dtype]
    return (("STORAGE", dtype), ("RESULT", result), ("ACCUMULATOR", accumulator))


class Runtime(Protocol):
    """What algorithms need of a device."""

    @property
    def xp(self) -> Any:
        """The module of the device's arrays, with NumPy's functions."""

    def device(self) -> int:
        """Number of the current device."""

    def capability(self) -> int | None:
        """Compute capability of the current device, as 90 for 9.0; None if there is no device."""

    def processors(self) -> int:
        """Multiprocessors of the current device; those of an H100 if there is no device."""

    def captured(self) -> bool:
        """Whether what is launched now becomes part of a graph instead of being done."""

    def address(self, array: Any) -> int:
        """Where the element of index zero lies, whatever the strides."""

    def encode(self, tensor: Boxes | Pixels) -> tuple[int, ...]:
        """A tensor map as kernels receive it, in 64-bit words."""

    def upload(self, array: np.ndarray[Any, Any]) -> Any:
        """A copy on the current device, complete, so that kernels on any stream may read it."""

    def download(self, array: Any) -> np.ndarray[Any, Any]:
        """A copy in host memory, complete."""

    def launch(self, spec: KernelSpec, grid: Dim, block: Dim, params: np.ndarray[Any, Any]) -> None:
        """Run a kernel; `params` is its only parameter, an array of one element, passed by value."""

    def lanes(self, count: int) -> Sequence[Lane]:
        """So many queues on the current device, which this thread has for itself."""

    def transfers(self) -> Transfers:
        """What copies between host and device cost."""


T = TypeVar("T", bound=Runtime)


class CupyRuntime:
    """NVRTC and driver through CuPy; kernels run on CuPy's current device and stream."""

    def __init__(self) -> None:
        self._threads = threading.local()  # lanes by device
        self._transfers: Transfers | None = None

    @property
    def xp(self) -> Any:
        import cupy

        return cupy

    def device(self) -> int:
        return int(self.xp.cuda.runtime.getDevice())

    def capability(self) -> int | None:
        return None if why_no_gpu() else int(self.xp.cuda.Device().compute_capability)

    def processors(self) -> int:
        return 132 if why_no_gpu() else self._processors(self.device())

    def captured(self) -> bool:
        return bool(self.xp.cuda.get_current_stream().is_capturing())

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def encode(self, tensor: Boxes | Pixels) -> tuple[int, ...]:
        return encode(tensor)

    def upload(self, array: np.ndarray[Any, Any]) -> Any:
        only_before_capture()
        # CuPy has no structured dtypes: the bytes travel alone.
        copy = self.xp.asarray(array.view(np.uint8))
        self.xp.cuda.get_current_stream().synchronize()
        return copy

    def download(self, array: Any) -> np.ndarray[Any, Any]:
        copy: np.ndarray[Any, Any] = array.get()
        return copy

    def launch(self, spec: KernelSpec, grid: Dim, block: Dim, params: np.ndarray[Any, Any]) -> None:
        self._kernel(spec, self.device())(grid, block, (params,), spec.shared_bytes)

    def lanes(self, count: int) -> Sequence[Lane]:
        mine: list[CupyLane] = vars(self._threads).setdefault(str(self.device()), [])
        mine += [CupyLane.new() for _ in range(count - len(mine))]
        return mine[:count]

    def transfers(self) -> Transfers:
        if self._transfers is None:
            self._transfers = transfers.recall(lambda: transfers.measure(self.lanes(1)[0], self.xp.empty))
        return self._transfers

    @staticmethod
    @cache
    def _processors(device: int) -> int:
        import cupy

        return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])

    @staticmethod
    @cache
    def _kernel(spec: KernelSpec, device: int) -> Any:
        """A kernel, loaded on the current device."""
        import cupy

        only_before_capture()
        capability = int(cupy.cuda.Device(device).compute_capability)
        target = spec.architecture(capability) if spec.specific else architecture(capability)
        module = cupy.cuda.Module()
        module.load(cubin(spec.file, (*spec.options, target)))
        kernel = module.get_function(spec.entry)
        if spec.shared_bytes > _SHARED_UNASKED:
            most = cupy.cuda.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            cupy.cuda.driver.funcSetAttribute(kernel.ptr, most, spec.shared_bytes)
        return kernel


_current: Runtime = CupyRuntime()


def runtime() -> Runtime:
    """The runtime on which GPU algorithms run now."""
    return _current


def only_before_capture() -> None:
    """Called before what is done once and cannot become part of a graph.

    Raises
    ------
    RuntimeError
        If the current stream is being captured.
    """
    if runtime().captured():
        raise RuntimeError(
            "this is the first call of its kind, which loads kernels, checks them and copies tables to the GPU: make "
            "one like it before the stream is captured"
        )


@contextmanager
def use(other: T) -> Iterator[T]:
    """Put another runtime in CuPy's place inside a ``with`` block, for the whole process."""
    global _current
    before, _current = _current, other
    try:
        yield other
    finally:
        _current = before


def why_no_gpu() -> str | None:
    """Why kernels cannot run on a GPU here, in words for the user; None if they can."""
    try:
        driver()  # asked first: importing CuPy takes longer than many a convolution
    except OSError as error:
        return f"there is no NVIDIA driver ({error})"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); install fastconv[cuda12] or fastconv[cuda13]"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no usable CUDA device ({error})"
    try:
        cupy.cuda.nvrtc.getVersion()
    except RuntimeError as error:
        return f"CuPy finds no NVRTC to compile kernels with ({error}); install fastconv[cuda12] or fastconv[cuda13]"
    return None if count else "CuPy finds no CUDA device"
