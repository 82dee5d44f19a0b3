"""The GPU algorithms on a GPU. Without one these tests are skipped; tests/test_cuda_emulated.py then stands in."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from promise import assert_kept
from test_pooling import assert_right, calls

import fastconv
from fastconv import pooling_reference
from fastconv.arrays import named_dtype
from fastconv.dispatch import choose
from fastconv.gpu import implicit_gemm, implicit_gemm_hopper, runtime, tensor_cores, transfers
from fastconv.gpu.runtime import why_no_gpu
from fastconv.offloading import Offloaded
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms
from fastconv.sampling import random_layout, random_operands, random_problem

ALGORITHMS = {algorithm.name: algorithm for algorithm in algorithms("gpu")}
WITH_EACH = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())


@pytest.fixture(scope="module")
def cupy():
    """CuPy, where there is a GPU."""
    reason = why_no_gpu()
    if reason:
        pytest.skip(reason)
    return pytest.importorskip("cupy")


def test_numpy_operands_beside_cupys_are_refused_by_name(cupy):
    x, w = cupy.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 1, 3, 3), np.float32)
    with pytest.raises(TypeError, match="w is a numpy array on the cpu, but x is a cupy array on the gpu"):
        fastconv.conv2d(x, w)
    with pytest.raises(TypeError, match="w is a cupy array on the gpu, but x is a numpy array on the cpu"):
        fastconv.conv2d(x.get(), cupy.asarray(w))


def has(cupy, dtype):
    """Whether CuPy has a dtype: bfloat16 since version 14."""
    return dtype != "bfloat16" or int(cupy.__version__.split(".")[0]) >= 14


def apply(cupy, algorithm, problem, operands, rng):
    """Run an algorithm on device copies, in any memory layout, of the operands; a NumPy result."""
    a, b, residual = (
        v if v is None else random_layout(cupy.asarray(v), rng) for v in (operands[0], operands[1], operands[3])
    )
    bias = None if operands[2] is None else cupy.asarray(operands[2])
    out = cupy.full(problem.result_shape, 77, named_dtype(problem.result_dtype))
    algorithm.apply(problem, a, b, out, bias, residual)
    return out.get()


@WITH_EACH
@pytest.mark.parametrize("block", range(4))
def test_random_problems(cupy, algorithm, block):
    check_random_problems(cupy, algorithm, range(100 * block, 100 * block + 100))


@WITH_EACH
def test_a_few_random_problems(cupy, algorithm):
    """What ``bench/gpu_check.sh`` runs under compute-sanitizer, which takes its time."""
    check_random_problems(cupy, algorithm, range(12))


def check_random_problems(cupy, algorithm, seeds):
    ran = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        problem = random_problem(rng)
        operands = random_operands(problem, rng)
        if not has(cupy, problem.dtype) or algorithm.why_not(problem) is not None:
            continue
        result = apply(cupy, algorithm, problem, operands, rng)
        assert_kept(algorithm, problem, result, *operands)
        ran += 1
    if not ran:
        pytest.skip(f"{algorithm.name} takes none of these")


@WITH_EACH
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int8"])
def test_layers_large_enough_for_every_tile(cupy, algorithm, channels_last, dtype):
    rng = np.random.default_rng(1)
    for channels, outputs, size in ((64, 128, 180), (8, 24, 180), (32, 64, 20)):
        x_shape = (1, size, size, channels) if channels_last else (1, channels, size, size)
        problem = ConvProblem.forward(
            2, x_shape, (outputs, channels, 3, 3), dtype=dtype, padding=1, bias=True, activation="relu",
            data_format="channels_last" if channels_last else "channels_first",
        )  # fmt: skip
        if algorithm.why_not(problem) is not None:
            pytest.skip(algorithm.why_not(problem))
        if not has(cupy, dtype):
            pytest.skip("this CuPy has no bfloat16")
        a, b, bias, _ = random_operands(problem, rng)
        out = cupy.empty(problem.result_shape, named_dtype(problem.result_dtype))
        algorithm.apply(problem, cupy.asarray(a), cupy.asarray(b), out, cupy.asarray(bias))
        assert_kept(algorithm, problem, out.get(), a, b, bias)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "uint8"])
def test_every_tensor_core_kernel_agrees_with_direct(cupy, dtype):
    """All tiles and all ways to read the input, also those that no problem here would choose."""
    if not has(cupy, dtype):
        pytest.skip("this CuPy has no bfloat16")
    for operands in (*tensor_cores.OPERANDS.values(), tensor_cores.TF32, tensor_cores.SPLIT_TF32):
        if operands.dtype == dtype and operands.capability <= runtime.runtime().capability():
            for gather in tensor_cores.gathers(operands):
                for tile in tensor_cores.tiles(operands, gather):
                    for splits in (1, 2):
                        assert implicit_gemm._is_right(operands, gather, tile, splits), (operands, gather, tile, splits)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_every_hopper_kernel_agrees_with_direct(cupy, dtype):
    if not has(cupy, dtype):
        pytest.skip("this CuPy has no bfloat16")
    problem = ConvProblem.forward(
        2, (1, 9, 9, 64), (64, 64, 3, 3), dtype=dtype, data_format="channels_last", precision="fast"
    )
    reason = ALGORITHMS["implicit_gemm_hopper"].why_not(problem)
    if reason is not None:
        pytest.skip(reason)
    for tile, axes in itertools.product(implicit_gemm_hopper._TILES, (3, 4, 5)):
        assert implicit_gemm_hopper._is_right(problem, tile, axes), (tile, axes)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sums_shared_by_blocks(cupy, dtype, channels_last):
    shape = (8, 56, 56, 64) if channels_last else (8, 64, 56, 56)
    forward = ConvProblem.forward(2, shape, (64, 64, 3, 3), dtype=dtype, padding=1,
                                  data_format="channels_last" if channels_last else "channels_first")  # fmt: skip
    problem = dataclasses.replace(forward, op="weight_grad")
    a, b, *_ = random_operands(problem, np.random.default_rng(1))
    results = []
    for _ in range(2):
        out = cupy.empty(problem.result_shape, dtype)
        ALGORITHMS["implicit_gemm"].apply(problem, cupy.asarray(a), cupy.asarray(b), out)
        results.append(out.get())
    assert_kept(ALGORITHMS["implicit_gemm"], problem, results[0], a, b)
    assert results[0].tobytes() == results[1].tobytes()


@WITH_EACH
def test_work_goes_to_the_current_stream(cupy, algorithm):
    problem = ConvProblem.forward(2, (4, 16, 64, 64), (16, 16, 3, 3), padding=1)
    a, b, *_ = random_operands(problem, np.random.default_rng(1))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        # The stream is kept busy, so what ran on another one would read operands that are not there yet.
        busy = cupy.ones((2048, 2048), np.float32)
        for _ in range(20):
            busy = busy @ busy * np.float32(1e-4)
        x, w = cupy.asarray(a) + busy[0, 0] * 0, cupy.asarray(b) + busy[0, 0] * 0
        out = cupy.zeros(problem.result_shape, np.float32)
        algorithm.apply(problem, x, w, out)
        result = out.get()
    assert_kept(algorithm, problem, result, a, b)


def test_functions_take_cupy_arrays(cupy):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 3, 20, 21), np.float32), rng.standard_normal((8, 3, 3, 3), np.float32)
    y = fastconv.conv2d(cupy.asarray(x), cupy.asarray(w), stride=2, padding=1, activation="relu")
    assert isinstance(y, cupy.ndarray)
    problem = ConvProblem.forward(2, x.shape, w.shape, stride=2, padding=1, activation="relu")
    assert_kept(choose(problem, "gpu"), problem, y.get(), x, w)
    back = fastconv.conv_transpose2d(y, cupy.asarray(w), stride=2, padding=1, output_padding=(1, 0))
    assert back.shape == x.shape


def test_numpy_arrays_can_be_sent_to_the_gpu(cupy):
    x, w = np.ones((1, 2, 9), np.float32), np.ones((3, 2, 4), np.float32)
    y = fastconv.conv1d(x, w, device="gpu")
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, np.full((1, 3, 6), 8))


@pytest.mark.parametrize("transposed", [False, True])
def test_numpy_arrays_go_to_the_gpu_in_chunks(cupy, transposed):
    """Chunks of a few images, several rounds of all lanes."""
    build = ConvProblem.transposed if transposed else ConvProblem.forward
    problem = build(2, (50, 8, 40, 40), (8, 8, 3, 3), padding=1, bias=True, residual=True, activation="relu")
    a, b, bias, residual = operands = random_operands(problem, np.random.default_rng(1))
    for images in (1, 4, 50, 64):
        result = Offloaded(problem, ALGORITHMS["direct"], images)(a, b, bias, residual)
        assert_kept(ALGORITHMS["direct"], problem, result, *operands)


def test_costs_of_copies_are_measured(cupy):
    found = transfers.measure(runtime.runtime().lanes(1)[0], cupy.empty)
    assert all(value > 0 for value in found)


@pytest.mark.parametrize("kind", ["max", "avg", "lp"])
def test_pooling(cupy, kind):
    @settings(max_examples=100)
    @given(call=calls(kind))
    def check(call):
        name, x, arguments, problem = call
        if has(cupy, problem.dtype):
            result = getattr(fastconv, name)(cupy.asarray(x), **arguments)
            # CUDA's powers are right to 4 units in the last place, 8 roundings: one for the sum, one for the root.
            assert_right(problem, result.get(), x, roundings=24)

    check()


@settings(max_examples=100)
@given(call=calls("max"), seed=st.integers(0, 2**16))
def test_indices_of_maxima_and_the_way_back(cupy, call, seed):
    name, x, arguments, problem = call
    assume("int" not in problem.dtype and problem.dtype != "bfloat16")
    _, indices = getattr(fastconv, name)(cupy.asarray(x), return_indices=True, **arguments)
    np.testing.assert_array_equal(indices.get(), pooling_reference.indices(problem, x))
    gradient = cupy.asarray(np.random.default_rng(seed).integers(-9, 9, indices.shape).astype(x.dtype))
    back = getattr(fastconv.grad, f"{name.removeprefix('adaptive_')}_input")
    data_format = arguments["data_format"]
    results = [back(x.shape, indices, gradient, data_format=data_format).get() for _ in range(2)]
    # Small integers, whose sums are exact.
    np.testing.assert_array_equal(results[0], pooling_reference.gradient(problem, x, gradient.get()).astype(x.dtype))
    assert results[0].tobytes() == results[1].tobytes()


def test_gradient_of_averages(cupy):
    gradient = np.random.default_rng(1).standard_normal((2, 3, 5, 6))
    expected = fastconv.grad.avg_pool2d_input((2, 3, 9, 11), gradient, 3, 2, 1)
    result = fastconv.grad.avg_pool2d_input((2, 3, 9, 11), cupy.asarray(gradient), 3, 2, 1)
    np.testing.assert_allclose(result.get(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_patches_as_columns_and_back(cupy, dtype):
    x = np.random.default_rng(1).integers(-9, 9, (2, 3, 10, 12)).astype(dtype)
    arguments = {"kernel_size": (3, 2), "dilation": (1, 2), "padding": (1, 0), "stride": (2, 1)}
    columns = fastconv.unfold(cupy.asarray(x), **arguments)
    np.testing.assert_array_equal(columns.get(), fastconv.unfold(x, **arguments))
    image = fastconv.fold(columns, (10, 12), **arguments)
    np.testing.assert_array_equal(image.get(), fastconv.fold(columns.get(), (10, 12), **arguments))


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@WITH_EACH
def test_a_volume_of_more_than_two_to_the_31_elements(cupy, algorithm, channels_last):
    """3-D half precision at 16 x 1282 x 722 x 124, where 32-bit offsets gave silently wrong results elsewhere."""
    channels, outputs, size = 16, 32, (1282, 722, 124)
    x_shape = (1, *size, channels) if channels_last else (1, channels, *size)
    problem = ConvProblem.forward(
        3, x_shape, (outputs, channels, 3, 3, 3), dtype="float16", padding=1, bias=True, activation="relu",
        data_format="NDHWC" if channels_last else "NCDHW",
    )  # fmt: skip
    if algorithm.why_not(problem) is not None:
        pytest.skip(algorithm.why_not(problem))
    if cupy.cuda.Device().mem_info[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free device memory")
    rng = np.random.default_rng(1)
    # Numbers of a long period that differ at distances of 2**31 and 2**32 elements, made in place.
    x = cupy.arange(channels * size[0] * size[1] * size[2], dtype=np.uint32)
    x = ((x * np.uint32(2654435761) >> np.uint32(24)).astype(np.float16) / 128 - 1).reshape(x_shape)
    w = (rng.standard_normal((outputs, channels, 3, 3, 3)) / 20).astype(np.float16)
    bias = rng.standard_normal(outputs, np.float32)
    y = cupy.full(problem.result_shape, np.nan, np.float16)
    algorithm.apply(problem, x, cupy.asarray(w), y, cupy.asarray(bias))
    # Slabs of the result, each from the slab of the input that it reads: at both ends, and where offsets pass 2**31.
    for first in (0, 585, 853, 1170, size[0] - 2):
        low, high = max(first - 1, 0), min(first + 3, size[0])
        slab, result = ((v[:, low:high, :40] if channels_last else v[:, :, low:high, :40]).get() for v in (x, y))
        own = ConvProblem.forward(
            3, slab.shape, w.shape, dtype="float16", padding=((first == 0, first == size[0] - 2), (1, 0), (1, 1)),
            bias=True, activation="relu", data_format="NDHWC" if channels_last else "NCDHW",
        )  # fmt: skip
        inner = slice(first - low, first - low + own.out_size[0])
        part = result[:, inner, : own.out_size[1]] if channels_last else result[:, :, inner, : own.out_size[1]]
        assert_kept(algorithm, own, part, slab, w, bias)
    assert not bool(cupy.isnan(y.ravel()[:: 1 << 12]).any())
    del x, y
    cupy.get_default_memory_pool().free_all_blocks()


@pytest.mark.slow
@WITH_EACH
def test_more_than_two_to_the_31_elements(cupy, algorithm):
    length = 3 << 28
    problem = ConvProblem.forward(1, (3, 1, length), (1, 1, 3), dtype="float16", padding=1)
    if cupy.cuda.Device().mem_info[0] < 12 << 30:
        pytest.skip("needs 12 GiB of free device memory")
    x = (cupy.arange(3 * length, dtype=np.int64) % 61).astype(np.float16).reshape(3, 1, length)
    w = cupy.asarray([[[1, 2, -1]]], np.float16)
    y = cupy.full_like(x, np.nan)
    algorithm.apply(problem, x, w, y)
    for image in range(3):
        for start in (0, length // 2, length - 1000):
            piece = np.pad(x[image, 0, max(start - 1, 0) : start + 1001].get().astype(np.float32),
                           (start == 0, start + 1000 == length))  # fmt: skip
            expected = piece[:-2] + 2 * piece[1:-1] - piece[2:]  # small integers: exact
            np.testing.assert_array_equal(y[image, 0, start : start + 1000].get(), expected)
    del x, y
    cupy.get_default_memory_pool().free_all_blocks()
