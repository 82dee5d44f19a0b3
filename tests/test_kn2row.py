"""What is special about kn2row: products with padding are left out, whatever part of a tap's pixels is left."""

import numpy as np
import pytest
from promise import assert_kept
from strategies import make_operands, numpy_dtype

import fastconv
from fastconv import machine
from fastconv.dispatch import choose
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms

KN2ROW, IMPLICIT_GEMM = (next(a for a in algorithms("cpu") if a.name == name) for name in ("kn2row", "implicit_gemm"))
FORWARD = ConvProblem.forward
PROBLEMS = [
    FORWARD(2, (1, 24, 9, 9), (16, 24, 3, 3), padding=12, dilation=12, bias=True),  # one tap of nine is of use
    FORWARD(2, (2, 9, 5, 24), (40, 12, 3, 3), groups=2, padding=1, activation="relu", data_format="NHWC"),
    FORWARD(2, (1, 16, 4, 4), (17, 16, 2, 2), padding=9, bias=True),  # most outputs are their bias
    FORWARD(2, (1, 4, 300, 20), (40, 20, 3, 3), padding=(0, 1), data_format="NHWC"),  # columns are cut
    FORWARD(3, (1, 1100, 2, 3, 3), (24, 1100, 3, 3, 3), padding=1, residual=True),  # blocks of inputs
    FORWARD(3, (1, 2, 5, 5, 40), (600, 40, 3, 3, 3), padding=1, stride=2, data_format="NDHWC", activation="gelu"),
    FORWARD(1, (3, 70, 33), (50, 70, 5), padding=[(4, 0)], dtype="float64"),
    FORWARD(2, (1, 40, 14, 14), (24, 40, 5, 5), padding=2, dtype="float16"),
    FORWARD(2, (1, 9, 9, 40), (24, 40, 3, 3), padding=1, dtype="bfloat16", data_format="NHWC"),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_edges(problem):
    operands = make_operands(problem)
    out = np.full(problem.result_shape, 7, numpy_dtype(problem.result_dtype))
    KN2ROW.apply(problem, *operands[:2], out, *operands[2:])
    assert_kept(KN2ROW, problem, out, *operands)


def test_pixels_whose_tap_lies_in_padding_are_not_multiplied():
    """What meets an infinite weight becomes infinite; zero padding, if it were multiplied by it, NaN."""
    w = np.ones((8, 4, 3, 3), np.float32)
    w[:, 0, 0, 2] = np.inf
    y = fastconv.conv2d(np.ones((1, 4, 5, 6), np.float32), w, padding=1, algorithm="kn2row")
    met = np.zeros((5, 6), bool)
    met[1:, :-1] = True
    np.testing.assert_array_equal(np.isposinf(y), np.broadcast_to(met, y.shape))
    np.testing.assert_array_equal(np.isfinite(y), np.broadcast_to(~met, y.shape))


@pytest.mark.parametrize("stride", [1, 2])
def test_predictions_count_the_products_that_are_left(stride):
    options = {"padding": 2, "dilation": 2, "stride": stride, "data_format": "NHWC"}
    problem = FORWARD(2, (2, 7, 9, 8), (64, 8, 3, 3), **options)
    ones = fastconv.conv2d(np.ones((2, 7, 9, 8)), np.ones((64, 8, 3, 3)), **options)
    here = machine.Machine(cores=1, flops=machine.cpu().flops)
    counts, whole = (model.counts(problem, here) for model in (KN2ROW.running, IMPLICIT_GEMM.running))
    assert counts["product"] / whole["product"] == pytest.approx(ones.sum() / problem.macs)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (FORWARD(2, (1, 8, 8, 8), (8, 8, 3, 3)), "no tap meets padding, implicit_gemm does the same"),
        (
            FORWARD(2, (1, 8, 8, 8), (8, 8, 3, 3), padding=1, padding_mode="reflect"),
            "padding of mode 'reflect' is to be multiplied",
        ),
        (
            FORWARD(2, (1, 8, 8, 8), (8, 8, 3, 3), padding=1, dtype="int8"),
            "its register tile multiplies real floating-point numbers, not int8",
        ),
    ],
)
def test_declines(problem, reason):
    assert KN2ROW.why_not(problem) == reason


@pytest.mark.parametrize("problem", [
    FORWARD(2, (1, 512, 7, 7), (512, 512, 3, 3), padding=1),
    FORWARD(2, (1, 33, 33, 512), (256, 512, 3, 3), padding=18, dilation=18, data_format="NHWC"),
    FORWARD(3, (1, 512, 2, 7, 7), (512, 512, 3, 3, 3), padding=1),
], ids=["ResNet", "DeepLab", "C3D"])  # fmt: skip
def test_layers_that_are_left_to_it(problem):
    assert choose(problem, prepared=True).name == "kn2row"
