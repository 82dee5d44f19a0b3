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


MATRICES = (
    program("mma.cuh") + "struct Params { const unsigned char* a; const unsigned char* b; unsigned char* out; };\n"
)


def run_warp(emulated, body, a, b, out, shared_bytes=0, threads=32):
    """Run a kernel body for a block of one warp, or more, on two arrays and a result, which are its a, b and out."""
    params = np.array([array.ctypes.data for array in (a, b, out)], np.int64)
    text = f'{MATRICES}extern "C" __global__ void kernel(const Params p) {{ {body} }}\n'
    emulated.launch_text(text, "kernel", (1, 1, 1), (threads, 1, 1), params, shared_bytes=shared_bytes)
    return out


# Fragments as the PTX ISA lays them out: the rows and columns that lane 4 * g + t holds.
LANE = np.arange(32)
G, T = LANE // 4, LANE % 4


def fragment_a(matrix):
    """Registers a[0..3] of each lane, of a 16 x 32-byte matrix: rows g and g + 8, then the second 16 bytes of both."""
    words = matrix.view(np.uint32).reshape(16, 8)
    return np.stack([words[G + 8 * (i % 2), T + 4 * (i // 2)] for i in range(4)], axis=1)


def fragment_b(matrix):
    """Registers b[0..1] of each lane, of a matrix whose 8 columns are the rows of an 8 x 32-byte array."""
    words = matrix.view(np.uint32).reshape(8, 8)
    return np.stack([words[G, T], words[G, T + 4]], axis=1)


def unfragment_c(registers):
    """The 16 x 8 matrix of which each lane holds c[0..3]."""
    matrix = np.empty((16, 8), registers.dtype)
    for i in range(4):
        matrix[G + 8 * (i // 2), 2 * T + i % 2] = registers[:, i]
    return matrix


# Each lane's registers of a and b, one after another, and its sums, to which it adds the product.
PRODUCT = """const unsigned* r = (const unsigned*)p.a + 6 * threadIdx.x;
{sum}* c = ({sum}*)p.out + 4 * threadIdx.x;
const unsigned a[4] = {{r[0], r[1], r[2], r[3]}}, b[2] = {{r[4], r[5]}};
{sum} sums[4] = {{c[0], c[1], c[2], c[3]}};
mma_{name}(sums, a, b);
for (int i = 0; i < 4; ++i) c[i] = sums[i];"""


@pytest.mark.parametrize("name", ["f16", "bf16", "tf32", "s8"])
def test_matrix_products_of_a_warp(emulated, name):
    storage = {"f16": np.float16, "bf16": np.float32, "tf32": np.float32, "s8": np.int8}[name]
    depth = {"f16": 16, "bf16": 16, "tf32": 8, "s8": 32}[name]
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(-9, 10, size=s) for s in ((16, depth), (8, depth), (16, 8)))
    operands = [m.astype(storage) for m in (a, b)]
    if name == "bf16":  # small integers: the upper half of a float32
        operands = [(m.view(np.uint32) >> 16).astype(np.uint16) for m in operands]
    registers = np.concatenate([fragment_a(operands[0]), fragment_b(operands[1])], axis=1).copy()
    result = np.int32 if name == "s8" else np.float32
    sums = np.empty((32, 4), result)
    for i in range(4):
        sums[:, i] = c[G + 8 * (i // 2), 2 * T + i % 2]
    body = PRODUCT.format(sum="int" if name == "s8" else "float", name=name)
    run_warp(emulated, body, registers, registers, sums)
    np.testing.assert_array_equal(unfragment_c(sums), a @ b.T + c)


def test_products_on_tensor_cores_are_exact_and_their_sums_truncated(emulated):
    """1 + 2^-24 + ... in one instruction: the sum is exact until it is cut off, and is not rounded up."""
    a, b = np.zeros((16, 16), np.float16), np.zeros((8, 16), np.float16)
    a[:, 0], b[:, 0] = 1, 1
    a[:, 1:4], b[:, 1:4] = 2.0**-12, 2.0**-12  # 1 + 3 * 2^-24 lies between 1 + 2^-23 and 1 + 2^-22
    registers = np.concatenate([fragment_a(a), fragment_b(b)], axis=1).copy()
    sums = np.zeros((32, 4), np.float32)
    body = PRODUCT.format(sum="float", name="f16")
    run_warp(emulated, body, registers, registers, sums)
    np.testing.assert_array_equal(sums, np.float32(1 + 2.0**-23))


def test_matrices_come_from_shared_memory_as_fragments(emulated):
    """Lane i names row i % 8 of matrix i / 8; every lane gets four bytes of a row of each, wherever the rows lie."""
    a = np.random.default_rng(1).integers(256, size=(32, 16), dtype=np.uint8)
    out = np.zeros((32, 4), np.uint32)
    body = """unsigned char* row = dynamic_shared + (threadIdx.x * 7 % 32) * 48;
    for (int i = 0; i < 16; ++i) row[i] = p.a[16 * threadIdx.x + i];
    __syncwarp();
    unsigned r[4]; load_matrices(r, row);
    for (int i = 0; i < 4; ++i) ((unsigned*)p.out)[4 * threadIdx.x + i] = r[i];"""
    run_warp(emulated, body, a, a, out, shared_bytes=32 * 48)
    expected = a.view(np.uint32).reshape(4, 8, 4)  # matrix, row, word
    np.testing.assert_array_equal(out, expected[:, G, T].T)


def test_matrices_must_be_aligned(emulated):
    body = "unsigned r[4]; load_matrices(r, dynamic_shared + 16 * threadIdx.x + 8);"
    with pytest.raises(RuntimeError, match=r"thread \d+: ldmatrix from an address that is no multiple of 16"):
        run_warp(emulated, body, *(np.zeros(1),) * 3, shared_bytes=1024)


COPY = """int* shared = (int*)dynamic_shared + threadIdx.x; int* out = (int*)p.out + threadIdx.x;
const int* in = (const int*)p.a + threadIdx.x;"""


def test_asynchronous_copies_arrive_when_waited_for(emulated):
    """Waiting for all groups but the last brings the first; what is under way is NaN, or -1."""
    a, out = np.arange(64, dtype=np.int32), np.zeros(96, np.int32)
    body = (
        COPY
        + """
    copy_async<4>(shared, in, true); commit_copies(); copy_async<4>(shared + 32, in + 32, true); commit_copies();
    out[0] = shared[0]; wait_for_copies<1>(); out[32] = shared[0]; out[64] = shared[32]; wait_for_copies<0>();"""
    )
    run_warp(emulated, body, a, a, out, shared_bytes=256)
    np.testing.assert_array_equal(out.reshape(3, 32), [[-1] * 32, range(32), [-1] * 32])


def test_an_empty_group_counts(emulated):
    a, out = np.arange(32, dtype=np.int32), np.zeros(32, np.int32)
    body = (
        COPY
        + """
    copy_async<4>(shared, in, true); commit_copies(); commit_copies(); wait_for_copies<1>(); out[0] = shared[0];"""
    )
    np.testing.assert_array_equal(run_warp(emulated, body, a, a, out, shared_bytes=128), a)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies_fill_with_zeros(emulated, size):
    """What is not inside is not read: its address may be anything."""
    a = np.random.default_rng(1).integers(1, 256, size=(32, size), dtype=np.uint8)
    out = np.ones_like(a)
    body = f"""const bool inside = threadIdx.x % 3; unsigned char* shared = dynamic_shared + {size} * threadIdx.x;
    copy_async<{size}>(shared, inside ? p.a + {size} * threadIdx.x : (const unsigned char*)1, inside);
    commit_copies(); wait_for_copies<0>();
    for (int i = 0; i < {size}; ++i) p.out[{size} * threadIdx.x + i] = shared[i];"""
    run_warp(emulated, body, a, a, out, shared_bytes=32 * size)
    np.testing.assert_array_equal(out, np.where(LANE[:, None] % 3, a, 0))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("copy_async<16>(dynamic_shared + 8, p.a, true); wait_for_copies<0>();", "no multiples of its size"),
        ("copy_async<8>(dynamic_shared, p.a + 4, true); wait_for_copies<0>();", "no multiples of its size"),
        ("copy_async<4>(dynamic_shared, p.a, true); commit_copies();", "ended before its asynchronous copies did"),
        ("dynamic_shared[64] = 1;", "wrote beyond the dynamic shared memory"),
    ],
)
def test_what_an_asynchronous_copy_must_not_do(emulated, body, message):
    a = np.zeros(8, np.float64)
    with pytest.raises(RuntimeError, match=message):
        run_warp(emulated, body, a, a, a, shared_bytes=64, threads=1)


def test_rows_of_a_tile_meet_no_bank_twice(emulated):
    """Every chunk has its own place, and the 8 that one instruction phase touches lie in different banks."""
    at = np.zeros((64, 4), np.int32)
    body = "for (int i = threadIdx.x; i < 256; i += 32) ((int*)p.out)[i] = swizzled(i / 4, i % 4);"
    run_warp(emulated, body, at, at, at)
    assert sorted(at.ravel()) == list(range(0, 64 * 64, 16))
    banks = at // 16 % 8
    for chunk in range(4):  # ldmatrix and transposing stores: one chunk of 8 neighbouring rows
        assert all(len(set(banks[row : row + 8, chunk])) == 8 for row in range(0, 64, 8))
    assert all(len(set(banks[row : row + 2].ravel())) == 8 for row in range(0, 64, 2))  # copies: two whole rows


def test_rounding_to_tf32(emulated):
    bits = np.random.default_rng(1).integers(1 << 32, size=20_000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([np.nan, np.inf, -np.inf, 1 + 2.0**-11, -1 - 2.0**-11])])
    values = np.pad(values, (0, -len(values) % 64))
    with np.errstate(all="ignore"):
        wide = np.float64(values)
        _, exponent = np.frexp(wide)
        normal = np.abs(wide) >= 2.0**-126
        unit = np.ldexp(1.0, np.where(normal, exponent, -125) - 11)
        expected = (np.sign(wide) * np.floor(np.abs(wide) / unit + 0.5) * unit).astype(np.float32)
        expected = np.where(np.isfinite(wide), expected, values)
    body = "for (int i = threadIdx.x; i < {}; i += 64) p.out[i] = round_to_tf32(p.in[i]);"
    result = run(emulated, body.format(len(values)), values, prelude=program("mma.cuh") + POINTERS)
    np.testing.assert_array_equal(result, expected)
