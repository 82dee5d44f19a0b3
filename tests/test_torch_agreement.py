"""Thousands of random calls, over all the arguments that torch can express, against torch in double precision."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import laid_out, operands, problems, public_call

import fastconv
from fastconv.dispatch import choose
from fastconv.problem import Activation
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
    linear = dataclasses.replace(problem, activation=Activation("none"))
    magnitudes = (None if v is None else in_torch.tensor(v).abs() for v in arrays)
    scale = in_torch.compute(linear, *magnitudes).numpy()
    if problem.activation.kind != "none":  # none is steeper than 1.13; its value is rounded too
        scale = 1.13 * scale + np.abs(exact)
    smallest = 2.0**-133 if problem.result_dtype == "bfloat16" else np.finfo(result.dtype).smallest_subnormal
    difference = np.abs(result.astype(exact.dtype) - exact) - float(smallest) / 2
    assert (difference <= choose(problem, "cpu").tolerance(problem) * scale).all()


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
