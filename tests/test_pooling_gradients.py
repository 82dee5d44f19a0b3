"""Gradients of pooling, against the reference and against torch."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_pooling import calls

import fastconv
from fastconv import pooling_reference
from fastconv.pooling_problem import PoolProblem
from fastconv.registry import UNIT_ROUNDOFF


@pytest.mark.parametrize("kind", ["max", "avg", "lp"])
def test_agrees_with_the_reference(kind):
    @settings(max_examples=60)
    @given(call=calls(kind), seed=st.integers(0, 2**16))
    def check(call, seed):
        name, x, arguments, problem = call
        assume("int" not in problem.dtype and x.size <= 20000)
        x = (np.abs(x) + np.asarray(0.5, x.dtype)).astype(x.dtype)
        gradient = np.random.default_rng(seed).standard_normal(problem.y_shape).astype(x.dtype)
        exact = pooling_reference.gradient(problem, x, gradient)
        layout = arguments["data_format"]
        if kind == "max":
            _, indices = getattr(fastconv, name)(x, return_indices=True, **arguments)
            name = name.removeprefix("adaptive_")
            result = getattr(fastconv.grad, f"{name}_input")(x.shape, indices, gradient, data_format=layout)
        elif kind == "lp":
            result = getattr(fastconv.grad, f"{name}_input")(x, gradient, **arguments)
        elif name.startswith("adaptive"):
            result = getattr(fastconv.grad, f"{name}_input")(x.shape, gradient, data_format=layout)
        else:
            result = getattr(fastconv.grad, f"{name}_input")(x.shape, gradient, **arguments)
        assert (result.shape, result.dtype) == (x.shape, x.dtype)
        # At most as many terms as there are results meet in one element; powers and roots add some roundings.
        size = pooling_reference.gradient(problem, x, np.abs(gradient.astype(np.float64)))
        unit = UNIT_ROUNDOFF[problem.accumulator_dtype] * (gradient.size + 40 + 4 * problem.scale)
        unit += UNIT_ROUNDOFF[problem.dtype] if problem.dtype != problem.accumulator_dtype else 0
        assert (
            np.abs(result.astype(np.float64) - exact) <= unit * np.abs(size) + 1e-7 * (problem.dtype == "float16")
        ).all()

    check()


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_agrees_with_torch(ndim):
    torch = pytest.importorskip("torch")
    functional, rng = torch.nn.functional, np.random.default_rng(ndim)
    x = np.abs(rng.standard_normal((2, 3, *(9, 10, 8)[:ndim]))) + 0.1
    tensor = torch.from_numpy(x).requires_grad_()

    def of_torch(y, gradient):
        return torch.autograd.grad(y, tensor, torch.from_numpy(gradient))[0].numpy()

    y, indices = getattr(functional, f"max_pool{ndim}d")(tensor, 3, 2, 1, return_indices=True)
    gradient = rng.standard_normal(y.shape)
    result = getattr(fastconv.grad, f"max_pool{ndim}d_input")(x.shape, indices.numpy(), gradient)
    np.testing.assert_allclose(result, of_torch(y, gradient), rtol=0, atol=1e-12)
    y = getattr(functional, f"avg_pool{ndim}d")(tensor, 3, 2, 1, True, False)
    gradient = rng.standard_normal(y.shape)
    result = getattr(fastconv.grad, f"avg_pool{ndim}d_input")(x.shape, gradient, 3, 2, 1, True, False)
    np.testing.assert_allclose(result, of_torch(y, gradient), rtol=0, atol=1e-12)
    y = getattr(functional, f"lp_pool{ndim}d")(tensor, 3.0, 2, 2, True)
    gradient = rng.standard_normal(y.shape)
    result = getattr(fastconv.grad, f"lp_pool{ndim}d_input")(x, gradient, 3.0, 2, 2, True)
    np.testing.assert_allclose(result, of_torch(y, gradient), rtol=0, atol=1e-12)
    y = getattr(functional, f"adaptive_avg_pool{ndim}d")(tensor, 4)
    gradient = rng.standard_normal(y.shape)
    result = getattr(fastconv.grad, f"adaptive_avg_pool{ndim}d_input")(x.shape, gradient)
    np.testing.assert_allclose(result, of_torch(y, gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_the_same_bits_on_any_number_of_threads(data_format):
    x = np.random.default_rng(1).standard_normal((3, 300, 30, 28)).astype(np.float32)
    x = x if data_format == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    y, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True, data_format=data_format)
    results = set()
    for threads in (1, 2, 3):
        with fastconv.threads(threads):
            of_maxima = fastconv.grad.max_pool2d_input(x.shape, indices, y, data_format=data_format)
            of_means = fastconv.grad.avg_pool2d_input(x.shape, y, 3, 2, 1, data_format=data_format)
        results.add((of_maxima.tobytes(), of_means.tobytes()))
    assert len(results) == 1


@pytest.mark.parametrize("last", [False, True])
def test_uneven_windows_and_elements_in_none(last):
    """Means whose counts differ, and elements that no window holds."""
    x = np.random.default_rng(2).standard_normal((2, 20, 13, 11))
    x = np.moveaxis(x, 1, -1) if last else x
    layout = {"data_format": "NHWC" if last else "NCHW"}
    for build, arguments in (
        (PoolProblem.adaptive, {"output_size": (6, 4)}),
        (PoolProblem.sliding, {"kernel_size": 2, "stride": 4}),
        (PoolProblem.sliding, {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}),
    ):
        problem = build("sum", 2, x.shape, dtype="float64", **arguments, **layout)
        y = np.random.default_rng(3).standard_normal(problem.y_shape)
        name = "adaptive_avg_pool2d_input" if "output_size" in arguments else "avg_pool2d_input"
        fixed = {} if "output_size" in arguments else arguments | {"count_include_pad": False}
        result = getattr(fastconv.grad, name)(x.shape, y, **fixed, **layout)
        np.testing.assert_allclose(result, pooling_reference.gradient(problem, x, y), rtol=0, atol=1e-13)


ONES = np.ones((1, 3, 4, 4))
WRONG = {
    "shapes differ": (
        ("max_pool2d_input", (1, 3, 8, 8), np.zeros((1, 3, 4, 5), int), ONES),
        ValueError,
        "expected equal",
    ),
    "other channels": (("max_pool2d_input", (1, 2, 8, 8), np.zeros(ONES.shape, int), ONES), ValueError, "input_size"),
    "not indices": (("max_pool2d_input", (1, 3, 8, 8), ONES, ONES), TypeError, "indices have dtype float64"),
    "far indices": (("max_pool2d_input", (1, 3, 8, 8), np.full(ONES.shape, 64), ONES), ValueError, "expected 0 to 63"),
    "complex": (("max_pool2d_input", (1, 3, 8, 8), np.zeros(ONES.shape, int), ONES * 1j), TypeError, "expected a real"),
    "other result": (("avg_pool2d_input", (1, 3, 8, 8), ONES, 3), ValueError, r"expected \(1, 3, 2, 2\)"),
    "dtypes": (("lp_pool2d_input", np.ones((1, 3, 8, 8), np.float32), ONES, 2, 2), TypeError, "x has dtype float32"),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_bad_arguments_are_named(call, error, message):
    name, *arguments = call
    with pytest.raises(error, match=message):
        getattr(fastconv.grad, name)(*arguments)
