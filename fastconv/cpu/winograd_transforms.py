"""The three transforms of Winograd's short convolutions, as vector code, and what they do to rounding errors.

A correlation of r taps gives m outputs from a window of n = m + r - 1 inputs as ``A ((G w) * (B x))``: n products, not
m r. Think of polynomials: B and G evaluate at n points, infinity among them, and A interpolates. So B depends on the
window alone, and one window serves every number of taps: with n = 6, two to five of them give five to two outputs. In
two dimensions each transform is applied along both axes, ``G w G'`` and so on.

The points other than 0 and infinity come in pairs p, -p, so two rows (of A: columns) differ in every other sign alone:
their half sum and half difference hold half of the coefficients each, and a butterfly makes the two of them. With
p = 1/2 and 2 all coefficients but one are powers of two, whose products are exact.

Winograd, "Arithmetic complexity of computations", SIAM, 1980; Lavin and Gray, "Fast algorithms for convolutional neural
networks", CVPR 2016; Barabasz, Anderson, Soodhalter and Gregg, "Error analysis and improving the accuracy of Winograd
convolution for deep neural networks", ACM TOMS 46(4), 2020.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from fastconv.cpu.emitting import addresses
from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes

Matrix = tuple[tuple[Fraction, ...], ...]

#: Finite points, by length of the window. A window of one is no transform: a single point for a single tap.
POINTS = {
    1: (),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(1, 2), Fraction(-1, 2), Fraction(2), Fraction(-2)),
}
_INPUT, _WEIGHT, _OUTPUT = range(3)  # of matrices()
_MOST_TAPS = 5
_INDEX, _POINTER = ir.IntType(64), ir.PointerType()


def window_taps(window: int) -> range:
    """Numbers of taps that a window serves: those for which it saves products, or the one of no transform."""
    return range(2, window) if window > 1 else range(1, 2)


@cache
def matrices(window: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """B, G and A of a window and a number of taps."""
    points, one, zero = POINTS[window], Fraction(1), Fraction(0)
    outputs = window + 1 - taps
    others = [[q for q in points if q != p] for p in points]
    inputs = [(*_with_roots(roots), zero) for roots in others] + [tuple(_with_roots(points))]
    scales = [one / math.prod((p - q for q in roots), start=one) for p, roots in zip(points, others, strict=True)]
    weights = [tuple(scale * p**k for k in range(taps)) for p, scale in zip(points, scales, strict=True)]
    last = tuple(one if k == taps - 1 else zero for k in range(taps))
    results = [(*(p**k for p in points), one if k == outputs - 1 else zero) for k in range(outputs)]
    return tuple(inputs), (*weights, last), tuple(results)


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (t - root), from the constant on."""
    product = [Fraction(1)]
    for root in roots:
        product = [a - root * b for a, b in zip([Fraction(0), *product], [*product, Fraction(0)], strict=True)]
    return product


# -- errors -----------------------------------------------------------------------------------------------------------


@cache
def amplification(window: int, taps: int) -> tuple[float, float]:
    """How much larger than the products of the definition those of the transform are: see :func:`error_bound`.

    Let M be the largest ``|x| conv |w|`` around the window. Component f of the sum over channels is at most
    ``S[f] M``: the products ``|x[i]| |w[k]|`` of one i - k are terms of one ``|x| conv |w|``, so

        S[f] = sum over d of max over i - k = d of  |B[f, i]| |G[f, k]|.

    The two numbers are the largest ``sum over f of |A[p, f]| S[f]`` of any output p, and the Euclidean norm of these
    terms in place of their sum.
    """
    inputs, weights, outputs = (np.abs(np.array(m, np.float64)) for m in matrices(window, taps))
    components = np.zeros(window)
    for f in range(window):
        products = np.outer(inputs[f], weights[f][::-1])
        components[f] = sum(np.diagonal(products, d).max(initial=0) for d in range(1 - window, taps))
    terms = outputs * components
    return float(terms.sum(1).max()), float(np.sqrt((terms**2).sum(1)).max())


@cache
def reach(window: int, taps: int) -> int:
    """How far from an output the products ``x[i] w[k]`` may belong, at i - k, that a component of its sum holds."""
    inputs, weights, outputs = matrices(window, taps)
    return max(
        abs(i - k - p)
        for p, row in enumerate(outputs)
        for f, (x, w) in enumerate(zip(inputs, weights, strict=True))
        for i, k in itertools.product(range(window), range(taps))
        if row[f] and x[i] and w[k]
    )


def error_bound(windows: Sequence[int], taps: Sequence[int], channels: int) -> float:
    """What ``|y - exact|`` may be, in units of ``u M``, for a sum over so many channels.

    Roundings are independent, so that their sum is at most 8 times the root of the sum of their squares, but for a
    probability below 1e-12 (as in `registry.Algorithm.tolerance`). A rounding changes an output by at most
    ``|A[p, f]| S[f] M`` for each component f that it reaches. Those of the sums over channels, and of the transforms
    along the second axis, reach one component: their squares add up to the square of the Euclidean norm. Those of the
    first axis reach all of a row, and those of the last sum all: there the terms themselves add up. A transform
    rounds at most once for each element of the window, and once for its constant.
    """
    (row_sum, row_norm), (sums, norms) = (amplification(n, r) for n, r in zip(windows, taps, strict=True))
    first, second = (n + 1 for n in windows)
    squares = (channels + 2 * second) * (row_norm * norms) ** 2
    squares += 3 * first * max(row_sum * norms, row_norm * sums) ** 2 + second * (row_sum * sums) ** 2
    return 8 * math.sqrt(squares)


# -- vector code ------------------------------------------------------------------------------------------------------


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
    from numba.core import cgutils

    name = f"fastconv_winograd_{number}_{lanes}_{window}_{taps}_{kind}"
    if name in module.globals:
        return module.globals[name]
    signature = ir.FunctionType(ir.VoidType(), [_POINTER, _INDEX, _INDEX, _POINTER, _INDEX, _INDEX, _INDEX, _INDEX])
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    target, target_step, target_next, source, source_step, source_next, count, vectors = function.args
    matrix = matrices(window, taps)[kind]
    vector = ir.VectorType(number, lanes)
    align = 4 if number == ir.FloatType() else 8

    def place(base: ir.Value, item: ir.Value, apart: ir.Value, v: ir.Value) -> ir.Value:
        at = builder.add(builder.mul(item, apart), builder.mul(v, _INDEX(lanes)))
        return builder.gep(base, [at], source_etype=number)

    def along(base: ir.Value, step: ir.Value, i: int) -> ir.Value:
        return builder.gep(base, [builder.mul(step, _INDEX(i))], source_etype=number)

    with cgutils.for_range(builder, count, intp=_INDEX) as items, cgutils.for_range(builder, vectors, intp=_INDEX) as v:
        read = place(source, items.index, source_next, v.index)
        values = [builder.load(along(read, source_step, i), align=align, typ=vector) for i in range(len(matrix[0]))]
        if kind == _OUTPUT:
            # a u + b v = (a + b) / 2 (u + v) + (a - b) / 2 (u - v)
            columns = _half_sums(list(zip(*matrix, strict=True)))
            results = _product(builder, list(zip(*columns, strict=True)), _butterfly(builder, values))
        else:
            results = _butterfly(builder, _product(builder, _half_sums(matrix), values))
        write = place(target, items.index, target_next, v.index)
        for k, result in enumerate(results):
            builder.store(result, along(write, target_step, k), align=align)
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
            shape = builder.add(builder.mul(arguments[0], _INDEX(_MOST_TAPS + 1)), arguments[1])
            done = builder.append_basic_block("transform.done")
            switch = builder.switch(shape, done)
            for size in POINTS:
                for r in window_taps(size):
                    case = builder.append_basic_block("transform")
                    switch.add_case(_INDEX(size * (_MOST_TAPS + 1) + r), case)
                    builder.position_at_end(case)
                    same = 1 if kind == _INPUT else r  # B is the same for any number of taps
                    builder.call(_define(builder.module, number, lanes, size, same, kind), passed)
                    builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return signature, generate

    return transform


transform_input, transform_weights, transform_output = map(_transform, (_INPUT, _WEIGHT, _OUTPUT))
