"""What is particular to space_to_depth: phases as channels, samples that are not finite, and the memory of the copy."""

import numpy as np
import pytest
from strategies import laid_out, make_operands, numpy_dtype

from fastconv.accuracy import error
from fastconv.problem import ConvProblem
from fastconv.reference import reference
from fastconv.registry import algorithms

SPACE_TO_DEPTH = next(a for a in algorithms("cpu") if a.name == "space_to_depth")

GEOMETRIES = [
    ((2, 6, 23, 19), (10, 3, 5, 5), {"stride": 2, "padding": 2, "groups": 2}),
    ((1, 3, 31, 37), (8, 3, 11, 7), {"stride": (4, 3), "padding": ((3, 5), (0, 4))}),
    ((1, 5, 16, 21), (4, 5, 2, 4), {"stride": (3, 2), "padding": 1}),  # as many phases as taps along height
    ((3, 4, 12, 20), (9, 4, 3, 4), {"stride": (1, 2), "dilation": (2, 1), "padding": (2, 3)}),
    ((1, 9, 17), (4, 9, 10), {"stride": 5, "padding": "causal"}),
    ((1, 2, 7, 18, 18), (3, 2, 3, 4, 4), {"stride": 2, "padding": 1}),  # the stride along depth stays
    ((1, 3, 14, 13), (5, 3, 4, 4), {"stride": 2, "padding": 3, "padding_mode": "reflect"}),
    ((1, 3, 14, 13), (5, 3, 6, 6), {"stride": 2, "padding": 4, "padding_mode": "circular"}),
]


def problem(x_shape, w_shape, channels_last, dtype, **options):
    """That problem, in one of the two formats, with bias and residual."""
    if channels_last:
        x_shape = (x_shape[0], *x_shape[2:], x_shape[1])
        options["data_format"] = {3: "NWC", 4: "NHWC", 5: "NDHWC"}[len(x_shape)]
    return ConvProblem.forward(len(w_shape) - 2, x_shape, w_shape, dtype=dtype, bias=True, residual=True, **options)


def computed(p, operands):
    out = np.full(p.result_shape, 9, numpy_dtype(p.result_dtype))
    SPACE_TO_DEPTH.apply(p, operands[0], operands[1], out, *operands[2:])
    return out


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "reversed"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), GEOMETRIES)
def test_agrees_with_the_reference(x_shape, w_shape, options, channels_last, layout):
    p = problem(x_shape, w_shape, channels_last, "float32", activation="relu", **options)
    a, b, bias, residual = make_operands(p)
    operands = laid_out(a, layout), laid_out(b, layout), bias, laid_out(residual, layout)
    assert error(p, computed(p, operands), *operands, spread=SPACE_TO_DEPTH.spread(p)) <= SPACE_TO_DEPTH.tolerance(p)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_added_taps_see_nothing(value, channels_last, dtype):
    """3 x 3 taps at stride 2 become 2 x 2 of 4 phases: 16, of which 7 are zeros, and zero times NaN is NaN."""
    p = problem((1, 2, 15, 15), (3, 2, 3, 3), channels_last, dtype, stride=2)
    operands = make_operands(p)
    operands[0][(0, 3, 3, 1) if channels_last else (0, 1, 3, 3)] = value
    out = computed(p, operands)
    assert not np.isfinite(out).all()
    assert error(p, out, *operands, spread=SPACE_TO_DEPTH.spread(p)) <= SPACE_TO_DEPTH.tolerance(p)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(reference(p, *operands)))


@pytest.mark.parametrize(
    "x_shape, outputs", [((0, 3, 9, 9), 4), ((1, 3, 0, 9), 4), ((1, 0, 9, 9), 4), ((1, 3, 9, 9), 0)]
)
def test_axes_without_elements(x_shape, outputs):
    p = ConvProblem.forward(2, x_shape, (outputs, x_shape[1], 3, 3), stride=2)
    operands = make_operands(p)
    np.testing.assert_array_equal(computed(p, operands), reference(p, *operands))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options", "reason"),
    [
        ((1, 3, 9, 9), (2, 3, 3, 3), {}, "shorter than the kernel"),
        ((1, 3, 9, 9), (2, 3, 2, 2), {"stride": 2}, "shorter than the kernel"),
        ((1, 3, 9, 9), (2, 3, 3, 3), {"stride": 2, "dilation": 2}, "dilation 1"),
        ((1, 3, 9, 9), (2, 3, 3, 3), {"stride": 2, "dtype": "int8"}, "not int8"),
        ((9, 3, 900, 900), (2, 3, 3, 3), {"stride": 2}, "copies take 83 MiB, more than 64 MiB"),
    ],
)
def test_what_it_declines(x_shape, w_shape, options, reason):
    assert reason in SPACE_TO_DEPTH.why_not(ConvProblem.forward(2, x_shape, w_shape, **options))
