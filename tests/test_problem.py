"""ConvProblem: shape arithmetic, identity, and what it says about bad arguments."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastconv import conv_output_shape, conv_transpose_output_shape
from fastconv.problem import Activation, ConvProblem, compute_dtype

# -- shapes: worked examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "w", "arguments", "expected"),
    [
        # first layers of published networks
        ((1, 3, 227, 227), (96, 3, 11, 11), {"stride": 4}, (1, 96, 55, 55)),
        ((1, 3, 224, 224), (64, 3, 3, 3), {"padding": 1}, (1, 64, 224, 224)),
        ((8, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}, (8, 64, 112, 112)),
        ((2, 3, 16, 112, 112), (64, 3, 3, 3, 3), {"padding": "same"}, (2, 64, 16, 112, 112)),
        ((1, 1, 16000), (32, 1, 2), {"padding": "causal", "dilation": 512}, (1, 32, 16000)),
        # the floor rule: positions that do not fit are dropped, not padded
        ((1, 1, 8), (1, 1, 3), {"stride": 2}, (1, 1, 3)),
        ((1, 1, 9), (1, 1, 3), {"stride": 2}, (1, 1, 4)),
        ((1, 1, 5), (1, 1, 3), {"stride": 7}, (1, 1, 1)),
        ((1, 1, 2**33), (1, 1, 3), {}, (1, 1, 2**33 - 2)),
        ((1, 1, 7), (1, 1, 3), {"dilation": 3}, (1, 1, 1)),
        # one value per axis, and pairs
        ((1, 1, 10, 20), (1, 1, 3, 5), {"stride": (1, 2), "padding": (0, 2)}, (1, 1, 8, 10)),
        ((1, 1, 10, 20), (1, 1, 3, 5), {"padding": ((1, 0), (0, 3))}, (1, 1, 9, 19)),
        ((1, 1, 10, 20), (1, 1, 3, 5), {"padding": [[1, 0], [0, 3]]}, (1, 1, 9, 19)),
        ((1, 1, 10, 20), (1, 1, 3, 5), {"padding": np.array([1, 2])}, (1, 1, 10, 20)),
        ((1, 1, 10), (1, 1, 3), {"stride": np.int64(2), "padding": (np.int32(1),)}, (1, 1, 5)),
        ((1, 1, 4, 5), (1, 1, 3, 3), {"padding": "full"}, (1, 1, 6, 7)),
        ((1, 1, 4, 5), (1, 1, 3, 3), {"padding": "valid"}, (1, 1, 2, 3)),
        # leading batch axes
        ((3, 9, 9), (4, 3, 3, 3), {}, (4, 7, 7)),
        ((5, 2, 3, 9, 9), (4, 3, 3, 3), {}, (5, 2, 4, 7, 7)),
        # formats
        ((1, 9, 8, 6), (3, 2, 2, 9), {"data_format": "NHWC", "weight_format": "HWIO", "groups": 3}, (1, 7, 7, 9)),
        ((1, 9, 8, 6), (4, 3, 2, 6), {"data_format": "channels_last", "weight_format": "OHWI"}, (1, 7, 7, 4)),
        ((1, 6, 9, 8), (3, 2, 6, 4), {"data_format": "channels_first", "weight_format": "HWIO"}, (1, 4, 7, 7)),
        # nothing in, nothing out
        ((0, 3, 8, 8), (4, 3, 3, 3), {}, (0, 4, 6, 6)),
        ((2, 0, 8, 8), (4, 0, 3, 3), {}, (2, 4, 6, 6)),
        ((2, 3, 8, 8), (0, 3, 3, 3), {}, (2, 0, 6, 6)),
        ((2, 3, 0, 8), (4, 3, 3, 3), {}, (2, 4, 0, 6)),
        ((2, 3, 0, 8), (4, 3, 3, 3), {"padding": (2, 0)}, (2, 4, 2, 6)),
    ],
)
def test_output_shape(x, w, arguments, expected):
    assert conv_output_shape(x, w, **arguments) == expected


@pytest.mark.parametrize(
    ("x", "w", "arguments", "expected"),
    [
        # the transposed examples of Dumoulin and Visin, "A guide to convolution arithmetic for deep learning"
        ((1, 1, 2, 2), (1, 1, 3, 3), {}, (1, 1, 4, 4)),
        ((1, 1, 6, 6), (1, 1, 4, 4), {"padding": 2}, (1, 1, 5, 5)),
        ((1, 1, 5, 5), (1, 1, 3, 3), {"padding": 1}, (1, 1, 5, 5)),
        ((1, 1, 2, 2), (1, 1, 3, 3), {"stride": 2}, (1, 1, 5, 5)),
        ((1, 1, 3, 3), (1, 1, 3, 3), {"stride": 2, "padding": 1}, (1, 1, 5, 5)),
        ((1, 1, 3, 3), (1, 1, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}, (1, 1, 6, 6)),
        # DCGAN
        ((1, 100, 1, 1), (100, 512, 4, 4), {}, (1, 512, 4, 4)),
        ((1, 512, 4, 4), (512, 256, 4, 4), {"stride": 2, "padding": 1}, (1, 256, 8, 8)),
        # "same" restores size * stride, whatever the kernel
        ((1, 1, 7), (1, 1, 5), {"stride": 3, "padding": "same"}, (1, 1, 21)),
        ((1, 1, 7), (1, 1, 2), {"stride": 3, "padding": "same_lower"}, (1, 1, 21)),
        ((1, 1, 4), (1, 1, 3), {"dilation": 2, "output_padding": 1}, (1, 1, 9)),
        ((1, 4, 5), (4, 3, 2), {"groups": 2}, (1, 6, 6)),
        ((1, 5, 4), (2, 3, 4), {"groups": 2, "data_format": "NWC", "weight_format": "WIO"}, (1, 6, 6)),
        ((0, 1, 5), (1, 1, 2), {}, (0, 1, 6)),
        ((1, 1, 0), (1, 1, 2), {"stride": 2}, (1, 1, 0)),
        ((1, 1, 1), (1, 1, 2), {"padding": 1}, (1, 1, 0)),
    ],
)
def test_transposed_output_shape(x, w, arguments, expected):
    assert conv_transpose_output_shape(x, w, **arguments) == expected


# -- shapes: rules ------------------------------------------------------------------------------------------------

sizes, kernels, steps = st.integers(1, 40), st.integers(1, 7), st.integers(1, 5)


@given(
    size=sizes, kernel=kernels, stride=steps, dilation=steps, padding=st.tuples(st.integers(0, 9), st.integers(0, 9))
)
def test_output_length_counts_the_positions_that_fit(size, kernel, stride, dilation, padding):
    reach, padded = dilation * (kernel - 1) + 1, size + sum(padding)
    assume(padded >= reach)
    fits = [start for start in range(0, padded, stride) if start + reach <= padded]
    shape = conv_output_shape((1, 1, size), (1, 1, kernel), stride, (padding,), dilation)
    assert shape == (1, 1, len(fits))


@given(size=sizes, kernel=kernels, stride=steps, dilation=steps)
def test_same_is_tensorflows_rule(size, kernel, stride, dilation):
    """As its documentation of tf.nn.convolution states it, with the kernel's dilated length."""
    filter_size = dilation * (kernel - 1) + 1
    total = max(filter_size - (size % stride or stride), 0)
    before, after = total // 2, total - total // 2
    same = ConvProblem.forward(1, (1, 1, size), (1, 1, kernel), stride=stride, dilation=dilation, padding="same")
    assert same.out_size[2] == math.ceil(size / stride)
    assert same.padding[2] == (before, after)
    lower = ConvProblem.forward(1, (1, 1, size), (1, 1, kernel), stride=stride, dilation=dilation, padding="same_lower")
    assert lower.out_size == same.out_size
    assert lower.padding[2] == (after, before)


@given(size=sizes, kernel=kernels, stride=steps, dilation=steps, padding=st.sampled_from(["same", "same_lower"]))
def test_transposed_same_is_the_adjoint_of_same(size, kernel, stride, dilation, padding):
    arguments = {"stride": stride, "dilation": dilation, "padding": padding}
    transposed = ConvProblem.transposed(1, (1, 1, size), (1, 1, kernel), **arguments)
    forward = ConvProblem.forward(1, (1, 1, size * stride), (1, 1, kernel), **arguments)
    assert transposed == dataclasses.replace(forward, op="input_grad")


@given(size=sizes, kernel=kernels, dilation=steps, stride=steps)
def test_causal_never_looks_ahead(size, kernel, dilation, stride):
    p = ConvProblem.forward(1, (1, 1, size), (1, 1, kernel), stride=stride, dilation=dilation, padding="causal")
    last_tap_reads = (kernel - 1) * dilation - p.padding[2][0]
    assert last_tap_reads == 0
    assert p.out_size[2] == math.ceil(size / stride)


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@given(st.data())
def test_shapes_agree_with_torch(data):
    torch = pytest.importorskip("torch")
    ndim = data.draw(st.integers(1, 3))

    def per_axis(values):
        return data.draw(st.tuples(*[values] * ndim))

    groups, inner, outer = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    size, kernel = per_axis(st.integers(1, 9)), per_axis(st.integers(1, 4))
    stride, dilation, padding = per_axis(st.integers(1, 3)), per_axis(st.integers(1, 3)), per_axis(st.integers(0, 4))
    extra = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    meta = {"device": "meta"}

    x, w = (2, groups * inner, *size), (groups * outer, inner, *kernel)
    functional = [torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d][ndim - 1]
    try:
        expected = functional(torch.empty(x, **meta), torch.empty(w, **meta), None, stride, padding, dilation, groups)
    except RuntimeError:
        with pytest.raises(ValueError, match="kernel covers"):
            conv_output_shape(x, w, stride, padding, dilation, groups)
    else:
        assert conv_output_shape(x, w, stride, padding, dilation, groups) == tuple(expected.shape)
    same = functional(torch.empty(x, **meta), torch.empty(w, **meta), None, 1, "same", dilation, groups)
    assert conv_output_shape(x, w, 1, "same", dilation, groups) == tuple(same.shape)

    w = (groups * inner, outer, *kernel)
    names = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    functional = getattr(torch.nn.functional, names[ndim - 1])
    arguments = (stride, padding, extra, groups, dilation)
    lengths = [
        (size[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + extra[i] + 1 for i in range(ndim)
    ]
    if min(lengths) < 0:
        with pytest.raises(ValueError, match="takes away more than there is"):
            conv_transpose_output_shape(x, w, *arguments)
    elif min(lengths) > 0:  # torch refuses empty results, NumPy does not
        expected = functional(torch.empty(x, **meta), torch.empty(w, **meta), None, *arguments)
        assert conv_transpose_output_shape(x, w, *arguments) == tuple(expected.shape)


# -- identity -----------------------------------------------------------------------------------------------------


def test_equal_arguments_make_equal_hashable_frozen_problems():
    plain = ConvProblem.forward(2, (2, 4, 9, 9), (8, 2, 3, 3), stride=2, padding=1, groups=2)
    spelled = ConvProblem.forward(
        2,
        np.array([2, 4, 9, 9]),
        [8, 2, 3, 3],
        stride=(2, 2),
        padding=((1, 1), (1, 1)),
        dilation=[1, 1],
        groups=np.int8(2),
        data_format="NCHW",
        weight_format="OIHW",
    )
    assert plain == spelled
    assert hash(plain) == hash(spelled)
    assert {plain: 1}[spelled] == 1
    assert pickle.loads(pickle.dumps(plain)) == plain
    assert plain != dataclasses.replace(plain, op="input_grad")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.stride = (1, 1, 1)


@pytest.mark.parametrize("weight_format", ["OIHW", "OHWI", "HWIO"])
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_the_three_ops_share_their_shapes(data_format, weight_format):
    x = {"NCHW": (2, 6, 9, 8), "NHWC": (2, 9, 8, 6)}[data_format]
    w = {"OIHW": (4, 3, 3, 2), "OHWI": (4, 3, 2, 3), "HWIO": (3, 2, 3, 4)}[weight_format]
    y = {"NCHW": (2, 4, 7, 7), "NHWC": (2, 7, 7, 4)}[data_format]
    p = ConvProblem.forward(2, x, w, groups=2, data_format=data_format, weight_format=weight_format)
    assert (p.operand_shapes, p.result_shape, p.result_channels) == ((x, w), y, 4)
    p = dataclasses.replace(p, op="input_grad")
    assert (p.operand_shapes, p.result_shape, p.result_channels) == ((y, w), x, 6)
    p = dataclasses.replace(p, op="weight_grad")
    assert (p.operand_shapes, p.result_shape) == ((x, y), w)
    assert p.macs == 2 * 4 * 7 * 7 * 3 * 3 * 2


def test_str_names_what_a_reader_needs():
    p = ConvProblem.forward(2, (1, 4, 9, 9), (8, 2, 3, 3), stride=2, padding=1, groups=2)
    assert str(p) == (
        "conv2d (1, 4, 9, 9) * (8, 2, 3, 3) -> (1, 8, 5, 5) float32 stride=(2, 2) padding=((1, 1), (1, 1)) groups=2"
    )


@pytest.mark.parametrize(
    ("x", "w", "expected"),
    [
        ("float32", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float16", "float32", "float32"),
        ("float32", "complex64", "complex64"),
        ("float64", "complex64", "complex128"),
        ("int8", "int8", "int8"),
        ("uint8", "int8", "int16"),
        ("int32", "int64", "int64"),
        ("int64", "float32", "float64"),
        ("int8", "float16", "float16"),
    ],
)
def test_compute_dtype_is_numpys_promotion(x, w, expected):
    assert compute_dtype(np.dtype(x), np.dtype(w)) == expected
    assert compute_dtype(np.dtype(w), np.dtype(x)) == expected


def test_compute_dtype_of_bfloat16():
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    assert compute_dtype(bfloat16, bfloat16) == "bfloat16"
    assert compute_dtype(bfloat16, np.dtype("float32")) == "float32"
    assert compute_dtype(bfloat16, np.dtype("int8")) == "bfloat16"
    with pytest.raises(TypeError, match="x has dtype float16 and w bfloat16: expected two that NumPy promotes to one"):
        compute_dtype(np.dtype("float16"), bfloat16)


@pytest.mark.parametrize("dtype", ["bool", "uint16", "uint32", "uint64", "object", "str", "datetime64[s]", "S4"])
def test_compute_dtype_refuses_others(dtype):
    with pytest.raises(TypeError, match=r"x has dtype .*expected one of float32"):
        compute_dtype(np.dtype(dtype), np.dtype("float32"))
    with pytest.raises(TypeError, match=r"w has dtype .*expected one of float32"):
        compute_dtype(np.dtype("float32"), np.dtype(dtype))


@pytest.mark.parametrize(
    ("argument", "kind", "a", "b"),
    [
        (None, "none", 0, math.inf),
        ("relu", "clip", 0, math.inf),
        ("relu6", "clip", 0, 6),
        ("leaky_relu", "leaky_relu", 0.01, math.inf),
        ("gelu", "gelu", 0, math.inf),
        ((-1, 1), "clip", -1, 1),
        ([0.5, np.float32(0.5)], "clip", 0.5, 0.5),
        ((-math.inf, 3), "clip", -math.inf, 3),
    ],
)
def test_activation_is_read(argument, kind, a, b):
    assert Activation.parse(argument, "float32") == Activation(kind, a, b)


# -- bad arguments ------------------------------------------------------------------------------------------------

BAD_FOR_BOTH = [
    ({"stride": 0}, ValueError, ["stride=0", "from 1"]),
    ({"stride": -2}, ValueError, ["stride=-2", "from 1"]),
    ({"stride": 1.5}, TypeError, ["stride=1.5", "expected an integer"]),
    ({"stride": True}, TypeError, ["stride=True", "expected an integer"]),
    ({"stride": "2"}, TypeError, ["stride='2'", "expected an integer"]),
    ({"stride": None}, TypeError, ["stride=None", "expected an integer"]),
    ({"stride": (1, 2, 3)}, ValueError, ["stride=(1, 2, 3)", "one integer or 2"]),
    ({"stride": ()}, ValueError, ["stride=()", "one integer or 2"]),
    ({"stride": (1, 0)}, ValueError, ["stride=0", "from 1"]),
    ({"stride": 2**31}, ValueError, ["stride=2147483648", "to 2147483647"]),
    ({"dilation": 0}, ValueError, ["dilation=0", "from 1"]),
    ({"dilation": (1, 1, 1)}, ValueError, ["dilation=(1, 1, 1)", "one integer or 2"]),
    ({"dilation": 2.0}, TypeError, ["dilation=2.0", "expected an integer"]),
    ({"groups": 0}, ValueError, ["groups=0", "from 1"]),
    ({"groups": 1.0}, TypeError, ["groups=1.0", "expected an integer"]),
    ({"groups": (1, 1)}, TypeError, ["groups=(1, 1)", "expected an integer"]),
    ({"padding": -1}, ValueError, ["padding=-1", "from 0"]),
    ({"padding": 0.5}, TypeError, ["padding=0.5", "expected an integer"]),
    ({"padding": None}, TypeError, ["padding=None", "expected an integer"]),
    ({"padding": "SAME"}, ValueError, ["padding='SAME'", "'valid', 'same', 'same_lower', 'full'", "or numbers"]),
    ({"padding": "causal"}, ValueError, ["padding='causal'", "'causal' is for 1-D"]),
    ({"padding": (1, 2, 3)}, ValueError, ["padding=(1, 2, 3)", "one integer, 2, or 2 (lo, hi) pairs"]),
    ({"padding": ((1, 2),)}, ValueError, ["padding=((1, 2),)", "2 (lo, hi) pairs"]),
    ({"padding": ((1, 2, 3), (1, 2, 3))}, ValueError, ["padding=((1, 2, 3), (1, 2, 3))", "2 (lo, hi) pairs"]),
    ({"padding": ((1, -2), (0, 0))}, ValueError, ["padding=-2", "from 0"]),
    ({"padding": (1, (1, 2))}, TypeError, ["padding=(1, 2)", "expected an integer"]),
    ({"padding_mode": "edge"}, ValueError, ["padding_mode='edge'", "'zeros', 'reflect', 'replicate', 'circular'"]),
    ({"padding_mode": None}, ValueError, ["padding_mode=None", "'zeros'"]),
    ({"padding_mode": np.array(["zeros", "edge"])}, ValueError, ["padding_mode=array", "'zeros'"]),
    ({"data_format": "NCW"}, ValueError, ["data_format='NCW'", "'NCHW', 'NHWC', 'channels_first', 'channels_last'"]),
    ({"weight_format": "HWOI"}, ValueError, ["weight_format='HWOI'", "'OIHW', 'OHWI', 'HWIO'"]),
    ({"precision": "double"}, ValueError, ["precision='double'", "'highest', 'high', 'fast'"]),
    ({"flip_kernel": "no"}, TypeError, ["flip_kernel='no'", "True or False"]),
    ({"flip_kernel": None}, TypeError, ["flip_kernel=None", "True or False"]),
    ({"activation": "softmax"}, ValueError, ["activation='softmax'", "relu, relu6", "clip range"]),
    ({"activation": "06"}, ValueError, ["activation='06'", "clip range"]),
    ({"activation": (1, 0)}, ValueError, ["activation=(1, 0)", "clip range (low, high)"]),
    ({"activation": (math.nan, 0)}, ValueError, ["activation=(nan, 0)", "clip range (low, high)"]),
    ({"activation": 3}, ValueError, ["activation=3", "clip range (low, high)"]),
    ({"activation": "relu", "dtype": "complex64"}, TypeError, ["activation='relu'", "complex64"]),
    ({"activation": "gelu", "dtype": "int8"}, TypeError, ["activation='gelu'", "'relu', 'relu6' or a clip range"]),
    ({"activation": (0.5, 2), "dtype": "int8"}, ValueError, ["activation=(0.5, 2)", "integers that int32 holds"]),
    ({"activation": (0, 2**31), "dtype": "int8"}, ValueError, ["activation=(0, 2147483648)", "that int32 holds"]),
    ({"x": (4, 9)}, ValueError, ["x has shape (4, 9)", "at least 3 axes", "C, H, W"]),
    ({"x": (1, 9, 8.5, 9)}, TypeError, ["x_shape=(1, 9, 8.5, 9)", "expected integers"]),
    ({"x": (1, 4, -9, 9)}, ValueError, ["x_shape=(1, 4, -9, 9)", "integers of at least 0"]),
    ({"w": (4, 4, 3)}, ValueError, ["w has shape (4, 4, 3)", "expected 4 axes, OIHW"]),
    ({"w": (4, 4, 0, 3)}, ValueError, ["w has shape (4, 4, 0, 3)", "kernel axis", "at least 1"]),
]

BAD_FOR_FORWARD = [
    ({"x": (1, 5, 9, 9)}, ValueError, ["w has shape (4, 4, 3, 3) (OIHW)", "4 * 1 = 4", "x has shape (1, 5, 9, 9)"]),
    ({"groups": 2}, ValueError, ["groups=2", "4 * 2 = 8", "(1, 4, 9, 9) (NCHW) with 4"]),
    ({"w": (4, 3, 3, 4), "weight_format": "HWIO"}, ValueError, ["w has shape (4, 3, 3, 4)", "(HWIO"]),
    ({"data_format": "NHWC"}, ValueError, ["x has shape (1, 4, 9, 9) (NHWC) with 9"]),
    ({"w": (5, 2, 3, 3), "groups": 2}, ValueError, ["groups=2", "output channels", "5"]),
    ({"x": (1, 4, 2, 9)}, ValueError, ["kernel covers 3", "(1, 4, 2, 9)", "only 2", "padding (0, 0)"]),
    ({"dilation": 5}, ValueError, ["kernel covers 11", "dilation 5", "only 9"]),
    ({"padding": 9, "padding_mode": "reflect"}, ValueError, ["padding=(9, 9)", "'reflect'", "length 9", "at most 8"]),
    ({"padding": 10, "padding_mode": "circular"}, ValueError, ["padding=(10, 10)", "'circular'", "at most 9"]),
    (
        {"x": (1, 4, 0, 9), "padding": 1, "padding_mode": "replicate"},
        ValueError,
        ["padding=(1, 1)", "'replicate'", "length 0", "at most 0"],
    ),
]

BAD_FOR_TRANSPOSED = [
    ({"x": (1, 5, 9, 9)}, ValueError, ["w has shape (4, 4, 3, 3)", "must have 4 channels", "(1, 5, 9, 9)", "with 5"]),
    ({"groups": 3}, ValueError, ["groups=3", "input channels, 4"]),
    ({"output_padding": 1}, ValueError, ["output_padding=1", "smaller than stride (1) or dilation (1)"]),
    ({"output_padding": (0, 2), "stride": 2}, ValueError, ["output_padding=(0, 2)", "smaller than stride (2)"]),
    ({"output_padding": -1}, ValueError, ["output_padding=-1", "from 0"]),
    ({"output_padding": "1"}, TypeError, ["output_padding='1'", "expected an integer"]),
    ({"output_padding": (0, 0, 0)}, ValueError, ["output_padding=(0, 0, 0)", "one integer or 2"]),
    ({"padding": 6}, ValueError, ["padding=6", "takes away more", "(1, 4, 9, 9)", "length -1"]),
    ({"padding_mode": "reflect"}, ValueError, ["padding_mode='reflect'", "'zeros' only"]),
]


@pytest.mark.parametrize(
    ("build", "arguments", "exception", "fragments"),
    [
        pytest.param(build, *case, id=f"{build.__name__}-{case[0]}")
        for build, cases in (
            (ConvProblem.forward, BAD_FOR_BOTH + BAD_FOR_FORWARD),
            (ConvProblem.transposed, BAD_FOR_BOTH + BAD_FOR_TRANSPOSED),
        )
        for case in cases
    ],
)
def test_bad_arguments_are_named(build, arguments, exception, fragments):
    arguments = {"x": (1, 4, 9, 9), "w": (4, 4, 3, 3)} | arguments
    with pytest.raises(exception) as caught:
        build(2, arguments.pop("x"), arguments.pop("w"), **arguments)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_numpy_padding_is_read_by_both():
    padding = np.array([1, 0])
    assert conv_transpose_output_shape((1, 1, 5, 5), (1, 1, 3, 3), padding=padding) == (1, 1, 5, 7)
    assert conv_output_shape((1, 1, 5, 5), (1, 1, 3, 3), padding=padding) == (1, 1, 5, 3)


@pytest.mark.parametrize("shape", [(), (3, 3), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("function", [conv_output_shape, conv_transpose_output_shape])
def test_shape_functions_read_the_rank_off_the_weight(function, shape):
    with pytest.raises(ValueError, match=r"w_shape=.*expected 3, 4 or 5 axes"):
        function((1, 1, 9, 9), shape)
