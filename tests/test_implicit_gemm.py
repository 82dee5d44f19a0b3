"""What is special about implicit_gemm: a function may use weights as they lie where a layer has them arranged."""

import numpy as np
import pytest
from promise import assert_kept
from strategies import make_operands, numpy_dtype

from fastconv.cpu.implicit_gemm_cut import Cut
from fastconv.dispatch import choose, estimate
from fastconv.lowering import Views, lower
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms

PACKED, UNPACKED = (
    next(a for a in algorithms("cpu") if a.name == name) for name in ("implicit_gemm", "implicit_gemm_unpacked")
)
FORWARD = ConvProblem.forward
SMALL_PLANES = [
    FORWARD(2, (2, 40, 8, 8), (64, 40, 3, 3), padding=1, bias=True, activation="relu"),
    FORWARD(2, (1, 80, 8, 8), (128, 40, 3, 3), padding=1, groups=2, dtype="float64"),
    FORWARD(2, (1, 40, 8, 8), (64, 40, 3, 3), padding=1, flip_kernel=True),
    FORWARD(1, (1, 80, 64), (64, 80, 5), padding=2, dtype="float16", residual=True),
    FORWARD(2, (1, 80, 8, 8), (64, 80, 3, 3), padding=1, dtype="int8"),
]


@pytest.mark.parametrize("problem", SMALL_PLANES, ids=str)
def test_weights_as_they_lie(problem):
    operands = make_operands(problem)
    out = np.full(problem.result_shape, 7, numpy_dtype(problem.result_dtype))
    UNPACKED.apply(problem, *operands[:2], out, *operands[2:])
    assert_kept(UNPACKED, problem, out, *operands)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_where_it_would_change_nothing(data_format):
    x = (1, 56, 56, 40) if data_format == "NHWC" else (1, 40, 56, 56)
    assert UNPACKED.why_not(FORWARD(2, x, (40, 40, 1, 1), data_format=data_format)) == "implicit_gemm does the same"


@pytest.mark.parametrize(("channels", "in_place"), [(1024, False), (1000, True)])
def test_pixels_that_would_displace_each_other_from_a_cache_are_staged(channels, in_place):
    problem = FORWARD(2, (1, 16, 16, channels), (24, channels, 3, 3), data_format="NHWC")
    x, w, _, _ = operands = make_operands(problem)
    out = np.empty(problem.result_shape, numpy_dtype(problem.result_dtype))
    PACKED.apply(problem, x, w, out)
    assert_kept(PACKED, problem, out, *operands)
    (piece,) = lower(problem)
    strides = Views(problem).source(x).strides
    assert Cut(piece, problem, unpacked=False).tables(strides, (0,) * 6)[0] == in_place


def test_a_function_and_a_layer_choose_each_for_itself():
    problem = FORWARD(2, (1, 32, 8, 8), (32, 32, 3, 3), padding=1)
    function, layer = (
        min(("implicit_gemm", "implicit_gemm_unpacked"), key=lambda name: estimated(problem, name, prepared))
        for prepared in (False, True)
    )
    assert (function, layer) == ("implicit_gemm_unpacked", "implicit_gemm")


def estimated(problem, name, prepared):
    return estimate(choose(problem, algorithm=name), problem, prepared=prepared)
