"""The compiled part of Winograd convolution: see `winograd`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.elements import load, resolve
from fastconv.cpu.jit import TaskKernel, array, generic, inline, integer, records
from fastconv.cpu.microkernel import multiply_pixels
from fastconv.cpu.rows import add_row, inside, write_pixels, write_row
from fastconv.cpu.transpose import transpose_block
from fastconv.cpu.weight_tiles import arrange
from fastconv.cpu.winograd_transforms import transform_input, transform_output, transform_weights
from fastconv.lowering import GEOMETRY

#: How a correlation is cut: `blocks` tasks along channels, columns and rows, of so many output `channels`, `columns` of
#: tiles and an even share of their rows; of those `run` are staged at once, and `inputs` channels are transformed at
#: once, a `group` after another. Vectors have `lanes`; the register tile takes a `tile` of channels. Windows lie a
#: `pitch` apart and components a `plane`, of inputs and of sums. Weights are transformed `ahead`, or by the task:
#: components then lie `weights` apart. It also arranges them, a `chunk` of inputs at once, unless that is 0. Scratch
#: memory has `parts`; a `line` of it holds a row.
BLOCKING = np.dtype(
    [
        (name, np.int64)
        for name in ("channels", "columns", "run", "inputs", "group", "lanes", "tile", "line", "ahead", "chunk")
    ]
    + [("weights", np.int64)]
    + [(name, np.int64, (2,)) for name in ("window", "outputs", "tiles", "pitch", "plane")]
    + [("blocks", np.int64, (3,)), ("parts", np.int64, (10,))]
)
_STAGED, _HALF_WAY, _DONE, _LINES, _BIAS, _INPUTS, _ZEROS, _SUMS, _WEIGHTS, _TAPS = range(10)
CHUNK = 16  # lines whose weights are transformed at once


@inline
def _image(index, geo, tiles):  # type: ignore[no-untyped-def]
    """Image, depth, residues and row of tiles of the row of tiles number `index`."""
    rest, tile = divmod(index, tiles)
    rest, residue_w = divmod(rest, min(geo.dilation[2], geo.count[2]))
    rest, residue_h = divmod(rest, min(geo.dilation[1], geo.count[1]))
    n, d = divmod(rest, geo.count[0])
    return n, d, residue_h, residue_w, tile


@inline
def _clear(values, first, last):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        values[i] = 0


@inline
def _left(count, residue, dilation, first):  # type: ignore[no-untyped-def]
    """Outputs of a residue class from number `first` of them on."""
    return (count - residue + dilation - 1) // dilation - first


@generic
def _stage_inside(plane, first, step, length, channels, staged, at, group, lanes):  # type: ignore[no-untyped-def]
    """Stage what is inside of ``plane (C, W)`` in vectors, the last of which overlap others; whether that is done."""
    if plane.dtype != staged.dtype:
        return lambda plane, first, step, length, channels, staged, at, group, lanes: False

    def stage(plane, first, step, length, channels, staged, at, group, lanes):  # type: ignore[no-untyped-def]
        apart_c, apart_w = plane.strides[0] // plane.itemsize, plane.strides[1] // plane.itemsize
        if channels < lanes:
            return False
        last = channels - lanes
        if apart_c == 1:
            begin = first * apart_w
            transform_input(1, 1, staged, at, 0, group, plane, begin, 0, step * apart_w, length, channels // lanes)
            if channels % lanes:
                transform_input(1, 1, staged, at + last, 0, group, plane, begin + last, 0, step * apart_w, length, 1)
            return True
        if apart_w != 1 or step != 1 or length < lanes:
            return False
        for w in range(0, length, lanes):
            from_w = min(w, length - lanes)
            for c in range(0, channels, lanes):
                from_c = min(c, last)
                transpose_block(
                    plane, from_c * apart_c + first + from_w, apart_c, staged, at + from_w * group + from_c, group
                )
        return True

    return stage


@inline
def _stage_row(plane, first, step, mode, half, needed, channels, group, lanes, staged, at, width):  # type: ignore[no-untyped-def]
    """Bring a padded row of ``plane (C, W)`` into ``staged (width, group)``; zeros beyond what is needed."""
    size = plane.shape[1]
    low, high = inside(first, step, size, needed)
    done = _stage_inside(plane, first + low * step, step, high - low, channels, staged, at + low * group, group, lanes)
    w = 0
    while w < width:
        if w == low < high and done:
            w = high
            continue
        source = -1 if w >= needed else resolve(first + w * step, size, mode)
        for c in range(channels):
            if source < 0:
                staged[at + w * group + c] = 0
            else:
                staged[at + w * group + c] = load(plane[c, source], half)
        w += 1


def _winograd(  # type: ignore[no-untyped-def]
    first, last, x, weights, as_they_lie, table, y, bias, residual, failed, geometry, blocking, offsets, places, half,
    activation, parameters, scratch,
):  # fmt: skip
    """Compute tasks `first` to `last`.

    `weights` are as :func:`_pack` makes them, or takes them if they are not transformed ahead; or the task takes them
    `as_they_lie` ``(G, O, C, taps)``, and arranges them with the help of the table. `bias` and `residual` may have no
    elements. A line is one depth of an input channel. What is not finite spoils its whole tile, and so may
    an overflow: a row of tiles with such outputs is not written, and its number of channels goes to ``failed (rows,
    columns, G, vectors of O)``.
    """
    geo, block = geometry[0], blocking[0]
    window_h, window_w, m_h, m_w = block.window[0], block.window[1], block.outputs[0], block.outputs[1]
    kernel_d, kernel_h, kernel_w = geo.kernel[0], geo.kernel[1], geo.kernel[2]
    dilation_h, dilation_w, mode = geo.dilation[1], geo.dilation[2], geo.padding_mode
    components, lanes, group = window_h * window_w, block.lanes, block.group
    pitch, plane, sums_pitch, sums_plane = block.pitch[0], block.plane[0], block.pitch[1], block.plane[1]
    all_lines, depth_pitch = geo.in_channels * kernel_d, pitch // kernel_d
    padded_channels = -(-geo.out_channels // lanes) * lanes
    tiles_h, tiles_w = block.tiles[0], block.tiles[1]
    all_rows = geo.batch * geo.count[0] * min(dilation_h, geo.count[1]) * min(dilation_w, geo.count[2]) * tiles_h
    staged, half_way = scratch[block.parts[_STAGED] :], scratch[block.parts[_HALF_WAY] :]
    done, lines, inputs = scratch[block.parts[_DONE] :], scratch[block.parts[_LINES] :], scratch[block.parts[_INPUTS] :]
    bias_of, zeros_at, sums_at = scratch[block.parts[_BIAS] :], block.parts[_ZEROS], block.parts[_SUMS]
    transformed, taps = scratch[block.parts[_WEIGHTS] :], scratch[block.parts[_TAPS] :]
    _clear(scratch, zeros_at, sums_at)

    for task in range(first, last):
        rest, o_block = divmod(task, block.blocks[0])
        rest, w_block = divmod(rest, block.blocks[1])
        g, r_block = divmod(rest, block.blocks[2])
        o_first, w_first = o_block * block.channels, w_block * block.columns * m_w
        r_first = -(-r_block * all_rows // block.blocks[2])  # tasks differ by no more than a row
        channels = min(block.channels, geo.out_channels - o_first)
        columns = min(block.columns, tiles_w - w_block * block.columns)
        rows = -(-(r_block + 1) * all_rows // block.blocks[2]) - r_first
        tiles = rows * columns
        width = columns * m_w + kernel_w - 1
        o_tiles = -(-channels // block.tile)

        for c_first in range(0, geo.in_channels, block.inputs):
            here = min(block.inputs, geo.in_channels - c_first)
            r = 0
            while r < rows:
                n, d, residue_h, residue_w, tile_h = _image(r_first + r, geo, tiles_h)
                run = min(block.run, rows - r, tiles_h - tile_h)
                h_first = tile_h * m_h
                needed_h = _left(geo.count[1], residue_h, dilation_h, h_first) + kernel_h - 1
                needed_w = min(_left(geo.count[2], residue_w, dilation_w, w_first) + kernel_w - 1, width)
                start_h = h_first * dilation_h + residue_h - geo.offset[1]
                start_w = w_first * dilation_w + residue_w - geo.offset[2]
                for kd in range(kernel_d):
                    source_d = resolve(d * geo.stride[0] + kd * geo.dilation[0] - geo.offset[0], geo.size[0], mode)
                    for c in range(0, here, group):
                        some = min(group, here - c)
                        vectors = -(-some // lanes)
                        for h in range(run * m_h + kernel_h - 1):
                            source_h = resolve(start_h + h * dilation_h, geo.size[1], mode)
                            at = h * width * group
                            if source_d < 0 or source_h < 0 or h >= needed_h:
                                _clear(staged, at, at + width * group)
                            else:
                                _stage_row(
                                    x[n, g, c_first + c : c_first + c + some, source_d, source_h], start_w, dilation_w,
                                    mode, half, needed_w, some, group, lanes, staged, at, width,
                                )  # fmt: skip
                        for k in range(run):
                            transform_input(
                                window_h, kernel_h, half_way, 0, width * group, group, staged, k * m_h * width * group,
                                width * group, group, width, vectors,
                            )  # fmt: skip
                            to = (r + k) * columns * pitch + kd * depth_pitch + c
                            for i in range(window_h):
                                transform_input(
                                    window_w, kernel_w, inputs, i * window_w * plane + to, plane, pitch, half_way,
                                    i * width * group, group, m_w * group, columns, vectors,
                                )  # fmt: skip
                r += run

            here_lines = here * kernel_d
            for job in range(components * o_tiles):
                # Weights transformed before are used component by component, others as soon as they are transformed.
                f, o_tile = divmod(job, o_tiles) if block.ahead else (job % components, job // components)
                o = o_tile * block.tile
                wide = min(-(-(channels - o) // lanes) * lanes, block.tile)
                first_line = (o_first + o) * all_lines + c_first * kernel_d * wide
                used, weights_at = weights[g], f * padded_channels * all_lines + first_line
                if not block.ahead:
                    used, weights_at = transformed, f * block.weights
                    if f == 0 and block.chunk == 0:
                        _transform_taps(
                            weights[g], first_line * kernel_h * kernel_w, here_lines, kernel_h, kernel_w, wide,
                            window_h, window_w, lanes, transformed, 0, block.weights, half_way,
                        )  # fmt: skip
                    for c in range(0, here if f == 0 and block.chunk > 0 else 0, max(block.chunk, 1)):
                        some = min(block.chunk, here - c)
                        arrange(
                            as_they_lie, g, o_first + o, min(channels - o, wide), c_first + c, c_first + c + some,
                            table, lanes, taps, -(c_first + c) * wide,
                        )  # fmt: skip
                        _transform_taps(
                            taps, 0, some * kernel_d, kernel_h, kernel_w, wide, window_h, window_w, lanes,
                            transformed, c * kernel_d * wide, block.weights, half_way,
                        )  # fmt: skip
                to = sums_at + f * sums_plane + o
                begin, step = (to, sums_pitch) if c_first > 0 else (zeros_at, 0)
                multiply_pixels(
                    scratch, to, sums_pitch, begin, step, inputs[f * plane :], places, 0, offsets, here_lines, used,
                    weights_at, tiles, wide // lanes,
                )  # fmt: skip

        for o in range(0, channels, group):
            some = min(group, channels - o)
            vectors = -(-some // lanes)
            for i in range(some):
                bias_of[i] = (
                    bias[g * geo.out_channels + o_first + o + i] if bias.shape[0] > 0 else bias_of.dtype.type(0)
                )
            for r in range(rows):
                n, d, residue_h, residue_w, tile_h = _image(r_first + r, geo, tiles_h)
                h_first = tile_h * m_h
                high = min(_left(geo.count[1], residue_h, dilation_h, h_first), m_h)
                wide = min(_left(geo.count[2], residue_w, dilation_w, w_first), columns * m_w)
                if high <= 0 or wide <= 0:
                    continue
                at = sums_at + r * columns * sums_pitch + o
                for j in range(window_w):
                    transform_output(
                        window_h, kernel_h, half_way, j * columns * group, window_w * columns * group, group, scratch,
                        at + j * sums_plane, window_w * sums_plane, sums_pitch, columns, vectors,
                    )  # fmt: skip
                row_length = columns * m_w * group
                for k in range(high):
                    transform_output(
                        window_w, kernel_w, done, k * row_length, group, m_w * group, half_way,
                        k * window_w * columns * group, columns * group, group, columns, vectors,
                    )  # fmt: skip
                start_h, start_w = h_first * dilation_h + residue_h, w_first * dilation_w + residue_w
                # Channels beyond those vectors are of another time, and lie between those of pixels.
                runs, run_length = high * columns * m_w, vectors * lanes
                if run_length == group:
                    runs, run_length = 1, high * row_length
                if not _finite(done, runs, group, run_length):
                    failed[r_first + r, w_block, g, (o_first + o) // lanes] = some
                    continue
                stop_w = start_w + (wide - 1) * dilation_w + 1
                for k in range(high):
                    h = start_h + k * dilation_h
                    if y.strides[2] == y.itemsize:  # channels lie side by side there too
                        o_last = o_first + o + some
                        write_pixels(
                            done[k * row_length :], group, bias_of, residual.shape[0] > 0,
                            residual[n, g, o_first + o : o_last, d, h, start_w:stop_w:dilation_w], activation,
                            parameters, half, y[n, g, o_first + o : o_last, d, h, start_w:stop_w:dilation_w],
                        )  # fmt: skip
                        continue
                    for w in range(0, wide, lanes):
                        for i in range(0, some, lanes):
                            transpose_block(
                                done, k * row_length + w * group + i, group, lines, i * block.line + w, block.line
                            )
                    for i in range(some):
                        channel = o_first + o + i
                        row = lines[i * block.line : i * block.line + wide]
                        if residual.shape[0] > 0:
                            add_row(row, residual[n, g, channel, d, h, start_w:stop_w:dilation_w], half)
                        write_row(row, bias_of[i], activation, parameters, half,
                                  y[n, g, channel, d, h, start_w:stop_w:dilation_w])  # fmt: skip


@inline
def _finite(values, runs, pitch, length):  # type: ignore[no-untyped-def]
    """Whether all values are finite in so many runs, which begin a pitch apart."""
    strange = np.uint32(0)
    for run in range(runs):
        part = values[run * pitch : run * pitch + length]
        for i in range(np.uintp(part.shape[0])):
            strange |= np.uint32(part[i] - part[i] != 0)
    return strange == 0


@inline
def _transform_taps(  # type: ignore[no-untyped-def]
    taps, at, lines, kernel_h, kernel_w, wide, window_h, window_w, lanes, target, target_at, plane, scratch
):
    """Transform ``taps[at :] (lines, kernel_h, kernel_w, wide)`` into components ``(lines, wide)`` a `plane` apart."""
    row, volume = kernel_w * wide, kernel_h * kernel_w * wide
    for line in range(0, lines, CHUNK):
        some = min(CHUNK, lines - line)
        for kw in range(kernel_w):
            transform_weights(
                window_h, kernel_h, scratch, kw * wide, row, window_h * row, taps, at + line * volume + kw * wide, row,
                volume, some, wide // lanes,
            )  # fmt: skip
        for i in range(window_h):
            transform_weights(
                window_w, kernel_w, target, target_at + i * window_w * plane + line * wide, plane, wide, scratch,
                i * row, wide, window_h * row, some, wide // lanes,
            )  # fmt: skip


def _pack(  # type: ignore[no-untyped-def]
    first, last, taps, lines, kernel_h, kernel_w, window_h, window_w, lanes, tile, packed, scratch
):  # fmt: skip
    """Transform ``taps (G, O padded * lines * taps)`` into ``packed (G, components * O padded * lines)``.

    A task is a register tile of output channels, of which the taps are (lines * taps, channels), as each component will
    be (lines, channels).
    """
    volume = kernel_h * kernel_w
    channels = taps.shape[1] // (lines * volume)
    for task in range(first, last):
        g, block = divmod(task, -(-channels // tile))
        o = block * tile
        _transform_taps(
            taps[g],
            o * lines * volume,
            lines,
            kernel_h,
            kernel_w,
            min(channels - o, tile),
            window_h,
            window_w,
            lanes,
            packed[g],
            o * lines,
            channels * lines,
            scratch,
        )


_kernel, _pack_kernel = TaskKernel(_winograd), TaskKernel(_pack)


@cache
def compiled(dtype_name: str, result_name: str, accumulator_name: str) -> Any:
    """The kernel."""
    dtype, result, accumulator = map(named_dtype, (dtype_name, result_name, accumulator_name))
    vector = array(accumulator, 1, contiguous=True)
    memory = array(accumulator, 1, contiguous=True, readonly=False)
    matrix = array(accumulator, 2, contiguous=True, readonly=False)
    failed = array(np.dtype(np.uint8), 4, contiguous=True, readonly=False)
    table, places = (array(np.dtype(np.int64), ndim, contiguous=True) for ndim in (1, 2))
    return _kernel.compile(
        array(dtype, 6), matrix, array(accumulator, 4), places, array(result, 6, readonly=False), vector,
        array(result, 6), failed, records(GEOMETRY), records(BLOCKING), table, table, integer, integer, vector, memory,
    )  # fmt: skip


@cache
def compiled_pack(accumulator_name: str) -> Any:
    """The kernel that transforms weights ahead."""
    number = named_dtype(accumulator_name)
    matrix, memory = (array(number, ndim, contiguous=True, readonly=False) for ndim in (2, 1))
    return _pack_kernel.compile(matrix, *[integer] * 7, matrix, memory)
