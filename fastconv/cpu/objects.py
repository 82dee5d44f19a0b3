"""Object code of kernels: kept on disk under a key that cannot serve stale code, and linked into this process.

The key of an object file holds everything that its code depends on: every source file of this package (helpers from
other files are inlined), the kernel and its argument types, the versions of what compiles, the CPU, and Numba's own
settings. Linking is LLVM's: neither Numba nor a system linker takes part.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from fastconv import settings
from fastconv.files import write_at_once
from fastconv.machine import vector_bytes

if TYPE_CHECKING:
    from fastconv.cpu.jit import Argument

#: The name under which an object file exports its function.
ENTRY = "fastconv_entry"

#: What object code may use of Python, by name.
PYTHON_FUNCTIONS = (
    "PyEval_RestoreThread", "PyEval_SaveThread", "PyErr_Occurred", "PyErr_SetString", "PyLong_AsLongLong", "Py_IncRef",
    "PyThread_acquire_lock", "PyThread_acquire_lock_timed", "PyThread_release_lock",
)  # fmt: skip
PYTHON_OBJECTS = {"fastconv_None": None, "fastconv_ndarray": np.ndarray, "fastconv_TypeError": TypeError}

_UNUSED_DAYS = 30

# -- on disk ----------------------------------------------------------------------------------------------------------


@cache
def _generation() -> str:
    """A digest of what the code of all kernels depends on."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(__file__).parent.glob("*.py")), _version_of_numba()]:
        digest.update(path.read_bytes())
    features = llvm.get_host_cpu_features().flatten()
    compilers = llvmlite.__version__, np.__version__
    cpu = (llvm.get_process_triple(), llvm.get_host_cpu_name(), features, vector_bytes())
    chosen = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    digest.update(repr((sys.version, compilers, cpu, chosen)).encode())
    return digest.hexdigest()[:16]


def _version_of_numba() -> Path:
    """The file that says it: importing Numba or `importlib.metadata` takes longer than a first call needs otherwise."""
    numba = find_spec("numba")
    assert numba is not None and numba.origin is not None
    return Path(numba.origin).with_name("_version.py")


def directory() -> Path:
    """Where this process keeps object files; those of other versions and settings lie beside it."""
    return settings.cache_directory() / "kernels" / _generation()


def load(function: Callable[..., None], arguments: tuple[Argument, ...], shared: bool) -> bytes:
    """The object code of a kernel for these argument types; compiled if it is not on the disk."""

    def compiled() -> bytes:
        from fastconv.cpu import _compiler

        return _compiler.compile_object(function, arguments, shared)

    source = Path(function.__code__.co_filename).read_bytes()  # it may be a test's
    return _kept(function.__name__, f"{function.__qualname__}{arguments}{shared}".encode() + source, compiled)


def assemble(name: str, source: str) -> bytes:
    """The object code of LLVM IR."""

    def assembled() -> bytes:
        _initialize()
        features = llvm.get_host_cpu_features().flatten()
        machine = llvm.Target.from_default_triple().create_target_machine(
            llvm.get_host_cpu_name(), features, codemodel="jitdefault", jit=True
        )
        return bytes(machine.emit_object(llvm.parse_assembly(source)))

    return _kept(name, source.encode(), assembled)


def _kept(name: str, key: bytes, make: Callable[[], bytes]) -> bytes:
    """The object code that is on the disk under this key; made if it is not."""
    path = directory() / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}.o"
    try:
        checksum, code = (content := path.read_bytes())[:32], content[32:]
        if hashlib.sha256(code).digest() == checksum:
            return code
    except OSError:
        pass  # not there, or not for us to read
    code = make()
    with suppress(OSError):  # a read-only or full disk costs the next process a compilation, no more
        _save(path, hashlib.sha256(code).digest() + code)
    return code


def _save(path: Path, content: bytes) -> None:
    """Keep a file; the first one of a generation makes room for it."""
    first = not path.parent.exists()
    write_at_once(path, content)
    if first:
        _forget_unused(path.parent.parent)


def _forget_unused(home: Path) -> None:
    """Delete generations to which nothing was added for a month."""
    oldest = time.time() - _UNUSED_DAYS * 86400
    for generation in home.iterdir():
        if generation.stat().st_mtime < oldest:
            for path in generation.iterdir():
                path.unlink()
            generation.rmdir()


# -- in memory --------------------------------------------------------------------------------------------------------


class _MethodDef(ctypes.Structure):
    """Python's ``PyMethodDef``."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("method", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)
    )  # fmt: skip


_METH_FASTCALL = 0x80
_forever: list[_MethodDef] = []  # Python keeps pointers to these


def function(code: bytes, name: str) -> Any:
    """Link object code and make a Python function of its entry."""
    method = _MethodDef(name.encode(), link(code, (ENTRY,))[ENTRY], _METH_FASTCALL, None)
    _forever.append(method)
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    return new(ctypes.addressof(method), None, None)


def link(code: bytes, exports: Sequence[str]) -> dict[str, int]:
    """Link object code and give the addresses of what it exports. It stays for good, as a module's would."""
    builder = llvm.JITLibraryBuilder().add_current_process().add_object_img(code)
    for symbol in PYTHON_FUNCTIONS:
        builder.import_symbol(symbol, ctypes.cast(getattr(ctypes.pythonapi, symbol), ctypes.c_void_p).value)
    for symbol, thing in PYTHON_OBJECTS.items():
        builder.import_symbol(symbol, id(thing))
    for symbol in exports:
        builder.export_symbol(symbol)
    _initialize()
    linker = llvm.create_lljit_compiler()
    library = builder.link(linker, "fastconv")
    addresses = {symbol: library[symbol] for symbol in exports}
    # LLVM would unload the code when Python's objects die, at exit even under threads that still run it.
    library.detach()
    linker.detach()
    return addresses


def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
