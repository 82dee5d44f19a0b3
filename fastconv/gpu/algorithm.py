"""What GPU algorithms have in common."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastconv.gpu.runtime import KernelSpec, runtime
from fastconv.problem import ConvProblem
from fastconv.registry import Algorithm

#: The smallest workspace limit that can be set: what needs more than this for one column or table must decline.
LEAST_WORKSPACE = 1 << 20

#: Coordinates along an axis, and positions of an image, are 32-bit numbers in most kernels: what reaches further than
#: this must decline.
MOST_INDEX = 1 << 30

_BLOCK = 256
_MOST_BLOCKS = 1 << 16  # enough to fill any GPU


class GpuAlgorithm(Algorithm):
    """An algorithm whose kernels can be listed, so that all can be compiled ahead and on machines without a GPU."""

    device = "gpu"

    @abstractmethod
    def variants(self) -> Iterable[KernelSpec]:
        """Every kernel that a plan can launch."""


_TF32 = ("float32", "complex64")


def cublas_rounds(problem: ConvProblem) -> str | None:
    """Why a matrix product by cuBLAS would not be as exact as the problem asks for; None if it is."""
    if problem.accumulator_dtype in _TF32 and problem.precision != "fast" and os.environ.get("CUPY_TF32") == "1":
        return "CUPY_TF32=1 lets cuBLAS round float32 to 10 bits, which takes precision='fast'"
    return None


def launch_linear(
    spec: KernelSpec, threads: int, params: np.ndarray[Any, Any], block: int = _BLOCK, most: int = _MOST_BLOCKS
) -> None:
    """Run a kernel whose threads are numbered in one row, and that walks over what its `most` blocks do not cover."""
    blocks = min(-(-threads // block), most)
    runtime().launch(spec, (blocks, 1, 1), (block, 1, 1), params)
