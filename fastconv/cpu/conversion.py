"""Vectors of one dtype made vectors of another, in LLVM IR: what is narrow in memory is wide in registers.

Half types are kept as their bits, uint16. Which of them these are is known at run time alone, by the code that
:data:`fastconv.cpu.jit.HALF_FORMATS` gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from fastconv.cpu.jit import HALF_FORMATS

_WORD = ir.IntType(32)


class Conversion(NamedTuple):
    """How vectors are converted; the name is part of a function's."""

    name: str
    emit: Callable[[ir.IRBuilder, ir.Value], ir.Value]


def conversions(source: Any, target: Any) -> dict[int, Conversion]:
    """The conversions from one of Numba's dtypes to another, by the code of the half type; else there is one, of 0."""
    from numba import types

    if source == target:
        return {0: Conversion("", lambda builder, value: value)}
    if isinstance(source, types.Integer) and isinstance(target, types.Integer):
        return {
            0: Conversion("signed", _signed(target)) if source.signed else Conversion("unsigned", _unsigned(target))
        }
    of_float16, of_bfloat16 = (HALF_FORMATS[name] for name in ("float16", "bfloat16"))
    if (source, target) == (types.uint16, types.float32):
        return {of_float16: Conversion("float16", _widen_float16), of_bfloat16: Conversion("bfloat16", _widen_bfloat16)}
    assert (source, target) == (types.float32, types.uint16), f"no conversion from {source} to {target}"
    return {of_float16: Conversion("float16", _narrow_float16), of_bfloat16: Conversion("bfloat16", _narrow_bfloat16)}


def _like(value: ir.Value, number: ir.Type) -> ir.Type:
    return ir.VectorType(number, value.type.count)


def _splat(value: ir.Value, number: int) -> ir.Value:
    """A vector of so many words as another has elements, each that number."""
    return ir.Constant(_like(value, _WORD), [number] * value.type.count)


def _signed(target: Any) -> Callable[[ir.IRBuilder, ir.Value], ir.Value]:
    return lambda builder, value: builder.sext(value, _like(value, ir.IntType(target.bitwidth)))


def _unsigned(target: Any) -> Callable[[ir.IRBuilder, ir.Value], ir.Value]:
    return lambda builder, value: builder.zext(value, _like(value, ir.IntType(target.bitwidth)))


def _widen_float16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.fpext(builder.bitcast(value, _like(value, ir.HalfType())), _like(value, ir.FloatType()))


def _narrow_float16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.bitcast(builder.fptrunc(value, _like(value, ir.HalfType())), _like(value, ir.IntType(16)))


def _widen_bfloat16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    words = builder.shl(builder.zext(value, _like(value, _WORD)), _splat(value, 16))
    return builder.bitcast(words, _like(value, ir.FloatType()))


def _narrow_bfloat16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    words = builder.bitcast(value, _like(value, _WORD))
    high = builder.lshr(words, _splat(value, 16))
    odd = builder.and_(high, _splat(value, 1))
    rounded = builder.add(words, builder.add(odd, _splat(value, 0x7FFF)))  # to nearest, ties to even
    rounded = builder.lshr(rounded, _splat(value, 16))
    quiet = builder.or_(high, _splat(value, 0x40))  # stays a NaN when the low bits go
    chosen = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(chosen, _like(value, ir.IntType(16)))
