"""The emulator itself: shuffles, barriers, shared memory, conversions, and that it reports what a GPU would hang on."""

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler

from fastconv.gpu.source import program

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")

POINTERS = "struct Params { const float* in; float* out; };\n"


@pytest.fixture(scope="module")
def emulated():
    return EmulatedRuntime()


def run(emulated, body, values, block=64, grid=1, prelude=POINTERS):
    """Run a kernel body on an array and give what it wrote, one element for each it read."""
    values = np.asarray(values, np.float32)
    out = np.full_like(values, np.nan)
    params = np.array([values.ctypes.data, out.ctypes.data], np.int64)
    text = f'{prelude}extern "C" __global__ void kernel(const Params p) {{ {body} }}\n'
    emulated.launch_text(text, "kernel", (grid, 1, 1), (block, 1, 1), params)
    return out


def test_blocks_and_threads_are_numbered(emulated):
    out = run(emulated, "const int i = blockIdx.x * blockDim.x + threadIdx.x; p.out[i] = p.in[i] + gridDim.x;",
              np.arange(192), block=64, grid=3)  # fmt: skip
    np.testing.assert_array_equal(out, np.arange(192) + 3)


def test_shuffles_stay_in_their_warp(emulated):
    values = np.random.default_rng(1).integers(100, size=64)
    reduce = "float v = p.in[threadIdx.x]; for (int m = 16; m; m /= 2) v += __shfl_xor_sync(0xffffffff, v, m); "
    out = run(emulated, reduce + "p.out[threadIdx.x] = v;", values)
    np.testing.assert_array_equal(out, values.reshape(2, 32).sum(axis=1).repeat(32))
    out = run(emulated, "p.out[threadIdx.x] = __shfl_down_sync(0xffffffff, p.in[threadIdx.x], 1);", values)
    expected = np.concatenate([values[1:32], values[31:32], values[33:], values[63:]])  # the last lane keeps its own
    np.testing.assert_array_equal(out, expected)


def test_shared_memory_passes_a_barrier(emulated):
    body = "__shared__ float s[64]; s[threadIdx.x] = p.in[threadIdx.x]; {} p.out[threadIdx.x] = s[63 - threadIdx.x];"
    np.testing.assert_array_equal(run(emulated, body.format("__syncthreads();"), np.arange(64)), np.arange(64)[::-1])
    assert np.isnan(run(emulated, body.format(""), np.arange(64))).any(), "a missing barrier must show"


def test_later_blocks_do_not_see_shared_memory_of_earlier_ones(emulated):
    body = "__shared__ float s; if (blockIdx.x == 0) s = 1; __syncthreads(); p.out[blockIdx.x] = s;"
    assert np.isnan(run(emulated, body, np.zeros(2), grid=2)[1])


@pytest.mark.parametrize(
    "body",
    [
        "if (threadIdx.x < 40) __syncthreads();",
        "if (threadIdx.x % 2) __syncwarp();",
        "if (threadIdx.x % 2)\n __syncthreads();\n else\n __syncthreads();",
        "if (threadIdx.x < 16) __syncthreads(); else __syncwarp();",
    ],
)
def test_a_divergent_barrier_is_an_error(emulated, body):
    with pytest.raises(RuntimeError, match=r"divergent barrier in block \(0, 0, 0\)"):
        run(emulated, body, np.zeros(64))
    np.testing.assert_array_equal(run(emulated, "__syncthreads(); p.out[threadIdx.x] = 1;", np.zeros(64)), np.ones(64))


def test_parameters_of_the_wrong_size_are_an_error(emulated):
    with pytest.raises(RuntimeError, match="the host sends 16 bytes of parameters, the kernel takes 4"):
        run(emulated, "", np.zeros(1), prelude="struct Params { int one; };\n")


CONVERSIONS = program("types.cuh") + POINTERS


def test_half_precision_converts_as_numpy_does(emulated):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        wide = halves.astype(np.float32)
        middles = (wide[:-1] + wide[1:]) / 2  # ties, where they are neighbours
        special = np.float32([1e9, 65519.99, 65520, 2**-25, 2**-24.5, np.inf, -np.inf, np.nan])
        values = np.concatenate([wide, middles, np.nextafter(middles, np.float32(np.inf)), special])
        expected = values.astype(np.float16).astype(np.float32)
    body = "for (int i = threadIdx.x; i < {}; i += 64) {{ float16 h; store(h, p.in[i]); p.out[i] = load(h); }}"
    np.testing.assert_array_equal(run(emulated, body.format(len(values)), values, prelude=CONVERSIONS), expected)


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan(emulated):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits = np.random.default_rng(1).integers(1 << 32, size=20_000, dtype=np.uint32)
    ties = np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000
    values = np.concatenate([bits, ties, np.uint32([0x7F800001, 0xFF800001])]).view(np.float32)
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    body = "for (int i = threadIdx.x; i < {}; i += 64) {{ bfloat16 h; store(h, p.in[i]); p.out[i] = load(h); }}"
    np.testing.assert_array_equal(run(emulated, body.format(len(values)), values, prelude=CONVERSIONS), expected)
