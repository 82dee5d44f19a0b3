"""What happens to one element: reading and writing half types, padding, activations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir

from fastconv.arrays import named_dtype
from fastconv.cpu.jit import generic, inline, intrinsic
from fastconv.problem import PADDING_MODES, Activation, ConvProblem

_REFLECT, _REPLICATE, _CIRCULAR = (PADDING_MODES.index(m) for m in ("reflect", "replicate", "circular"))
CLIP, _LEAKY, _SIGMOID, _TANH, _SILU, _GELU = range(1, 7)


def activation_arguments(problem: ConvProblem) -> tuple[int, np.ndarray[Any, Any]]:
    """The code and the two parameters of a problem's activation, as kernels take them."""
    act, dtype = problem.activation, named_dtype(problem.accumulator_dtype)
    parameters = np.zeros(2, dtype)
    if dtype.kind == "i":  # the bounds are integers of this dtype, or infinite
        limits = np.iinfo(dtype)
        parameters[:] = [int(min(max(bound, limits.min), limits.max)) for bound in (act.a, act.b)]
    elif dtype.kind == "f":
        parameters[:] = act.a, act.b
    return act.code, parameters


@inline
def resolve(index, size, mode):  # type: ignore[no-untyped-def]
    """The input element at a padded index, -1 where it is zero or past what the padding mode can reach."""
    if 0 <= index < size:
        return index
    if mode == _REFLECT:
        index = -index if index < 0 else 2 * (size - 1) - index
    elif mode == _REPLICATE:
        index = 0 if index < 0 else size - 1
    elif mode == _CIRCULAR:
        index = index + size if index < 0 else index - size
    return index if 0 <= index < size else -1


def _converter(source: str, target: str, convert: Any) -> Any:
    @intrinsic
    def conversion(typing_context, value):  # type: ignore[no-untyped-def]
        from numba import types

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return convert(builder, arguments[0])

        return getattr(types, target)(getattr(types, source)), generate

    return conversion


_float_of_bits = _converter("uint32", "float32", lambda b, v: b.bitcast(v, ir.FloatType()))
_bits_of_float = _converter("float32", "uint32", lambda b, v: b.bitcast(v, ir.IntType(32)))
_float_of_half = _converter("uint16", "float32", lambda b, v: b.fpext(b.bitcast(v, ir.HalfType()), ir.FloatType()))
_half_of_float = _converter("float32", "uint16", lambda b, v: b.bitcast(b.fptrunc(v, ir.HalfType()), ir.IntType(16)))


@inline
def _bfloat16_of_float(value):  # type: ignore[no-untyped-def]
    word = _bits_of_float(value)
    if value != value:
        return np.uint16((word >> np.uint32(16)) | np.uint32(0x40))  # stays a NaN when the low bits go
    rounding = np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))  # to nearest, ties to even
    return np.uint16((word + rounding) >> np.uint32(16))


@generic
def load(value: Any, half: Any) -> Any:
    """Widen a stored element to the accumulator's dtype; `half` is a :data:`fastconv.cpu.jit.HALF_FORMATS` code."""
    from numba import types

    if value == types.uint16:

        def widen(value, half):  # type: ignore[no-untyped-def]
            if half == 1:
                return _float_of_half(value)
            return _float_of_bits(np.uint32(value) << np.uint32(16))

        return widen
    return lambda value, half: value


@generic
def store(array: Any, index: Any, value: Any, half: Any) -> Any:
    """Round an accumulator to the result's dtype and write it."""
    from numba import types

    if array.dtype == types.uint16:

        def narrow(array, index, value, half):  # type: ignore[no-untyped-def]
            array[index] = _half_of_float(value) if half == 1 else _bfloat16_of_float(value)

        return narrow

    def keep(array, index, value, half):  # type: ignore[no-untyped-def]
        array[index] = value

    return keep


@generic
def extremes(array: Any) -> Any:
    """The least and the greatest number of an array's dtype."""
    from numba import types

    number = array.dtype
    low, high = (number.minval, number.maxval) if isinstance(number, types.Integer) else (-math.inf, math.inf)
    return lambda array: (array.dtype.type(low), array.dtype.type(high))


@generic
def clip(value: Any, parameters: Any) -> Any:
    """Limit an accumulator to the range between two parameters."""
    from numba import types

    if isinstance(value, types.Complex):
        return lambda value, parameters: value  # complex numbers have no order, and their problems no clip

    def limit(value, parameters):  # type: ignore[no-untyped-def]
        if value < parameters[0]:  # comparisons so that NaN passes
            return parameters[0]
        return parameters[1] if value > parameters[1] else value

    return limit


@generic
def activate(value: Any, code: Any, parameters: Any) -> Any:
    """Apply an activation other than a clip to an accumulator."""
    from numba import types

    if not isinstance(value, types.Float):
        return lambda value, code, parameters: value  # complex numbers and integers have none
    number = np.float32 if value == types.float32 else np.float64

    def smooth(value, code, parameters):  # type: ignore[no-untyped-def]
        if code == _LEAKY:
            return value * parameters[0] if value < 0 else value
        if code == _SIGMOID:
            return number(1 / (1 + math.exp(-value)))
        if code == _TANH:
            return number(math.tanh(value))
        if code == _SILU:
            return number(value / (1 + math.exp(-value)))
        return number(value * 0.5 * (1 + math.erf(value * math.sqrt(0.5))))

    return smooth


assert Activation.KINDS == ("none", "clip", "leaky_relu", "sigmoid", "tanh", "silu", "gelu")
