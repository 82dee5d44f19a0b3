"""The prepared classes: what functions give with the same algorithm, bit for bit, with a weight of their own."""

import dataclasses
import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import laid_out, operands, problems, public_call

import fastconv
from fastconv import machine, registry
from fastconv.dispatch import choose, estimate
from fastconv.problem import ConvProblem
from fastconv.registry import Algorithm, algorithms

RNG = np.random.default_rng(4)
LAYERS = {
    "conv1d": fastconv.Conv1d,
    "conv2d": fastconv.Conv2d,
    "conv3d": fastconv.Conv3d,
    "conv_transpose1d": fastconv.ConvTranspose1d,
    "conv_transpose2d": fastconv.ConvTranspose2d,
    "conv_transpose3d": fastconv.ConvTranspose3d,
}


def skip_if_declined(name, problem):
    reasons = {a.name: a.why_not(problem) for a in algorithms("cpu")}
    if reasons.get(name):
        pytest.skip(reasons[name])


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


@settings(max_examples=100)
@given(data=st.data())
def test_layers_equal_functions_bit_for_bit(data):
    p = data.draw(problems(ops=("forward", "input_grad")))
    name, arguments = public_call(p)
    x, w, bias, residual = data.draw(operands(p))
    w = laid_out(w, data.draw(st.sampled_from(["contiguous", "reversed", "fortran", "unaligned"])))
    algorithm = data.draw(st.sampled_from(["auto", *(a.name for a in algorithms("cpu") if a.why_not(p) is None)]))
    layer = LAYERS[name](w, bias, **arguments, algorithm=algorithm, device="cpu")
    chosen = choose(p, "cpu", algorithm, prepared=True).name
    expected = getattr(fastconv, name)(x, w, bias, residual=residual, **arguments, algorithm=chosen, device="cpu")
    for _ in range(2):
        result = layer(x, residual=residual)
        assert result.dtype == expected.dtype
        assert result.tobytes() == expected.tobytes()


class PackedAtLeisure(Algorithm):
    """`direct`, said to compute in no time what it took an hour to pack."""

    name, device = "packed-at-leisure", "cpu"

    def __init__(self):
        self.planned = []

    def why_not(self, problem):
        return None

    def cost(self, problem, machine):
        return 0.0

    def pack_cost(self, problem, machine):
        return 3600.0

    def plan(self, problem, workspace_limit):
        self.planned.append(problem)
        return choose(problem, "cpu", "direct").plan(problem, workspace_limit)


def test_only_a_function_reckons_with_packing(monkeypatch):
    slow = PackedAtLeisure()
    algorithms("cpu")  # all found, before one is added
    monkeypatch.setitem(registry._ALGORITHMS, (slow.device, slow.name), slow)
    p = ConvProblem.forward(2, (1, 3, 11, 13), (5, 3, 3, 2))
    assert choose(p, prepared=True) is slow
    assert choose(p, prepared=False) is not slow
    assert [estimate(slow, p, prepared=prepared).seconds for prepared in (False, True)] == [3600, 0]
    explanation = fastconv.explain(p.x_shape, p.w_shape)
    (row,) = (row for row in explanation.rows if row.algorithm == slow.name)
    assert (row.call.chosen, row.prepared.chosen) == (False, True)
    x, w = normal(*p.x_shape), normal(*p.w_shape)
    called = fastconv.conv2d(x, w)
    assert slow.planned == []
    np.testing.assert_allclose(fastconv.Conv2d(w)(x), called, rtol=1e-4, atol=1e-5)
    assert slow.planned == [p]


@pytest.mark.parametrize("algorithm", algorithms("cpu"), ids=lambda a: a.name)
def test_packing_costs_more_where_it_must_gather(algorithm):
    p = ConvProblem.forward(2, (1, 32, 14, 14), (64, 32, 3, 3))
    if algorithm.why_not(p) is None:
        in_order = algorithm.pack_cost(p, machine.cpu())
        gathered = algorithm.pack_cost(dataclasses.replace(p, flip_kernel=True), machine.cpu())
        assert 0 <= in_order <= gathered


@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_the_arguments_of_their_functions(name):
    of_call = {"x", "residual", "out"}
    function = inspect.signature(getattr(fastconv, name)).parameters
    layer = inspect.signature(LAYERS[name]).parameters
    assert list(layer) == [parameter for parameter in function if parameter not in of_call]
    assert list(inspect.signature(LAYERS[name].__call__).parameters)[1:] == ["x", "residual", "out"]


@pytest.mark.parametrize("algorithm", ["auto", *(a.name for a in algorithms("cpu"))])
def test_later_writes_to_the_callers_arrays_do_not_show(algorithm):
    x, w, bias = normal(1, 4, 9, 9), normal(6, 4, 3, 3), normal(6)
    skip_if_declined(algorithm, ConvProblem.forward(2, x.shape, w.shape, bias=True))
    expected = fastconv.Conv2d(w, bias, algorithm=algorithm)(x)
    used, unused = (fastconv.Conv2d(w, bias, algorithm=algorithm) for _ in range(2))
    used(x)
    w[:], bias[:] = 0, 0
    np.testing.assert_array_equal(used(x), expected)
    np.testing.assert_array_equal(unused(x), expected)


def test_later_changes_of_the_callers_options_do_not_show():
    stride, padding = [1, 2], np.array([[1, 0], [2, 1]])
    layer = fastconv.Conv2d(normal(6, 4, 3, 3), stride=stride, padding=padding)
    said = repr(layer)
    stride[0], padding[:] = 3, 0
    assert repr(layer) == said
    assert layer(normal(4, 9, 9)).shape == (6, 8, 5)


def test_one_layer_takes_inputs_of_any_size_and_dtype():
    w = normal(5, 2, 3)
    layer = fastconv.Conv1d(w, stride=2, padding="same")
    for _ in range(2):
        for length in (3, 10, 1000, 5000):
            for dtype in (np.float32, np.float64, np.complex64):
                for batch in ((), (2,), (2, 3)):
                    x = RNG.standard_normal((*batch, 2, length)).astype(dtype)
                    expected = fastconv.Conv1d(w, stride=2, padding="same")(x)
                    assert layer(x).tobytes() == expected.tobytes()


@pytest.mark.parametrize("algorithm", [a.name for a in algorithms("cpu")])
def test_a_transposed_layer_takes_inputs_too_small_for_every_residue_of_its_stride(algorithm):
    """One output has one residue class of two; the weight packed for it must not be taken for the larger input."""
    w = normal(2, 3, 1)
    layer = fastconv.ConvTranspose1d(w, stride=2, algorithm=algorithm)
    for length in (1, 5, 1):
        x = normal(2, length)
        skip_if_declined(algorithm, ConvProblem.transposed(1, x.shape, w.shape, stride=2))
        np.testing.assert_array_equal(layer(x), fastconv.conv_transpose1d(x, w, stride=2, algorithm=algorithm))


def test_out_and_residual():
    x, w, residual = normal(2, 3, 8, 8), normal(4, 3, 3, 3), normal(2, 4, 6, 6)
    layer = fastconv.Conv2d(w, activation="relu")
    expected = fastconv.Conv2d(w, activation="relu")(x, residual)
    out = np.empty_like(expected)
    assert layer(x, residual, out) is out
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="out shares memory with x"):
        fastconv.Conv2d(normal(3, 3, 1, 1))(x, out=x)


def test_many_threads_share_a_layer():
    w = normal(8, 4, 3, 3)
    inputs = [normal(1, 4, 8 + n, 9) for n in range(32)]
    expected = [fastconv.Conv2d(w, padding=1)(x) for x in inputs]
    layer = fastconv.Conv2d(w, padding=1)
    with ThreadPoolExecutor(8) as pool:
        for result, wanted in zip(pool.map(layer, inputs), expected, strict=True):
            assert result.tobytes() == wanted.tobytes()


def test_a_shape_met_before_does_not_hide_what_differs() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.random((1, 2, 8, 8), np.float32), rng.random((3, 2, 3, 3), np.float32)
    layer = fastconv.Conv2d(w)
    y = layer(x)
    misaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    misaligned[...] = x
    for other in (x.astype(">f4"), misaligned, np.asfortranarray(x), x.tolist()):
        np.testing.assert_allclose(layer(other), y, rtol=1e-5)
    assert layer(x.astype(np.float64)).dtype == np.float64
    for out in (np.empty_like(y, ">f4"), np.empty_like(y, np.float64), y.tolist()):
        with pytest.raises(TypeError, match="out"):
            layer(x, out=out)
    with pytest.raises(ValueError, match="out shares memory with x"):
        layer(x, out=x.ravel()[: y.size].reshape(y.shape))


def test_a_layer_says_what_it_is():
    layer = fastconv.ConvTranspose1d(normal(3, 7, 5), np.ones(7), 2, padding=np.array([1]), activation="relu")
    assert repr(layer) == "ConvTranspose1d(w (3, 7, 5) float32, bias, stride=2, padding=(1,), activation='relu')"
    assert repr(fastconv.Conv2d(normal(3, 7, 5, 5), algorithm="direct")) == (
        "Conv2d(w (3, 7, 5, 5) float32, algorithm='direct')"
    )
