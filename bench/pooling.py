"""Pooling, its gradients, unfold and fold beside PyTorch's: ``python bench/pooling.py [FILE.json] [--only WORDS]``.

The floor of a row is the time that its arrays, each read or written once, need at the measured rate of reading from a
working set of their size: from one call to the next they stay in the cache that holds them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from turns import Race, Row, difference, main, raced

import fastconv
from fastconv.commands.ceilings import read_rate

TURN_SECONDS = 0.03
SETS = (1 << 14, 1 << 18, 1 << 22, 1 << 24, 1 << 27)  # bytes
LAYOUTS = "channels_first", "channels_last"


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
    options = {"data_format": LAYOUTS[last]}
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


def rows(case: Case, last: bool, reads: dict[int, float]) -> Iterator[Row]:
    """The rows of a case in one layout."""
    rng = np.random.default_rng(0)
    for call in unfolding_calls(case, rng) if "fold" in case.function else pooling_calls(case, last, rng):
        expected, result = (r[0] if isinstance(r, tuple) else r for r in (call.theirs(), call.ours()))
        expected = (expected.movedim(1, -1) if last else expected).detach().numpy()
        rate = reads[min((size for size in SETS if size >= call.nbytes), default=SETS[-1])]
        yield {
            "name": f"{case.function} {case.name}", "shape": case.shape, "arguments": case.arguments,
            "call": f"{call.what}, {LAYOUTS[last]}", "bytes": call.nbytes, "floor_seconds": call.nbytes / rate,
            "difference": difference(result, expected), **raced(call.theirs, call.ours, TURN_SECONDS),
        }  # fmt: skip


def races(reads: dict[int, float]) -> Iterator[Race]:
    """Each case, in both layouts where it has two."""
    for case in CASES:
        for last in (False,) if "fold" in case.function else (False, True):
            yield f"{case.function} {case.name}, {LAYOUTS[last]}", partial(rows, case, last, reads)


if __name__ == "__main__":
    torch.set_num_threads(1)
    measured = {size: read_rate(size) for size in SETS}
    sys.exit(main(__doc__, f"PyTorch {torch.__version__}", races(measured), read_bytes_per_second=measured))
