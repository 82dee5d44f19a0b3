"""How kernels are written and called: Numba's decorators put off, and machine code that is kept on disk.

Numba takes seconds to compile a kernel, and a good part of a second to be imported. Compiled kernels are therefore kept
as object files (:mod:`fastconv.cpu.objects`), and a process that finds all of its kernels there never imports Numba.
So nothing here or in the algorithms imports it at the top: what kernels call is declared by the decorators below, which
hand it to Numba when a kernel that calls it is compiled.

Variants of a kernel differ by argument types only, never by what a closure or a global holds: the key under which an
object file is kept does not see those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.cpu import objects, parallel, team
from fastconv.lowering import Correlation
from fastconv.remembering import once

#: Which half type 16 bits are; 0 where they are not one.
HALF_FORMATS = {"float16": 1, "bfloat16": 2}

#: How Numba compiles kernels and what they call. Contraction lets a * b + c be one FMA; nothing that reorders a sum is
#: allowed. Without the run-time library, arrays are plain pointers: machine code needs nothing of Numba to run.
OPTIONS: dict[str, Any] = {
    "error_model": "numpy", "fastmath": {"contract"}, "_nrt": False, "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """What a kernel is told of one of its arguments: an array, or with `ndim` 0 an integer of 64 bits."""

    dtype: np.dtype[Any]
    ndim: int
    contiguous: bool = True
    readonly: bool = True


integer = Argument(np.dtype(np.int64), 0)
"""An integer argument."""


def array(dtype: np.dtype[Any], ndim: int, *, readonly: bool = True, contiguous: bool = False) -> Argument:
    """An array argument. Half types travel as their bits, 16-bit unsigned integers.

    Arrays that are not `contiguous` may have any strides, so that whatever layout a call brings meets the same machine
    code: one compilation for each dtype, not one for each layout.
    """
    return Argument(np.dtype(np.uint16) if dtype.name in HALF_FORMATS else dtype, ndim, contiguous, readonly)


def records(dtype: np.dtype[Any], ndim: int = 1) -> Argument:
    """An argument that is an array of structures."""
    return Argument(dtype, ndim)


class Kernel:
    """A function compiled for the argument types that it is told of, and for no others."""

    _shared = False

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self._compiled: dict[tuple[Argument, ...], Any] = {}

    def compile(self, *arguments: Argument) -> Any:
        """The machine code for these types, as a function; compiled or loaded from the disk at most once.

        It takes its arguments by position and raises `TypeError` if one is not what was declared. It releases the GIL.
        """
        function = self._compiled.get(arguments)
        if function is None:
            # Threads that come here at once make the same function; the first one's is kept.
            code = objects.load(self._function, arguments, self._shared)
            function = self._compiled.setdefault(arguments, objects.function(code, self._function.__name__))
        return function


class TaskKernel(Kernel):
    """A kernel ``function(first, last, …, scratch)`` of a range of tasks, shared by threads that need no GIL for it.

    The types to compile it for leave out the range. The last one is that of the scratch memory, a contiguous array of
    which each thread gets a part of its own.
    """

    _shared = True

    def compile(self, *arguments: Argument) -> Any:
        """A function of the number of tasks, of the multiply-adds in all, of the elements of scratch memory that one
        thread needs, and of the arguments between the range and the scratch memory.
        """  # fmt: skip
        entry, dtype = super().compile(*arguments), arguments[-1].dtype

        def run(tasks: int, macs: int, length: int, *arguments: Any) -> None:
            threads = parallel.threads_for(tasks, macs)
            if threads == 1:
                entry(tasks, 1, 0, 0, *arguments, parallel.scratch(length, dtype))
                return
            chunks, helpers = parallel.chunks_for(tasks, threads), threads - 1
            length += -length % parallel.CACHE_LINE  # threads share no line, whatever the dtype
            memory = parallel.scratch(threads * length, dtype)
            entry(tasks, chunks, helpers, team.address(helpers), *arguments, memory)

        return run


class _Deferred:
    """What a kernel may call. Numba asks for its type while it compiles the kernel, and only then is it made."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @once
    def _made(self) -> Any:
        return self._make()

    @once
    def _numba_type_(self) -> Any:
        from fastconv.cpu._target import target

        made, context = self._made, target.typing_context
        context.refresh()  # so that it knows of what was made
        return context.resolve_value_type(made)


def inline(function: Callable[..., Any]) -> Any:
    """Declare a helper that kernels call; LLVM inlines it."""

    def make() -> Any:
        from fastconv.cpu._target import helper

        return helper(**OPTIONS)(function)

    return _Deferred(make)


def generic(choose: Callable[..., Any]) -> Any:
    """Declare a helper that differs by the types of its arguments: `choose` gets Numba's types and returns it."""

    def make() -> Any:
        from numba.extending import overload

        def helper(*arguments: Any) -> Any:
            raise NotImplementedError("only inside kernels")

        overload(helper, OPTIONS, strict=False)(choose)
        return helper

    return _Deferred(make)


def intrinsic(define: Callable[..., Any]) -> Any:
    """Declare a helper written in LLVM IR: as :func:`numba.extending.intrinsic`."""

    def make() -> Any:
        from numba.extending import intrinsic

        return intrinsic(define)

    return _Deferred(make)


def contiguous_taps(piece: Correlation, w: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A piece's part of a ``(G, O, C, KD, KH, KW)`` weight view as a contiguous ``(G, O, taps)`` array of `dtype`."""
    view = piece.weight_view(w)
    return np.ascontiguousarray(view, dtype).reshape(view.shape[0], view.shape[1], piece.reduction)
