"""The register tile of direct convolution where all taps are staged at once: sums are born and finished in registers.

    for o < channels, j < length:
        results[o * pitch + j] = clip(start[o] + sum over t < taps of  weights[o, t] * lines[offsets[t] + j])

A first layer has few taps, 27 for three channels of 3 x 3, and 64 channels of results: what is not multiply-adds counts
for more than in a deep layer. A tile of 4 channels by 3 vectors takes 27 taps in 162 cycles; reading and writing its 12
sums in scratch memory, clearing that and copying it to the results took half as long again.

A row is cut into tiles of as many vectors as registers hold, the rest into tiles of two: seven vectors are 3 + 2 + 2.
Tiles of one would wait for their own sums, 4 multiply-adds under way of the 8 that latency asks for. The last tile ends
where the row ends, over results that the one before has written already; they are computed again, to the same bits. In
a row shorter than two vectors these overlap.

The tiles of a row follow one another, so that whole cache lines are written: rows of several channels often lie a
multiple of 4 KiB apart, where the lines of a second visit would not stay in L1.
"""

from __future__ import annotations

from llvmlite import ir

from fastconv.cpu.emitting import INDEX, POINTER, addresses, call_chosen, define, itemsize, moved, vector_of
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.microkernel import sum_of_products, tile_channels, tile_vectors
from fastconv.machine import vector_bytes


def _define_row(module: ir.Module, number: ir.Type, channels: int) -> ir.Function:
    """The function of :func:`complete_row` for so many channels, with pointers for arrays."""
    lanes = vector_bytes() // itemsize(number)
    function, known = define(
        module, f"fastconv_row_{number}_{lanes}_{channels}",
        [POINTER, INDEX, POINTER, POINTER, INDEX, POINTER, INDEX, POINTER, POINTER],
    )  # fmt: skip
    if known:
        return function
    *tile, length, start, bounds = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    vectors = builder.udiv(builder.add(length, INDEX(lanes - 1)), INDEX(lanes))
    done = INDEX(0)
    for width in (tile_vectors(channels), 2, 1):
        before = builder.block
        test, body, after = (builder.append_basic_block(f"width.{width}.{part}") for part in ("test", "body", "after"))
        builder.branch(test)
        builder.position_at_end(test)
        at = builder.phi(INDEX)
        at.add_incoming(done, before)
        left = builder.sub(vectors, at)
        fits = builder.icmp_signed(">=", left, INDEX(width))
        apart: list[ir.Value] = [INDEX(v * lanes) for v in range(width)]
        if width == 2:
            beside = builder.sub(length, INDEX(lanes))
            apart[1] = builder.select(builder.icmp_signed("<", beside, apart[1]), beside, apart[1])
        else:
            fits = builder.and_(fits, builder.icmp_signed(">=", length, INDEX(width * lanes)))
        if width > 2:  # one vector more is better done by twos
            fits = builder.and_(fits, builder.icmp_signed("!=", left, INDEX(width + 1)))
        builder.cbranch(fits, body, after)
        builder.position_at_end(body)
        last = builder.sub(length, builder.add(apart[-1], INDEX(lanes)))
        column = builder.mul(at, INDEX(lanes))
        column = builder.select(builder.icmp_signed("<", column, last), column, last)
        _emit_tile(builder, (*tile, start, bounds), column, apart, number, channels)
        at.add_incoming(builder.add(at, INDEX(width)), builder.block)
        builder.branch(test)
        builder.position_at_end(after)
        done = at
    builder.ret_void()
    return function


def _emit_tile(
    builder: ir.IRBuilder, arguments: tuple[ir.Value, ...], column: ir.Value, apart: list[ir.Value], number: ir.Type,
    channels: int,
) -> None:  # fmt: skip
    """One tile, of vectors so far `apart` from a column on, through all taps."""
    results, pitch, lines, offsets, taps, weights, start, bounds = arguments
    lanes = vector_bytes() // itemsize(number)
    vector = ir.VectorType(number, lanes)
    tile_lines = moved(builder, lines, column, number)

    def operands(t: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
        line = moved(builder, tile_lines, builder.load(moved(builder, offsets, t, INDEX), typ=INDEX), number)
        tap = moved(builder, weights, builder.mul(t, INDEX(channels)), number)
        return (
            [moved(builder, tap, i, number) for i in range(channels)],
            [moved(builder, line, far, number) for far in apart],
        )

    def spread(place: ir.Value) -> ir.Value:
        return vector_of(builder, builder.load(place, typ=number), lanes)

    starts = [spread(moved(builder, start, i, number)) for i in range(channels)]
    initial = {(i, v): starts[i] for i in range(channels) for v in range(len(apart))}
    totals = sum_of_products(builder, INDEX(0), taps, initial, operands)
    limit, write = builder.append_basic_block("tile.limit"), builder.append_basic_block("tile.write")
    summed = builder.block
    builder.cbranch(builder.icmp_unsigned("==", bounds, POINTER(None)), write, limit)
    builder.position_at_end(limit)
    limited = dict(totals)
    for bound, beyond in enumerate("<>"):
        most = spread(moved(builder, bounds, bound, number))
        for at, total in limited.items():  # NaN stays
            limited[at] = builder.select(builder.fcmp_ordered(beyond, total, most), most, total)
    builder.branch(write)
    builder.position_at_end(write)
    for at, total in totals.items():
        totals[at] = builder.phi(vector)
        totals[at].add_incoming(total, summed)
        totals[at].add_incoming(limited[at], limit)
    for (i, v), total in totals.items():
        place = builder.add(builder.add(builder.mul(pitch, INDEX(i)), column), apart[v])
        builder.store(total, moved(builder, results, place, number), align=itemsize(number))


@intrinsic
def complete_row(  # type: ignore[no-untyped-def]
    typing_context, results, at, pitch, lines, offsets, taps, weights, weights_at, channels, length, start, start_at,
    bounds, clipped,
):  # fmt: skip
    """Write `length` results, at least a vector, of each of some channels, a `pitch` apart from ``results[at]`` on.

    There are at most :func:`fastconv.cpu.microkernel.tile_channels` of them; ``start[start_at + o]`` is what channel o
    begins with. If `clipped`, `bounds` holds the two limits.
    """
    from numba import types

    signature = types.void(
        results, at, pitch, lines, offsets, taps, weights, weights_at, channels, length, start, start_at, bounds,
        clipped,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = addresses(context, builder, signature, arguments)
        number = context.get_data_type(start.dtype)
        limits = builder.select(arguments[13], address(12), POINTER(None))
        passed = (address(0, arguments[1]), arguments[2], address(3), address(4), arguments[5],
                  address(6, arguments[7]), arguments[9], address(10, arguments[11]), limits)  # fmt: skip
        rows = {count: _define_row(builder.module, number, count) for count in range(1, tile_channels() + 1)}
        call_chosen(builder, arguments[8], rows, passed)
        return context.get_dummy_value()

    return signature, generate
