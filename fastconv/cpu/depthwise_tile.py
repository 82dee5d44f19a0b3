"""The register tile of depthwise convolution, written in LLVM IR.

    for r < rows, j < lanes:  sums[r, j] = sum over taps t of  weight[t] * staged[offset[t] + r * pitch + j]

With one channel in and one out there is nothing to share but the input itself: output rows r and r + 1 meet the same
input row, one with tap (kh, kw), the other with (kh - 1, kw). So a tile is one vector wide and `height` rows tall, and
it takes its taps by *vertical runs* of up to three, (kh, kw), (kh + 1, kw), (kh + 2, kw). A run of n taps loads its n
weights, broadcast, and height + n - 1 vectors of input, for n * height multiply-adds:

    height 8, n = 3:  3 + 10 loads, 24 multiply-adds;   n = 2:  2 + 9, 16;   n = 1:  1 + 8, 8.

Two loads and two multiply-adds go in a cycle, and half of the unaligned loads touch two cache lines and take the place
of two, so that a run of three is bound by its multiply-adds: (3 + 1.5 * 10) / 2 = 9 against 24 / 2 = 12 cycles. Eight
sums are what the latency of four cycles needs; with three weights and an input they fit 16 registers. The tile knows
nothing of the kernel's size, of strides, depth or channels: they are in the table of runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from llvmlite import ir

from fastconv.cpu.copying import by_number, parts_of
from fastconv.cpu.emitting import (
    BYTE,
    INDEX,
    LANE,
    POINTER,
    call_chosen,
    compute_here,
    counted,
    data_of,
    define,
    itemsize,
    moved,
    vector_of,
)
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.microkernel import multiply_add
from fastconv.machine import vector_bytes

#: Taps of the longest run.
LONGEST_RUN = 3

#: Rows of a tile. Fewer than seven take no less time: the multiply-adds of one sum wait for each other.
HEIGHTS = (7, 8)


#: The numbers of a strip that stay the same throughout a correlation. Staged input, in elements: `slot` leads from
#: group to group (or from vector of groups to vector of groups), `pitch` from row to row of a tile, `step` from tile to
#: tile. Weights and bias: those of the next group are `group_weights` and `group_biases` further on, those of the next
#: tile `tile_weights` and `tile_biases` (0, unless tiles are groups); the next tap of a run is `apart`. `runs` says how
#: many runs there are of three, two and one taps, from number `first` of the table on; `height` how many rows a tile
#: has. Of the weights of a group the correlation's begin at `weights`, with `taps` for each output.
STRIP = np.dtype(
    [(name, np.int64) for name in ("slot", "pitch", "step", "group_weights", "group_biases", "tile_weights")]
    + [(name, np.int64) for name in ("tile_biases", "apart", "height", "first", "weights", "taps")]
    + [("runs", np.int64, (LONGEST_RUN,))]
)


def _field(builder: ir.IRBuilder, strip: ir.Value, name: str, k: int = 0) -> ir.Value:
    """The k-th number of a field of :data:`STRIP`."""
    assert STRIP.fields is not None
    return builder.load(moved(builder, strip, STRIP.fields[name][1] + 8 * k, BYTE), typ=INDEX)


def _define_strip(module: ir.Module, number: ir.Type, height: int, parts: int) -> ir.Function:
    """The function of :func:`convolve_strip` for one height, with pointers for arrays."""
    from numba.core import cgutils

    size = itemsize(number)
    lanes = vector_bytes() // size
    vector = ir.VectorType(number, lanes)
    function, known = define(
        module, f"fastconv_strip_{number}_{lanes}_{height}_{parts}",
        [POINTER, INDEX, INDEX, INDEX, POINTER, INDEX, INDEX, POINTER, POINTER, POINTER, POINTER, POINTER],
    )  # fmt: skip
    if known:
        return function
    out, out_slot, out_pitch, out_step, staged, groups, tiles, strip, table, weights, biases, bounds = function.args
    builder = ir.IRBuilder(function.append_basic_block())

    def load(place: ir.Value) -> ir.Value:
        return builder.load(place, align=size, typ=vector)

    def broadcast(place: ir.Value) -> ir.Value:
        return vector_of(builder, builder.load(place, typ=number), lanes)

    def field(name: str, k: int = 0) -> ir.Value:
        return _field(builder, strip, name, k)

    def permuted(values: ir.Value, order: Iterable[int]) -> ir.Value:
        return builder.shuffle_vector(values, values, ir.Constant(ir.VectorType(LANE, lanes), list(order)))

    def read(place: ir.Value, part: int) -> ir.Value:
        """The inputs of one number of all groups in a vector, again and again: their loads broadcast them."""
        if parts <= 1:
            return load(place)
        groups = lanes // parts
        place = moved(builder, place, part * groups, number)
        values = builder.load(place, align=size, typ=ir.VectorType(number, groups))
        return permuted(values, (i % groups for i in range(lanes)))

    weight = load if parts else broadcast
    sums = [cgutils.alloca_once(builder, vector) for _ in range(height)]  # LLVM keeps these in registers
    ordered = builder.icmp_signed if isinstance(number, ir.IntType) else builder.fcmp_ordered
    pitch, apart, counts = field("pitch"), field("apart"), [field("runs", k) for k in range(LONGEST_RUN)]
    begin = field("first")
    leaps = [
        tuple(map(field, pair))
        for pair in (("slot", "step"), ("group_weights", "tile_weights"), ("group_biases", "tile_biases"))
    ]

    with counted(builder, INDEX(0), groups) as group, counted(builder, INDEX(0), tiles) as tile:
        base, taps_of_group, start = (
            moved(builder, memory, builder.add(builder.mul(group, far), builder.mul(tile, near)), number)
            for memory, (far, near) in zip((staged, weights, biases), leaps, strict=True)
        )
        to = moved(builder, out, builder.add(builder.mul(group, out_slot), builder.mul(tile, out_step)), BYTE)
        start = weight(start)
        if parts > 1:
            start = permuted(start, by_number(lanes, parts))
        for total in sums:
            builder.store(start, total)
        first = begin  # run of its length
        for taps, count in zip(range(LONGEST_RUN, 0, -1), counts, strict=True):
            count = builder.udiv(count, INDEX(max(parts, 1)))  # those of each input channel of a group
            for part in range(max(parts, 1)):
                with counted(builder, INDEX(0), count) as index:
                    run = moved(builder, table, builder.mul(builder.add(first, index), INDEX(2)), INDEX)
                    place = moved(builder, base, builder.load(run, typ=INDEX), number)
                    tap = moved(builder, taps_of_group, builder.load(moved(builder, run, 1, INDEX), typ=INDEX), number)
                    factors = [weight(moved(builder, tap, builder.mul(apart, INDEX(k)), number)) for k in range(taps)]
                    for row in range(height + taps - 1):
                        values = read(moved(builder, place, builder.mul(pitch, INDEX(row)), number), part)
                        finished = []
                        for k in range(max(row - height + 1, 0), min(taps, row + 1)):
                            before = builder.load(sums[row - k], typ=vector)
                            finished.append(multiply_add(builder, values, factors[k], before))
                            builder.store(finished[-1], sums[row - k])
                        compute_here(builder, finished)  # else rows are loaded ahead, until no register is left
                first = builder.add(first, count)
        with builder.if_then(builder.icmp_unsigned("!=", bounds, POINTER(None))):
            for bound, beyond in enumerate("<>"):
                limit = broadcast(moved(builder, bounds, bound, number))
                for total in sums:
                    value = builder.load(total, typ=vector)
                    builder.store(builder.select(ordered(beyond, value, limit), limit, value), total)  # NaN stays
        for row, total in enumerate(sums):
            place = moved(builder, to, builder.mul(out_pitch, INDEX(row)), BYTE)
            value = builder.load(total, typ=vector)
            if parts > 1:
                value = permuted(value, by_number(lanes, lanes // parts))
            builder.store(value, place, align=size)
    builder.ret_void()
    return function


@intrinsic
def convolve_strip(  # type: ignore[no-untyped-def]
    typing_context, out, begin, out_slot, out_pitch, out_step, staged, at, groups, tiles, strips, strip, table, weights,
    tap, biases, bias, bounds, clipped,
):  # fmt: skip
    """Write ``act(bias + sum of taps)`` for tiles side by side, of several groups.

    Row r of tile j of group g goes ``begin + g * out_slot + r * out_pitch + j * out_step`` bytes into `out`, and reads
    ``staged[at + g * slot + offset + r * pitch + j * step:]``; ``strips[strip]`` is a :data:`STRIP`. `table` holds
    the offset of each run and where its first tap is, counted from the weights of that tile of that group on. If
    `clipped`, `bounds` holds the two limits. Weights and biases are numbers to be broadcast; or, if `weights` has three
    axes, vectors, as :func:`parts_of` says, for groups whose inputs are staged in the order of :func:`by_number`.
    """
    from numba import types

    signature = types.void(
        out, begin, out_slot, out_pitch, out_step, staged, at, groups, tiles, strips, strip, table, weights, tap,
        biases, bias, bounds, clipped,
    )  # fmt: skip
    parts = parts_of(weights.ndim)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_data_type(staged.dtype)

        def data(k: int, at: ir.Value | int = 0, unit: ir.Type = number) -> ir.Value:
            return data_of(context, builder, signature.args[k], arguments[k], unit, at)

        limits = builder.select(arguments[17], data(16), POINTER(None))
        strip = data(9, builder.mul(arguments[10], INDEX(STRIP.itemsize)), BYTE)
        passed = (
            data(0, arguments[1], BYTE), *arguments[2:5], data(5, arguments[6]), *arguments[7:9], strip, data(11),
            data(12, arguments[13]), data(14, arguments[15]), limits,
        )  # fmt: skip
        of_heights = {rows: _define_strip(builder.module, number, rows, parts) for rows in HEIGHTS}
        call_chosen(builder, _field(builder, strip, "height"), of_heights, passed)
        return context.get_dummy_value()

    return signature, generate
