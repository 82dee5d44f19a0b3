"""Pooling, its gradients, unfold and fold beside PyTorch's: ``python bench/pooling.py FILE.json``.

Both run in this process on one thread, in turns, and the least CPU time of each is kept. The floor of a row is the time
that its arrays, each read or written once, need at the measured rate of reading from a working set of their size: from
one call to the next they stay in the cache that holds them. Prints a table and writes machine, versions and every row.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from turns import least

import fastconv
from fastconv.commands import info
from fastconv.commands.bench_results import geometric_mean
from fastconv.commands.ceilings import read_rate

TURN_SECONDS = 0.03
SETS = (1 << 14, 1 << 18, 1 << 22, 1 << 24, 1 << 27)  # bytes


@dataclass(frozen=True)
class Case:
    """A function of an input (N, C, spatial axes…), and its arguments after it."""

    name: str
    function: str
    shape: tuple[int, ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """Something to compute: the bytes of its arrays, and PyTorch's call and ours."""

    what: str
    nbytes: int
    theirs: Callable[[], Any]
    ours: Callable[[], Any]


CASES = [
    Case("ResNet 64x112x112, 3x3 s2 p1", "max_pool2d", (1, 64, 112, 112), (3, 2, 1)),
    Case("VGG 64x224x224, 2x2 s2", "max_pool2d", (1, 64, 224, 224), (2,)),
    Case("VGG 512x28x28, 2x2 s2", "max_pool2d", (1, 512, 28, 28), (2,)),
    Case("AlexNet 256x13x13, 3x3 s2", "max_pool2d", (1, 256, 13, 13), (3, 2)),
    Case("GoogLeNet 192x28x28, 3x3 p1", "max_pool2d", (1, 192, 28, 28), (3, 1, 1)),
    Case("YOLO 512x13x13, 5x5 p2", "max_pool2d", (1, 512, 13, 13), (5, 1, 2)),
    Case("DenseNet 256x28x28, 2x2 s2", "avg_pool2d", (1, 256, 28, 28), (2,)),
    Case("Inception 192x35x35, 3x3 p1", "avg_pool2d", (1, 192, 35, 35), (3, 1, 1)),
    Case("64x56x56, p = 2, 2x2 s2", "lp_pool2d", (1, 64, 56, 56), (2.0, 2)),
    Case("64x56x56, p = 3, 3x3 s2", "lp_pool2d", (1, 64, 56, 56), (3.0, 3, 2)),
    Case("global 2048x7x7", "adaptive_avg_pool2d", (1, 2048, 7, 7), (1,)),
    Case("global 1280x7x7, batch 32", "adaptive_avg_pool2d", (32, 1280, 7, 7), (1,)),
    Case("512x14x14 to 7x7", "adaptive_avg_pool2d", (1, 512, 14, 14), (7,)),
    Case("256x13x13 to 6x6", "adaptive_avg_pool2d", (1, 256, 13, 13), (6,)),
    Case("256x13x13 to 6x6", "adaptive_max_pool2d", (1, 256, 13, 13), (6,)),
    Case("C3D 64x16x56x56, 2x2x2 s2", "max_pool3d", (1, 64, 16, 56, 56), (2,)),
    Case("I3D 192x8x28x28, 3x3x3 p1", "max_pool3d", (1, 192, 8, 28, 28), (3, 1, 1)),
    Case("volume 32x32x32x32, 2x2x2 s2", "avg_pool3d", (1, 32, 32, 32, 32), (2,)),
    Case("sound 64x16000, 4 s4", "max_pool1d", (1, 64, 16000), (4,)),
    Case("sound 64x16000, 3 s2 p1", "max_pool1d", (1, 64, 16000), (3, 2, 1)),
    Case("sound 64x16000, 4 s4", "avg_pool1d", (1, 64, 16000), (4,)),
    Case("64x56x56, 3x3 p1", "unfold", (1, 64, 56, 56), (3, 1, 1)),
    Case("64x56x56, 2x2 s2", "unfold", (1, 64, 56, 56), (2, 1, 0, 2)),
    Case("64x56x56, 3x3 p1", "fold", (1, 576, 3136), (56, 3, 1, 1)),
    Case("64x56x56, 2x2 s2", "fold", (1, 256, 784), (56, 2, 1, 0, 2)),
]


def pooling_calls(case: Case, last: bool, rng: np.random.Generator) -> Iterator[Call]:
    """The function, with indices if there are any, and its gradient."""
    theirs, ours = getattr(F, case.function), getattr(fastconv, case.function)
    options = {"data_format": "channels_last" if last else "channels_first"}
    x = np.abs(rng.standard_normal(case.shape, np.float32)) + np.float32(0.1)  # so that odd powers have roots
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x
    x_t, arguments = tensor(x, last), case.arguments
    y = ours(x, *arguments, **options)
    moved = x.nbytes + y.nbytes
    yield Call("forward", moved, lambda: theirs(x_t, *arguments), lambda: ours(x, *arguments, **options))
    dy = rng.standard_normal(y.shape, np.float32)
    dy_t, recorded = tensor(dy, last), x_t.detach().requires_grad_()
    result = theirs(recorded, *arguments)
    gradient = getattr(fastconv.grad, f"{case.function}_input".replace("adaptive_max", "max"))

    def backward() -> Any:
        return torch.autograd.grad(result, recorded, dy_t, retain_graph=True)[0]

    if "max" in case.function:
        _, indices = ours(x, *arguments, return_indices=True, **options)
        moved += indices.nbytes
        yield Call(
            "with indices", moved, lambda: theirs(x_t, *arguments, return_indices=True),
            lambda: ours(x, *arguments, return_indices=True, **options),
        )  # fmt: skip
        yield Call("gradient", moved, backward, lambda: gradient(x.shape, indices, dy, **options))
    elif case.function.startswith("lp"):
        yield Call("gradient", moved + x.nbytes, backward, lambda: gradient(x, dy, *arguments, **options))
    else:
        arguments_of = () if case.function.startswith("adaptive") else arguments
        yield Call("gradient", moved, backward, lambda: gradient(x.shape, dy, *arguments_of, **options))


def unfolding_calls(case: Case, rng: np.random.Generator) -> Iterator[Call]:
    """Unfold or fold; each is the other's gradient."""
    theirs, ours, x = getattr(F, case.function), getattr(fastconv, case.function), rng.random(case.shape, np.float32)
    x_t, y = torch.from_numpy(x), ours(x, *case.arguments)
    yield Call("forward", x.nbytes + y.nbytes, lambda: theirs(x_t, *case.arguments), lambda: ours(x, *case.arguments))


def tensor(x: Any, last: bool) -> Any:
    """A tensor (N, C, …) over the memory of an array whose channels may come last."""
    return torch.from_numpy(x).movedim(-1, 1) if last else torch.from_numpy(x)


def measure(case: Case, last: bool, call: Call, reads: dict[int, float]) -> dict[str, Any]:
    """The row of a call; the difference of results is relative to the largest one."""
    expected, result = (r[0] if isinstance(r, tuple) else r for r in (call.theirs(), call.ours()))
    expected = (expected.movedim(1, -1) if last else expected).detach().numpy()
    theirs, ours = least(call.theirs, call.ours, seconds=TURN_SECONDS)
    rate = reads[min((size for size in SETS if size >= call.nbytes), default=SETS[-1])]
    return asdict(case) | {
        "format": "channels_last" if last else "channels_first", "what": call.what, "pytorch_seconds": theirs,
        "fastconv_seconds": ours, "ratio": theirs / ours, "bytes": call.nbytes, "floor_seconds": call.nbytes / rate,
        "difference": float(np.max(np.abs(result - expected)) / np.max(np.abs(expected))),
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    rng, rows = np.random.default_rng(0), []
    reads = {size: read_rate(size) for size in SETS}
    print(f"{'':68} {'PyTorch us':>12} {'fastconv us':>12} {'ratio':>6} {'floor us':>9}")
    for case in CASES:
        for last in (False,) if "fold" in case.function else (False, True):
            for call in unfolding_calls(case, rng) if "fold" in case.function else pooling_calls(case, last, rng):
                row = measure(case, last, call, reads)
                rows.append(row)
                label = f"{case.function} {case.name}{', channels last' * last}, {call.what}"
                times = [row[f"{name}_seconds"] * 1e6 for name in ("pytorch", "fastconv", "floor")]
                print(f"{label:68} {times[0]:12.1f} {times[1]:12.1f} {row['ratio']:6.2f} {times[2]:9.1f}", flush=True)
    means = {}
    for what, last in dict.fromkeys((row["what"], row["format"]) for row in rows):
        ratios = [row["ratio"] for row in rows if (row["what"], row["format"]) == (what, last)]
        means[f"{what}, {last}"] = geometric_mean(ratios)
        print(f"{what}, {last}: geometric mean {means[f'{what}, {last}']:.2f}, least {min(ratios):.2f}")
    if len(sys.argv) > 1:
        about = {"date": time.strftime("%Y-%m-%dT%H:%M:%S"), "machine": info.collect(), "threads": 1,
                 "pytorch": torch.__version__, "read_bytes_per_second": reads, "geometric_means": means}  # fmt: skip
        Path(sys.argv[1]).write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with fastconv.threads(1):
        main()
