"""What this GPU can do at most, measured through PyTorch: the limits beside every figure of ``bench``.

A kernel multiplies no faster than a large matrix product and moves bytes no faster than a large copy. What is smaller
than the GPU never gets there, and a transform that multiplies less than the definition may be beyond the first.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastconv.networks import TF32, stored
from fastconv.timing import seconds_of

_SIDE = 8192  # of the matrices
_COPIED = 2 << 30  # bytes, far more than caches hold
_REPEATS = 20


@dataclass(frozen=True)
class GpuCeilings:
    """Rates of one GPU; a multiply-add is two operations, and what is copied is read and written."""

    name: str
    dtype: str
    flops: float  # of a matrix product in that dtype
    bfloat16_flops: float
    copy: float  # bytes per second

    @property
    def memory(self) -> float:
        """Bytes moved per second."""
        return self.copy


@cache
def measure(dtype: str) -> GpuCeilings:
    """Measure the ceilings for a dtype, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, dtype).result()


def _measure(dtype: str) -> GpuCeilings:
    import torch

    return GpuCeilings(
        torch.cuda.get_device_name(), dtype, _product_rate(dtype), _product_rate("bfloat16"), _copy_rate()
    )


def _copy_rate() -> float:
    import torch

    source = torch.ones(_COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2.0 * _COPIED / _median(lambda: target.copy_(source))


def _product_rate(dtype: str) -> float:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = dtype == TF32
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda").to(getattr(torch, stored(dtype))) for _ in range(2))
    return 2.0 * _SIDE**3 / _median(lambda: a @ b)


def _median(call: Callable[[], Any]) -> float:
    for _ in range(3):
        call()
    return statistics.median(seconds_of(call, "gpu") for _ in range(_REPEATS))
