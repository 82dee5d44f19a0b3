"""Arrays beyond 2^31 bytes: every offset must be a 64-bit integer. Most of their pages are zero and never touched."""

import os

import numpy as np
import pytest

import fastconv
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        hasattr(os, "sysconf") and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 << 30,
        reason="needs 8 GiB of memory",
    ),
]
each_algorithm = pytest.mark.parametrize("algorithm", algorithms("cpu"), ids=lambda a: a.name)

RNG = np.random.default_rng(6)


def convolve(algorithm, x, w, **options):
    problem = ConvProblem.forward(x.ndim - 1, x.shape, w.shape, dtype=x.dtype.name, **options)
    if reason := algorithm.why_not(problem):
        pytest.skip(reason)
    convolution = {1: fastconv.conv1d, 2: fastconv.conv2d}[x.ndim - 1]
    # Sums of such integers are exact; those of transforms are not, whose products are at most these.
    exact = not any(algorithm.spread(problem))
    largest = 0 if exact else algorithm.tolerance(problem) * float(np.abs(x).max()) * float(np.abs(w).sum())
    return convolution(x, w, algorithm=algorithm.name, **options), largest


@each_algorithm
def test_an_axis_of_more_than_2_31_elements(algorithm):
    stride = 4096
    x, w = np.zeros((1, 2**31 + 2 * stride), np.float16), np.float16([[[1, 2, 3]]])
    ends = np.array([0, 2**31 - stride, 2**31, 2**31 + stride])
    x[0, ends] = [5, 6, 7, 8]
    y, error = convolve(algorithm, x, w, stride=stride)
    assert y.shape == (1, 2**31 // stride + 2)
    expected = np.zeros_like(y)
    expected[0, ends // stride] = [5, 6, 7, 8]
    np.testing.assert_allclose(y, expected, rtol=0, atol=error)


@each_algorithm
def test_an_input_of_more_than_2_31_bytes(algorithm):
    x, w = np.zeros((520, 1024, 1024), np.float32), np.ones((1, 520, 3, 3), np.float32)
    assert x.nbytes > 2**31
    x[[0, 511, 519]] = RNG.integers(-9, 10, (3, 1024, 1024))
    w[0, [0, 511, 519]] = RNG.integers(-9, 10, (3, 3, 3))
    y, error = convolve(algorithm, x, w)
    expected = fastconv.conv2d(x[[0, 511, 519]], w[:, [0, 511, 519]], algorithm="direct")
    np.testing.assert_allclose(y, expected, rtol=0, atol=error)


@each_algorithm
def test_a_result_of_more_than_2_31_bytes(algorithm):
    x, w = RNG.integers(-9, 10, (1, 1026, 1026)), RNG.integers(-9, 10, (520, 1, 3, 3))
    x, w = x.astype(np.float32), w.astype(np.float32)
    y, error = convolve(algorithm, x, w)
    assert y.nbytes > 2**31
    for channel in (0, 510, 511, 512, 519):
        alone = fastconv.conv2d(x, w[channel : channel + 1], algorithm="direct")
        np.testing.assert_allclose(y[channel], alone[0], rtol=0, atol=error)
