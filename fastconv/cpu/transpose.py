"""Square blocks transposed in registers, written in LLVM IR: from channels in a vector to pixels, and back."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from fastconv.cpu.emitting import INDEX, LANE, POINTER, addresses, counted, define, emit_prefetch, itemsize, moved
from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes


def transposed(builder: ir.IRBuilder, values: list[ir.Value]) -> list[ir.Value]:
    """As many vectors as each has elements, transposed.

    In step s of log2 of that number, each pair of rows that lie s apart swaps its off-diagonal blocks of s by s
    (Eklundh, IEEE Trans. Comput. C-21, 1972).
    """
    values, lanes, step = list(values), len(values), 1
    while step < lanes:
        low = [j if j & step == 0 else lanes + j - step for j in range(lanes)]
        high = [j + step if j & step == 0 else lanes + j for j in range(lanes)]
        for i in range(lanes):
            if i & step == 0:
                pair = values[i], values[i + step]
                values[i], values[i + step] = (
                    builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(LANE, lanes), order))
                    for order in (low, high)
                )
        step *= 2
    return values


@intrinsic
def transpose_block(typing_context, source, source_at, source_pitch, target, target_at, target_pitch):  # type: ignore[no-untyped-def]
    """``target[j, i] = source[i, j]`` for i and j below the number of elements in a vector.

    Rows lie a pitch apart from an element of a flat array on.
    """
    from numba import types

    signature = types.void(source, source_at, source_pitch, target, target_at, target_pitch)
    lanes = vector_bytes() // np.dtype(str(source.dtype)).itemsize

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_value_type(signature.args[0].dtype)
        vector, address = ir.VectorType(number, lanes), addresses(context, builder, signature, arguments)

        def rows(k: int) -> list[ir.Value]:
            base = address(k, arguments[k + 1])
            return [moved(builder, base, builder.mul(arguments[k + 2], INDEX(i)), number) for i in range(lanes)]

        values = [builder.load(row, align=itemsize(number), typ=vector) for row in rows(0)]
        for row, value in zip(rows(3), transposed(builder, values), strict=True):
            builder.store(value, builder.bitcast(row, vector.as_pointer()), align=itemsize(number))
        return context.get_dummy_value()

    return signature, generate


def _define_plane(module: ir.Module, number: ir.Type, lanes: int) -> ir.Function:
    """The function (source, source pitch, target, target pitch, rows, columns)."""
    kinds = [POINTER, INDEX, POINTER, INDEX, INDEX, INDEX]
    function, there = define(module, f"fastconv_transpose_{number}_{lanes}", kinds)
    if there:
        return function
    source, source_pitch, target, target_pitch, rows, columns = function.args
    builder = ir.IRBuilder(function.append_basic_block())

    def address(base: ir.Value, pitch: ir.Value, row: ir.Value, column: ir.Value) -> ir.Value:
        return moved(builder, base, builder.add(builder.mul(row, pitch), column), number)

    def start(index: ir.Value, length: ir.Value, width: int) -> ir.Value:
        """The last square ends where rows or columns do, and overlaps the one before."""
        last = builder.sub(length, INDEX(width))
        return builder.select(builder.icmp_signed("<", index, last), index, last)

    width = lanes
    while width:  # planes narrower than a vector are cut into squares half as wide, and so on
        fits = builder.and_(*(builder.icmp_signed(">=", length, INDEX(width)) for length in (rows, columns)))
        with builder.if_then(fits):
            vector = ir.VectorType(number, width)
            with counted(builder, INDEX(0), columns, width) as j, counted(builder, INDEX(0), rows, width) as i:
                column, row = start(j, columns, width), start(i, rows, width)
                read, write = address(source, source_pitch, row, column), address(target, target_pitch, column, row)
                places = [moved(builder, read, builder.mul(source_pitch, INDEX(k)), number) for k in range(width)]
                values = [builder.load(place, align=itemsize(number), typ=vector) for place in places]
                for k, value in enumerate(transposed(builder, values)):
                    place = moved(builder, write, builder.mul(target_pitch, INDEX(k)), number)
                    builder.store(value, place, align=itemsize(number))
                    further = builder.mul(target_pitch, INDEX(k + width))  # rows that are written next
                    emit_prefetch(builder, moved(builder, write, further, number), write=True)
            builder.ret_void()
        width //= 2
    builder.ret_void()
    return function


@intrinsic
def transpose_plane(  # type: ignore[no-untyped-def]
    typing_context, source, source_at, source_pitch, target, target_at, target_pitch, rows, columns
):
    """``target[j, i] = source[i, j]`` for i below `rows` and j below `columns`."""
    from numba import types

    signature = types.void(source, source_at, source_pitch, target, target_at, target_pitch, rows, columns)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address, number = addresses(context, builder, signature, arguments), context.get_value_type(source.dtype)
        function = _define_plane(builder.module, number, vector_bytes() // itemsize(number))
        passed = address(0, arguments[1]), arguments[2], address(3, arguments[4]), *arguments[5:]
        builder.call(function, passed)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def scatter_block(typing_context, source, at, pitch, target, target_at, places, first, width, line):  # type: ignore[no-untyped-def]
    """Row j of the transposed block goes to ``target[target_at + base + place * width + step * line]``.

    These are ``places[first + j] = base, step, place``. Of rows that go to one place the first one stays.
    """
    from numba import types

    signature = types.void(source, at, pitch, target, target_at, places, first, width, line)
    lanes = vector_bytes() // np.dtype(str(source.dtype)).itemsize

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_value_type(signature.args[0].dtype)
        vector, address = ir.VectorType(number, lanes), addresses(context, builder, signature, arguments)
        begin, to, table = address(0, arguments[1]), address(3, arguments[4]), address(5)
        rows = [moved(builder, begin, builder.mul(arguments[2], INDEX(i)), number) for i in range(lanes)]
        values = [builder.load(row, align=itemsize(number), typ=vector) for row in rows]
        for j, value in reversed(list(enumerate(transposed(builder, values)))):
            entry = builder.mul(builder.add(arguments[6], INDEX(j)), INDEX(3))
            base, step, place = (
                builder.load(moved(builder, table, builder.add(entry, INDEX(k)), INDEX), typ=INDEX) for k in range(3)
            )
            further = builder.add(builder.mul(place, arguments[7]), builder.mul(step, arguments[8]))
            row = moved(builder, to, builder.add(base, further), number)
            builder.store(value, builder.bitcast(row, vector.as_pointer()), align=itemsize(number))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def gather_vector(typing_context, source, at, pitch, target, target_at):  # type: ignore[no-untyped-def]
    """``target[i] = source[i * pitch]`` for i below the number of elements in a vector."""
    from numba import types

    signature = types.void(source, at, pitch, target, target_at)
    lanes = vector_bytes() // np.dtype(str(source.dtype)).itemsize

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number, address = context.get_value_type(source.dtype), addresses(context, builder, signature, arguments)
        begin, value = address(0, arguments[1]), ir.Constant(ir.VectorType(number, lanes), ir.Undefined)
        for i in range(lanes):
            element = builder.load(moved(builder, begin, builder.mul(arguments[2], INDEX(i)), number), typ=number)
            value = builder.insert_element(value, element, LANE(i))
        to = builder.bitcast(address(3, arguments[4]), value.type.as_pointer())
        builder.store(value, to, align=itemsize(number))
        return context.get_dummy_value()

    return signature, generate
