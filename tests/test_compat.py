"""fastconv.compat: the calls of cupy.cudnn, and sigpy's convolutions on them, against sigpy's own."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import fastconv
from fastconv import grad
from fastconv.compat import cudnn
from fastconv.compat import sigpy as ours

RNG = np.random.default_rng(8)
FORWARD = {"auto_tune": True, "tensor_core": "auto"}
BACKWARD = FORWARD | {"deterministic": False}


def normal(shape, dtype=np.float64):
    values = RNG.standard_normal(shape)
    return (values + 1j * RNG.standard_normal(shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)


# -- cupy.cudnn -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_the_three_calls_write_what_the_functions_return(ndim, last, dtype):
    x, w, b = normal((2, 4, *(9,) * ndim), dtype), normal((6, 2, *(3,) * ndim), dtype), normal(6, dtype)
    pad, stride, dilation = (1,) * ndim, (2,) * ndim, (1,) * ndim
    geometry = (pad, stride, dilation, 2)
    options = {"stride": stride, "padding": pad, "groups": 2}
    layouts, conv = {}, f"conv{ndim}d"
    if last:
        x, w = np.moveaxis(x, 1, -1).copy(), np.moveaxis(w, 1, -1).copy()
        layouts = {"d_layout": cudnn.CUDNN_TENSOR_NHWC, "w_layout": cudnn.CUDNN_TENSOR_NHWC}
        names = fastconv.problem.WEIGHT_FORMATS[ndim]
        options |= {"data_format": "channels_last", "weight_format": names[1]}
    expected = getattr(fastconv, conv)(x, w, b, **options)
    y, gx, gw = np.empty_like(expected), np.empty_like(x), np.empty_like(w)
    cudnn.convolution_forward(x, w, b, y, *geometry, **FORWARD, **layouts)
    np.testing.assert_array_equal(y, expected)
    cudnn.convolution_backward_filter(x, y, gw, *geometry, **BACKWARD, **layouts)
    np.testing.assert_array_equal(gw, getattr(grad, f"{conv}_weight")(x, w.shape, y, **options))
    cudnn.convolution_backward_data(w, y, None, gx, *geometry, **BACKWARD, **layouts)
    without = getattr(grad, f"{conv}_input")(x.shape, w, y, **options)
    np.testing.assert_array_equal(gx, without)
    b = normal(4, dtype)
    cudnn.convolution_backward_data(w, y, b, gx, *geometry, **BACKWARD, **layouts)
    np.testing.assert_array_equal(gx, without + (b if last else b.reshape(-1, *[1] * ndim)))


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("tensor_core='often'", {"tensor_core": "often"}),
        ("d_layout=7", {"d_layout": 7}),
        ("w_layout='NHWC'", {"w_layout": "NHWC"}),
        (r"stride=\(1,\)", {"stride": (1,)}),
        ("out has shape", {"y": np.empty((1, 1, 9, 9))}),
        ("weight has shape", {"W": np.ones((1, 1))}),
    ],
)
def test_bad_arguments_of_cudnn_are_named(message, change):
    arguments = {"x": np.ones((1, 1, 4, 4)), "W": np.ones((1, 1, 3, 3)), "b": None, "y": np.empty((1, 1, 2, 2))}
    arguments |= {"pad": (0, 0), "stride": (1, 1), "dilation": None, "groups": 1} | FORWARD
    with pytest.raises(ValueError, match=message):
        cudnn.convolution_forward(**(arguments | change))


def test_sigpys_own_gpu_code_runs_on_it():
    """Unchanged, in a process where it finds this module under CuPy's name; with NumPy arrays, for want of a GPU."""
    pytest.importorskip("sigpy")
    pytest.importorskip("cupy")
    code = """
        import sys, warnings
        warnings.simplefilter("ignore")
        import numpy as np
        import fastconv.compat.cudnn
        sys.modules["cupy.cudnn"] = sys.modules["cupy.cuda.cudnn"] = fastconv.compat.cudnn
        import sigpy
        assert sigpy.config.cudnn_enabled
        x, w = np.random.rand(2, 3, 8, 9), np.random.rand(4, 3, 3, 2)
        y = sigpy.convolve(x, w, multi_channel=True)
        common = dict(mode="full", strides=None, multi_channel=True)
        np.testing.assert_allclose(sigpy.conv._convolve_cuda(x, w, **common), y)
        for name, args in ("data", (y, w, x.shape)), ("filter", (y, x, w.shape)):
            own = getattr(sigpy, f"convolve_{name}_adjoint")(*args, **common)
            np.testing.assert_allclose(getattr(sigpy.conv, f"_convolve_{name}_adjoint_cuda")(*args, **common), own)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- sigpy ------------------------------------------------------------------------------------------------------------

CASES = [
    pytest.param(data, filt, mode, strides, channels, dtype)
    for data, filt, channels in (
        ((13,), (4,), False),
        ((2, 3, 13), (4,), False),
        ((2, 3, 13), (4, 3, 5), True),
        ((9, 8), (3, 2), False),
        ((2, 3, 9, 8), (4, 3, 3, 2), True),
        ((2, 7, 6, 5), (3, 2, 2), False),
        ((2, 3, 7, 6, 5), (4, 3, 3, 2, 2), True),
    )
    for mode in ("full", "valid")
    for strides in (None, 2)
    for dtype in ("float32", "float64", "complex64", "complex128")
]  # fmt: skip
each_case = pytest.mark.parametrize(("data", "filt", "mode", "strides", "channels", "dtype"), CASES)


def arguments_of(filt, mode, strides, channels):
    ndim = len(filt) - 2 * channels
    return {"mode": mode, "strides": strides and (strides,) * ndim, "multi_channel": channels}


@each_case
def test_the_adjoints_are_adjoint(data, filt, mode, strides, channels, dtype):
    """<A x, y> = <x, A* y>, to the rounding of a sum of so many products, as a map of the data and of the filter."""
    x, w = normal(data, dtype), normal(filt, dtype)
    arguments = arguments_of(filt, mode, strides, channels)
    a = ours.convolve(x, w, **arguments)
    y = normal(a.shape, dtype)
    forward = np.vdot(y, a)
    to_data = np.vdot(ours.convolve_data_adjoint(y, w, data, **arguments), x)
    to_filter = np.vdot(ours.convolve_filter_adjoint(y, x, filt, **arguments), w)
    rounding = 8 * np.finfo(dtype).eps * np.sqrt(w.size) * np.linalg.norm(y) * np.linalg.norm(x) * np.linalg.norm(w)
    assert abs(forward - to_data) <= rounding
    assert abs(forward - to_filter) <= rounding


@each_case
def test_sigpy_gives_the_same(data, filt, mode, strides, channels, dtype):
    sigpy = pytest.importorskip("sigpy")
    x, w = normal(data, dtype), normal(filt, dtype)
    arguments = arguments_of(filt, mode, strides, channels)
    y = sigpy.convolve(x, w, **arguments)
    results = [
        y,
        sigpy.convolve_data_adjoint(y, w, data, **arguments),
        sigpy.convolve_filter_adjoint(y, x, filt, **arguments),
    ]
    with ours.replaced():
        again = [
            sigpy.convolve(x, w, **arguments),
            sigpy.convolve_data_adjoint(y, w, data, **arguments),
            sigpy.convolve_filter_adjoint(y, x, filt, **arguments),
        ]
    for own, new in zip(results, again, strict=True):
        assert (new.shape, new.dtype) == (own.shape, own.dtype)
        assert_allclose(new, own, rtol=0, atol=100 * np.finfo(dtype).eps * abs(own).max())


def test_sigpys_operators_and_back_again():
    sigpy = pytest.importorskip("sigpy")
    before = sigpy.convolve, sigpy.conv.convolve
    x, w = normal((8, 9)), normal((3, 3))
    expected = sigpy.linop.ConvolveData(x.shape, w) * x
    with ours.replaced():
        assert sigpy.convolve is sigpy.conv.convolve is ours.convolve
        assert_allclose(sigpy.linop.ConvolveData(x.shape, w) * x, expected)
    assert (sigpy.convolve, sigpy.conv.convolve) == before


def test_the_page_about_it_runs():
    """Every example of docs/cudnn.md, one after another, in a process of its own."""
    pytest.importorskip("sigpy")
    pytest.importorskip("cupy")
    page = (Path(__file__).parent.parent / "docs" / "cudnn.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("message", "filt", "arguments"),
    [
        ("mode='same'", (3,), {"mode": "same"}),
        ("expected 1 to 3", (1, 1, 1, 1), {}),
        ("stride=", (3,), {"strides": (1, 1)}),
    ],
)
def test_bad_arguments_of_convolve_are_named(message, filt, arguments):
    with pytest.raises(ValueError, match=message):
        ours.convolve(np.ones((9,) * len(filt)), np.ones(filt), **arguments)
