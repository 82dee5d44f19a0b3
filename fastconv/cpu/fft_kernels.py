"""Tiles of a correlation into spectra and back: the kernels of `fft` that touch the caller's arrays.

A *unit* is one tile of one channel for as many lanes as a vector has: of `lanes` tiles, or of the same tile in `lanes`
groups. Its spectrum is an array (depth, height, width, 2, lanes); along the width of a real one only half the
frequencies are kept, and one. Forward, rows are staged lane by lane (padding, half types and strides in memory end
there), transformed and folded, then columns along height and depth; rows without data are filled with zeros. The
inverse goes the other way and computes only the rows that hold outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.cpu.copying import copy_planes
from fastconv.cpu.elements import CLIP, clip, resolve
from fastconv.cpu.fourier import fold, transform
from fastconv.cpu.jit import Kernel, generic, inline
from fastconv.cpu.microkernel import multiply_tile
from fastconv.cpu.rows import add_row, inside, read_row, write_row

MOST_PASSES = 24
PANEL = 3  # units whose products are summed at once: with real and imaginary parts, a tile's width of vectors

#: How a correlation is tiled: transforms of `length` elements along each axis, of which the first ``reach - 1`` results
#: are not outputs; `tiles` of `kept` outputs each; `bins` frequencies of a row, real ones `folded`; in a unit `lanes`
#: tiles (`across_tiles`), or groups (`across_groups`), or copies of one (neither); the number of `passes` along each
#: axis, and where their factors and those of folding begin.
TILING = np.dtype(
    [(name, np.int64, (3,)) for name in ("length", "reach", "tiles", "kept", "passes", "factors")]
    + [("fold", np.int64, (2,))]
    + [(name, np.int64) for name in ("bins", "lanes", "across_tiles", "across_groups", "folded")]
)


@generic
def _scatter(row: Any, target: Any, lane: Any, lanes: Any) -> Any:
    """Put a row into a lane of a staged line."""
    from numba import types

    def split(row, target, lane, lanes):  # type: ignore[no-untyped-def]
        for j in range(row.shape[0]):
            target[2 * j * lanes + lane] = row[j].real
            target[(2 * j + 1) * lanes + lane] = row[j].imag

    def whole(row, target, lane, lanes):  # type: ignore[no-untyped-def]
        for j in range(row.shape[0]):
            target[j * lanes + lane] = row[j]

    return split if isinstance(row.dtype, types.Complex) else whole


@generic
def _gather(source: Any, first: Any, step: Any, lane: Any, lanes: Any, row: Any) -> Any:
    """Fill a row with the elements ``first, first + step, …`` of a lane of a line."""
    from numba import types

    def join(source, first, step, lane, lanes, row):  # type: ignore[no-untyped-def]
        for j in range(row.shape[0]):
            at = 2 * (first + j * step) * lanes + lane
            row[j] = complex(source[at], source[at + lanes])

    def whole(source, first, step, lane, lanes, row):  # type: ignore[no-untyped-def]
        for j in range(row.shape[0]):
            row[j] = source[(first + j * step) * lanes + lane]

    return join if isinstance(row.dtype, types.Complex) else whole


@inline
def _locate(unit, channels, geo, tiling, places):  # type: ignore[no-untyped-def]
    """The channel of a unit; for each lane its image (-1 if idle), group, and the first output and outputs per axis."""
    lanes = tiling.lanes
    outer, channel = divmod(unit, channels)
    all_tiles = geo.batch * tiling.tiles[0] * tiling.tiles[1] * tiling.tiles[2]
    in_row = -(-geo.groups // lanes) if tiling.across_groups else geo.groups
    tile, group = divmod(outer, in_row)
    if tiling.across_tiles:
        tile *= lanes
    if tiling.across_groups:
        group *= lanes
    for lane in range(lanes):
        place = places[lane]
        at, g = tile + lane * tiling.across_tiles, group + lane * tiling.across_groups
        place[0] = -1
        if at >= all_tiles or g >= geo.groups:
            continue
        place[1] = g
        rest = at
        for axis in range(2, -1, -1):
            rest, index = divmod(rest, tiling.tiles[axis])
            place[2 + axis] = index * tiling.kept[axis]
            place[5 + axis] = min(tiling.kept[axis], geo.count[axis] - place[2 + axis])
        place[0] = rest
    return channel


@inline
def _count_not_finite(values):  # type: ignore[no-untyped-def]
    count = 0
    for j in range(np.uintp(values.shape[0])):
        if not abs(values[j]) < np.inf:
            count += 1
    return count


@inline
def _columns(spectrum, first, rows, tiling, axis, passes, factors, work, inverse):  # type: ignore[no-untyped-def]
    """Transform along height (axis 1) of one plane or along depth (axis 0), all columns of `rows` rows from `first`."""
    lanes, length = tiling.lanes, tiling.length[axis]
    element = 2 * lanes
    step = tiling.bins * element
    if axis == 0:
        step *= tiling.length[1]
    for column in range(rows * tiling.bins):
        at = first + column * element
        transform(spectrum, at, step, spectrum, at, step, work, passes[axis, : tiling.passes[axis]],
                  factors[tiling.factors[axis] :], length, lanes, inverse)  # fmt: skip


@generic
def _read_pixels(staged: Any, to: Any, lanes: Any, x: Any, *arguments: Any) -> Any:
    """Copy the first `groups` lanes of `count` pixels, which begin at byte `begin` of `x`, `step` bytes apart."""

    def read(staged, to, lanes, x, begin, step, count, groups):  # type: ignore[no-untyped-def]
        copy_planes(staged, to, 0, lanes, x, begin, 0, step, 1, count, groups)

    def leave(staged, to, lanes, x, begin, step, count, groups):  # type: ignore[no-untyped-def]
        pass  # half types and complex numbers are read one by one

    return read if staged.dtype == x.dtype else leave


def _forward(  # type: ignore[no-untyped-def]
    first, last, origin, x, geometry, tilings, passes, factors, spectra, work, row, places, half
):  # fmt: skip
    """The spectra of units `first` to `last`, twice too large where they are folded; ``spectra`` begins at `origin`."""
    geo, tiling = geometry[0], tilings[0]
    mode, lanes = geo.padding_mode, tiling.lanes
    depth, height, width = tiling.length[0], tiling.length[1], tiling.length[2]
    line = tiling.bins * 2 * lanes
    half_width = width // 2 if tiling.folded else width
    staged, work = work[:line], work[line:]
    # Lanes are neighbours in memory: groups of one channel, channels last.
    side_by_side = tiling.across_groups and x.strides[1] == x.itemsize == staged.itemsize and mode == 0
    for unit in range(first, last):
        channel = _locate(unit, geo.in_channels, geo, tiling, places)
        spectrum = spectra[unit - origin]
        groups = min(lanes, geo.groups - places[0, 1])
        for d in range(depth):
            filled = False
            for h in range(height):
                staged[:] = 0
                empty = True
                for lane in range(1 if side_by_side else lanes):
                    place = places[lane]
                    if place[0] < 0:
                        continue
                    if d > (place[5] - 1) * geo.stride[0] + tiling.reach[0] - 1:
                        continue
                    if h > (place[6] - 1) * geo.stride[1] + tiling.reach[1] - 1:
                        continue
                    source_d = resolve(place[2] * geo.stride[0] + d - geo.offset[0], geo.size[0], mode)
                    source_h = resolve(place[3] * geo.stride[1] + h - geo.offset[1], geo.size[1], mode)
                    if source_d < 0 or source_h < 0:
                        continue
                    empty = False
                    samples = row[: (place[7] - 1) * geo.stride[2] + tiling.reach[2]]
                    start = place[4] * geo.stride[2] - geo.offset[2]
                    if side_by_side:
                        low, high = inside(start, 1, geo.size[2], samples.shape[0])
                        begin = place[0] * x.strides[0] + place[1] * x.strides[1] + channel * x.strides[2]
                        begin += source_d * x.strides[3] + source_h * x.strides[4] + (start + low) * x.strides[5]
                        _read_pixels(staged, low * lanes, lanes, x, begin, x.strides[5], high - low, groups)
                    else:
                        read_row(x[place[0], place[1], channel, source_d, source_h], start, 1, mode, half, samples)
                        _scatter(samples, staged, lane, lanes)
                at = (d * height + h) * line
                if empty:
                    spectrum[at : at + line] = 0
                    continue
                filled = True
                steps, table = passes[2, : tiling.passes[2]], factors[tiling.factors[2] :]
                if tiling.folded:
                    transform(staged, 0, 2 * lanes, staged, 0, 2 * lanes, work, steps, table, half_width, lanes, False)
                    fold(staged, 0, spectrum, at, half_width, False, factors, tiling.fold[0])
                else:
                    transform(staged, 0, 2 * lanes, spectrum, at, 2 * lanes, work, steps, table, width, lanes, False)
            if filled and height > 1:
                _columns(spectrum, d * height * line, 1, tiling, 1, passes, factors, work, False)
        if depth > 1:
            _columns(spectrum, 0, height, tiling, 0, passes, factors, work, False)


@generic
def _write_pixels(
    pixels: Any, lanes: Any, groups: Any, bias: Any, first: Any, apart: Any, clipped: Any, parameters: Any, stride: Any,
    y: Any, *arguments: Any,
) -> Any:  # fmt: skip
    """Add to `groups` lanes of each pixel the biases ``first, first + apart, …``, clip, and write every `stride`-th.

    The first goes to element `to` of `y`.
    """

    def write(pixels, lanes, groups, bias, first, apart, clipped, parameters, stride, y, to, count):  # type: ignore[no-untyped-def]
        if bias.shape[0] > 0 or clipped:
            for at in range(0, count * stride * lanes, stride * lanes):
                for i in range(groups):
                    value = pixels[at + i]
                    if bias.shape[0] > 0:
                        value += bias[first + i * apart]
                    pixels[at + i] = clip(value, parameters) if clipped else value
        pitch, step = y.strides[5] // y.itemsize, stride * lanes * y.itemsize
        copy_planes(y, to, 0, pitch, pixels, 0, 0, step, 1, count, groups)

    def leave(pixels, lanes, groups, bias, first, apart, clipped, parameters, stride, y, to, count):  # type: ignore[no-untyped-def]
        pass  # half types are written one by one, and a complex line is not made of neighbouring lanes

    return write if pixels.dtype == y.dtype else leave


def _inverse(  # type: ignore[no-untyped-def]
    first, last, origin, y, geometry, tilings, passes, factors, spectra, work, row, places, half, bias, residual,
    activation, parameters, failed,
):  # fmt: skip
    """Write the outputs of units `first` to `last` from their spectra, which are used up.

    Where one is not finite the tile is left alone and noted in ``failed (tiles, G, O)``.
    """
    geo, tiling = geometry[0], tilings[0]
    lanes = tiling.lanes
    depth, height, width = tiling.length[0], tiling.length[1], tiling.length[2]
    line = tiling.bins * 2 * lanes
    half_width = width // 2 if tiling.folded else width
    staged, work = work[:line], work[line:]
    margin_d, margin_h, margin_w = tiling.reach[0] - 1, tiling.reach[1] - 1, tiling.reach[2] - 1
    end_w = margin_w + (tiling.kept[2] - 1) * geo.stride[2] + 1
    sample = lanes if tiling.folded else 2 * lanes
    # Lanes are neighbours in memory, as for the samples, and nothing is done to results but to add a bias and clip.
    side_by_side = tiling.across_groups and tiling.folded and y.strides[1] == y.itemsize == staged.itemsize
    side_by_side = side_by_side and residual.shape[0] == 0 and activation <= CLIP
    for unit in range(first, last):
        channel = _locate(unit, geo.out_channels, geo, tiling, places)
        spectrum = spectra[unit - origin]
        if depth > 1:
            _columns(spectrum, 0, height, tiling, 0, passes, factors, work, True)
        suspects = rows_d = rows_h = 0
        for lane in range(lanes):
            if places[lane, 0] >= 0:
                rows_d, rows_h = max(rows_d, places[lane, 5]), max(rows_h, places[lane, 6])
        for d in range(rows_d):
            plane = (margin_d + d * geo.stride[0]) * height * line
            if height > 1:
                _columns(spectrum, plane, 1, tiling, 1, passes, factors, work, True)
            for h in range(rows_h):
                at = plane + (margin_h + h * geo.stride[1]) * line
                steps, table = passes[2, : tiling.passes[2]], factors[tiling.factors[2] :]
                if tiling.folded:
                    fold(spectrum, at, staged, 0, half_width, True, factors, tiling.fold[1])
                    transform(
                        staged, 0, 2 * lanes, spectrum, at, 2 * lanes, work, steps, table, half_width, lanes, True
                    )
                else:
                    transform(spectrum, at, 2 * lanes, spectrum, at, 2 * lanes, work, steps, table, width, lanes, True)
                # All lanes at once, and a lane for itself only if there is reason to.
                suspects += _count_not_finite(spectrum[at + margin_w * sample : at + end_w * sample])
        if side_by_side and suspects == 0:
            place = places[0]
            groups = min(lanes, geo.groups - place[1])
            corner = place[0] * y.strides[0] + place[1] * y.strides[1] + channel * y.strides[2]
            for d in range(place[5]):
                for h in range(place[6]):
                    at = ((margin_d + d * geo.stride[0]) * height + margin_h + h * geo.stride[1]) * line
                    to = corner + (place[2] + d) * y.strides[3] + (place[3] + h) * y.strides[4]
                    to += place[4] * y.strides[5]
                    _write_pixels(
                        spectrum[at + margin_w * lanes : at + end_w * lanes], lanes, groups, bias,
                        place[1] * geo.out_channels + channel, geo.out_channels, activation == CLIP, parameters,
                        geo.stride[2], y, to // y.itemsize, place[7],
                    )  # fmt: skip
            continue
        for lane in range(lanes):
            place = places[lane]
            if place[0] < 0:
                continue
            done = row[: place[7]]
            wrong = 0
            if suspects > 0:
                for d in range(place[5]):
                    for h in range(place[6]):
                        at = ((margin_d + d * geo.stride[0]) * height + margin_h + h * geo.stride[1]) * line
                        _gather(spectrum[at : at + line], margin_w, geo.stride[2], lane, lanes, done)
                        wrong += _count_not_finite(done)
            if wrong > 0:
                tile = place[0]
                for axis in range(3):
                    tile = tile * tiling.tiles[axis] + place[2 + axis] // tiling.kept[axis]
                failed[tile, place[1], channel] = 1
                continue
            added = row.dtype.type(0)
            if bias.shape[0] > 0:
                added = bias[place[1] * geo.out_channels + channel]
            w = place[4]
            for d in range(place[5]):
                for h in range(place[6]):
                    at = ((margin_d + d * geo.stride[0]) * height + margin_h + h * geo.stride[1]) * line
                    _gather(spectrum[at : at + line], margin_w, geo.stride[2], lane, lanes, done)
                    to_d, to_h = place[2] + d, place[3] + h
                    if residual.shape[0] > 0:
                        add_row(done, residual[place[0], place[1], channel, to_d, to_h, w : w + place[7]], half)
                    write_row(done, added, activation, parameters, half,
                              y[place[0], place[1], channel, to_d, to_h, w : w + place[7]])  # fmt: skip


def _multiply(first, last, origin, spectra, weights, results, outputs, lanes):  # type: ignore[no-untyped-def]
    """Results (units, elements) from the spectra of one channel each: that of unit `first` is the first of them.

    ``weights (O, groups in a row of units, elements)``; the results may be the spectra themselves.
    """
    for unit in range(first, last):
        outer, o = divmod(unit, outputs)
        a, b, c = spectra[outer - origin], weights[o, outer % weights.shape[1]], results[unit - first]
        for at in range(0, a.shape[0], 2 * lanes):
            for j in range(np.uintp(at), np.uintp(at + lanes)):
                k = j + np.uintp(lanes)
                re = a[j] * b[j] - a[k] * b[k]
                c[k] = a[j] * b[k] + a[k] * b[j]
                c[j] = re


def _interleave(first, last, spectra, weights, groups, channels, outputs, lanes, tile):  # type: ignore[no-untyped-def]
    """Lay out the spectra of taps as :func:`_contract` multiplies them, for tasks (group, bin).

    From units (lanes of outputs, group, channel) to ``weights (G, bins, O * C * 2)``: tile by tile of outputs, and
    (C, real and imaginary, outputs) in each.
    """
    bins = weights.shape[1]
    for task in range(first, last):
        g, f = divmod(task, bins)
        for o in range(outputs):
            begin = o // tile * tile
            here = min(tile, outputs - begin)
            block, lane = divmod(o, lanes)
            for c in range(channels):
                taps = spectra[(block * groups + g) * channels + c]
                to = (begin * channels + c * here) * 2 + o - begin
                weights[g, f, to] = taps[2 * f * lanes + lane]
                weights[g, f, to + here] = taps[(2 * f + 1) * lanes + lane]


def _contract(  # type: ignore[no-untyped-def]
    first, last, origin, end, spectra, weights, results, groups, channels, outputs, lanes, tile, scratch, offsets
):  # fmt: skip
    """Sum over channels the products at bins `first` to `last`, for tiles `origin` to `end` (by lanes, and group).

    With the lines (-im x, re x, im x) side by side a complex product is two real ones of twice the length: re w times
    the last two of them and im w times the first two make the real and the imaginary part of the product.
    """
    widest = PANEL * lanes
    panel, sums = scratch[: 3 * channels * widest], scratch[3 * channels * widest :]
    for f in range(first, last):
        at = 2 * f * lanes
        for g in range(groups):
            begin = origin + (g - origin) % groups
            while begin < end:
                count = min(-(-(end - begin) // groups), PANEL)
                width = count * lanes
                for c in range(channels):
                    line = panel[3 * c * width : 3 * (c + 1) * width]
                    offsets[2 * c], offsets[2 * c + 1] = (3 * c + 1) * width, 3 * c * width
                    for k in range(count):
                        values = spectra[(begin + k * groups - origin) * channels + c, at : at + 2 * lanes]
                        place = np.uintp(k * lanes)
                        for lane in range(np.uintp(lanes)):
                            re, im = values[lane], values[lane + np.uintp(lanes)]
                            line[place + lane] = -im
                            line[place + lane + np.uintp(width)] = re
                            line[place + lane + np.uintp(2 * width)] = im
                sums[: 2 * width * outputs] = 0
                for o in range(0, outputs, tile):
                    multiply_tile(sums, 2 * o * width, 2 * width, panel, offsets, 2 * channels, weights[g, f],
                                  2 * o * channels, min(tile, outputs - o), 2 * width)  # fmt: skip
                for o in range(outputs):
                    for k in range(count):
                        values = results[(begin + k * groups - origin) * outputs + o, at : at + 2 * lanes]
                        place = np.uintp(2 * o * width + k * lanes)
                        for lane in range(np.uintp(lanes)):
                            values[lane] = sums[place + lane]
                            values[lane + np.uintp(lanes)] = sums[place + lane + np.uintp(width)]
                begin += count * groups


forward, inverse, multiply = Kernel(_forward), Kernel(_inverse), Kernel(_multiply)
interleave, contract = Kernel(_interleave), Kernel(_contract)
