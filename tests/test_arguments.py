"""Bad arguments of the public functions: the right exception, naming the argument, what came and what was expected."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
import scipy.sparse

import fastconv

X, W = np.ones((2, 4, 9, 9), np.float32), np.ones((4, 4, 3, 3), np.float32)
OUT = (2, 4, 7, 7)


def read_only(shape):
    array = np.empty(shape, np.float32)
    array.flags.writeable = False
    return array


def unaligned(shape):
    return np.empty(4 * np.prod(shape) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


NO_ARRAYS = [
    ({"x": None}, TypeError, ["x", "NoneType", "expected an array"]),
    ({"w": None}, TypeError, ["w", "NoneType", "expected an array"]),
    ({"x": None, "w": None}, TypeError, ["x", "NoneType", "expected an array"]),
    ({"x": "image.png"}, TypeError, ["x", "str", "expected an array"]),
    ({"w": {"weight": W}}, TypeError, ["w", "dict", "expected an array"]),
    ({"x": scipy.sparse.eye(9)}, TypeError, ["x", "dia_matrix", "expected an array"]),
    ({"x": range(9)}, TypeError, ["x", "range", "expected an array"]),
    ({"x": [[[1, 2], [3]]]}, ValueError, ["x is nested sequences", "expected an array"]),
    ({"x": np.ma.masked_array(X, X > 1)}, TypeError, ["x is a masked array", "without a mask"]),
    ({"w": np.ma.masked_array(W)}, TypeError, ["w is a masked array", "without a mask"]),
    ({"x": [[["a", "b"]]]}, TypeError, ["x has dtype <U1", "expected one of float32"]),
    ({"x": [[[1.0, None]]]}, TypeError, ["x has dtype object", "expected one of float32"]),
    ({"bias": "relu"}, TypeError, ["bias", "str", "expected an array"]),
    ({"residual": True}, ValueError, ["residual has shape ()", "expected (2, 4, 7, 7)"]),
]

DTYPES = [
    ({"x": X.astype(bool)}, TypeError, ["x has dtype bool", "expected one of float32"]),
    ({"w": W.astype(object)}, TypeError, ["w has dtype object", "expected one of float32"]),
    ({"x": X.astype(np.uint16)}, TypeError, ["x has dtype uint16", "expected one of float32"]),
    ({"w": W.astype(np.uint64)}, TypeError, ["w has dtype uint64", "expected one of float32"]),
    ({"x": X.astype("M8[s]")}, TypeError, ["x has dtype datetime64[s]", "expected one of float32"]),
    ({"x": np.zeros(X.shape, "f4,f4")}, TypeError, ["x has dtype", "expected one of float32"]),
    ({"bias": np.ones(4, complex)}, TypeError, ["bias has dtype complex128", "float32"]),
    ({"bias": np.ones(4, object)}, TypeError, ["bias has dtype object", "float32"]),
    ({"residual": np.ones(OUT, complex)}, TypeError, ["residual has dtype complex128", "float32"]),
    ({"x": X.astype(int), "w": W.astype(int), "bias": np.ones(4)}, TypeError, ["bias has dtype float64", "int64"]),
]

SHAPES = [
    ({"x": X[0, 0]}, ValueError, ["x has shape (9, 9)", "at least 3 axes", "C, H, W"]),
    ({"x": np.float32(1)}, ValueError, ["x has shape ()", "at least 3 axes"]),
    ({"w": W[0]}, ValueError, ["w has shape (4, 3, 3)", "expected 4 axes, OIHW"]),
    ({"w": W[None]}, ValueError, ["w has shape (1, 4, 4, 3, 3)", "expected 4 axes, OIHW"]),
    ({"w": W[..., :0]}, ValueError, ["w has shape (4, 4, 3, 0)", "at least 1 long"]),
    ({"x": X[:, :3]}, ValueError, ["(4, 4, 3, 3)", "4 * 1 = 4", "x has shape (2, 3, 9, 9) (NCHW) with 3"]),
    ({"groups": 2}, ValueError, ["groups=2", "4 * 2 = 8", "(2, 4, 9, 9)"]),
    ({"x": X[..., :2]}, ValueError, ["kernel covers 3", "x of shape (2, 4, 9, 2)", "only 2"]),
    ({"padding": 2**31 - 1}, ValueError, ["padding=((2147483647, 2147483647),", "expected a result of at most"]),
    ({"bias": np.ones(3)}, ValueError, ["bias has shape (3,)", "expected (4,)"]),
    ({"bias": 1.0}, ValueError, ["bias has shape ()", "expected (4,)"]),
    ({"bias": np.ones((4, 1, 1))}, ValueError, ["bias has shape (4, 1, 1)", "expected (4,)"]),
    ({"residual": X}, ValueError, ["residual has shape (2, 4, 9, 9)", "expected (2, 4, 7, 7)"]),
    ({"residual": np.ones((4, 7, 7))}, ValueError, ["residual has shape (4, 7, 7)", "expected (2, 4, 7, 7)"]),
]

OUTS = [
    ({"out": np.empty((2, 4, 7, 6), np.float32)}, ValueError, ["out has shape (2, 4, 7, 6)", "expected (2, 4, 7, 7)"]),
    ({"out": np.empty(OUT)}, TypeError, ["out has dtype float64", "expected float32"]),
    ({"out": np.empty(OUT, ">f4")}, TypeError, ["out", "expected", "native byte order"]),
    ({"out": unaligned(OUT)}, TypeError, ["out", "expected an aligned array"]),
    ({"out": read_only(OUT)}, ValueError, ["out is read-only"]),
    ({"out": np.zeros(OUT).tolist()}, TypeError, ["out is a list", "expected"]),
    ({"out": "result"}, TypeError, ["out is a str", "expected"]),
    ({"out": 1.0}, TypeError, ["out is a float", "expected"]),
    (
        {"out": np.lib.stride_tricks.as_strided(np.empty(7, np.float32), OUT, (0, 0, 0, 4))},
        ValueError,
        ["out has strides (0, 0, 0, 4)", "expected"],
    ),
    (
        {"out": np.lib.stride_tricks.as_strided(np.empty(400, np.float32), OUT, (784, 196, 4, 4))},
        ValueError,
        ["out has strides (784, 196, 4, 4)", "expected"],
    ),
]

OPTIONS = [
    ({"stride": 0}, ValueError, ["stride=0", "from 1"]),
    ({"stride": [1, 2, 3]}, ValueError, ["stride=(1, 2, 3)", "one integer or 2"]),
    ({"stride": np.array([1.5, 1])}, TypeError, ["stride=1.5", "expected an integer"]),
    ({"padding": {"h": 1}}, ValueError, ["padding=", "'h'", "or numbers"]),
    ({"padding": (1, 1, 2, 2)}, ValueError, ["padding=(1, 1, 2, 2)", "one integer, 2, or 2 (lo, hi) pairs"]),
    ({"padding": "SAME"}, ValueError, ["padding='SAME'", "'valid', 'same'"]),
    ({"dilation": None}, TypeError, ["dilation=None", "expected an integer"]),
    ({"groups": [1]}, TypeError, ["groups=(1,)", "expected an integer"]),
    ({"padding_mode": ["zeros"]}, ValueError, ["padding_mode=('zeros',)", "expected one of 'zeros'"]),
    ({"data_format": "CHWN"}, ValueError, ["data_format='CHWN'", "'NCHW', 'NHWC'"]),
    ({"weight_format": 3}, ValueError, ["weight_format=3", "'OIHW', 'OHWI', 'HWIO'"]),
    ({"activation": "mish"}, ValueError, ["activation='mish'", "relu, relu6"]),
    ({"activation": abs}, ValueError, ["activation=", "relu, relu6"]),
    ({"activation": np.array([2, 1])}, ValueError, ["activation=(2, 1)", "clip range (low, high)"]),
    ({"flip_kernel": 1}, TypeError, ["flip_kernel=1", "True or False"]),
    ({"precision": "low"}, ValueError, ["precision='low'", "'highest', 'high', 'fast'"]),
    ({"algorithm": "winograd99"}, ValueError, ["algorithm='winograd99'", "'auto'", "direct, fft, fully_connected"]),
    ({"algorithm": None}, ValueError, ["algorithm=None", "'auto'"]),
    ({"algorithm": ["direct"]}, ValueError, ["algorithm=('direct',)", "'auto'"]),
    ({"device": "tpu"}, ValueError, ["device='tpu'", "'auto', 'cpu', 'gpu'"]),
    ({"device": None}, ValueError, ["device=None", "'auto', 'cpu', 'gpu'"]),
    ({"device": ["cpu"]}, ValueError, ["device=('cpu',)", "'auto', 'cpu', 'gpu'"]),
]

CASES = [
    pytest.param(*case, id=f"{group}-{number}-{'-'.join(case[0])}")
    for group, cases in {"array": NO_ARRAYS, "dtype": DTYPES, "shape": SHAPES, "out": OUTS, "option": OPTIONS}.items()
    for number, case in enumerate(cases)
]


def assert_refuses(call, exception, fragments):
    with pytest.raises(exception) as caught:
        call()
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(("options", "exception", "fragments"), OPTIONS, ids=lambda value: str(value)[:40])
def test_layers_refuse_when_they_are_made(options, exception, fragments):
    assert_refuses(lambda: fastconv.Conv2d(W, **options), exception, fragments)


@pytest.mark.parametrize(
    ("make", "fragments"),
    [
        (lambda: fastconv.Conv2d(W[0]), ["w has shape (4, 3, 3)", "expected 4 axes"]),
        (lambda: fastconv.Conv2d(W, np.ones(3)), ["bias has shape (3,)", "expected (4,)"]),
        (lambda: fastconv.Conv2d(W, groups=3), ["groups=3", "must divide"]),
        (lambda: fastconv.ConvTranspose2d(W, np.ones(4), groups=2), ["bias has shape (4,)", "expected (8,)"]),
        (lambda: fastconv.ConvTranspose2d(W, output_padding=1), ["output_padding=1", "must be smaller"]),
        (lambda: fastconv.ConvTranspose2d(W, padding_mode="reflect"), ["padding_mode='reflect'", "'zeros' only"]),
    ],
)
def test_layers_refuse_weights_and_biases_when_they_are_made(make, fragments):
    assert_refuses(make, ValueError, fragments)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_layers_take_padding_that_only_large_inputs_allow(mode):
    layer = fastconv.Conv1d(np.ones((1, 1, 3)), padding=20, padding_mode=mode)
    assert layer(np.ones((1, 40))).shape == (1, 78)
    with pytest.raises(ValueError, match="padding=") if mode != "replicate" else nullcontext():
        layer(np.ones((1, 9)))


@pytest.mark.parametrize(("arguments", "exception", "fragments"), CASES)
def test_functions_refuse(arguments, exception, fragments):
    arguments = {"x": X, "w": W} | arguments
    assert_refuses(lambda: fastconv.conv2d(**arguments), exception, fragments)


@pytest.mark.parametrize(("arguments", "exception", "fragments"), CASES)
def test_layers_refuse(arguments, exception, fragments):
    """When built or when called, as soon as they can know."""
    arguments = {"w": W} | arguments
    call = {name: arguments.pop(name) for name in ("x", "residual", "out") if name in arguments}
    assert_refuses(lambda: fastconv.Conv2d(**arguments)(**{"x": X} | call), exception, fragments)


@pytest.mark.parametrize(
    ("arguments", "exception", "fragments"),
    [
        ({"output_padding": 1}, ValueError, ["output_padding=1", "smaller than stride (1) or dilation (1)"]),
        ({"output_padding": [1.0, 0]}, TypeError, ["output_padding=1.0", "expected an integer"]),
        ({"padding": 9}, ValueError, ["padding=9", "takes away more than there is"]),
        ({"padding_mode": "circular"}, ValueError, ["padding_mode='circular'", "'zeros' only"]),
        ({"x": X[:, :3]}, ValueError, ["w has shape (4, 4, 3, 3)", "must have 4 channels", "with 3"]),
        ({"bias": np.ones(3)}, ValueError, ["bias has shape (3,)", "expected (4,)"]),
        ({"out": np.empty((2, 4, 9, 9), np.float32)}, ValueError, ["out has shape", "expected (2, 4, 11, 11)"]),
    ],
)
def test_transposed_functions_refuse(arguments, exception, fragments):
    arguments = {"x": X, "w": W} | arguments
    assert_refuses(lambda: fastconv.conv_transpose2d(**arguments), exception, fragments)


@pytest.mark.parametrize("bad", [(1.0, 1), (1, True), [1, 1.0], ((1, 1), (1.0, 1))])
def test_a_bad_argument_that_equals_a_good_one_is_refused_even_after_it(bad):
    name = "padding" if isinstance(bad[0], tuple) else "stride"
    good = ((1, 1), (1, 1)) if name == "padding" else (1, 1)
    fastconv.conv2d(X, W, **{name: good})
    with pytest.raises(TypeError, match=f"{name}=.*expected an integer"):
        fastconv.conv2d(X, W, **{name: bad})


@pytest.mark.parametrize("function", [fastconv.set_num_threads, fastconv.set_workspace_limit])
@pytest.mark.parametrize(
    ("value", "exception"), [(0, ValueError), (-3, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_settings_refuse(function, value, exception):
    with pytest.raises(exception, match=re.escape(f"={value!r}: expected")):
        function(value)


@pytest.mark.parametrize(("value", "exception"), [(0, ValueError), (None, TypeError)])
def test_threads_refuses(value, exception):
    with pytest.raises(exception, match=re.escape(f"n={value!r}: expected")), fastconv.threads(value):
        pass


def test_a_workspace_below_a_mebibyte_is_refused():
    with pytest.raises(ValueError, match=r"n_bytes=1000: expected an integer of at least 1048576"):
        fastconv.set_workspace_limit(1000)


@pytest.mark.parametrize(
    ("arguments", "exception", "fragments"),
    [
        ({"dtype": "float31"}, TypeError, ["dtype='float31'", "expected one of float32"]),
        ({"dtype": "bool"}, TypeError, ["dtype='bool'", "expected one of float32"]),
        ({"dtype": 7}, TypeError, ["dtype=7", "expected one of float32"]),
        ({"dtype": "(f4"}, TypeError, ["dtype='(f4'", "expected one of float32"]),
        ({"x_shape": 7}, TypeError, ["x_shape=7", "expected a sequence of integers"]),
        ({"x_shape": np.array(7)}, TypeError, ["x_shape=array(7)", "expected a sequence of integers"]),
        ({"x_shape": X}, TypeError, [f"x_shape: got an array of shape {X.shape}", "expected its shape"]),
        ({"x_shape": "1499"}, TypeError, ["x_shape=('1499',)", "expected integers"]),
        ({"x_shape": (1, 4, -1, 9)}, ValueError, ["x_shape=(1, 4, -1, 9)", "at least 0"]),
        ({"w_shape": np.int64(4)}, TypeError, ["w_shape=np.int64(4)", "expected a sequence of integers"]),
        ({"w_shape": (4, 4, 3.0, 3)}, TypeError, ["w_shape=(4, 4, 3.0, 3)", "expected integers"]),
        ({"transposed": 1}, TypeError, ["transposed=1", "True or False"]),
        ({"w_shape": (4,)}, ValueError, ["w_shape=(4,)", "expected 3, 4 or 5 axes"]),
        ({"stride": 0}, ValueError, ["stride=0"]),
        ({"algorithm": "nothing"}, ValueError, ["algorithm='nothing'"]),
        ({"device": "tpu"}, ValueError, ["device='tpu'"]),
        ({"strides": 2}, TypeError, ["strides"]),
    ],
)
def test_explain_refuses(arguments, exception, fragments):
    arguments = {"x_shape": X.shape, "w_shape": W.shape} | arguments
    assert_refuses(lambda: fastconv.explain(**arguments), exception, fragments)


class Sealed:
    """An array of a library that gives its memory to nobody."""

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **options):
        raise BufferError("bits of 4")


def test_an_array_that_cannot_be_shared_is_refused():
    assert_refuses(lambda: fastconv.conv2d(Sealed(), W), TypeError, ["x is a ", "cannot view", "bits of 4"])


@pytest.mark.parametrize("padding", [2**31 - 1, ((0, 2**31 - 1), (0, 2**31 - 1))])
def test_pooling_refuses_padding_without_listing_its_windows(padding):
    assert_refuses(lambda: fastconv.max_pool2d(X, 2, 1, padding), ValueError, ["padding=", "holds padding alone"])


@pytest.mark.parametrize("size", [7, "27", (2, 4, -9), (2, 4, (9, 9))])
@pytest.mark.parametrize("gradient", ["conv1d_input", "avg_pool1d_input", "max_pool1d_input"])
def test_gradients_refuse_sizes(gradient, size):
    operands = {
        "conv1d_input": (size, W[..., 0], X[..., 0]),
        "avg_pool1d_input": (size, X[..., 0], 3),
        "max_pool1d_input": (size, X[..., 0].astype(np.int64), X[..., 0]),
    }
    call = getattr(fastconv.grad, gradient)
    assert_refuses(lambda: call(*operands[gradient]), (TypeError, ValueError), ["input_size=", "the shape of an array"])


def test_numpys_integers_arrays_of_one_and_pairs_in_arrays_are_taken():
    fastconv.set_num_threads(np.int64(fastconv.get_num_threads()))
    columns = fastconv.unfold(X, np.array(3), padding=np.array([[1, 1], [1, 1]]))
    np.testing.assert_array_equal(columns, fastconv.unfold(X, 3, padding=1))
