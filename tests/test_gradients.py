"""fastconv.grad: every gradient of every layer against the reference, torch and differences of the layer itself."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promise import assert_kept
from strategies import LAYOUTS, empty, filled, laid_out, make_operands, problems, public_call

import fastconv
from fastconv import grad
from fastconv.dispatch import choose
from fastconv.folding import unfolded
from fastconv.problem import DTYPES, ConvProblem
from fastconv.registry import UNIT_ROUNDOFF, algorithms

RNG = np.random.default_rng(6)
REPEATING = ("reflect", "replicate", "circular")


def layers(**choices):
    """A strategy for layers without an epilogue: convolutions with any padding, or transposed ones."""
    plain = {"bias": False, "residual": False, "activation": fastconv.problem.Activation("none")}
    convolutions = problems(ops=("weight_grad",), **choices).map(lambda p: dataclasses.replace(p, op="forward"))
    transposed = problems(ops=("input_grad",), **choices).map(lambda p: dataclasses.replace(p, **plain))
    return convolutions | convolutions | transposed


def gradients(layer):
    """The problems whose results are the gradients of `layer` with respect to its input and its weight."""
    other = "input_grad" if layer.op == "forward" else "forward"
    return dataclasses.replace(layer, op=other), dataclasses.replace(layer, op="weight_grad")


def call(layer, x, w, y_grad, **others):
    """Both gradients of `layer`, by the public functions."""
    name, arguments = public_call(layer)
    del arguments["activation"]
    to_input, to_weight = getattr(grad, f"{name}_input"), getattr(grad, f"{name}_weight")
    return (
        to_input(x.shape, w, y_grad, **arguments, **others),
        to_weight(x, w.shape, y_grad, **arguments, **others),
    )


def operands(layer, seed=1):
    """An input, a weight and a gradient of the result."""
    x, w, _, _ = make_operands(layer, seed)
    return x, w, filled(np.random.default_rng(seed + 1), layer.result_shape, layer.dtype)


@settings(max_examples=300)
@given(data=st.data())
def test_any_gradient(data):
    layer = data.draw(layers())
    x, w, y_grad = arrays = operands(layer, data.draw(st.integers(0, 99)))
    arrays = [laid_out(v, data.draw(st.sampled_from(LAYOUTS))) for v in arrays]
    before = [v.copy() for v in arrays]
    to_input, to_weight = gradients(layer)
    results = call(layer, *arrays, device="cpu")
    x, w, y_grad = arrays
    for p, result, read in (
        (to_input, results[0], (y_grad, w)),
        (to_weight, results[1], (x, y_grad) if layer.op == "forward" else (y_grad, x)),
    ):
        assert type(result) is np.ndarray
        assert (result.shape, result.dtype.name) == (p.result_shape, p.result_dtype)
        assert_kept(choose(unfolded(p), "cpu"), p, result, *read)
    for array, copy in zip(arrays, before, strict=True):
        assert array.tobytes() == copy.tobytes()


@settings(max_examples=100)
@given(data=st.data())
def test_differences_of_the_layer(data):
    """A layer is linear in each operand: moving one along v changes <layer, y_grad> by <gradient, v>, exactly."""
    layer = data.draw(layers(dtypes=("float64",)))
    x, w, y_grad = operands(layer)
    name, arguments = public_call(layer)

    def value(x, w):
        return np.sum(getattr(fastconv, name)(x, w, **arguments) * y_grad)

    v_x, v_w, _ = operands(layer, seed=7)
    x_grad, w_grad = call(layer, x, w, y_grad)
    scale = np.sqrt(layer.macs) * 1e-11
    np.testing.assert_allclose(value(x + v_x, w) - value(x, w), np.sum(x_grad * v_x), rtol=1e-9, atol=scale)
    np.testing.assert_allclose(value(x, w + v_w) - value(x, w), np.sum(w_grad * v_w), rtol=1e-9, atol=scale)


@settings(max_examples=150)
@given(data=st.data())
def test_agrees_with_autograd(in_torch, data):
    layer = data.draw(layers(dtypes=("float64",)))
    x, w, y_grad = operands(layer)
    inputs = [in_torch.tensor(v).requires_grad_() for v in (x, w)]
    in_torch.compute(layer, *inputs).backward(in_torch.tensor(y_grad))
    for result, tensor in zip(call(layer, x, w, y_grad), inputs, strict=True):
        np.testing.assert_allclose(result, tensor.grad.numpy(), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_takes_the_arguments_of_torch_nn_grad(ndim, batch):
    torch = pytest.importorskip("torch")
    x, w = RNG.standard_normal((batch, 4, *(7,) * ndim)), RNG.standard_normal((6, 2, *(3,) * ndim))
    arguments = (2, 1, 1, 2)
    y_grad = RNG.standard_normal(getattr(fastconv, f"conv{ndim}d")(x, w, None, *arguments).shape)
    for which, first in ("input", (x.shape, w, y_grad)), ("weight", (x, w.shape, y_grad)):
        name = f"conv{ndim}d_{which}"
        tensors = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in first]
        expected = getattr(torch.nn.grad, name)(*tensors, *arguments)
        np.testing.assert_allclose(getattr(grad, name)(*first, *arguments), expected.numpy(), atol=1e-12)
        ours = getattr(grad, name)(*tensors, *arguments)
        assert isinstance(ours, torch.Tensor)
        torch.testing.assert_close(ours, expected)


# -- folding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", REPEATING)
@pytest.mark.parametrize("algorithm", [a.name for a in algorithms("cpu")])
def test_every_algorithm_folds(mode, algorithm):
    p = ConvProblem.forward(2, (2, 3, 9, 10), (4, 3, 3, 3), padding=((1, 2), (2, 0)), padding_mode=mode)
    p = dataclasses.replace(p, op="input_grad")
    (named,) = (a for a in algorithms("cpu") if a.name == algorithm)
    if named.why_not(unfolded(p)) is not None:
        pytest.skip(named.why_not(unfolded(p)))
    y_grad, w, _, _ = make_operands(p)
    result = fastconv.execute(p, y_grad, w, algorithm=algorithm, device="cpu")
    assert_kept(named, p, result, y_grad, w)


@pytest.mark.parametrize("mode", REPEATING)
def test_copies_add_up(mode):
    """Four inputs with two more at each side: with a pointwise weight of one, each counts its copies."""
    expected = {"reflect": [1, 3, 3, 1], "replicate": [3, 1, 1, 3], "circular": [2, 2, 2, 2]}[mode]
    result = grad.conv1d_input((1, 4), np.ones((1, 1, 1)), np.ones((1, 8)), padding=2, padding_mode=mode)
    np.testing.assert_array_equal(result, [expected])


@pytest.mark.parametrize("mode", REPEATING)
def test_half_types_are_rounded_once(mode):
    """The sum of copies is taken before it is rounded: 2049 is no float16, and 2048 + 1 + 1 would stay 2048."""
    y_grad = np.array([[2048, 1, 1, 2048, 1, 1, 2048, 1, 1]], np.float16)
    w = np.ones((1, 1, 1), np.float16)
    result = grad.conv1d_input((1, 5), w, y_grad, padding=2, padding_mode=mode)
    wide = grad.conv1d_input((1, 5), w.astype(float), y_grad.astype(float), padding=2, padding_mode=mode)
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result, wide.astype(np.float16))


def test_no_epilogue_where_padding_is_folded():
    p = ConvProblem.forward(1, (1, 1, 5), (1, 1, 3), padding=1, padding_mode="reflect", bias=True)
    p = dataclasses.replace(p, op="input_grad")
    with pytest.raises(ValueError, match="padding_mode='reflect': an input gradient takes a bias"):
        fastconv.execute(p, *make_operands(p)[:3])


# -- out, bias, empty arrays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", *REPEATING])
@pytest.mark.parametrize("layout", ["contiguous", "reversed", "sliced", "fortran"])
def test_out(mode, layout):
    layer = ConvProblem.forward(2, (2, 3, 7, 8), (4, 3, 3, 3), dtype="int32", padding=1, padding_mode=mode)
    x, w, y_grad = (np.clip(v, -9, 9) for v in operands(layer))
    name, arguments = public_call(layer)
    del arguments["activation"]
    for which, first in ("input", (x.shape, w, y_grad)), ("weight", (x, w.shape, y_grad)):
        function = getattr(grad, f"{name}_{which}")
        expected = function(*first, **arguments)
        out = empty(expected.shape, expected.dtype, layout)
        assert function(*first, **arguments, out=out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 2, 3, 5), (0, 3, 5)])
def test_bias_gradient_is_the_sum_over_all_but_channels(dtype, shape):
    y_grad = filled(np.random.default_rng(1), shape, dtype)
    result_dtype, accumulator = DTYPES[dtype]
    wide = y_grad.astype({"i": np.int64, "u": np.int64, "c": np.complex128}.get(y_grad.dtype.kind, np.float64))
    expected = wide.swapaxes(-2, -1).reshape(-1, 3).sum(0)
    result = grad.conv1d_bias(y_grad)
    assert (result.shape, result.dtype.name) == ((3,), result_dtype)
    if accumulator.startswith("int"):
        np.testing.assert_array_equal(result, expected.astype(result_dtype))
    else:
        unit = UNIT_ROUNDOFF[result_dtype] + y_grad.size * UNIT_ROUNDOFF[accumulator]
        np.testing.assert_allclose(result.astype(wide.dtype), expected, rtol=0, atol=unit * abs(wide).sum())
    last = np.moveaxis(y_grad, -2, -1)
    np.testing.assert_array_equal(grad.conv1d_bias(last, data_format="NWC"), result)
    out = np.empty(3, result.dtype)
    assert grad.conv1d_bias(y_grad, out=out) is out
    np.testing.assert_array_equal(out, result)


def test_bias_gradients_of_two_and_three_axes():
    y_grad = np.ones((2, 3, 4, 5, 6))
    np.testing.assert_array_equal(grad.conv3d_bias(y_grad), [240.0] * 3)
    np.testing.assert_array_equal(grad.conv2d_bias(y_grad), [180.0] * 4)
    np.testing.assert_array_equal(grad.conv2d_bias(y_grad, data_format="channels_last"), [120.0] * 6)


def test_an_empty_batch_has_a_zero_weight_gradient():
    result = grad.conv2d_weight(np.ones((0, 3, 5, 5)), (4, 3, 3, 3), np.ones((0, 4, 3, 3)))
    np.testing.assert_array_equal(result, np.zeros((4, 3, 3, 3)))


# -- bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "function", "given", "options"),
    [
        (ValueError, r"grad_output has shape \(1, 4, 3, 4\): expected \(1, 4, 3, 3\)",
         "conv2d_input", ((1, 3, 5, 5), np.ones((4, 3, 3, 3)), np.ones((1, 4, 3, 4))), {}),
        (ValueError, r"grad_output has shape \(1, 4, 3, 4\): expected \(1, 4, 3, 3\)",
         "conv2d_weight", (np.ones((1, 3, 5, 5)), (4, 3, 3, 3), np.ones((1, 4, 3, 4))), {}),
        (ValueError, "channels", "conv1d_input", ((1, 2, 5), np.ones((4, 3, 3)), np.ones((1, 4, 3))), {}),
        (TypeError, "input_size=5: expected a sequence", "conv1d_input", (5, np.ones((1, 1, 1)), np.ones((1, 5))), {}),
        (TypeError, "weight_size=3: expected a sequence", "conv1d_weight", (np.ones((1, 5)), 3, np.ones((1, 3))), {}),
        (TypeError, "grad_output has dtype bool", "conv1d_input", ((1, 3), np.ones((1, 1, 1)), np.ones((1, 3), bool)),
         {}),
        (TypeError, "weight is a dict", "conv1d_input", ((1, 3), {}, np.ones((1, 3))), {}),
        (TypeError, "input is a dict", "conv1d_weight", ({}, (1, 1, 1), np.ones((1, 3))), {}),
        (ValueError, "algorithm='fastest'", "conv1d_weight", (np.ones((1, 3)), (1, 1, 1), np.ones((1, 3))),
         {"algorithm": "fastest"}),
        (ValueError, "out has shape", "conv1d_weight", (np.ones((1, 3)), (1, 1, 1), np.ones((1, 3))),
         {"out": np.ones(1)}),
        (ValueError, "out has shape", "conv1d_input", ((1, 4), np.ones((1, 1, 1)), np.ones((1, 8))),
         {"padding": 2, "padding_mode": "reflect", "out": np.ones((1, 8))}),
        (ValueError, "output_padding", "conv_transpose1d_input", ((1, 3), np.ones((1, 1, 1)), np.ones((1, 3))),
         {"output_padding": 1}),
        (ValueError, r"grad_output has shape \(3,\): expected at least 2 axes", "conv1d_bias", (np.ones(3),), {}),
        (ValueError, "data_format='NHWC'", "conv1d_bias", (np.ones((3, 3)),), {"data_format": "NHWC"}),
        (ValueError, r"out has shape \(2,\)", "conv1d_bias", (np.ones((3, 3)),), {"out": np.ones(2)}),
        (TypeError, "grad_output has dtype bool", "conv1d_bias", (np.ones((3, 3), bool),), {}),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(error, message, function, given, options):
    with pytest.raises(error, match=message):
        getattr(grad, function)(*given, **options)
