"""Rows of a matrix times a vector, at the speed of memory: LLVM IR.

    sums[row] += sum over i < length of rows[row, i] * vector[i]

Each element of the rows is used once for each vector, so with few vectors nothing but the rate at which rows come from
memory matters. A core that reads one long run gets little more than half of that rate: its prefetching stops at each
page, and too few lines are under way. Rows read side by side, as many as a vector has lanes, keep enough of them so.

A lane of a row's sum adds every so many products. In the end the sums of all rows, a square of lanes, are transposed
in registers, and one addition for each lane makes a vector of what the rows come to: short rows would spend more time
on adding lanes row by row than on their products.
"""

from __future__ import annotations

from functools import reduce

from llvmlite import ir

from fastconv.cpu.emitting import (
    INDEX,
    LANE,
    POINTER,
    addresses,
    counted,
    define,
    itemsize,
    moved,
)  # fmt: skip
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.microkernel import multiply_add
from fastconv.cpu.rows import halves
from fastconv.cpu.transpose import transposed
from fastconv.machine import vector_bytes

_LEAST_ROWS = 8  # at once: so many sums under way hide the latency of a multiply-add


def rows_at_once(itemsize: int) -> int:
    """Rows that are read side by side, and sums that are written: whole vectors of them."""
    return max(vector_bytes() // itemsize, _LEAST_ROWS)


@intrinsic
def multiply_rows(typing_context, matrix, first, pitch, rows, length, vector, vector_at, sums, at):  # type: ignore[no-untyped-def]
    """Add the products of `rows` rows, at most :func:`rows_at_once`, with a vector; sums of others are left undefined.

    Rows start at element `first` of the matrix, the vector at element `vector_at` of its array, sums at element `at`.
    """
    from numba import types

    signature = types.void(matrix, first, pitch, rows, length, vector, vector_at, sums, at)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = addresses(context, builder, signature, arguments)
        function = _define(builder.module, context.get_value_type(sums.dtype))
        passed = (pointer(0, arguments[1]), arguments[2], arguments[3], arguments[4], pointer(5, arguments[6]),
                  pointer(7, arguments[8]))  # fmt: skip
        builder.call(function, passed)
        return context.get_dummy_value()

    return signature, generate


def _define(module: ir.Module, number: ir.Type) -> ir.Function:
    """The function (matrix, pitch, rows, length, vector, sums)."""
    from numba.core import cgutils

    size = itemsize(number)
    lanes, count = vector_bytes() // size, rows_at_once(size)
    kinds = [POINTER, INDEX, INDEX, INDEX, POINTER, POINTER]
    function, there = define(module, f"fastconv_rows_{number}_{lanes}", kinds)
    if there:
        return function
    matrix, pitch, rows, length, vector, sums = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    last = builder.sub(rows, INDEX(1))
    # Where there are fewer rows, the last one is read several times.
    numbers = [builder.select(builder.icmp_signed("<", INDEX(r), last), INDEX(r), last) for r in range(count)]
    lines = [moved(builder, matrix, builder.mul(r, pitch), number) for r in numbers]
    kind = ir.VectorType(number, lanes)
    held = [cgutils.alloca_once_value(builder, ir.Constant(kind, [0.0] * lanes)) for _ in lines]  # LLVM: in registers

    def multiply(at: ir.Value, width: int) -> None:
        """Add the products of so many elements, from `at` on."""
        factor = _load(builder, moved(builder, vector, at, number), kind, width)
        for line, total in zip(lines, held, strict=True):
            value = _load(builder, moved(builder, line, at, number), kind, width)
            builder.store(multiply_add(builder, value, factor, builder.load(total, typ=kind)), total)

    with counted(builder, INDEX(0), builder.and_(length, INDEX(-lanes)), lanes) as i:
        multiply(i, lanes)
    for width in halves(lanes)[1:]:
        with builder.if_then(builder.icmp_unsigned("!=", builder.and_(length, INDEX(width)), INDEX(0))):
            multiply(builder.and_(length, INDEX(-2 * width)), width)
    totals = [builder.load(total, typ=kind) for total in held]
    for r in range(0, count, lanes):
        place = moved(builder, sums, r, number)
        total = reduce(builder.fadd, transposed(builder, totals[r : r + lanes]))
        builder.store(builder.fadd(builder.load(place, align=size, typ=kind), total), place, align=size)
    builder.ret_void()
    return function


def _load(builder: ir.IRBuilder, place: ir.Value, kind: ir.VectorType, width: int) -> ir.Value:
    """So many elements in the first lanes of a vector, and zeros in the others."""
    value = builder.load(place, align=itemsize(kind.element), typ=ir.VectorType(kind.element, width))
    if width == kind.count:
        return value
    order = ir.Constant(ir.VectorType(LANE, kind.count), [min(lane, width) for lane in range(kind.count)])
    return builder.shuffle_vector(value, ir.Constant(value.type, [0.0] * width), order)
