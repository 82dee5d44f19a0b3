"""The records that kernels receive by value; their C++ twins are in ``cuda/geometry.cuh`` and ``cuda/epilogue.cuh``.

Every field is 8 bytes wide, so NumPy's packed layout is that of the C++ structs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.gpu.runtime import runtime
from fastconv.problem import ConvProblem

VIEW = np.dtype([("data", np.int64), ("stride", np.int64, (6,))])
EPILOGUE = np.dtype(
    [("bias", np.int64), ("residual", VIEW), ("activation", np.int64), ("a", np.float64), ("b", np.float64)]
)

Record = np.ndarray[Any, Any]


def record(dtype: np.dtype[Any], **fields: Any) -> Record:
    """A one-element array of a structured dtype; fields left out are zero, which for a pointer means absent."""
    made = np.zeros(1, dtype)
    for name, value in fields.items():
        made[name] = value
    return made


def view(array: Any) -> Record:
    """A six-axis array as a kernel receives it: the address of its first element and its strides in elements."""
    return record(VIEW, data=runtime().address(array), stride=[s // array.itemsize for s in array.strides])


def epilogue(problem: ConvProblem, bias: Any, residual: Any) -> Record:
    """What is done to a sum before it is written; `bias` and `residual` may be None."""
    act = problem.activation
    made = record(EPILOGUE, activation=act.code, a=act.a, b=act.b)
    if bias is not None:
        made["bias"] = runtime().address(bias)
    if residual is not None:
        made["residual"] = view(residual)
    return made


def channels_fastest(array: Any) -> bool:
    """Whether neighbouring channels of an ``(N, G, C, D, H, W)`` view lie closer together than neighbouring columns."""
    return abs(array.strides[2]) < abs(array.strides[5])
