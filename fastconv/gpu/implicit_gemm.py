"""``implicit_gemm``: convolution as one matrix product on tensor cores, its left matrix gathered as it is needed.

``docs/gpu_implicit_gemm.md`` has the arithmetic of the tiles. Which kernels there are is in ``tensor_cores.py``, which
one is taken in ``tiling.py``, and how groups with few channels share a tile in ``bundling.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.gpu.algorithm import GpuAlgorithm, launch_linear
from fastconv.gpu.arguments import (
    EPILOGUE,
    VIEW,
    Words,
    element_strides,
    epilogue,
    geometry,
    record,
    residual_strides,
    view,
)
from fastconv.gpu.bundling import Bundling, bundled
from fastconv.gpu.direct import run_piece
from fastconv.gpu.gathering import DIVISOR, TAP, Order, Tables, adjacent_channels, divisor, table_bytes, why_no_table
from fastconv.gpu.runtime import KernelSpec, runtime
from fastconv.gpu.selfcheck import failed, is_right
from fastconv.gpu.tensor_cores import (
    CHUNK_BYTES,
    OPERANDS,
    SMALL,
    TF32,
    Gather,
    Grouping,
    Operands,
    Tile,
    operands_of,
    rate,
    spec,
    specs,
    sum_spec,
    tiles,
)
from fastconv.gpu.tiling import (
    MOST_BLOCKS_X,
    MOST_BLOCKS_YZ,
    Config,
    Wish,
    blocks,
    configure,
    expected_gather,
    gather_of,
    partial_bytes,
    wishes,
)
from fastconv.gpu.writing import PARTIAL_VECTOR, aligned, direction
from fastconv.lowering import GEOMETRY, lower
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
        ("group_channels", DIVISOR),
        ("group_outputs", np.int64),
        ("y", VIEW),
        ("geometry", GEOMETRY),
        ("epilogue", EPILOGUE),
        ("channels_fastest", np.int64),
        ("images_fastest", np.int64),
        ("vectors", np.int64),
        ("splits", np.int64),
        ("partial", np.int64),
    ]
)


@dataclass(frozen=True)
class Launch:
    """How a piece is launched: the kernel, its table, blocks and threads, and how many blocks share a sum."""

    spec: KernelSpec
    order: Order
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    splits: int


def _launch(bundling: Bundling, operands: Operands, gather: Gather, tile: Tile, splits: int) -> Launch:
    grid = blocks(bundling.merged, tile), splits, bundling.merged.groups
    order: Order = "channels of taps" if gather.by_product else "taps"
    return Launch(spec(operands, gather, tile), order, grid, (tile.threads, 1, 1), splits)


class ImplicitGemmPlan(Plan):
    """Packed weights and, for each piece, one launch, or two where several blocks share a sum."""

    def __init__(self, problem: ConvProblem, workspace_limit: int, wish: Wish | None = None) -> None:
        self.problem = problem
        self._operands = operands_of(problem)
        self._bundlings = _bundlings(problem)
        self._numbers = [_numbers(bundling) for bundling in self._bundlings]
        taps = [(bundling.piece.taps, bundling.size) for bundling in self._bundlings]
        self.pack_key = f"rows of {self._operands.step} products {taps}"
        orders: tuple[Order, ...] = "taps", "channels of taps"
        self._tables = {order: Tables(problem, order) for order in orders}
        self._limit = _partial_limit(problem, workspace_limit)
        self._wish = wish
        self._launches = lru_cache(maxsize=64)(self._choose_launch)

    def pack(self, w: Any) -> Any:
        """Each piece's weight as its :class:`Bundling` has it."""
        return [bundling.pack(bundling.piece.weight_view(w), self._operands.step) for bundling in self._bundlings]

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        device = runtime().device()
        misalignment = runtime().address(x) % CHUNK_BYTES
        if not y.size:
            return
        for i, (bundling, weight) in enumerate(zip(self._bundlings, packed, strict=True)):
            source = bundling.view(x)
            launch = self._launches(i, element_strides(source.strides, x.itemsize), misalignment, device)
            if launch is None:
                run_piece(self.problem, bundling.piece, x, bundling.unpack(weight), y, bias, residual)
            else:
                self.launch(launch, i, source, weight, y, bias, residual)

    def launch(self, launch: Launch, index: int, x: Any, weight: Any, y: Any, bias: Any, residual: Any) -> None:
        """Compute piece `index`, which has outputs, from its packed weight and the bundled view of x."""
        bundling, problem, device = self._bundlings[index], self.problem, runtime()
        target = bundling.target(bundling.piece.target_view(y))
        added = None if residual is None else bundling.target(bundling.piece.target_view(residual))
        size, shared = launch.splits * target.size, launch.splits > 1
        partial = device.xp.empty(size, problem.accumulator_dtype) if shared else None
        parts = 0 if partial is None else device.address(partial)
        result, end = view(target), epilogue(problem, bias, added)
        images_fastest = abs(x.strides[0]) < abs(x.strides[5])
        by_channels, together = direction(
            target.shape, result[1:], residual_strides(end), target.itemsize, images_fastest, shared
        )
        vectors = together and aligned(parts, result[0], *end[:2])
        fields = self._numbers[index] | {
            "x": view(x),
            "weight": device.address(weight),
            "taps": self._tables[launch.order].address(index, x),
            "y": result,
            "epilogue": end,
            "channels_fastest": int(by_channels),
            "images_fastest": int(images_fastest),
            "vectors": int(vectors),
            "splits": launch.splits,
            "partial": parts,
        }
        params = record(IMPLICIT_GEMM, **fields)
        device.launch(launch.spec, launch.grid, launch.block, params)
        if shared:
            if bundling.grouping is Grouping.RESULTS:  # the parts are those of each group's own results
                params = record(IMPLICIT_GEMM, **fields | {"geometry": geometry(bundling.piece)})
            launch_linear(sum_spec(problem.dtype), target.size // (PARTIAL_VECTOR if vectors else 1), params)

    def _choose_launch(self, index: int, strides: Words, misalignment: int, device: int) -> Launch | None:
        """The launch of a piece for an input that lies in memory like this; None where its kernel is found wrong.

        Where the kernel that adds parts of sums is, no sum is shared.
        """
        bundling, operands = self._bundlings[index], self._operands
        piece = bundling.merged
        adjacent = adjacent_channels(piece, strides, misalignment // operands.itemsize, operands.chunk)
        gather = gather_of(operands, adjacent, bundling)
        config = configure(bundling, operands, gather, self._limit, self._wish)
        if not _is_right(operands, gather, config.tile):
            return None
        shared = config.splits > 1 and _is_right(operands, gather, config.tile, splits=2)
        return _launch(bundling, operands, gather, config.tile, config.splits if shared else 1)


@lru_cache(maxsize=1024)
def _bundlings(problem: ConvProblem) -> tuple[Bundling, ...]:
    return tuple(bundled(piece, operands_of(problem), problem.op) for piece in lower(problem))


def _numbers(bundling: Bundling) -> dict[str, Words | int]:
    """What the kernel is told of a piece whatever the arrays."""
    return {
        "geometry": geometry(bundling.merged),
        "channels": divisor(max(bundling.merged.in_channels, 1)),
        "group_channels": divisor(max(bundling.group_channels, 1)),
        "group_outputs": bundling.piece.out_channels,
    }


def _is_right(operands: Operands, gather: Gather, tile: Tile, splits: int = 1) -> bool:
    """Whether a kernel, or of shared sums the one that adds their parts, passes its self-check.

    It has more positions and channels than a tile, taps in the padding, and results that are written in vectors.
    """
    batch = 1
    if gather.grouped is Grouping.RESULTS:  # two bundles of three groups
        batch, groups, channels, outputs = gather.run, 6, 8, tile.channels // 4
    elif gather.grouped is Grouping.SUMS:  # three bundles of two groups
        groups, channels, outputs = 6, operands.chunk, tile.channels // 2 - 8
    else:
        groups, channels, outputs = 1, 3 * gather.run if gather.run > 1 else 5, tile.channels + 8
    x_shape, last = ((8, 18, groups * channels), True) if gather.vector > 1 else ((groups * channels, 8, 18), False)
    problem = ConvProblem.forward(
        2, (batch, *x_shape), (groups * outputs, channels, 3, 3), dtype=operands.dtype, padding=1, groups=groups,
        data_format="NHWC" if last else "NCHW", precision="fast" if operands is TF32 else "high",
    )  # fmt: skip
    if gather.grouped is Grouping.RESULTS:
        problem = replace(problem, op="weight_grad")
    plan, (bundling,) = ImplicitGemmPlan(problem, 0), _bundlings(problem)
    launch = _launch(bundling, operands, gather, tile, splits)

    def run(x: Any, w: Any, y: Any) -> None:
        plan.launch(launch, 0, bundling.view(x), plan.pack(w)[0], y, None, None)

    return is_right(launch.spec if splits == 1 else sum_spec(operands.dtype), problem, _ALGORITHM, run)


def _table_bytes(problem: ConvProblem) -> int:
    """Bytes of the tables that contiguous arrays take."""
    by_product = (b.piece.reduction for b in _bundlings(problem) if expected_gather(problem, b).by_product)
    return table_bytes(problem, "taps") + sum(by_product) * TAP.itemsize


def _partial_limit(problem: ConvProblem, workspace_limit: int) -> int:
    """Bytes for partial sums."""
    return workspace_limit - _table_bytes(problem)


class ImplicitGemm(GpuAlgorithm):
    """Implicit GEMM on tensor cores, as predicted best or, where `tune` measured it, as wished."""

    name = "implicit_gemm"

    def __init__(self, wish: Wish | None = None) -> None:
        self._wish = wish
        self.configuration = str(wish or "")

    def why_not(self, problem: ConvProblem) -> str | None:
        if problem.dtype != "float32" and problem.dtype not in OPERANDS:
            return f"tensor cores multiply float32, {', '.join(OPERANDS)}, not {problem.dtype}"
        if problem.dtype == "float32" and problem.precision == "highest":
            return "float32 is split into TF32 numbers; precision='highest' asks for float32 products"
        if problem.groups > MOST_BLOCKS_YZ:
            return f"more than {MOST_BLOCKS_YZ} groups"
        if any(blocks(piece, SMALL) > MOST_BLOCKS_X for piece in lower(problem)):
            return f"more than {MOST_BLOCKS_X} blocks"
        reason = why_no_table(problem, "taps")
        if reason is not None:
            return reason
        capability, needed = runtime().capability(), operands_of(problem).capability
        if capability is None:
            return None
        if capability < needed:
            return f"{problem.dtype} on tensor cores takes compute capability {needed / 10}, not {capability / 10}"
        operands = operands_of(problem)
        expected = {expected_gather(problem, bundling) for bundling in _bundlings(problem)}
        wrong = next(filter(failed, (spec(operands, g, tile) for g in expected for tile in tiles(operands, g))), None)
        return None if wrong is None else f"{wrong} was found wrong on this device: direct computes otherwise"

    def configurations(self, problem: ConvProblem) -> Iterable[ImplicitGemm]:
        operands, limit = operands_of(problem), _partial_limit(problem, USUAL_WORKSPACE)
        wished = (
            wish
            for bundling in _bundlings(problem)
            for wish in wishes(bundling, operands, expected_gather(problem, bundling), limit)
        )
        return map(ImplicitGemm, dict.fromkeys(wished))

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        limit, partial = _partial_limit(problem, workspace_limit), 0
        for bundling in _bundlings(problem):
            splits = self._config(problem, bundling, limit).splits
            partial = max(partial, splits * partial_bytes(bundling.piece) if splits > 1 else 0)
        return _table_bytes(problem) + partial

    def cost(self, problem: ConvProblem, machine: Machine) -> float:
        seconds, flops = 0.0, machine.flops * rate(operands_of(problem))
        for bundling in _bundlings(problem):
            config = self._config(problem, bundling, USUAL_WORKSPACE)
            launches = 2 if config.splits > 1 else 1
            seconds += launches * machine.launch + 2 * config.work / flops
        return seconds

    def _config(self, problem: ConvProblem, bundling: Bundling, limit: int) -> Config:
        return configure(bundling, operands_of(problem), expected_gather(problem, bundling), limit, self._wish)

    def tolerance(self, problem: ConvProblem) -> float:
        """The bound of truncated sums; of rounded ones for float32, whose rounded products err by 8 u.

        The cores align the products of one instruction, and the sum so far, with the largest of them and truncate them
        there and at the end: for `depth` products an error of ``(depth + 2) 2u`` of them all, u = 2^-24, and as it
        goes in one direction, no square root may be taken of the number of steps. Two float32 numbers split into
        halves lose ``2 * 2^-23`` when split and 2^-22 of the product that is left out.
        """
        if problem.accumulator_dtype not in UNIT_ROUNDOFF:
            return 0.0
        operands, u = operands_of(problem), UNIT_ROUNDOFF["float32"]
        steps = max((bundling.instructions for bundling in _bundlings(problem)), default=0) + 2
        of_a_step = 2 * (operands.depth + 2) * u
        if operands.split:
            return 8 * u + of_a_step + min(steps, 8 * math.sqrt(steps)) * u + u
        rounded = 2 * 2.0**-11 + 2.0**-22 if operands is TF32 else 0.0
        return rounded + steps * of_a_step + UNIT_ROUNDOFF[problem.result_dtype]

    def plan(self, problem: ConvProblem, workspace_limit: int) -> ImplicitGemmPlan:
        return ImplicitGemmPlan(problem, workspace_limit, self._wish)

    def variants(self) -> Iterable[KernelSpec]:
        return specs()


_ALGORITHM = ImplicitGemm()
register(_ALGORITHM)
