"""Depthwise convolution where the vectors hold neighbouring channels: arrays with channels last, read in place.

A staged plane has a vector for each pixel. Rows of pixels have no tails and strides need no care; each tap has a vector
of weights. Groups of as many channels in as out, a power of two of them, are a depthwise convolution too, in which
every output channel is a group of its own. Of the C inputs of each, the tile takes number c from the vector of all of
them, and spreads it over the lanes of the outputs that read it.
"""

from __future__ import annotations

from fastconv.cpu.copying import convert_planes, copy_planes, deal_pixels
from fastconv.cpu.depthwise_cut import task_of
from fastconv.cpu.depthwise_tile import convolve_strip
from fastconv.cpu.elements import CLIP, load, resolve
from fastconv.cpu.jit import inline
from fastconv.cpu.rows import add_row, inside, write_row


@inline
def stage_pixels(  # type: ignore[no-untyped-def]
    x, n, first, slots, d, start_h, start_w, rows, columns, geo, block, slot, half, weights, scratch
):  # fmt: skip
    """Stage `rows` by `columns` padded pixels of every kd for some vectors of channels; zeros are there."""
    mode, lanes, inner = geo.padding_mode, block.lanes, geo.in_channels
    low_h, high_h = inside(start_h, 1, geo.size[1], rows)
    low_w, high_w = inside(start_w, 1, geo.size[2], columns)
    in_vectors = mode == 0 and x.strides[1] == inner * x.itemsize
    in_vectors = in_vectors and (inner == 1 or x.strides[2] == x.itemsize)
    lane = first * lanes
    here = min(slots * lanes, geo.groups - lane)
    corner = n * x.strides[0] + lane * x.itemsize + start_h * x.strides[4] + (start_w + low_w) * x.strides[5]
    for kd in range(geo.kernel[0]):
        source_d = resolve(d * geo.stride[0] + kd * geo.dilation[0] - geo.offset[0], geo.size[0], mode)
        if in_vectors:
            for h in range(low_h, high_h if source_d >= 0 else low_h):
                deal_pixels(
                    scratch, kd * block.plane + h * block.row + low_w * block.pixel, slot, block.pixel, x,
                    corner + source_d * x.strides[3] + h * x.strides[4], x.strides[5], high_w - low_w, here, half,
                    weights,
                )  # fmt: skip
            continue
        for h in range(rows):
            source_h = resolve(start_h + h, geo.size[1], mode)
            for w in range(columns):
                source_w = resolve(start_w + w, geo.size[2], mode)
                at = kd * block.plane + h * block.row + w * block.pixel
                for i in range(here):
                    g, c = divmod(lane + i, inner)
                    to = at + i // lanes * slot + c * (lanes // inner) + i % lanes // inner
                    if source_d < 0 or source_h < 0 or source_w < 0:
                        scratch[to] = 0
                    else:
                        scratch[to] = load(x[n, g, c, source_d, source_h, source_w], half)


def convolve_pixels(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, strips, table, half, activation, parameters, scratch
):  # fmt: skip
    """Compute tasks `first` to `last`; `weights` is (vectors of G, taps, lanes), `residual` may have no elements."""
    geo, block = geometry[0], blocking[0]
    lanes, height, size = block.lanes, strips[0].height, scratch.itemsize
    slot, pitch = strips[0].slot, strips[0].pitch
    taps = weights.shape[1]
    clipped = activation == CLIP
    in_vectors = residual.shape[0] == 0 and activation <= CLIP and y.strides[1] == y.itemsize
    in_place = in_vectors and half == 0
    y_pitch, y_step = (y.strides[5], y.strides[4]) if block.along else (y.strides[4], y.strides[5])
    known = -1
    for task in range(first, last):
        place, n, slot_first, slots, d, h, w, rows, columns = task_of(task, geo, block)
        if place != known:
            known = place
            scratch[: block.sums] = 0
        if taps > 0:
            stage_pixels(
                x, n, slot_first, slots, d, h * geo.stride[1] - geo.offset[1], w * geo.stride[2] - geo.offset[2],
                (rows - 1) * geo.stride[1] + (geo.kernel[1] - 1) * geo.dilation[1] + 1,
                (columns - 1) * geo.stride[2] + (geo.kernel[2] - 1) * geo.dilation[2] + 1,
                geo, block, slot, half, weights, scratch,
            )  # fmt: skip
        g_first = slot_first * lanes
        groups = min(slots * lanes, geo.groups - g_first)
        corner = (
            n * y.strides[0] + g_first * y.strides[1] + d * y.strides[3] + h * y.strides[4] + w * y.strides[5]
        )  # fmt: skip
        down, across = (columns, rows) if block.along else (rows, columns)
        for r in range(0, down, height):
            whole = groups // lanes if in_place and r + height <= down else 0
            if whole > 0:
                convolve_strip(
                    y, corner + r * y_pitch, lanes * size, y_pitch, y_step, scratch, r * pitch, whole, across, strips,
                    0, table, weights, slot_first * taps * lanes, bias, g_first, parameters, clipped,
                )  # fmt: skip
            for i in range(whole, slots):
                g, here = g_first + i * lanes, min(lanes, groups - i * lanes)
                copy_planes(scratch, block.bias, 0, 0, bias, g * size, 0, 0, 1, 1, here)
                sums = block.sums + i * block.sums_slot + r * block.sums_pitch
                convolve_strip(
                    scratch, sums * size, 0, block.sums_pitch * size, block.sums_step * size, scratch,
                    i * slot + r * pitch, 1, across, strips, 0, table, weights, (slot_first + i) * taps * lanes,
                    scratch, block.bias, parameters, clipped and in_vectors,
                )  # fmt: skip
                if in_vectors:
                    convert_planes(
                        y, (corner + i * lanes * y.itemsize + r * y_pitch) // y.itemsize, y_pitch // y.itemsize,
                        y_step // y.itemsize, scratch, sums * size, block.sums_pitch * size, block.sums_step * size,
                        min(height, down - r), across, here, half,
                    )  # fmt: skip
                    continue
                for row in range(min(height, down - r)):
                    for j in range(across):
                        at = sums + row * block.sums_pitch + j * block.sums_step
                        at_h, at_w = (h + j, w + r + row) if block.along else (h + r + row, w + j)
                        pixel = scratch[at : at + here]
                        if residual.shape[0] > 0:
                            add_row(pixel, residual[n, g : g + here, 0, d, at_h, at_w], half)
                        target = y[n, g : g + here, 0, d, at_h, at_w]
                        write_row(pixel, scratch.dtype.type(0), activation, parameters, half, target)
