"""How implicit GEMM is cut into tasks, and what goes across the vector.

A task takes some pixels of a plane and some output channels, which share what it stages and the panels it writes down.
It has few enough pixels and sums for L2, and there are tasks enough for all cores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu.costs import Work
from fastconv.cpu.microkernel import TILE_VECTORS, odd_lines, padded, tile_pixels
from fastconv.cpu.parallel import CACHE_LINE
from fastconv.cpu.staging import STAGING, Table, Window, grid, sees_padding
from fastconv.lowering import Correlation
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem
from fastconv.settings import available_cores

_TAPS = 768  # products added to a tile in one go: with fewer, sums go to memory and back often; more gain nothing
_PIXELS, _MOST_PIXELS = 256, 1024  # of a task: more, if their products are
_PRODUCTS = 1 << 15  # fewer for each output, and there are tasks enough
_STAGED_ELEMENTS = 1 << 16  # what is staged for all outputs leaves room in L2 for weights and sums
_SEEN = 40 << 10  # elements of the input between its first pixel and its last: they stay in L2 for all outputs
_PANELS = 1 << 14  # elements of the panels between which a tile's weights stay in L1
_COPIED_TAPS, _COPIED_PANELS = 384, 1 << 16  # the same where weights are copied: once for as many panels as L2 holds
_COPIED = 128  # weights of an input that are copied together: most of their cache lines are used whole
_WEIGHTS = 20 << 10  # bytes of weights that stay in L1: their tiles are multiplied side by side
_SUMS = 64 << 10  # sums of a task, over all its channels, which share what was staged
_TASKS = 4  # for a core; more would share the work no better
_FEW = 8  # tasks of a core: one more or less shows
_LATE = 0.15  # of a task
_STARTED = 50_000  # multiply-adds in the time in which a task is begun

_SETS, _WAYS = 64, 8  # of L1, which has more ways in some CPUs

_LEAST_VECTORS = 4  # pixels across the vector must be worth so many
# What it costs, in multiply-adds of a vector, to write down an element of a patch, from runs and one by one; to turn
# a result; to stage an element; to arrange a weight.
_PACKED, _GATHERED, _TURNED, _STAGED, _ARRANGED = 0.5, 2.0, 2.0, 1.0, 3.0

#: How a correlation is cut: tasks of `rows` by `columns` pixels and `channels` outputs, `blocks` of them along
#: channels, height and width; `inputs` channels are multiplied in one go. A tile takes `tile` rows of numbers and
#: columns of vectors, a `group` of them side by side; `lanes` are those of a vector. Scratch memory holds `staged`
#: elements; `panels`, those of a group; `copies` of the weights of as many outputs as are copied `together`; `sums`, in
#: rows a `pitch` apart; `start`, what they start from.
BLOCKING = np.dtype(
    [(name, np.int64) for name in ("rows", "columns", "channels", "inputs", "across_pixels", "channels_last")]
    + [(name, np.int64) for name in ("lanes", "staged", "group", "panels", "copies", "together", "pitch")]
    + [(name, np.int64) for name in ("sums", "start")]
    + [("tile", np.int64, (2,)), ("blocks", np.int64, (3,)), ("staging", STAGING)]
)


class Cut:
    """How a correlation is cut into tasks.

    Parameters
    ----------
    correlation : Correlation
    problem : ConvProblem
    unpacked : bool
        Whether weights are other ones in each call, so that a call gains where they need not be arranged.
    """

    def __init__(self, correlation: Correlation, problem: ConvProblem, *, unpacked: bool) -> None:
        self._correlation = c = correlation
        accumulator = named_dtype(problem.accumulator_dtype)
        self._itemsize = itemsize = accumulator.itemsize
        channels_last = problem.channels_last
        self.lanes = vector_bytes() // itemsize
        self.tile = TILE_VECTORS * self.lanes
        padding = sees_padding(c)
        readable = not padding and problem.dtype == problem.accumulator_dtype
        self.across_pixels = across_pixels = not channels_last and self._pixels_are_better(
            c.flat or c, readable, unpacked or problem.op == "input_grad"
        )  # fmt: skip
        # Tiles of pixels take numbers of channels side by side: planes are turned as they are staged.
        self._readable = readable and (across_pixels or channels_last)
        depth, height, width = c.count
        few = min(_PRODUCTS // max(c.reduction, 1), c.batch * c.groups * c.positions // (_FEW * available_cores()))
        self._pixels = max(min(few, _MOST_PIXELS), _PIXELS)
        columns = self._columns(width)
        rows = self._rows(height, columns, CACHE_LINE // itemsize)
        spatial = c.batch * c.groups * depth * -(-height // rows) * -(-width // columns)
        channels = self._channels(c.out_channels, spatial, rows * columns, turned=not (across_pixels or channels_last))
        volume = math.prod(c.kernel)
        copied = across_pixels and problem.op == "input_grad"
        # Weights of a single tile of pixels are used once, and need no place in L1: they go by in one long run.
        taps = _COPIED_TAPS if copied else _TAPS if across_pixels or rows * columns > tile_pixels() else _SUMS
        most = max(taps // max(volume, 1), 1)
        inputs = max(-(-c.in_channels // max(-(-c.in_channels // most), 1)), 1)
        window = Window((rows, columns), c.kernel, c.stride, c.dilation)
        # Squares of fewer channels than a vector has are turned slowly, and few planes are read in long runs.
        side_by_side = not across_pixels and (channels_last or inputs >= self.lanes)
        staging = window.staging(inputs, itemsize, channels_last=side_by_side, padded=padding)
        # Where the pixels of a task, and where the taps of its channels, lie among what is staged.
        self.places, self.offsets = staging.places, staging.offsets
        block = self.blocking = np.zeros(1, BLOCKING)
        block["rows"], block["columns"], block["channels"], block["inputs"] = rows, columns, channels, inputs
        block["blocks"] = blocks = -(-c.out_channels // channels), -(-height // rows), -(-width // columns)
        block["across_pixels"], block["channels_last"] = across_pixels, channels_last
        block["lanes"], block["tile"] = self.lanes, (tile_pixels(), self.tile)
        block["staging"], block["staged"] = staging.how, staging.elements
        self.tasks = spatial * blocks[0]
        self.image_tasks = self.tasks // c.batch
        pixels = padded(rows * columns, itemsize)
        panels, group, turned, copies, together = 0, 1, 0, 0, 1
        if across_pixels:
            panel = max(inputs * volume * self.tile, 1)
            group = max(min((_COPIED_PANELS if copied else _PANELS) // panel, -(-pixels // self.tile)), 1)
            panels, pitch, start = group * panel, odd_lines(pixels, itemsize), channels * self.lanes
            sums = channels * pitch
        else:
            pitch = start = padded(channels, itemsize)
            sums, turned = pixels * pitch, 0 if channels_last else self.lanes * pixels
            if inputs == c.in_channels:  # then weights of tiles side by side follow one another
                group = max(_WEIGHTS // max(inputs * volume * self.tile * itemsize, 1), 1)
        if copied:
            together = max(_COPIED // max(tile_pixels() * volume, 1), 1) * tile_pixels()
            copies = together * volume * inputs
        block["copies"], block["together"] = copies, together
        block["panels"], block["group"], block["pitch"] = panels, group, pitch
        block["sums"], block["start"] = sums, start
        self.scratch = staging.elements + panels + copies + sums + start + turned
        self.tables = lru_cache(maxsize=8)(self._tables)
        self.work = self._count(c, window, problem)

    def _pixels_are_better(self, c: Correlation, readable: bool, unpacked: bool) -> bool:
        """Whether to write patches down costs less than what it spares, each in multiply-adds of a vector per pixel."""
        if c.targets != (slice(None),) * 3 or math.prod(c.count[1:]) < _LEAST_VECTORS * self.lanes:
            return False  # results of a piece lie among those of others
        plane, outputs = math.prod(c.count[1:]), c.out_channels
        idle_pixels = (-plane % self.lanes) * outputs * c.reduction / (plane * self.lanes)
        idle_outputs = (-outputs % self.lanes) * c.reduction / self.lanes
        staged = c.in_channels * math.prod(c.stride) if readable else 0
        packed = c.reduction * (_PACKED if c.stride[2] == 1 else _GATHERED)
        arranged = outputs * c.reduction / max(c.batch * c.positions, 1) if unpacked else 0
        return packed + idle_pixels < outputs * _TURNED + staged * _STAGED + idle_outputs + arranged * _ARRANGED

    def _columns(self, width: int) -> int:
        """Pixels of a task along a row: whole tiles; a long stride brings many elements for each of few taps."""
        c, tile, most = self._correlation, self.tile if self.across_pixels else tile_pixels(), self._pixels
        if not self._readable:
            inputs = min(c.in_channels, max(_TAPS // max(math.prod(c.kernel), 1), 1))
            seen = max(min(c.stride[2], c.kernel[2]) * inputs, 1)
            most = max(min(_STAGED_ELEMENTS // seen, most), self.tile)
        wanted, cores = -(-width // most), available_cores()
        if wanted <= 1:
            return width
        if c.positions == width and wanted < _FEW * cores:  # of a single row no core is to do one task more
            wanted += -wanted % cores
        return -(-width // (wanted * tile)) * tile

    def _rows(self, height: int, columns: int, line: int) -> int:
        """Rows of a task: nearly as many in each; across pixels so that few lanes are idle.

        There are `line` elements in a cache line.
        """
        most = min(max(self._pixels // columns, 1), height)
        if not self.across_pixels:
            # What a long stride leaves between pixels comes into the cache with them, a line of channels each.
            c = self._correlation
            seen = columns * c.stride[1] * c.stride[2] * min(c.in_channels, line)
            most = max(min(most, _SEEN // max(seen, 1)), 1)
            return -(-height // -(-height // most))
        return min(range(most, max(most // 2, 1) - 1, -1), key=lambda rows: self._panels(rows, columns))

    def _panels(self, rows: int, columns: int) -> int:
        """Panels of a plane that is cut into tasks of so many pixels."""
        _, height, width = self._correlation.count
        return sum(
            high * wide * -(-h * w // self.tile)
            for high, h in ((height // rows, rows), (1, height % rows))
            for wide, w in ((width // columns, columns), (1, width % columns))
        )

    def _tables(self, x_strides: tuple[int, ...], w_strides: tuple[int, ...]) -> tuple[Any, ...]:
        """Where input and weights of those strides are, as the kernel takes it: `in_place` to `taps_at`."""
        in_place, places, offsets = self._input_tables(x_strides)
        weights_at = self._weight_tables(w_strides) if self.across_pixels else (-1, places, offsets)
        return in_place, places, offsets, *weights_at

    def _input_tables(self, strides: tuple[int, ...]) -> tuple[bool, Table, Table]:
        """Whether input of those strides is read where it lies, and where pixels and taps then are."""
        c, block = self._correlation, self.blocking[0]
        steps, odd = zip(*(divmod(stride, self._itemsize) for stride in strides[2:]), strict=True)
        # Pixels must lie in order, as they do where rows do not overlap.
        ordered = steps[3] > 0 and steps[2] > (c.size[2] - 1) * steps[3]
        if not self._readable or any(odd) or not ordered or self._crowded(strides[3:]):
            return False, self.places, self.offsets
        places = grid((block["rows"], block["columns"]), (c.stride[1] * steps[2], c.stride[2] * steps[3]))
        taps = (steps[0], *(step * dilation for step, dilation in zip(steps[1:], c.dilation, strict=True)))
        return True, places, grid((block["inputs"], *c.kernel), taps)

    def _crowded(self, strides: Sequence[int]) -> bool:
        """Whether what a tile sees of planes, rows and pixels so many bytes apart crowds into a few sets of L1.

        For each channel it goes through all taps of its pixels, and finds the lines again that the one before was in.
        """
        if self.across_pixels:
            return False
        c, block = self._correlation, self.blocking[0]
        down, along = (stride * step for stride, step in zip(c.stride[1:], strides[1:], strict=True))
        places = grid((block["rows"], block["columns"]), (down, along))[: tile_pixels()]
        taps = grid(c.kernel, tuple(dilation * step for dilation, step in zip(c.dilation, strides, strict=True)))
        lines = np.unique((places[:, None] + taps[: _SETS * _WAYS]) // CACHE_LINE)
        in_sets = np.bincount(lines % _SETS)
        return bool(in_sets[in_sets > _WAYS].sum() > lines.size / 2)

    def _weight_tables(self, strides: tuple[int, ...]) -> tuple[int, Table, Table]:
        """Where outputs and taps are in a weight ``(G, O, C, KD, KH, KW)`` of those strides, or in a copy of its tiles.

        The first number says how far before an output's first tap its taps begin, if those of an input make one run of
        memory, output by output, and are copied; it is -1 if they are not.
        """
        c, block = self._correlation, self.blocking[0]
        steps, volume = [stride // self._itemsize for stride in strides], math.prod(c.kernel)
        inputs, outputs = np.arange(block["inputs"]), np.arange(block["channels"])
        taps = grid(c.kernel, tuple(steps[3:]))
        first = min(taps.tolist(), default=0)
        if block["copies"] and steps[1] == volume and sorted(taps - first) == list(range(volume)):
            run = block["copies"] // block["inputs"]
            return -first, outputs * volume, (inputs[:, None] * run + taps - first).ravel()
        return -1, outputs * steps[1], (inputs[:, None] * steps[2] + taps).ravel()

    def _channels(self, out_channels: int, spatial: int, pixels: int, turned: bool) -> int:
        """Output channels of a task: whole tiles, so many that all threads end soon, and at the same time.

        More tasks share the work more evenly, and bring the input more often. The time is that of as many tasks as a
        core gets, and of a part of one, by which some thread is late.
        """
        c, cores = self._correlation, available_cores()
        # What a task does for all of its channels, as so many channels more.
        per_patch = (_PACKED if c.stride[2] == 1 else _GATHERED) if self.across_pixels else 0.0
        if not self._readable:
            per_patch += (_TURNED if turned else _STAGED) * math.prod(c.stride) / max(math.prod(c.kernel), 1)
        shared = per_patch * self.lanes + _STARTED / max(c.reduction * pixels, 1)
        least = max(-(-out_channels // max(_SUMS // pixels // self.tile * self.tile, self.tile)), 1)
        cuts = (
            max(-(-out_channels // blocks // self.tile), 1) * self.tile
            for blocks in range(least, max(-(-_TASKS * cores // max(spatial, 1)), least) + 1)
        )

        def time(channels: int) -> float:
            tasks = spatial * -(-out_channels // channels)
            return (-(-tasks // cores) + _LATE * (1 - 1 / cores)) * (channels + shared)

        return max(min(min(cuts, key=time), out_channels), 1)

    def _count(self, c: Correlation, window: Window, problem: ConvProblem) -> Work:
        """What it costs: products (those of idle lanes included), tiles, staging, results, tasks."""
        block, channels_last = self.blocking[0], problem.channels_last
        images = c.batch * c.groups * c.positions
        # In a gradient of the weight the channels of its input are images here.
        exchanged = problem.op == "weight_grad"
        pixel = c.groups * (c.batch if exchanged else c.in_channels) * self._itemsize
        contiguous = c.size[1] * c.size[2] * pixel, c.size[2] * pixel, pixel
        in_place = self._readable and not self._crowded(contiguous)
        staged = 0 if in_place else self.tasks * c.in_channels * window.elements
        inputs, row = int(block["inputs"]), window.width
        whole = c.groups == 1 and inputs == c.in_channels and row.step == 1 and c.padding_mode == "zeros"
        side_by_side = 1 if channels_last and not whole else row.span  # pixels whose channels go in one run
        counts = {
            "staged": staged,
            "run": staged / (side_by_side * (inputs if channels_last else 1)),
            # Channels last, the elements of such an image lie in cache lines of their own.
            "scattered": self.tasks * c.in_channels * window.elements if exchanged and channels_last else 0,
            "task": self.tasks,
        }
        weights, panels_of_task = self.tasks * int(block["channels"]) * c.reduction, len(self.places) / self.tile
        if block["copies"]:
            counts["copied"] = weights * math.ceil(panels_of_task / int(block["group"]))
        else:
            counts["weight"] = weights
        rounds = -(-c.in_channels // inputs)
        if self.across_pixels:
            panels = c.batch * c.groups * c.count[0] * self._panels(int(block["rows"]), int(block["columns"]))
            across, along = panels * self.tile, c.out_channels
            written = images * c.reduction * int(block["blocks"][0])
            counts["gathered" if c.stride[2] > 1 else "packed"] = written
            # Vectors that cross from one row into the next are put together from two.
            columns = int(block["columns"])
            counts["crossing"] = written * min(self.lanes / columns, 1) if columns % self.lanes else 0
        else:
            across, along = -(-c.out_channels // self.lanes) * self.lanes, images
            counts["transposed"] = 0 if channels_last else images * c.out_channels
            counts["row"] = images if channels_last else images * c.out_channels / int(block["columns"])
        counts["product"] = across * along * c.reduction
        counts["tile"] = across / self.tile * along / tile_pixels() * rounds
        return Work(self.tasks, counts)
