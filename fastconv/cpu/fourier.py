"""The discrete Fourier transform of as many lines at once as a vector has lanes, written in LLVM IR.

    X[k] = sum over j < n of  x[j] * exp(-2 pi i j k / n),   k < n

A lane of the vectors is a line of its own, so a transform needs no shuffles and works at full width whatever its
length. A complex vector is two registers, of real and of imaginary parts; the inverse, without its factor 1/n, is the
same code with the two exchanged, for ``swap(DFT(swap(X)))`` is that.

Lengths are products of 2, 3, 4 and 5. A *pass* of radix r takes a transform of length n = r m apart into m butterflies
and r transforms of length m, and leaves its results in the order in which the next pass reads them (Stockham's
autosort: Cochran et al., "What is the fast Fourier transform?", Proc. IEEE 55, 1967): between two arrays that take
turns, without any reordering at the end. The first pass reads and the last one writes elements any distance apart, so
columns need no copying either.

A line of n real samples, two to a complex element, is transformed as n / 2 complex ones; :func:`fold` makes of that the
n / 2 + 1 frequencies which a real line has, and back.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache, lru_cache
from typing import Any

import numpy as np
from llvmlite import ir

from fastconv.cpu.emitting import INDEX, POINTER, addresses, call_chosen, define, vector_of
from fastconv.cpu.jit import inline, intrinsic
from fastconv.machine import vector_bytes

RADICES = (5, 4, 3, 2)

_CONTRACT = ("contract",)  # a product and a sum may become one fused multiply-add


def lanes(itemsize: int) -> int:
    """Lines that are transformed at once."""
    return vector_bytes() // itemsize


def radices(n: int) -> list[int]:
    """The passes that make up a transform of length `n`, a product of :data:`RADICES`; none for a single element."""
    passes = []
    for radix in RADICES:
        while n % radix == 0:
            n //= radix
            passes.append(radix)
    if n > 1:
        raise ValueError(f"n has the factor {n}: expected a product of {RADICES}")
    return passes


@cache
def _lengths(even: bool, most: int) -> list[int]:
    """All lengths of up to `most` that can be transformed."""
    lengths = [2 if even else 1]
    for factor in (2, 3, 5):
        for n in lengths:  # and what is appended here
            if n * factor <= most:
                lengths.append(n * factor)
    return sorted(lengths)


def next_length(n: int, *, even: bool) -> int:
    """The least length of at least `n` that can be transformed."""
    # Axes with huge paddings are longer than 2^32, but listing all up to 2^64 takes 10 ms of every first call.
    lengths = _lengths(even, 2**32 if n <= 2**32 else 2**64)
    return lengths[bisect_left(lengths, n)]


@lru_cache(maxsize=256)
def twiddles(n: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The factors of all passes of a transform of length `n`, in the order of their use, as pairs of real numbers."""
    factors, left = [np.empty(0)], n
    for radix in radices(n):
        left //= radix
        turns = np.outer(np.arange(left), np.arange(1, radix)) / (radix * left)
        factors.append(np.exp(-2j * np.pi * turns).ravel())
    return np.concatenate(factors).astype(np.complex128).view(np.float64).astype(dtype)


@lru_cache(maxsize=256)
def fold_factors(n: int, dtype: np.dtype[Any], inverse: bool) -> np.ndarray[Any, Any]:
    """The factors of :func:`fold` for real lines of length `n`."""
    factors = -1j * np.exp(-2j * np.pi * np.arange(n // 4 + 1) / n)
    return (factors.conj() if inverse else factors).view(np.float64).astype(dtype)


@inline
def transform(  # type: ignore[no-untyped-def]
    source, source_at, source_step, target, target_at, target_step, work, passes, factors, n, lanes, inverse
):
    """Transform a line of `n` elements, each `source_step` numbers after the one before, into another or itself.

    ``work`` has room for two lines.
    """
    real, imaginary = (lanes, 0) if inverse else (0, lanes)
    element = 2 * lanes
    at, step, here = source_at, source_step, source
    factor = 0
    done = 1
    for i in range(passes.shape[0]):
        radix = passes[i]
        left = n // (done * radix)
        if i + 1 < passes.shape[0]:
            to_at, to_step, there = (i & 1) * n * element, element, work
        else:
            to_at, to_step, there = target_at, target_step, target
        butterflies(radix, here, at + real, at + imaginary, step, there, to_at + real, to_at + imaginary, to_step,
                    left, done, factors, factor)  # fmt: skip
        factor += left * (radix - 1) * 2
        done *= radix
        at, step, here = to_at, to_step, there


class _Complex:
    """A complex vector: the registers of its parts, and what can be done with them."""

    def __init__(self, builder: ir.IRBuilder, re: ir.Value, im: ir.Value) -> None:
        self.builder, self.re, self.im = builder, re, im

    def _new(self, re: ir.Value, im: ir.Value) -> _Complex:
        return _Complex(self.builder, re, im)

    def __add__(self, other: _Complex) -> _Complex:
        b = self.builder
        return self._new(b.fadd(self.re, other.re, flags=_CONTRACT), b.fadd(self.im, other.im, flags=_CONTRACT))

    def __sub__(self, other: _Complex) -> _Complex:
        b = self.builder
        return self._new(b.fsub(self.re, other.re, flags=_CONTRACT), b.fsub(self.im, other.im, flags=_CONTRACT))

    def __mul__(self, factor: _Complex) -> _Complex:
        b = self.builder

        def times(x: ir.Value, y: ir.Value) -> ir.Value:
            return b.fmul(x, y, flags=_CONTRACT)

        re = b.fsub(times(self.re, factor.re), times(self.im, factor.im), flags=_CONTRACT)
        return self._new(re, b.fadd(times(self.re, factor.im), times(self.im, factor.re), flags=_CONTRACT))

    def scaled(self, factor: float) -> _Complex:
        """By a real constant."""
        b, vector = self.builder, self.re.type
        constant = ir.Constant(vector, [factor] * vector.count)
        return self._new(b.fmul(self.re, constant, flags=_CONTRACT), b.fmul(self.im, constant, flags=_CONTRACT))

    def turned(self) -> _Complex:
        """By -i."""
        return self._new(self.im, self.builder.fneg(self.re))

    def conjugate(self) -> _Complex:
        return self._new(self.re, self.builder.fneg(self.im))


def _dft(values: list[_Complex]) -> list[_Complex]:
    """The transform of a few elements: by halves if their number is 2 or 4, by the definition's symmetry if odd."""
    n = len(values)
    if n == 2:
        return [values[0] + values[1], values[0] - values[1]]
    if n == 4:
        (a, b), (c, d) = _dft(values[0::2]), _dft(values[1::2])
        d = d.turned()
        return [a + c, b + d, a - c, b - d]
    pairs = range(1, n // 2 + 1)
    sums = [values[j] + values[n - j] for j in pairs]
    differences = [(values[j] - values[n - j]).turned() for j in pairs]
    results = [sum(sums, values[0]), *values[1:]]
    for k in pairs:
        angles = [2 * math.pi * (j * k % n) / n for j in pairs]
        even = sum((s.scaled(math.cos(a)) for s, a in zip(sums, angles, strict=True)), values[0])
        first, *others = (d.scaled(math.sin(a)) for d, a in zip(differences, angles, strict=True))
        odd = sum(others, first)
        results[k], results[n - k] = even + odd, even - odd
    return results


class _Line:
    """Where the elements of a line are: pointers to the parts of its first one, and the numbers to the next."""

    def __init__(
        self, builder: ir.IRBuilder, vector: ir.VectorType, re: ir.Value, im: ir.Value, step: ir.Value
    ) -> None:
        self._builder, self._vector, self._parts, self._step = builder, vector, (re, im), step
        self._align = 4 if vector.element == ir.FloatType() else 8

    def _places(self, index: ir.Value) -> list[ir.Value]:
        at = self._builder.mul(index, self._step)
        return [self._builder.gep(part, [at], source_etype=self._vector.element) for part in self._parts]

    def load(self, index: ir.Value) -> _Complex:
        parts = [self._builder.load(p, align=self._align, typ=self._vector) for p in self._places(index)]
        return _Complex(self._builder, *parts)

    def store(self, index: ir.Value, value: _Complex) -> None:
        for place, part in zip(self._places(index), (value.re, value.im), strict=True):
            self._builder.store(part, place, align=self._align)

    def factor(self, index: ir.Value) -> _Complex:
        """The complex number at an index of this table, in all lanes."""
        numbers = (self._builder.load(place, typ=self._vector.element) for place in self._places(index))
        return _Complex(self._builder, *(vector_of(self._builder, n, self._vector.count) for n in numbers))


def _table(builder: ir.IRBuilder, vector: ir.VectorType, pointer: ir.Value) -> _Line:
    imaginary = builder.gep(pointer, [INDEX(1)], source_etype=vector.element)
    return _Line(builder, vector, pointer, imaginary, INDEX(2))


def _define_pass(module: ir.Module, vector: ir.VectorType, radix: int) -> ir.Function:
    """One pass: (source re, im, step, target re, im, step, left, done, factors).

    For p < left, q < done: the elements q + done (p + k left), k < radix, are transformed, result k is multiplied by
    the p-th power of a root of unity and becomes the element q + done (radix p + k).
    """
    from numba.core import cgutils

    name, line = f"fastconv_fft_{vector.element}_{vector.count}_{radix}", [POINTER, POINTER, INDEX]
    function, known = define(module, name, [*line, *line, INDEX, INDEX, POINTER])
    if known:
        return function
    b = ir.IRBuilder(function.append_basic_block())
    source, target = (_Line(b, vector, *function.args[i : i + 3]) for i in (0, 3))
    left, done = function.args[6:8]
    factors = _table(b, vector, function.args[8])
    apart = b.mul(done, left)

    def butterfly(p: ir.Value, powers: list[_Complex]) -> None:
        first, into = b.mul(done, p), b.mul(done, b.mul(p, INDEX(radix)))
        with cgutils.for_range(b, done, intp=INDEX) as loop:
            values = [source.load(b.add(b.add(loop.index, first), b.mul(apart, INDEX(k)))) for k in range(radix)]
            results = _dft(values)
            for k, power in enumerate(powers, 1):
                results[k] = results[k] * power
            for k, result in enumerate(results):
                target.store(b.add(b.add(loop.index, into), b.mul(done, INDEX(k))), result)

    butterfly(INDEX(0), [])  # whose factors are all one
    with cgutils.for_range_slice(b, INDEX(1), left, INDEX(1), intp=INDEX) as (p, _):
        at = b.mul(p, INDEX(radix - 1))
        butterfly(p, [factors.factor(b.add(at, INDEX(k))) for k in range(radix - 1)])
    b.ret_void()
    return function


def _define_fold(module: ir.Module, vector: ir.VectorType) -> ir.Function:
    """What :func:`fold` does: (source, target, half, inverse, factors)."""
    from numba.core import cgutils

    name = f"fastconv_fft_fold_{vector.element}_{vector.count}"
    function, known = define(module, name, [POINTER, POINTER, INDEX, ir.IntType(1), POINTER])
    if known:
        return function
    b = ir.IRBuilder(function.append_basic_block())
    half, inverse = function.args[2:4]

    def line(pointer: ir.Value) -> _Line:
        imaginary = b.gep(pointer, [INDEX(vector.count)], source_etype=vector.element)
        return _Line(b, vector, pointer, imaginary, INDEX(2 * vector.count))

    source, target, factors = line(function.args[0]), line(function.args[1]), _table(b, vector, function.args[4])
    last = b.select(inverse, half, INDEX(0))
    with cgutils.for_range(b, b.add(b.udiv(half, INDEX(2)), INDEX(1)), intp=INDEX) as loop:
        k, mirrored = loop.index, b.sub(half, loop.index)
        paired = b.select(b.icmp_unsigned("==", k, INDEX(0)), last, mirrored)
        one, other = source.load(k), source.load(paired).conjugate()
        even, odd = one + other, (one - other) * factors.factor(k)
        target.store(k, even + odd)
        target.store(mirrored, (even - odd).conjugate())
    b.ret_void()
    return function


def _vector(context: Any, array: Any) -> ir.VectorType:
    return ir.VectorType(context.get_value_type(array.dtype), lanes(np.dtype(str(array.dtype)).itemsize))


@intrinsic
def butterflies(  # type: ignore[no-untyped-def]
    typing_context, radix, source, source_re, source_im, source_step, target, target_re, target_im, target_step, left,
    done, factors, factors_at,
):  # fmt: skip
    """One pass, of any of the :data:`RADICES`."""
    from numba import types

    signature = types.void(radix, source, source_re, source_im, source_step, target, target_re, target_im, target_step,
                           left, done, factors, factors_at)  # fmt: skip

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = addresses(context, builder, signature, arguments)
        vector = _vector(context, signature.args[1])
        passed = (address(1, arguments[2]), address(1, arguments[3]), arguments[4], address(5, arguments[6]),
                  address(5, arguments[7]), *arguments[8:11], address(11, arguments[12]))  # fmt: skip
        passes = {count: _define_pass(builder.module, vector, count) for count in RADICES}
        call_chosen(builder, arguments[0], passes, passed)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def fold(typing_context, source, source_at, target, target_at, half, inverse, factors, factors_at):  # type: ignore[no-untyped-def]
    """Make the frequencies of a real line of those of its complex half, or with other factors the reverse.

    With Z the transform of z[j] = x[2 j] + i x[2 j + 1], j < n / 2 = `half`, the transform of x is

        2 X[k] = Z[k] + conj(Z[half - k]) - i exp(-2 pi i k / n) (Z[k] - conj(Z[half - k])),   Z[half] = Z[0],

    and the same with the conjugate factor gives 2 Z of X. Both are left twice too large.
    """
    from numba import types

    signature = types.void(source, source_at, target, target_at, half, inverse, factors, factors_at)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = addresses(context, builder, signature, arguments)
        function = _define_fold(builder.module, _vector(context, signature.args[0]))
        passed = address(0, arguments[1]), address(2, arguments[3]), *arguments[4:6], address(6, arguments[7])
        builder.call(function, passed)
        return context.get_dummy_value()

    return signature, generate
