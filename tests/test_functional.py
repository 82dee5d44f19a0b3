"""The public functions: every argument of the contract, against the reference or a plainer call.

Most arrays here hold integers, so that equality is exact whatever algorithm the dispatcher picks.
"""

import inspect
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promise import assert_kept
from strategies import LAYOUTS, empty, laid_out, numpy_dtype, operands, problems, public_call

import fastconv
from fastconv.dispatch import choose
from fastconv.problem import DATA_FORMATS, DTYPES, PADDING_MODES, WEIGHT_FORMATS, ConvProblem
from fastconv.reference import reference
from fastconv.registry import algorithms

RNG = np.random.default_rng(3)
CONV = {1: fastconv.conv1d, 2: fastconv.conv2d, 3: fastconv.conv3d}
CONV_TRANSPOSE = {1: fastconv.conv_transpose1d, 2: fastconv.conv_transpose2d, 3: fastconv.conv_transpose3d}
CONV_LAYER = {1: fastconv.Conv1d, 2: fastconv.Conv2d, 3: fastconv.Conv3d}
CONV_TRANSPOSE_LAYER = {1: fastconv.ConvTranspose1d, 2: fastconv.ConvTranspose2d, 3: fastconv.ConvTranspose3d}


def whole(*shape, dtype=np.int32):
    """An array of small whole numbers."""
    return RNG.integers(-9, 10, shape).astype(dtype)


# -- everything at once -----------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(data=st.data())
def test_any_call(data):
    p = data.draw(problems(ops=("forward", "input_grad")))
    name, arguments = public_call(p)
    arrays = data.draw(operands(p))
    arrays = [v if v is None else laid_out(v, data.draw(st.sampled_from(LAYOUTS))) for v in arrays]
    before = [v if v is None else v.copy() for v in arrays]
    a, b, bias, residual = arrays
    result = getattr(fastconv, name)(a, b, bias, residual=residual, device="cpu", **arguments)
    assert type(result) is np.ndarray
    assert (result.shape, result.dtype.name) == (p.result_shape, p.result_dtype)
    assert_kept(choose(p, "cpu"), p, result, *arrays)
    for array, copy in zip(arrays, before, strict=True):
        assert array is None or array.tobytes() == copy.tobytes()


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_positional_arguments_stand_in_torchs_order(ndim):
    expected = ["x", "w", "bias", "stride", "padding", "dilation", "groups"]
    parameters = inspect.signature(CONV[ndim]).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == expected
    expected = ["x", "w", "bias", "stride", "padding", "output_padding", "groups", "dilation"]
    parameters = inspect.signature(CONV_TRANSPOSE[ndim]).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == expected


def test_positional_and_keyword_arguments_are_the_same():
    x, w, bias = whole(2, 4, 12, 12), whole(6, 2, 3, 3), whole(6)
    by_name = fastconv.conv2d(x, w, bias=bias, stride=2, padding=3, dilation=(1, 2), groups=2)
    np.testing.assert_array_equal(fastconv.conv2d(x, w, bias, 2, 3, (1, 2), 2), by_name)
    x, w, bias = whole(2, 4, 7, 7), whole(4, 3, 3, 3), whole(6)
    by_name = fastconv.conv_transpose2d(x, w, bias=bias, stride=3, padding=1, output_padding=2, groups=2, dilation=2)
    np.testing.assert_array_equal(fastconv.conv_transpose2d(x, w, bias, 3, 1, 2, 2, 2), by_name)


# -- batch axes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("functions", [CONV, CONV_TRANSPOSE], ids=["conv", "conv_transpose"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_leading_batch_axes(functions, ndim, batch):
    size = (5, 6, 7)[:ndim]
    x, w, residual = whole(*batch, 3, *size), whole(3, 3, *[1] * ndim), whole(*batch, 3, *size)
    result = functions[ndim](x, w, residual=residual)
    assert result.shape == (*batch, 3, *size)
    for index in np.ndindex(batch):
        np.testing.assert_array_equal(result[index], functions[ndim](x[index], w, residual=residual[index]))


# -- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "pairs"),
    [
        (2, ((2, 2), (2, 2))),
        (np.int64(2), ((2, 2), (2, 2))),
        ((2, 1), ((2, 2), (1, 1))),
        ([2, 1], ((2, 2), (1, 1))),
        (np.array([2, 1]), ((2, 2), (1, 1))),
        (((1, 0), (0, 2)), ((1, 0), (0, 2))),
        ([[1, 0], [0, 2]], ((1, 0), (0, 2))),
        ([(1, 0), (0, 2)], ((1, 0), (0, 2))),
        ("valid", ((0, 0), (0, 0))),
        # 9 x 8 inputs, kernel (4, 3), stride (2, 3): 5 outputs need 3 more rows, 3 outputs 1 more column
        ("same", ((1, 2), (0, 1))),
        ("same_lower", ((2, 1), (1, 0))),
        ("full", ((3, 3), (2, 2))),
    ],
)
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_padding_is_what_numpy_pads(padding, pairs, mode):
    x, w = whole(2, 3, 9, 8), whole(4, 3, 4, 3)
    numpys = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    padded = np.pad(x, ((0, 0), (0, 0), *pairs), mode=numpys)
    result = fastconv.conv2d(x, w, padding=padding, padding_mode=mode, stride=(2, 3))
    np.testing.assert_array_equal(result, fastconv.conv2d(padded, w, stride=(2, 3)))


@pytest.mark.parametrize("padding", [1, (1, 2), ((1, 0), (0, 2)), "valid", "same", "same_lower", "full"])
def test_padding_of_a_transposed_convolution_crops(padding):
    x, w, stride = whole(2, 3, 5, 6), whole(3, 4, 4, 5), (2, 3)
    everything = fastconv.conv_transpose2d(x, w, stride=stride)
    p = ConvProblem.transposed(2, x.shape, w.shape, stride=stride, padding=padding)
    rows, columns = (slice(p.padding[i][0], p.padding[i][0] + p.size[i]) for i in (1, 2))
    result = fastconv.conv_transpose2d(x, w, stride=stride, padding=padding)
    np.testing.assert_array_equal(result, everything[..., rows, columns])


def test_causal_outputs_see_no_later_inputs():
    x, w = whole(2, 20), whole(3, 2, 4)
    before = fastconv.conv1d(x, w, padding="causal", dilation=2)
    x[:, 11:] += 5
    after = fastconv.conv1d(x, w, padding="causal", dilation=2)
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] != after[:, 11:]).any()


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("functions", [CONV, CONV_TRANSPOSE], ids=["conv", "conv_transpose"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("keras", [False, True])
def test_formats_only_move_axes(functions, ndim, keras):
    x, w = whole(2, 4, *(6, 5, 7)[:ndim]), whole(4, 4, *(3, 2, 2)[:ndim])
    first = functions[ndim](x, w, stride=2)
    last = "channels_last" if keras else DATA_FORMATS[ndim][1]
    residual = whole(*first.shape)
    spatial = tuple(range(2, w.ndim))
    orders = {0: (0, 1, *spatial), 1: (0, *spatial, 1), 2: (*spatial, 1, 0)}
    for index, weight_format in enumerate(WEIGHT_FORMATS[ndim]):
        formats = {"data_format": last, "weight_format": weight_format}
        moved = functions[ndim](
            np.moveaxis(x, 1, -1),
            w.transpose(orders[index]),
            stride=2,
            residual=np.moveaxis(residual, 1, -1),
            **formats,
        )
        np.testing.assert_array_equal(np.moveaxis(moved, -1, 1), first + residual)
    spelled = functions[ndim](x, w, stride=2, data_format="channels_first", weight_format=WEIGHT_FORMATS[ndim][0])
    np.testing.assert_array_equal(spelled, first)


# -- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("w_dtype", DTYPES)
def test_result_dtypes(x_dtype, w_dtype):
    """numpy.result_type for floating point; int32, or int64 where one of them is int64, for integers."""
    x_dtype, w_dtype = numpy_dtype(x_dtype), numpy_dtype(w_dtype)
    x, w = np.full((1, 2, 3), 3).astype(x_dtype), np.full((1, 2, 2), 5).astype(w_dtype)
    try:
        common = np.result_type(x_dtype, w_dtype)
    except TypeError:
        with pytest.raises(TypeError, match=f"x has dtype {x_dtype} and w {w_dtype}"):
            fastconv.conv1d(x, w)
        return
    integers = x_dtype.kind in "iu" and w_dtype.kind in "iu"
    result = fastconv.conv1d(x, w)
    assert result.dtype == ((np.int64 if common == np.int64 else np.int32) if integers else common)
    np.testing.assert_array_equal(result.astype(complex), np.full((1, 1, 2), 60))


def test_bias_and_residual_of_other_dtypes_are_cast():
    x, w = whole(1, 2, 5, dtype=np.float32), whole(3, 2, 2, dtype=np.float32)
    plain = fastconv.conv1d(x, w)
    for dtype in (np.int8, np.float16, np.float64):
        result = fastconv.conv1d(x, w, np.array([1, 2, 3], dtype), residual=np.full((1, 3, 4), 2, dtype))
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, plain + np.float32([[3], [4], [5]]))


def test_half_types_are_summed_in_single_precision():
    """2048 + 1 has no float16; sums of ones lose nothing before the last rounding."""
    x, w = np.ones((1, 4096, 1), np.float16), np.ones((1, 4096, 1), np.float16)
    p = ConvProblem.forward(1, x.shape, w.shape, dtype="float16")
    for algorithm in (a for a in algorithms("cpu") if a.why_not(p) is None):
        assert fastconv.conv1d(x, w, algorithm=algorithm.name) == 4096


def test_other_byte_orders_and_lists_are_read():
    x, w = whole(1, 2, 6), whole(3, 2, 2)
    expected = fastconv.conv1d(x, w)
    np.testing.assert_array_equal(fastconv.conv1d(x.astype(">i4"), w.astype(">i4")), expected)
    as_lists = fastconv.conv1d(x.tolist(), w.tolist(), bias=[0, 0, 0])
    assert as_lists.dtype == np.int64
    np.testing.assert_array_equal(as_lists, expected)


# -- activation, residual, flip -----------------------------------------------------------------------------------


def test_activation_follows_bias_and_residual():
    x, w, bias = whole(2, 3, 6, 6), whole(4, 3, 3, 3), whole(4)
    residual = whole(2, 4, 4, 4)
    total = fastconv.conv2d(x, w) + bias[:, None, None] + residual
    for activation, low, high in (("relu", 0, np.inf), ("relu6", 0, 6), ((-20, 30), -20, 30)):
        result = fastconv.conv2d(x, w, bias, residual=residual, activation=activation)
        np.testing.assert_array_equal(result, np.clip(total, low, high))


@pytest.mark.parametrize("functions", [CONV, CONV_TRANSPOSE], ids=["conv", "conv_transpose"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_flip_kernel_turns_the_kernel_round(functions, ndim):
    x, w = whole(2, 3, *(6, 5, 7)[:ndim]), whole(3, 3, *(3, 2, 4)[:ndim])
    turned = np.flip(w, tuple(range(2, w.ndim)))
    np.testing.assert_array_equal(functions[ndim](x, w, flip_kernel=True), functions[ndim](x, turned))


def test_the_weight_is_read_anew_at_every_call():
    x, w = whole(1, 2, 6), whole(3, 2, 2)
    before = fastconv.conv1d(x, w)
    w *= 2
    np.testing.assert_array_equal(fastconv.conv1d(x, w), 2 * before)


# -- out --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "reversed", "sliced", "fortran"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_out_of_any_strides_is_filled_and_returned(layout, batch, data_format):
    x, w = whole(*batch, 6, 6, 6), whole(4, 6, 3, 3)
    expected = fastconv.conv2d(x, w, data_format=data_format)
    out = empty(expected.shape, expected.dtype, layout)
    assert fastconv.conv2d(x, w, data_format=data_format, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_out_may_be_the_residual():
    x, w, residual = whole(2, 3, 2, 6, 6), whole(4, 2, 3, 3), whole(2, 3, 4, 4, 4)
    expected = fastconv.conv2d(x, w) + residual
    assert fastconv.conv2d(x, w, residual=residual, out=residual) is residual
    np.testing.assert_array_equal(residual, expected)


def test_out_between_the_elements_of_the_input_shares_no_memory():
    buffer = whole(2, 3, 8, 16)
    x, out = buffer[..., ::2], buffer[..., 1::2]
    expected = fastconv.conv2d(x.copy(), np.ones((3, 3, 1, 1), np.int32))
    fastconv.conv2d(x, np.ones((3, 3, 1, 1), np.int32), out=out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("case", ["x itself", "x reversed", "x shifted", "w"])
def test_out_that_shares_memory_with_an_operand_is_refused(case):
    buffer, w = whole(2, 3, 8, 8), whole(3, 3, 1, 1)
    x, out = {
        "x itself": (buffer, buffer),
        "x reversed": (buffer, buffer[::-1]),
        "x shifted": (buffer[:, :, :-1], buffer[:, :, 1:]),
        "w": (whole(1, 3, 1, 1), w[:1]),
    }[case]
    before = out.copy()
    with pytest.raises(ValueError, match=f"out shares memory with {case[0]}"):
        fastconv.conv2d(x, w, out=out)
    np.testing.assert_array_equal(out, before)


def test_out_that_overlaps_bias_or_a_shifted_residual_is_refused():
    x, w, out = whole(1, 2, 4), whole(3, 2, 1), whole(1, 4, 4)
    with pytest.raises(ValueError, match="out shares memory with bias"):
        fastconv.conv1d(x, w, out[0, :3, 0], out=out[:, :3])
    with pytest.raises(ValueError, match="out shares memory with residual"):
        fastconv.conv1d(x, w, residual=out[:, 1:], out=out[:, :3])


# -- algorithm, precision, device -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [a.name for a in algorithms("cpu")])
@pytest.mark.parametrize("precision", ["highest", "high", "fast"])
def test_a_named_algorithm_runs_at_any_precision_or_says_why_not(algorithm, precision):
    x, w = RNG.standard_normal((2, 3, 9, 9), np.float32), RNG.standard_normal((4, 3, 3, 3), np.float32)
    p = ConvProblem.forward(2, x.shape, w.shape, precision=precision)
    (named,) = (a for a in algorithms("cpu") if a.name == algorithm)
    if named.why_not(p) is not None:
        with pytest.raises(ValueError, match=re.escape(named.why_not(p))):
            fastconv.conv2d(x, w, algorithm=algorithm, precision=precision)
        return
    result = fastconv.conv2d(x, w, algorithm=algorithm, precision=precision)
    assert_kept(named, p, result, x, w)


def test_a_declining_algorithm_says_why():
    x, w = whole(1, 1, 4), whole(1, 1, 2)
    p = ConvProblem.forward(1, x.shape, w.shape, dtype="int32")
    reasons = {a.name: a.why_not(p) for a in algorithms("cpu")}
    assert any(reasons.values())
    for name, reason in reasons.items():
        if reason:
            with pytest.raises(ValueError, match=f"algorithm='{name}' cannot compute conv1d") as caught:
                fastconv.conv1d(x, w, algorithm=name)
            assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((1, 64, 28, 28), (64, 64, 3, 3), {"padding": 1}),
        ((1, 32, 56, 56), (32, 1, 3, 3), {"groups": 32}),
        ((2, 3, 17), (5, 3, 4), {"stride": 2}),
        ((1, 8, 5, 6, 7), (8, 4, 3, 3, 3), {"transposed": True, "stride": 2}),
    ],
)
def test_explain_names_what_runs(x_shape, w_shape, options):
    explanation = fastconv.explain(x_shape, w_shape, device="cpu", **options)
    assert repr(explanation) == str(explanation)  # so that a notebook shows the table
    ours = [row for row in explanation.rows if row.device == "cpu"]
    assert [row.algorithm for row in ours] == [a.name for a in algorithms("cpu")]
    chosen = {}
    for form in ("call", "prepared"):
        able = {row.algorithm: getattr(row, form) for row in ours if row.why_not is None}
        (chosen[form],) = (name for name, time in able.items() if time.chosen)
        assert able[chosen[form]].seconds == min(time.seconds for time in able.values())
    for row in explanation.rows:
        assert row.algorithm in str(explanation)
        assert (row.why_not is None) == (row.call is not None) == (row.prepared is not None)
    x, w = RNG.standard_normal(x_shape, np.float32), RNG.standard_normal(w_shape, np.float32)
    transposed = options.pop("transposed", False)
    function = (CONV_TRANSPOSE if transposed else CONV)[len(w_shape) - 2]
    layer = (CONV_TRANSPOSE_LAYER if transposed else CONV_LAYER)[len(w_shape) - 2]
    named = function(x, w, algorithm=chosen["call"], **options)
    assert function(x, w, device="cpu", **options).tobytes() == named.tobytes()
    named = layer(w, algorithm=chosen["prepared"], **options)(x)
    assert layer(w, device="cpu", **options)(x).tobytes() == named.tobytes()


def test_explain_takes_results_that_no_memory_holds():
    explanation = fastconv.explain((1, 1, 9), (1, 1, 2), padding=2**31 - 1, device="cpu")
    assert explanation.problem.result_shape == (1, 1, 2**32 + 6)


def test_explain_gives_the_reasons_of_those_who_decline():
    explanation = fastconv.explain((1, 1, 4), (1, 1, 2), dtype="int8", device="cpu")
    for row in explanation.rows:
        if row.device == "cpu":
            (algorithm,) = (a for a in algorithms("cpu") if a.name == row.algorithm)
            assert row.why_not == algorithm.why_not(explanation.problem)
            assert row.why_not is None or row.why_not in str(explanation)


def test_a_gpu_that_is_not_there_is_a_clear_error():
    from fastconv.dispatch import why_no_gpu

    reason = why_no_gpu()
    if reason is None:
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device='gpu'") as caught:
        fastconv.conv1d(whole(1, 1, 4), whole(1, 1, 2), device="gpu")
    assert reason in str(caught.value)


# -- any problem, gradients included ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(data=st.data())
def test_execute_computes_every_op(data):
    p = data.draw(problems(dtypes=("float32", "int16")))
    arrays = data.draw(operands(p))
    result = fastconv.execute(p, *arrays, device="cpu")
    assert_kept(choose(p, "cpu"), p, result, *arrays)


def test_execute_refuses_arrays_of_another_problem():
    p = ConvProblem.forward(1, (1, 2, 5), (3, 2, 2))
    x, w = np.ones((1, 2, 5), np.float32), np.ones((3, 2, 2), np.float32)
    assert fastconv.execute(p, x, w).shape == reference(p, x, w).shape
    with pytest.raises(ValueError, match=r"a has shape \(1, 2, 4\): expected \(1, 2, 5\)"):
        fastconv.execute(p, x[..., 1:], w)
    with pytest.raises(TypeError, match="dtypes float64 and float32: expected float32"):
        fastconv.execute(p, x.astype(float), w)
