"""Pooling and unfold on the cases that torch itself tests them with; it has none for fold."""

import numpy as np
import pytest

import fastconv

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="torch's own test cases need expecttest")

POOLINGS = [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)]


def alone(value):
    """What torch alone takes a short sequence for: one of one for the number, an empty one for None."""
    if isinstance(value, (list, tuple)) and len(value) < 2:
        return value[0] if value else None
    return value


@pytest.mark.parametrize("name", [*POOLINGS, "unfold"])
def test_torchs_own_cases(name):
    from torch.testing._internal.common_methods_invocations import op_db

    op = next(op for op in op_db if op.name == f"nn.functional.{name}")
    ours, compared = getattr(fastconv, name), 0
    for sample in op.sample_inputs("cpu", torch.float64):
        expected = op(sample.input, *sample.args, **sample.kwargs)
        args, options = map(alone, sample.args), {key: alone(value) for key, value in sample.kwargs.items()}
        results = ours(sample.input, *args, **options)
        if not isinstance(expected, tuple):
            expected, results = (expected,), (results,)
        for right, result in zip(expected, results, strict=True):
            assert result.dtype == right.dtype
            np.testing.assert_allclose(result.numpy(), right.numpy(), rtol=1e-13, atol=1e-13)
            compared += 1
    assert compared
