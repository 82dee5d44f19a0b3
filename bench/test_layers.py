"""pytest-benchmark cases: fastconv's functions on every layer of the table, on the CPU, in float32.

Run them with ``python -m pytest bench``, those of one network with ``-k resnet50``. To compare with other libraries,
see ``python -m fastconv bench``.
"""

import pytest

import fastconv
from fastconv import dispatch
from fastconv.commands.engine import layer_operands
from fastconv.networks import LAYERS


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer.network}-{layer.name}")
def test_layer(benchmark, layer):
    x, w, _ = layer_operands(layer, "float32")
    function, problem = layer.function(fastconv), layer.problem()
    benchmark.group = layer.network
    benchmark.extra_info |= {
        "algorithm": dispatch.choose(problem, "cpu").name,
        "gflop": 2e-9 * problem.macs,
        "threads": fastconv.get_num_threads(),
    }
    function(x, w, device="cpu", **layer.options)  # compiles, or loads what was compiled
    y = benchmark(function, x, w, device="cpu", **layer.options)
    assert y.shape == problem.result_shape
