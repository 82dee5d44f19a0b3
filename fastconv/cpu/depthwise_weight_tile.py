"""The register tile of depthwise weight gradients, written in LLVM IR.

    for taps (k, j):  sums[k, j] += sum over positions t of  gradient[t] * staged[offset[j] + (t + k) * pitch]

A tap is a dot product of the output gradient with a shifted input. Vectors of both meet lane by lane, and the sums, a
vector for each tap, stay in registers while the positions go by. Vertical neighbours share the input: row r meets the
gradient's row r with the first tap of a column, row r - 1 with the second and r - 2 with the third. So a tile has a
*run* of up to three taps, keeps as many rows of the gradient in registers, and takes such runs in up to four columns
*side by side*, as many as 16 registers hold:

    run 3, 4 side by side:  5 loads, 12 multiply-adds;   run 3, 3:  4, 9;   run 2, 3:  4, 6;   run 1, 8:  9, 8.

Before the last row of the gradient has been loaded for the first tap there is a row or two for which not all taps have
a partner, and so there is after it. Strides, dilation, depth and channels are in offsets and pitches: with stride s and
dilation d, taps that are s / gcd(s, d) apart form runs, over rows that are d / gcd(s, d) apart, of which there are as
many *classes*.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from fastconv.cpu.copying import parts_of
from fastconv.cpu.emitting import (
    BYTE,
    INDEX,
    LANE,
    POINTER,
    call_chosen,
    counted,
    data_of,
    define,
    itemsize,
    moved,
    sum_of_lanes,
    vector_of,
)
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.microkernel import multiply_add
from fastconv.machine import vector_bytes

#: How many runs a tile may have side by side, for each length of a run.
SIDE_BY_SIDE = {3: (1, 2, 3, 4), 2: (1, 2, 3, 4), 1: (1, 2, 4, 8)}
MOST_BESIDE = 8

#: One tile: run and runs side by side, where its sums begin (in vectors), where each run begins in what is staged.
TILE = np.dtype([("run", np.int64), ("beside", np.int64), ("sums", np.int64), ("offsets", np.int64, (MOST_BESIDE,))])

#: What is the same for all tiles, in elements of what is staged: from group to group, from vector to vector along a
#: row, from row to row of the gradient; and the classes of rows.
STEPS = np.dtype([(name, np.int64) for name in ("slot", "step", "pitch", "classes")])


def _define_tile(module: ir.Module, number: ir.Type, run: int, beside: int, parts: int) -> ir.Function:
    """The function of :func:`add_taps` for one shape of tile, with pointers for arrays."""
    from numba.core import cgutils

    size = itemsize(number)
    lanes = vector_bytes() // size
    vector = ir.VectorType(number, lanes)
    function, known = define(
        module, f"fastconv_taps_{number}_{lanes}_{run}_{beside}_{parts}",
        [POINTER, INDEX, POINTER, POINTER, POINTER, POINTER, INDEX, INDEX, INDEX, INDEX, INDEX, INDEX, INDEX],
    )  # fmt: skip
    if known:
        return function
    sums, sums_slot, staged, offsets, steps, gradient, leap, stride, step, groups, vectors, rows, used = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    every_total = [cgutils.alloca_once(builder, vector) for _ in range(run * beside)]  # LLVM keeps these in registers
    totals = [every_total[run * j : run * (j + 1)] for j in range(beside)]
    held = [cgutils.alloca_once(builder, vector) for _ in range(run - 1)]  # rows of the gradient, the last one first

    def field(name: str) -> ir.Value:
        assert STEPS.fields is not None
        return builder.load(moved(builder, steps, STEPS.fields[name][1], BYTE), typ=INDEX)

    def load(place: ir.Value) -> ir.Value:
        return builder.load(place, align=size, typ=vector)

    def read(place: ir.Value) -> ir.Value:
        """The inputs of one number of all groups in a vector, again and again: their loads broadcast them."""
        if parts <= 1:
            return load(place)
        groups = lanes // parts
        values = builder.load(place, align=size, typ=ir.VectorType(number, groups))
        order = ir.Constant(ir.VectorType(LANE, lanes), [i % groups for i in range(lanes)])
        return builder.shuffle_vector(values, values, order)

    def opaque(place: ir.Value) -> ir.Value:
        """The same pointer, whose origin LLVM does not see: it would keep all addresses below up to date in memory."""
        same = module.declare_intrinsic("llvm.launder.invariant.group.p0", (), ir.FunctionType(POINTER, [POINTER]))
        return builder.call(same, [place])

    lane = ir.Constant(ir.VectorType(LANE, lanes), list(range(lanes)))
    counts = builder.icmp_signed("<", lane, vector_of(builder, builder.trunc(used, LANE), lanes))
    slot, along, pitch, classes = (field(name) for name in ("slot", "step", "pitch", "classes"))
    begins = [builder.load(moved(builder, offsets, j, INDEX), typ=INDEX) for j in range(beside)]
    least, more = builder.sdiv(rows, classes), builder.srem(rows, classes)
    down, gradient_down = builder.mul(pitch, classes), builder.mul(stride, classes)

    with counted(builder, INDEX(0), groups) as group:
        for total in every_total:
            builder.store(ir.Constant(vector, None), total)
        with counted(builder, INDEX(0), vectors) as at, counted(builder, INDEX(0), classes) as first:
            place = builder.add(builder.mul(group, slot), builder.mul(at, along))
            place = opaque(moved(builder, staged, builder.add(place, builder.mul(first, pitch)), number))
            line = builder.add(builder.mul(group, leap), builder.mul(at, step))
            line = opaque(moved(builder, gradient, builder.add(line, builder.mul(first, stride)), BYTE))
            length = builder.add(least, builder.zext(builder.icmp_signed("<", first, more), INDEX))
            columns = [moved(builder, place, begin, number) for begin in begins]

            def meet(row: ir.Value, partners: dict[int, ir.Value], columns: list[ir.Value] = columns) -> None:
                """A row of the input, with the rows of the gradient that some taps of the runs have it meet."""
                for column, total in zip(columns, totals, strict=True):
                    builder.fence("seq_cst", "singlethread")  # else LLVM loads ahead and has no registers for it
                    values = read(moved(builder, column, builder.mul(row, down), number))
                    for tap, partner in partners.items():
                        before = builder.load(total[tap], typ=vector)
                        builder.store(multiply_add(builder, values, partner, before), total[tap])

            def advance(row: ir.Value, taps: int, line: ir.Value = line) -> None:
                """Load a row of the gradient; the first `taps` have a partner."""
                rows = [load(moved(builder, line, builder.mul(row, gradient_down), BYTE))]
                rows += [builder.load(before, typ=vector) for before in held[: taps - 1]]
                meet(row, dict(enumerate(rows)))
                for before, values in zip(held, rows, strict=False):
                    builder.store(values, before)

            for row in range(run - 1):
                advance(INDEX(row), row + 1)
            with counted(builder, INDEX(run - 1), length) as row:
                advance(row, run)
            for beyond in range(run - 1):
                partners = {tap: builder.load(held[tap - beyond - 1], typ=vector) for tap in range(beyond + 1, run)}
                meet(builder.add(length, INDEX(beyond)), partners)
        to = moved(builder, sums, builder.mul(group, sums_slot), number)
        for k, total in enumerate(every_total):
            place = moved(builder, to, k * lanes, number)
            value = builder.select(counts, builder.load(total, typ=vector), ir.Constant(vector, None))
            add = builder.add if isinstance(number, ir.IntType) else builder.fadd
            builder.store(add(load(place), value), place, align=size)
    builder.ret_void()
    return function


@intrinsic
def add_taps(  # type: ignore[no-untyped-def]
    typing_context, scratch, sums, sums_slot, staged, tiles, tile, steps, gradient, begin, leap, stride, step, groups,
    vectors, rows, used,
):  # fmt: skip
    """Add the products of one tile, ``tiles[tile]``, to its sums: a vector for each tap, run by run.

    Group g has sums ``scratch[sums + g * sums_slot:]`` and input from ``scratch[staged + g * slot]`` on; ``steps[0]``
    are its :data:`STEPS`. Vector j of row r of its gradient lies ``begin + g * leap + r * stride + j * step`` bytes
    into `gradient`. Of a vector only the first `used` lanes count. There are at least as many rows in a class as taps
    in a run. If groups are of :func:`parts_of` the axes of `tiles`, the input is one number of each, for all its lanes.
    """
    from numba import types

    signature = types.void(
        scratch, sums, sums_slot, staged, tiles, tile, steps, gradient, begin, leap, stride, step, groups, vectors,
        rows, used,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_data_type(scratch.dtype)

        def data(k: int, at: ir.Value | int, unit: ir.Type = number) -> ir.Value:
            return data_of(context, builder, signature.args[k], arguments[k], unit, at)

        assert TILE.fields is not None
        chosen = data(4, builder.mul(arguments[5], INDEX(TILE.itemsize)), BYTE)
        run, beside, first, offsets = (moved(builder, chosen, TILE.fields[name][1], BYTE) for name in TILE.names or ())
        run, beside, first = (builder.load(place, typ=INDEX) for place in (run, beside, first))
        lanes = vector_bytes() // itemsize(number)
        at = builder.add(arguments[1], builder.mul(first, INDEX(lanes)))
        passed = (
            data(0, at), arguments[2], data(0, arguments[3]), offsets, data(6, 0, BYTE), data(7, arguments[8], BYTE),
            *arguments[9:],
        )  # fmt: skip
        shapes = {
            16 * length + count: _define_tile(builder.module, number, length, count, parts_of(tiles.ndim))
            for length, counts in SIDE_BY_SIDE.items()
            for count in counts
        }
        call_chosen(builder, builder.add(builder.mul(run, INDEX(16)), beside), shapes, passed)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def sum_lanes(typing_context, array, at):  # type: ignore[no-untyped-def]
    """The sum of a vector's elements."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_data_type(array.dtype)
        lanes = vector_bytes() // itemsize(number)
        place = data_of(context, builder, signature.args[0], arguments[0], number, arguments[1])
        value = builder.load(place, align=itemsize(number), typ=ir.VectorType(number, lanes))
        return sum_of_lanes(builder, value)

    return array.dtype(array, at), generate
