"""Rows into scratch memory and out of it: what every algorithm does with the caller's arrays.

Reading ends padding, strides and half types; writing applies bias, residual and activation. Rows whose elements lie
side by side are moved in whole vectors, the last of which ends where the row ends and overlaps the one before: the
scalar loop that LLVM leaves for the rest, of up to 31 elements, costs more than a short row does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from fastconv.cpu.copying import SPLITS, gather_planes, split_planes
from fastconv.cpu.elements import CLIP, activate, clip, extremes, load, resolve, store
from fastconv.cpu.emitting import INDEX, POINTER, addresses, counted, data_of, define, itemsize, moved, vector_of
from fastconv.cpu.jit import generic, inline, intrinsic
from fastconv.cpu.transpose import transpose_plane
from fastconv.machine import vector_bytes

_LEAST_TURNED = 4  # channels: fewer are gathered faster one by one


@intrinsic
def without_gaps(typing_context, row):  # type: ignore[no-untyped-def]
    """The same row, known to the compiler to have no gaps: the caller has looked."""
    from numba.core.imputils import impl_ret_borrowed

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return impl_ret_borrowed(context, builder, signature.return_type, arguments[0])

    return row.copy(layout="C")(row), generate


def each_vector(
    builder: ir.IRBuilder, length: ir.Value, body: Callable[[ir.Value, int], None], widths: Sequence[int]
) -> None:
    """Emit ``body(at, width)`` for vectors that together cover `length` elements and nothing beyond them.

    They are as wide as the first of the widths that the length allows; the last one of these is 1.
    """
    from numba.core import cgutils

    done = builder.append_basic_block("run.done")
    for width in widths:
        enough, shorter = builder.append_basic_block(f"run.{width}"), builder.append_basic_block("run.shorter")
        builder.cbranch(builder.icmp_signed(">=", length, INDEX(width)), enough, shorter)
        builder.position_at_end(enough)
        last = builder.sub(length, INDEX(width))
        with cgutils.for_range_slice(builder, INDEX(0), last, INDEX(width), intp=INDEX) as (at, _):
            body(at, width)
        body(last, width)
        builder.branch(done)
        builder.position_at_end(shorter)
    builder.branch(done)
    builder.position_at_end(done)


def halves(lanes: int) -> list[int]:
    """A power of two, its half, and so on."""
    return [1 << i for i in reversed(range(lanes.bit_length()))]


@intrinsic
def _move(typing_context, source, first, added, low, high, target, length):  # type: ignore[no-untyped-def]
    """``target[i] = clip(source[first + i] + added, low, high)`` for `length` real numbers without gaps between them.

    None for `added`, `low` and `high` makes it a copy.
    """
    from numba import types

    signature = types.void(source, first, added, low, high, target, length)
    itemsize = np.dtype(str(source.dtype)).itemsize

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number, address = context.get_data_type(source.dtype), addresses(context, builder, signature, arguments)
        begin, to = address(0, arguments[1]), address(5)
        floating = isinstance(source.dtype, types.Float)
        add = builder.fadd if floating else builder.add
        less = builder.fcmp_ordered if floating else builder.icmp_signed

        def body(at: ir.Value, width: int) -> None:
            vector = ir.VectorType(number, width)
            value = builder.load(moved(builder, begin, at, number), align=itemsize, typ=vector)
            if not isinstance(added, types.NoneType):
                value = add(value, vector_of(builder, arguments[2], width))
                least, most = (vector_of(builder, arguments[k], width) for k in (3, 4))
                value = builder.select(less("<", value, least), least, value)  # comparisons so that NaN passes
                value = builder.select(less(">", value, most), most, value)
            place = builder.bitcast(moved(builder, to, at, number), vector.as_pointer())
            builder.store(value, place, align=itemsize)

        each_vector(builder, arguments[6], body, halves(vector_bytes() // itemsize))
        return context.get_dummy_value()

    return signature, generate


@generic
def read_run(row: Any, first: Any, half: Any, out: Any) -> Any:
    """``out[i] = row[first + i]``, both without gaps; memory may go on past the row's own end."""
    from numba import types

    if row.dtype == out.dtype and not isinstance(row.dtype, types.Complex):
        return lambda row, first, half, out: _move(row, first, None, None, None, out, out.shape[0])

    def convert(row, first, half, out):  # type: ignore[no-untyped-def]
        # Unsigned, lest Numba look for negative indices, which keeps LLVM from vectorising.
        source = np.uintp(first)
        for i in range(np.uintp(out.shape[0])):
            out[i] = load(row[source + i], half)

    return convert


@inline
def read_row(row, first, step, mode, half, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the elements ``first, first + step, …`` of a row that is padded without end on both sides."""
    # The first element inside the row, and the first past its end; divisions would cost more than a short row.
    before, after = -first, row.shape[0] - first
    if step > 1:
        before, after = (before + step - 1) // step, (after + step - 1) // step
    low = min(max(before, 0), out.shape[0])
    high = max(min(after, out.shape[0]), low)
    _read_padding(row, first, step, mode, half, out, 0, low)
    if step == 1 and row.strides[0] == row.itemsize:
        read_run(without_gaps(row), first + low, half, out[low:high])
    else:
        for i in range(low, high):
            out[i] = load(row[first + i * step], half)
    _read_padding(row, first, step, mode, half, out, high, out.shape[0])


@inline
def _read_padding(row, first, step, mode, half, out, begin, end):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        source = resolve(first + i * step, row.shape[0], mode)
        if source >= 0:
            out[i] = load(row[source], half)
        else:
            out[i] = 0


@generic
def _split_run(row: Any, first: Any, parts: Any, out: Any, *arguments: Any) -> Any:
    """``out[k * pitch + i] = row[first + i * parts + k]`` for i from `begin` to `end`; whether that is done."""
    from numba import types

    if row.dtype != out.dtype or isinstance(row.dtype, types.Complex):
        return lambda row, first, parts, out, pitch, begin, end: False

    def split(row, first, parts, out, pitch, begin, end):  # type: ignore[no-untyped-def]
        if parts not in SPLITS or row.strides[0] != row.itemsize:
            return False
        at = (first + begin * parts) * row.itemsize
        split_planes(out, begin, pitch, 0, 0, row, at, 0, 0, 1, 1, (end - begin) * parts, parts, 0)
        return True

    return split


@inline
def split_row(row, first, parts, mode, half, out, pitch, length):  # type: ignore[no-untyped-def]
    """Fill `length` elements of ``out[k * pitch :]`` with ``first + k, first + k + parts, …`` of a padded row."""
    before, after = max(-first, 0), row.shape[0] - first
    begin = min((before + parts - 1) // parts, length)  # from here to `end`, all parts are inside the row
    end = max(min(after // parts, length), begin)
    done = _split_run(row, first, parts, out, pitch, begin, end)
    for part in range(parts):
        target = out[part * pitch : part * pitch + length]
        if done:
            _read_padding(row, first + part, parts, mode, half, target, 0, begin)
            _read_padding(row, first + part, parts, mode, half, target, end, length)
        else:
            read_row(row, first + part, parts, mode, half, target)


@inline
def inside(first, step, size, length):  # type: ignore[no-untyped-def]
    """The range of i below `length` for which ``first + i * step`` lies in ``[0, size)``."""
    low = min(max((step - 1 - first) // step, 0), length)
    return low, max(min((size - first + step - 1) // step, length), low)


@generic
def _gather_rows(planes: Any, c: Any, h: Any, step_h: Any, w: Any, step_w: Any, out: Any, at: Any, *counts: Any) -> Any:
    """``out[at + r * pitch + i] = planes[c, h + r * step_h, w + i * step_w]`` of that dtype; whether that is done."""
    from numba import types

    if planes.dtype != out.dtype or isinstance(planes.dtype, types.Complex):
        return lambda planes, c, h, step_h, w, step_w, out, at, pitch, rows, columns: False

    def gather(planes, c, h, step_h, w, step_w, out, at, pitch, rows, columns):  # type: ignore[no-untyped-def]
        begin = c * planes.strides[0] + h * planes.strides[1] + w * planes.strides[2]
        gather_planes(
            out, at, 0, pitch, planes, begin, 0, step_h * planes.strides[1], step_w * planes.strides[2], 1, rows,
            columns,
        )  # fmt: skip
        return True

    return gather


@generic
def _turn_pixels(planes: Any, h: Any, w: Any, step: Any, columns: Any, out: Any, at: Any, pitch: Any) -> Any:
    """``out[at + c * pitch + i] = planes[c, h, w + i * step]`` for i < columns; whether that is done.

    Channels lie side by side.
    """
    from numba import types

    if planes.dtype != out.dtype or isinstance(planes.dtype, types.Complex):
        return lambda planes, h, w, step, columns, out, at, pitch: False

    def turn(planes, h, w, step, columns, out, at, pitch):  # type: ignore[no-untyped-def]
        begin = (h * planes.strides[1] + w * planes.strides[2]) // planes.itemsize
        apart = step * planes.strides[2] // planes.itemsize
        transpose_plane(planes, begin, apart, out, at, pitch, columns, planes.shape[0])
        return True

    return turn


@inline
def read_planes(planes, first_h, step_h, first_w, step_w, mode, half, out, pitch, row_pitch, rows, columns):  # type: ignore[no-untyped-def]
    """Copy `rows` by `columns` elements of each of some padded planes, a `pitch` apart in `out`, rows a `row_pitch`.

    They are those of every `step_h`-th row from `first_h` on and every `step_w`-th column from `first_w` on. Zero
    padding is not written: `out` holds it already.
    """
    low_w, high_w = inside(first_w, step_w, planes.shape[2], columns)
    low_h, high_h = inside(first_h, step_h, planes.shape[1], rows)
    together = step_w == 1 and planes.strides[2] == planes.itemsize
    if mode == 0 and not together and planes.strides[0] == planes.itemsize and planes.shape[0] >= _LEAST_TURNED:
        done = True
        for r in range(low_h, high_h):
            h, at = first_h + r * step_h, r * row_pitch + low_w
            done = _turn_pixels(planes, h, first_w + low_w * step_w, step_w, high_w - low_w, out, at, pitch)
        if done:
            return
    for c in range(planes.shape[0]):
        if mode != 0:
            for r in range(rows):
                h, at = resolve(first_h + r * step_h, planes.shape[1], mode), c * pitch + r * row_pitch
                if h < 0:
                    out[at : at + columns] = 0
                else:
                    read_row(planes[c, h], first_w, step_w, mode, half, out[at : at + columns])
        elif together:
            for r in range(low_h, high_h):
                row, at = planes[c, first_h + r * step_h], c * pitch + r * row_pitch
                read_run(without_gaps(row), first_w + low_w, half, out[at + low_w : at + high_w])
        elif not _gather_rows(
            planes, c, first_h + low_h * step_h, step_h, first_w + low_w * step_w, step_w, out,
            c * pitch + low_h * row_pitch + low_w, row_pitch, high_h - low_h, high_w - low_w,
        ):  # fmt: skip
            for r in range(low_h, high_h):
                row, at = planes[c, first_h + r * step_h], c * pitch + r * row_pitch
                for i in range(low_w, high_w):
                    out[at + i] = load(row[first_w + i * step_w], half)


@generic
def _turn_row(planes: Any, h: Any, w: Any, columns: Any, out: Any, at: Any, pitch: Any) -> Any:
    """``out[at + i * pitch + c] = planes[c, h, w + i]`` for i < columns, if these lie side by side; whether they do."""
    from numba import types

    if planes.dtype != out.dtype or isinstance(planes.dtype, types.Complex):
        return lambda planes, h, w, columns, out, at, pitch: False

    def turn(planes, h, w, columns, out, at, pitch):  # type: ignore[no-untyped-def]
        if planes.strides[2] != planes.itemsize:
            return False
        begin = h * planes.strides[1] // planes.itemsize + w
        apart = planes.strides[0] // planes.itemsize
        transpose_plane(planes, begin, apart, out, at, pitch, planes.shape[0], columns)
        return True

    return turn


@inline
def read_pixels(planes, first_h, step_h, first_w, step_w, mode, half, out, pitch, row_pitch, rows, columns):  # type: ignore[no-untyped-def]
    """As :func:`read_planes`, with the channels of a pixel side by side in `out`, and pixels a `pitch` apart."""
    channels = planes.shape[0]
    low_w, high_w = inside(first_w, step_w, planes.shape[2], columns)
    low_h, high_h = inside(first_h, step_h, planes.shape[1], rows)
    if mode != 0:
        low_w, high_w, low_h, high_h = 0, columns, 0, rows
    side_by_side = planes.strides[0] == planes.itemsize
    whole_rows = side_by_side and step_w == 1 and pitch == channels and planes.strides[2] == channels * planes.itemsize
    for r in range(low_h, high_h):
        h, at = resolve(first_h + r * step_h, planes.shape[1], mode), r * row_pitch
        if whole_rows and mode == 0:
            run = without_gaps(planes[:, h, first_w + low_w])
            read_run(run, 0, half, out[at + low_w * channels : at + high_w * channels])
            continue
        if step_w == 1 and mode == 0 and not side_by_side:
            done = _turn_row(planes, h, first_w + low_w, high_w - low_w, out, at + low_w * pitch, pitch)
            if done:
                continue
        for i in range(low_w, high_w):
            w, to = resolve(first_w + i * step_w, planes.shape[2], mode), at + i * pitch
            if h < 0 or w < 0:
                out[to : to + channels] = 0
            elif side_by_side:
                read_run(without_gaps(planes[:, h, w]), 0, half, out[to : to + channels])
            else:
                for c in range(channels):
                    out[to + c] = load(planes[c, h, w], half)


@inline
def add_row(sums, row, half):  # type: ignore[no-untyped-def]
    """Add a row of the result's dtype to sums."""
    for j in range(sums.shape[0]):
        sums[j] += load(row[j], half)


@generic
def _write_run(sums: Any, added: Any, clipped: Any, parameters: Any, half: Any, row: Any) -> Any:
    """``row[i] = sums[i] + added``, limited to the range of the parameters if `clipped`; both without gaps."""
    from numba import types

    if row.dtype == sums.dtype and not isinstance(row.dtype, types.Complex):

        def move(sums, added, clipped, parameters, half, row):  # type: ignore[no-untyped-def]
            low, high = extremes(sums)
            if clipped:
                low, high = parameters[0], parameters[1]
            _move(sums, 0, added, low, high, row, sums.shape[0])

        return move

    def convert(sums, added, clipped, parameters, half, row):  # type: ignore[no-untyped-def]
        if clipped:
            for j in range(sums.shape[0]):
                store(row, j, clip(sums.dtype.type(sums[j] + added), parameters), half)  # integers wrap first
        else:
            for j in range(sums.shape[0]):
                store(row, j, sums[j] + added, half)

    return convert


@inline
def write_row(sums, added, activation, parameters, half, row):  # type: ignore[no-untyped-def]
    """Write ``act(sums + added)`` to a row of the result; the sums are used up."""
    if activation > CLIP:
        for j in range(sums.shape[0]):
            sums[j] = activate(sums[j] + added, activation, parameters)
        added = sums.dtype.type(0)
    clipped = activation == CLIP
    if row.strides[0] == row.itemsize:
        _write_run(sums, added, clipped, parameters, half, without_gaps(row))
    else:
        for j in range(sums.shape[0]):
            total = sums.dtype.type(sums[j] + added)
            store(row, j, clip(total, parameters) if clipped else total, half)


def _define_pixels(module: ir.Module, number: ir.Type, lanes: int) -> ir.Function:
    """The function (sums, pitch, added, adds, low, high, target, step, pixels, channels)."""
    size = itemsize(number)
    kinds = [POINTER, INDEX, POINTER, INDEX, number, number, POINTER, INDEX, INDEX, INDEX]
    function, known = define(module, f"fastconv_write_{number}_{lanes}", kinds)
    if known:
        return function
    sums, pitch, added, adds, low, high, target, step, pixels, channels = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    adding = builder.icmp_unsigned("!=", adds, INDEX(0))

    def write(source: ir.Value, to: ir.Value, at: ir.Value, count: int) -> None:
        vector = ir.VectorType(number, count)
        value, more = (
            builder.load(moved(builder, base, at, number), align=size, typ=vector) for base in (source, added)
        )
        value = builder.fadd(value, builder.select(adding, more, ir.Constant(vector, None)))
        least, most = (vector_of(builder, limit, count) for limit in (low, high))
        value = builder.select(builder.fcmp_ordered("<", value, least), least, value)  # NaN passes
        value = builder.select(builder.fcmp_ordered(">", value, most), most, value)
        builder.store(value, moved(builder, to, at, number), align=size)

    with counted(builder, INDEX(0), pixels) as pixel:
        source = moved(builder, sums, builder.mul(pixel, pitch), number)
        to = moved(builder, target, builder.mul(pixel, step), number)
        with counted(builder, INDEX(0), builder.and_(channels, INDEX(-lanes)), lanes) as at:
            write(source, to, at, lanes)
        count = lanes // 2
        while count:
            with builder.if_then(builder.icmp_unsigned("!=", builder.and_(channels, INDEX(count)), INDEX(0))):
                write(source, to, builder.and_(channels, INDEX(-2 * count)), count)
            count //= 2
    builder.ret_void()
    return function


@intrinsic
def _move_pixels(typing_context, sums, pitch, added, adds, low, high, target, step, pixels, channels):  # type: ignore[no-untyped-def]
    """``target[p * step + c] = clip(sums[p * pitch + c] + added[c], low, high)`` for real numbers; `adds` may be 0."""
    from numba import types

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number, passed = context.get_data_type(sums.dtype), list(arguments)
        for k in (0, 2, 6):
            passed[k] = data_of(context, builder, signature.args[k], arguments[k], number, 0)
        builder.call(_define_pixels(builder.module, number, vector_bytes() // itemsize(number)), passed)
        return context.get_dummy_value()

    return types.void(sums, pitch, added, adds, low, high, target, step, pixels, channels), generate


@generic
def _write_pixels(
    sums: Any, pitch: Any, added: Any, adds: Any, clipped: Any, parameters: Any, half: Any, pixels: Any
) -> Any:
    """``pixels[c, p] = sums[p * pitch + c] + added[c]``, limited if `clipped`; channels lie side by side."""
    if pixels.dtype == sums.dtype:

        def move(sums, pitch, added, adds, clipped, parameters, half, pixels):  # type: ignore[no-untyped-def]
            low, high = sums.dtype.type(-np.inf), sums.dtype.type(np.inf)
            if clipped:
                low, high = parameters[0], parameters[1]
            step = pixels.strides[1] // pixels.itemsize
            _move_pixels(sums, pitch, added, adds, low, high, pixels, step, pixels.shape[1], pixels.shape[0])

        return move

    def convert(sums, pitch, added, adds, clipped, parameters, half, pixels):  # type: ignore[no-untyped-def]
        for p in range(pixels.shape[1]):
            row = pixels[:, p]
            for c in range(pixels.shape[0]):
                total = sums[p * pitch + c] + (added[c] if adds else sums.dtype.type(0))
                store(row, c, clip(total, parameters) if clipped else total, half)

    return convert


@inline
def write_pixels(sums, pitch, added, has_residual, residual, activation, parameters, half, pixels):  # type: ignore[no-untyped-def]
    """Write ``act(sums + residual + added)`` to ``pixels (channels, pixels)``, whose channels lie side by side.

    The sums of a pixel lie side by side too, a `pitch` from the next one's; they are real, and used up. `added` has a
    number for each channel.
    """
    channels, count = pixels.shape
    for p in range(count if has_residual else 0):
        add_row(sums[p * pitch : p * pitch + channels], residual[:, p], half)
    for p in range(count if activation > CLIP else 0):
        for c in range(channels):
            at = p * pitch + c
            sums[at] = activate(sums[at] + added[c], activation, parameters)
    _write_pixels(sums, pitch, added, int(activation <= CLIP), activation == CLIP, parameters, half, pixels)
