"""A register tile of pixels that lie anywhere: its sums, and what they are sums of, are found through a table.

    for p < pixels:  sums[to[p] + o] += sum over c < channels of  weights[c * width + o] * lines[from[p] + c]

The tile of `microkernel.complete_pixels` has its sums in rows at one distance. Here some pixels may be left out.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.cpu.emitting import BYTE, INDEX, POINTER, addresses, call_chosen, counted, define, itemsize, moved
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.microkernel import TILE_VECTORS, even_tiles, sum_and_ask, tile_pixels
from fastconv.machine import vector_bytes

#: Numbers in the table for a pixel: where the channels of what it sees begin, and where its sums do.
SPOT = 2


@intrinsic
def add_pixels(  # type: ignore[no-untyped-def]
    typing_context, sums, sums_at, lines, lines_at, spots, spots_at, channels, weights, weights_at, pixels, vectors,
    ahead_at, ahead_step,
):  # fmt: skip
    """Add the products of some channels to the sums of some pixels, `vectors` of outputs each, in tiles.

    If `ahead_step` is not 0, each channel prefetches so many bytes more from element `ahead_at` of the weights on.
    """
    from numba import types

    signature = types.void(
        sums, sums_at, lines, lines_at, spots, spots_at, channels, weights, weights_at, pixels, vectors, ahead_at,
        ahead_step,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer, number = addresses(context, builder, signature, arguments), context.get_value_type(sums.dtype)
        passed = [pointer(0, arguments[1]), pointer(2, arguments[3]), pointer(4, arguments[5]), arguments[6],
                  pointer(7, arguments[8]), pointer(7, arguments[11]), arguments[12], arguments[9]]  # fmt: skip
        widths = {v: _define_pixels(builder.module, number, v) for v in range(1, TILE_VECTORS + 1)}
        call_chosen(builder, arguments[10], widths, passed)
        return context.get_dummy_value()

    return signature, generate


#: (sums, lines, spots, channels, weights, ahead, ahead step), then how many tiles, or pixels.
_KINDS = [POINTER, POINTER, POINTER, INDEX, POINTER, POINTER, INDEX, INDEX]


def _define_pixels(module: ir.Module, number: ir.Type, vectors: int) -> ir.Function:
    """The function for any number of pixels."""
    function, there = define(module, f"fastconv_all_scattered_{number}_{vector_bytes()}_{vectors}", _KINDS)
    if there:
        return function
    builder = ir.IRBuilder(function.append_basic_block())
    sums, lines, spots, channels, weights, ahead, step, pixels = function.args
    shapes = {p: _define_tiles(module, number, p, vectors) for p in range(1, tile_pixels() + 1)}
    with even_tiles(builder, pixels) as (size, count, before, first):
        own = moved(builder, spots, builder.mul(first, INDEX(SPOT)), INDEX)
        asked = moved(builder, ahead, builder.mul(before, builder.mul(channels, step)), BYTE)
        call_chosen(builder, size, shapes, [sums, lines, own, channels, weights, asked, step, count])
    builder.ret_void()
    return function


def _define_tiles(module: ir.Module, number: ir.Type, pixels: int, vectors: int) -> ir.Function:
    """The function for some tiles of one shape."""
    lanes, align = vector_bytes() // itemsize(number), itemsize(number)
    function, there = define(module, f"fastconv_scattered_{number}_{lanes}_{pixels}_{vectors}", _KINDS)
    if there:
        return function
    builder, vector = ir.IRBuilder(function.append_basic_block()), ir.VectorType(number, lanes)
    sums, lines, spots, channels, weights, ahead, step, count = function.args

    def operands(c: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
        row = moved(builder, weights, builder.mul(c, INDEX(vectors * lanes)), number)
        return (
            [moved(builder, base, c, number) for base in bases],
            [moved(builder, row, v * lanes, number) for v in range(vectors)],
        )

    with counted(builder, INDEX(0), count) as i:
        own = moved(builder, spots, builder.mul(i, INDEX(SPOT * pixels)), INDEX)
        bases, totals = (
            [
                moved(builder, base, builder.load(moved(builder, own, SPOT * p + which, INDEX), typ=INDEX), number)
                for p in range(pixels)
            ]
            for which, base in enumerate((lines, sums))
        )
        places: dict[Any, ir.Value] = {
            (p, v): moved(builder, total, v * lanes, number) for p, total in enumerate(totals) for v in range(vectors)
        }
        start = {at: builder.load(place, align=align, typ=vector) for at, place in places.items()}
        asked = moved(builder, ahead, builder.mul(i, builder.mul(channels, step)), BYTE)
        for at, total in sum_and_ask(builder, channels, start, operands, (asked, step)).items():
            builder.store(total, places[at], align=align)
    builder.ret_void()
    return function
