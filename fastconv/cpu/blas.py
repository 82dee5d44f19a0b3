"""Keep NumPy's BLAS to one thread while our own threads call it.

A GEMM split by the BLAS itself would use threads that `fastconv.threads` does not count, would wait for a lock that
OpenBLAS holds, and might give other bits on another number of threads. NumPy has no switch for it; OpenBLAS, which its
wheels carry, exports one. Where NumPy was built on another BLAS the products are right all the same, only the number
of threads inside them is that library's own affair.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_lock = threading.Lock()
_users = 0
_before = 1


@cache
def _openblas() -> tuple[Any, Any] | None:
    """Getter and setter of the number of threads of NumPy's own OpenBLAS, if it is that."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in folder.glob("*openblas*"):
            library = ctypes.CDLL(str(path))
            for prefix in ("scipy_openblas", "openblas"):
                for suffix in ("64_", ""):
                    get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                    put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
                    if get is not None and put is not None:
                        return get, put
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold NumPy's BLAS at one thread; the last of concurrent users to leave restores what was before."""
    global _users, _before
    library = _openblas()
    if library is None:
        yield
        return
    get, put = library
    with _lock:
        if _users == 0:
            _before = get()
            put(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                put(_before)


def _after_fork_in_child() -> None:
    """The threads that held the lock, or were counted as users, are not in the child."""
    global _lock, _users
    _lock, _users = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
