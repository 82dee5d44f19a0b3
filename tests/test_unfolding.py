"""``unfold`` and ``fold``: against torch, against convolution, and as each other's adjoints."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import axis_geometries, filled, laid_out

import fastconv


@st.composite
def cases(draw, ndims=(1, 2, 3), dtypes=("float32", "float64", "float16", "complex64", "int8", "int64")):
    """An image, and the arguments that say which patches it falls into."""
    axes = [draw(axis_geometries("zeros")) for _ in range(draw(st.sampled_from(ndims)))]
    batch, channels = draw(st.lists(st.integers(1, 3), max_size=2)), draw(st.integers(1, 3))
    shape = (*batch, channels, *(axis["size"] for axis in axes))
    x = filled(np.random.default_rng(draw(st.integers(0, 2**16))), shape, draw(st.sampled_from(dtypes)))
    names = {"kernel": "kernel_size", "dilation": "dilation", "padding": "padding", "stride": "stride"}
    return x, {name: tuple(axis[key] for axis in axes) for key, name in names.items()}


@given(cases(dtypes=("float64", "complex128", "int32")), st.sampled_from(("contiguous", "reversed", "sliced")))
def test_convolution_is_a_product_with_columns(case, layout):
    x, arguments = case
    kernel = arguments["kernel_size"]
    channels = x.shape[-len(kernel) - 1]
    w = filled(np.random.default_rng(1), (2, channels, *kernel), x.dtype.name)
    columns = fastconv.unfold(laid_out(x, layout), **arguments)
    options = {name: value for name, value in arguments.items() if name != "kernel_size"}
    expected = getattr(fastconv, f"conv{len(kernel)}d")(x, w, algorithm="direct", **options)
    result = w.reshape(2, -1) @ columns
    np.testing.assert_allclose(result, expected.reshape(result.shape), rtol=1e-9, atol=1e-9)


@given(cases(dtypes=("float64", "complex128")))
def test_fold_is_the_adjoint_of_unfold(case):
    x, arguments = case
    columns = fastconv.unfold(x, **arguments)
    other = filled(np.random.default_rng(2), columns.shape, x.dtype.name)
    size = x.shape[x.ndim - len(arguments["kernel_size"]) :]
    image = fastconv.fold(other, size, **arguments)
    assert (image.shape, image.dtype) == (x.shape, x.dtype)
    scale = np.linalg.norm(columns) * np.linalg.norm(other) + 1
    assert abs(np.vdot(columns, other) - np.vdot(x, image)) < 1e-13 * scale


@given(cases(ndims=(2,), dtypes=("float32", "float64")))
def test_agrees_with_torch(case):
    torch = pytest.importorskip("torch")
    x, arguments = case
    x = x.reshape(-1, *x.shape[-3:])
    arguments["padding"] = tuple(low for low, _ in arguments["padding"])
    try:
        expected = torch.nn.functional.unfold(torch.from_numpy(x), **arguments)
    except RuntimeError:  # the smaller padding leaves no room for the kernel
        with pytest.raises(ValueError, match="the kernel covers"):
            fastconv.unfold(x, **arguments)
        return
    columns = fastconv.unfold(x, **arguments)
    np.testing.assert_array_equal(columns, expected.numpy())
    image = torch.nn.functional.fold(expected, x.shape[2:], **arguments).numpy()
    np.testing.assert_allclose(fastconv.fold(columns, x.shape[2:], **arguments), image, rtol=1e-5, atol=1e-5)


def test_half_types_are_summed_in_float32():
    """2048 + 1 is no float16: summed in that, the ones would vanish."""
    columns = np.zeros((3, 5), np.float16)
    columns[[0, 1, 2], [3, 2, 1]] = (
        2048,
        1,
        1,
    )  # all of one pixel
    result = fastconv.fold(columns, 3, (3,), padding=2)
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result, [[0, 2050, 0]])


IMAGE = np.ones((1, 3, 8, 8), np.float32)
WRONG = {
    "kernel": (fastconv.unfold, (IMAGE, 0), ValueError, "kernel_size=0"),
    "kernel of four": (fastconv.unfold, (IMAGE, (1, 1, 1, 1)), ValueError, "expected 1, 2 or 3 lengths"),
    "kernel too long": (fastconv.unfold, (IMAGE, 9), ValueError, "the kernel covers 9 elements"),
    "dtype": (fastconv.unfold, (IMAGE.astype(bool), 3), TypeError, "x has dtype bool"),
    "axes": (fastconv.unfold, (IMAGE[0, 0], 3), ValueError, "expected at least 3 axes"),
    "stride": (fastconv.unfold, (IMAGE, 3, 1, 0, 0), ValueError, "stride=0"),
    "rows": (fastconv.fold, (np.ones((1, 10, 36)), 8, 3), ValueError, r"expected \(\*batch, C \* 9, L\)"),
    "columns": (fastconv.fold, (np.ones((1, 9, 35)), 8, 3), ValueError, "expected 36 columns"),
    "output size": (fastconv.fold, (np.ones((1, 9, 36)), (8, 8, 8), 3), ValueError, "output_size"),
}


@pytest.mark.parametrize(("function", "arguments", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_bad_arguments_are_named(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)
