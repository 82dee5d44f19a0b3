"""``depthwise``: halo tiles in shared memory for depthwise convolution, and for grouped with few channels in a group.

The kernel, and why it is bound by what, is in ``cuda/depthwise.cu``; here its tiles are chosen. A tile is some groups,
strips of rows and columns of results of one image and depth, no more than a strip of one column for each thread, whose
input fits the shared memory. Among all those, the one with the least estimated work is taken: what its blocks stage,
idle threads and halos included, and what their threads load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.gpu.algorithm import MOST_INDEX, GpuAlgorithm
from fastconv.gpu.arguments import EPILOGUE, VIEW, epilogue, geometry, record, view
from fastconv.gpu.runtime import KernelSpec, dtype_defines, runtime
from fastconv.lowering import GEOMETRY, Correlation, exchanged, lower
from fastconv.machine import Machine
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register

DEPTHWISE = np.dtype(
    [
        ("x", VIEW),
        ("weight", np.int64),
        ("y", VIEW),
        ("geometry", GEOMETRY),
        ("epilogue", EPILOGUE),
        ("slots", np.int64),
        ("strips", np.int64),
        ("columns", np.int64),
        ("order", np.int64),
    ]
)


class Order(IntEnum):
    """What lies together in the caller's memory; the same in cuda/depthwise.cu."""

    COLUMNS_FASTEST = 0
    ROWS_FASTEST = 1
    CHANNELS_FASTEST = 2


_DTYPES = ("float32", "float64", "float16", "bfloat16")
_THREADS = 256
_STAGED = 4096  # elements of shared memory
_RUN = 4  # taps

# Results of a thread. Odd, so that threads whose strips follow one another along memory meet no bank conflicts; 7
# divides the image sizes of most networks.
_ROWS = (7, 15)

_MOST_BLOCKS = (1 << 31) - 1

# Estimated, not measured: instructions that staging or writing an element takes; loads from shared memory go at a
# quarter of the rate of instructions.
_STAGING = 25
_LOAD = 4
_SECTOR = 8  # elements read at least, however few lie together


@dataclass(frozen=True)
class Tile:
    """Rows of results of a thread; strips of so many rows, groups and columns of a block."""

    turned: bool  # rows lie along the width
    rows: int
    strips: int
    slots: int
    columns: int
    order: Order

    def blocks(self, piece: Correlation) -> int:
        """How many tiles cover a piece that is turned as they are."""
        depth, height, width = piece.count
        across = -(-height // (self.rows * self.strips)) * -(-width // self.columns)
        return piece.batch * depth * -(-piece.groups // self.slots) * across

    def work(self, piece: Correlation) -> float:
        """Instructions of all threads for such a piece."""
        depth, height, width = piece.kernel
        staged = math.prod(_staged(piece, self.rows * self.strips, self.columns)) * self.slots
        apart = height if piece.stride[1] % piece.dilation[1] else piece.stride[1] // piece.dilation[1]
        runs = sum(-(-len(range(k, height, apart)) // _RUN) for k in range(min(apart, height)))
        loads = width * (2 * height + runs * (self.rows - 1))
        together = {
            Order.COLUMNS_FASTEST: self.columns,
            Order.ROWS_FASTEST: self.rows * self.strips,
            Order.CHANNELS_FASTEST: self.slots,
        }[self.order]
        results = self.slots * piece.out_channels * self.rows * self.strips * self.columns
        moved = (piece.in_channels * depth * staged + results) * (1 + _SECTOR / together)
        return self.blocks(piece) * (_STAGING * moved + _LOAD * _THREADS * piece.in_channels * depth * loads)


def _staged(piece: Correlation, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of input for so many of results."""
    height, width = (max(k - 1, 0) * d + 1 for k, d in zip(piece.kernel[1:], piece.dilation[1:], strict=True))
    return (rows - 1) * piece.stride[1] + height, (columns - 1) * piece.stride[2] + width


def _parts(n: int, most: int) -> Iterator[int]:
    """The sizes of equal parts, no larger than `most`, into which `n` can be cut; each once."""
    size = min(n, most)
    while size > 0:
        yield size
        parts = -(-n // size)
        size = (n - 1) // parts if parts < n else 0


def _tiles(piece: Correlation, channels_last: bool) -> Iterator[tuple[float, Tile, Correlation]]:
    """Every tile that fits: its work, and the piece turned as it is."""
    for turned in (False, True):
        here = piece.turned() if turned else piece
        order = Order.CHANNELS_FASTEST if channels_last else Order.ROWS_FASTEST if turned else Order.COLUMNS_FASTEST
        for rows in _ROWS:
            for strips in _parts(-(-here.count[1] // rows), _THREADS):
                for columns in _parts(here.count[2], _THREADS // strips):
                    staged = math.prod(_staged(here, rows * strips, columns))
                    threads = max(piece.out_channels, 1) * strips * columns
                    for slots in _parts(max(piece.groups, 1), min(_THREADS // threads, _STAGED // staged)):
                        tile = Tile(turned, rows, strips, slots, columns, order)
                        yield tile.work(here), tile, here


@lru_cache(maxsize=1024)
def _cut(problem: ConvProblem) -> tuple[tuple[float, Tile, Correlation] | None, ...]:
    """For each piece the tile of least work; None if none fits."""
    last = problem.channels_last and problem.op != "weight_grad"  # groups lie together in memory
    return tuple(min(_tiles(piece, last), key=itemgetter(0), default=None) for piece in lower(problem))


@cache
def _spec(dtype: str, rows: int) -> KernelSpec:
    return KernelSpec(
        "depthwise.cu", "depthwise", (*dtype_defines(dtype), ("ROWS", str(rows)), ("STAGED", str(_STAGED)))
    )


class DepthwisePlan(Plan):
    """Packed weights and one launch for each piece."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem
        self._pieces = [(piece, tile) for _, tile, piece in filter(None, _cut(problem))]
        self._numbers = [geometry(piece) for piece, _ in self._pieces]
        self.pack_key = "columns of taps", tuple((piece.taps, tile.turned) for piece, tile in self._pieces)

    def pack(self, w: Any) -> Any:
        """Bring each piece's weight into ``(C, KD, KW, KH, channels of all groups)`` order."""
        xp = runtime().xp
        views = (piece.weight_view(_oriented(w, tile)) for piece, tile in self._pieces)
        return [xp.ascontiguousarray(v.transpose(2, 3, 5, 4, 0, 1)) for v in views]

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        for (piece, tile), numbers, weight in zip(self._pieces, self._numbers, packed, strict=True):
            target = piece.target_view(_oriented(y, tile))
            if not target.size:
                continue
            added = None if residual is None else piece.target_view(_oriented(residual, tile))
            params = record(
                DEPTHWISE,
                x=view(_oriented(x, tile)),
                weight=runtime().address(weight),
                y=view(target),
                geometry=numbers,
                epilogue=epilogue(self.problem, bias, added),
                slots=tile.slots,
                strips=tile.strips,
                columns=tile.columns,
                order=int(tile.order),
            )
            runtime().launch(_spec(self.problem.dtype, tile.rows), (tile.blocks(piece), 1, 1), (_THREADS, 1, 1), params)


def _oriented(array: Any, tile: Tile) -> Any:
    """A six-axis view as the tile lies."""
    return exchanged(array) if tile.turned else array


class Depthwise(GpuAlgorithm):
    """Depthwise and grouped convolution from halo tiles."""

    name = "depthwise"

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype not in _DTYPES:
            return f"written for {', '.join(_DTYPES)}, not {problem.dtype}"
        for piece, cut in zip(lower(problem), _cut(problem), strict=True):
            if piece.out_channels > _THREADS:
                return f"{piece.out_channels} output channels in a group, more than a block has threads ({_THREADS})"
            if piece.reach > MOST_INDEX:
                return f"an axis of more than {MOST_INDEX} elements"
            if cut is None:
                return f"the input of a thread's results is more than the {_STAGED} elements of shared memory"
            if cut[1].blocks(cut[2]) > _MOST_BLOCKS:
                return f"more than {_MOST_BLOCKS} blocks"
        return None

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        seconds = 0.0
        for instructions, _, piece in filter(None, _cut(problem)):
            channels = piece.in_channels * math.prod(piece.size) + piece.out_channels * piece.positions
            moved = piece.batch * piece.groups * channels * named_dtype(problem.dtype).itemsize
            # The peak counts two operations for each multiply-add, which is one instruction.
            seconds += machine.launch + max(2 * instructions / machine.flops, moved / machine.bandwidth)
        return seconds

    def plan(self, problem: ConvProblem, workspace_limit: int) -> DepthwisePlan:
        return DepthwisePlan(problem)

    def variants(self) -> Iterable[KernelSpec]:
        return (_spec(dtype, rows) for dtype in _DTYPES for rows in _ROWS)


register(Depthwise())
