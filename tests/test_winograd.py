"""What is special about Winograd convolution: its matrices, its errors, its tiles, and what it computes again."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promise import assert_kept
from strategies import make_operands, numpy_dtype

from fastconv.accuracy import error
from fastconv.cpu import parallel
from fastconv.problem import OPS, PADDING_MODES, ConvProblem
from fastconv.reference import reference
from fastconv.registry import UNIT_ROUNDOFF, algorithms
from fastconv.winograd import POINTS, amplification, error_bound, matrices, reach, window_taps

BY_NAME = {a.name: a for a in algorithms("cpu")}
WINDOWS = {"winograd4": 4, "winograd6": 6}
each_window = pytest.mark.parametrize("algorithm", [BY_NAME[name] for name in WINDOWS], ids=WINDOWS)
each_transform = pytest.mark.parametrize(("window", "taps"), [(n, r) for n in POINTS for r in window_taps(n)])


def run(algorithm, p, a, b, bias=None, residual=None, **options):
    assert algorithm.why_not(p) is None
    out = np.full(p.result_shape, 7, numpy_dtype(p.result_dtype))
    algorithm.apply(p, a, b, out, bias, residual, **options)
    return out


def check(algorithm, p, *operands, **options):
    assert_kept(algorithm, p, run(algorithm, p, *operands, **options), *operands)


# -- the arithmetic ---------------------------------------------------------------------------------------------------


@each_transform
def test_matrices_compute_the_correlation_exactly(window, taps):
    inputs, weights, outputs = matrices(window, taps)
    rng = np.random.default_rng(0)
    x, w = ([Fraction(int(v)) for v in rng.integers(-9, 10, n)] for n in (window, taps))

    def product(matrix, vector):
        return [sum(c * v for c, v in zip(row, vector, strict=True)) for row in matrix]

    products = [a * b for a, b in zip(product(weights, w), product(inputs, x), strict=True)]
    assert product(outputs, products) == [sum(w[k] * x[t + k] for k in range(taps)) for t in range(window + 1 - taps)]


@each_transform
def test_matrices_of_inputs_and_outputs_are_exact_in_float32(window, taps):
    inputs, _, outputs = matrices(window, taps)
    for coefficient in (c for matrix in (inputs, outputs) for row in matrix for c in row):
        assert Fraction(float(np.float32(float(coefficient)))) == coefficient


def test_amplification_of_the_textbook_tile():
    """F(2, 3): components 0 and 3 sum products of two distances, 1 and 2 those of four, halved."""
    assert amplification(4, 3) == pytest.approx((6, np.sqrt(12)))
    assert amplification(1, 1) == (1, 1)


@each_transform
def test_the_bound_holds_for_the_worst_inputs_found(window, taps):
    """In one dimension, channel by channel, in float32: many draws and signs against the bound that is promised."""
    inputs, weights, outputs = (np.array(m, np.float32) for m in matrices(window, taps))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2000, window)).astype(np.float32) * np.exp2(rng.integers(-20, 20, (2000, window)))
    w = rng.standard_normal((2000, taps)).astype(np.float32) * np.exp2(rng.integers(-20, 20, (2000, taps)))
    x, w = x.astype(np.float32), w.astype(np.float32)
    y = ((x @ inputs.T) * (w @ weights.T)) @ outputs.T
    full = np.zeros((2000, window + taps - 1))
    exact = np.zeros_like(full)
    for i in range(window):
        for k in range(taps):
            product = x[:, i].astype(float) * w[:, k]
            exact[:, i + taps - 1 - k] += product
            full[:, i + taps - 1 - k] += abs(product)
    difference = np.abs(y - exact[:, taps - 1 : window])
    assert (difference <= error_bound((1, window), (1, taps), 1) * 2.0**-24 * full.max(1, keepdims=True)).all()


# -- problems ---------------------------------------------------------------------------------------------------------


@st.composite
def taken(draw, most_taps):
    """A problem at stride 1, of any remainder of tiles."""
    ndim = draw(st.integers(1, 3))
    op = draw(st.sampled_from(("forward", "input_grad")))
    mode = "zeros" if op == "input_grad" else draw(st.sampled_from(PADDING_MODES))
    groups, inner, outer = draw(st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)))
    kernel = draw(st.tuples(*[st.sampled_from((3, 3, *range(2, most_taps + 1)))] * ndim))
    dilation = draw(st.tuples(*[st.integers(1, 3)] * ndim))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * ndim))
    size = [d * (k - 1) + 1 + draw(st.integers(0, 10)) for d, k in zip(dilation, kernel, strict=True)]
    p = ConvProblem.forward(
        ndim, (draw(st.integers(1, 3)), groups * inner, *size), (groups * outer, inner, *kernel),
        groups=groups, dilation=dilation, padding=padding, padding_mode=mode,
        dtype=draw(st.sampled_from(("float32", "float64", "float16", "bfloat16"))), bias=draw(st.booleans()),
        residual=draw(st.booleans()), activation=draw(st.sampled_from((None, "relu", "silu"))),
    )  # fmt: skip
    return dataclasses.replace(p, op=op, channels_last=draw(st.booleans()))


@each_window
@settings(max_examples=200)
@given(data=st.data(), seed=st.integers(0, 99), spikes=st.sampled_from((0, 1, 3)))
def test_large_neighbours_and_magnitudes_of_many_orders(algorithm, data, seed, spikes):
    """Inputs and weights spread over many powers of two, with spikes: products from 1e-16 to 1e16 in one tile."""
    p = data.draw(taken(WINDOWS[algorithm.name] - 1))
    half = p.dtype in ("float16", "bfloat16")  # which hold no large results
    scale = data.draw(st.sampled_from((0, 2) if half else (0, 4, 18)))
    rng = np.random.default_rng(seed)
    a, b, bias, residual = make_operands(p, seed)
    for v in (a, b):
        v *= np.exp2(rng.integers(-scale, scale + 1, v.shape)).astype(v.dtype)
    a.flat[rng.integers(a.size, size=spikes)] *= a.dtype.type(16 if half else 1000)
    check(algorithm, p, a, b, bias, residual)


@each_window
@pytest.mark.parametrize("value", [1e-42, 1e-38, 1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("of", [0, 1])
def test_values_at_the_ends_of_the_range(algorithm, value, of):
    """Alone, and beside ordinary ones."""
    p = ConvProblem.forward(2, (1, 16, 9, 9), (5, 16, 3, 3), padding=1)
    operands = list(make_operands(p)[:2])
    mixed = list(make_operands(p, 2)[:2])
    mixed[of][..., ::2, :] *= np.float32(value)
    operands[of] = operands[of] * np.float32(value)
    check(algorithm, p, *operands)
    check(algorithm, p, *mixed)


@each_window
def test_huge_beside_tiny(algorithm):
    """An output whose own window holds 1e-20 beside one that holds 1e20 is as good as its neighbour."""
    p = ConvProblem.forward(2, (1, 4, 12, 12), (4, 4, 3, 3), padding=1)
    x, w = make_operands(p)[:2]
    spike = x[:, :, 5, 5] * np.float32(1e20)
    x *= np.float32(1e-20)
    x[:, :, 5, 5] = spike
    check(algorithm, p, x, w)


def test_a_spike_leaves_errors_within_the_spread_alone():
    """And some there that no tolerance against their own windows could allow."""
    algorithm = BY_NAME["winograd6"]
    p = ConvProblem.forward(2, (1, 8, 40, 40), (8, 8, 3, 3), padding=1)
    x, w = make_operands(p)[:2]
    spoilt = x.copy()
    spoilt[0, :, 20, 20] = 1e9
    y = run(algorithm, p, spoilt, w)
    distance = abs(np.nonzero((run(algorithm, p, x, w) != y).any(axis=(0, 1)))[0] - 20).max()
    assert 1 < distance <= algorithm.spread(p)[1]
    assert error(p, y, spoilt, w) > algorithm.tolerance(p)
    assert_kept(algorithm, p, y, spoilt, w)


@each_transform
def test_products_of_a_component_are_within_reach(window, taps):
    """Those of an output are at its own place; in the window, none is further than its other end."""
    assert (reach(window, taps) == 0) == (window == 1)
    assert reach(window, taps) < window


@each_window
def test_zero_regions_are_zero(algorithm):
    p = ConvProblem.forward(2, (1, 8, 24, 24), (4, 8, 3, 3), padding=1)
    x, w = make_operands(p)[:2]
    x[..., 8:, :] = 0
    w[2] = 0
    y = run(algorithm, p, x, w)
    assert (y[:, :, 13:] == 0).all()
    assert (y[:, 2] == 0).all()
    check(algorithm, p, x, w)


@each_window
@pytest.mark.parametrize("extent", range(1, 10))
def test_every_remainder_of_tiles(algorithm, extent):
    p = ConvProblem.forward(2, (2, 20, extent, 11 - extent), (5, 20, 3, 3), padding=1)
    check(algorithm, p, *make_operands(p)[:2])


@pytest.mark.parametrize("kernel", [(2, 2), (2, 5), (4, 4), (5, 5), (1, 4), (5, 1), (3, 2)])
def test_kernels_of_other_sizes(kernel):
    p = ConvProblem.forward(2, (2, 20, 13, 17), (21, 20, *kernel), padding=1)
    check(BY_NAME["winograd6"], p, *make_operands(p)[:2])


@each_window
@pytest.mark.parametrize("op", OPS)
def test_gradients_that_lower_to_few_taps(algorithm, op):
    x, kernel = ((4, 6, 9, 9), (7, 7)) if op == "weight_grad" else ((2, 6, 9, 10), (3, 3))
    p = dataclasses.replace(ConvProblem.forward(2, x, (8, 6, *kernel), padding=0), op=op)
    check(algorithm, p, *make_operands(p)[:2])


@each_window
def test_a_transposed_convolution_of_stride_two(algorithm):
    p = ConvProblem.transposed(2, (1, 20, 9, 8), (20, 7, 4, 4), stride=2, padding=1)
    check(algorithm, p, *make_operands(p)[:2])


@each_window
def test_depth_is_summed_at_any_stride(algorithm):
    p = ConvProblem.forward(
        3, (1, 5, 9, 8, 7), (6, 5, 4, 3, 3), padding=(2, 1, 1), stride=(3, 1, 1), dilation=(2, 1, 2)
    )
    check(algorithm, p, *make_operands(p)[:2])


@each_window
def test_a_small_workspace(algorithm):
    p = ConvProblem.forward(2, (1, 300, 21, 40), (70, 300, 3, 3), padding=1)
    a, b = make_operands(p)[:2]
    assert algorithm.workspace_bytes(p, 1 << 20) <= 1 << 20
    result = run(algorithm, p, a, b, workspace_limit=1 << 20)
    np.testing.assert_array_equal(result, run(algorithm, p, a, b))
    check(algorithm, p, a, b, workspace_limit=1 << 20)


# -- NaN, infinity, overflow ------------------------------------------------------------------------------------------


@each_window
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op", ["forward", "input_grad"])
def test_non_finite_inputs_stay_in_their_windows(algorithm, value, dilation, dtype, op):
    p = ConvProblem.forward(2, (2, 16, 13, 14), (9, 16, 3, 3), padding=dilation, dilation=dilation, dtype=dtype)
    p = dataclasses.replace(p, op=op)
    x, w = make_operands(p)[:2]
    for at in [(0, 3, 0, 0), (0, 5, 6, 7), (1, 8, 12, 13)]:
        x[at] = value
    with np.errstate(invalid="ignore"):
        expected = reference(p, x, w)
    assert np.isfinite(expected).sum() > expected.size / 2
    np.testing.assert_array_equal(np.isfinite(run(algorithm, p, x, w)), np.isfinite(expected))
    check(algorithm, p, x, w)


@each_window
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_computed_again_still_have_the_residual_that_the_output_replaces(algorithm, dilation, dtype):
    """Of several blocks of columns and of channels, the last of which are not full."""
    p = ConvProblem.forward(
        2, (2, 6, 11, 300), (70, 3, 3, 3), padding=dilation, dilation=dilation, groups=2, dtype=dtype, bias=True,
        residual=True, activation="relu6",
    )  # fmt: skip
    x, w, bias, residual = make_operands(p)
    for at in [(0, 1, 0, 7), (1, 5, 10, 299), (1, 0, 5, 150)]:
        x[at] = np.nan
    out = residual.copy()
    algorithm.apply(p, x, w, out, bias, out)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(np.isfinite(out), np.isfinite(reference(p, x, w, bias, residual)))
    assert_kept(algorithm, p, out, x, w, bias, residual)


@each_window
def test_non_finite_inputs_of_three_dimensions(algorithm):
    p = ConvProblem.forward(3, (2, 5, 6, 7, 9), (4, 5, 3, 3, 3), padding=1, stride=(2, 1, 1))
    x, w = make_operands(p)[:2]
    x[0, 2, 3, 3, 4] = np.inf
    check(algorithm, p, x, w)


@each_window
def test_non_finite_weights_stay_in_their_channel(algorithm):
    p = ConvProblem.forward(2, (1, 16, 8, 8), (9, 16, 3, 3))
    x, w = make_operands(p)[:2]
    w[4, 2, 1, 1] = np.nan
    y = run(algorithm, p, x, w)
    assert np.isfinite(np.delete(y, 4, axis=1)).all()
    check(algorithm, p, x, w)


@each_window
def test_overflow_in_a_transform_alone_is_mended(algorithm):
    """Inputs near the largest number, whose sums in the transform overflow where those of the definition do not."""
    p = ConvProblem.forward(2, (1, 2, 8, 8), (3, 2, 3, 3), padding=1)
    x, w = make_operands(p)[:2]
    x[:] = np.sign(x) * np.float32(3e38)
    w[:] = 0
    w[:, 0, 1, 1] = 1
    np.testing.assert_array_equal(run(algorithm, p, x, w), np.repeat(x[:, :1], 3, axis=1))


# -- what is promised -------------------------------------------------------------------------------------------------


@each_window
@pytest.mark.parametrize("channels", [16, 512])
def test_normal_data_is_far_better_than_promised(algorithm, channels):
    p = ConvProblem.forward(2, (1, channels, 28, 28), (16, channels, 3, 3), padding=1)
    a, b = make_operands(p)[:2]
    y = run(algorithm, p, a, b)
    assert error(p, y, a, b) < 50 * UNIT_ROUNDOFF["float32"]
    assert error(p, y, a, b, spread=algorithm.spread(p)) < algorithm.tolerance(p) / 100


def test_reasons():
    for dtype, options, words in [
        ("int8", {}, "int8"),
        ("complex64", {}, "complex64"),
        ("float32", {"precision": "highest"}, "highest"),
        ("float32", {"stride": 2}, "stride 1"),
    ]:
        p = ConvProblem.forward(2, (1, 4, 9, 9), (4, 4, 3, 3), dtype=dtype, **options)
        assert words in BY_NAME["winograd6"].why_not(p)
    wide = ConvProblem.forward(2, (1, 4, 9, 9), (4, 4, 6, 3))
    assert "2 to 5 taps" in BY_NAME["winograd6"].why_not(wide)


@each_window
@pytest.mark.parametrize("channels", [3, 21])  # they leave a vector of the last group unused
def test_what_scratch_memory_held_before_changes_no_bit(algorithm, channels, monkeypatch):
    p = ConvProblem.forward(2, (1, 5, 13, 14), (channels, 5, 3, 3), padding=1)
    operands, results = make_operands(p), []
    for byte in (0, 0xFF):  # zeros, NaN

        def scratch(length, dtype, byte=byte):
            return np.full(length * dtype.itemsize, byte, np.uint8).view(dtype)

        monkeypatch.setattr(parallel, "scratch", scratch)
        results.append(run(algorithm, p, *operands).tobytes())
    assert results[0] == results[1]
