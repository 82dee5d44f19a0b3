"""How kn2row is cut into tasks: some rows of a plane, which share what is staged, by some output channels."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.microkernel import TILE_VECTORS, odd_lines, padded, tile_pixels
from fastconv.cpu.scattered_tile import SPOT
from fastconv.cpu.staging import STAGING, Table, Window, grid
from fastconv.lowering import Correlation
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem
from fastconv.settings import available_cores

_PIXELS = 128  # of a task: what it sees of a block of inputs stays in L2, beside its sums
_INPUTS = 512  # of a block: their weights for a tile of outputs, as large as L1, are used by all listed pixels
_SUMS = 64 << 10  # of a task
_STAGED_ELEMENTS = 1 << 16  # that leave room in L2 for sums
_STAGED = 32  # outputs are multiplied with an element while it is staged
_TASKS = 4  # for a core; more would share the work no better
_USES = 16  # of a weight: with fewer, it comes later than it is wanted
_LATE = 0.15  # of a task, by which some thread is the last

#: How a correlation is cut: tasks of `rows` by `columns` pixels and `channels` outputs, `blocks` of them along
#: channels, height and width; `inputs` channels are multiplied in one go. A tile takes `tile` pixels and columns of
#: outputs; `lanes` are those of a vector. Scratch memory holds `spots`, words of 64 bits; `staged` elements; and
#: `sums`, in rows a `pitch` apart, and what they `start` from. No pixels go across vectors.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("rows", "columns", "channels", "inputs", "across_pixels", "channels_last")]
    + [(name, np.int64) for name in ("lanes", "spots", "staged", "pitch", "sums", "start")]
    + [("tile", np.int64, (2,)), ("blocks", np.int64, (3,)), ("staging", STAGING)]
)


class Cut:
    """How a correlation is cut into tasks.

    Parameters
    ----------
    correlation : Correlation
    problem : ConvProblem
    """

    def __init__(self, correlation: Correlation, problem: ConvProblem) -> None:
        self._correlation = c = correlation
        accumulator = named_dtype(problem.accumulator_dtype)
        self._itemsize = itemsize = accumulator.itemsize
        self._readable = problem.channels_last and problem.dtype == problem.accumulator_dtype
        lanes = vector_bytes() // itemsize
        tile = TILE_VECTORS * lanes
        depth, height, width = c.count
        columns = -(-width // -(-width // _PIXELS))
        rows = -(-height // -(-height // max(_PIXELS // columns, 1)))
        blocks_h, blocks_w = -(-height // rows), -(-width // columns)
        spatial = c.batch * c.groups * depth * blocks_h * blocks_w
        channels = self._channels(spatial, rows * columns, tile)
        window = Window((rows, columns), c.kernel, c.stride, c.dilation)
        most = _INPUTS if self._readable else min(_INPUTS, max(_STAGED_ELEMENTS // max(window.elements, 1), lanes))
        inputs = max(-(-c.in_channels // max(-(-c.in_channels // most), 1)), 1)
        staging = window.staging(inputs, itemsize, channels_last=True, padded=False)
        self.places, self.offsets = staging.places, staging.offsets[: math.prod(c.kernel)]
        block = self.blocking = np.zeros(1, BLOCKING)
        block["rows"], block["columns"], block["channels"], block["inputs"] = rows, columns, channels, inputs
        block["blocks"] = blocks = -(-c.out_channels // channels), blocks_h, blocks_w
        block["channels_last"], block["lanes"], block["tile"] = problem.channels_last, lanes, (tile_pixels(), tile)
        block["staging"], block["staged"] = staging.how, staging.elements
        pixels = padded(rows * columns, itemsize)
        block["spots"], block["pitch"] = SPOT * pixels, odd_lines(channels, itemsize)
        block["start"] = start = padded(channels, itemsize)
        block["sums"] = sums = pixels * int(block["pitch"][0])
        turned = 0 if problem.channels_last else lanes * pixels
        self.tasks = spatial * blocks[0]
        self.image_tasks = self.tasks // c.batch
        self.scratch = SPOT * pixels * 8 // itemsize + staging.elements + sums + start + turned
        self.tables = lru_cache(maxsize=8)(self._tables)
        self.counts = self._count(window, problem.channels_last)

    def _channels(self, spatial: int, pixels: int, tile: int) -> int:
        """Output channels of a task: whole tiles, so many that all threads end soon, and at the same time."""
        outputs, cores = self._correlation.out_channels, available_cores()
        least = -(-outputs // max(_SUMS // pixels // tile * tile, tile))
        staged = 0 if self._readable else _STAGED  # for all outputs, as so many of them more

        def time(blocks: int) -> float:
            channels = -(-outputs // (blocks * tile)) * tile
            tasks = spatial * -(-outputs // channels)
            return (-(-tasks // cores) + _LATE * (1 - 1 / cores)) * (channels + staged)

        blocks = min(range(least, max(least, -(-_TASKS * cores // spatial)) + 1), key=time)
        return min(-(-outputs // (blocks * tile)) * tile, outputs)

    def _tables(self, strides: tuple[int, ...]) -> tuple[bool, Table, Table]:
        """Whether input of those strides is read where it lies, and where pixels and taps then are."""
        c, block = self._correlation, self.blocking[0]
        steps, odd = zip(*(divmod(stride, self._itemsize) for stride in strides[2:]), strict=True)
        if not self._readable or any(odd) or (steps[0] != 1 and c.in_channels > 1):
            return False, self.places, self.offsets
        places = grid((block["rows"], block["columns"]), (c.stride[1] * steps[2], c.stride[2] * steps[3]))
        return True, places, grid(c.kernel, tuple(n * d for n, d in zip(steps[1:], c.dilation, strict=True)))

    def _count(self, window: Window, channels_last: bool) -> dict[str, float]:
        """What it costs: products (those of idle lanes included), tiles, listing pixels, staging, results, tasks."""
        c, block = self._correlation, self.blocking[0]
        images, blocks = c.batch * c.groups, (c.count[0], int(block["blocks"][1]), int(block["blocks"][2]))
        axes = zip(c.count, blocks, c.kernel, c.stride, c.dilation, c.offset, c.size, strict=True)
        samples, used = map(math.prod, zip(*(_samples(*axis) for axis in axes), strict=True))
        seen = images * samples
        outputs = -(-c.out_channels // int(block["lanes"])) * int(block["lanes"])
        rounds = -(-c.in_channels // int(block["inputs"]))
        staged = 0 if self._readable else self.tasks * c.in_channels * window.elements
        results = images * c.positions * c.out_channels
        products, weights = seen * outputs * c.in_channels, images * used * outputs * c.in_channels
        return {
            "product": products,
            "tile": seen * rounds * -(-c.out_channels // int(block["tile"][1])) / tile_pixels(),
            "spot": seen * rounds * int(block["blocks"][0]),
            "staged": staged,
            "result": results,
            "row": results / (c.out_channels if channels_last else int(block["columns"])),
            "weight": weights,
            "late weight": max(weights - products / _USES, 0),
            "task": self.tasks,
        }


def _samples(
    count: int, blocks: int, kernel: int, stride: int, dilation: int, offset: int, size: int
) -> tuple[int, int]:
    """Along an axis, how often taps of positions meet a sample, and how often taps of blocks of positions do."""
    first, block = np.arange(kernel) * dilation - offset, -(-count // blocks)
    low, high = np.maximum(-(first // stride), 0), np.minimum(-(-(size - first) // stride), count)  # of positions
    meet = low < high
    return int((high - low)[meet].sum()), int(((high - 1) // block - low // block + 1)[meet].sum())
