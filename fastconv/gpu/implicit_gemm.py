"""``implicit_gemm``: convolution as one matrix product on tensor cores, its left matrix gathered as it is needed.

``docs/gpu_implicit_gemm.md`` has the arithmetic of the tiles. The rates below are estimated, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.gpu.algorithm import GpuAlgorithm, launch_linear
from fastconv.gpu.arguments import (
    EPILOGUE,
    VIEW,
    Words,
    channels_fastest,
    element_strides,
    epilogue,
    geometry,
    record,
    view,
)
from fastconv.gpu.direct import run_piece
from fastconv.gpu.gathering import DIVISOR, Tables, adjacent_channels, divisor, table_bytes, why_no_table
from fastconv.gpu.runtime import KernelSpec, dtype_defines, runtime
from fastconv.gpu.selfcheck import failed, is_right
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import Machine
from fastconv.problem import ConvProblem
from fastconv.registry import UNIT_ROUNDOFF, Plan, register
from fastconv.settings import USUAL_WORKSPACE

IMPLICIT_GEMM = np.dtype(
    [
        ("x", VIEW),
        ("weight", np.int64),
        ("taps", np.int64),
        ("channels", DIVISOR),
        ("y", VIEW),
        ("geometry", GEOMETRY),
        ("epilogue", EPILOGUE),
        ("channels_fastest", np.int64),
        ("images_fastest", np.int64),
        ("splits", np.int64),
        ("partial", np.int64),
    ]
)
SPLITS = np.dtype(
    [
        ("partial", np.int64),
        ("splits", np.int64),
        ("images_fastest", np.int64),
        ("y", VIEW),
        ("geometry", GEOMETRY),
        ("epilogue", EPILOGUE),
    ]
)

# As in cuda/copies.cuh: a row of a tile in shared memory, and what one instruction moves of it.
_ROW_BYTES = 64
_CHUNK_BYTES = 16
_PADDING_COLUMNS = 8  # of the results in shared memory, in cuda/implicit_gemm.cu

_TURING, _AMPERE = 75, 80
_TURING_SHARED = 64 << 10  # the most that a block can get there; of later ones the least is 99 KiB

_MOST_BLOCKS_X = (1 << 31) - 1
_MOST_BLOCKS_YZ = 65535


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
        return _CHUNK_BYTES // self.itemsize

    @property
    def step(self) -> int:
        """Products of a step, a row of a tile."""
        return _ROW_BYTES // self.itemsize


# RTX 30, 40 and 50, whose tensor cores are to their float32 lanes a quarter of what they are in an A100 or H100.
_CONSUMER, _CONSUMER_RATE = (86, 89, 120), 0.25

_OPERANDS = {
    "float16": Operands("float16", 8, 16, capability=_TURING),
    "bfloat16": Operands("bfloat16", 8, 16),
    "int8": Operands("int8", 16, 32, capability=_TURING),
}
_TF32 = Operands("float32", 4, 8)
_SPLIT_TF32 = Operands("float32", 4 / 3, 8, split=True)


def _operands(problem: ConvProblem) -> Operands:
    if problem.dtype == "float32":
        return _TF32 if problem.precision == "fast" else _SPLIT_TF32
    return _OPERANDS[problem.dtype]


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
        """Shared memory of a block: the steps, and later in their place a band of results with two addresses a row."""
        band = 16 * self.positions // self.warp_positions
        return max(
            self.stages * (self.positions + self.channels) * _ROW_BYTES,
            band * ((self.channels + _PADDING_COLUMNS) * 4 + 16),
        )

    @property
    def capability(self) -> int:
        """The least compute capability whose blocks get so much shared memory."""
        return _TURING if self.shared_bytes <= _TURING_SHARED else _AMPERE


_WIDE = Tile(128, 256, 64, 64, 4, 1, 0.7)
_LARGE = Tile(128, 128, 64, 32, 4, 2, 0.65)
_TALL = Tile(128, 64, 64, 32, 4, 2, 0.5)
_LARGE_FLOAT32 = replace(_LARGE, blocks_per_sm=1)  # rounding takes registers
_SMALL = Tile(64, 64, 32, 32, 4, 3, 0.4)


@dataclass(frozen=True)
class Gather:
    """How x is read: `run` products at a time are channels of one tap, `vector` of them adjacent and aligned."""

    run: int
    vector: int


def _gathers(operands: Operands) -> dict[Gather, tuple[Tile, ...]]:
    """Every way to read x, from the fastest on, and the tiles that it is compiled for."""
    chunk, word = operands.chunk, 4 // operands.itemsize
    small, large = (_TALL, _SMALL), (_LARGE_FLOAT32 if operands.dtype == "float32" else _LARGE, _TALL, _SMALL)
    # Two parts of each operand, or an address for every byte, leave no registers for larger tiles.
    crowded, bytewise = operands.split, operands.itemsize == 1
    return {
        Gather(chunk, chunk): small if crowded else (_WIDE, *large),
        Gather(word, word): small,  # where a word is one element, this is the last one
        Gather(chunk, 1): small if crowded or bytewise else large,
        Gather(1, 1): (_SMALL,) if bytewise else small,
    }


def _tiles(operands: Operands, gather: Gather) -> list[Tile]:
    """Those that fit the current device."""
    capability = runtime().capability() or _AMPERE
    return [tile for tile in _gathers(operands)[gather] if tile.capability <= capability]


def _gather(operands: Operands, adjacent: int, channels: int) -> Gather:
    """The fastest way to read an input of which `adjacent` of so many channels can be taken at a time."""
    chunk, word = operands.chunk, 4 // operands.itemsize
    if adjacent == chunk:
        return Gather(chunk, chunk)
    if adjacent >= word > 1:
        return Gather(word, word)
    return Gather(chunk, 1) if channels % chunk == 0 else Gather(1, 1)


# A plan is made before the device is known; so many multiprocessors a large GPU has.
_MULTIPROCESSORS = 128
_LEAD_STEPS = 6  # filling the pipeline and writing results take about as long as so many steps
_LEAST_STEPS = 8  # of a block that has a part of a sum
_PRODUCTS_PER_BYTE = 100  # multiply-adds of a large GPU's cores in the time in which its memory moves a byte


@dataclass(frozen=True)
class Config:
    """How one piece is computed: the tile, how many blocks share a sum, and the predicted time.

    `work` is in units of a multiply-add at the peak of all tensor cores.
    """

    tile: Tile
    splits: int
    work: float


def _configure(piece: Correlation, operands: Operands, gather: Gather, limit: int, processors: int) -> Config:
    """The tile and the split of least predicted work, with `limit` bytes for partial sums."""
    options = (
        _weigh(piece, operands, tile, splits, processors)
        for tile in _tiles(operands, gather)
        for splits in _splits(piece, operands, tile, limit, processors)
    )
    return min(options, key=lambda config: config.work)


def _blocks(piece: Correlation, tile: Tile) -> int:
    return -(-piece.batch * piece.positions // tile.positions) * -(-piece.out_channels // tile.channels)


def _splits(piece: Correlation, operands: Operands, tile: Tile, limit: int, processors: int) -> set[int]:
    """How many blocks might share a sum: one, or as many as fill the GPU once or twice."""
    steps = -(-piece.reduction // operands.step)
    most = min(steps // _LEAST_STEPS, limit // max(_partial_bytes(piece), 1), _MOST_BLOCKS_YZ)
    at_once = processors * tile.blocks_per_sm
    blocks = max(_blocks(piece, tile) * piece.groups, 1)
    return {max(min(times * at_once // blocks, most), 1) for times in (0, 1, 2)}


def _partial_bytes(piece: Correlation) -> int:
    return piece.batch * piece.groups * piece.positions * piece.out_channels * 4


def _weigh(piece: Correlation, operands: Operands, tile: Tile, splits: int, processors: int) -> Config:
    at_once = processors * tile.blocks_per_sm
    rounds = -(-_blocks(piece, tile) * piece.groups * splits // at_once)
    steps = -(-piece.reduction // (operands.step * splits)) + _LEAD_STEPS
    work = rounds * at_once * tile.positions * tile.channels * steps * operands.step / tile.efficiency
    moved = 2 * splits * _partial_bytes(piece) if splits > 1 else 0
    return Config(tile, splits, work + moved * _PRODUCTS_PER_BYTE)


def _expected_gather(problem: ConvProblem, piece: Correlation) -> Gather:
    """How x will be read if the caller's array is contiguous."""
    operands = _operands(problem)
    together = problem.channels_last and problem.op != "weight_grad"
    adjacent = math.gcd(piece.in_channels, operands.chunk) if together else 1
    return _gather(operands, adjacent, piece.in_channels)


@cache
def _spec(operands: Operands, gather: Gather, tile: Tile) -> KernelSpec:
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
    }
    defines = (*dtype_defines(operands.dtype), *((name, str(value)) for name, value in sizes.items()))
    capability = max(operands.capability, tile.capability)
    return KernelSpec("implicit_gemm.cu", "implicit_gemm", defines, tile.shared_bytes, capability)


@cache
def _sum_spec(dtype: str) -> KernelSpec:
    return KernelSpec("splits.cu", "add_splits", dtype_defines(dtype))


@dataclass(frozen=True)
class Launch:
    """How a piece is launched: the kernel, its blocks and threads, and how many blocks share a sum."""

    spec: KernelSpec
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    splits: int


def _launch(piece: Correlation, operands: Operands, gather: Gather, tile: Tile, splits: int) -> Launch:
    grid = _blocks(piece, tile), splits, piece.groups
    return Launch(_spec(operands, gather, tile), grid, (tile.threads, 1, 1), splits)


class ImplicitGemmPlan(Plan):
    """Packed weights and, for each piece, one launch, or two where several blocks share a sum."""

    def __init__(self, problem: ConvProblem, workspace_limit: int) -> None:
        self.problem = problem
        self._operands = _operands(problem)
        self._pieces = lower(problem)
        self._geometries = [geometry(piece) for piece in self._pieces]
        self._divisors = [divisor(max(piece.in_channels, 1)) for piece in self._pieces]
        self.pack_key = f"rows of {self._operands.step} products {[piece.taps for piece in self._pieces]}"
        self._tables = Tables(problem, "taps")
        self._limit = _partial_limit(problem, workspace_limit)
        self._launches = lru_cache(maxsize=64)(self._choose_launch)

    def pack(self, w: Any) -> Any:
        """Bring each piece's weight into ``(G, O, K)`` order, channels fastest, K filled up with zeros."""
        return [self._pack_piece(piece, piece.weight_view(w)) for piece in self._pieces]

    def _pack_piece(self, piece: Correlation, w: Any) -> Any:
        depth = -(-piece.reduction // self._operands.step) * self._operands.step
        packed = runtime().xp.zeros((piece.groups, piece.out_channels, depth), w.dtype)
        ordered = w.transpose(0, 1, 3, 4, 5, 2)
        packed[..., : piece.reduction] = ordered.reshape(piece.groups, piece.out_channels, piece.reduction)
        return packed

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        device, strides = runtime().device(), element_strides(x.strides, x.itemsize)
        misalignment = runtime().address(x) % _CHUNK_BYTES
        if not y.size:
            return
        for i, (piece, weight) in enumerate(zip(self._pieces, packed, strict=True)):
            launch = self._launches(i, strides, misalignment, device)
            if launch is None:
                run_piece(self.problem, piece, x, _unpacked(piece, weight), y, bias, residual)
            else:
                self.launch(launch, i, x, weight, y, bias, residual)

    def launch(self, launch: Launch, index: int, x: Any, weight: Any, y: Any, bias: Any, residual: Any) -> None:
        """Compute piece `index`, which has outputs, from its packed weight."""
        piece, problem, device = self._pieces[index], self.problem, runtime()
        target = piece.target_view(y)
        fields: dict[str, Words | int] = {
            "y": view(target),
            "geometry": self._geometries[index],
            "epilogue": epilogue(problem, bias, None if residual is None else piece.target_view(residual)),
            "images_fastest": int(abs(x.strides[0]) < abs(x.strides[5])),
            "splits": launch.splits,
            "partial": 0,
        }
        if launch.splits > 1:
            partial = device.xp.empty(launch.splits * target.size, problem.accumulator_dtype)
            fields["partial"] = device.address(partial)
        params = record(
            IMPLICIT_GEMM,
            x=view(x),
            weight=device.address(weight),
            taps=self._tables.address(index, x),
            channels=self._divisors[index],
            channels_fastest=channels_fastest(target),
            **fields,
        )
        device.launch(launch.spec, launch.grid, launch.block, params)
        if launch.splits > 1:
            launch_linear(_sum_spec(problem.dtype), target.size, record(SPLITS, **fields))

    def _choose_launch(self, index: int, strides: Words, misalignment: int, device: int) -> Launch | None:
        """The launch of a piece for an input that lies in memory like this; None where its kernel is found wrong."""
        piece, operands = self._pieces[index], self._operands
        adjacent = adjacent_channels(piece, strides, misalignment // operands.itemsize, operands.chunk)
        gather = _gather(operands, adjacent, piece.in_channels)
        config = _configure(piece, operands, gather, self._limit, _MULTIPROCESSORS)
        if not _is_right(operands, gather, config.tile):
            return None
        return _launch(piece, operands, gather, config.tile, config.splits)


def _unpacked(piece: Correlation, weight: Any) -> Any:
    """A packed weight as the ``(G, O, C, KD, KH, KW)`` view that it was made of."""
    shape = piece.groups, piece.out_channels, *piece.kernel, piece.in_channels
    return weight[..., : piece.reduction].reshape(shape).transpose(0, 1, 5, 2, 3, 4)


def _is_right(operands: Operands, gather: Gather, tile: Tile) -> bool:
    """Whether a kernel passes its self-check: more positions and channels than a tile has, taps in the padding."""
    channels = 3 * gather.run if gather.run > 1 else 5
    x_shape, last = ((9, 17, channels), True) if gather.vector > 1 else ((channels, 9, 17), False)
    problem = ConvProblem.forward(
        2, (1, *x_shape), (tile.channels + 3, channels, 3, 3), dtype=operands.dtype, padding=1,
        data_format="NHWC" if last else "NCHW", precision="fast" if operands is _TF32 else "high",
    )  # fmt: skip
    plan, (piece,) = ImplicitGemmPlan(problem, 0), lower(problem)
    launch = _launch(piece, operands, gather, tile, splits=1)

    def run(x: Any, w: Any, y: Any) -> None:
        plan.launch(launch, 0, x, plan.pack(w)[0], y, None, None)

    return is_right(launch.spec, problem, _ALGORITHM, run)


def _partial_limit(problem: ConvProblem, workspace_limit: int) -> int:
    """Bytes for partial sums."""
    return workspace_limit - table_bytes(problem, "taps")


class ImplicitGemm(GpuAlgorithm):
    """Implicit GEMM on tensor cores."""

    name = "implicit_gemm"

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype != "float32" and problem.dtype not in _OPERANDS:
            return f"tensor cores multiply float32, {', '.join(_OPERANDS)}, not {problem.dtype}"
        if problem.dtype == "float32" and problem.precision == "highest":
            return "float32 is split into TF32 numbers; precision='highest' asks for float32 products"
        if problem.padding_mode != "zeros":
            return f"pads with zeros only, not padding_mode={problem.padding_mode!r}"
        if problem.groups > _MOST_BLOCKS_YZ:
            return f"more than {_MOST_BLOCKS_YZ} groups"
        if any(_blocks(piece, _SMALL) > _MOST_BLOCKS_X for piece in lower(problem)):
            return f"more than {_MOST_BLOCKS_X} blocks"
        reason = why_no_table(problem, "taps")
        if reason is not None:
            return reason
        capability, needed = runtime().capability(), _operands(problem).capability
        if capability is None:
            return None
        if capability < needed:
            return f"{problem.dtype} on tensor cores takes compute capability {needed / 10}, not {capability / 10}"
        operands = _operands(problem)
        specs = (
            _spec(operands, gather, tile)
            for gather in {_expected_gather(problem, piece) for piece in lower(problem)}
            for tile in _tiles(operands, gather)
        )
        wrong = next(filter(failed, specs), None)
        return None if wrong is None else f"{wrong} was found wrong on this device: direct computes otherwise"

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        limit, partial = _partial_limit(problem, workspace_limit), 0
        for piece in lower(problem):
            splits = self._config(problem, piece, limit, _MULTIPROCESSORS).splits
            partial = max(partial, splits * _partial_bytes(piece) if splits > 1 else 0)
        return table_bytes(problem, "taps") + partial

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        seconds, rate = 0.0, _operands(problem).rate
        if runtime().capability() in _CONSUMER:
            rate *= _CONSUMER_RATE
        for piece in lower(problem):
            config = self._config(problem, piece, USUAL_WORKSPACE, machine.cores)
            launches = 2 if config.splits > 1 else 1
            seconds += launches * machine.launch + 2 * config.work / (machine.flops * rate)
        return seconds

    @staticmethod
    def _config(problem: ConvProblem, piece: Correlation, limit: int, processors: int) -> Config:
        return _configure(piece, _operands(problem), _expected_gather(problem, piece), limit, processors)

    def tolerance(self, problem: ConvProblem) -> float:
        """The bound of truncated sums; of rounded ones for float32, whose rounded products err by 8 u.

        The cores align the products of one instruction, and the sum so far, with the largest of them and truncate them
        there and at the end: for `depth` products an error of ``(depth + 2) 2u`` of them all, u = 2^-24, and as it
        goes in one direction, no square root may be taken of the number of steps. Two float32 numbers split into
        halves lose ``2 * 2^-23`` when split and 2^-22 of the product that is left out.
        """
        if problem.dtype == "int8":
            return 0.0
        operands, u = _operands(problem), UNIT_ROUNDOFF["float32"]
        products = max((piece.reduction for piece in lower(problem)), default=0)
        steps = -(-products // operands.depth) + 2
        of_a_step = 2 * (operands.depth + 2) * u
        if operands.split:
            return 8 * u + of_a_step + min(steps, 8 * math.sqrt(steps)) * u + u
        rounded = 2 * 2.0**-11 + 2.0**-22 if operands is _TF32 else 0.0
        return rounded + steps * of_a_step + UNIT_ROUNDOFF[problem.result_dtype]

    def plan(self, problem: ConvProblem, workspace_limit: int) -> ImplicitGemmPlan:
        return ImplicitGemmPlan(problem, workspace_limit)

    def variants(self) -> Iterable[KernelSpec]:
        yield from map(_sum_spec, (*_OPERANDS, "float32"))
        for operands in (*_OPERANDS.values(), _TF32, _SPLIT_TF32):
            for gather, tiles in _gathers(operands).items():
                yield from (_spec(operands, gather, tile) for tile in tiles)


_ALGORITHM = ImplicitGemm()
register(_ALGORITHM)
