"""What is special about im2col: images that are patches themselves."""

import numpy as np
import pytest
from promise import assert_kept
from strategies import make_operands, numpy_dtype

from fastconv.problem import ConvProblem
from fastconv.registry import algorithms

IM2COL = next(a for a in algorithms("cpu") if a.name == "im2col")


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch", [0, 1, 3, 70])
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_outputs_that_see_all_of_their_image(dtype, batch, groups, channels_last, activation):
    if dtype == "complex64" and activation:
        pytest.skip("activations are of real numbers")
    x = (batch, 3, 5, 4 * groups) if channels_last else (batch, 4 * groups, 3, 5)
    p = ConvProblem.forward(
        2, x, (130 * groups, 4, 3, 5), groups=groups, dtype=dtype, bias=True, residual=True, activation=activation,
        data_format="NHWC" if channels_last else "NCHW",
    )  # fmt: skip
    operands = make_operands(p)
    for limit in (64 << 20, 1):
        out = np.full(p.result_shape, 7, numpy_dtype(p.result_dtype))
        IM2COL.apply(p, *operands[:2], out, *operands[2:], workspace_limit=limit)
        assert_kept(IM2COL, p, out, *operands)
