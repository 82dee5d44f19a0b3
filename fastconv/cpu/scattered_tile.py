"""A register tile of pixels that lie anywhere: its sums, and what they are sums of, are found through a table.

    for p < pixels:  sums[to[p] + o] += sum over c < channels of  weights[c * width + o] * lines[from[p] + c]

The tile of `microkernel.complete_pixels` has its sums in rows at one distance. Here some pixels may be left out.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.cpu.emitting import INDEX, POINTER, addresses, call_chosen, define, itemsize, moved
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.microkernel import TILE_VECTORS, sum_and_ask, tile_pixels
from fastconv.machine import vector_bytes

#: Numbers in the table for a pixel: where the channels of what it sees begin, and where its sums do.
SPOT = 2


@intrinsic
def add_pixels(  # type: ignore[no-untyped-def]
    typing_context, sums, sums_at, lines, lines_at, spots, spots_at, channels, weights, weights_at, pixels, vectors,
    ahead_at, ahead_step,
):  # fmt: skip
    """Add the products of some channels to the sums of at most :func:`tile_pixels` pixels, `vectors` of outputs each.

    If `ahead_step` is not 0, each channel prefetches so many bytes more from element `ahead_at` of the weights on.
    """
    from numba import types

    signature = types.void(
        sums, sums_at, lines, lines_at, spots, spots_at, channels, weights, weights_at, pixels, vectors, ahead_at,
        ahead_step,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer, number = addresses(context, builder, signature, arguments), context.get_value_type(sums.dtype)
        passed = (pointer(0, arguments[1]), pointer(2, arguments[3]), pointer(4, arguments[5]), arguments[6],
                  pointer(7, arguments[8]), pointer(7, arguments[11]), arguments[12])  # fmt: skip
        tiles = {
            v * (tile_pixels() + 1) + p: _define(builder.module, number, p, v)
            for v in range(1, TILE_VECTORS + 1)
            for p in range(1, tile_pixels() + 1)
        }
        choice = builder.add(builder.mul(arguments[10], INDEX(tile_pixels() + 1)), arguments[9])
        call_chosen(builder, choice, tiles, passed)
        return context.get_dummy_value()

    return signature, generate


def _define(module: ir.Module, number: ir.Type, pixels: int, vectors: int) -> ir.Function:
    """The function for one shape of tile: (sums, lines, spots, channels, weights, ahead, ahead step)."""
    lanes, align = vector_bytes() // itemsize(number), itemsize(number)
    kinds = [POINTER, POINTER, POINTER, INDEX, POINTER, POINTER, INDEX]
    function, there = define(module, f"fastconv_scattered_{number}_{lanes}_{pixels}_{vectors}", kinds)
    if there:
        return function
    builder, vector = ir.IRBuilder(function.append_basic_block()), ir.VectorType(number, lanes)
    sums, lines, spots, channels, weights, ahead, step = function.args

    def found(base: ir.Value, p: int, which: int) -> ir.Value:
        at = builder.load(moved(builder, spots, SPOT * p + which, INDEX), typ=INDEX)
        return moved(builder, base, at, number)

    def operands(c: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
        row = moved(builder, weights, builder.mul(c, INDEX(vectors * lanes)), number)
        return (
            [moved(builder, base, c, number) for base in bases],
            [moved(builder, row, v * lanes, number) for v in range(vectors)],
        )

    bases, totals = ([found(base, p, which) for p in range(pixels)] for which, base in enumerate((lines, sums)))
    places: dict[Any, ir.Value] = {
        (p, v): moved(builder, total, v * lanes, number) for p, total in enumerate(totals) for v in range(vectors)
    }
    start = {at: builder.load(place, align=align, typ=vector) for at, place in places.items()}
    for at, total in sum_and_ask(builder, channels, start, operands, (ahead, step)).items():
        builder.store(total, places[at], align=align)
    builder.ret_void()
    return function
