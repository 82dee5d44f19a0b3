"""Rows of elements that lie side by side, copied in whole vectors: LLVM IR.

Under Numba a row costs some 25 ns however short it is: a slice is made, a loop asks whether source and target overlap,
the last elements go one by one. Here a row of n elements is whole vectors and then, for each binary digit of what is
left, a vector of half, a quarter, … of the lanes: 7 elements are 4 + 2 + 1. Nothing outside the row is touched.

On the way a row may be *split*, ``target[part][i] = source[i * parts + part]``, so that what a stride of 2 or 4 reads
lies side by side: of that many vectors, loaded as one, every second or fourth element is stored. Or it may be *dealt*:
its vectors go to places a slot apart. Or 2 or 4 rows are *woven* into one, ``target[i * parts + part] =
source[part][i]``, which undoes a split. What is copied, split or dealt may be converted, too. Or a row is *added* to
what is there.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.cpu.conversion import Conversion, conversions
from fastconv.cpu.emitting import (
    BYTE,
    INDEX,
    LANE,
    POINTER,
    call_chosen,
    counted,
    data_of,
    define,
    emit_prefetch,
    itemsize,
    moved,
)  # fmt: skip
from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes

#: Into how many parts a row can be split.
SPLITS = 2, 4


def parts_of(axes: int) -> int:
    """Of how many channels the groups are for which weights with so many axes are vectors.

    The size of the groups is part of the code, and so of the weights' type: three axes for lone channels, and one more
    for each doubling of the group. Weights with fewer axes are numbers: 0.
    """
    return 1 << axes - 3 if axes >= 3 else 0


def by_number(lanes: int, parts: int) -> list[int]:
    """The lanes of a vector of groups of `parts`: number 0 of all groups, number 1 of all groups, …"""
    return [i for part in range(parts) for i in range(part, lanes, parts)]


def _define_copy(
    module: ir.Module, source_number: ir.Type, number: ir.Type, conversion: Conversion, parts: int, dealt: int,
    added: bool,
) -> ir.Function:  # fmt: skip
    """The function (target, apart, slot, pitch, source, leap, stride, planes, rows, length); steps are in bytes.

    The targets of the parts lie `apart`. Or the row is `dealt` in groups of so many: then its vectors do. Or it is
    `added` to its target.
    """
    size, source_size = itemsize(number), itemsize(source_number)
    lanes = vector_bytes() // max(size, source_size)
    function, known = define(
        module, f"fastconv_copy_{source_number}_{number}_{conversion.name}_{lanes}_{parts}_{dealt}_{added}",
        [POINTER, INDEX, INDEX, INDEX, POINTER, INDEX, INDEX, INDEX, INDEX, INDEX],
    )  # fmt: skip
    if known:
        return function
    target, apart, slot, pitch, source, leap, stride, planes, rows, length = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    step = parts * lanes
    with counted(builder, INDEX(0), planes) as plane, counted(builder, INDEX(0), rows) as row:
        start = moved(builder, source, builder.add(builder.mul(plane, leap), builder.mul(row, stride)), BYTE)
        to = moved(builder, target, builder.add(builder.mul(plane, slot), builder.mul(row, pitch)), BYTE)

        def copy(at: ir.Value, count: int) -> None:
            """Elements `at` to `at + count`; `at` is a multiple of `parts`, or `count` smaller."""
            vector = ir.VectorType(source_number, count)
            values = builder.load(moved(builder, start, at, source_number), align=source_size, typ=vector)
            values = conversion.emit(builder, values)
            if dealt:
                place = moved(builder, to, builder.mul(apart, builder.udiv(at, INDEX(lanes))), BYTE)
                if count == lanes or dealt == 1:
                    order = ir.Constant(ir.VectorType(LANE, count), by_number(count, dealt))
                    place = moved(builder, place, builder.and_(at, INDEX(lanes - 1)), number)
                    builder.store(builder.shuffle_vector(values, values, order), place, align=size)
                    return
                place = moved(builder, place, builder.udiv(builder.and_(at, INDEX(lanes - 1)), INDEX(dealt)), number)
                for i in range(count):
                    into = moved(builder, place, i % dealt * (lanes // dealt) + i // dealt, number)
                    builder.store(builder.extract_element(values, LANE(i)), into, align=size)
                return
            part = builder.and_(at, INDEX(parts - 1))
            for further in range(min(parts, count)):
                chosen = list(range(further, count, parts))
                mask = ir.Constant(ir.VectorType(LANE, len(chosen)), chosen)
                place = moved(builder, to, builder.mul(apart, builder.add(part, INDEX(further))), BYTE)
                place = moved(builder, place, builder.udiv(at, INDEX(parts)), number)
                value = builder.shuffle_vector(values, values, mask)
                if added:
                    before = builder.load(place, align=size, typ=value.type)
                    value = (builder.add if isinstance(number, ir.IntType) else builder.fadd)(before, value)
                builder.store(value, place, align=size)

        with counted(builder, INDEX(0), builder.and_(length, INDEX(-step)), step) as at:
            copy(at, step)
        count = step // 2
        while count >= max(dealt, 1):
            with builder.if_then(builder.icmp_unsigned("!=", builder.and_(length, INDEX(count)), INDEX(0))):
                copy(builder.and_(length, INDEX(-2 * count)), count)
            count //= 2
    builder.ret_void()
    return function


def _define_weave(module: ir.Module, number: ir.Type, parts: int) -> ir.Function:
    """The function (target, slot, pitch, source, apart, leap, stride, planes, rows, length); steps are in bytes."""
    size = itemsize(number)
    lanes = vector_bytes() // size
    function, known = define(
        module, f"fastconv_weave_{number}_{lanes}_{parts}",
        [POINTER, INDEX, INDEX, POINTER, INDEX, INDEX, INDEX, INDEX, INDEX, INDEX],
    )  # fmt: skip
    if known:
        return function
    target, slot, pitch, source, apart, leap, stride, planes, rows, length = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    step = parts * lanes
    with counted(builder, INDEX(0), planes) as plane, counted(builder, INDEX(0), rows) as row:
        start = moved(builder, source, builder.add(builder.mul(plane, leap), builder.mul(row, stride)), BYTE)
        to = moved(builder, target, builder.add(builder.mul(plane, slot), builder.mul(row, pitch)), BYTE)

        def weave(at: ir.Value, count: int) -> None:
            """Elements `at` to `at + count`; `at` is a multiple of `parts`, or `count` smaller."""
            each = max(count // parts, 1)
            first = moved(builder, start, builder.udiv(at, INDEX(parts)), number)
            part = builder.and_(at, INDEX(parts - 1))
            values = []
            for further in range(min(parts, count)):
                place = moved(builder, first, builder.mul(apart, builder.add(part, INDEX(further))), BYTE)
                values.append(builder.load(place, align=size, typ=ir.VectorType(number, each)))
            while len(values) > 1:  # a with c and b with d, then ac with bd
                pairs = zip(values[: len(values) // 2], values[len(values) // 2 :], strict=True)
                order = [i // 2 + i % 2 * each for i in range(2 * each)]
                mask = ir.Constant(ir.VectorType(LANE, 2 * each), order)
                values = [builder.shuffle_vector(*pair, mask) for pair in pairs]
                each *= 2
            builder.store(values[0], moved(builder, to, at, number), align=size)

        with counted(builder, INDEX(0), builder.and_(length, INDEX(-step)), step) as at:
            weave(at, step)
        count = step // 2
        while count > 0:
            with builder.if_then(builder.icmp_unsigned("!=", builder.and_(length, INDEX(count)), INDEX(0))):
                weave(builder.and_(length, INDEX(-2 * count)), count)
            count //= 2
    builder.ret_void()
    return function


def _define_gather(module: ir.Module, number: ir.Type) -> ir.Function:
    """The function (target, slot, pitch, source, leap, stride, step, planes, rows, length); steps are in bytes."""
    size = itemsize(number)
    lanes = vector_bytes() // size
    kinds = [POINTER, INDEX, INDEX, POINTER, INDEX, INDEX, INDEX, INDEX, INDEX, INDEX]
    function, known = define(module, f"fastconv_gather_{number}_{lanes}", kinds)
    if known:
        return function
    target, slot, pitch, source, leap, stride, step, planes, rows, length = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    vector = ir.VectorType(number, lanes)
    # Of two vectors of which the second begins with the last element of the first: nothing past the row is read.
    second = [i for i in range(lanes) if 2 * i >= lanes]
    chosen = [lanes + 2 * i - (lanes - 1) if i in second else 2 * i for i in range(lanes)]
    pairs = builder.icmp_signed("==", step, INDEX(2 * size))
    pairs = builder.and_(pairs, builder.icmp_signed(">=", length, INDEX(lanes)))
    with counted(builder, INDEX(0), planes) as plane, counted(builder, INDEX(0), rows) as row:
        start = moved(builder, source, builder.add(builder.mul(plane, leap), builder.mul(row, stride)), BYTE)
        to = moved(builder, target, builder.add(builder.mul(plane, slot), builder.mul(row, pitch)), BYTE)
        with builder.if_else(pairs) as (in_vectors, one_by_one):
            with in_vectors, counted(builder, INDEX(0), length, lanes) as at:
                last = builder.sub(length, INDEX(lanes))
                at = builder.select(builder.icmp_signed("<", at, last), at, last)
                place = moved(builder, start, builder.mul(at, INDEX(2)), number)
                values = [
                    builder.load(moved(builder, place, further, number), align=size, typ=vector)
                    for further in (0, lanes - 1)
                ]
                value = builder.shuffle_vector(*values, ir.Constant(ir.VectorType(LANE, lanes), chosen))
                builder.store(value, moved(builder, to, at, number), align=size)
            with one_by_one, counted(builder, INDEX(0), length) as at:
                value = builder.load(moved(builder, start, builder.mul(at, step), BYTE), align=size, typ=number)
                builder.store(value, moved(builder, to, at, number), align=size)
    builder.ret_void()
    return function


def _copy(
    context: Any, builder: ir.IRBuilder, kinds: Any, arguments: Any, half: ir.Value, parts: int, dealt: int = 0,
    added: bool = False,
) -> None:  # fmt: skip
    """Call the function of :func:`_define_copy` with the arguments of :func:`split_planes`, but for the last two."""
    target, first, apart, slot, pitch, source, begin, *bytes_and_counts = arguments
    source_number, number = (context.get_data_type(kind.dtype) for kind in reversed(kinds))
    to = data_of(context, builder, kinds[0], target, number, first)
    from_ = data_of(context, builder, kinds[1], source, BYTE, begin)
    steps = [builder.mul(step, INDEX(itemsize(number))) for step in (apart, slot, pitch)]
    functions = {
        code: _define_copy(builder.module, source_number, number, conversion, parts, dealt, added)
        for code, conversion in conversions(kinds[1].dtype, kinds[0].dtype).items()
    }
    passed = to, *steps, from_, *bytes_and_counts
    if len(functions) == 1:
        builder.call(functions[0], passed)
    else:
        call_chosen(builder, half, functions, passed)


@intrinsic
def copy_planes(  # type: ignore[no-untyped-def]
    typing_context, target, first, slot, pitch, source, begin, leap, stride, planes, rows, length
):
    """Copy rows of planes: row r of plane p goes to element ``first + p * slot + r * pitch`` of the target.

    It is found ``begin + p * leap + r * stride`` bytes into the source.
    """
    from numba import types

    assert target.dtype == source.dtype

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        passed = *arguments[:2], INDEX(0), *arguments[2:]
        _copy(context, builder, (target, source), passed, INDEX(0), 1)
        return context.get_dummy_value()

    return types.void(target, first, slot, pitch, source, begin, leap, stride, planes, rows, length), generate


@intrinsic
def add_planes(  # type: ignore[no-untyped-def]
    typing_context, target, first, slot, pitch, source, begin, leap, stride, planes, rows, length
):
    """As :func:`copy_planes`, but rows are added to those of the target; complex ones are not."""
    from numba import types

    assert target.dtype == source.dtype

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        passed = *arguments[:2], INDEX(0), *arguments[2:]
        _copy(context, builder, (target, source), passed, INDEX(0), 1, added=True)
        return context.get_dummy_value()

    return types.void(target, first, slot, pitch, source, begin, leap, stride, planes, rows, length), generate


@intrinsic
def convert_planes(  # type: ignore[no-untyped-def]
    typing_context, target, first, slot, pitch, source, begin, leap, stride, planes, rows, length, half
):
    """The same from one dtype to another, where `half` is the code of the half type that either may be."""
    from numba import types

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        passed = *arguments[:2], INDEX(0), *arguments[2:-1]
        _copy(context, builder, (target, source), passed, arguments[-1], 1)
        return context.get_dummy_value()

    return types.void(target, first, slot, pitch, source, begin, leap, stride, planes, rows, length, half), generate


@intrinsic
def split_planes(  # type: ignore[no-untyped-def]
    typing_context, target, first, apart, slot, pitch, source, begin, leap, stride, planes, rows, length, parts, half
):
    """The same, but elements k, k + parts, … of a row go to ``first + k * apart + …``, for each k.

    `parts` is one of :data:`SPLITS`. The last elements may be fewer.
    """
    from numba import types

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        done = builder.append_basic_block("split.done")
        switch = builder.switch(arguments[-2], done)
        for parts in SPLITS:
            case = builder.append_basic_block(f"split.{parts}")
            switch.add_case(INDEX(parts), case)
            builder.position_at_end(case)
            _copy(context, builder, (target, source), arguments[:-2], arguments[-1], parts)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return (
        types.void(target, first, apart, slot, pitch, source, begin, leap, stride, planes, rows, length, parts, half),
        generate,
    )


@intrinsic
def gather_planes(  # type: ignore[no-untyped-def]
    typing_context, target, first, slot, pitch, source, begin, leap, stride, step, planes, rows, length
):
    """As :func:`copy_planes`, but the elements of a row of the source lie `step` bytes apart."""
    from numba import types

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_data_type(target.dtype)
        to = data_of(context, builder, target, arguments[0], number, arguments[1])
        steps = [builder.mul(step, INDEX(itemsize(number))) for step in arguments[2:4]]
        from_ = data_of(context, builder, source, arguments[4], BYTE, arguments[5])
        builder.call(_define_gather(builder.module, number), (to, *steps, from_, *arguments[6:]))
        return context.get_dummy_value()

    return types.void(target, first, slot, pitch, source, begin, leap, stride, step, planes, rows, length), generate


@intrinsic
def weave_planes(  # type: ignore[no-untyped-def]
    typing_context, target, first, slot, pitch, source, begin, apart, leap, stride, planes, rows, length, parts
):
    """As :func:`copy_planes`, but elements k, k + parts, … of a row come from ``begin + k * apart + …``, for each k.

    `parts` is one of :data:`SPLITS`.
    """
    from numba import types

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_data_type(target.dtype)
        to = data_of(context, builder, target, arguments[0], number, arguments[1])
        steps = [builder.mul(step, INDEX(itemsize(number))) for step in arguments[2:4]]
        from_ = data_of(context, builder, source, arguments[4], BYTE, arguments[5])
        weaves = {count: _define_weave(builder.module, number, count) for count in SPLITS}
        call_chosen(builder, arguments[12], weaves, (to, *steps, from_, *arguments[6:12]))
        return context.get_dummy_value()

    return (
        types.void(target, first, slot, pitch, source, begin, apart, leap, stride, planes, rows, length, parts),
        generate,
    )


@intrinsic
def deal_pixels(typing_context, target, first, slot, pitch, source, begin, stride, pixels, length, half, like):  # type: ignore[no-untyped-def]
    """Vector v of pixel p goes to ``first + v * slot + p * pitch``, in the order of :func:`by_number`, converted.

    Pixels are `length` elements from ``begin + p * stride`` bytes on, in groups of :func:`parts_of` `like`.
    """
    from numba import types

    parts = parts_of(like.ndim)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        to, places, source, rows, pixels = arguments[0], arguments[1:4], arguments[4:6], arguments[6], arguments[7:9]
        passed = to, places[0], places[1], INDEX(0), places[2], *source, INDEX(0), rows, INDEX(1), *pixels
        _copy(context, builder, (signature.args[0], signature.args[4]), passed, arguments[9], 1, parts)
        return context.get_dummy_value()

    return types.void(target, first, slot, pitch, source, begin, stride, pixels, length, half, like), generate


@intrinsic
def prefetch(typing_context, memory, at):  # type: ignore[no-untyped-def]
    """Have the cache line of ``memory[at]`` brought; it may lie outside of the array."""
    from numba import types

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_data_type(memory.dtype)
        emit_prefetch(builder, data_of(context, builder, memory, arguments[0], number, arguments[1]), write=False)
        return context.get_dummy_value()

    return types.void(memory, at), generate
