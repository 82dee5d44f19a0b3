"""The maximum of windows and where it stands, in LLVM IR: :mod:`fastconv.cpu.folding` with a second accumulator.

Beside each maximum goes its offset from the first element of its window, in 32 bits: a comparison makes a mask, and the
mask chooses both. The first element is the maximum until one is larger, so that the first of equal ones is found, or is
not a number, so that the last NaN is.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.cpu.emitting import BYTE, INDEX, LANE, POINTER, data_of, define, itemsize, moved, vector_of
from fastconv.cpu.folding import Apart, Windows, larger, least_of
from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes


@intrinsic
def find(  # type: ignore[no-untyped-def]
    typing_context, half, target, to, pace, indices, there, march, source, begin, step, leaps, taps, units, first,
    advance, length,
):  # fmt: skip
    """Find the maxima of `length` windows of `source`, from byte `begin` on, and where they stand.

    Maxima go to `target` from byte `to` on, a `pace` apart, places to `indices` from byte `there` on, a `march` apart.
    The first window's first element stands at place `first`, those of the others an `advance` further on each, and
    neighbours in a window along each axis `units` apart.
    """
    from numba import types

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind = signature.args[1].dtype
        number = None if kind == types.uint16 else context.get_data_type(kind)
        half, target, to, pace, indices, there, march, source, begin, step, *triples, first, advance, length = arguments
        target = data_of(context, builder, signature.args[1], target, BYTE, to)
        indices = data_of(context, builder, signature.args[4], indices, BYTE, there)
        source = data_of(context, builder, signature.args[7], source, BYTE, begin)
        numbers = [builder.extract_value(triple, i) for triple in triples for i in range(3)]
        function = _define_find(builder.module, number, str(kind))
        builder.call(function, (half, target, pace, indices, march, source, step, *numbers, first, advance, length))
        return context.get_dummy_value()

    return types.void(
        half, target, to, pace, indices, there, march, source, begin, step, leaps, taps, units, first, advance, length
    ), generate


def _define_find(module: ir.Module, number: ir.Type | None, kind: str) -> ir.Function:
    """The function (half, target, pace, indices, march, source, step, leaps…, taps…, units…, first, advance, length).

    With no type of number it is for half types.
    """
    from numba.core import cgutils

    kinds = [INDEX, POINTER, INDEX, POINTER, INDEX, POINTER, *[INDEX] * 13]
    function, known = define(module, f"fastconv_find_{kind}", kinds)
    if known:
        return function
    half, target, pace, indices, march, source, step, *numbers, first, advance, length = function.args
    leaps, taps, units = numbers[:3], numbers[3:6], numbers[6:]
    builder = ir.IRBuilder(function.append_basic_block())
    windows = Windows(builder, number or ir.FloatType(), source, step, leaps, taps, None if number else half)
    number, lanes = windows.number, vector_bytes() // max(itemsize(windows.number), itemsize(LANE))

    def body(at: ir.Value, width: int, apart: Apart) -> None:
        values, offsets = ir.VectorType(number, width), ir.VectorType(LANE, width)
        start = windows.window(at)
        most, found = cgutils.alloca_once(builder, values), cgutils.alloca_once(builder, offsets)
        builder.store(ir.Constant(values, [least_of(number, kind)] * width), most)
        builder.store(ir.Constant(offsets, None), found)
        with windows.elements() as (offset, at_tap):
            value = windows.vector(moved(builder, start, offset, BYTE), width, apart)
            old = builder.load(most, typ=values)
            better = larger(builder, number, kind, value, old)
            if not isinstance(number, ir.IntType):
                better = builder.or_(better, builder.fcmp_unordered("uno", value, value))
            here = INDEX(0)
            for i, unit in zip(at_tap, units, strict=True):
                here = builder.add(here, builder.mul(i, unit))
            here = vector_of(builder, builder.trunc(here, LANE), width)
            builder.store(builder.select(better, value, old), most)
            builder.store(builder.select(better, here, builder.load(found, typ=offsets)), found)
        windows.write(windows.narrowed(builder.load(most, typ=values)), target, at, pace if apart.paced else None)
        places = ir.VectorType(INDEX, width)
        place = vector_of(builder, builder.add(first, builder.mul(at, advance)), width)
        apart_ = builder.mul(vector_of(builder, advance, width), ir.Constant(places, list(range(width))))
        place = builder.add(place, apart_)
        place = builder.add(place, builder.zext(builder.load(found, typ=offsets), places))
        windows.write(place, indices, at, march if apart.paced else None)

    side_by_side = (
        builder.icmp_signed("==", bytes_, INDEX(size))
        for bytes_, size in ((pace, itemsize(windows.stored)), (march, itemsize(INDEX)))
    )
    windows.each(length, builder.not_(builder.and_(*side_by_side)), body, lanes)
    builder.ret_void()
    return function
