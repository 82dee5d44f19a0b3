"""``implicit_gemm_hopper``: implicit GEMM on Hopper's warpgroup products, both matrices brought by the copy engine.

``docs/gpu_implicit_gemm_hopper.md`` explains the kernel. The rates below are estimated, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastconv.gpu.algorithm import GpuAlgorithm
from fastconv.gpu.arguments import EPILOGUE, VIEW, Words, epilogue, geometry, record, residual_strides, view
from fastconv.gpu.implicit_gemm import ImplicitGemm, ImplicitGemmPlan
from fastconv.gpu.runtime import KernelSpec, dtype_defines, runtime
from fastconv.gpu.selfcheck import failed, is_right
from fastconv.gpu.tensor_maps import ALIGNMENT, MOST_STEP, ROW_BYTES, Boxes, Pixels, corner_limit
from fastconv.gpu.writing import aligned, along_channels
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.machine import Machine
from fastconv.problem import DTYPES, ConvProblem
from fastconv.registry import UNIT_ROUNDOFF, Plan, register

TENSOR_MAP = (np.int64, (16,))
IMPLICIT_GEMM_HOPPER = np.dtype(
    [
        ("x", *TENSOR_MAP),
        ("weight", *TENSOR_MAP),
        ("y", VIEW),
        ("geometry", GEOMETRY),
        ("epilogue", EPILOGUE),
        ("axes", np.int64),
        ("vectors", np.int64),
        ("unused", np.int64, (5,)),
    ]
)

_HOPPER = 90
_NO_MAP: Words = (0,) * 16  # of operands that are not read
_PRODUCT_BYTES = 32  # along a row, of one instruction
_THREADS = 384

# The cores' multiply-adds in the time of one of a float32 lane.
_RATES = {"float16": 16, "bfloat16": 16, "float32": 8, "int8": 32}


@dataclass(frozen=True)
class Tile:
    """Outputs that a block computes at a time, steps in shared memory, and the share of the peak that it reaches."""

    positions: int
    channels: int
    stages: int
    efficiency: float

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: `struct Shared` in the kernel."""
        band = 16 * (32 + 8) * 4 + 2 * 16 * 8
        return self.stages * ((self.positions + self.channels) * ROW_BYTES + 2 * 8) + 8 * band

    def __str__(self) -> str:
        return f"{self.positions}x{self.channels}"


_TILES = (
    Tile(128, 256, 4, 0.75),
    Tile(256, 128, 4, 0.75),
    Tile(128, 128, 6, 0.65),
    Tile(256, 64, 5, 0.55),
    Tile(128, 64, 8, 0.5),
)
_LEAD_STEPS = 4  # writing the results of a tile takes about as long as so many steps


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _steps(piece: Correlation, dtype: str) -> int:
    """Steps of a tile: rows of channels, for each tap."""
    return math.prod(piece.kernel) * -(-piece.in_channels * _itemsize(dtype) // ROW_BYTES)


def _count_tiles(piece: Correlation, tile: Tile) -> int:
    """How many tiles the outputs of a piece are."""
    return -(-piece.batch * piece.positions // tile.positions) * -(-piece.out_channels // tile.channels)


def _work(piece: Correlation, dtype: str, tile: Tile, processors: int) -> float:
    """Predicted time in multiply-adds at the peak of all tensor cores: whole rounds of tiles."""
    steps = (_steps(piece, dtype) + _LEAD_STEPS) * ROW_BYTES // _itemsize(dtype)
    return (
        -(-_count_tiles(piece, tile) // processors)
        * processors
        * tile.positions
        * tile.channels
        * steps
        / tile.efficiency
    )


@dataclass(frozen=True, eq=False)
class Launch:
    """How a piece is launched."""

    tile: Tile
    spec: KernelSpec
    blocks: int
    axes: int  # of the map of its input


def _launch(piece: Correlation, dtype: str, tile: Tile) -> Launch:
    blocks = min(_count_tiles(piece, tile), runtime().processors())
    return Launch(tile, _spec(dtype, tile), blocks, _axes(piece))


def _best_tile(piece: Correlation, dtype: str, processors: int) -> Tile:
    return min(_TILES, key=lambda tile: _work(piece, dtype, tile, processors))


@cache
def _spec(dtype: str, tile: Tile) -> KernelSpec:
    sizes = {"TILE_POSITIONS": tile.positions, "TILE_CHANNELS": tile.channels, "STAGES": tile.stages}
    defines = (*dtype_defines(dtype), *((name, str(value)) for name, value in sizes.items()))
    return KernelSpec(
        "implicit_gemm_hopper.cu", "implicit_gemm_hopper", defines, tile.shared_bytes, _HOPPER, specific=True
    )


# -- tensor maps ------------------------------------------------------------------------------------------------------


def _axes(piece: Correlation) -> int:
    """Axes of the input's map: images and channels, width, and height and depth where there is anything along them."""
    for axis in (0, 1):
        alone = piece.size[axis] == piece.kernel[axis] == piece.count[axis] == 1 and not piece.offset[axis]
        if not alone:
            return 5 - axis
    return 3


def _corners(piece: Correlation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where tap 0 reads at the first and at the last target, counted from the first and the last element."""
    numbers = zip(piece.offset, piece.count, piece.stride, piece.size, strict=True)
    corners = [(-low, (count - 1) * stride - low - (size - 1)) for low, count, stride, size in numbers]
    lower, upper = zip(*corners[::-1][: _axes(piece) - 2], strict=True)
    return lower, upper


def _why_no_map(piece: Correlation) -> str | None:
    """Why the copy engine cannot follow the positions of a piece; None if it can."""
    axes = _axes(piece)
    limit = corner_limit(axes)
    if any(not -limit <= corner < limit for corners in _corners(piece) for corner in corners):
        return f"padding, or input that no output reads, beyond the {limit} elements that the copy engine counts"
    if any((k - 1) * d >= 2 * limit - 1 for k, d in zip(piece.kernel, piece.dilation, strict=True)):
        return f"a kernel that reaches over more than the {2 * limit - 1} elements that the copy engine counts"
    if max(_element_steps(piece)) > MOST_STEP:
        return f"a stride of more than {MOST_STEP}"
    return None


def _element_steps(piece: Correlation) -> tuple[int, ...]:
    """Strides between targets, along width, height, depth; any where there is one target alone."""
    steps = [stride if count > 1 else 1 for stride, count in zip(piece.stride, piece.count, strict=True)]
    return tuple(steps[::-1][: _axes(piece) - 2])


def _fits(strides: Words, shape: Words, itemsize: int) -> bool:
    """Whether the copy engine can read an aligned ``(N, G, C, D, H, W)`` view: adjacent channels, aligned pixels."""
    pixels = [stride for axis, (stride, n) in enumerate(zip(strides, shape, strict=True)) if axis != 2 and n > 1]
    return strides[2] == itemsize and all(stride > 0 and stride % ALIGNMENT == 0 for stride in pixels)


def _pixels(piece: Correlation, dtype: str, tile: Tile, address: int, strides: Words) -> Pixels:
    """The map of the input."""
    axes, itemsize = _axes(piece), _itemsize(dtype)
    spatial = axes - 2
    sizes = (piece.in_channels, *piece.size[::-1][:spatial], piece.batch)
    given = (*strides[:2:-1][:spatial], strides[0])
    steps, natural = [], itemsize
    for below, size, stride in zip(sizes, sizes[1:], given, strict=False):
        natural *= below
        natural = stride if size > 1 else natural  # along an axis of one element nothing is gone
        steps.append(natural)
    lower, upper = _corners(piece)
    box = ROW_BYTES // itemsize, tile.positions
    return Pixels(dtype, address, sizes, tuple(steps), box, lower, upper, (1, *_element_steps(piece), 1))


def _boxes(piece: Correlation, dtype: str, tile: Tile, address: int, stride: int) -> Boxes:
    """The map of a packed weight: the channels of a tap, for all output channels of the tile."""
    itemsize = _itemsize(dtype)
    sizes = piece.in_channels, math.prod(piece.kernel), piece.out_channels
    strides = piece.in_channels * itemsize, stride
    return Boxes(dtype, address, sizes, strides, (ROW_BYTES // itemsize, 1, tile.channels))


# -- the algorithm ----------------------------------------------------------------------------------------------------


class ImplicitGemmHopperPlan(Plan):
    """One launch for each piece; `implicit_gemm` runs what lies in memory as the copy engine cannot take it."""

    def __init__(self, problem: ConvProblem, workspace_limit: int, tile: Tile | None = None) -> None:
        self.problem = problem
        self._tile = tile
        self._pieces = lower(problem)
        self._geometries = [geometry(piece) for piece in self._pieces]
        self._otherwise = ImplicitGemmPlan(problem, workspace_limit)
        self.pack_key = self._otherwise.pack_key
        self._launches = lru_cache(maxsize=64)(self._choose_launches)
        self._maps = lru_cache(maxsize=64)(self._make_maps)

    def pack(self, w: Any) -> Any:
        """As `implicit_gemm` does: ``(G, O, K)``, channels fastest."""
        return self._otherwise.pack(w)

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        if not y.size:
            return
        device = runtime()
        launches = self._launches(x.strides, device.address(x) % ALIGNMENT, device.device())
        if launches is None:
            self._otherwise.run(x, packed, y, bias, residual)
            return
        for i, (launch, weight) in enumerate(zip(launches, packed, strict=True)):
            self.launch(launch, i, x, weight, y, bias, residual)

    def launch(self, launch: Launch, index: int, x: Any, weight: Any, y: Any, bias: Any, residual: Any) -> None:
        """Compute piece `index`, which has outputs, from its packed weight."""
        piece, problem, device = self._pieces[index], self.problem, runtime()
        target, added = piece.target_view(y), None if residual is None else piece.target_view(residual)
        x_map, weight_map = self._maps(
            index, launch.tile, device.address(x), x.strides, device.address(weight), weight.strides[1]
        )
        result, end = view(target), epilogue(problem, bias, added)
        together = along_channels(target.shape, result[1:], residual_strides(end), target.itemsize)
        params = record(
            IMPLICIT_GEMM_HOPPER,
            x=x_map,
            weight=weight_map,
            y=result,
            geometry=self._geometries[index],
            epilogue=end,
            axes=launch.axes,
            vectors=int(together and aligned(result[0], *end[:2])),
            unused=(0,) * 5,
        )
        device.launch(launch.spec, (launch.blocks, 1, 1), (_THREADS, 1, 1), params)

    def _choose_launches(self, strides: Words, misalignment: int, device: int) -> tuple[Launch, ...] | None:
        """That of each piece; None where the input lies so, or a kernel is found so, that it must not be used."""
        dtype, source, processors = self.problem.dtype, self._pieces[0], runtime().processors()
        shape = source.batch, source.groups, source.in_channels, *source.size
        if misalignment or not _fits(strides, shape, _itemsize(dtype)):
            return None
        tiles = (self._tile or _best_tile(piece, dtype, processors) for piece in self._pieces)
        launches = tuple(_launch(piece, dtype, tile) for piece, tile in zip(self._pieces, tiles, strict=True))
        right = all(_is_right(self.problem, launch.tile, launch.axes) for launch in launches)
        return launches if right else None

    def _make_maps(
        self, index: int, tile: Tile, x: int, x_strides: Words, weight: int, weight_stride: int
    ) -> tuple[Words, Words]:
        piece, dtype, encode = self._pieces[index], self.problem.dtype, runtime().encode
        if not piece.reduction:
            return _NO_MAP, _NO_MAP
        return encode(_pixels(piece, dtype, tile, x, x_strides)), encode(
            _boxes(piece, dtype, tile, weight, weight_stride)
        )


# Sizes, kernels and so on of the self-check of maps of three to five axes. No two axes of an image are alike, so that
# a driver which counts them in another order is found out.
_CHECKED: dict[int, dict[str, Any]] = {
    3: {"size": (401,), "kernel": (2,), "padding": ((0, 2),), "stride": 2, "dilation": 1},
    4: {"size": (13, 37), "kernel": (3, 2), "padding": ((2, 1), (0, 2)), "stride": (1, 2), "dilation": (2, 1)},
    5: {
        "size": (3, 7, 21), "kernel": (2, 3, 2), "padding": ((1, 0), (2, 1), (0, 2)), "stride": (1, 1, 2),
        "dilation": (1, 2, 1),
    },
}  # fmt: skip


def _is_right(problem: ConvProblem, tile: Tile, axes: int) -> bool:
    """Whether a kernel passes its self-check: two images and rows of channels, several tiles, taps in the padding.

    Its results are written in vectors.
    """
    channels = (ROW_BYTES + ALIGNMENT) // _itemsize(problem.dtype)
    geometry = dict(_CHECKED[axes])
    x_shape, w_shape = (2, *geometry.pop("size"), channels), (tile.channels + 8, channels, *geometry.pop("kernel"))
    small = ConvProblem.forward(
        axes - 2, x_shape, w_shape, dtype=problem.dtype, data_format="channels_last", precision=problem.precision,
        **geometry,
    )  # fmt: skip
    plan, (piece,) = ImplicitGemmHopperPlan(small, 0), lower(small)
    launch = _launch(piece, small.dtype, tile)

    def run(x: Any, w: Any, y: Any) -> None:
        plan.launch(launch, 0, x, plan.pack(w)[0], y, None, None)

    return is_right(launch.spec, small, _ALGORITHM, run)


class ImplicitGemmHopper(GpuAlgorithm):
    """Implicit GEMM by warpgroup products, in the tile predicted best or, where `tune` measured it, in this one."""

    name = "implicit_gemm_hopper"

    def __init__(self, tile: Tile | None = None) -> None:
        self._tiles = (tile,) if tile else _TILES
        self._tile = tile
        self.configuration = str(tile or "")

    def configurations(self, problem: ConvProblem) -> Iterable[ImplicitGemmHopper]:
        return map(ImplicitGemmHopper, _TILES)

    def why_not(self, problem: ConvProblem) -> str | None:
        capability = runtime().capability()
        if capability is not None and capability != _HOPPER:
            return f"made for compute capability {_HOPPER / 10}, not {capability / 10}"
        if problem.dtype not in _RATES:
            return f"multiplies {', '.join(_RATES)}, not {problem.dtype}"
        if problem.dtype == "float32" and problem.precision != "fast":
            return "float32 is rounded to TF32, which takes precision='fast'"
        if problem.op == "weight_grad" or not problem.channels_last:
            return "needs channels that lie together, of data in a channels-last format, and no weight gradient"
        if problem.groups > 1:
            return "more than one group"
        pieces, itemsize = lower(problem), _itemsize(problem.dtype)
        channels = pieces[0].in_channels if pieces else 0
        if not channels or channels * itemsize % ALIGNMENT:
            return f"{channels} channels of {itemsize} bytes: takes whole {ALIGNMENT} bytes"
        if 0 in problem.operand_shapes[0] or problem.padding_mode != "zeros":
            return "needs an input, padded with zeros"
        reason = next(filter(None, (_why_no_map(piece) for piece in pieces if piece.reduction)), None)
        if reason is None:
            reason = _GENERAL.why_not(problem)
        if reason is not None or capability is None:
            return reason
        wrong = next(filter(failed, (_spec(problem.dtype, tile) for tile in _TILES)), None)
        return None if wrong is None else f"{wrong} was found wrong on this device: implicit_gemm computes otherwise"

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        return _GENERAL.workspace_bytes(problem, workspace_limit)

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        seconds, dtype = 0.0, problem.dtype
        for piece in lower(problem):
            work = min(_work(piece, dtype, tile, machine.cores) for tile in self._tiles)
            seconds += machine.launch + 2 * work / (machine.flops * _RATES[dtype])
        return seconds

    def tolerance(self, problem: ConvProblem) -> float:
        """The bound of truncated sums, as for `implicit_gemm`, whose share of the work may be all of it.

        The instructions of a tap sum `depth` products of its channels each. Of float32 the cores read 11 bits and drop
        the others: each operand is off by 2^-10.
        """
        if problem.dtype == "int8":
            return 0.0
        depth, u = _PRODUCT_BYTES // _itemsize(problem.dtype), UNIT_ROUNDOFF["float32"]
        pieces = lower(problem)
        steps = max((math.prod(p.kernel) * -(-p.in_channels // depth) for p in pieces), default=0) + 2
        cut = 2 * 2.0**-10 + 2.0**-20 if problem.dtype == "float32" else 0.0
        own = cut + steps * 2 * (depth + 2) * u + UNIT_ROUNDOFF[DTYPES[problem.dtype][0]]
        return max(own, _GENERAL.tolerance(problem))

    def plan(self, problem: ConvProblem, workspace_limit: int) -> ImplicitGemmHopperPlan:
        return ImplicitGemmHopperPlan(problem, workspace_limit, self._tile)

    def variants(self) -> Iterable[KernelSpec]:
        return (_spec(dtype, tile) for dtype in _RATES for tile in _TILES)


_GENERAL = ImplicitGemm()
_ALGORITHM = ImplicitGemmHopper()
register(_ALGORITHM)
