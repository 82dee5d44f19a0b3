"""Windows folded to one result each, by maximum or by sum, in LLVM IR: the whole arithmetic of pooling.

    target[i * pace] = max or sum over d, h, w of source[d * leaps[0] + h * leaps[1] + w * leaps[2] + i * step]

Everything is a matter of strides: neighbours `i` are channels where those come last, windows along a row where
channels come first, and with taps in one axis only a row of a window. Accumulators stay in registers, four vectors at a
time so that one addition need not wait for the one before. How windows are read depends on how far apart they are:

- side by side: whole vectors;
- in the same place: one number for all lanes;
- every other element: two vectors, the second of which ends at the last element asked for, and a shuffle;
- further apart, and long without gaps: one window at a time, in vectors along it, which are halved until one number is
  left;
- any other way: a vector is collected element by element.

Results that do not lie side by side are written element by element.

The last vector ends where the windows end and overlaps the one before, which is why target and source must not be the
same memory. Nothing outside the windows is read. A NaN is larger than any number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from llvmlite import ir

from fastconv.cpu.emitting import BYTE, INDEX, LANE, POINTER, counted, data_of, define, itemsize, moved, vector_of
from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes

_VECTORS = 4  # accumulators at once

#: Elements of a row of a window, from which on vectors along it take less time than to collect it from windows.
LONG = 48


@intrinsic
def fold(typing_context, target, to, pace, source, begin, step, leaps, taps, length, divisor, root):  # type: ignore[no-untyped-def]
    """Fold `length` windows of `source`, from byte `begin` on, into `target`, from byte `to` on.

    Steps and leaps are bytes and may be negative. With None for `divisor` it is the maximum; else the sum, divided by
    that number of the target's dtype. With a `root` of 2 or 3 what is summed are powers, of which the root is taken.
    """
    from numba import types

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0].dtype
        number = context.get_data_type(kind)
        target, to, pace, source, begin, step, leaps, taps, length, *given = arguments
        target = data_of(context, builder, signature.args[0], target, BYTE, to)
        source = data_of(context, builder, signature.args[3], source, BYTE, begin)
        numbers = [builder.extract_value(triple, i) for triple in (leaps, taps) for i in range(3)]
        given = given[: sum(not isinstance(each, types.NoneType) for each in (divisor, root))]
        function = _define_fold(builder.module, number, str(kind), len(given))
        builder.call(function, (target, pace, source, step, *numbers, length, *given))
        return context.get_dummy_value()

    return types.void(target, to, pace, source, begin, step, leaps, taps, length, divisor, root), generate


class Apart(Enum):
    """How windows lie whose elements are read as one vector; whether their results lie apart, too."""

    NONE = 0, False
    ONE = 1, False
    TWO = 2, False
    ONE_PACED = 1, True
    OTHER = -1, True

    @property
    def elements(self) -> int:
        """From one window to the next."""
        return self.value[0]

    @property
    def paced(self) -> bool:
        """Whether results are written one by one."""
        return self.value[1]


@dataclass(frozen=True)
class Windows:
    """Windows of numbers a `step` apart, as code sees them that is being emitted.

    With `half`, a :data:`fastconv.cpu.jit.HALF_FORMATS` code, the source holds those, and the numbers are float32.
    """

    builder: ir.IRBuilder
    number: ir.Type
    source: ir.Value
    step: ir.Value
    leaps: list[ir.Value]
    taps: list[ir.Value]
    half: ir.Value | None = None

    @property
    def stored(self) -> ir.Type:
        """Of what the source consists."""
        return self.number if self.half is None else ir.IntType(16)

    @contextmanager
    def elements(self, axes: int = 3) -> Iterator[tuple[ir.Value, list[ir.Value]]]:
        """A loop over the elements of a window along the first axes: offset in bytes, and index along each axis."""
        builder, (d, h, w) = self.builder, self.taps
        with counted(builder, INDEX(0), d) as i, counted(builder, INDEX(0), h) as j:
            indices, leaps = [i, j], self.leaps
            offset = builder.add(builder.mul(i, leaps[0]), builder.mul(j, leaps[1]))
            if axes == 2:
                yield offset, indices
            else:
                with counted(builder, INDEX(0), w) as k:
                    yield builder.add(offset, builder.mul(k, leaps[2])), [*indices, k]

    def window(self, at: ir.Value) -> ir.Value:
        """The address of a window."""
        return moved(self.builder, self.source, self.builder.mul(at, self.step), BYTE)

    def vector(self, start: ir.Value, width: int, apart: Apart) -> ir.Value:
        """The elements at `start` and so many windows from it on."""
        builder, stored, size = self.builder, self.stored, itemsize(self.stored)
        vector = ir.VectorType(stored, width)
        if apart == Apart.NONE:
            return self._widened(vector_of(builder, builder.load(start, align=size, typ=stored), width))
        if apart == Apart.OTHER:
            value = ir.Constant(vector, ir.Undefined)
            for i in range(width):
                element = moved(builder, start, builder.mul(self.step, INDEX(i)), BYTE)
                value = builder.insert_element(value, builder.load(element, align=size, typ=stored), LANE(i))
            return self._widened(value)
        value = builder.load(start, align=size, typ=vector)
        if apart == Apart.TWO:  # the first of `high` is the last of `value`
            high = builder.load(moved(builder, start, width - 1, stored), align=size, typ=vector)
            chosen = [i if i < width else i + 1 for i in range(0, 2 * width, 2)]
            value = builder.shuffle_vector(value, high, ir.Constant(ir.VectorType(LANE, width), chosen))
        return self._widened(value)

    def _widened(self, value: ir.Value) -> ir.Value:
        if self.half is None:
            return value
        builder, width = self.builder, value.type.count
        vector = ir.VectorType(ir.FloatType(), width)
        word = builder.zext(value, ir.VectorType(LANE, width))
        word = builder.bitcast(builder.shl(word, _all(LANE, 16, width)), vector)
        half = builder.fpext(builder.bitcast(value, ir.VectorType(ir.HalfType(), width)), vector)
        return builder.select(builder.icmp_signed("==", self.half, INDEX(1)), half, word)

    def narrowed(self, value: ir.Value) -> ir.Value:
        """A vector of elements of the source, as it holds them."""
        if self.half is None:
            return value
        builder, width = self.builder, value.type.count
        bits = ir.VectorType(ir.IntType(16), width)
        word = builder.lshr(builder.bitcast(value, ir.VectorType(LANE, width)), _all(LANE, 16, width))
        half = builder.bitcast(builder.fptrunc(value, ir.VectorType(ir.HalfType(), width)), bits)
        return builder.select(builder.icmp_signed("==", self.half, INDEX(1)), half, builder.trunc(word, bits))

    def write(self, value: ir.Value, target: ir.Value, at: ir.Value, pace: ir.Value | None = None) -> None:
        """Store a vector from place `at` on, places being side by side or a `pace` apart."""
        builder, size = self.builder, itemsize(value.type.element)
        if pace is None:
            builder.store(value, moved(builder, target, at, value.type.element), align=size)
            return
        for i in range(value.type.count):
            place = moved(builder, target, builder.mul(pace, builder.add(at, INDEX(i))), BYTE)
            builder.store(builder.extract_element(value, LANE(i)), place, align=size)

    def each(self, length: ir.Value, paced: ir.Value, body: Callable[[ir.Value, int, Apart], None], lanes: int) -> None:
        """Emit ``body(at, width, apart)`` for vectors of windows; results lie side by side unless they are `paced`."""
        builder, size = self.builder, itemsize(self.stored)
        few = max(lanes // 2, 2)
        widths = {
            Apart.NONE: (_VECTORS * lanes, lanes, 1), Apart.ONE: (_VECTORS * lanes, lanes, 2, 1),
            Apart.TWO: (2 * lanes, few, 1), Apart.ONE_PACED: (lanes, few, 1), Apart.OTHER: (lanes, few, 1),
        }  # fmt: skip
        blocks = {apart: builder.append_basic_block("reading") for apart in widths}
        done = builder.append_basic_block("done")
        key = builder.or_(builder.shl(self.step, INDEX(1)), builder.zext(paced, INDEX))
        choice = builder.switch(key, blocks[Apart.OTHER])
        for apart, block in blocks.items():
            if apart != Apart.OTHER:
                choice.add_case(INDEX(2 * apart.elements * size + apart.paced), block)
            builder.position_at_end(block)
            self._cover(length, widths[apart], lambda at, width, apart=apart: body(at, width, apart))  # type: ignore[misc]
            builder.branch(done)
        builder.position_at_end(done)

    def _cover(self, length: ir.Value, widths: tuple[int, ...], body: Callable[[ir.Value, int], None]) -> None:
        """Emit ``body(at, width)`` once for each width, of which the widest is taken that is not too long."""
        builder, done = self.builder, self.builder.append_basic_block("covered")
        for width in widths:
            enough, shorter = (builder.append_basic_block(f"width.{width}.{which}") for which in ("enough", "shorter"))
            builder.cbranch(builder.icmp_signed(">=", length, INDEX(width)), enough, shorter)
            builder.position_at_end(enough)
            last = builder.sub(length, INDEX(width))
            with counted(builder, INDEX(0), length, width) as at:
                body(builder.select(builder.icmp_signed("<", at, last), at, last), width)
            builder.branch(done)
            builder.position_at_end(shorter)
        builder.branch(done)
        builder.position_at_end(done)


@dataclass(frozen=True)
class Operation:
    """What to begin with, what to make of an element, how to combine two vectors, and what to make of the last."""

    least: float
    read: Callable[[ir.Value], ir.Value]
    combine: Callable[[ir.Value, ir.Value], ir.Value]
    finish: Callable[[ir.Value], ir.Value]


def _define_fold(module: ir.Module, number: ir.Type, kind: str, given: int) -> ir.Function:
    """The function (target, pace, source, step, leaps…, taps…, length, divisor, root) for a NumPy dtype.

    Without the last two it is the maximum, without the last one the mean.
    """
    from numba.core import cgutils

    lanes = vector_bytes() // itemsize(number)
    arguments = [POINTER, INDEX, POINTER, *[INDEX] * 8, *[number, INDEX][:given]]
    function, known = define(module, f"fastconv_fold_{kind}_{lanes}_{given}", arguments)
    if known:
        return function
    target, pace, source, step, *numbers, length = function.args[:11]
    builder = ir.IRBuilder(function.append_basic_block())
    windows = Windows(builder, number, source, step, numbers[:3], numbers[3:])
    make = (_maximum, _mean, _norm)[given]
    operation = make(builder, number, kind, *function.args[11:])

    def body(at: ir.Value, width: int, apart: Apart) -> None:
        start = windows.window(at)
        total = cgutils.alloca_once(builder, ir.VectorType(number, width))
        builder.store(_all(number, operation.least, width), total)
        with windows.elements() as (offset, _):
            value = operation.read(windows.vector(moved(builder, start, offset, BYTE), width, apart))
            builder.store(operation.combine(value, builder.load(total, typ=value.type)), total)
        result = operation.finish(builder.load(total, typ=ir.VectorType(number, width)))
        windows.write(result, target, at, pace if apart.paced else None)

    gaps = builder.icmp_signed("!=", numbers[2], INDEX(itemsize(number)))
    short = builder.icmp_signed("<", numbers[5], INDEX(LONG))
    near = builder.icmp_unsigned("<=", step, INDEX(2 * itemsize(number)))
    with builder.if_else(builder.or_(near, builder.or_(gaps, short))) as (across, along):
        with across:
            windows.each(length, builder.icmp_signed("!=", pace, INDEX(itemsize(number))), body, lanes)
        with along, counted(builder, INDEX(0), length) as at:
            windows.write(operation.finish(_along(windows, operation, at, lanes)), target, at, pace)
    builder.ret_void()
    return function


def _along(windows: Windows, operation: Operation, at: ir.Value, lanes: int) -> ir.Value:
    """The fold of one window whose rows have no gaps, as a vector of one."""
    from numba.core import cgutils

    builder, number, combine, length = windows.builder, windows.number, operation.combine, windows.taps[2]
    single = ir.VectorType(number, 1)
    start, total = windows.window(at), cgutils.alloca_once(builder, single)
    builder.store(_all(number, operation.least, 1), total)
    with windows.elements(axes=2) as (offset, _):
        row, width = moved(builder, start, offset, BYTE), _VECTORS * lanes

        def read(k: ir.Value, width: int) -> ir.Value:
            return operation.read(windows.vector(moved(builder, row, k, number), width, Apart.ONE))

        wide = ir.VectorType(number, width)
        held = cgutils.alloca_once(builder, wide)
        builder.store(_all(number, operation.least, width), held)
        with counted(builder, INDEX(0), builder.and_(length, INDEX(-width)), width) as k:
            builder.store(combine(read(k, width), builder.load(held, typ=wide)), held)
        value = builder.load(held, typ=wide)
        while width > 1:
            halves = [
                ir.Constant(ir.VectorType(LANE, width // 2), list(range(i, i + width // 2))) for i in (0, width // 2)
            ]
            value = combine(*(builder.shuffle_vector(value, value, half) for half in halves))
            width //= 2
            before = builder.block
            with builder.if_then(builder.icmp_unsigned("!=", builder.and_(length, INDEX(width)), INDEX(0))):
                more = combine(read(builder.and_(length, INDEX(-2 * width)), width), value)
                inside = builder.block
            chosen = builder.phi(value.type)
            chosen.add_incoming(value, before)
            chosen.add_incoming(more, inside)
            value = chosen
        builder.store(combine(value, builder.load(total, typ=single)), total)
    return builder.load(total, typ=single)


def _all(number: ir.Type, value: float, width: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(number, width), [value] * width)


def larger(builder: ir.IRBuilder, number: ir.Type, kind: str, value: ir.Value, most: ir.Value) -> ir.Value:
    """Where `value` is above `most`."""
    if not isinstance(number, ir.IntType):
        return builder.fcmp_ordered(">", value, most)
    compare = builder.icmp_unsigned if kind.startswith("u") else builder.icmp_signed
    return compare(">", value, most)


def least_of(number: ir.Type, kind: str) -> float:
    """The number that no number is below."""
    return int(np.iinfo(kind).min) if isinstance(number, ir.IntType) else -math.inf


def _maximum(builder: ir.IRBuilder, number: ir.Type, kind: str) -> Operation:
    def combine(value: ir.Value, most: ir.Value) -> ir.Value:
        most = builder.select(larger(builder, number, kind, value, most), value, most)  # a NaN in `most` stays
        if isinstance(number, ir.IntType):
            return most
        return builder.select(builder.fcmp_unordered("uno", value, value), value, most)

    return Operation(least_of(number, kind), lambda value: value, combine, lambda most: most)


def _mean(builder: ir.IRBuilder, number: ir.Type, kind: str, divisor: ir.Value) -> Operation:
    def combine(value: ir.Value, total: ir.Value) -> ir.Value:
        return builder.fadd(value, total, flags=("contract",))  # with a product one instruction

    def finish(total: ir.Value) -> ir.Value:
        return builder.fdiv(total, vector_of(builder, divisor, total.type.count))

    return Operation(0.0, lambda value: value, combine, finish)


def _norm(builder: ir.IRBuilder, number: ir.Type, kind: str, divisor: ir.Value, root: ir.Value) -> Operation:
    from numba.core import cgutils

    mean, square = _mean(builder, number, kind, divisor), builder.icmp_signed("==", root, INDEX(2))

    def read(value: ir.Value) -> ir.Value:
        factor = builder.select(square, _all(number, 1.0, value.type.count), value)
        return builder.fmul(builder.fmul(value, value), factor, flags=("contract",))

    def finish(total: ir.Value) -> ir.Value:
        total = mean.finish(total)
        result = cgutils.alloca_once(builder, total.type)
        with builder.if_else(square) as (squares, cubes):
            with squares:
                name = f"llvm.sqrt.v{total.type.count}f{8 * itemsize(number)}"
                sqrt = cgutils.get_or_insert_function(builder.module, ir.FunctionType(total.type, [total.type]), name)
                builder.store(builder.call(sqrt, [total]), result)
            with cubes:
                builder.store(_cube_root(builder, total), result)
        return builder.load(result, typ=total.type)

    return Operation(0.0, read, mean.combine, finish)


def _cube_root(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The cube root of numbers that are not negative; of others it is not a number.

    A third of the bits, exponent and all, is a root within 5 % (Kahan, "Computing a real cube root", 1991), and each of
    Halley's steps, ``y (1 + 2 r) / (2 + r)`` with ``r = x / y^3``, leaves two thirds of the error's cube. Subnormal
    numbers, whose bits say less, are multiplied by a power of 8 before.
    """
    number, width = x.type.element, x.type.count
    size, about = itemsize(number), np.finfo(f"f{itemsize(number)}")
    bits = ir.VectorType(ir.IntType(8 * size), width)
    start = int((2 / 3 * (about.maxexp - 1) - 0.03306235651) * 2**about.nmant)

    def all_(value: float) -> ir.Constant:
        return _all(number, value, width)

    small = builder.fcmp_ordered("<", x, all_(float(about.tiny)))
    scaled = builder.select(small, builder.fmul(x, all_(8.0**about.nmant)), x)
    third = builder.udiv(builder.bitcast(scaled, bits), _all(bits.element, 3, width))
    y = builder.bitcast(builder.add(third, _all(bits.element, start, width)), x.type)
    for _ in range(2 if size == 4 else 3):
        ratio = builder.fdiv(builder.fdiv(scaled, y), builder.fmul(y, y))
        above = builder.fadd(all_(1.0), builder.fadd(ratio, ratio))
        y = builder.fmul(y, builder.fdiv(above, builder.fadd(all_(2.0), ratio)))
    y = builder.select(small, builder.fmul(y, all_(2.0**-about.nmant)), y)
    negative = builder.fcmp_ordered("<", x, all_(0.0))
    ends = builder.or_(builder.fcmp_ordered("==", x, all_(0.0)), builder.fcmp_ordered("==", x, all_(math.inf)))
    return builder.select(negative, all_(math.nan), builder.select(ends, x, y))
