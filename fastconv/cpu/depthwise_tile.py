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
nothing of the kernel's size, of strides, depth or channels: they are in the list of the runs' offsets.
"""

from __future__ import annotations

from llvmlite import ir

from fastconv.cpu.copying import BYTE, INDEX, LANE, POINTER, counted, data_of, define, itemsize, moved
from fastconv.cpu.jit import intrinsic
from fastconv.cpu.microkernel import multiply_add
from fastconv.machine import vector_bytes

#: Taps of the longest run.
LONGEST_RUN = 3

#: Rows of a tile. Fewer than seven take no less time: the multiply-adds of one sum wait for each other.
HEIGHTS = (7, 8)


def _define_strip(module: ir.Module, number: ir.Type, height: int, spread: bool) -> ir.Function:
    """The function (out, its pitch and step, staged, pitch, step, tiles, offsets, runs …, weights, bias, bounds)."""
    from numba.core import cgutils

    size = itemsize(number)
    lanes = vector_bytes() // size
    vector = ir.VectorType(number, lanes)
    function, known = define(
        module, f"fastconv_strip_{number}_{lanes}_{height}_{spread}",
        [POINTER, INDEX, INDEX, POINTER, INDEX, INDEX, INDEX, POINTER, *[INDEX] * LONGEST_RUN, *[POINTER] * 3],
    )  # fmt: skip
    if known:
        return function
    out, out_pitch, out_step, staged, pitch, step, tiles, offsets, *counts, weights, bias, bounds = function.args
    builder = ir.IRBuilder(function.append_basic_block())

    def load(place: ir.Value) -> ir.Value:
        return builder.load(place, align=size, typ=vector)

    def broadcast(place: ir.Value) -> ir.Value:
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, builder.load(place, typ=number), LANE(0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(LANE, lanes), None))

    weight = broadcast if spread else load
    width = 1 if spread else lanes  # elements of a weight
    sums = [cgutils.alloca_once(builder, vector) for _ in range(height)]  # LLVM keeps these in registers
    ordered = builder.icmp_signed if isinstance(number, ir.IntType) else builder.fcmp_ordered

    with counted(builder, INDEX(0), tiles) as tile:
        base = moved(builder, staged, builder.mul(tile, step), number)
        to = moved(builder, out, builder.mul(tile, out_step), BYTE)
        start = weight(bias)
        for total in sums:
            builder.store(start, total)
        first = tap = INDEX(0)  # number of the first run of a length, and of its first tap
        for taps, count in zip(range(LONGEST_RUN, 0, -1), counts, strict=True):
            with counted(builder, INDEX(0), count) as run:
                offset = builder.load(moved(builder, offsets, builder.add(first, run), INDEX), typ=INDEX)
                place = moved(builder, base, offset, number)
                at = builder.mul(builder.add(tap, builder.mul(run, INDEX(taps))), INDEX(width))
                at = moved(builder, weights, at, number)
                factors = [weight(moved(builder, at, k * width, number)) for k in range(taps)]
                for row in range(height + taps - 1):
                    values = load(moved(builder, place, builder.mul(pitch, INDEX(row)), number))
                    for k in range(max(row - height + 1, 0), min(taps, row + 1)):
                        before = builder.load(sums[row - k], typ=vector)
                        builder.store(multiply_add(builder, values, factors[k], before), sums[row - k])
            first = builder.add(first, count)
            tap = builder.add(tap, builder.mul(count, INDEX(taps)))
        with builder.if_then(builder.icmp_unsigned("!=", bounds, POINTER(None))):
            for bound, beyond in enumerate("<>"):
                limit = broadcast(moved(builder, bounds, bound, number))
                for total in sums:
                    value = builder.load(total, typ=vector)
                    builder.store(builder.select(ordered(beyond, value, limit), limit, value), total)  # NaN stays
        for row, total in enumerate(sums):
            place = moved(builder, to, builder.mul(out_pitch, INDEX(row)), BYTE)
            builder.store(builder.load(total, typ=vector), place, align=size)
    builder.ret_void()
    return function


@intrinsic
def convolve_strip(  # type: ignore[no-untyped-def]
    typing_context, out, begin, out_pitch, out_step, staged, at, pitch, step, tiles, offsets, runs, weights, first,
    bias, channel, bounds, clipped, height,
):  # fmt: skip
    """Write ``act(bias[channel] + sum of taps)`` for tiles side by side.

    Row r of tile j goes ``begin + r * out_pitch + j * out_step`` bytes into `out`, and reads ``staged[at + offset +
    r * pitch + j * step:]``. `runs` says how many runs there are of three, two and one taps, `offsets` where each
    begins; ``weights[first:]`` are their taps. If `clipped`, `bounds` holds the two limits. Weights and bias are
    numbers to be broadcast; or, if `weights` has three axes, vectors.
    """
    from numba import types

    signature = types.void(
        out, begin, out_pitch, out_step, staged, at, pitch, step, tiles, offsets, runs, weights, first, bias, channel,
        bounds, clipped, height,
    )  # fmt: skip
    spread = weights.ndim < 3

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_data_type(staged.dtype)

        def data(k: int, at: ir.Value, unit: ir.Type = number) -> ir.Value:
            return data_of(context, builder, signature.args[k], arguments[k], unit, at)

        counts = [builder.load(data(10, INDEX(k), INDEX), typ=INDEX) for k in range(LONGEST_RUN)]
        limits = builder.select(arguments[16], data(15, INDEX(0)), POINTER(None))
        passed = (
            data(0, arguments[1], BYTE), *arguments[2:4], data(4, arguments[5]), *arguments[6:9], data(9, INDEX(0)),
            *counts, data(11, arguments[12]), data(13, arguments[14]), limits,
        )  # fmt: skip
        done = builder.append_basic_block("strip.done")
        switch = builder.switch(arguments[17], done)
        for height in HEIGHTS:
            case = builder.append_basic_block(f"strip.{height}")
            switch.add_case(INDEX(height), case)
            builder.position_at_end(case)
            builder.call(_define_strip(builder.module, number, height, spread), passed)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, generate
