"""Rows of a matrix times a few vectors, at the speed of memory: LLVM IR.

    sums[row, k] += sum over i < length of rows[row, i] * vectors[k, i]

Each element of the rows is used once for each vector, so with few vectors nothing but the rate at which rows come from
memory matters. A core that reads one long run gets little more than half of that rate: its prefetching stops at each
page, and too few lines are under way. `ROWS` rows read side by side, with a line of each asked for some way ahead, keep
enough of them so.

A lane sums every so many products; lanes are added at the end, in pairs.
"""

from __future__ import annotations

from llvmlite import ir

from fastconv.cpu.emitting import (
    BYTE,
    INDEX,
    POINTER,
    addresses,
    call_chosen,
    counted,
    define,
    emit_prefetch,
    itemsize,
    moved,
    sum_of_lanes,
    vector_of,
)  # fmt: skip
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.microkernel import multiply_add
from fastconv.machine import vector_bytes

#: Rows that are read side by side, and vectors that they are multiplied with: sums and operands fit 16 registers.
ROWS, VECTORS = 6, 2

_AHEAD = 256  # bytes


@intrinsic
def multiply_rows(  # type: ignore[no-untyped-def]
    typing_context, matrix, first, pitch, rows, length, vectors, vector, vector_pitch, count, sums, at, sums_pitch
):
    """Add the products of `rows` rows, at most `ROWS`, with `count` vectors, at most `VECTORS`.

    Rows start at element `first` of the matrix, vectors at element `vector` of theirs, and the sums of a row, one after
    another, at element `at`.
    """
    from numba import types

    signature = types.void(
        matrix, first, pitch, rows, length, vectors, vector, vector_pitch, count, sums, at, sums_pitch
    )

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = addresses(context, builder, signature, arguments)
        number = context.get_value_type(sums.dtype)
        functions = {n: _define(builder.module, number, n) for n in range(1, VECTORS + 1)}
        passed = (pointer(0, arguments[1]), arguments[2], arguments[3], arguments[4], pointer(5, arguments[6]),
                  arguments[7], pointer(9, arguments[10]), arguments[11])  # fmt: skip
        call_chosen(builder, arguments[8], functions, passed)
        return context.get_dummy_value()

    return signature, generate


def _define(module: ir.Module, number: ir.Type, count: int) -> ir.Function:
    """The function for so many vectors: (matrix, pitch, rows, length, vectors, pitch, sums, pitch)."""
    size = itemsize(number)
    lanes = vector_bytes() // size
    kinds = [POINTER, INDEX, INDEX, INDEX, POINTER, INDEX, POINTER, INDEX]
    function, there = define(module, f"fastconv_rows_{number}_{lanes}_{count}", kinds)
    if there:
        return function
    matrix, pitch, rows, length, vectors, vector_pitch, sums, sums_pitch = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    last = builder.sub(rows, INDEX(1))
    # Where there are fewer rows, the last one is read, and its sums are written, several times.
    numbers = [builder.select(builder.icmp_signed("<", INDEX(r), last), INDEX(r), last) for r in range(ROWS)]
    lines = [moved(builder, matrix, builder.mul(r, pitch), number) for r in numbers]
    factors = [moved(builder, vectors, builder.mul(vector_pitch, INDEX(k)), number) for k in range(count)]
    places = [
        moved(builder, moved(builder, sums, builder.mul(r, sums_pitch), number), k, number)
        for r in numbers
        for k in range(count)
    ]
    whole = builder.and_(length, INDEX(-lanes))
    vector = ir.VectorType(number, lanes)
    zeros = [ir.Constant(vector, [0.0] * lanes)] * len(places)
    totals = _products(builder, INDEX(0), whole, lines, factors, zeros)
    single = ir.VectorType(number, 1)
    start = [
        builder.fadd(builder.load(place, align=size, typ=single), vector_of(builder, sum_of_lanes(builder, total), 1))
        for place, total in zip(places, totals, strict=True)
    ]
    for place, total in zip(places, _products(builder, whole, length, lines, factors, start), strict=True):
        builder.store(total, place, align=size)
    builder.ret_void()
    return function


def _products(
    builder: ir.IRBuilder,
    begin: ir.Value,
    end: ir.Value,
    lines: list[ir.Value],
    factors: list[ir.Value],
    start: list[ir.Value],
) -> list[ir.Value]:
    """The sums of products from `begin` to `end`, of as many elements at a time as a start has."""
    from numba.core import cgutils

    kind = start[0].type
    number, size = kind.element, itemsize(kind.element)
    held = [cgutils.alloca_once_value(builder, value) for value in start]  # LLVM keeps these in registers
    with counted(builder, begin, end, kind.count) as i:
        read = [builder.load(moved(builder, factor, i, number), align=size, typ=kind) for factor in factors]
        for r, line in enumerate(lines):
            place = moved(builder, line, i, number)
            emit_prefetch(builder, moved(builder, place, _AHEAD, BYTE), write=False)
            value = builder.load(place, align=size, typ=kind)
            for total, factor in zip(held[r * len(factors) :], read, strict=False):
                builder.store(multiply_add(builder, value, factor, builder.load(total, typ=kind)), total)
    return [builder.load(total, typ=kind) for total in held]
