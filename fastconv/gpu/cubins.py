"""Programs compiled for one architecture and what it alone has, such as sm_90a, which CuPy cannot be asked for."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastconv.gpu.source import program
from fastconv.settings import cache_directory


def compiled(file: str, options: Sequence[str]) -> Path:
    """The cubin of a program, kept on disk; compiled by the NVRTC that CuPy found if it is not there.

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
    OSError
        If the folder for it cannot be written to.
    """
    from cupy.cuda import nvrtc

    text = program(file)
    key = hashlib.sha256(repr((text, tuple(options), nvrtc.getVersion())).encode())
    path = cache_directory() / "cubins" / f"{Path(file).stem}-{key.hexdigest()[:16]}.cubin"
    if path.exists():
        return path
    handle = nvrtc.createProgram(text, file, (), ())
    try:
        nvrtc.compileProgram(handle, tuple(options))
        code = nvrtc.getCUBIN(handle)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{file} {' '.join(options)}: {error}\n{nvrtc.getProgramLog(handle)}") from error
    finally:
        nvrtc.destroyProgram(handle)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
        scratch.write(code)
    os.replace(scratch.name, path)  # at once, whoever else is writing it or reading it
    return path
