"""Patches as columns and back on NVIDIA GPUs, one launch each; ``cuda/patches.cu`` says how."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from fastconv.gpu.algorithm import MOST_INDEX, launch_linear
from fastconv.gpu.arguments import geometry, record, view
from fastconv.gpu.im2col import PACK
from fastconv.gpu.runtime import KernelSpec, dtype_defines, runtime
from fastconv.lowering import GEOMETRY, Views, lower
from fastconv.problem import DTYPES, ConvProblem

FOLD = np.dtype([("columns", np.int64), ("image", np.int64), ("geometry", GEOMETRY)])


def unfold(problem: ConvProblem, image: Any, columns: Any) -> None:
    """Copy the patches of an image, any view of shape ``problem.x_shape``, into columns without gaps."""
    if columns.size:
        (piece,) = lower(problem)
        params = record(
            PACK,
            x=view(Views(problem).source(image)),
            columns=runtime().address(columns),
            tile=(*geometry(piece), 0, piece.positions),
        )
        launch_linear(
            _spec("unfold_patches", image.dtype.name), piece.batch * piece.in_channels * piece.positions, params
        )


def fold(problem: ConvProblem, columns: Any, image: Any) -> None:
    """Write the sums of columns to an image, both without gaps.

    Raises
    ------
    ValueError
        If an axis is too long.
    """
    if image.size:
        (piece,) = lower(problem)
        if piece.reach > MOST_INDEX:
            raise ValueError(f"x has shape {problem.x_shape}: on a GPU an axis can have at most {MOST_INDEX} elements")
        addresses = {"columns": runtime().address(columns), "image": runtime().address(image)}
        params = record(FOLD, **addresses, geometry=geometry(piece))
        launch_linear(_spec("fold_patches", image.dtype.name), image.size, params)


@cache
def _spec(entry: str, dtype: str) -> KernelSpec:
    return KernelSpec("patches.cu", entry, dtype_defines(dtype))


def variants() -> Iterable[KernelSpec]:
    """Every kernel that can be launched."""
    return (_spec(entry, dtype) for dtype in DTYPES for entry in ("unfold_patches", "fold_patches"))
