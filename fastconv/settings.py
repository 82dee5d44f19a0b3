"""Settings of the process: how many threads, how much scratch memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from fastconv.parsing import integer

#: Limit of scratch memory at first, in bytes; predictions always assume it, as they must not depend on the limit.
USUAL_WORKSPACE = 64 << 20

_override: ContextVar[int | None] = ContextVar("fastconv_threads", default=None)
_threads: int | None = None
_workspace_limit = USUAL_WORKSPACE
_recycling_limit = 256 << 20


@cache
def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(n: int) -> None:
    """Set how many threads CPU kernels use in this process; at first, as many as there are cores.

    Results do not depend on it, bit for bit.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer of at least 1.

    Examples
    --------
    >>> before = get_num_threads()
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(before)
    """
    global _threads
    _threads = integer("n", n, 1)


def get_num_threads() -> int:
    """How many threads a CPU kernel started here would use.

    Examples
    --------
    >>> get_num_threads() >= 1
    True
    """
    return _override.get() or _threads or available_cores()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use `n` threads inside a ``with`` block, in this Python thread (or task) only.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer of at least 1.

    Examples
    --------
    >>> with threads(1):
    ...     get_num_threads()
    1
    """
    token = _override.set(integer("n", n, 1))
    try:
        yield
    finally:
        _override.reset(token)


def set_workspace_limit(n_bytes: int) -> None:
    """Bound the scratch memory of one call (64 MiB at first); what needs more works in smaller pieces.

    Parameters
    ----------
    n_bytes : int
        At least 1 MiB.

    Raises
    ------
    TypeError, ValueError
        If `n_bytes` is not an integer of at least 1 MiB.

    Examples
    --------
    >>> set_workspace_limit(64 << 20)
    """
    global _workspace_limit
    _workspace_limit = integer("n_bytes", n_bytes, 1 << 20, sys.maxsize)


def workspace_limit() -> int:
    """The bound set by :func:`set_workspace_limit`, in bytes."""
    return _workspace_limit


def set_recycling_limit(n_bytes: int) -> None:
    """Bound the memory of dead results that is kept for new ones (256 MiB at first); 0 keeps none.

    Parameters
    ----------
    n_bytes : int
        At least 0. What is kept already is let go when the next result dies.

    Raises
    ------
    TypeError, ValueError
        If `n_bytes` is not an integer of at least 0.

    Examples
    --------
    >>> set_recycling_limit(256 << 20)
    """
    global _recycling_limit
    _recycling_limit = integer("n_bytes", n_bytes, 0, sys.maxsize)


def recycling_limit() -> int:
    """The bound set by :func:`set_recycling_limit`, in bytes."""
    return _recycling_limit


def cache_directory() -> Path:
    """Where files are kept between processes: ``FASTCONV_CACHE_DIR``, or the system's place for a user's caches."""
    chosen = os.environ.get("FASTCONV_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.path.expanduser(base)) / "fastconv"
