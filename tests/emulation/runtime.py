"""The CUDA kernels on the CPU: each program built by the system's C++ compiler behind ``cuda_emulation.h``.

:class:`EmulatedRuntime` stands where ``fastconv.gpu.runtime.CupyRuntime`` does; its arrays are NumPy's.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from emulation.tensor_maps import parameters

from fastconv.gpu.runtime import Dim, KernelSpec
from fastconv.gpu.source import entries, program

HERE = Path(__file__).parent
HEADERS = [HERE / name for name in ("cuda_emulation.h", "warp_operations.h", "hopper_operations.h")]
SCHEDULER = HERE / "scheduler.cpp"

# Only launchers can be seen from outside: two programs may have a name in common.
FLAGS = ("-std=c++17", "-O1", "-g0", "-w", "-fPIC", "-fvisibility=hidden")


def compiler() -> str | None:
    """The system's C++ compiler, or None."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)


class EmulatedLane:
    """Does at once what it is given; but a buffer shows what it holds only when it has been waited for."""

    def __init__(self) -> None:
        self._fetched: list[tuple[Any, np.ndarray[Any, Any]]] = []

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        return np.full(shape, 77, dtype)

    def send(self, host: np.ndarray[Any, Any], device: Any) -> None:
        device.reshape(-1)[: host.size] = host.ravel()

    def fetch(self, device: Any, host: np.ndarray[Any, Any]) -> None:
        self._fetched.append((device, host))

    def wait(self) -> None:
        for device, host in self._fetched:
            host[...] = device.reshape(-1)[: host.size].reshape(host.shape)
        self._fetched.clear()


class EmulatedRuntime:
    """Runs kernels in this process, on NumPy arrays."""

    xp = np

    def __init__(self) -> None:
        self.launched: set[KernelSpec] = set()
        self._libraries: dict[str, ctypes.CDLL] = {}
        self._maps: dict[Any, np.ndarray[Any, Any]] = {}  # kernels hold pointers to them

    def device(self) -> int:
        return 0

    def capability(self) -> int:
        return 90

    def processors(self) -> int:
        return 3  # so that blocks have several tiles

    def encode(self, tensor: Any) -> tuple[int, ...]:
        if tensor not in self._maps:
            self._maps[tensor] = parameters(tensor)
        return (self._maps[tensor].ctypes.data, *(0,) * 15)

    def captured(self) -> bool:
        return False

    def address(self, array: Any) -> int:
        return int(array.__array_interface__["data"][0])

    def upload(self, array: np.ndarray[Any, Any]) -> Any:
        return array

    def download(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return array.copy()

    def lanes(self, count: int) -> list[EmulatedLane]:
        return [EmulatedLane() for _ in range(count)]

    def build(self, specs: Iterable[KernelSpec]) -> None:
        """Compile the programs of many kernels, two at a time."""
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(self._library, spec) for spec in specs]:
                future.result()

    def launch(self, spec: KernelSpec, grid: Dim, block: Dim, params: np.ndarray[Any, Any]) -> None:
        self.launched.add(spec)
        self._run(self._library(spec), spec.entry, grid, block, spec.shared_bytes, params)

    def launch_text(
        self, text: str, entry: str, grid: Dim, block: Dim, params: np.ndarray[Any, Any], options: tuple[str, ...] = (),
        shared_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Run a kernel of a program that is no file of the package."""
        self._run(self._load(text, (entry,), options), entry, grid, block, shared_bytes, params)

    def _run(
        self, library: ctypes.CDLL, entry: str, grid: Dim, block: Dim, shared: int, params: np.ndarray[Any, Any]
    ) -> None:
        launch = getattr(library, f"launch_{entry}")
        launch.restype = ctypes.c_char_p
        dims = ((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block))
        failure = launch(
            *dims, ctypes.c_size_t(shared), ctypes.c_void_p(params.ctypes.data), ctypes.c_size_t(params.nbytes)
        )
        if failure:
            raise RuntimeError(f"{entry}: {failure.decode()}")

    def _library(self, spec: KernelSpec) -> ctypes.CDLL:
        return self._load(program(spec.file), entries(spec.file), spec.options)

    def _load(self, text: str, names: tuple[str, ...], options: tuple[str, ...]) -> ctypes.CDLL:
        launchers = "\n".join(
            f'extern "C" __attribute__((visibility("default"))) const char* launch_{name}(const unsigned* grid, '
            "const unsigned* block, size_t shared, const void* params, size_t size) "
            f"{{ return emulation::launch({name}, grid, block, shared, params, size); }}"
            for name in names
        )
        # Not on the command line: a precompiled header is of no use where a macro might have changed it.
        macros = "".join(f"#define {o[2:].replace('=', ' ', 1)}\n" for o in options if o.startswith("-D"))
        source = f'{macros}#line 1 "kernel"\n{text}\n{launchers}\n'
        key = _digest(source)
        if key not in self._libraries:
            self._libraries[key] = ctypes.CDLL(str(_made(f"{key}.so", source, *_common())))
        return self._libraries[key]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


@cache
def _folder() -> Path:
    """Where what is compiled with these headers outlives the process."""
    key = _digest(str(compiler()), *FLAGS, *(path.read_text() for path in (*HEADERS, SCHEDULER)))
    folder = Path(tempfile.gettempdir()) / f"fastconv-emulation-{os.getuid()}" / key
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _made(name: str, source: str, *options: str) -> Path:
    """A file of the folder, compiled by one of all threads and processes that want it, while the others wait."""
    path = _folder() / name
    if path.exists():
        return path
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            text, unfinished = Path(f"{path}.cpp"), Path(f"{path}.unfinished")
            text.write_text(source)
            command = [compiler() or "c++", *FLAGS, *options, "-o", str(unfinished), str(text)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
            unfinished.rename(path)
    return path


@cache
def _common() -> tuple[str, ...]:
    """Options that bring the headers, precompiled, and the scheduler into a program."""
    header = _made("emulation.h.gch", "\n".join(path.read_text() for path in HEADERS), "-x", "c++-header")
    scheduler = _made("scheduler.o", SCHEDULER.read_text(), f"-I{HERE}", "-c", "-x", "c++")
    return "-shared", str(scheduler), "-include", str(header.with_suffix("")), "-x", "c++"
