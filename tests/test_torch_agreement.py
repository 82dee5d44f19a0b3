"""Thousands of random calls, over all the arguments that torch can express, against torch in double precision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promise import assert_kept
from strategies import laid_out, operands, problems, public_call

import fastconv
from fastconv.dispatch import choose
from fastconv.registry import UNIT_ROUNDOFF


def exact_in_double(array):
    """Integers so small that no sum of their products leaves 53 bits, or the 32 of an int32 result."""
    return array if array is None or array.dtype.kind not in "iu" else np.clip(array, -100, 100)


def assert_agrees(in_torch, problem, arrays, result):
    """Hold every element to the promise of the algorithm that was chosen."""
    exact = in_torch.compute(problem, *map(in_torch.tensor, arrays)).numpy()
    assert result.shape == exact.shape
    if problem.result_dtype not in UNIT_ROUNDOFF:
        np.testing.assert_array_equal(result, exact)
        return
    assert_kept(choose(problem, "cpu"), problem, result, *arrays, exact=exact)


@pytest.mark.parametrize(
    ("ndim", "op", "examples"),
    [
        (2, "forward", 2000),
        (2, "input_grad", 200),
        (1, "forward", 150),
        (1, "input_grad", 100),
        (3, "forward", 150),
        (3, "input_grad", 100),
    ],
)
def test_agrees_with_torch(in_torch, ndim, op, examples):
    @settings(max_examples=examples)
    @given(data=st.data())
    def check(data):
        p = data.draw(problems(ops=(op,), ndims=(ndim,)))
        arrays = [exact_in_double(v) for v in data.draw(operands(p))]
        layout = data.draw(st.sampled_from(["contiguous", "reversed", "sliced", "fortran"]))
        a, b, bias, residual = (v if v is None else laid_out(v, layout) for v in arrays)
        name, arguments = public_call(p)
        result = getattr(fastconv, name)(a, b, bias, residual=residual, device="cpu", **arguments)
        assert_agrees(in_torch, p, arrays, result)

    check()
