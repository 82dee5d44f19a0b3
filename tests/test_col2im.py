"""What is particular to col2im: results cut into blocks whose products reach past them, and taps that meet nothing."""

from dataclasses import replace

import numpy as np
import pytest
from strategies import make_operands

from fastconv.accuracy import error
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms

COL2IM = next(a for a in algorithms("cpu") if a.name == "col2im")

GRADIENTS = {
    "blocks of columns": (1, (2, 2, 1900), (3, 2, 10), {"stride": 3, "padding": 4}),
    "blocks of dilated columns": (1, (1, 1, 3000), (2, 1, 2), {"dilation": 400}),
    "blocks of rows": (2, (1, 3, 70, 61), (5, 3, 7, 7), {"stride": 2, "padding": 3}),
    "blocks of channels": (2, (1, 5, 64, 64), (3, 5, 16, 16), {"stride": 16}),
    "more inputs than are multiplied at once": (2, (1, 2, 9, 9), (600, 2, 3, 3), {"padding": 1}),
    "a stride longer than the kernel": (2, (1, 2, 20, 23), (4, 2, 2, 1), {"stride": 5, "padding": (0, 3)}),
    "dilation that shares a factor with the stride": (2, (2, 2, 25, 31), (3, 2, 3, 4), {"stride": 4, "dilation": 6}),
    "planes": (3, (1, 2, 7, 9, 11), (3, 2, 3, 2, 3), {"stride": (2, 1, 3), "padding": 1}),
    "more padding than kernel": (1, (1, 1, 5), (2, 1, 2), {"padding": 9}),
}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_blocks_of_an_input_gradient(name, dtype):
    ndim, x, w, options = GRADIENTS[name]
    p = replace(ConvProblem.forward(ndim, x, w, dtype=dtype, **options), op="input_grad", bias=True, residual=True)
    _check(p)


@pytest.mark.parametrize("padding", [0, 2, "same"])
def test_a_correlation_is_scattered_with_its_kernel_flipped(padding):
    _check(ConvProblem.forward(2, (1, 70, 40, 300), (2, 70, 3, 5), padding=padding, dilation=(1, 2), activation="relu"))


def test_an_input_of_any_strides():
    """In place where pixels lie in order, staged where they are reversed, gathered where they are apart."""
    p = replace(ConvProblem.forward(2, (1, 3, 28, 30), (8, 3, 4, 4), stride=2, padding=1), op="input_grad")
    a, b, _, _ = make_operands(p)
    expected = np.empty(p.result_shape, np.float32)
    COL2IM.apply(p, a, b, expected)
    for view in (a[..., ::-1].copy()[..., ::-1], a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)):
        out = np.empty(p.result_shape, np.float32)
        COL2IM.apply(p, view, b, out)
        np.testing.assert_array_equal(out, expected)


def test_no_channels_give_the_bias():
    p = ConvProblem.forward(1, (1, 0, 9), (2, 0, 3), bias=True)
    out = np.empty(p.result_shape, np.float32)
    COL2IM.apply(p, np.empty(p.x_shape, np.float32), np.empty(p.w_shape, np.float32), out, np.float32([1, 2]))
    np.testing.assert_array_equal(out, [[[1] * 7, [2] * 7]])


def _check(p):
    a, b, bias, residual = make_operands(p)
    out = np.full(p.result_shape, np.nan, p.result_dtype)
    COL2IM.apply(p, a, b, out, bias, residual)
    assert error(p, out, a, b, bias, residual) <= COL2IM.tolerance(p)
