"""New results in the memory of dead ones: a large fresh array costs a page fault for each page that is written.

A result is an array over an owner of its memory. Views keep the owner alive as they keep any array's memory; when the
last of them dies, the memory is kept for a result to come. On Linux 51 MB of fresh pages take 5 ms to be written where
huge pages are to be had and 29 ms where not; below about 32 MB the C library does the same for arrays of equal sizes.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv import settings

_LEAST = 1 << 20  # bytes; less costs no more than finding them here
_LARGEST_WASTE = 2  # a block holds at most so many times what is asked of it
_CACHE_LINE = 64

# Only ever used through single operations on a deque, which are atomic: an array may die at any moment, in any thread.
_idle: deque[np.ndarray[Any, Any]] = deque()


def allocator(n_bytes: int) -> Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray[Any, Any]]:
    """What makes arrays of so many bytes: :func:`empty`, or for small ones NumPy's, which it would call."""
    return np.empty if n_bytes < _LEAST else empty


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An uninitialised array, like :func:`numpy.empty`, beginning on a cache line if it is large."""
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < _LEAST:
        return np.empty(shape, dtype)
    block = _take(n_bytes)
    start = block.ctypes.data
    owner = (ctypes.c_char * n_bytes).from_address(start + -start % _CACHE_LINE)
    weakref.finalize(owner, _give_back, block).atexit = False
    return np.ndarray(shape, dtype, buffer=owner)  # type: ignore[arg-type]


def _take(n_bytes: int) -> np.ndarray[Any, Any]:
    needed = n_bytes + _CACHE_LINE
    for _ in range(len(_idle)):
        try:
            block = _idle.pop()  # the one that died last is the likeliest to be in cache
        except IndexError:  # another thread was faster
            break
        if needed <= block.size <= _LARGEST_WASTE * needed:
            return block
        _idle.appendleft(block)
    return np.empty(needed, np.uint8)


def _give_back(block: np.ndarray[Any, Any]) -> None:
    _idle.append(block)
    while sum(block.size for block in _idle.copy()) > settings.recycling_limit():
        try:
            _idle.popleft()
        except IndexError:  # other threads have taken them
            break
