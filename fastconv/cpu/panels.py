"""Panels: some pixels' patches written down tap by tap, a few vectors of pixels wide, in LLVM IR.

A tile of sums with pixels across its vectors takes whole vectors of pixels for each tap. A panel holds them one after
another, so that all tiles of output channels read it straight from L1.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from fastconv.cpu.emitting import INDEX, LANE, POINTER, addresses, counted, define, itemsize, moved
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.microkernel import TILE_VECTORS
from fastconv.machine import vector_bytes


@intrinsic
def flat_memory(typing_context, a, like):  # type: ignore[no-untyped-def]
    """The memory of an array as a flat one of the type of `like`; of use only where their elements are alike."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(like)(context, builder, arguments[1])
        data = context.make_array(a)(context, builder, arguments[0]).data
        array.data = builder.bitcast(data, array.data.type)
        return array._getvalue()

    return like(a, like), generate


@intrinsic
def pack_panels(typing_context, lines, lines_at, places, places_at, pixels, offsets, taps, panels):  # type: ignore[no-untyped-def]
    """``panel[t * width + p] = lines[places[p] + offsets[t]]``: panels of `TILE_VECTORS` vectors, one after another.

    The last one may be narrower: of as many whole vectors as its pixels need, and its last pixel fills them up. Places
    rise from pixel to pixel.
    """
    from numba import types

    signature = types.void(lines, lines_at, places, places_at, pixels, offsets, taps, panels)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = addresses(context, builder, signature, arguments)
        function = _define(builder.module, context.get_value_type(lines.dtype))
        passed = (pointer(0, arguments[1]), pointer(2, arguments[3]), arguments[4], pointer(5), arguments[6],
                  pointer(7))  # fmt: skip
        builder.call(function, passed)
        return context.get_dummy_value()

    return signature, generate


def _define(module: ir.Module, number: ir.Type) -> ir.Function:
    """The function (lines, places, pixels, offsets, taps, panels)."""
    lanes = vector_bytes() // itemsize(number)
    full = TILE_VECTORS * lanes
    kinds = [POINTER, POINTER, INDEX, POINTER, INDEX, POINTER]
    function, there = define(module, f"fastconv_panels_{number}_{lanes}", kinds)
    if there:
        return function
    lines, places, pixels, offsets, taps, panels = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    vector, align = ir.VectorType(number, lanes), itemsize(number)

    def place_of(p: ir.Value) -> ir.Value:
        last = builder.sub(pixels, INDEX(1))
        p = builder.select(builder.icmp_signed("<", p, last), p, last)
        return builder.load(moved(builder, places, p, INDEX), typ=INDEX)

    def read(line: ir.Value, at: ir.Value | int) -> ir.Value:
        return builder.load(moved(builder, line, at, number), align=align, typ=vector)

    def write(value: ir.Value, target: ir.Value) -> None:
        builder.store(value, target, align=align)

    @contextmanager
    def each_tap() -> Iterator[tuple[ir.Value, ir.Value]]:
        """The number of a tap, and the lines as it sees them."""
        with counted(builder, INDEX(0), taps) as t:
            yield t, moved(builder, lines, builder.load(moved(builder, offsets, t, INDEX), typ=INDEX), number)

    begin, run = place_of(INDEX(0)), builder.sub(pixels, INDEX(1))
    unbroken = builder.icmp_signed("==", builder.sub(place_of(run), begin), run)
    whole = builder.icmp_signed("==", builder.urem(pixels, INDEX(full)), INDEX(0))
    with builder.if_else(builder.and_(whole, unbroken)) as (one_run, others):
        with one_run, each_tap() as (t, line), counted(builder, INDEX(0), pixels, full) as p:
            target = builder.add(builder.mul(p, taps), builder.mul(t, INDEX(full)))
            for v in range(0, full, lanes):
                at = builder.add(builder.add(begin, p), INDEX(v))
                write(read(line, at), moved(builder, panels, builder.add(target, INDEX(v)), number))
        with others, counted(builder, INDEX(0), pixels, lanes) as first:
            panel = builder.mul(builder.udiv(first, INDEX(full)), INDEX(full))
            wanted = builder.sub(pixels, panel)
            narrow = builder.mul(builder.udiv(builder.add(wanted, INDEX(lanes - 1)), INDEX(lanes)), INDEX(lanes))
            width = builder.select(builder.icmp_signed("<", narrow, INDEX(full)), narrow, INDEX(full))
            into = moved(builder, panels, builder.add(builder.mul(panel, taps), builder.sub(first, panel)), number)

            each = [place_of(builder.add(first, INDEX(i))) for i in range(lanes)]
            before = [builder.icmp_signed("==", builder.sub(p, each[0]), INDEX(i)) for i, p in enumerate(each)]
            back = builder.sub(each[-1], INDEX(lanes - 1))
            after = [builder.icmp_signed("==", builder.sub(p, back), INDEX(i)) for i, p in enumerate(each)]
            near = functools.reduce(builder.and_, map(builder.or_, before, after))
            with builder.if_else(near) as (two_runs, scattered):
                with two_runs:
                    mask = ir.Constant(ir.VectorType(ir.IntType(1), lanes), ir.Undefined)
                    for i, there in enumerate(before):
                        mask = builder.insert_element(mask, there, LANE(i))
                    with each_tap() as (t, line):
                        value = builder.select(mask, read(line, each[0]), read(line, back))
                        write(value, moved(builder, into, builder.mul(t, width), number))
                with scattered, each_tap() as (t, line):
                    value = ir.Constant(vector, ir.Undefined)
                    for i, place in enumerate(each):
                        element = builder.load(moved(builder, line, place, number), typ=number)
                        value = builder.insert_element(value, element, LANE(i))
                    write(value, moved(builder, into, builder.mul(t, width), number))
    builder.ret_void()
    return function
