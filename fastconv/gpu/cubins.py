"""Programs compiled for a GPU's architecture by the NVRTC that CuPy found, and kept on disk.

The compiler is not asked through ``cupy.RawModule``, which would add options of its own: one of them flushes float32
subnormals to zero. So a GPU runs what the tests weigh, and what one architecture alone has (sm_90a) compiles like the
rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fastconv.files import write_at_once
from fastconv.gpu.source import program
from fastconv.settings import cache_directory

_PTX = "-arch=compute_"


def architecture(capability: int) -> str:
    """The compiler's argument for a device: its machine code, or PTX if the compiler is older than the device.

    That is of the newest architecture that the compiler knows and the device can run; the driver compiles it.
    """
    from cupy.cuda import nvrtc

    known = [one for one in nvrtc.getSupportedArchs() if one <= capability]
    return f"-arch=sm_{capability}" if capability in known or not known else f"{_PTX}{max(known)}"


def cubin(file: str, options: Sequence[str]) -> bytes:
    """The machine code (or PTX, if the architecture is virtual) of a program, from the disk, or compiled.

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
        virtual = any(option.startswith(_PTX) for option in options)
        # CuPy takes the last byte of either for the end of a string.
        code: bytes = (nvrtc.getPTX(handle) if virtual else nvrtc.getCUBIN(handle)) + b"\0"
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{file} {' '.join(options)}: {error}\n{nvrtc.getProgramLog(handle)}") from error
    finally:
        nvrtc.destroyProgram(handle)
    with suppress(OSError):  # a read-only or full disk costs the next process a compilation, no more
        write_at_once(path, code)
    return code
