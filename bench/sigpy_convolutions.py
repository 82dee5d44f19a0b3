"""sigpy's convolutions, its own and on fastconv: ``python bench/sigpy_convolutions.py FILE.json``.

Both run in this process on one thread, in turns, and the least CPU time of each is kept. Prints a table and writes
machine, versions and every row.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sigpy

import fastconv
from fastconv.compat import sigpy as ours
from fastconv.machine import cpu_model
from fastconv.sampling import random_values

ROUNDS = 5
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


def least(*calls: Callable[[], object]) -> list[float]:
    """Least CPU seconds of each call, in rounds of turns."""
    best = [math.inf] * len(calls)
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            stop = time.perf_counter() + TURN_SECONDS
            while True:
                start = time.thread_time()
                call()
                best[i] = min(best[i], time.thread_time() - start)
                if time.perf_counter() > stop:
                    break
    return best


def main() -> None:
    """Measure, print, write."""
    rng, rows = np.random.default_rng(0), []
    for dtype in ("float32", "complex64"):
        for name, data_shape, filt_shape, channels in CASES:
            data, filt = (random_values(shape, dtype, rng) for shape in (data_shape, filt_shape))
            output = ours.convolve(data, filt, multi_channel=channels)
            for function, arguments in (
                ("convolve", (data, filt)),
                ("convolve_data_adjoint", (output, filt, data_shape)),
                ("convolve_filter_adjoint", (output, data, filt_shape)),
            ):
                its, mine = (getattr(module, function) for module in (sigpy.conv, ours))
                expected, result = (call(*arguments, multi_channel=channels) for call in (its, mine))
                difference = float(np.max(np.abs(result - expected)) / np.max(np.abs(expected)))
                theirs, here = least(
                    lambda: its(*arguments, multi_channel=channels),  # noqa: B023
                    lambda: mine(*arguments, multi_channel=channels),  # noqa: B023
                )
                rows.append(
                    {"case": name, "dtype": dtype, "function": function, "sigpy_seconds": theirs,
                     "fastconv_seconds": here, "speedup": theirs / here, "difference": difference}
                )  # fmt: skip
                print(f"{name:26} {dtype:10} {function:24} {theirs * 1e3:9.2f} ms {here * 1e3:9.2f} ms"
                      f" {theirs / here:7.1f}x", flush=True)  # fmt: skip
    mean = math.exp(np.mean([math.log(row["speedup"]) for row in rows]))
    print(f"geometric mean {mean:.1f}, least {min(row['speedup'] for row in rows):.2f}")
    if len(sys.argv) > 1:
        about = {"machine": cpu_model(), "threads": 1, "numpy": np.__version__, "scipy": version("scipy"),
                 "sigpy": version("sigpy"), "fastconv": fastconv.__version__}  # fmt: skip
        Path(sys.argv[1]).write_text(json.dumps(about | {"geometric_mean": mean, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with fastconv.threads(1):
        main()
