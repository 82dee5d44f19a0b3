"""``tiled``: implicit GEMM with shared-memory tiles, register tiles and a fused epilogue; no copy of the input."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.gpu.algorithm import LEAST_WORKSPACE, GpuAlgorithm
from fastconv.gpu.arguments import EPILOGUE, VIEW, channels_fastest, element_strides, epilogue, geometry, record, view
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
TAP = np.dtype([("offset", np.int64), ("at", np.int32, (3,))], align=True)

# TILE_DEPTH and QUAD in cuda/tiled.cu: packed weights are filled up to whole steps and whole vectors.
_DEPTH = 16
_QUAD = 4

_MOST_BLOCKS_YZ = 65535
_MOST = 1 << 30  # coordinates along an axis and positions of an image are 32-bit numbers in the kernel


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
        self.by_channel = problem.channels_last and problem.op != "weight_grad"
        self._pieces = [(piece, geometry(piece), _best_tile(piece, problem.dtype)) for piece in lower(problem)]
        taps = [piece.taps for piece, *_ in self._pieces]
        self.pack_key = f"steps of {'channels' if self.by_channel else 'taps'} {taps}"
        # The tables depend on the input's strides, which seldom differ between calls: a few sets of them are kept.
        self._taps = lru_cache(maxsize=4 * len(taps))(self._make_taps)

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
        for i, ((piece, numbers, tile), weight) in enumerate(zip(self._pieces, packed, strict=True)):
            target = piece.target_view(y)
            if not target.size:
                continue
            taps = self._taps(i, element_strides(x.strides, x.itemsize), runtime().device())
            params = record(
                TILED,
                x=view(x),
                weight=runtime().address(weight),
                taps=runtime().address(taps),
                y=view(target),
                geometry=numbers,
                epilogue=epilogue(self.problem, bias, None if residual is None else piece.target_view(residual)),
                channels_fastest=channels_fastest(target),
            )
            threads = tile.channels * tile.positions // (tile.thread_channels * tile.thread_positions)
            vector = _TILES[dtype][1] if self._vectorises(piece, x) else 1
            runtime().launch(_spec(dtype, tile, vector), tile.blocks(piece), (threads, 1, 1), params)

    def _make_taps(self, index: int, strides: tuple[int, ...], device: int) -> Any:
        """The table of one piece's products, on the current device, for an input of these strides in elements."""
        piece = lower(self.problem)[index]
        axes = np.indices((piece.in_channels, *piece.kernel), np.int64).reshape(
            4, piece.in_channels, math.prod(piece.kernel)
        )
        channel, *tap = (axis.T.ravel() if self.by_channel else axis.ravel() for axis in axes)
        table = np.zeros(piece.reduction, TAP)
        table["at"] = np.stack(tap, axis=-1) * piece.dilation
        table["offset"] = channel * strides[2] + table["at"] @ np.array(strides[3:])
        return runtime().upload(table)

    def _vectorises(self, piece: Correlation, x: Any) -> bool:
        """Whether consecutive products are adjacent in memory, and whole aligned vectors of them."""
        if not self.by_channel or x.strides[2] != x.itemsize:
            return False
        vector = _TILES[self.problem.dtype][1]
        steps = (runtime().address(x), *x.strides[:2], *x.strides[3:])
        return piece.in_channels % vector == 0 and not any(step % (vector * x.itemsize) for step in steps)


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
            axes = zip(piece.size, piece.kernel, piece.dilation, piece.count, piece.stride, piece.offset, strict=True)
            reach = max(max(n, k * d + t * s + abs(low)) for n, k, d, t, s, low in axes)
            if max(reach, piece.positions) > _MOST:
                return f"an axis or an image of more than {_MOST} elements"
        table = self.workspace_bytes(problem, LEAST_WORKSPACE)
        if table > LEAST_WORKSPACE:
            return f"the table of products takes {table} bytes, more than the smallest workspace ({LEAST_WORKSPACE})"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        return sum(piece.reduction for piece in lower(problem)) * TAP.itemsize

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
