"""What a call takes of the host on a GPU: ``python bench/gpu_launches.py FILE.json``.

A call queues its kernels and returns. How long that takes is measured over rows of calls so short that the queue takes
all of them, and the least of many rows is kept: of each algorithm's plan, with its weight packed, and of the function
and the layer that users call, with what the dispatcher chooses. 15 microseconds are aimed at for a plan.

A first call loads kernels, or compiles them if they are not on disk, and checks them. Its time is taken in new
processes with an empty cache, and once more with what that left there. 3 seconds are aimed at.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from fastconv.commands import info
from fastconv.dispatch import Execution
from fastconv.gpu.runtime import why_no_gpu
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms

_CALLS, _ROWS = 100, 100
_DTYPES = ("float16", "float32")
_FORMATS = {"NCHW": ((1, 64, 14, 14), "OIHW"), "NHWC": ((1, 14, 14, 64), "OHWI")}


def microseconds(call: Callable[[], Any], wait: Callable[[], None], calls: int = _CALLS, rows: int = _ROWS) -> float:
    """The host's least time for a call; `wait` lets the device finish what was queued."""
    call()
    least = float("inf")
    for _ in range(rows):
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        least = min(least, (time.perf_counter() - start) / calls)
    wait()
    return least * 1e6


def plans(xp: Any, wait: Callable[[], None], **count: int) -> Iterator[dict[str, Any]]:
    """Each algorithm's plan of the small layers that it takes, one of them depthwise."""
    kinds = itertools.product(_DTYPES, _FORMATS, (1, 64), algorithms("gpu"))
    for dtype, data_format, groups, algorithm in kinds:
        problem = ConvProblem.forward(
            2, _FORMATS[data_format][0], (64, 64 // groups, 3, 3), dtype=dtype, padding=1, groups=groups, bias=True,
            activation="relu", data_format=data_format,
        )  # fmt: skip
        if algorithm.why_not(problem) is not None:
            continue
        x, w, out = (xp.zeros(shape, dtype) for shape in (*problem.operand_shapes, problem.result_shape))
        bias, execution = xp.zeros(64, np.float32), Execution(problem, algorithm)
        packed = execution.pack(w)
        call = partial(execution, x, w, bias, out=out, packed=packed)
        name = f"plan of {algorithm.name}" + (", depthwise" if groups > 1 else "")
        yield _row(name, dtype, data_format, microseconds(call, wait, **count))


def forms(xp: Any, wait: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """The function and the layer."""
    for dtype in _DTYPES:
        for data_format, (shape, weight_format) in _FORMATS.items():
            x, bias = xp.zeros(shape, dtype), xp.zeros(64, np.float32)
            w = xp.zeros((64, 64, 3, 3) if weight_format == "OIHW" else (64, 3, 3, 64), dtype)
            options = {
                "padding": 1, "activation": "relu", "data_format": data_format, "weight_format": weight_format
            }  # fmt: skip
            layer = fastconv.Conv2d(w, bias, **options)
            calls = {"conv2d": partial(fastconv.conv2d, x, w, bias, **options), "Conv2d": partial(layer, x)}
            for name, call in calls.items():
                yield _row(name, dtype, data_format, microseconds(call, wait))


def _row(call: str, dtype: str, data_format: str, taken: float) -> dict[str, Any]:
    return {"call": call, "dtype": dtype, "format": data_format, "microseconds": taken}


def first_calls() -> Iterator[dict[str, Any]]:
    """First calls in new processes, without and with compiled kernels on disk."""
    for dtype in _DTYPES:
        for data_format in _FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                for cache in ("empty", "filled"):
                    done = subprocess.run(
                        [sys.executable, __file__, "--first", dtype, data_format],
                        env=os.environ | {"FASTCONV_CACHE_DIR": folder}, check=True, capture_output=True, text=True,
                    )  # fmt: skip
                    yield {"cache": cache, "dtype": dtype, "format": data_format, "seconds": float(done.stdout)}


def first_call(dtype: str, data_format: str) -> float:
    """Seconds of the first call of this process."""
    import cupy

    shape, _ = _FORMATS[data_format]
    x, w = cupy.zeros(shape, dtype), cupy.zeros((64, 64, 3, 3), dtype)
    cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    fastconv.conv2d(x, w, padding=1, data_format=data_format)
    cupy.cuda.Device().synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="JSON to write")
    parser.add_argument("--first", nargs=2, metavar=("DTYPE", "FORMAT"), help="time one first call, and print seconds")
    args = parser.parse_args()
    if args.first:
        print(first_call(*args.first))
        return
    reason = why_no_gpu()
    if reason is not None:
        sys.exit(f"gpu_launches: {reason}")
    import cupy

    def wait() -> None:
        cupy.cuda.Device().synchronize()

    found: dict[str, Any] = {"machine": info.collect(places=False), "calls": [], "first calls": []}
    for row in (*plans(cupy, wait), *forms(cupy, wait)):
        found["calls"].append(row)
        print(f"{row['microseconds']:7.1f} us  {row['call']}, {row['dtype']}, {row['format']}", flush=True)
    for row in first_calls():
        found["first calls"].append(row)
        print(
            f"{row['seconds']:7.2f} s   first call, {row['cache']} cache, {row['dtype']}, {row['format']}", flush=True
        )
    if args.file:
        args.file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
