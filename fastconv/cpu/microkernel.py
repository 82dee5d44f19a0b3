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

from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes

_INDEX = ir.IntType(64)
_POINTER = ir.PointerType()


@cache
def _registers() -> int:
    few = llvm.get_process_triple().startswith(("x86_64", "i")) and vector_bytes() < 64  # more came with AVX-512
    return 16 if few else 32


def tile_channels() -> int:
    """Channels of a full tile."""
    return _registers() // 4


def _widths(channels: int) -> list[int]:
    """Vectors of a tile of so many channels: at most what the registers hold, and less for what is left of a row."""
    widths = [(_registers() - 1) // (channels + 1)]  # a tap takes a register for each vector and one for a weight
    while widths[-1] > 1:
        widths.append(widths[-1] // 2)
    return widths


def padded(length: int, itemsize: int) -> int:
    """Sums that a tile computes, and elements that it reads, for `length` of them: whole vectors."""
    lanes = vector_bytes() // itemsize
    return -(-length // lanes) * lanes


def _define(module: ir.Module, number: ir.Type, lanes: int, channels: int) -> ir.Function:
    """The function for one number of channels: (sums, pitch, lines, offsets, taps, weights, length)."""
    from numba.core import cgutils

    name = f"fastconv_tile_{number}_{lanes}_{channels}"
    if name in module.globals:
        return module.globals[name]
    signature = ir.FunctionType(ir.VoidType(), [_POINTER, _INDEX, _POINTER, _POINTER, _INDEX, _POINTER, _INDEX])
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    length = function.args[-1]
    start = _INDEX(0)
    for vectors in _widths(channels):
        step = vectors * lanes
        left = builder.sub(length, start)
        if vectors == 1:
            left = builder.add(left, _INDEX(lanes - 1))  # the last vector may be partly used
        stop = builder.add(start, builder.mul(builder.udiv(left, _INDEX(step)), _INDEX(step)))
        with cgutils.for_range_slice(builder, start, stop, _INDEX(step), intp=_INDEX) as (j, _):
            _emit_tile(builder, function.args, j, number, lanes, channels, vectors)
        start = stop
    builder.ret_void()
    return function


def _emit_tile(
    builder: ir.IRBuilder, arguments: Any, j: ir.Value, number: ir.Type, lanes: int, channels: int, vectors: int
) -> None:
    """One tile of sums at column `j`, through all taps."""
    from numba.core import cgutils

    sums, pitch, lines, offsets, taps, weights, _ = arguments
    vector = ir.VectorType(number, lanes)
    align = 4 if number == ir.FloatType() or number == ir.IntType(32) else 8
    undefined = ir.Constant(vector, ir.Undefined)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)

    def address(base: ir.Value, index: ir.Value, of: ir.Type = number) -> ir.Value:
        return builder.gep(base, [index], source_etype=of)

    def each() -> list[tuple[int, int]]:
        return [(i, v) for i in range(channels) for v in range(vectors)]

    places = {
        (i, v): address(sums, builder.add(builder.mul(pitch, _INDEX(i)), builder.add(j, _INDEX(v * lanes))))
        for i, v in each()
    }
    held = {at: cgutils.alloca_once(builder, vector) for at in each()}  # LLVM keeps these in registers
    for at in each():
        builder.store(builder.load(places[at], align=align, typ=vector), held[at])
    with cgutils.for_range(builder, taps, intp=_INDEX) as loop:
        offset = builder.load(address(offsets, loop.index, _INDEX), typ=_INDEX)
        line = address(lines, builder.add(offset, j))
        values = [builder.load(address(line, _INDEX(v * lanes)), align=align, typ=vector) for v in range(vectors)]
        first = builder.mul(loop.index, _INDEX(channels))
        for i in range(channels):
            weight = builder.load(address(weights, builder.add(first, _INDEX(i))), typ=number)
            spread = builder.insert_element(undefined, weight, ir.IntType(32)(0))
            spread = builder.shuffle_vector(spread, undefined, zeros)
            for v in range(vectors):
                before = builder.load(held[i, v], typ=vector)
                builder.store(multiply_add(builder, values[v], spread, before), held[i, v])
    for at in each():
        builder.store(builder.load(held[at], typ=vector), places[at], align=align)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    if isinstance(a.type.element, ir.IntType):
        return builder.add(builder.mul(a, b), c)
    contract = ("contract",)  # so that the two become one fused instruction where the CPU has it
    return builder.fadd(builder.fmul(a, b, flags=contract), c, flags=contract)


@intrinsic
def multiply_tile(  # type: ignore[no-untyped-def]
    typing_context, sums, sums_at, pitch, lines, offsets, taps, weights, weights_at, channels, length
):
    """Add to `channels` rows of sums, `pitch` apart from `sums_at` on; at most :func:`tile_channels` of them."""
    from numba import types

    signature = types.void(sums, sums_at, pitch, lines, offsets, taps, weights, weights_at, channels, length)
    itemsize = np.dtype(str(sums.dtype)).itemsize
    lanes = vector_bytes() // itemsize

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        def pointer(k: int, at: ir.Value) -> ir.Value:
            data = context.make_array(signature.args[k])(context, builder, arguments[k]).data
            return builder.gep(data, [at], source_etype=context.get_data_type(signature.args[k].dtype))

        number = context.get_value_type(signature.args[0].dtype)
        passed = (pointer(0, arguments[1]), arguments[2], pointer(3, _INDEX(0)), pointer(4, _INDEX(0)), arguments[5],
                  pointer(6, arguments[7]), arguments[9])  # fmt: skip
        done = builder.append_basic_block("tile.done")
        switch = builder.switch(arguments[8], done)
        for count in range(1, tile_channels() + 1):
            case = builder.append_basic_block(f"tile.{count}")
            switch.add_case(_INDEX(count), case)
            builder.position_at_end(case)
            builder.call(_define(builder.module, number, lanes, count), passed)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, generate
