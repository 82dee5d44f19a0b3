"""The oracle itself: against closed forms, SciPy and torch, and against its own adjoints."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.signal
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_operands, operands, problems

from fastconv.problem import OPS, Activation, ConvProblem
from fastconv.reference import activation, magnitude, reference

RNG = np.random.default_rng(1)


def conv(x, w, **arguments):
    """The reference's forward convolution of two float64 (or whatever they are) arrays."""
    return reference(ConvProblem.forward(w.ndim - 2, x.shape, w.shape, dtype=x.dtype.name, **arguments), x, w)


def conv_transpose(x, w, **arguments):
    return reference(ConvProblem.transposed(w.ndim - 2, x.shape, w.shape, dtype=x.dtype.name, **arguments), x, w)


# -- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_identity_kernel(ndim):
    x = RNG.standard_normal((2, 3, *(5, 4, 6)[:ndim]))
    w = np.zeros((3, 3, *[3] * ndim))
    w[(range(3), range(3), *[1] * ndim)] = 1
    np.testing.assert_array_equal(conv(x, w, padding="same"), x)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_delta_answers_with_the_kernel(ndim):
    w = RNG.standard_normal((2, 1, *(3, 4, 2)[:ndim]))
    x = np.ones((1, 1, *[1] * ndim))
    mirrored = np.flip(w, tuple(range(2, w.ndim)))[:, 0]
    np.testing.assert_array_equal(conv(x, w, padding="full")[0], mirrored)
    np.testing.assert_array_equal(conv(x, w, padding="full", flip_kernel=True)[0], w[:, 0])
    np.testing.assert_array_equal(conv_transpose(x, w.swapaxes(0, 1))[0], w[:, 0])


def test_box_filter_is_a_difference_of_running_sums():
    x = RNG.standard_normal((1, 1, 30))
    sums = np.concatenate([[0], np.cumsum(x)])
    np.testing.assert_allclose(conv(x, np.full((1, 1, 7), 1 / 7))[0, 0], (sums[7:] - sums[:-7]) / 7, atol=1e-14)


def test_full_convolution_multiplies_polynomials():
    a, b = RNG.integers(-9, 9, 6), RNG.integers(-9, 9, 4)
    product = conv(a[None, None], b[None, None], padding="full", flip_kernel=True)
    np.testing.assert_array_equal(product[0, 0], np.polymul(a, b))


def test_second_difference_of_a_quadratic_is_constant():
    x = np.arange(20.0) ** 2
    np.testing.assert_array_equal(conv(x[None, None], np.array([[[1.0, -2.0, 1.0]]])), np.full((1, 1, 18), 2.0))


def test_circular_padding_is_cyclic_convolution():
    x, w = RNG.standard_normal(12), RNG.standard_normal(5)
    cyclic = np.fft.ifft(np.fft.fft(x) * np.fft.fft(w, 12)).real
    padded = conv(x[None, None], w[None, None], padding=((4, 0),), padding_mode="circular", flip_kernel=True)
    np.testing.assert_allclose(padded[0, 0], cyclic, atol=1e-14)


@pytest.mark.parametrize(
    ("mode", "padded"),
    [
        ("zeros", [0, 0, 1, 2, 3, 4, 0, 0, 0]),
        ("reflect", [3, 2, 1, 2, 3, 4, 3, 2, 1]),
        ("replicate", [1, 1, 1, 2, 3, 4, 4, 4, 4]),
        ("circular", [3, 4, 1, 2, 3, 4, 1, 2, 3]),
    ],
)
def test_what_each_padding_mode_reads(mode, padded):
    x = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    np.testing.assert_array_equal(conv(x, np.ones((1, 1, 1)), padding=((2, 3),), padding_mode=mode)[0, 0], padded)


def test_a_pointwise_kernel_is_a_matrix_product():
    x, w = RNG.standard_normal((2, 5, 4, 3)), RNG.standard_normal((7, 5, 1, 1))
    np.testing.assert_allclose(conv(x, w), np.einsum("oc,nchw->nohw", w[:, :, 0, 0], x), rtol=1e-13)


def test_stride_drops_and_dilation_inserts():
    x, w = RNG.standard_normal((1, 2, 15, 13)), RNG.standard_normal((3, 2, 3, 2))
    np.testing.assert_array_equal(conv(x, w, stride=(2, 3)), conv(x, w)[..., ::2, ::3])
    spread = np.zeros((3, 2, 5, 4))
    spread[..., ::2, ::3] = w
    np.testing.assert_allclose(conv(x, w, dilation=(2, 3)), conv(x, spread), atol=1e-14)


def test_groups_are_convolutions_side_by_side():
    x, w = RNG.standard_normal((2, 6, 9)), RNG.standard_normal((4, 3, 2))
    halves = [conv(x[:, 3 * g : 3 * g + 3], w[2 * g : 2 * g + 2]) for g in range(2)]
    np.testing.assert_array_equal(conv(x, w, groups=2), np.concatenate(halves, axis=1))


def test_transposing_ones_with_stride_repeats_pixels():
    x = RNG.standard_normal((1, 1, 4, 5))
    np.testing.assert_array_equal(
        conv_transpose(x, np.ones((1, 1, 2, 3)), stride=(2, 3))[0, 0], np.kron(x[0, 0], np.ones((2, 3)))
    )


def test_bias_and_residual_are_added_before_the_activation():
    x, w = RNG.standard_normal((2, 3, 5)), RNG.standard_normal((4, 3, 2))
    bias, residual = RNG.standard_normal(4), RNG.standard_normal((2, 4, 4))
    p = ConvProblem.forward(1, x.shape, w.shape, dtype="float64", activation="relu", bias=True, residual=True)
    expected = np.maximum(conv(x, w) + bias[:, None] + residual, 0)
    np.testing.assert_allclose(reference(p, x, w, bias, residual), expected, atol=1e-14)
    p = dataclasses.replace(p, channels_last=True)
    turned = reference(p, x.transpose(0, 2, 1), w, bias, residual.transpose(0, 2, 1))
    np.testing.assert_allclose(turned, expected.transpose(0, 2, 1), atol=1e-14)


def test_activations():
    v = np.array([-np.inf, -8.0, -0.5, 0.0, 0.5, 8.0, np.inf, np.nan])
    with np.errstate(invalid="ignore"):
        expected = {
            None: v,
            "relu": np.maximum(v, 0),
            "relu6": np.minimum(np.maximum(v, 0), 6),
            "leaky_relu": np.where(v > 0, v, v / 100),
            "sigmoid": scipy.special.expit(v),
            "tanh": np.tanh(v),
            "silu": v * scipy.special.expit(v),
            "gelu": v * scipy.special.ndtr(v),
            (-1, 2): np.minimum(np.maximum(v, -1), 2),
        }
        for argument, values in expected.items():
            answer = activation(v, Activation.parse(argument, "float64"))
            np.testing.assert_allclose(answer, values, rtol=1e-13, err_msg=str(argument))


# -- integers -------------------------------------------------------------------------------------------------------


def test_integers_wrap_before_they_are_clipped():
    """Sums are kept in 32 bits: 2^30 + 2^30 is -2^31, which relu takes to 0."""
    x, w = np.full((1, 1, 2), 1 << 30, np.int32), np.ones((1, 1, 2), np.int32)
    plain = ConvProblem.forward(1, x.shape, w.shape, dtype="int32")
    assert reference(plain, x, w).astype(np.int32) == -(2**31)
    relu = ConvProblem.forward(1, x.shape, w.shape, dtype="int32", activation="relu")
    assert reference(relu, x, w) == 0


def test_clipping_keeps_every_bit_of_an_integer():
    x, w = np.array([[[2**62 + 1, -5]]]), np.ones((1, 1, 1), np.int64)
    p = ConvProblem.forward(1, x.shape, w.shape, dtype="int64", activation="relu")
    np.testing.assert_array_equal(reference(p, x, w), [[[2**62 + 1, 0]]])


# -- SciPy ------------------------------------------------------------------------------------------------------------

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=3)


@given(sizes=lengths, data=st.data(), mode=st.sampled_from(["full", "valid"]), dtype=st.sampled_from("dD"))
def test_agrees_with_scipy(sizes, data, mode, dtype):
    kernel = [data.draw(st.integers(1, n if mode == "valid" else 6)) for n in sizes]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, w = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape) for shape in (sizes, kernel))
    x, w = (v.astype(dtype) if dtype == "D" else v.real for v in (x, w))
    one = (None, None)
    correlated = scipy.signal.correlate(x, w.conj(), mode, method="direct")
    np.testing.assert_allclose(conv(x[one], w[one], padding=mode)[0, 0], correlated, atol=1e-12)
    convolved = scipy.signal.convolve(x, w, mode, method="direct")
    np.testing.assert_allclose(conv(x[one], w[one], padding=mode, flip_kernel=True)[0, 0], convolved, atol=1e-12)


@pytest.mark.parametrize(("ours", "scipys"), [("zeros", "fill"), ("reflect", None), ("circular", "wrap")])
def test_borders_agree_with_scipy(ours, scipys):
    x, w = RNG.standard_normal((9, 8)), RNG.standard_normal((3, 5))
    if scipys is None:
        expected = scipy.ndimage.correlate(x, w, mode="mirror")
    else:
        expected = scipy.signal.correlate2d(x, w, "same", boundary=scipys)
    np.testing.assert_allclose(
        conv(x[None, None], w[None, None], padding="same", padding_mode=ours)[0, 0], expected, atol=1e-12
    )


# -- torch ------------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(data=st.data())
def test_agrees_with_torch(in_torch, data):
    p = data.draw(problems(ops=("forward", "input_grad"), dtypes=("float64", "complex128")))
    arrays = data.draw(operands(p))
    tensors = [None if v is None else in_torch.tensor(v) for v in arrays]
    np.testing.assert_allclose(reference(p, *arrays), in_torch.compute(p, *tensors).numpy(), atol=1e-11)


@settings(max_examples=150)
@given(data=st.data())
def test_both_gradients_agree_with_torch(in_torch, data):
    p = data.draw(problems(ops=("weight_grad",), dtypes=("float64", "complex128")))
    x, y_grad, _, _ = data.draw(operands(p))
    forward, input_grad = (dataclasses.replace(p, op=op) for op in ("forward", "input_grad"))
    _, w, _, _ = make_operands(forward, seed=2)
    inputs = [in_torch.tensor(v).requires_grad_() for v in (x, w)]
    in_torch.compute(forward, *inputs).backward(in_torch.tensor(y_grad))
    # torch's gradient of a complex argument is the conjugate of the plain sum.
    expected = [v.grad.numpy() for v in inputs]
    np.testing.assert_allclose(reference(input_grad, y_grad, w.conj()), expected[0], atol=1e-11)
    np.testing.assert_allclose(reference(p, x.conj(), y_grad), expected[1], atol=1e-11)


# -- itself -----------------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_gradients_are_adjoints(data):
    """<conv(x, w), y> = <x, input_grad(y, w)> = <w, weight_grad(x, y)>, whatever the padding mode, in any field."""
    p = data.draw(problems(ops=("weight_grad",), dtypes=("float64", "complex128", "int32")))
    x, y, _, _ = data.draw(operands(p))
    forward, input_grad = (dataclasses.replace(p, op=op) for op in ("forward", "input_grad"))
    _, w, _, _ = make_operands(forward, seed=2)
    products = [
        np.sum(reference(forward, x, w, activate=False) * y),
        np.sum(reference(input_grad, y, w, activate=False) * x),
        np.sum(reference(p, x, y, activate=False) * w),
    ]
    scale = np.sum(magnitude(forward, x, w) * np.abs(y.astype(np.complex128)))
    if p.dtype == "int32":  # both wrap round at 2^64
        assert products[0] == products[1] == products[2]
    else:
        np.testing.assert_allclose(products, products[0], atol=1e-13 * scale)


@given(data=st.data())
def test_nan_stays_in_its_receptive_field(data):
    p = data.draw(problems(ops=("forward", "input_grad"), dtypes=("float64",)))
    p = dataclasses.replace(p, activation=Activation("none"))
    a, b, bias, residual = data.draw(operands(p))
    flat = data.draw(st.integers(0, a.size - 1))
    indicator = np.zeros(a.shape)
    indicator.flat[flat] = 1
    touched = reference(dataclasses.replace(p, bias=False, residual=False), indicator, np.ones(b.shape)) > 0
    a.flat[flat] = np.nan
    np.testing.assert_array_equal(np.isnan(reference(p, a, b, bias, residual)), touched)


def test_1d_and_2d_are_3d_with_axes_of_one():
    x, w = RNG.standard_normal((2, 4, 9)), RNG.standard_normal((6, 2, 3))
    arguments = {"groups": 2, "padding_mode": "reflect"}
    flat = conv(x, w, stride=2, padding=1, dilation=2, **arguments)
    deep = conv(
        x[:, :, None, None], w[:, :, None, None], stride=(1, 1, 2), padding=(0, 0, 1), dilation=(1, 1, 2), **arguments
    )
    np.testing.assert_array_equal(flat, deep[:, :, 0, 0])


@pytest.mark.parametrize(("weight_format", "order"), [("OHWI", (0, 2, 3, 1)), ("HWIO", (2, 3, 1, 0))])
def test_formats_only_move_axes(weight_format, order):
    x, w = RNG.standard_normal((2, 4, 7, 6)), RNG.standard_normal((6, 2, 3, 2))
    first = conv(x, w, groups=2)
    last = conv(x.transpose(0, 2, 3, 1), w.transpose(order), groups=2, data_format="NHWC", weight_format=weight_format)
    np.testing.assert_array_equal(last, first.transpose(0, 2, 3, 1))


def test_magnitude_is_the_same_sum_of_absolute_values():
    x, w = RNG.standard_normal((1, 2, 8)), RNG.standard_normal((3, 2, 3))
    bias, residual = RNG.standard_normal(3), RNG.standard_normal((1, 3, 6))
    p = ConvProblem.forward(1, x.shape, w.shape, dtype="float64", activation="tanh", bias=True, residual=True)
    expected = conv(abs(x), abs(w)) + abs(bias)[:, None] + abs(residual)
    np.testing.assert_array_equal(magnitude(p, x, w, bias, residual), expected)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("stride", "dilation", "padding"), [(1, 1, (0, 0)), (1, 2, (1, 0)), (3, 1, (0, 2)), (2, 3, (1, 2))]
)
@pytest.mark.parametrize("spread", [1, 3, 100])
def test_magnitude_near_a_result_is_the_largest_around_it(op, stride, dilation, padding, spread):
    """Against all products one by one: where each falls, and the largest sum among the places around a result."""
    p = ConvProblem.forward(1, (1, 1, 11), (1, 1, 3), stride=stride, dilation=dilation, padding=[padding])
    p = dataclasses.replace(p, op=op, dtype="float64")
    a, b = make_operands(p)[:2]
    full = {}
    for (_, _, i), (_, _, k) in itertools.product(np.ndindex(a.shape), np.ndindex(b.shape)):
        # x[i] w[k] belongs to y[t] where i + padding - k dilation = t stride; the gradients turn that round.
        place = {
            "forward": i + padding[0] - k * dilation,
            "input_grad": i * stride + k * dilation - padding[0],
            "weight_grad": i + padding[0] - k * stride,
        }[op]
        full[place] = full.get(place, 0) + abs(a.flat[i] * b.flat[k])
    step = {"forward": stride, "input_grad": 1, "weight_grad": dilation}[op]
    expected = [
        max(v for place, v in full.items() if abs(place - t * step) <= spread * step) for t in range(p.result_shape[-1])
    ]
    np.testing.assert_allclose(magnitude(p, a, b, spread=(0, 0, spread))[0, 0], expected)


@given(data=st.data())
def test_magnitude_near_a_result_is_at_least_that_of_the_result(data):
    p = data.draw(problems(dtypes=("float32", "complex64")))
    arrays = data.draw(operands(p))
    near = magnitude(p, *arrays, spread=data.draw(st.tuples(*[st.integers(0, 3)] * 3)))
    assert near.shape == p.result_shape
    assert (near >= magnitude(p, *arrays) * (1 - 1e-12)).all()


def test_magnitude_near_what_is_not_finite():
    p = ConvProblem.forward(1, (1, 1, 5), (1, 1, 1))
    x, w = np.array([[[1, 2, np.inf, 3, np.nan]]]), np.ones((1, 1, 1))
    np.testing.assert_array_equal(magnitude(p, x, w, spread=(0, 0, 1)), [[[2, 2, 3, 3, 3]]])


def test_magnitude_near_what_is_below_the_least_normal_number():
    p = ConvProblem.forward(1, (1, 1, 3), (1, 1, 1), dtype="float32")
    x, w = np.array([[[0, 1e-42, 1]]], np.float32), np.ones((1, 1, 1), np.float32)
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_array_equal(magnitude(p, x, w, spread=(0, 1, 0)), [[[tiny, tiny, 1]]])
