"""Convolution as matrix product: patches in columns, a BLAS for the sums, one tile at a time.

A tile is a run of target positions of one image. Its patches are laid out as a matrix ``(taps, positions)`` for each
group; the weight ``(O, taps)`` times that is the tile of the result, to which bias, residual and activation are applied
as it is written out. The patch matrix of the whole image never exists: a tile is sized for the L2 cache.

Where an output sees all of its image, as in a fully connected layer, the images are the patches, copied if they do not
lie in the order of the weights, as with channels last. The weights, which lie as the caller has them, are read from
memory once for all images, by all cores. (For a few images nothing but that reading matters: see `fully_connected`.)

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.cpu import parallel
from fastconv.cpu.algorithm import CpuAlgorithm
from fastconv.cpu.blas import one_thread
from fastconv.cpu.costs import CostModel, Work, gathering, interleaving, scattering
from fastconv.cpu.elements import resolve
from fastconv.cpu.fully_connected import sees_all
from fastconv.cpu.jit import Kernel, array, contiguous_taps, integer, records
from fastconv.cpu.plan import PiecewisePlan
from fastconv.cpu.rows import add_row, read_row, write_row
from fastconv.lowering import GEOMETRY, Correlation, lower
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import USUAL_WORKSPACE, available_cores, get_num_threads

_TILE = 1 << 20  # bytes of patches (all groups) in a tile, about the L2 cache
_LEAST, _MOST = 64, 1024  # positions (or output channels): fewer starve the GEMM, more only cost memory
_PARTS = 4  # of the output channels of a fully connected layer, for each core,
_LEAST_PART = 64 << 10  # of so many weights at least: they are read in the time that Python takes for a task
_SHARES = 16  # a tile takes at most this part of the workspace: so many threads may hold one
_LONGEST = 4 << 20  # bytes of the patches of a single position, beyond which there is nothing to tile


def _pack(cols, x, n, begin, end, geometry, half):  # type: ignore[no-untyped-def]
    """Fill ``cols (G, taps, positions)`` for the target positions `begin` to `end` of image `n`."""
    geo = geometry[0]
    mode = geo.padding_mode
    count_h, count_w = geo.count[1], geo.count[2]
    for g in range(geo.groups):
        for tap in range(cols.shape[1]):
            rest, kw = divmod(tap, geo.kernel[2])
            rest, kh = divmod(rest, geo.kernel[1])
            c, kd = divmod(rest, geo.kernel[0])
            line = cols[g, tap]
            position = begin
            while position < end:  # one run for each row of targets
                rest, w = divmod(position, count_w)
                d, h = divmod(rest, count_h)
                run = min(count_w - w, end - position)
                source_d = resolve(d * geo.stride[0] + kd * geo.dilation[0] - geo.offset[0], geo.size[0], mode)
                source_h = resolve(h * geo.stride[1] + kh * geo.dilation[1] - geo.offset[1], geo.size[1], mode)
                if source_d < 0 or source_h < 0:
                    line[position - begin : position - begin + run] = 0
                else:
                    first = w * geo.stride[2] + kw * geo.dilation[2] - geo.offset[2]
                    row = x[n, g, c, source_d, source_h]
                    read_row(row, first, geo.stride[2], mode, half, line[position - begin : position - begin + run])
                position += run


def _finish(y, sums, n, begin, bias, residual, geometry, half, activation, parameters):  # type: ignore[no-untyped-def]
    """Write the tile ``sums (G, O, positions)`` to targets `begin` on of image `n`."""
    geo = geometry[0]
    count_h, count_w = geo.count[1], geo.count[2]
    out_channels = sums.shape[1]
    for g in range(sums.shape[0]):
        for o in range(out_channels):
            line = sums[g, o]
            added = bias[g * out_channels + o] if bias.shape[0] > 0 else sums.dtype.type(0)
            position = 0
            while position < line.shape[0]:
                rest, first = divmod(begin + position, count_w)
                d, h = divmod(rest, count_h)
                run = min(count_w - first, line.shape[0] - position)
                part = line[position : position + run]
                if residual.shape[0] > 0:
                    add_row(part, residual[n, g, o, d, h, first : first + run], half)
                write_row(part, added, activation, parameters, half, y[n, g, o, d, h, first : first + run])
                position += run


_pack_kernel, _finish_kernel = Kernel(_pack), Kernel(_finish)


class _Cut(NamedTuple):
    """How a correlation is cut: what is tiled (see `_tiled`), positions of a tile, and elements that one takes."""

    tiled: Correlation
    tile: int
    elements: int


class _Im2colPlan(PiecewisePlan):
    def __init__(self, problem: ConvProblem, workspace_limit: int) -> None:
        dtype, result = named_dtype(problem.dtype), named_dtype(problem.result_dtype)
        accumulator = named_dtype(problem.accumulator_dtype)
        super().__init__(problem, lambda piece: _cut(piece, accumulator.itemsize, workspace_limit))
        geometry = records(GEOMETRY)
        matrix = array(accumulator, 3, contiguous=True, readonly=False)
        vector = array(accumulator, 1, contiguous=True)
        self._pack = _pack_kernel.compile(matrix, array(dtype, 6), integer, integer, integer, geometry, integer)
        self._finish = _finish_kernel.compile(
            array(result, 6, readonly=False), matrix, integer, integer, vector, array(result, 6), geometry, integer,
            integer, vector,
        )  # fmt: skip

    def pack(self, w: Any) -> Any:
        """For each piece, its taps as a contiguous (G, O, taps) matrix."""
        return [contiguous_taps(piece, w, self._accumulator) for piece in self._pieces]

    def _run_piece(self, piece: Correlation, cut: _Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any) -> None:
        if cut.tiled is not piece and x.dtype == self._accumulator:
            self._multiply_images(piece, cut, weights, x, y, bias, residual)
            return
        tile = cut.tile
        tiles = -(-piece.positions // tile)

        def work(first: int, last: int) -> None:
            memory = parallel.scratch(cut.elements, self._accumulator)
            for task in range(first, last):
                n, begin = task // tiles, task % tiles * tile
                end = min(begin + tile, piece.positions)
                shape = (piece.groups, piece.reduction, end - begin)
                used = math.prod(shape)
                cols = memory[:used].reshape(shape)
                sums = memory[used : used + piece.groups * piece.out_channels * shape[2]]
                sums = sums.reshape(piece.groups, piece.out_channels, shape[2])
                self._pack(cols, x, n, begin, end, piece.geometry, self._half)
                with np.errstate(all="ignore"):  # NaN and infinity are data, here as in the other algorithms
                    np.matmul(weights, cols, out=sums)
                self._finish(y, sums, n, begin, bias, residual, piece.geometry, self._half, *self._activation)

        with one_thread():
            parallel.run(work, piece.batch * tiles, piece.macs)

    def _multiply_images(
        self, piece: Correlation, cut: _Cut, weights: Any, x: Any, y: Any, bias: Any, residual: Any
    ) -> None:
        """The images, laid out in one order, are the patches; a task is some images and some output channels."""
        tile, parts = cut.tile, _parts(piece)
        y, residual = (a.transpose(3, 1, 2, 4, 5, 0) for a in (y, residual))
        biases = bias.reshape(piece.groups, -1)

        def work(first: int, last: int) -> None:
            memory = parallel.scratch(cut.elements, self._accumulator)
            for task in range(first, last):
                begin, part = task // parts * tile, task % parts
                images, used = x[begin : begin + tile], 0
                if not x.flags.c_contiguous:
                    used = images.size
                    laid_out = memory[:used].reshape(images.shape)
                    np.copyto(laid_out, images)
                    images = laid_out
                some = images.reshape(images.shape[0], piece.groups, piece.reduction)
                outputs = slice(piece.out_channels * part // parts, piece.out_channels * (part + 1) // parts)
                shape = piece.groups, outputs.stop - outputs.start, some.shape[0]
                sums = memory[used : used + math.prod(shape)].reshape(shape)
                with np.errstate(all="ignore"):
                    np.matmul(weights[:, outputs], some.transpose(1, 2, 0), out=sums)
                self._finish(y[:, :, outputs], sums, 0, begin, biases[:, outputs].ravel(), residual[:, :, outputs],
                             cut.tiled.geometry, self._half, *self._activation)  # fmt: skip

        with one_thread():
            parallel.run(work, -(-piece.batch // tile) * parts, piece.macs)


def _tiled(piece: Correlation) -> Correlation:
    """What is cut into tiles: positions, or images where those are the patches."""
    return replace(piece, batch=1, count=(1, 1, piece.batch)) if sees_all(piece) else piece


def _parts(piece: Correlation) -> int:
    """Ranges of output channels, several for each core: their weights are read from memory, once, by all cores."""
    weights = piece.groups * piece.out_channels * piece.reduction
    return max(min(_PARTS * available_cores(), piece.out_channels // _LEAST, weights // _LEAST_PART), 1)


def _cut(piece: Correlation, itemsize: int, workspace_limit: int) -> _Cut:
    tiled = _tiled(piece)
    tile = _tile(tiled, itemsize, workspace_limit)
    return _Cut(tiled, tile, _elements(piece, tile))


def _tile(piece: Correlation, itemsize: int, workspace_limit: int) -> int:
    """Target positions of one tile. It must not depend on the number of threads, which would change sums' order."""
    position = max(_patch_bytes(piece, itemsize), 1)
    wanted = min(max(_TILE // position, _LEAST), _MOST)
    return max(min(wanted, workspace_limit // _SHARES // position, piece.positions), 1)


def _work(problem: ConvProblem) -> Iterable[Work]:
    for piece in lower(problem):
        if sees_all(piece):
            weights = piece.groups * piece.out_channels * piece.reduction
            counts: dict[str, float] = {
                "product": piece.macs,
                "weight": weights,
                "result": piece.batch * piece.groups * piece.out_channels,
                "task": (parts := _parts(piece)),
            }
            yield Work(parts, counts)
            continue
        tasks = piece.batch * -(-piece.positions // _tile(piece, 4, USUAL_WORKSPACE))
        positions = piece.batch * piece.groups * piece.positions
        counts = {
            "product": piece.macs,
            "arranged": tasks * piece.groups * piece.out_channels * piece.reduction,
            "patch element": positions * piece.reduction,
            "result": positions * piece.out_channels,
            "row": positions * (piece.reduction + piece.out_channels) / piece.count[2],  # of patches, or of results
            "matrix product": tasks * piece.groups,
            "task": tasks,
        }
        scattered = scattering(problem, counts, "patch element", "result")
        yield Work(tasks, counts | scattered | interleaving(problem, piece))


def _patch_bytes(piece: Correlation, itemsize: int) -> int:
    return piece.groups * (piece.reduction + piece.out_channels) * itemsize


def _elements(piece: Correlation, tile: int) -> int:
    return piece.groups * (piece.reduction + piece.out_channels) * tile


class Im2col(CpuAlgorithm):
    """Tiled patches times a BLAS GEMM."""

    name = "im2col"
    running = CostModel(
        _work,
        {
            "product": 3e-11,
            "weight": 1.35e-10,
            "arranged": 4e-10,  # weights, by the BLAS, for each tile
            "patch element": 5.7e-10,
            "result": 2.3e-10,
            "row": 1.5e-8,
            "scattered": 9.4e-10,
            "line": 7e-9,
            "matrix product": 2.1e-6,
            "task": 9.5e-6,
            "call": 2.2e-5,
        },
        widest=1.0,  # NumPy's OpenBLAS uses 8 lanes even where a CPU has 16, on AMD's at least
    )
    packing = CostModel(gathering, {"gathered": 3.5e-9, "call": 1e-5})

    def why_not(self, problem: ConvProblem) -> str | None:
        if "int" in problem.dtype:
            return f"NumPy's BLAS has no matrix product for {problem.dtype}"
        itemsize = named_dtype(problem.accumulator_dtype).itemsize
        longest = max((_patch_bytes(piece, itemsize) for piece in lower(problem)), default=0)
        if longest > _LONGEST:
            return f"the patches of a single output take {longest >> 20} MiB, more than {_LONGEST >> 20} MiB"
        return None

    def workspace_bytes(self, problem: ConvProblem, workspace_limit: int) -> int:
        itemsize = named_dtype(problem.accumulator_dtype).itemsize
        most = max((_cut(piece, itemsize, workspace_limit).elements for piece in lower(problem)), default=0)
        return most * itemsize * min(get_num_threads(), _SHARES)

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _Im2colPlan(problem, workspace_limit)


register(Im2col())
