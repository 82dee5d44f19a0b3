"""The CUDA kernels of ``unfold`` and ``fold``, run on the CPU, against what the CPU computes without them."""

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler
from hypothesis import given, settings
from strategies import filled
from test_cuda_emulated import poison, surrounded
from test_unfolding import cases

import fastconv
from fastconv import unfolding
from fastconv.gpu import patches, runtime
from fastconv.problem import DTYPES

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")

NUMPY_DTYPES = tuple(name for name in DTYPES if name != "bfloat16")


@pytest.fixture(scope="module", autouse=True)
def emulated():
    """The kernels, put in the GPU's place while this module runs; each is built when a test first asks for it."""
    with runtime.use(EmulatedRuntime()) as emulated:
        yield emulated


def problem_of(x, arguments):
    options = {name: arguments[name] for name in ("dilation", "padding", "stride")}
    return unfolding._problem(x.shape, arguments["kernel_size"], x.dtype, **options)


def without_gaps(size, dtype):
    """An array of so many elements, and the whole buffer: what lies around them must not change."""
    buffer = np.full(size + 32, 78, dtype)
    return buffer[16 : 16 + size], buffer


def assert_only(inside, buffer):
    inside[...] = 78
    assert (buffer == 78).all(), "wrote outside of the result"


@settings(max_examples=60)
@given(cases(dtypes=NUMPY_DTYPES))
def test_unfold(case):
    x, arguments = case
    expected = fastconv.unfold(x, **arguments)
    image, _ = surrounded(x.reshape(-1, *x.shape[-1 - len(arguments["kernel_size"]) :]), poison(x.dtype.name), (-1,))
    columns, buffer = without_gaps(expected.size, x.dtype)
    patches.unfold(problem_of(image, arguments), image, columns)
    np.testing.assert_array_equal(columns.reshape(expected.shape), expected)
    assert_only(columns, buffer)


@settings(max_examples=60)
@given(cases(dtypes=NUMPY_DTYPES))
def test_fold(case):
    """The same bits: both add by rising tap."""
    x, arguments = case
    shape = fastconv.unfold(x, **arguments).shape
    columns = filled(np.random.default_rng(1), shape, x.dtype.name)
    expected = fastconv.fold(columns, x.shape[x.ndim - len(arguments["kernel_size"]) :], **arguments)
    read, _ = without_gaps(columns.size, x.dtype)
    read[...] = columns.ravel()
    image, buffer = without_gaps(x.size, x.dtype)
    patches.fold(problem_of(x, arguments), read, image)
    np.testing.assert_array_equal(image.reshape(x.shape), expected)
    assert_only(image, buffer)


def test_arrays_on_a_gpu_take_one_launch(monkeypatch):
    x = filled(np.random.default_rng(1), (2, 3, 9, 8), "float32")[..., ::-1]
    problem = unfolding._problem(x.shape, (3, 2), x.dtype, 1, (1, 0), (2, 1))
    launches = []
    launch = EmulatedRuntime.launch
    monkeypatch.setattr(EmulatedRuntime, "launch", lambda *a: launches.append(a[1].entry) or launch(*a))
    columns = unfolding._columns_on("gpu", problem, x)
    image = unfolding._image_on("gpu", problem, columns[..., ::-1])
    assert launches == ["unfold_patches", "fold_patches"]
    np.testing.assert_array_equal(columns, unfolding._columns_on("cpu", problem, x))
    np.testing.assert_array_equal(image, unfolding._image_on("cpu", problem, columns[..., ::-1]))


def test_the_images_of_a_gpu_have_axes_of_31_bits():
    problem = unfolding._problem((1, 1, 1 << 31), (1,), np.dtype(np.float32), 1, 0, 1)
    with pytest.raises(ValueError, match="an axis can have at most"):
        patches.fold(problem, np.empty(0), np.broadcast_to(np.float32(0), (1,)))
