"""Tasks of some pixels of a plane by some output channels: which is which, and how their sums become results."""

from __future__ import annotations

from typing import NamedTuple

from fastconv.cpu.jit import inline
from fastconv.cpu.rows import add_row, write_row
from fastconv.cpu.transpose import transpose_block


class Task(NamedTuple):
    """What a task computes: of an image, group and plane, from which output, row and column on, and how many."""

    n: int
    g: int
    d: int
    o: int
    h: int
    w: int
    channels: int
    rows: int
    columns: int


@inline
def locate(number, geo, block):  # type: ignore[no-untyped-def]
    """The task of that number."""
    rest, o_block = divmod(number, block.blocks[0])
    rest, w_block = divmod(rest, block.blocks[2])
    rest, h_block = divmod(rest, block.blocks[1])
    rest, d = divmod(rest, geo.count[0])
    n, g = divmod(rest, geo.groups)
    o, h, w = o_block * block.channels, h_block * block.rows, w_block * block.columns
    channels, rows = min(block.channels, geo.out_channels - o), min(block.rows, geo.count[1] - h)
    return Task(n, g, d, o, h, w, channels, rows, min(block.columns, geo.count[2] - w))


@inline
def write_task(task, block, memory, y, residual, activation, parameters, half):  # type: ignore[no-untyped-def]
    """Write the results of a task, whose sums lie in rows of channels or of pixels.

    Channels first needs rows of pixels: others are turned, a vector of channels at a time.
    """
    lanes, pitch, nothing = block.lanes, block.pitch, memory.dtype.type(0)
    pixels, channels_last = (task.rows - 1) * block.columns + task.columns, block.channels_last
    turned = not block.across_pixels and not channels_last
    line, lines_at = -(-block.rows * block.columns // lanes) * lanes, block.sums + block.start
    for o in range(0, task.channels, task.channels if channels_last else lanes):
        for p in range(0, pixels if turned else 0, lanes):
            transpose_block(memory, p * pitch + o, pitch, memory, lines_at + p, line)
        parts = task.columns if channels_last else min(lanes, task.channels - o)
        for i in range(task.rows * parts):
            if channels_last:
                row, column = divmod(i, task.columns)
                at, h, w = (row * block.columns + column) * pitch, task.h + row, task.w + column
                results = y[task.n, task.g, task.o : task.o + task.channels, task.d, h, w]
                added = residual[task.n, task.g, task.o : task.o + task.channels, task.d, h, w]
            else:
                channel, row = divmod(i, task.rows)
                at = lines_at + channel * line if turned else (o + channel) * pitch
                at, h, c = at + row * task.columns, task.h + row, task.o + o + channel
                results = y[task.n, task.g, c, task.d, h, task.w : task.w + task.columns]
                added = residual[task.n, task.g, c, task.d, h, task.w : task.w + task.columns]
            done = memory[at : at + results.shape[0]]
            if residual.shape[0] > 0:
                add_row(done, added, half)
            write_row(done, nothing, activation, parameters, half, results)
