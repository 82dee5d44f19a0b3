"""Depthwise and grouped convolution where the vectors lie along the row: planes staged one by one."""

from __future__ import annotations

from fastconv.cpu.copying import convert_planes, gather_planes, split_planes, weave_planes
from fastconv.cpu.depthwise_cut import task_of
from fastconv.cpu.depthwise_tile import convolve_strip
from fastconv.cpu.elements import CLIP, resolve
from fastconv.cpu.jit import inline
from fastconv.cpu.rows import add_row, inside, read_row, write_row


@inline
def stage_planes(  # type: ignore[no-untyped-def]
    x, n, first, groups, d, start_h, start_w, rows, columns, geo, block, slot, half, scratch
):  # fmt: skip
    """Stage `rows` by `columns` padded elements of every (channel, kd) of some groups; zeros are there already."""
    mode, step = geo.padding_mode, geo.stride[2]
    low_h, high_h = inside(start_h, 1, geo.size[1], rows)
    low_w, high_w = inside(start_w, 1, geo.size[2], columns)
    in_vectors = mode == 0 and step <= 2 and x.strides[5] == x.itemsize
    gathered = mode == 0 and not in_vectors and x.itemsize == scratch.itemsize
    corner = n * x.strides[0] + (start_h + low_h) * x.strides[4] + (start_w + low_w) * x.strides[5]
    to = low_h * block.row + low_w % step * block.part + low_w // step
    other = low_h * block.row + (low_w + 1) % step * block.part + (low_w + 1) // step
    for c in range(geo.in_channels):
        for kd in range(geo.kernel[0]):
            plane = (c * geo.kernel[0] + kd) * block.plane
            source_d = resolve(d * geo.stride[0] + kd * geo.dilation[0] - geo.offset[0], geo.size[0], mode)
            if (in_vectors or gathered) and source_d >= 0:
                begin = corner + first * x.strides[1] + c * x.strides[2] + source_d * x.strides[3]
                if gathered:
                    for part in range(step):
                        low, high = (low_w - part + step - 1) // step, (high_w - part + step - 1) // step
                        gather_planes(
                            scratch, plane + low_h * block.row + part * block.part + low, slot, block.row, x,
                            begin + (part + low * step - low_w) * x.strides[5], x.strides[1], x.strides[4],
                            step * x.strides[5], groups, high_h - low_h, high - low,
                        )  # fmt: skip
                elif step == 1:
                    convert_planes(
                        scratch, plane + to, slot, block.row, x, begin, x.strides[1], x.strides[4], groups,
                        high_h - low_h, high_w - low_w, half,
                    )  # fmt: skip
                else:
                    split_planes(
                        scratch, plane + to, other - to, slot, block.row, x, begin, x.strides[1], x.strides[4],
                        groups, high_h - low_h, high_w - low_w, 2, half,
                    )  # fmt: skip
            elif not (in_vectors or gathered):
                for i in range(groups):
                    for h in range(rows):
                        source_h = resolve(start_h + h, geo.size[1], mode)
                        for part in range(min(step, columns)):
                            at = i * slot + plane + h * block.row + part * block.part
                            staged = scratch[at : at + (columns - part + step - 1) // step]
                            if source_d < 0 or source_h < 0:
                                staged[:] = 0
                            else:
                                row = x[n, first + i, c, source_d, source_h]
                                read_row(row, start_w + part, step, mode, half, staged)


def convolve_planes(  # type: ignore[no-untyped-def]
    first, last, x, weights, y, bias, residual, geometry, blocking, strips, table, half, activation, parameters, scratch
):  # fmt: skip
    """Compute tasks `first` to `last`; `weights` is (G, taps of all phases), and `residual` may have no elements."""
    geo, block = geometry[0], blocking[0]
    lanes, size, high, wide = block.lanes, scratch.itemsize, block.grid[0], block.grid[1]
    finished = residual.shape[0] == 0 and activation <= CLIP and y.strides[5] == y.itemsize
    in_vectors = finished and wide == 1
    in_place = in_vectors and half == 0
    woven = finished and half == 0 and (wide == 2 or wide == 4)
    clipped = activation == CLIP and (in_vectors or woven)
    # A tile has so many rows, and spans so many results of each; `line` is the length of a row of sums.
    y_row = y_pitch = high * y.strides[4]
    tall, span, line = strips[0].height, lanes, block.sums_pitch
    if block.along:
        tall, span, line, y_pitch = 1, strips[0].height * lanes, block.sums_step, lanes * y.itemsize
    known = -1
    for task in range(first, last):
        place, n, g_first, groups, d, h, w, rows, columns = task_of(task, geo, block)
        if place != known:
            known = place
            scratch[: block.sums] = 0
        if weights.shape[1] > 0:
            stage_planes(
                x, n, g_first, groups, d, h * geo.stride[1] - geo.offset[1], w * geo.stride[2] - geo.offset[2],
                (rows - 1) * geo.stride[1] + (geo.kernel[1] - 1) * geo.dilation[1] + 1,
                (columns - 1) * geo.stride[2] + (geo.kernel[2] - 1) * geo.dilation[2] + 1,
                geo, block, strips[0].slot, half, scratch,
            )  # fmt: skip
        tiles = (columns + span - 1) // span
        # What a vector writes past a short row is overwritten by the next row, or the next plane of the task, if that
        # is where they begin and planes are no shorter.
        followed = in_place and not block.along and columns < lanes <= rows * columns and geo.out_channels == high == 1
        followed = followed and y.strides[4] == columns * size and y.strides[1] == rows * y.strides[4]
        corner = n * y.strides[0] + g_first * y.strides[1] + d * y.strides[3] + w * wide * y.strides[5]
        ends = min((w + columns) * wide, y.shape[5])
        for o in range(geo.out_channels):
            for i in range(high):
                here = max(min(rows, (y.shape[4] - i + high - 1) // high - h), 0)
                begin, bias_at = (
                    corner + o * y.strides[2] + (h * high + i) * y.strides[4],
                    g_first * geo.out_channels + o,
                )
                for j in range(wide):
                    strip = i * wide + j
                    tap = g_first * weights.shape[1] + strips[strip].weights + o * strips[strip].taps
                    for r in range(0, here, tall):
                        to, staged = begin + r * y_row, r * geo.stride[1] * block.row
                        direct = columns // span if in_place and r + tall <= here else 0  # tiles of whole vectors
                        done = groups - 1 if followed and here == tall else 0
                        if direct > 0 or done > 0:
                            convolve_strip(
                                y, to, y.strides[1], y_pitch, span * size, scratch, staged,
                                groups if direct > 0 else done, max(direct, 1), strips, strip, table, weights, tap,
                                bias, bias_at, parameters, clipped,
                            )  # fmt: skip
                        if direct < tiles:
                            sums = block.sums + j * block.sums_phase + r * line + direct * span
                            convolve_strip(
                                scratch, sums * size, block.sums_slot * size, block.sums_pitch * size, span * size,
                                scratch, staged + direct * strips[0].step + done * strips[0].slot, groups - done,
                                tiles - direct, strips, strip, table, weights, tap + done * strips[0].group_weights,
                                bias, bias_at + done * strips[0].group_biases, parameters, clipped,
                            )  # fmt: skip
                            if in_vectors:
                                convert_planes(
                                    y, (to + done * y.strides[1]) // y.itemsize + direct * span,
                                    y.strides[1] // y.itemsize, y_row // y.itemsize, scratch, sums * size,
                                    block.sums_slot * size, line * size, groups - done, min(tall, here - r),
                                    columns - direct * span, half,
                                )  # fmt: skip
                if woven:
                    weave_planes(
                        y, begin // size, y.strides[1] // size, y_row // size, scratch,
                        block.sums * size, block.sums_phase * size, block.sums_slot * size, line * size, groups, here,
                        ends - w * wide, wide,
                    )  # fmt: skip
                if in_vectors or woven:
                    continue
                for j in range(wide):
                    length = (ends - j + wide - 1) // wide - w
                    for k in range(groups):
                        for row in range(here):
                            at = block.sums + j * block.sums_phase + k * block.sums_slot + row * line
                            done = scratch[at : at + length]
                            at_h = (h + row) * high + i
                            if residual.shape[0] > 0:
                                added = residual[n, g_first + k, o, d, at_h, w * wide + j : ends : wide]
                                add_row(done, added, half)
                            target = y[n, g_first + k, o, d, at_h, w * wide + j : ends : wide]
                            write_row(done, scratch.dtype.type(0), activation, parameters, half, target)
