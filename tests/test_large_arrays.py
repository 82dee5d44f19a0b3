"""Arrays beyond 2^31 bytes: every offset must be a 64-bit integer. Most of their pages are zero and never touched."""

import os

import numpy as np
import pytest

import fastconv
from fastconv.registry import algorithms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        hasattr(os, "sysconf") and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 << 30,
        reason="needs 8 GiB of memory",
    ),
]
each_algorithm = pytest.mark.parametrize("algorithm", [a.name for a in algorithms("cpu")])

RNG = np.random.default_rng(6)


@each_algorithm
def test_an_axis_of_more_than_2_31_elements(algorithm):
    stride = 4096
    x, w = np.zeros((1, 2**31 + 2 * stride), np.float16), np.float16([[[1, 2, 3]]])
    ends = np.array([0, 2**31 - stride, 2**31, 2**31 + stride])
    x[0, ends] = [5, 6, 7, 8]
    y = fastconv.conv1d(x, w, stride=stride, algorithm=algorithm)
    assert y.shape == (1, 2**31 // stride + 2)
    expected = np.zeros_like(y)
    expected[0, ends // stride] = [5, 6, 7, 8]
    np.testing.assert_array_equal(y, expected)


@each_algorithm
def test_an_input_of_more_than_2_31_bytes(algorithm):
    x, w = np.zeros((520, 1024, 1024), np.float32), np.ones((1, 520, 3, 3), np.float32)
    assert x.nbytes > 2**31
    x[[0, 511, 519]] = RNG.integers(-9, 10, (3, 1024, 1024))
    w[0, [0, 511, 519]] = RNG.integers(-9, 10, (3, 3, 3))
    y = fastconv.conv2d(x, w, algorithm=algorithm)
    np.testing.assert_array_equal(y, fastconv.conv2d(x[[0, 511, 519]], w[:, [0, 511, 519]], algorithm=algorithm))


@each_algorithm
def test_a_result_of_more_than_2_31_bytes(algorithm):
    x, w = RNG.integers(-9, 10, (1, 1026, 1026)), RNG.integers(-9, 10, (520, 1, 3, 3))
    x, w = x.astype(np.float32), w.astype(np.float32)
    y = fastconv.conv2d(x, w, algorithm=algorithm)
    assert y.nbytes > 2**31
    for channel in (0, 510, 511, 512, 519):
        alone = fastconv.conv2d(x, w[channel : channel + 1], algorithm=algorithm)
        np.testing.assert_array_equal(y[channel], alone[0])
