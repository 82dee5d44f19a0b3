"""Programs compiled for a GPU's architecture by the NVRTC that CuPy found, and kept on disk.

The compiler is not asked through ``cupy.RawModule``, which would add options of its own: one of them flushes float32
subnormals to zero. So a GPU runs what the tests weigh, and what one architecture alone has (sm_90a) compiles like the
rest.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fastconv.gpu.source import program
from fastconv.settings import cache_directory


def cubin(file: str, options: Sequence[str]) -> bytes:
    """The machine code of a program, from the disk, or compiled.

    Parameters
    ----------
    file : str
        In ``cuda/``.
    options : sequence of str
        The compiler's arguments, the architecture among them.

    Raises
    ------
    RuntimeError
        If the program does not compile; the message is the compiler's log.
    """
    from cupy.cuda import nvrtc

    text = program(file)
    key = hashlib.sha256(repr((text, tuple(options), nvrtc.getVersion())).encode())
    path = cache_directory() / "cubins" / f"{Path(file).stem}-{key.hexdigest()[:16]}.cubin"
    with suppress(OSError):  # not there, or not for us to read
        return path.read_bytes()
    handle = nvrtc.createProgram(text, file, (), ())
    try:
        nvrtc.compileProgram(handle, tuple(options))
        code: bytes = nvrtc.getCUBIN(handle) + b"\0"  # CuPy takes the last byte for the end of a string
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{file} {' '.join(options)}: {error}\n{nvrtc.getProgramLog(handle)}") from error
    finally:
        nvrtc.destroyProgram(handle)
    with suppress(OSError):  # a read-only or full disk costs the next process a compilation, no more
        _save(path, code)
    return code


def _save(path: Path, code: bytes) -> None:
    """Write a file at once, whoever else is writing it or reading it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
        scratch.write(code)
    os.replace(scratch.name, path)
