"""Rows of elements that lie side by side, copied in whole vectors: LLVM IR.

Under Numba a row costs some 25 ns however short it is: a slice is made, a loop asks whether source and target overlap,
the last elements go one by one. Here a row of n elements is whole vectors and then, for each binary digit of what is
left, a vector of half, a quarter, … of the lanes: 7 elements are 4 + 2 + 1. Nothing outside the row is touched.

A row may be *split* on the way, ``target[part][i] = source[2 * i + part]``, so that what a stride of 2 reads lies side
by side: a vector of twice the lanes is loaded, its even and its odd elements are stored apart.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.cpu.emitting import BYTE, INDEX, LANE, POINTER, counted, data_of, define, itemsize, moved
from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes


def define_copy(module: ir.Module, number: ir.Type, parts: int) -> ir.Function:
    """The function (target of each part …, slot, pitch, source, leap, stride, planes, rows, length); steps in bytes."""
    size = itemsize(number)
    lanes = vector_bytes() // size
    function, known = define(
        module, f"fastconv_copy_{number}_{lanes}_{parts}",
        [POINTER] * parts + [INDEX, INDEX, POINTER, INDEX, INDEX, INDEX, INDEX, INDEX],
    )  # fmt: skip
    if known:
        return function
    *targets, slot, pitch, source, leap, stride, planes, rows, length = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    whole = builder.and_(length, INDEX(-parts * lanes))
    with counted(builder, INDEX(0), planes) as plane, counted(builder, INDEX(0), rows) as row:
        start = moved(builder, source, builder.add(builder.mul(plane, leap), builder.mul(row, stride)), BYTE)
        to = builder.add(builder.mul(plane, slot), builder.mul(row, pitch))

        def copy(at: ir.Value, count: int) -> None:
            """Elements `at` to `at + count`; `at` is a multiple of the parts."""
            values = builder.load(moved(builder, start, at, number), align=size, typ=ir.VectorType(number, count))
            for part, target in enumerate(targets[:count]):
                chosen = list(range(part, count, parts))
                mask = ir.Constant(ir.VectorType(LANE, len(chosen)), chosen)
                place = moved(builder, moved(builder, target, to, BYTE), builder.udiv(at, INDEX(parts)), number)
                builder.store(builder.shuffle_vector(values, values, mask), place, align=size)

        with counted(builder, INDEX(0), whole, parts * lanes) as at:
            copy(at, parts * lanes)
        count = parts * lanes // 2
        while count:
            with builder.if_then(builder.icmp_unsigned("!=", builder.and_(length, INDEX(count)), INDEX(0))):
                copy(builder.and_(length, INDEX(-2 * count)), count)
            count //= 2
    builder.ret_void()
    return function


def _copying(parts: int) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        target, *firsts, slot, pitch, source, begin, leap, stride, planes, rows, length = arguments
        number = context.get_data_type(signature.args[0].dtype)
        size = INDEX(itemsize(number))
        to = [data_of(context, builder, signature.args[0], target, number, first) for first in firsts]
        from_ = data_of(context, builder, signature.args[parts + 3], source, BYTE, begin)
        steps = builder.mul(slot, size), builder.mul(pitch, size)
        copy = define_copy(builder.module, number, parts)
        builder.call(copy, (*to, *steps, from_, leap, stride, planes, rows, length))
        return context.get_dummy_value()

    return generate


@intrinsic
def copy_planes(  # type: ignore[no-untyped-def]
    typing_context, target, first, slot, pitch, source, begin, leap, stride, planes, rows, length
):
    """Copy rows of planes: row r of plane p goes to element ``first + p * slot + r * pitch`` of the target.

    It is found ``begin + p * leap + r * stride`` bytes into the source.
    """
    from numba import types

    return types.void(target, first, slot, pitch, source, begin, leap, stride, planes, rows, length), _copying(1)


@intrinsic
def split_planes(  # type: ignore[no-untyped-def]
    typing_context, target, even, odd, slot, pitch, source, begin, leap, stride, planes, rows, length
):
    """The same, but elements 0, 2, 4, … of a row go to ``even + …``, the others to ``odd + …``."""
    from numba import types

    return types.void(target, even, odd, slot, pitch, source, begin, leap, stride, planes, rows, length), _copying(2)
