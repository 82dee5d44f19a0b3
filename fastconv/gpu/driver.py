"""The CUDA driver's library, for the few functions that CuPy does not wrap."""

from __future__ import annotations

import ctypes
import sys
from functools import cache


@cache
def driver() -> ctypes.CDLL:
    """The library.

    Raises
    ------
    OSError
        If there is none.
    """
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
