"""sigpy's convolutions, its own and on fastconv: ``python bench/sigpy_convolutions.py [FILE.json] [--only WORDS]``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import sigpy
from turns import Race, Row, difference, main, raced

from fastconv.compat import sigpy as ours
from fastconv.sampling import random_values

TURN_SECONDS = 0.2

#: Name, shape of the data, shape of the filter, multi-channel.
CASES = [
    ("signals, one filter", (64, 4096), (65,), False),
    ("1-D, 16 to 16 channels", (8, 16, 4096), (16, 16, 9), True),
    ("image, one filter", (512, 512), (7, 7), False),
    ("dictionary of 32 images", (1, 256, 256), (32, 1, 11, 11), True),
    ("2-D, 16 to 16 channels", (4, 16, 64, 64), (16, 16, 5, 5), True),
    ("volume, one filter", (64, 64, 64), (5, 5, 5), False),
    ("3-D, 8 to 8 channels", (1, 8, 32, 32, 32), (8, 8, 3, 3, 3), True),
]


def rows(name: str, shapes: tuple[Any, Any], channels: bool, dtype: str) -> Iterator[Row]:
    """The convolution and its two adjoints."""
    rng = np.random.default_rng(0)
    data, filt = (random_values(shape, dtype, rng) for shape in shapes)
    output = ours.convolve(data, filt, multi_channel=channels)
    for function, arguments in (
        ("convolve", (data, filt)),
        ("convolve_data_adjoint", (output, filt, data.shape)),
        ("convolve_filter_adjoint", (output, data, filt.shape)),
    ):
        calls = [
            partial(getattr(module, function), *arguments, multi_channel=channels) for module in (sigpy.conv, ours)
        ]
        expected, result = (call() for call in calls)
        yield {
            "name": name, "call": f"{function}, {dtype}", "difference": difference(result, expected),
            **raced(*calls, TURN_SECONDS),
        }  # fmt: skip


def races() -> Iterator[Race]:
    """Each case, real and complex."""
    for dtype in ("float32", "complex64"):
        for name, data_shape, filt_shape, channels in CASES:
            yield f"{name}, {dtype}", partial(rows, name, (data_shape, filt_shape), channels, dtype)


if __name__ == "__main__":
    sys.exit(main(__doc__, f"sigpy {sigpy.__version__}", races()))
