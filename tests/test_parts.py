"""What is particular to parts: complex products put together from real ones, and the memory that copies take."""

from dataclasses import replace

import numpy as np
import pytest

from fastconv.problem import ConvProblem
from fastconv.reference import reference
from fastconv.registry import algorithms

PARTS = next(a for a in algorithms("cpu") if a.name == "parts")


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": 2, "stride": 2, "padding": 1},
        {"data_format": "NHWC", "weight_format": "HWIO", "flip_kernel": True, "dilation": 2},
        {"padding": 2, "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_gaussian_integers_are_multiplied_exactly(op, options, dtype):
    if op == "input_grad" and "padding_mode" in options:
        options = {"padding": 2}
    groups = options.get("groups", 1)
    x_shape, w_shape = (2, 4, 9, 8), (6, 4 // groups, 3, 2)
    if "data_format" in options:
        x_shape, w_shape = (2, 9, 8, 4), (3, 2, 4, 6)
    extra = {"bias": True, "residual": True} if op != "weight_grad" else {}
    p = replace(ConvProblem.forward(2, x_shape, w_shape, dtype=dtype, **options), op=op, **extra)
    rng = np.random.default_rng(1)

    def integers(shape):
        return (rng.integers(-4, 5, shape) + 1j * rng.integers(-4, 5, shape)).astype(dtype)

    a, b = map(integers, p.operand_shapes)
    bias, residual = (integers((p.result_channels,)), integers(p.result_shape)) if extra else (None, None)
    out = np.full(p.result_shape, np.nan, dtype)
    PARTS.apply(p, a, b, out, bias, residual)
    np.testing.assert_array_equal(out, reference(p, a, b, bias, residual))


def test_what_has_no_parts_or_too_large_ones_is_declined():
    assert "float32 has no imaginary part" in PARTS.why_not(ConvProblem.forward(1, (1, 1, 9), (1, 1, 2)))
    large = ConvProblem.forward(3, (1, 1, 200, 200, 200), (1, 1, 5, 5, 5), dtype="complex64")
    assert "copies take 118 MiB, more than 64 MiB" in PARTS.why_not(large)
    assert PARTS.why_not(replace(large, size=(100, 100, 100), out_size=(96, 96, 96))) is None
