"""The kernels of ``cuda/implicit_gemm.cu``: how elements reach the tensor cores, in which tiles, read in which ways.

The rates and efficiencies here are estimated, not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache

import numpy as np

from fastconv.gpu.runtime import KernelSpec, dtype_defines, runtime
from fastconv.problem import ConvProblem

#: As in cuda/copies.cuh: a row of a tile in shared memory, and what one instruction moves of it.
ROW_BYTES = 64
CHUNK_BYTES = 16
_LONGER_ROW, _LONGER_COLUMN = 8, 4  # lines of a band of results in shared memory, in cuda/implicit_gemm.cu

_TURING, _AMPERE = 75, 80
_TURING_SHARED = 64 << 10  # the most that a block can get there; of later ones the least is 99 KiB


@dataclass(frozen=True)
class Operands:
    """How elements go to the tensor cores."""

    dtype: str
    rate: float  # multiply-adds in the time of one of a float32 lane, in a data centre's GPU
    depth: int  # products that one instruction sums
    capability: int = _AMPERE
    split: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(np.int16 if self.dtype == "bfloat16" else self.dtype).itemsize

    @property
    def chunk(self) -> int:
        """Elements of a chunk."""
        return CHUNK_BYTES // self.itemsize

    @property
    def step(self) -> int:
        """Products of a step, a row of a tile."""
        return ROW_BYTES // self.itemsize


# RTX 30, 40 and 50, whose tensor cores are to their float32 lanes a quarter of what they are in an A100 or H100.
_CONSUMER, _CONSUMER_RATE = (86, 89, 120), 0.25

OPERANDS = {
    "float16": Operands("float16", 8, 16, capability=_TURING),
    "bfloat16": Operands("bfloat16", 8, 16),
    "int8": Operands("int8", 16, 32, capability=_TURING),
    "uint8": Operands("uint8", 16, 32, capability=_TURING),
}
TF32 = Operands("float32", 4, 8)
SPLIT_TF32 = Operands("float32", 4 / 3, 8, split=True)


def operands_of(problem: ConvProblem) -> Operands:
    """Those of a problem's dtype and precision."""
    if problem.dtype == "float32":
        return TF32 if problem.precision == "fast" else SPLIT_TF32
    return OPERANDS[problem.dtype]


def rate(operands: Operands) -> float:
    """Multiply-adds of the current device's tensor cores in the time of one of a float32 lane."""
    return operands.rate * (_CONSUMER_RATE if runtime().capability() in _CONSUMER else 1)


@dataclass(frozen=True)
class Tile:
    """Outputs of a block and of a warp, steps in shared memory, and the share of the peak that the cores then reach."""

    positions: int
    channels: int
    warp_positions: int
    warp_channels: int
    stages: int
    blocks_per_sm: int
    efficiency: float

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.positions * self.channels // (self.warp_positions * self.warp_channels)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the steps; later in their place a band of results, and 20 bytes on each row."""
        band = 16 * self.positions // self.warp_positions
        return max(
            self.stages * (self.positions + self.channels) * ROW_BYTES,
            4 * max(band * (self.channels + _LONGER_ROW), self.channels * (band + _LONGER_COLUMN)) + 20 * band,
        )

    @property
    def capability(self) -> int:
        """The least compute capability whose blocks get so much shared memory."""
        return _TURING if self.shared_bytes <= _TURING_SHARED else _AMPERE

    def __str__(self) -> str:
        return f"{self.positions}x{self.channels}"


WIDE = Tile(128, 256, 64, 64, 4, 1, 0.7)
LARGE = Tile(128, 128, 64, 32, 4, 2, 0.65)
TALL = Tile(128, 64, 64, 32, 4, 2, 0.5)
_LARGE_FLOAT32 = replace(LARGE, blocks_per_sm=1)  # rounding takes registers
SMALL = Tile(64, 64, 32, 32, 4, 3, 0.4)

#: Channels of the tiles that hold several groups.
GROUPED_CHANNELS = SMALL.channels


class Grouping(IntEnum):
    """Whether a tile holds one group, or several: then products of one with another are left out."""

    ONE = 0
    SUMS = 1  # the channels of all of them are in each sum, the weight is block-diagonal
    RESULTS = 2  # each has its own rows and columns, the result is block-diagonal


@dataclass(frozen=True)
class Gather:
    """How x is read, and by how many groups.

    `run` products at a time are channels of one tap, `vector` of them adjacent and aligned. `by_product`: a table has
    every product, not the taps alone.
    """

    run: int
    vector: int
    by_product: bool = False
    grouped: Grouping = Grouping.ONE


def gathers(operands: Operands) -> dict[Gather, tuple[Tile, ...]]:
    """Every way to read x, from the fastest on, and the tiles that it is compiled for."""
    chunk, word = operands.chunk, 4 // operands.itemsize
    small, large = (TALL, SMALL), (_LARGE_FLOAT32 if operands.dtype == "float32" else LARGE, TALL, SMALL)
    # Two parts of each operand, or an address for every byte, leave no registers for larger tiles. Halves that are read
    # one by one take as many loads in those, of half as many warps on an SM, and twice the time to compile.
    crowded, bytewise = operands.split, operands.itemsize == 1
    single = (SMALL,) if operands.itemsize < 4 else small
    return {
        Gather(chunk, chunk): small if crowded else (WIDE, *large),
        Gather(word, word): small,  # where a word is one element, this is the last one
        Gather(chunk, 1): small if crowded or bytewise else large,
        Gather(1, 1): single,
        Gather(1, 1, by_product=True): (SMALL,) if crowded else single,
        Gather(chunk, chunk, grouped=Grouping.SUMS): small,
        Gather(chunk, 1, grouped=Grouping.SUMS): (SMALL,) if bytewise else small,
        Gather(chunk, 1, grouped=Grouping.RESULTS): (SMALL,),
        Gather(1, 1, grouped=Grouping.RESULTS): (SMALL,),
    }


def tiles(operands: Operands, gather: Gather) -> list[Tile]:
    """Those that fit the current device."""
    capability = runtime().capability() or _AMPERE
    return [tile for tile in gathers(operands)[gather] if tile.capability <= capability]


@cache
def spec(operands: Operands, gather: Gather, tile: Tile) -> KernelSpec:
    """The kernel."""
    sizes = {
        "SPLIT": int(operands.split),
        "TILE_POSITIONS": tile.positions,
        "TILE_CHANNELS": tile.channels,
        "WARP_POSITIONS": tile.warp_positions,
        "WARP_CHANNELS": tile.warp_channels,
        "STAGES": tile.stages,
        "BLOCKS_PER_SM": tile.blocks_per_sm,
        "RUN": gather.run,
        "VECTOR": gather.vector,
        "BY_PRODUCT": int(gather.by_product),
        "GROUPED": int(gather.grouped),
    }
    defines = (*dtype_defines(operands.dtype), *((name, str(value)) for name, value in sizes.items()))
    capability = max(operands.capability, tile.capability)
    return KernelSpec("implicit_gemm.cu", "implicit_gemm", defines, tile.shared_bytes, capability)


@cache
def sum_spec(dtype: str) -> KernelSpec:
    """The kernel that adds the results of blocks that have shared a sum."""
    return KernelSpec("splits.cu", "add_splits", dtype_defines(dtype))


def specs() -> Iterator[KernelSpec]:
    """All kernels."""
    yield from map(sum_spec, (*OPERANDS, "float32"))
    for operands in (*OPERANDS.values(), TF32, SPLIT_TF32):
        for gather, fitting in gathers(operands).items():
            yield from (spec(operands, gather, tile) for tile in fitting)
