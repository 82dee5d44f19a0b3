"""Depthwise convolution where the vectors hold neighbouring channels: arrays with channels last.

A staged plane has a vector for each pixel. Rows of pixels have no tails and strides need no care; each tap has a vector
of weights. Groups of as many channels in as out, a power of two of them, are a depthwise convolution too, in which
every output channel is a group of its own. Of the C inputs of each, the tile takes number c from the vector of all of
them, and spreads it over the lanes of the outputs that read it.

What is staged is read once for each tap, but written and read once more. With a stride, or in rows of three taps, the
windows share so little that it does not pay: tiles that see no padding read the input where it lies, pixel by pixel all
vectors of a task, so that each cache line is used whole when it comes. Only a frame of tiles around them is staged.
"""

from __future__ import annotations

from fastconv.cpu.copying import convert_planes, copy_planes, deal_pixels
from fastconv.cpu.depthwise_cut import task_of
from fastconv.cpu.depthwise_tile import convolve_strip
from fastconv.cpu.elements import CLIP, load, resolve
from fastconv.cpu.jit import inline
from fastconv.cpu.panels import flat_memory
from fastconv.cpu.rows import add_row, inside, write_row


@inline
def stage_pixels(  # type: ignore[no-untyped-def]
    x, n, first, slots, d, start_h, start_w, h_first, h_last, w_first, w_last, geo, block, slot, half, weights, scratch
):  # fmt: skip
    """Stage some rows and columns of padded pixels of every kd for some vectors of channels; zeros are there."""
    mode, lanes, inner = geo.padding_mode, block.lanes, geo.in_channels
    low_h, high_h = inside(start_h, 1, geo.size[1], h_last)
    low_w, high_w = inside(start_w, 1, geo.size[2], w_last)
    low_h, low_w = max(low_h, h_first), max(low_w, w_first)
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
        for h in range(h_first, h_last):
            source_h = resolve(start_h + h, geo.size[1], mode)
            for w in range(w_first, w_last):
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
    """Compute tasks `first` to `last`; `weights` is (vectors of G, taps, lanes), `residual` may have no elements.

    A second strip, if there is one, reads the input where it lies: it has pixels for groups, and groups for tiles.
    """
    geo, block = geometry[0], blocking[0]
    lanes, height, size = block.lanes, strips[0].height, scratch.itemsize
    slot, pitch = strips[0].slot, strips[0].pitch
    taps = weights.shape[1]
    reach_h, reach_w = (geo.kernel[1] - 1) * geo.dilation[1] + 1, (geo.kernel[2] - 1) * geo.dilation[2] + 1
    clipped = activation == CLIP
    in_vectors = residual.shape[0] == 0 and activation <= CLIP and y.strides[1] == y.itemsize
    in_place = in_vectors and half == 0
    y_pitch, y_step = (y.strides[5], y.strides[4]) if block.along else (y.strides[4], y.strides[5])
    lines, known = flat_memory(x, scratch), (-1, -1, -1, -1, -1)
    for task in range(first, last):
        _, n, slot_first, slots, d, h, w, rows, columns = task_of(task, geo, block)
        g_first = slot_first * lanes
        groups = min(slots * lanes, geo.groups - g_first)
        corner = (
            n * y.strides[0] + g_first * y.strides[1] + d * y.strides[3] + h * y.strides[4] + w * y.strides[5]
        )  # fmt: skip
        first_d = d * geo.stride[0] - geo.offset[0]
        first_h, first_w = h * geo.stride[1] - geo.offset[1], w * geo.stride[2] - geo.offset[2]
        down, across = (columns, rows) if block.along else (rows, columns)

        # Zeros of padding stay for tasks that see them at the same places.
        low_h, high_h = inside(first_h, 1, geo.size[1], (rows - 1) * geo.stride[1] + reach_h)
        low_w, high_w = inside(first_w, 1, geo.size[2], (columns - 1) * geo.stride[2] + reach_w)
        image = first_d, low_h, high_h, low_w, high_w
        # Tiles that see no padding are computed from the input itself, and the frame around them from staged pixels.
        top = bottom = left = right = 0
        if in_place and strips.shape[0] > 1 and groups % lanes == 0:
            top, bottom, left, right = _unpadded(first_d, first_h, first_w, rows, columns, height, geo, block)
        for row in range(top, bottom, height):
            r = min(row, bottom - height)  # the last tile may overlap the one before
            seen = n * x.strides[0] + g_first * x.strides[1] + first_d * x.strides[3]
            seen = (seen + first_h * x.strides[4] + first_w * x.strides[5]) // size
            convolve_strip(
                y, corner + r * y_pitch + left * y_step, y_step, y_pitch, lanes * size, lines,
                seen + r * strips[1].pitch + left * strips[1].slot, right - left, groups // lanes, strips, 1, table,
                weights, slot_first * taps * lanes, bias, g_first, parameters, clipped,
            )  # fmt: skip

        frame = (0, top, 0, across), (bottom, down, 0, across), (top, bottom, 0, left), (top, bottom, right, across)
        for r_first, r_last, j_first, j_last in frame:
            if r_first >= r_last or j_first >= j_last:
                continue
            if block.padded and image != known:
                known = image
                scratch[: block.sums] = 0
            h_first, h_last, w_first, w_last = r_first, r_last, j_first, j_last
            if block.along:
                h_first, h_last, w_first, w_last = j_first, j_last, r_first, r_last
            if taps > 0:
                stage_pixels(
                    x, n, slot_first, slots, d, first_h, first_w, h_first * geo.stride[1],
                    (h_last - 1) * geo.stride[1] + reach_h, w_first * geo.stride[2],
                    (w_last - 1) * geo.stride[2] + reach_w, geo, block, slot, half, weights, scratch,
                )  # fmt: skip
            for row in range(r_first, r_last, height):
                r = min(row, max(r_last - height, r_first))
                staged, to = r * pitch + j_first * strips[0].step, corner + r * y_pitch + j_first * y_step
                whole = groups // lanes if in_place and r + height <= r_last else 0
                if whole > 0:
                    convolve_strip(
                        y, to, lanes * size, y_pitch, y_step, scratch, staged, whole, j_last - j_first, strips,
                        0, table, weights, slot_first * taps * lanes, bias, g_first, parameters, clipped,
                    )  # fmt: skip
                for i in range(whole, slots):
                    g, here = g_first + i * lanes, min(lanes, groups - i * lanes)
                    copy_planes(scratch, block.bias, 0, 0, bias, g * size, 0, 0, 1, 1, here)
                    sums = block.sums + i * block.sums_slot + r * block.sums_pitch
                    convolve_strip(
                        scratch, sums * size, 0, block.sums_pitch * size, block.sums_step * size, scratch,
                        i * slot + staged, 1, j_last - j_first, strips, 0, table, weights,
                        (slot_first + i) * taps * lanes, scratch, block.bias, parameters, clipped and in_vectors,
                    )  # fmt: skip
                    if in_vectors:
                        convert_planes(
                            y, (to + i * lanes * y.itemsize) // y.itemsize, y_pitch // y.itemsize,
                            y_step // y.itemsize, scratch, sums * size, block.sums_pitch * size,
                            block.sums_step * size, min(height, r_last - r), j_last - j_first, here, half,
                        )  # fmt: skip
                        continue
                    for k in range(min(height, r_last - r)):
                        for j in range(j_last - j_first):
                            at = sums + k * block.sums_pitch + j * block.sums_step
                            at_h, at_w = (h + j, w + r + k) if block.along else (h + r + k, w + j)
                            pixel = scratch[at : at + here]
                            if residual.shape[0] > 0:
                                add_row(pixel, residual[n, g : g + here, 0, d, at_h, at_w], half)
                            target = y[n, g : g + here, 0, d, at_h, at_w]
                            write_row(pixel, scratch.dtype.type(0), activation, parameters, half, target)


@inline
def _unpadded(first_d, first_h, first_w, rows, columns, height, geo, block):  # type: ignore[no-untyped-def]
    """The rows (from, to), at least those of a tile, and the places along them whose windows lie within the image."""
    depth = first_d + (geo.kernel[0] - 1) * geo.dilation[0]
    reach_h, reach_w = (geo.kernel[1] - 1) * geo.dilation[1], (geo.kernel[2] - 1) * geo.dilation[2]
    low_h, high_h = inside(first_h, geo.stride[1], geo.size[1] - reach_h, rows)
    low_w, high_w = inside(first_w, geo.stride[2], geo.size[2] - reach_w, columns)
    if block.along:
        low_h, high_h, low_w, high_w, rows = low_w, high_w, low_h, high_h, columns
    if high_h < rows:  # tiles of the rows below are to end within what is staged
        high_h = high_h // height * height
    if first_d < 0 or depth >= geo.size[0] or high_h - low_h < height or low_w == high_w:
        return 0, 0, 0, 0
    return low_h, high_h, low_w, high_w
