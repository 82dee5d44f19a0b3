"""``tiled``: implicit GEMM with shared-memory tiles, register tiles and a fused epilogue; no copy of the input."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fastconv.gpu.algorithm import GpuAlgorithm
from fastconv.gpu.arguments import EPILOGUE, VIEW, channels_fastest, element_strides, epilogue, geometry, record, view
from fastconv.gpu.gathering import Order, Tables, adjacent_channels, table_bytes, why_no_table
from fastconv.gpu.runtime import KernelSpec, dtype_defines, runtime
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import Machine
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register

TILED = np.dtype(
    [
        ("x", VIEW),
        ("weight", np.int64),
        ("taps", np.int64),
        ("y", VIEW),
        ("geometry", GEOMETRY),
        ("epilogue", EPILOGUE),
        ("channels_fastest", np.int64),
    ]
)

# TILE_DEPTH and QUAD in cuda/tiled.cu: packed weights are filled up to whole steps and whole vectors.
_DEPTH = 16
_QUAD = 4

_MOST_BLOCKS_YZ = 65535


@dataclass(frozen=True)
class Tile:
    """Outputs of a block and of a thread. The efficiency, a share of the peak, is estimated, not measured."""

    channels: int
    positions: int
    thread_channels: int
    thread_positions: int
    efficiency: float

    def blocks(self, piece: Correlation) -> tuple[int, int, int]:
        """The grid that covers a piece."""
        positions = piece.batch * piece.positions
        return -(-positions // self.positions), -(-piece.out_channels // self.channels), piece.groups

    def work(self, piece: Correlation, at_once: int) -> float:
        """Time in units of a multiply-add at the peak of a GPU that runs so many blocks at once."""
        rounds = -(-math.prod(self.blocks(piece)) // at_once)
        return rounds * at_once * self.channels * self.positions * piece.reduction / self.efficiency


_LARGE = Tile(128, 128, 8, 8, 0.6)
_SMALL = Tile(64, 64, 4, 4, 0.4)
_FLAT = Tile(32, 128, 4, 4, 0.35)  # few output channels

#: The tiles of each dtype, and how many elements fill a vector load. Float64 has no registers for the large tile.
_TILES = {
    "float32": ((_LARGE, _SMALL, _FLAT), 4),
    "float64": ((_SMALL, _FLAT), 2),
    "float16": ((_LARGE, _SMALL, _FLAT), 4),
    "bfloat16": ((_LARGE, _SMALL, _FLAT), 4),
}

# A plan is made before the device is known; this many blocks at once is about right for any large GPU.
_BLOCKS_AT_ONCE = 256


def _best_tile(piece: Correlation, dtype: str) -> Tile:
    return min(_TILES[dtype][0], key=lambda tile: tile.work(piece, _BLOCKS_AT_ONCE))


@cache
def _spec(dtype: str, tile: Tile, vector: int) -> KernelSpec:
    sizes = {
        "TILE_CHANNELS": tile.channels,
        "TILE_POSITIONS": tile.positions,
        "THREAD_CHANNELS": tile.thread_channels,
        "THREAD_POSITIONS": tile.thread_positions,
        "VECTOR": vector,
    }
    return KernelSpec("tiled.cu", "tiled", (*dtype_defines(dtype), *((k, str(v)) for k, v in sizes.items())))


class TiledPlan(Plan):
    """Packed weights and one launch for each piece."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem
        # Products follow the input's memory: by channel where channels lie together, else by tap.
        self.by_channel = _by_channel(problem)
        self._pieces = [(piece, geometry(piece), _best_tile(piece, problem.dtype)) for piece in lower(problem)]
        taps = [piece.taps for piece, *_ in self._pieces]
        self.pack_key = f"steps of {'channels' if self.by_channel else 'taps'} {taps}"
        self._tables = Tables(problem, _order(problem))

    def pack(self, w: Any) -> Any:
        """Bring each piece's weight into ``(G, K, O)`` order, filled up with zeros."""
        return [self._pack_piece(piece, piece.weight_view(w)) for piece in lower(self.problem)]

    def _pack_piece(self, piece: Correlation, w: Any) -> Any:
        depth, channels = _packed_shape(piece)
        packed = runtime().xp.zeros((piece.groups, depth, channels), w.dtype)
        ordered = w.transpose(0, 3, 4, 5, 2, 1) if self.by_channel else w.transpose(0, 2, 3, 4, 5, 1)
        packed[:, : piece.reduction, : piece.out_channels] = ordered.reshape(
            piece.groups, piece.reduction, piece.out_channels
        )
        return packed

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        dtype = self.problem.dtype
        vector = _TILES[dtype][1]
        strides = element_strides(x.strides, x.itemsize)
        for i, ((piece, numbers, tile), weight) in enumerate(zip(self._pieces, packed, strict=True)):
            target = piece.target_view(y)
            if not target.size:
                continue
            params = record(
                TILED,
                x=view(x),
                weight=runtime().address(weight),
                taps=self._tables.address(i, x),
                y=view(target),
                geometry=numbers,
                epilogue=epilogue(self.problem, bias, None if residual is None else piece.target_view(residual)),
                channels_fastest=channels_fastest(target.strides),
            )
            threads = tile.channels * tile.positions // (tile.thread_channels * tile.thread_positions)
            first = runtime().address(x) // x.itemsize
            whole = self.by_channel and adjacent_channels(piece, strides, first, vector) == vector
            runtime().launch(_spec(dtype, tile, vector if whole else 1), tile.blocks(piece), (threads, 1, 1), params)


def _by_channel(problem: ConvProblem) -> bool:
    return problem.channels_last and problem.op != "weight_grad"


def _order(problem: ConvProblem) -> Order:
    return "channels of taps" if _by_channel(problem) else "taps of channels"


def _packed_shape(piece: Correlation) -> tuple[int, int]:
    return -(-piece.reduction // _DEPTH) * _DEPTH, -(-piece.out_channels // _QUAD) * _QUAD


class Tiled(GpuAlgorithm):
    """Implicit GEMM."""

    name = "tiled"

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype not in _TILES:
            return f"written for {', '.join(_TILES)}, not {problem.dtype}"
        if problem.groups > _MOST_BLOCKS_YZ:
            return f"more than {_MOST_BLOCKS_YZ} groups"
        for piece in lower(problem):
            if piece.out_channels > _MOST_BLOCKS_YZ * _FLAT.channels:
                return f"more than {_MOST_BLOCKS_YZ * _FLAT.channels} output channels in a group"
        return why_no_table(problem, _order(problem))

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        return table_bytes(problem, _order(problem))

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        seconds = 0.0
        for piece in lower(problem):
            work = _best_tile(piece, problem.dtype).work(piece, 2 * machine.cores)
            seconds += machine.launch + 2 * work / machine.flops
        return seconds

    def plan(self, problem: ConvProblem, workspace_limit: int) -> TiledPlan:
        return TiledPlan(problem)

    def variants(self) -> Iterable[KernelSpec]:
        for dtype, (tiles, vector) in _TILES.items():
            yield from (_spec(dtype, tile, v) for tile in tiles for v in (1, vector))


register(Tiled())
