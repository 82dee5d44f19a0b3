"""The CUDA kernels of pooling, run on the CPU as those of convolution are, against the reference."""

import dataclasses

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import filled, numpy_dtype
from test_cuda_emulated import poison, surrounded
from test_pooling import assert_right, calls

from fastconv import pooling_reference
from fastconv.gpu import pooling, runtime
from fastconv.pooling_execution import pool
from fastconv.pooling_problem import PoolProblem
from fastconv.registry import UNIT_ROUNDOFF

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")


@pytest.fixture(scope="module", autouse=True)
def emulated():
    """The kernels, put in the GPU's place while this module runs; each is built when a test first asks for it."""
    with runtime.use(EmulatedRuntime()) as emulated, np.errstate(all="ignore"):
        yield emulated


def apply(problem, x, flips=(), with_indices=False):
    """Pool with poison around the input, and check what lies around the result."""
    # One batch axis: merging two with room between them would copy.
    problem = dataclasses.replace(problem, batch_shape=(problem.batch,))
    source, _ = surrounded(x.reshape(problem.x_shape), poison(problem.dtype), flips)
    y, buffer = surrounded(np.full(problem.y_shape, 77, x.dtype), 78, flips)
    result, indices = pool(problem, source, y, with_indices, "gpu")
    assert result is y
    result = y.copy()
    y[...] = 78
    assert (buffer == 78).all(), "wrote outside of the result"
    return result, indices


GRADIENTS = {
    "overlapping": {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": True},
    "with gaps": {"kernel_size": 2, "stride": 3},
    "empty windows": {"kernel_size": 20, "stride": 4, "dilation": 2},
    "long windows": {"kernel_size": 9, "stride": 1, "padding": 4},
}


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("arguments", GRADIENTS.values(), ids=GRADIENTS.keys())
def test_gradients_are_poolings_too(arguments, data_format):
    """Of averages divided alike, so that the pooling is the whole gradient."""
    shape = (2, 4, 45, 44) if data_format == "NCHW" else (2, 45, 44, 4)
    problem = PoolProblem.sliding("sum", 2, shape, divisor_override=7, data_format=data_format, **arguments)
    gradient = np.random.default_rng(1).standard_normal(problem.y_shape).astype(np.float32)
    result, _ = apply(problem.gradient(7), gradient)
    exact = pooling_reference.gradient(problem, np.zeros(shape), gradient)
    np.testing.assert_allclose(result, exact, rtol=0, atol=2e-5)


FLIPS = st.lists(st.sampled_from((-3, -2, -1)), max_size=2)


@pytest.mark.parametrize("kind", ["max", "avg", "lp"])
def test_agrees_with_the_reference(kind):
    @settings(max_examples=60)
    @given(call=calls(kind), flips=FLIPS)
    def check(call, flips):
        _, x, _, problem = call
        result, _ = apply(problem, x, flips)
        assert_right(problem, result.reshape(problem.y_shape), x)

    check()


@settings(max_examples=60)
@given(call=calls("max"), flips=FLIPS, seed=st.integers(0, 2**16))
def test_indices_are_those_of_the_reference(call, flips, seed):
    _, x, _, problem = call
    # Few values, so that there are ties, and NaN where there are any.
    x = np.random.default_rng(seed).choice(np.array([0, 1, 2, np.nan if x.dtype.kind == "f" else 3]), x.shape)
    x = x.astype(numpy_dtype(problem.dtype))
    result, indices = apply(problem, x, flips, with_indices=True)
    assert_right(problem, result.reshape(problem.y_shape), x)
    np.testing.assert_array_equal(indices.reshape(problem.y_shape), pooling_reference.indices(problem, x))


@pytest.mark.parametrize("dtype", pooling._NUMBERS)
def test_each_way_to_share_the_work(emulated, dtype):
    """Windows short and long, channels that fill vectors and that do not: which kernel each of them gets."""
    vector, rng = pooling._most_lanes(dtype), np.random.default_rng(1)
    for channels, data_format, size, entry, lanes in (
        (2 * vector, "NHWC", 3, "pool_thread", vector),
        (vector + 1, "NHWC", 3, "pool_thread", 1),
        (vector, "NCHW", 3, "pool_thread", 1),
        (vector, "NCHW", 9, "pool_warp", 1),
        (vector, "NHWC", 9, "pool_warp", 1),
    ):
        shape = (2, 11, 12, channels) if data_format == "NHWC" else (2, channels, 11, 12)
        x = rng.integers(0, 100, shape).astype(numpy_dtype(dtype))
        problem = PoolProblem.sliding("max", 2, shape, size, dtype=dtype, stride=2, padding=1, data_format=data_format)
        emulated.launched.clear()
        result, _ = pool(problem, x, None, False, "gpu")
        assert_right(problem, result, x)
        assert emulated.launched == {pooling._spec(entry, dtype, "Max", lanes)}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
@pytest.mark.parametrize(("images", "length", "elements", "channels"), [(3, 70, 50, 1), (2, 33, 7, 5), (1, 4, 1, 9)])
def test_scattered_numbers_are_summed(dtype, images, length, elements, channels):
    rng = np.random.default_rng(2)
    numbers = filled(rng, (images, length, channels), dtype)
    numbers = numbers >> 40 if dtype == "int64" else numbers  # so that the sums are exact in float64
    indices = rng.integers(0, elements, numbers.shape)
    result = pooling.scatter(numbers, indices, elements)
    exact, size = np.zeros((2, images, elements, channels))
    for place in np.ndindex(numbers.shape):
        at = place[0], indices[place], place[2]
        exact[at] += numbers[place]
        size[at] += abs(numbers[place])
    unit = 0 if dtype == "int64" else UNIT_ROUNDOFF[result.dtype.name] * length
    assert (np.abs(result - exact) <= unit * size).all()


def test_what_is_scattered_outside_of_its_image_is_nowhere():
    numbers = np.ones((1, 4, 1), np.float32)
    result = pooling.scatter(numbers, np.array([-1, 3, 2, 1 << 40]).reshape(1, 4, 1), 3)
    np.testing.assert_array_equal(result.ravel(), [0, 0, 1])


def test_an_axis_too_long_is_named():
    problem = PoolProblem.adaptive("max", 1, (1, (1 << 30) + 1), 1)
    with pytest.raises(ValueError, match=r"x has shape \(1, 1073741825\): on a GPU an axis"):
        pooling.plan(problem)
