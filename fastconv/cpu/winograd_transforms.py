"""The three transforms of Winograd's short convolutions, as vector code.

`fastconv.winograd` has their matrices. As the points come in pairs p, -p, two rows (of A: columns) differ in every
other sign alone: their half sum and half difference hold half of the coefficients each, and a butterfly makes the two
of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from llvmlite import ir

from fastconv.cpu.emitting import INDEX, POINTER, addresses, call_chosen, counted, define, itemsize, moved
from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes
from fastconv.winograd import POINTS, matrices, window_taps

_INPUT, _WEIGHT, _OUTPUT = range(3)  # of matrices()
_MOST_TAPS = 5
_ARGUMENTS = [POINTER, INDEX, INDEX, POINTER, INDEX, INDEX, INDEX, INDEX]


def _half_sums(rows: Sequence[Sequence[Fraction]]) -> list[list[Fraction]]:
    """Rows 1 and 2, 3 and 4, … as half their sum and half their difference; the first and the last stay."""
    mixed = [list(rows[0])]
    for a, b in zip(rows[1:-1:2], rows[2:-1:2], strict=True):
        mixed += [[(s + t) / 2 for s, t in zip(a, b, strict=True)], [(s - t) / 2 for s, t in zip(a, b, strict=True)]]
    return [*mixed, list(rows[-1])] if len(rows) > 1 else mixed


def _butterfly(builder: ir.IRBuilder, values: list[ir.Value]) -> list[ir.Value]:
    mixed = values[:1]
    for a, b in zip(values[1:-1:2], values[2:-1:2], strict=True):
        mixed += [builder.fadd(a, b), builder.fsub(a, b)]
    return [*mixed, values[-1]] if len(values) > 1 else mixed


def _product(builder: ir.IRBuilder, matrix: Sequence[Sequence[Fraction]], values: list[ir.Value]) -> list[ir.Value]:
    return [_weighted_sum(builder, row, values) for row in matrix]


def _weighted_sum(builder: ir.IRBuilder, row: Sequence[Fraction], values: list[ir.Value]) -> ir.Value:
    vector = values[0].type
    # What needs no multiplication first: the others are added to it by fused multiply-adds.
    terms = sorted(((c, v) for c, v in zip(row, values, strict=True) if c), key=lambda term: term[0] != 1)
    total = None
    for coefficient, value in terms:
        if coefficient != 1:
            constant = ir.Constant(vector, [float(coefficient)] * vector.count)
            value = builder.fmul(value, constant, flags=("contract",))
        total = value if total is None else builder.fadd(total, value, flags=("contract",))
    return total


def _define(module: ir.Module, number: ir.Type, lanes: int, window: int, taps: int, kind: int) -> ir.Function:
    """The function of one transform: (target, step, next, source, step, next, count, vectors)."""
    function, known = define(module, f"fastconv_winograd_{number}_{lanes}_{window}_{taps}_{kind}", _ARGUMENTS)
    if known:
        return function
    builder = ir.IRBuilder(function.append_basic_block())
    target, target_step, target_next, source, source_step, source_next, count, vectors = function.args
    matrix = matrices(window, taps)[kind]
    vector = ir.VectorType(number, lanes)
    align = itemsize(number)

    def place(base: ir.Value, item: ir.Value, apart: ir.Value, v: ir.Value) -> ir.Value:
        at = builder.add(builder.mul(item, apart), builder.mul(v, INDEX(lanes)))
        return moved(builder, base, at, number)

    def along(base: ir.Value, step: ir.Value, i: int) -> ir.Value:
        return moved(builder, base, builder.mul(step, INDEX(i)), number)

    with counted(builder, INDEX(0), count) as item, counted(builder, INDEX(0), vectors) as v:
        read = place(source, item, source_next, v)
        values = [builder.load(along(read, source_step, i), align=align, typ=vector) for i in range(len(matrix[0]))]
        if kind == _OUTPUT:
            # a u + b v = (a + b) / 2 (u + v) + (a - b) / 2 (u - v)
            columns = _half_sums(list(zip(*matrix, strict=True)))
            results = _product(builder, list(zip(*columns, strict=True)), _butterfly(builder, values))
        else:
            results = _butterfly(builder, _product(builder, _half_sums(matrix), values))
        write = place(target, item, target_next, v)
        for k, result in enumerate(results):
            builder.store(result, along(write, target_step, k), align=align)
    builder.ret_void()
    return function


def _define_choice(module: ir.Module, number: ir.Type, lanes: int, kind: int) -> ir.Function:
    """The function of all transforms of a kind: (window * (_MOST_TAPS + 1) + taps, as :func:`_define` has them)."""
    function, known = define(module, f"fastconv_winograd_{number}_{lanes}_{kind}", [INDEX, *_ARGUMENTS])
    if not known:
        builder = ir.IRBuilder(function.append_basic_block())
        functions = {
            # the input's matrix B is the same for any number of taps
            size * (_MOST_TAPS + 1) + r: _define(module, number, lanes, size, 1 if kind == _INPUT else r, kind)
            for size in POINTS
            for r in window_taps(size)
        }
        call_chosen(builder, function.args[0], functions, function.args[1:])
        builder.ret_void()
    return function


def _transform(kind: int) -> Any:
    @intrinsic
    def transform(  # type: ignore[no-untyped-def]
        typing_context, window, taps, target, target_at, target_step, target_next, source, source_at, source_step,
        source_next, count, vectors,
    ):  # fmt: skip
        """Transform `count` items of some vectors each.

        Input i of an item is the vectors from ``source[source_at + item * source_next + i * source_step]`` on, and
        output k goes to ``target[target_at + item * target_next + k * target_step]``.
        """
        from numba import types

        signature = types.void(
            window, taps, target, target_at, target_step, target_next, source, source_at, source_step, source_next,
            count, vectors,
        )  # fmt: skip
        lanes = vector_bytes() // np.dtype(str(target.dtype)).itemsize

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = addresses(context, builder, signature, arguments)
            number = context.get_value_type(signature.args[2].dtype)
            passed = (pointer(2, arguments[3]), *arguments[4:6], pointer(6, arguments[7]), *arguments[8:])
            shape = builder.add(builder.mul(arguments[0], INDEX(_MOST_TAPS + 1)), arguments[1])
            builder.call(_define_choice(builder.module, number, lanes, kind), (shape, *passed))
            return context.get_dummy_value()

        return signature, generate

    return transform


transform_input, transform_weights, transform_output = map(_transform, (_INPUT, _WEIGHT, _OUTPUT))
