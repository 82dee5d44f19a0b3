"""Rows folded into one, by maximum or by sum, in LLVM IR: the whole arithmetic of pooling.

``target[i] = max or sum over p and r of source[p * leap + r * stride + i * step]``

The same fold makes one row of the rows of a window (`step` 1), and one result of the columns of each window (`step` the
pooling's stride). Accumulators stay in registers, four vectors at a time so that one addition need not wait for the
one before. A step of 2 loads two vectors, the second of which ends at the last element asked for, and keeps every other
element; any other step collects a vector element by element. The last vector ends where the row ends and overlaps the
one before, which is why target and source must not be the same memory. Nothing outside the rows is read.

A NaN is larger than any number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from fastconv.cpu.emitting import BYTE, INDEX, LANE, POINTER, counted, data_of, define, itemsize, moved
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.rows import each_vector
from fastconv.machine import vector_bytes

MAX, SUM = range(2)

_VECTORS = 4  # accumulators at once

Combine = Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]


@intrinsic
def fold(typing_context, op, target, to, source, begin, step, leap, stride, planes, rows, length):  # type: ignore[no-untyped-def]
    """Fold rows of `source`, from byte `begin` on, into `length` elements of `target`, from element `to` on.

    `leap` and `stride` are bytes, `step` elements; all may be negative.
    """
    from numba import types

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind = signature.args[1].dtype
        number = context.get_data_type(kind)
        code, target, to, source, begin, step, leap, stride, planes, rows, length = arguments
        target = data_of(context, builder, signature.args[1], target, number, to)
        source = data_of(context, builder, signature.args[3], source, BYTE, begin)
        function = _define_fold(builder.module, number, str(kind))
        builder.call(function, (code, target, source, step, leap, stride, planes, rows, length))
        return context.get_dummy_value()

    signature = types.void(op, target, to, source, begin, step, leap, stride, planes, rows, length)
    return signature, generate


def _define_fold(module: ir.Module, number: ir.Type, kind: str) -> ir.Function:
    """The function (op, target, source, step, leap, stride, planes, rows, length) for numbers of a NumPy dtype."""
    from numba.core import cgutils

    size, lanes = itemsize(number), vector_bytes() // itemsize(number)
    function, known = define(module, f"fastconv_fold_{kind}_{lanes}", [INDEX, POINTER, POINTER] + [INDEX] * 6)
    if known:
        return function
    op, target, source, step, leap, stride, planes, rows, length = function.args
    builder = ir.IRBuilder(function.append_basic_block())

    def vector_at(start: ir.Value, width: int, apart: int) -> ir.Value:
        """Elements that lie `apart`; if that is 0, a step."""
        vector = ir.VectorType(number, width)
        if apart == 0:
            value = ir.Constant(vector, ir.Undefined)
            for i in range(width):
                element = moved(builder, start, builder.mul(step, INDEX(i)), number)
                value = builder.insert_element(value, builder.load(element, align=size, typ=number), LANE(i))
            return value
        low = builder.load(start, align=size, typ=vector)
        if apart == 1:
            return low
        high = builder.load(moved(builder, start, width - 1, number), align=size, typ=vector)
        chosen = [i if i < width else i + 1 for i in range(0, 2 * width, 2)]  # the first of `high` is the last of `low`
        return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(LANE, width), chosen))

    def emit(combine: Combine, least: float, apart: int) -> Callable[[ir.Value, int], None]:
        def body(at: ir.Value, width: int) -> None:
            vector, start = ir.VectorType(number, width), moved(builder, source, builder.mul(at, step), number)
            total = cgutils.alloca_once(builder, vector)
            builder.store(ir.Constant(vector, [least] * width), total)
            with counted(builder, INDEX(0), planes) as plane, counted(builder, INDEX(0), rows) as row:
                offset = builder.add(builder.mul(plane, leap), builder.mul(row, stride))
                value = vector_at(moved(builder, start, offset, BYTE), width, apart)
                builder.store(combine(builder, value, builder.load(total, typ=vector)), total)
            builder.store(builder.load(total, typ=vector), moved(builder, target, at, number), align=size)

        return body

    for code, (combine, least) in enumerate(_operations(number, kind)):
        with builder.if_then(builder.icmp_signed("==", op, INDEX(code))):
            for apart in (1, 2):
                with builder.if_then(builder.icmp_signed("==", step, INDEX(apart))):
                    each_vector(builder, length, emit(combine, least, apart), _VECTORS * lanes)
            with builder.if_then(builder.icmp_unsigned(">", builder.sub(step, INDEX(1)), INDEX(1))):
                each_vector(builder, length, emit(combine, least, 0), lanes)
    builder.ret_void()
    return function


def _operations(number: ir.Type, kind: str) -> list[tuple[Combine, float]]:
    """How to combine two vectors, and what to begin with, for each of the operations that a dtype has."""
    if isinstance(number, ir.IntType):
        compare = ir.IRBuilder.icmp_unsigned if kind.startswith("u") else ir.IRBuilder.icmp_signed
        larger: Combine = lambda b, value, most: b.select(compare(b, ">", value, most), value, most)  # noqa: E731
        return [(larger, int(np.iinfo(kind).min))]

    def maximum(b: ir.IRBuilder, value: ir.Value, most: ir.Value) -> ir.Value:
        most = b.select(b.fcmp_ordered(">", value, most), value, most)  # a NaN in `most` stays
        return b.select(b.fcmp_unordered("uno", value, value), value, most)

    return [(maximum, -math.inf), (lambda b, value, total: b.fadd(total, value), 0.0)]
