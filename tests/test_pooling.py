"""Pooling through its public functions: against the reference, against torch, and its promises."""

import math

import numpy as np
import pytest
from guarded import guarded_scratch, scratch_is_kept_to  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import LAYOUTS, empty, filled, laid_out, numpy_dtype

import fastconv
from fastconv import pooling_reference
from fastconv.cpu.pooling import MAXIMUM, MEAN, NORM
from fastconv.pooling_problem import PoolProblem
from fastconv.problem import DATA_FORMATS
from fastconv.registry import UNIT_ROUNDOFF

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int8", "uint8", "int16", "int32", "int64")


@st.composite
def geometries(draw, ndim):
    """The arguments that say where windows are, and the size of an input on which at least one of them fits."""
    axes = []
    for _ in range(ndim):
        kernel, stride, dilation = draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)))
        if ndim == 1 and draw(st.booleans()):
            kernel = draw(st.integers(30, 80))
        pads = draw(st.tuples(st.integers(0, kernel // 2), st.integers(0, kernel // 2)))
        size = dilation * (kernel - 1) + 1 + draw(st.integers(0, (40, 12, 4)[ndim - 1]))
        axes.append((size, kernel, stride, dilation, pads))
    size, kernel, stride, dilation, pads = zip(*axes, strict=True)
    return size, {
        "kernel_size": kernel, "stride": stride, "dilation": dilation, "padding": pads, "ceil_mode": draw(st.booleans())
    }  # fmt: skip


@st.composite
def calls(draw, kind):
    """A public function's name, its input and arguments, and the problem that they make."""
    ndim, dtype = draw(st.integers(1, 3)), draw(st.sampled_from(FLOATS + INTEGERS if kind == "max" else FLOATS))
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    channels = draw(st.integers(1, 5) | st.sampled_from((64, 70, 130)))
    size, arguments = draw(geometries(ndim))
    form, build = f"{kind}_pool{ndim}d", PoolProblem.sliding
    op, options = ("max" if kind == "max" else "sum"), {}
    if kind != "lp" and draw(st.booleans()):
        form, build = f"adaptive_{form}", PoolProblem.adaptive
        arguments = {"output_size": tuple(draw(st.integers(1, n + 2)) for n in size)}
        arguments = draw(st.sampled_from((arguments, {"output_size": 1})))
    elif kind == "avg":
        options["count_include_pad"] = draw(st.booleans())
        options["divisor_override"] = draw(st.none() | st.sampled_from((-2, 1, 7)))
    elif kind == "lp":
        options["norm_type"] = draw(st.sampled_from((1, 2, 3, 2.5)))
    last = draw(st.booleans())
    options["data_format"] = DATA_FORMATS[ndim][last]
    shape = (*batch, *size, channels) if last else (*batch, channels, *size)
    x = filled(np.random.default_rng(draw(st.integers(0, 2**16))), shape, dtype)
    x = np.abs(x) if kind == "lp" else x
    fixed = {"count_include_pad": True} if kind == "lp" else {}
    problem = build(op, ndim, shape, dtype=dtype, **arguments, **options, **fixed)
    return form, x, arguments | options, problem


def assert_right(problem, result, x, roundings=6):
    """Maxima exactly; sums within the rounding of as many additions, and `roundings` of a power and a root."""
    exact = pooling_reference.pool(problem, x)
    assert result.shape == exact.shape
    assert result.dtype == x.dtype
    if problem.op == "max":
        np.testing.assert_array_equal(result.astype(exact.dtype), exact)
        return
    terms = math.prod(axis.windows()["taps"].max(initial=1) for axis in problem.axes)
    unit = UNIT_ROUNDOFF[problem.accumulator_dtype] * (terms + roundings)
    size = pooling_reference.pool(problem, np.abs(x.astype(np.float64)))
    least = np.finfo(problem.accumulator_dtype).tiny
    if problem.dtype in ("float16", "bfloat16"):
        unit += UNIT_ROUNDOFF[problem.dtype]
        least = max(least, float(np.finfo(np.float16).smallest_subnormal))
    np.testing.assert_array_less(np.abs(result.astype(np.float64) - exact), unit * np.abs(size) + least)


@pytest.mark.parametrize("kind", ["max", "avg", "lp"])
def test_agrees_with_the_reference(kind):
    @settings(max_examples=60)
    @given(call=calls(kind), layout=st.sampled_from(LAYOUTS), into=st.sampled_from((None, *LAYOUTS[:4])))
    def check(call, layout, into):
        name, x, arguments, problem = call
        if layout == "broadcast" and problem.exponent != 1:
            layout = "contiguous"
        x = laid_out(x, layout)
        out = None if into is None else empty(problem.y_shape, x.dtype, into)
        result = getattr(fastconv, name)(x, out=out, **arguments)
        assert out is None or result is out
        assert_right(problem, result, x)

    check()


@settings(max_examples=60)
@given(call=calls("max"), layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**16))
def test_indices_are_those_of_the_reference(call, layout, seed):
    name, x, arguments, problem = call
    # Few values, so that there are ties, and NaN where there are any.
    x = np.random.default_rng(seed).choice(np.array([0, 1, 2, np.nan if x.dtype.kind == "f" else 3]), x.shape)
    x = laid_out(x.astype(numpy_dtype(problem.dtype)), layout)
    result, indices = getattr(fastconv, name)(x, return_indices=True, **arguments)
    assert_right(problem, result, x)
    np.testing.assert_array_equal(indices, pooling_reference.indices(problem, x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cube_roots_of_any_size(dtype):
    about = np.finfo(dtype)
    ends = np.log(float(about.smallest_subnormal)), np.log(float(about.max))
    cubes = np.exp(np.random.default_rng(0).uniform(*ends, 4001)).astype(dtype)
    x = np.concatenate((np.cbrt(cubes.astype(np.longdouble)), [0, -0.0, np.inf, np.nan, -1])).astype(dtype)
    with np.errstate(under="ignore"):
        exact = np.cbrt((x * x * x).astype(np.longdouble))
    exact[-1] = np.nan
    np.testing.assert_allclose(fastconv.lp_pool1d(x[None], 3, 1)[0], exact, rtol=5 * UNIT_ROUNDOFF[dtype])


def test_no_kind_of_pooling_is_taken_for_another():
    """Numba takes a structure for one that it begins with."""
    assert len({kind.fields["half"][1] for kind in (MAXIMUM, MEAN, NORM)}) == 3


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_agrees_with_torch(ndim):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    @settings(max_examples=40)
    @given(case=geometries(ndim), seed=st.integers(0, 2**16), count=st.booleans(), data=st.data())
    def check(case, seed, count, data):
        size, arguments = case
        x = np.random.default_rng(seed).standard_normal((2, 3, *size))
        x[x > 2.5] = np.nan
        tensor, name = torch.from_numpy(x), f"pool{ndim}d"
        common = {
            "kernel_size": arguments["kernel_size"], "stride": arguments["stride"],
            "padding": tuple(low for low, _ in arguments["padding"]), "ceil_mode": arguments["ceil_mode"],
        }  # fmt: skip
        expected = getattr(functional, f"max_{name}")(
            tensor, dilation=arguments["dilation"], return_indices=True, **common
        )
        result = getattr(fastconv, f"max_{name}")(x, dilation=arguments["dilation"], return_indices=True, **common)
        for ours, theirs in zip(result, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs.numpy())
        x = np.nan_to_num(x)
        tensor = torch.from_numpy(x)
        expected = getattr(functional, f"avg_{name}")(tensor, count_include_pad=count, **common)
        result = getattr(fastconv, f"avg_{name}")(x, count_include_pad=count, **common)
        np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=1e-13)
        wanted = tuple(data.draw(st.integers(1, n)) for n in size)
        expected = getattr(functional, f"adaptive_avg_{name}")(tensor, wanted)
        result = getattr(fastconv, f"adaptive_avg_{name}")(x, wanted)
        np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=1e-13)
        expected = getattr(functional, f"adaptive_max_{name}")(tensor, wanted, return_indices=True)
        result = getattr(fastconv, f"adaptive_max_{name}")(x, wanted, return_indices=True)
        for ours, theirs in zip(result, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs.numpy())
        del common["padding"]
        if ndim == 1:  # torch's takes no tuple
            common["kernel_size"], common["stride"] = common["kernel_size"][0], common["stride"][0]
        expected = getattr(functional, f"lp_{name}")(tensor.abs(), 3.0, **common)
        result = getattr(fastconv, f"lp_{name}")(np.abs(x), 3.0, **common)
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-10)

    check()


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("function", [fastconv.max_pool2d, fastconv.avg_pool2d])
def test_nan_stays_in_its_windows(function, data_format):
    x = np.ones((1, 3, 9, 9), np.float32) if data_format == "NCHW" else np.ones((1, 9, 9, 3), np.float32)
    x[(0, 1, 4, 4) if data_format == "NCHW" else (0, 4, 4, 1)] = np.nan
    y = function(x, 3, stride=1, data_format=data_format)
    y = y if data_format == "NCHW" else np.moveaxis(y, -1, 1)
    expected = np.zeros((1, 3, 7, 7), bool)
    expected[0, 1, 2:5, 2:5] = True
    np.testing.assert_array_equal(np.isnan(y), expected)


def test_infinities_and_signed_zeros_are_kept():
    x = np.array([[-np.inf, -np.inf, np.inf, 1.0, -0.0, -0.0]])
    y = fastconv.max_pool1d(x, 2)
    np.testing.assert_array_equal(y, [[-np.inf, np.inf, -0.0]])
    assert np.signbit(y[0, 2])


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_the_same_bits_on_any_number_of_threads(data_format):
    x = np.random.default_rng(1).standard_normal((2, 40, 70, 60)).astype(np.float32)
    results = []
    for threads in (1, 2, 3):
        with fastconv.threads(threads):
            results.append(fastconv.avg_pool2d(x, 3, 2, 1, data_format=data_format).tobytes())
    assert len(set(results)) == 1


def test_indices_of_windows_that_reach_too_far_are_declined():
    image = np.broadcast_to(np.float32(0), (1, 1, 2**16, 2**15 + 1))
    with pytest.raises(ValueError, match="a window reaches over 2147549184 elements"):
        fastconv.adaptive_max_pool2d(image, 1, return_indices=True)


def test_empty_batches_give_empty_results():
    assert fastconv.max_pool2d(np.ones((0, 3, 8, 8)), 2).shape == (0, 3, 4, 4)
    assert fastconv.avg_pool2d(np.ones((2, 0, 8, 8)), 2).shape == (2, 0, 4, 4)
    assert fastconv.adaptive_max_pool2d(np.ones((2, 3, 8, 8)), (0, 2)).shape == (2, 3, 0, 2)
    assert fastconv.adaptive_avg_pool2d(np.ones((2, 0, 8, 8)), 1).shape == (2, 0, 1, 1)


def test_torch_tensors_come_back_as_torch_tensors():
    torch = pytest.importorskip("torch")
    y, indices = fastconv.max_pool2d(torch.ones(1, 1, 4, 4, dtype=torch.bfloat16), 2, return_indices=True)
    assert (y.dtype, indices.dtype) == (torch.bfloat16, torch.int64)


IMAGE = np.ones((1, 3, 8, 8), np.float32)
WRONG = {
    "kernel too long": (fastconv.max_pool2d, (IMAGE, 9), {}, ValueError, r"kernel_size=9 .* covers 9 elements"),
    "kernel of zero": (fastconv.max_pool2d, (IMAGE, 0), {}, ValueError, "kernel_size=0: expected an integer from 1"),
    "kernel of three": (fastconv.max_pool2d, (IMAGE, (1, 2, 3)), {}, ValueError, r"kernel_size=\(1, 2, 3\)"),
    "kernel not a number": (fastconv.max_pool2d, (IMAGE, 2.0), {}, TypeError, "kernel_size=2.0"),
    "stride": (fastconv.max_pool2d, (IMAGE, 2, 0), {}, ValueError, "stride=0"),
    "dilation": (fastconv.max_pool2d, (IMAGE, 2), {"dilation": 0}, ValueError, "dilation=0"),
    "padding alone": (fastconv.max_pool2d, (IMAGE, 2, 1, 2), {}, ValueError, "padding=2: a window .* padding alone"),
    "negative padding": (fastconv.max_pool2d, (IMAGE, 2, 1, -1), {}, ValueError, "padding=-1"),
    "ceil_mode": (fastconv.max_pool2d, (IMAGE, 2), {"ceil_mode": "yes"}, TypeError, "ceil_mode='yes'"),
    "return_indices": (fastconv.max_pool2d, (IMAGE, 2), {"return_indices": 1}, TypeError, "return_indices=1"),
    "format": (fastconv.max_pool2d, (IMAGE, 2), {"data_format": "NCW"}, ValueError, "data_format='NCW'"),
    "too few axes": (fastconv.max_pool2d, (IMAGE[0, 0], 2), {}, ValueError, r"x has shape \(8, 8\)"),
    "nothing to pool": (fastconv.max_pool2d, (IMAGE[:, :, :0], 2), {}, ValueError, "nothing to pool"),
    "complex": (fastconv.max_pool2d, (IMAGE * 1j, 2), {}, TypeError, "x has dtype complex64"),
    "mean of integers": (fastconv.avg_pool2d, (IMAGE.astype(int), 2), {}, TypeError, "x has dtype int64"),
    "not an array": (fastconv.max_pool2d, ("x", 2), {}, TypeError, "x is a str"),
    "divisor": (fastconv.avg_pool2d, (IMAGE, 2), {"divisor_override": 0}, ValueError, "divisor_override=0"),
    "count": (fastconv.avg_pool2d, (IMAGE, 2), {"count_include_pad": None}, TypeError, "count_include_pad=None"),
    "norm": (fastconv.lp_pool2d, (IMAGE, 0, 2), {}, ValueError, "norm_type=0"),
    "norm word": (fastconv.lp_pool2d, (IMAGE, "two", 2), {}, TypeError, "norm_type='two'"),
    "infinite norm": (fastconv.lp_pool2d, (IMAGE, math.inf, 2), {}, ValueError, "norm_type=inf"),
    "output size": (fastconv.adaptive_avg_pool2d, (IMAGE, -1), {}, ValueError, "output_size=-1"),
    "output sizes": (fastconv.adaptive_avg_pool2d, (IMAGE, (1, 2, 3)), {}, ValueError, r"output_size=\(1, 2, 3\)"),
    "shape of out": (fastconv.max_pool2d, (IMAGE, 2), {"out": IMAGE}, ValueError, "out has shape"),
    "dtype of out": (fastconv.max_pool2d, (IMAGE, 2), {"out": np.ones((1, 3, 4, 4))}, TypeError, "out has dtype"),
    "out is x": (fastconv.max_pool2d, (IMAGE, 1), {"out": IMAGE}, ValueError, "out shares memory with x"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "options", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_bad_arguments_are_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
    good = fastconv.max_pool2d(IMAGE, 2)  # and a good call after it is not disturbed
    np.testing.assert_array_equal(good, 1)


def test_equal_but_unequally_good_arguments_are_told_apart():
    fastconv.max_pool2d(IMAGE, (2, 2))
    with pytest.raises(TypeError, match=r"kernel_size=2\.0"):
        fastconv.max_pool2d(IMAGE, (2.0, 2))
