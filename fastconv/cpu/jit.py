"""How kernels are compiled: one decorator over Numba, and a disk cache that cannot serve stale machine code.

Numba keys its cache on the file of the compiled function alone. Kernels here call helpers in other files, which are
inlined; were one of those changed, Numba would go on loading the old code. So the key holds a digest of every source
file of this package. Variants of a kernel differ by argument types only, never by what a closure or a global holds,
which the key would not see either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.caching import FunctionCache
from numba.np.numpy_support import from_dtype

from fastconv.lowering import Correlation

#: Which half type 16 bits are; 0 where they are not one.
HALF_FORMATS = {"float16": 1, "bfloat16": 2}


@cache
def _sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _Cache(FunctionCache):  # type: ignore[misc]
    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), _sources_digest())


class Kernel:
    """A function compiled for the argument types that it is told of, and for no others.

    Array types are declared with any strides and (for inputs) read-only, so that whatever layout a call brings meets
    the same machine code: one compilation for each dtype, not one for each layout.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        # Contraction lets a * b + c be one FMA; nothing that reorders a sum is allowed.
        self._dispatcher = njit(nogil=True, error_model="numpy", fastmath={"contract"})(function)
        self._dispatcher._cache = _Cache(function)

    def compile(self, *arguments: Any) -> Any:
        """The machine code for these Numba types; compiled or loaded from the disk at most once."""
        signature = types.void(*arguments)
        if signature.args not in self._dispatcher.overloads:
            self._dispatcher.disable_compile(False)
            self._dispatcher.compile(signature)
            self._dispatcher.disable_compile()
        return self._dispatcher


inline = njit(inline="never", error_model="numpy", fastmath={"contract"})
"""For helpers that kernels call; LLVM inlines them."""


def array(dtype: np.dtype[Any], ndim: int, *, readonly: bool = True, contiguous: bool = False) -> types.Array:
    """The Numba type of an array argument. Half types travel as their bits, 16-bit unsigned integers."""
    stored = np.dtype(np.uint16) if dtype.name in HALF_FORMATS else dtype
    return types.Array(from_dtype(stored), ndim, "C" if contiguous else "A", readonly=readonly)


def records(dtype: np.dtype[Any]) -> types.Array:
    """The Numba type of an array of structures."""
    return types.Array(from_dtype(dtype), 1, "C", readonly=False)


def as_bits(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`a` as kernels see it: half types as their bits."""
    return a.view(np.uint16) if a.dtype.itemsize == 2 and a.dtype.name in HALF_FORMATS else a


def contiguous_taps(piece: Correlation, w: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A piece's part of a ``(G, O, C, KD, KH, KW)`` weight view as a contiguous ``(G, O, taps)`` array of `dtype`."""
    view = piece.weight_view(w)
    return np.ascontiguousarray(view, dtype).reshape(view.shape[0], view.shape[1], piece.reduction)
