"""The register tile that all sums of products are made of, written in LLVM IR.

    for i < channels, j < length:  sums[i * pitch + j] += sum over t < taps of  weights[t * channels + i] * lines[offsets[t] + j]

A plain loop nest under Numba keeps its sums in memory: per product it loads two numbers and stores one, which is three
times what the core can do. Here a tile of `channels` by a few vectors of sums stays in registers while the taps go by;
a tap costs one load for each vector, one broadcast for each channel, and a fused multiply-add for each sum.

The tile's shape follows the host's registers: 16 of them hold 4 channels x 3 vectors of sums beside the operands, 32
hold 8 x 3. Fewer channels take more vectors, so that enough independent sums are under way to hide the latency of the
multiply-add. Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from fastconv.cpu.emitting import (
    BYTE,
    INDEX,
    LANE,
    POINTER,
    addresses,
    call_chosen,
    counted,
    define,
    emit_prefetch,
    itemsize,
    moved,
    vector_of,
)  # fmt: skip
from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes

#: Vectors of output channels in a full tile of :func:`multiply_pixels`.
TILE_VECTORS = 2

_FEW_PIXELS = 2  # of a tile that is bound by how fast its weights come, which it uses so often
AHEAD = 2048  # bytes: how far ahead it asks for them

#: Emits ``a * b + c`` of vectors.
Combine = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]


@cache
def _registers() -> int:
    few = llvm.get_process_triple().startswith(("x86_64", "i")) and vector_bytes() < 64  # more came with AVX-512
    return 16 if few else 32


def tile_channels() -> int:
    """Channels of a full tile."""
    return _registers() // 4


def tile_vectors(channels: int) -> int:
    """Vectors of a tile of so many channels: a tap takes a register for each of them and one for a weight."""
    return (_registers() - 1) // (channels + 1)


def _widths(channels: int) -> list[int]:
    """Vectors of a tile of so many channels: at most what the registers hold, and less for what is left of a row."""
    widths = [tile_vectors(channels)]
    while widths[-1] > 1:
        widths.append(widths[-1] // 2)
    return widths


def tile_pixels() -> int:
    """Pixels of a full tile of :func:`multiply_pixels`."""
    return (_registers() - 1 - TILE_VECTORS) // TILE_VECTORS


def padded(length: int, itemsize: int) -> int:
    """Sums that a tile computes, and elements that it reads, for `length` of them: whole vectors."""
    lanes = vector_bytes() // itemsize
    return -(-length // lanes) * lanes


def odd_lines(length: int, itemsize: int) -> int:
    """A distance of at least `length` elements for what a tile reads in turn.

    It is an odd number of cache lines, lest all of it fall into a few sets of the cache.
    """
    line = 64 // itemsize
    return (-(-length // line) | 1) * line


def _define(module: ir.Module, number: ir.Type, lanes: int, channels: int) -> ir.Function:
    """The function for one number of channels: (sums, pitch, lines, offsets, taps, weights, length)."""
    from numba.core import cgutils

    name = f"fastconv_tile_{number}_{lanes}_{channels}"
    if name in module.globals:
        return module.globals[name]
    signature = ir.FunctionType(ir.VoidType(), [POINTER, INDEX, POINTER, POINTER, INDEX, POINTER, INDEX])
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    length = function.args[6]
    start = INDEX(0)
    for vectors in _widths(channels):
        step = vectors * lanes
        left = builder.sub(length, start)
        if vectors == 1:
            left = builder.add(left, INDEX(lanes - 1))  # the last vector may be partly used
        stop = builder.add(start, builder.mul(builder.udiv(left, INDEX(step)), INDEX(step)))
        with cgutils.for_range_slice(builder, start, stop, INDEX(step), intp=INDEX) as (j, _):
            _emit_tile(builder, function.args, j, number, lanes, channels, vectors)
        start = stop
    builder.ret_void()
    return function


def _emit_tile(
    builder: ir.IRBuilder, arguments: Any, j: ir.Value, number: ir.Type, lanes: int, channels: int, vectors: int
) -> None:
    """One tile of sums at column `j`, through all taps."""
    sums, pitch, lines, offsets, taps, weights, _ = arguments
    vector, align = ir.VectorType(number, lanes), itemsize(number)
    rows = [moved(builder, sums, builder.add(builder.mul(pitch, INDEX(i)), j), number) for i in range(channels)]
    places = {
        (i, v): moved(builder, row, INDEX(v * lanes), number) for i, row in enumerate(rows) for v in range(vectors)
    }

    def operands(t: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
        offset = builder.load(moved(builder, offsets, t, INDEX), typ=INDEX)
        line = moved(builder, lines, builder.add(offset, j), number)
        first = builder.mul(t, INDEX(channels))
        return (
            [moved(builder, weights, builder.add(first, INDEX(i)), number) for i in range(channels)],
            [moved(builder, line, INDEX(v * lanes), number) for v in range(vectors)],
        )

    start = {at: builder.load(place, align=align, typ=vector) for at, place in places.items()}
    for at, total in sum_of_products(builder, INDEX(0), taps, start, operands).items():
        builder.store(total, places[at], align=align)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """``a * b + c`` of vectors; integers wrap round."""
    if isinstance(a.type.element, ir.IntType):
        return builder.add(builder.mul(a, b), c)
    contract = ("contract",)  # so that the two become one fused instruction where the CPU has it
    return builder.fadd(builder.fmul(a, b, flags=contract), c, flags=contract)


def multiply_add_pairs(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """The same where each word of `a` and `b` is a pair of int16: LLVM knows what the CPU has for this."""
    number, lanes = c.type.element, c.type.count
    halves, wide = (ir.VectorType(kind, 2 * lanes) for kind in (ir.IntType(number.width // 2), number))
    products = builder.mul(*(builder.sext(builder.bitcast(value, halves), wide) for value in (a, b)))
    for half in (0, 1):
        places = ir.Constant(ir.VectorType(LANE, lanes), [2 * lane + half for lane in range(lanes)])
        c = builder.add(c, builder.shuffle_vector(products, products, places))
    return c


def sum_of_products(
    builder: ir.IRBuilder,
    begin: ir.Value,
    end: ir.Value,
    start: dict[tuple[int, int], ir.Value],
    operands: Callable[[ir.Value], tuple[list[ir.Value], list[ir.Value]]],
    combine: Combine = multiply_add,
) -> dict[tuple[int, int], ir.Value]:
    """Sums ``start[i, v] + sum over begin <= t < end of scalar[i] * vector[v]``; `operands(t)` says where those lie."""
    from numba.core import cgutils

    vector = next(iter(start.values())).type
    number, align = vector.element, itemsize(vector.element)
    held = {at: cgutils.alloca_once_value(builder, value) for at, value in start.items()}  # LLVM: in registers
    with counted(builder, begin, end) as t:
        scalars, vectors = operands(t)
        values = [builder.load(place, align=align, typ=vector) for place in vectors]
        for i, place in enumerate(scalars):
            spread = vector_of(builder, builder.load(place, typ=number), vector.count)
            for v, value in enumerate(values):
                before = builder.load(held[i, v], typ=vector)
                builder.store(combine(builder, value, spread, before), held[i, v])
    return {at: builder.load(held[at], typ=vector) for at in start}


def sum_and_ask(
    builder: ir.IRBuilder,
    taps: ir.Value,
    start: dict[tuple[int, int], ir.Value],
    operands: Callable[[ir.Value], tuple[list[ir.Value], list[ir.Value]]],
    coming: tuple[ir.Value, ir.Value],
    combine: Combine = multiply_add,
) -> dict[tuple[int, int], ir.Value]:
    """As :func:`sum_of_products`, for t < taps; `coming` says what is wanted next, and each tap asks for a step more.

    A step of 0 bytes asks for nothing.
    """
    ahead, step = coming

    def asking(t: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
        emit_prefetch(builder, moved(builder, ahead, builder.mul(t, step), BYTE), write=False)
        return operands(t)

    asked = builder.select(builder.icmp_signed("==", step, INDEX(0)), INDEX(0), taps)
    so_far = sum_of_products(builder, INDEX(0), asked, start, asking, combine)
    return sum_of_products(builder, asked, taps, so_far, operands, combine)


@intrinsic
def multiply_tile(  # type: ignore[no-untyped-def]
    typing_context, sums, sums_at, pitch, lines, offsets, taps, weights, weights_at, channels, length
):
    """Add to `channels` rows of sums, `pitch` apart from `sums_at` on; at most :func:`tile_channels` of them."""
    from numba import types

    signature = types.void(sums, sums_at, pitch, lines, offsets, taps, weights, weights_at, channels, length)
    lanes = vector_bytes() // np.dtype(str(sums.dtype)).itemsize

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = addresses(context, builder, signature, arguments)
        number = context.get_value_type(sums.dtype)
        passed = (pointer(0, arguments[1]), arguments[2], pointer(3), pointer(4), arguments[5],
                  pointer(6, arguments[7]), arguments[9])  # fmt: skip
        tiles = {count: _define(builder.module, number, lanes, count) for count in range(1, tile_channels() + 1)}
        call_chosen(builder, arguments[8], tiles, passed)
        return context.get_dummy_value()

    return signature, generate


#: The arguments of every function of tiles of pixels; those of one that completes them follow.
_PIXEL_KINDS = [POINTER, INDEX, POINTER, INDEX, POINTER, POINTER, POINTER, INDEX, POINTER, INDEX]


def _completing(number: ir.Type) -> list[ir.Type]:
    return [INDEX, INDEX, INDEX, number, number, POINTER, INDEX]


def _define_tiles(
    module: ir.Module, number: ir.Type, lanes: int, pixels: int, vectors: int, complete: bool, combine: Combine
) -> ir.Function:
    """The function for some tiles of one shape.

    Its arguments: (sums, pitch, start, start pitch, lines, places, offsets, taps, weights, count); if `complete`, also
    (start step, start column, tiles, least, most, ahead, ahead step).
    """
    kinds = _PIXEL_KINDS + (_completing(number) if complete else [])
    name = f"fastconv_pixels_{number}_{lanes}_{pixels}_{vectors}_{complete}_{combine.__name__}"
    function, there = define(module, name, kinds)
    if there:
        return function
    builder = ir.IRBuilder(function.append_basic_block())
    sums, pitch, start, start_pitch, lines, places, offsets, taps, weights, count, *others = function.args
    vector, row_bytes = ir.VectorType(number, lanes), vectors * lanes * itemsize(number)
    with counted(builder, INDEX(0), count) as i:
        first = builder.mul(i, INDEX(pixels))
        end, begin = (
            moved(builder, base, builder.mul(first, apart), number)
            for base, apart in ((sums, pitch), (start, start_pitch))
        )
        bases = [
            moved(builder, lines, builder.load(moved(builder, places, builder.add(first, INDEX(p)), INDEX), typ=INDEX),
                  number)
            for p in range(pixels)
        ]  # fmt: skip
        if not complete:
            coming = moved(builder, weights, AHEAD, BYTE), INDEX(row_bytes if pixels <= _FEW_PIXELS else 0)
            ends = end, pitch, begin, start_pitch, INDEX(lanes)
            _emit_pixels(builder, ends, bases, offsets, taps, weights, vector, vectors, [], coming, combine)
        else:
            start_step, start_column, tiles, *limits, ahead, ahead_step = others
            with counted(builder, INDEX(0), tiles) as tile:
                at = builder.mul(tile, INDEX(vectors * lanes))
                ends = (
                    moved(builder, end, at, number), pitch,
                    moved(builder, begin, builder.mul(at, start_column), number), start_pitch, start_step,
                )  # fmt: skip
                row = moved(builder, weights, builder.mul(at, taps), number)
                so_far = builder.mul(builder.add(builder.mul(i, tiles), tile), builder.mul(taps, ahead_step))
                coming = moved(builder, ahead, so_far, BYTE), ahead_step
                _emit_pixels(builder, ends, bases, offsets, taps, row, vector, vectors, limits, coming, combine)
    builder.ret_void()
    return function


def _emit_pixels(
    builder: ir.IRBuilder, ends: tuple[ir.Value, ...], bases: list[ir.Value], offsets: ir.Value, taps: ir.Value,
    weights: ir.Value, vector: ir.Type, vectors: int, limits: list[ir.Value], coming: tuple[ir.Value, ir.Value],
    combine: Combine,
) -> None:  # fmt: skip
    """One tile: of the pixels that see the lines from `bases` on, through all taps."""
    sums, pitch, start, start_pitch, start_step = ends
    number, lanes, align = vector.element, vector.count, itemsize(vector.element)

    def operands(t: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
        offset = builder.load(moved(builder, offsets, t, INDEX), typ=INDEX)
        row = moved(builder, weights, builder.mul(t, INDEX(vectors * lanes)), number)
        return (
            [moved(builder, base, offset, number) for base in bases],
            [moved(builder, row, INDEX(v * lanes), number) for v in range(vectors)],
        )

    def place(base: ir.Value, row_pitch: ir.Value, step: ir.Value, p: int, v: int) -> ir.Value:
        at = builder.add(builder.mul(row_pitch, INDEX(p)), builder.mul(step, INDEX(v)))
        return moved(builder, base, at, number)

    first = {
        (p, v): builder.load(place(start, start_pitch, start_step, p, v), align=align, typ=vector)
        for p in range(len(bases))
        for v in range(vectors)
    }
    for p in range(len(bases) if limits else 0):  # sums may go to memory that is in no cache
        emit_prefetch(builder, place(sums, pitch, INDEX(lanes), p, 0), write=True)
    for (p, v), total in sum_and_ask(builder, taps, first, operands, coming, combine).items():
        builder.store(_clipped(builder, total, limits), place(sums, pitch, INDEX(lanes), p, v), align=align)


def _clipped(builder: ir.IRBuilder, total: ir.Value, limits: list[ir.Value]) -> ir.Value:
    """A vector of numbers between the limits; where there are none, as it is."""
    if not limits:
        return total
    least, most = (vector_of(builder, limit, total.type.count) for limit in limits)
    compare = builder.icmp_signed if isinstance(total.type.element, ir.IntType) else builder.fcmp_ordered
    total = builder.select(compare("<", total, least), least, total)  # so that NaN passes
    return builder.select(compare(">", total, most), most, total)


@contextmanager
def even_tiles(builder: ir.IRBuilder, pixels: ir.Value) -> Iterator[tuple[ir.Value, ir.Value, ir.Value, ir.Value]]:
    """A loop over the two sizes of as few tiles as hold so many pixels: those that have one pixel more come first.

    It gives a size, how many tiles have it, and how many tiles and pixels there are before them.
    """
    most = INDEX(tile_pixels())
    tiles = builder.udiv(builder.add(pixels, builder.sub(most, INDEX(1))), most)
    tiles = builder.select(builder.icmp_signed(">", tiles, INDEX(0)), tiles, INDEX(1))
    least, larger = builder.udiv(pixels, tiles), builder.urem(pixels, tiles)
    with counted(builder, INDEX(0), INDEX(2)) as turn:
        first_turn = builder.icmp_signed("==", turn, INDEX(0))
        size = builder.sub(builder.add(least, INDEX(1)), turn)
        count = builder.select(first_turn, larger, builder.sub(tiles, larger))
        before = builder.select(first_turn, INDEX(0), larger)
        yield size, count, before, builder.mul(before, builder.add(least, INDEX(1)))


def _define_pixels(module: ir.Module, number: ir.Type, vectors: int, complete: bool, combine: Combine) -> ir.Function:
    """As :func:`_define_tiles`, for any number of pixels, which is in the place of `count`."""
    lanes = vector_bytes() // itemsize(number)
    kinds = _PIXEL_KINDS + (_completing(number) if complete else [])
    name = f"fastconv_all_pixels_{number}_{lanes}_{vectors}_{complete}_{combine.__name__}"
    function, there = define(module, name, kinds)
    if there:
        return function
    builder = ir.IRBuilder(function.append_basic_block())
    sums, pitch, start, start_pitch, lines, places, offsets, taps, weights, pixels, *others = function.args
    shapes = {
        p: _define_tiles(module, number, lanes, p, vectors, complete, combine) for p in range(1, tile_pixels() + 1)
    }
    with even_tiles(builder, pixels) as (size, count, before, first):
        passed = [
            moved(builder, sums, builder.mul(first, pitch), number), pitch,
            moved(builder, start, builder.mul(first, start_pitch), number), start_pitch,
            lines, moved(builder, places, first, INDEX), offsets, taps, weights, count,
        ]  # fmt: skip
        if complete:
            start_step, start_column, tiles, least, most, ahead, ahead_step = others
            so_far = builder.mul(builder.mul(before, tiles), builder.mul(taps, ahead_step))
            passed += [start_step, start_column, tiles, least, most, moved(builder, ahead, so_far, BYTE), ahead_step]
        call_chosen(builder, size, shapes, passed)
    builder.ret_void()
    return function


@intrinsic
def multiply_pixels(  # type: ignore[no-untyped-def]
    typing_context, memory, sums_at, pitch, start_at, start_pitch, lines, places, places_at, offsets, taps, weights,
    weights_at, pixels, vectors,
):  # fmt: skip
    """Sums of some pixels, whose vectors hold output channels: at most `TILE_VECTORS` of them.

    Tiles are of at most :func:`tile_pixels`, one after another.
    ``sums[p * pitch + o] = start[p * start_pitch + o] + sum over t < taps of
    weights[t * lanes * vectors + o] * lines[places[p] + offsets[t]]``; sums and start lie in `memory`.
    """
    from numba import types

    signature = types.void(
        memory, sums_at, pitch, start_at, start_pitch, lines, places, places_at, offsets, taps, weights, weights_at,
        pixels, vectors,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = addresses(context, builder, signature, arguments)
        passed = (pointer(0, arguments[1]), arguments[2], pointer(0, arguments[3]), arguments[4], pointer(5),
                  pointer(6, arguments[7]), pointer(8), arguments[9], pointer(10, arguments[11]),
                  arguments[12])  # fmt: skip
        _call_pixels(builder, context.get_value_type(memory.dtype), arguments[13], passed, False, multiply_add)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def complete_pixels(  # type: ignore[no-untyped-def]
    typing_context, sums, sums_at, pitch, start, start_at, start_pitch, start_step, start_column, lines, lines_at,
    places, places_at, offsets, taps, weights, weights_at, pixels, vectors, tiles, least, most, ahead_at, ahead_step,
):  # fmt: skip
    """As :func:`multiply_pixels`, of several tiles side by side, and sums are clipped.

    The start's vectors lie a `start_step` apart, and what its columns lie apart for the tiles is `start_column`. The
    weights of a tile follow those of the one before. If `ahead_step` is not 0, each tap prefetches so many bytes more
    from element `ahead_at` of the weights on. Lines and weights of another dtype than the sums' are words, each a pair
    of int16.
    """
    from numba import types

    signature = types.void(
        sums, sums_at, pitch, start, start_at, start_pitch, start_step, start_column, lines, lines_at, places,
        places_at, offsets, taps, weights, weights_at, pixels, vectors, tiles, least, most, ahead_at, ahead_step,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = addresses(context, builder, signature, arguments)
        passed = (pointer(0, arguments[1]), arguments[2], pointer(3, arguments[4]), arguments[5],
                  pointer(8, arguments[9]), pointer(10, arguments[11]), pointer(12), arguments[13],
                  pointer(14, arguments[15]), arguments[16], *arguments[6:8], *arguments[18:21],
                  pointer(14, arguments[21]), arguments[22])  # fmt: skip
        combine = multiply_add if lines.dtype == sums.dtype else multiply_add_pairs
        _call_pixels(builder, context.get_value_type(sums.dtype), arguments[17], passed, True, combine)
        return context.get_dummy_value()

    return signature, generate


def _call_pixels(
    builder: ir.IRBuilder, number: ir.Type, vectors: ir.Value, passed: Any, complete: bool, combine: Combine
) -> None:
    """Call the function for so many vectors."""
    widths = {v: _define_pixels(builder.module, number, v, complete, combine) for v in range(1, TILE_VECTORS + 1)}
    call_chosen(builder, vectors, widths, passed)
