"""The Fourier transform itself, the tiles it is applied to, and kernels as large as it is made for."""

import dataclasses
import functools

import numpy as np
import pytest
from promise import assert_kept
from strategies import make_operands, numpy_dtype

import fastconv
from fastconv.cpu import fourier
from fastconv.cpu.fft_tiling import cuts
from fastconv.cpu.jit import Kernel, array, integer
from fastconv.dispatch import choose
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms
from fastconv.settings import USUAL_WORKSPACE

FFT = next(a for a in algorithms("cpu") if a.name == "fft")


def run(problem, a, b, bias=None, residual=None, out=None, **options):
    assert FFT.why_not(problem) is None
    out = np.empty(problem.result_shape, numpy_dtype(problem.result_dtype)) if out is None else out
    FFT.apply(problem, a, b, out, bias, residual, **options)
    return out


# -- the transform ----------------------------------------------------------------------------------------------------


def _transform(source, target, work, passes, factors, n, lanes, inverse):
    fourier.transform(source, 0, 2 * lanes, target, 0, 2 * lanes, work, passes, factors, n, lanes, inverse != 0)


def _fold(source, target, half, inverse, factors):
    fourier.fold(source, 0, target, 0, half, inverse != 0, factors, 0)


@functools.cache
def kernels(dtype):
    vector = array(dtype, 1, contiguous=True, readonly=False)
    numbers = array(np.dtype(np.int64), 1, contiguous=True, readonly=False)
    transform = Kernel(_transform).compile(vector, vector, vector, numbers, vector, integer, integer, integer)
    return transform, Kernel(_fold).compile(vector, vector, integer, integer, vector)


def transformed(x, inverse=False, in_place=False):
    """The transform along the first axis of complex lines (n, lanes)."""
    n, lanes = x.shape
    dtype = x.real.dtype
    source = np.stack([x.real, x.imag], 1).ravel()
    target = source if in_place else np.full_like(source, np.nan)
    work = np.full(2 * source.size, np.nan, dtype)
    passes = np.array(fourier.radices(n), np.int64)
    kernels(dtype)[0](source, target, work, passes, fourier.twiddles(n, dtype), n, lanes, int(inverse))
    result = target.reshape(n, 2, lanes)
    return result[:, 0] + 1j * result[:, 1]


def lines(n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shape = n, fourier.lanes(np.dtype(dtype).itemsize)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.result_type(dtype, np.complex64))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8, 9, 15, 16, 25, 30, 45, 64, 90, 108, 128, 375, 1000, 1024, 6750])
def test_transforms_agree_with_numpy(n, dtype):
    x = lines(n, dtype)
    exact = np.fft.fft(x.astype(np.clongdouble), axis=0)
    # Eight standard deviations, of passes with at most 11 squared roundings, in elements whose mean square is 2 n.
    within = 8 * np.finfo(dtype).eps / 2 * np.sqrt(11 * len(fourier.radices(n)) * 2 * n)
    np.testing.assert_allclose(transformed(x), exact, rtol=0, atol=within)
    np.testing.assert_array_equal(transformed(x, in_place=True), transformed(x))
    np.testing.assert_allclose(transformed(transformed(x), inverse=True) / n, x, rtol=0, atol=2 * within / np.sqrt(n))


@pytest.mark.parametrize("n", [4, 6, 8, 10, 90, 96, 1000])
def test_folding_is_the_transform_of_a_real_line(n):
    dtype = np.dtype(np.float64)
    lanes = fourier.lanes(dtype.itemsize)
    x = np.random.default_rng(n).standard_normal((n, lanes))
    _, fold = kernels(dtype)
    half = transformed(x[0::2] + 1j * x[1::2])
    source = np.stack([half.real, half.imag], 1).ravel()
    target, back = np.full((2, (n // 2 + 1) * 2 * lanes), np.nan)
    fold(source, target, n // 2, 0, fourier.fold_factors(n, dtype, False))
    result = target.reshape(-1, 2, lanes)
    np.testing.assert_allclose((result[:, 0] + 1j * result[:, 1]) / 2, np.fft.rfft(x, axis=0), atol=1e-12)
    fold(target, back, n // 2, 1, fourier.fold_factors(n, dtype, True))
    np.testing.assert_allclose(back[: source.size] / 4, source, atol=1e-12)


def test_lengths_are_the_next_that_can_be_transformed():
    assert [fourier.next_length(n, even=False) for n in (1, 7, 11, 31, 97)] == [1, 8, 12, 32, 100]
    assert [fourier.next_length(n, even=True) for n in (7, 13, 25, 75)] == [8, 16, 30, 80]
    assert all(np.prod(fourier.radices(n)) == n for n in (1, 2, 60, 6750))
    with pytest.raises(ValueError, match="factor 7"):
        fourier.radices(28)


# -- tiles ------------------------------------------------------------------------------------------------------------

LARGE = {
    "depthwise 31 x 31": ((1, 16, 56, 56), (16, 1, 31, 31), {"padding": 15, "groups": 16}),
    "depthwise with a multiplier": ((2, 5, 40, 40), (15, 1, 17, 13), {"padding": 8, "groups": 5}),
    "dense 15 x 15": ((1, 12, 40, 40), (10, 12, 15, 15), {"padding": 7}),
    "grouped 15 x 15": ((2, 12, 30, 30), (9, 4, 15, 15), {"padding": 7, "groups": 3}),
    "template": ((1, 1, 200, 180), (1, 1, 64, 48), {}),
    "causal 257": ((1, 1, 5000), (1, 1, 257), {"padding": "causal"}),
    "4096 taps": ((1, 1, 20000), (1, 1, 4096), {}),
    "filter bank": ((1, 1, 4000), (20, 1, 300), {}),
    "channels of 257 taps": ((1, 6, 3000), (5, 6, 257), {"padding": 128}),
    "volume": ((1, 1, 40, 37, 44), (1, 1, 11, 9, 13), {}),
    "volume of channels": ((1, 3, 20, 20, 20), (4, 3, 7, 7, 7), {"padding": 3}),
    "strided": ((1, 4, 70, 70), (6, 4, 21, 21), {"stride": 3, "padding": 10}),
    "dilated": ((1, 4, 90, 90), (4, 1, 17, 17), {"dilation": (2, 3), "groups": 4, "padding": 20}),
    "round the circle": ((1, 3, 50, 50), (3, 1, 25, 25), {"padding": 12, "groups": 3, "padding_mode": "circular"}),
    "reflected": ((1, 3, 50, 50), (3, 3, 13, 13), {"padding": 6, "padding_mode": "reflect"}),
}


def large(name, **changes):
    x, w, arguments = LARGE[name]
    return ConvProblem.forward(len(x) - 2, x, w, **(arguments | changes))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "bfloat16"])
@pytest.mark.parametrize("name", LARGE)
def test_large_kernels(name, dtype):
    p = large(name, dtype=dtype)
    operands = make_operands(p)
    assert_kept(FFT, p, run(p, *operands), *operands)


@pytest.mark.parametrize("name", ["depthwise 31 x 31", "grouped 15 x 15", "causal 257", "filter bank", "strided"])
@pytest.mark.parametrize("op", ["input_grad", "weight_grad"])
def test_gradients_of_large_kernels(name, op):
    p = dataclasses.replace(large(name), op=op)
    operands = make_operands(p)
    assert_kept(FFT, p, run(p, *operands), *operands)


@pytest.mark.parametrize("groups", [1, 5, 8, 19])
@pytest.mark.parametrize("outputs", [1, 2])
def test_channels_last(groups, outputs):
    """Lanes of neighbouring groups are read and written as vectors, whatever is left of the last; bias and limits."""
    p = ConvProblem.forward(
        2, (2, groups, 30, 31), (groups * outputs, 1, 13, 9), groups=groups, padding=5, stride=(1, 2), bias=True,
        activation="relu6",
    )  # fmt: skip
    p = dataclasses.replace(p, channels_last=True)
    operands = make_operands(p)
    assert_kept(FFT, p, run(p, *operands), *operands)


@pytest.mark.parametrize("outputs", range(1, 200, 13))
def test_tiles_at_every_edge(outputs):
    """However many outputs the last tile has left, and however few there are for the lanes."""
    taps = 128
    p = ConvProblem.forward(1, (1, 1, outputs + taps - 1), (1, 1, taps), dtype="float64")
    (cut,) = cuts(p, USUAL_WORKSPACE)
    assert cut.tiles[2] * cut.kept[2] >= outputs > (cut.tiles[2] - 1) * cut.kept[2]
    x = np.zeros(p.x_shape)
    x[..., ::7] = 1
    w = np.arange(1.0, 1 + taps).reshape(p.w_shape)
    expected = [x[0, 0, i : i + taps] @ w[0, 0] for i in range(outputs)]
    result = run(p, x, w)
    np.testing.assert_allclose(result[0, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("name", LARGE)
def test_memory_of_large_kernels_stays_within_the_workspace(name):
    p = large(name)
    operands = make_operands(p)
    with fastconv.threads(3):
        assert FFT.workspace_bytes(p, 4 << 20) <= 4 << 20
    np.testing.assert_allclose(run(p, *operands, workspace_limit=4 << 20), run(p, *operands), atol=1e-3)


@pytest.mark.parametrize("name", LARGE)
def test_the_same_bits_on_any_number_of_threads(name):
    p = large(name)
    operands = make_operands(p)
    results = []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            results.append(run(p, *operands))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


# -- what it promises -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["depthwise 31 x 31", "causal 257", "volume", "channels of 257 taps", "strided"])
@pytest.mark.parametrize("scene", ["ones", "sparse", "loud"])
def test_promise_where_errors_have_far_to_go(name, scene):
    """One sign throughout, so that nothing cancels; a kernel of a few taps; one sample far above all others."""
    p = large(name)
    x, w, _, _ = make_operands(p)
    if scene == "ones":
        x, w = np.abs(x), np.abs(w)
    elif scene == "sparse":
        w *= np.random.default_rng(0).random(w.shape) < 4 / w[0, 0].size
    else:
        x.flat[x.size // 2] = 1e6
    assert_kept(FFT, p, run(p, x, w), x, w)


@pytest.mark.parametrize("name", ["depthwise 31 x 31", "filter bank", "grouped 15 x 15", "strided", "volume"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_tiles_that_are_not_finite_are_computed_directly(name, value):
    """Also those whose values only a transform overflows; a result that is its own residual is read but once."""
    p = dataclasses.replace(large(name), bias=True, residual=True)
    x, w, bias, residual = make_operands(p)
    x.flat[[x.size // 3, x.size // 2]] = value
    w *= 1e-2
    result = run(p, x, w, bias, residual)
    with np.errstate(invalid="ignore"):
        assert_kept(FFT, p, result, x, w, bias, residual)
    np.testing.assert_array_equal(run(p, x, w, bias, residual, out=residual), result)


def test_a_weight_that_is_not_finite_spoils_its_own_channel_only():
    p = large("dense 15 x 15")
    x, w, _, _ = make_operands(p)
    w[3, 0, 7, 7] = np.nan
    result = run(p, x, w)
    assert np.isnan(result[0, 3, 7:-7, 7:-7]).all()
    assert np.isfinite(np.delete(result, 3, axis=1)).all()


def test_what_is_declined():
    for name in LARGE:
        assert FFT.why_not(large(name)) is None
        assert "transform" in FFT.why_not(large(name, precision="highest"))
        assert "int8" in FFT.why_not(large(name, dtype="int8"))


@pytest.mark.parametrize(
    ("x", "w", "groups"),
    [
        ((1, 128, 86, 86), (128, 1, 31, 31), 128),
        ((1, 1, 100_000), (1, 1, 4096), 1),
        ((1, 64, 16_000), (64, 64, 257), 1),
        ((1, 1, 512, 512), (1, 1, 64, 64), 1),
        ((1, 1, 96, 96, 96), (1, 1, 21, 21, 21), 1),
    ],
)
def test_is_chosen_for_large_kernels(x, w, groups):
    assert choose(ConvProblem.forward(len(x) - 2, x, w, groups=groups)) is FFT
