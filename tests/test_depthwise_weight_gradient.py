"""What is particular to depthwise weight gradients: memory that is not there, what lies beyond a row, runs of taps."""

import dataclasses
import sys

import numpy as np
import pytest
from promise import assert_kept
from strategies import filled, make_operands
from test_depthwise import GUARDED, Guarded

import fastconv
from fastconv.problem import ConvProblem
from fastconv.reference import reference
from fastconv.registry import algorithms

GRADIENT = next(a for a in algorithms("cpu") if a.name == "depthwise_weight_gradient")


def weight_gradient(x, w, channels_last=False, **arguments):
    """The problem of a layer's weight gradient; shapes are those of channels first."""
    layer = ConvProblem.forward(len(x) - 2, x, w, **arguments)
    return dataclasses.replace(layer, op="weight_grad", channels_last=channels_last)


def check(p, a, b, out, residual=None):
    GRADIENT.apply(p, a, b, out, None, residual)
    assert_kept(GRADIENT, p, out, a, b, None, residual)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("at_end", [False, True])
def test_nothing_is_touched_beyond_an_array(name, channels_last, at_end):
    x, w, arguments = GUARDED[name]
    p = weight_gradient(x, w, channels_last, **arguments)
    guarded = Guarded()
    a, b, _, _ = make_operands(p)
    out = guarded.place(filled(None, p.result_shape, p.result_dtype), at_end)
    check(p, guarded.place(a, at_end), guarded.place(b, at_end), out)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("length", range(1, 36))
def test_every_length_of_a_row_and_number_of_channels(length, channels_last):
    """With 4 to 16 lanes, these are all the tails there are."""
    channels, width = (length, 6) if channels_last else (6, length)
    p = weight_gradient((2, channels, 9, width), (channels, 1, 3, 3), channels_last, padding=1, groups=channels)
    a, b, _, _ = make_operands(p)
    check(p, a, b, np.empty(p.result_shape, np.float32))


@pytest.mark.parametrize("inner", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 7])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_groups_of_channels_that_vectors_hold(inner, groups, dtype):
    channels = inner * groups
    layer = {"padding": 1, "stride": (2, 1), "groups": groups, "dtype": dtype}
    p = weight_gradient((2, channels, 9, 11), (channels, inner, 3, 2), True, **layer)
    a, b, _, _ = make_operands(p)
    check(p, a, b, np.empty(p.result_shape, p.result_dtype))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (4, 2), (2, 4), (3, 2), (2, 3)]
)
@pytest.mark.parametrize("kernel", range(1, 9))
def test_every_way_in_which_taps_form_runs(kernel, stride, dilation, channels_last):
    for rows in (1, 2, 5, 13):
        size = (rows - 1) * stride + (kernel - 1) * dilation + 1
        for kernels, sizes in (((kernel, 2), (size, 9 * dilation)), ((2, kernel), (4 * dilation, size))):
            p = weight_gradient(
                (1, 3, *sizes), (3, 1, *kernels), channels_last, groups=3, stride=stride, dilation=dilation
            )
            a, b, _, _ = make_operands(p)
            check(p, a, b, np.empty(p.result_shape, np.float32))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("width", [7, 8, 13])
def test_what_no_product_has_does_not_matter(width, channels_last):
    """Vectors reach beyond rows: NaN that lies there, in either operand, must not get into a sum."""
    p = weight_gradient((1, 5, 6, width), (5, 1, 3, 3), channels_last, groups=5)
    a, b, _, _ = make_operands(p)
    planes = np.moveaxis(a, -1, 1) if channels_last else a
    planes[:, 2] = np.nan
    planes[:, 4, -1, -1] = np.inf
    out = np.empty(p.result_shape, np.float32)
    check(p, a, b, out)
    bad = ~np.isfinite(out.reshape(5, 9))
    assert bad.sum() == 10
    assert bad[2].all()
    assert bad[4, 8]


@pytest.mark.parametrize("channels_last", [False, True])
def test_parts_do_not_depend_on_threads(channels_last):
    p = weight_gradient((3, 2, 65, 70), (6, 1, 5, 3), channels_last, groups=2, padding=1)
    a, b, _, _ = make_operands(p)
    results = []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            results.append(np.empty(p.result_shape, np.float32))
            GRADIENT.apply(p, a, b, results[-1])
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    assert_kept(GRADIENT, p, results[0], a, b)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8", "int64"])
def test_other_numbers(dtype, channels_last):
    p = weight_gradient((2, 12, 9, 13), (12, 2, 3, 3), channels_last, dtype=dtype, padding=1, groups=6)
    p = dataclasses.replace(p, residual=True)
    a, b, _, residual = make_operands(p)
    check(p, a, b, residual.copy(), residual)


def test_a_weight_of_any_order():
    """The gradient goes to any strides: in place if it can, and else at the end."""
    p = weight_gradient((2, 6, 11, 13), (6, 3, 3, 3), groups=2, padding=1)
    a, b, _, _ = make_operands(p)
    straight = np.empty(p.result_shape, np.float32)
    check(p, a, b, straight)
    for order, axes in (("O*I", (0, 2, 3, 1)), ("*IO", (2, 3, 1, 0))):
        q = dataclasses.replace(p, weight_order=order)
        out = np.empty(q.result_shape, np.float32)
        check(q, a, b, out)
        np.testing.assert_array_equal(out, straight.transpose(axes))


def test_no_positions_give_zeros():
    p = weight_gradient((0, 4, 9, 9), (4, 1, 3, 3), groups=4)
    a, b, _, _ = make_operands(p)
    out = np.full(p.result_shape, np.nan, np.float32)
    GRADIENT.apply(p, a, b, out)
    np.testing.assert_array_equal(out, reference(p, a, b))


def test_what_is_declined():
    p = weight_gradient((1, 128, 9, 9), (8, 128, 3, 3))
    assert "128 input channels" in GRADIENT.why_not(p)
    p = weight_gradient((1, 64, 9, 2000), (8, 64, 3, 3))
    assert "KiB of input in cache" in GRADIENT.why_not(p)
    p = weight_gradient((1, 1, 110, 110), (1, 1, 101, 101))
    assert "KiB of sums in cache" in GRADIENT.why_not(p)
    p = weight_gradient((1, 8, 56, 56), (8, 1, 3, 3), padding=1, groups=8, dtype="complex64")
    assert "complex64" in GRADIENT.why_not(p)
    assert "weights alone" in GRADIENT.why_not(dataclasses.replace(p, op="forward"))
