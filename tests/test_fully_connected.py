"""What is special about fully_connected: rows of weights that are read side by side, to their last element."""

import numpy as np
import pytest
from promise import assert_kept
from strategies import make_operands, numpy_dtype

from fastconv.problem import ConvProblem
from fastconv.registry import algorithms

FULLY_CONNECTED = next(a for a in algorithms("cpu") if a.name == "fully_connected")


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch", [0, 1, 3, 70])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_in_any_layout(dtype, batch, groups, channels_last, activation):
    x = (batch, 3, 5, 4 * groups) if channels_last else (batch, 4 * groups, 3, 5)
    p = ConvProblem.forward(
        2, x, (130 * groups, 4, 3, 5), groups=groups, dtype=dtype, bias=True, residual=True, activation=activation,
        data_format="NHWC" if channels_last else "NCHW",
    )  # fmt: skip
    operands = make_operands(p)
    out = np.full(p.result_shape, 7, numpy_dtype(p.result_dtype))
    FULLY_CONNECTED.apply(p, *operands[:2], out, *operands[2:])
    assert_kept(FULLY_CONNECTED, p, out, *operands)


@pytest.mark.parametrize("batch", [1, 2, 65])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("outputs", [1, 8, 13, 600])
@pytest.mark.parametrize("taps", [1, 3, 7, 8, 31, 701])
def test_nothing_beyond_the_operands_is_read(taps, outputs, dtype, batch):
    p = ConvProblem.forward(1, (batch, taps, 1), (outputs, taps, 1), dtype=dtype)
    inside = []
    for operand in make_operands(p)[:2]:
        around = np.full(operand.size + 128, np.nan, dtype)
        inside.append(around[64 : 64 + operand.size].reshape(operand.shape))
        inside[-1][:] = operand
    out = np.full(p.result_shape, 7, dtype)
    FULLY_CONNECTED.apply(p, *inside, out)
    assert np.isfinite(out).all()
    assert_kept(FULLY_CONNECTED, p, out, *inside)


def test_inputs_and_results_with_gaps():
    p = ConvProblem.forward(2, (2, 24, 1, 1), (10, 24, 1, 1))
    x, w, *_ = make_operands(p)
    apart, out = np.full((2, 24, 3, 3), np.nan, np.float32), np.full((2, 20, 1, 1), 7, np.float32)
    apart[:, :, 1:2, 1:2] = x
    FULLY_CONNECTED.apply(p, apart[:, :, 1:2, 1:2], w, out[:, ::2])
    assert_kept(FULLY_CONNECTED, p, out[:, ::2], x, w)
    assert (out[:, 1::2] == 7).all()


@pytest.mark.parametrize(
    ("x", "w", "options", "reason"),
    [
        ((1, 4, 2, 2), (3, 4, 1, 1), {}, "part of their image"),
        ((1, 4, 2, 2), (3, 4, 3, 3), {"padding": [(1, 0), (1, 0)]}, "padding"),
        ((1, 4, 2, 2), (3, 4, 2, 2), {"dtype": "float16"}, "float16"),
    ],
)
def test_what_it_declines(x, w, options, reason):
    assert reason in FULLY_CONNECTED.why_not(ConvProblem.forward(2, x, w, **options))
