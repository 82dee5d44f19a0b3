"""The records that kernels receive by value; their C++ twins are in ``cuda/geometry.cuh`` and ``cuda/epilogue.cuh``.

Every field is 8 bytes wide, so a record is a row of 64-bit words and NumPy's packed layout is that of the C++ structs.
The functions here give such words as tuples of integers: filling a structured array field by field would cost several
times the launch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.gpu.runtime import runtime
from fastconv.lowering import Correlation
from fastconv.problem import Activation, ConvProblem

VIEW = np.dtype([("data", np.int64), ("stride", np.int64, (6,))])
EPILOGUE = np.dtype(
    [("bias", np.int64), ("residual", VIEW), ("activation", np.int64), ("a", np.float64), ("b", np.float64)]
)

Words = tuple[int, ...]

#: Stands for a view that a kernel does not read: a null pointer.
NO_VIEW: Words = (0,) * 7


def record(dtype: np.dtype[Any], **fields: Words | int) -> np.ndarray[Any, Any]:
    """A record of that dtype, from the words of its fields, as an array of one element without fields.

    CuPy passes an array by value if it has one element, and asks for its address through ``__array_interface__``, which
    for a structured dtype describes every field and takes longer than the launch.
    """
    names, pack, opaque = _layout(dtype)
    words: list[int] = []
    for name in names:
        value = fields[name]
        if isinstance(value, tuple):
            words += value
        else:
            words.append(value)
    return np.ndarray(1, opaque, pack(*words))


@cache
def _layout(dtype: np.dtype[Any]) -> tuple[tuple[str, ...], Callable[..., bytes], np.dtype[Any]]:
    """Fields, what packs the words of all of them, and the dtype of as many bytes."""
    return dtype.names or (), struct.Struct(f"{dtype.itemsize // 8}q").pack, np.dtype((np.void, dtype.itemsize))


def view(array: Any) -> Words:
    """A six-axis array as a kernel receives it: the address of its first element and its strides in elements."""
    return runtime().address(array), *element_strides(array.strides, array.itemsize)


@lru_cache(maxsize=4096)
def element_strides(strides: tuple[int, ...], itemsize: int) -> Words:
    """Strides in elements from strides in bytes."""
    return tuple(stride // itemsize for stride in strides)


def geometry(piece: Correlation) -> Words:
    """The numbers of a correlation."""
    return tuple(piece.geometry.view(np.int64).tolist())


def epilogue(problem: ConvProblem, bias: Any, residual: Any) -> Words:
    """What is done to a sum before it is written; `bias` and `residual` may be None."""
    return (
        0 if bias is None else runtime().address(bias),
        *(NO_VIEW if residual is None else view(residual)),
        *_activation(problem.activation),
    )


def residual_strides(end: Words) -> Words | None:
    """Of the residual in the words of an epilogue, behind the addresses of bias and residual; None if there is none."""
    return end[2:8] if end[1] else None


@lru_cache(maxsize=256)
def _activation(activation: Activation) -> Words:
    a, b = np.array([activation.a, activation.b]).view(np.int64).tolist()
    return activation.code, a, b


def channels_fastest(strides: Words) -> bool:
    """Whether neighbouring channels of an ``(N, G, C, D, H, W)`` view lie closer together than neighbouring columns."""
    return abs(strides[2]) < abs(strides[5])
