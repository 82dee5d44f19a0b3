"""The emulated parts of Hopper: barriers that count bytes, the copy engine, and products of a warpgroup.

Expected values come from index arithmetic in NumPy, from the definitions in the PTX ISA.
"""

import itertools

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler

from fastconv.gpu.source import program
from fastconv.gpu.tensor_maps import Boxes, Pixels

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")

PRELUDE = (
    program("wgmma.cuh")
    + "struct Params { TensorMap map; const unsigned char* in; unsigned char* out; long long n[6]; };\n"
)


@pytest.fixture(scope="module")
def emulated():
    return EmulatedRuntime()


def run(emulated, body, out, source=None, tensor=None, shared_bytes=0, threads=32):
    """Run a kernel body for one block."""
    words = (0,) * 16 if tensor is None else emulated.encode(tensor)
    source = np.zeros(1) if source is None else source
    params = np.array([*words, source.ctypes.data, out.ctypes.data, *(0,) * 6], np.int64)
    text = f'{PRELUDE}extern "C" __global__ void kernel(const __grid_constant__ Params p) {{ {body} }}\n'
    emulated.launch_text(text, "kernel", (1, 1, 1), (threads, 1, 1), params, shared_bytes=shared_bytes)
    return out


BARRIER = (
    "Barrier& barrier = *(Barrier*)dynamic_shared; if (threadIdx.x == 0) make_barrier(barrier, {}); __syncthreads();"
)


def test_a_phase_ends_when_all_have_arrived(emulated):
    """Warp 1 waits for both phases; what warp 0 wrote before each is there."""
    body = (
        BARRIER.format(32)
        + """
    volatile int* shared = (int*)dynamic_shared + 32; int* out = (int*)p.out;
    if (threadIdx.x < 32) {
        shared[threadIdx.x] = threadIdx.x; arrive(barrier);
        wait_for_phase(barrier, 0); shared[32 + threadIdx.x] = 100; arrive(barrier);
    } else {
        wait_for_phase(barrier, 0); out[threadIdx.x - 32] = shared[63 - threadIdx.x];
        wait_for_phase(barrier, 1); out[threadIdx.x] = shared[95 - threadIdx.x];
    }"""
    )
    out = run(emulated, body, np.zeros(64, np.int32), shared_bytes=1024, threads=64)
    np.testing.assert_array_equal(out, [*range(31, -1, -1), *[100] * 32])


def test_of_a_new_barrier_the_odd_phase_has_ended(emulated):
    run(emulated, BARRIER.format(1) + "wait_for_phase(barrier, 1);", np.zeros(1), shared_bytes=1024)
    with pytest.raises(RuntimeError, match="thread 0 is waiting for a phase"):
        run(emulated, BARRIER.format(1) + "wait_for_phase(barrier, 0);", np.zeros(1), shared_bytes=1024)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("arrive(*(Barrier*)dynamic_shared);", "a barrier is used that nobody made"),
        (BARRIER.format(1) + "arrive_expecting(barrier, 16); wait_for_phase(barrier, 0);", "more threads arrive"),
        (BARRIER.format(33) + "arrive(barrier); wait_for_phase(barrier, 0);", "waiting for a phase"),
        (BARRIER.format(32) + "arrive_expecting(barrier, 1 << 20);", r"fewer than 2\^20 bytes"),
        (BARRIER.format(32) + "arrive_expecting(barrier, 16); wait_for_phase(barrier, 0);", "waiting for a phase"),
        ("copy_box(dynamic_shared, p.map, *(Barrier*)dynamic_shared, 0, 0, 0);", "no tensor map"),
    ],
)
def test_what_barriers_must_not_do(emulated, body, message):
    here = np.zeros(16, np.int64)
    with pytest.raises(RuntimeError, match=message):
        run(emulated, body.replace("p.map", "*(const TensorMap*)&p.in"), np.zeros(1), here, shared_bytes=1024)


# One thread copies, all read the tile, undoing the swizzle.
COPY = """Barrier& barrier = *(Barrier*)(dynamic_shared + {bytes});
if (threadIdx.x == 0) {{ make_barrier(barrier, 1); publish_barriers(); }}
__syncthreads();
if (threadIdx.x == 0) {{ arrive_expecting(barrier, {bytes}); {copy} }}
wait_for_phase(barrier, 0);
for (int i = threadIdx.x; i < {bytes} / 16; i += 32) {{
    const int row = i / 8, chunk = (i ^ row) % 8;
    for (int b = 0; b < 16; ++b) p.out[i * 16 + b] = dynamic_shared[row * 128 + chunk * 16 + b];
}}"""


def copied(emulated, tensor, rows, copy):
    """The tile that a copy brings, as rows of halves."""
    size = rows * 128
    body = COPY.format(bytes=size, copy=copy)
    return run(emulated, body, np.zeros((rows, 64), np.float16), tensor=tensor, shared_bytes=size + 8)


def test_a_box_is_copied_and_filled_up_with_zeros(emulated):
    array = np.random.default_rng(1).standard_normal((5, 3, 72)).astype(np.float16)
    tensor = Boxes("float16", array.ctypes.data, array.shape[::-1], array.strides[1::-1], (64, 1, 8))
    padded = np.pad(array, ((0, 8), (0, 0), (0, 64)))
    for channel, tap, row in ((0, 0, 0), (64, 2, 0), (64, 1, 4)):
        tile = copied(emulated, tensor, 8, f"copy_box(dynamic_shared, p.map, barrier, {channel}, {tap}, {row});")
        np.testing.assert_array_equal(tile, padded[row : row + 8, tap, channel : channel + 64])


GEOMETRIES = {
    "one axis": ((11,), (2,), (3,), (2,), (1, 1)),
    "two axes": ((6, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    "two axes, strided and dilated": ((9, 8), (3, 2), (2, 3), (2, 1), (1, 2)),
    "three axes": ((4, 5, 3), (2, 3, 2), (1, 2, 1), (1, 1, 1), (0, 1)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_pixels_are_those_of_a_convolution(emulated, name):
    """Every tap of a tile that begins in the middle of an image and runs past the end of the last one."""
    sizes, kernel, strides, dilations, padding = GEOMETRIES[name]
    axes, rng = len(sizes), np.random.default_rng(1)
    x = rng.standard_normal((2, *sizes, 72)).astype(np.float16)
    padded = np.pad(x, ((0, 0), *(padding,) * axes, (0, 64)))
    counts = [(n + sum(padding) - (k - 1) * d - 1) // s + 1
              for n, k, d, s in zip(sizes, kernel, dilations, strides, strict=True)]  # fmt: skip
    upper = [(c - 1) * s - padding[0] - (n - 1) for c, s, n in zip(counts, strides, sizes, strict=True)]
    tensor = Pixels(
        "float16", x.ctypes.data, x.shape[::-1], x.strides[-2::-1], (64, 40), (-padding[0],) * axes,
        tuple(upper[::-1]), (1, *strides[::-1], 1),
    )  # fmt: skip
    targets = list(itertools.product(range(2), *map(range, counts)))
    first = len(targets) // 3
    n, *at = targets[first]
    corner = [t * s - padding[0] for t, s in zip(at, strides, strict=True)][::-1]
    for tap in itertools.product(*map(range, kernel)):
        away = [k * d for k, d in zip(tap, dilations, strict=True)]
        lists = (",".join(map(str, numbers)) for numbers in (corner, away[::-1]))
        copy = f"Pixel pixel = {{{{{next(lists)}}}, {n}, {{{next(lists)}}}}};"
        copy += f"copy_pixels(dynamic_shared, p.map, barrier, {axes + 2}, 64, pixel);"
        expected = np.zeros((40, 64), np.float16)
        for row, (image, *target) in zip(range(40), targets[first:], strict=False):
            source = [t * s + a for t, s, a in zip(target, strides, away, strict=True)]
            expected[row] = padded[(image, *source)][64:128]
        np.testing.assert_array_equal(copied(emulated, tensor, 40, copy), expected)


def test_a_copy_arrives_when_waited_for(emulated):
    array = np.ones((1, 1, 64), np.float16)
    tensor = Boxes("float16", array.ctypes.data, (64, 1, 1), (128, 128), (64, 1, 1))
    body = """Barrier& barrier = *(Barrier*)(dynamic_shared + 128);
    unsigned short& first = *(unsigned short*)dynamic_shared; unsigned short* out = (unsigned short*)p.out;
    make_barrier(barrier, 1); first = 7;
    arrive_expecting(barrier, 128); copy_box(dynamic_shared, p.map, barrier, 0, 0, 0);
    out[0] = first; wait_for_phase(barrier, 0); out[1] = first;"""
    out = run(emulated, body, np.zeros(2, np.float16), tensor=tensor, shared_bytes=256, threads=1)
    assert np.isnan(out[0]) and out[1] == 1
    with pytest.raises(RuntimeError, match="ended before a copy arrived"):
        run(emulated, body.replace("wait_for_phase(barrier, 0);", ""), out, tensor=tensor, shared_bytes=256, threads=1)
    with pytest.raises(RuntimeError, match="no multiple of 1024"):
        run(emulated, body.replace("copy_box(dynamic_shared,", "copy_box(dynamic_shared + 128,"), out, tensor=tensor,
            shared_bytes=256, threads=1)  # fmt: skip


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("address", {"address": 8}),
        ("strides", {"strides": (130, 260)}),
        ("strides", {"strides": (-128, 128)}),
        ("sizes", {"sizes": (64, 0, 1)}),
        ("box", {"box": (64, 1, 257)}),
        ("row", {"box": (128, 1, 1)}),
    ],
)
def test_maps_that_the_driver_refuses(emulated, what, changes):
    good = {"dtype": "float16", "address": 0, "sizes": (64, 1, 1), "strides": (128, 128), "box": (64, 1, 1)}
    emulated.encode(Boxes(**good))
    with pytest.raises(ValueError, match=f"refuses the {what}"):
        emulated.encode(Boxes(**{**good, **changes}))


def test_corners_that_the_driver_refuses(emulated):
    def pixels(axes, lower, upper=0, step=1):
        return Pixels("float16", 0, (64, *(9,) * (axes - 2), 1), (128,) * (axes - 1), (64, 8), (lower,) * (axes - 2),
                      (upper,) * (axes - 2), (1, *(step,) * (axes - 2), 1))  # fmt: skip

    for axes, limit in ((3, 1 << 15), (4, 128), (5, 16)):
        emulated.encode(pixels(axes, -limit, -1))
        for refused in (pixels(axes, -limit - 1), pixels(axes, 0, limit)):
            with pytest.raises(ValueError, match="refuses the corners"):
                emulated.encode(refused)
    with pytest.raises(ValueError, match="refuses the area"):
        emulated.encode(pixels(4, 5, -5))
    with pytest.raises(ValueError, match="refuses the steps"):
        emulated.encode(pixels(4, 0, 0, step=9))


# -- products ---------------------------------------------------------------------------------------------------------

# Rows of 128 bytes are put where the swizzle has them, then the warpgroup multiplies all four quarters of a row.
PRODUCT = """for (int i = threadIdx.x; i < (64 + {columns}) * 8; i += 128)
    for (int b = 0; b < 16; ++b)
        dynamic_shared[i / 8 * 128 + (i ^ i / 8) % 8 * 16 + b] = p.in[i * 16 + b];
__syncthreads();
{sum} c[{columns} / 2]; {sum}* out = ({sum}*)p.out + threadIdx.x * {columns} / 2;
for (int i = 0; i < {columns} / 2; ++i) c[i] = out[i];
{begin}
for (int k = 0; k < 4; ++k)
    multiply(c, {a} + k * NEXT_PRODUCT, operand(dynamic_shared + 64 * 128) + k * NEXT_PRODUCT, {dtype}{{}});
commit_products(); {wait}
for (int i = 0; i < {columns} / 2; ++i) {{ receive(c[i]); out[i] = c[i]; }}"""

GOOD = {"begin": "begin_products();", "a": "operand(dynamic_shared)", "wait": "wait_for_products<0>();"}


def multiplied(emulated, dtype, columns, rows, sums, **changes):
    body = PRODUCT.format(
        columns=columns, dtype=dtype, sum="int" if dtype == "int8" else "float", **{**GOOD, **changes}
    )
    return run(emulated, body, sums, rows, shared_bytes=(64 + columns) * 128, threads=128)


def operands(dtype, columns):
    """Rows of both operands and the sums, all small integers, and what each thread has of the sums."""
    itemsize = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}[dtype]
    rng = np.random.default_rng(1)
    rows, sums = rng.integers(-9, 10, (64 + columns, 128 // itemsize)), rng.integers(-99, 100, (64, columns))
    storage = np.float32 if dtype == "bfloat16" else dtype
    memory = rows.astype(storage)
    if dtype == "bfloat16":  # small integers: the upper half of a float32
        memory = (memory.view(np.uint32) >> 16).astype(np.uint16)
    thread, i = np.arange(128)[:, None], np.arange(columns // 2)
    lane = thread % 32
    where = thread // 32 * 16 + lane // 4 + i // 2 % 2 * 8, i // 4 * 8 + lane % 4 * 2 + i % 2
    return rows, memory, sums, where


@pytest.mark.parametrize("columns", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_products_of_a_warpgroup(emulated, dtype, columns):
    rows, memory, sums, where = operands(dtype, columns)
    result = multiplied(
        emulated, dtype, columns, memory, sums[where].astype(np.int32 if dtype == "int8" else np.float32)
    )
    np.testing.assert_array_equal(result, (rows[:64] @ rows[64:].T + sums)[where])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"begin": ""}, "a product without begin_products"),
        ({"wait": ""}, "ended before its products did"),
        ({"a": "operand(dynamic_shared + threadIdx.x / 64 * 1024)"}, "name different operands"),
        ({"a": "(operand(dynamic_shared) & ~(3ull << 62))"}, "only the swizzle of 128 bytes"),
    ],
)
def test_what_products_must_not_do(emulated, changes, message):
    _, memory, _, _ = operands("float16", 64)
    with pytest.raises(RuntimeError, match=message):
        multiplied(emulated, "float16", 64, memory, np.zeros((128, 32), np.float32), **changes)


def test_sums_are_not_there_before_products_are_waited_for(emulated):
    _, memory, _, _ = operands("float16", 64)
    early = "out[0] = c[0]; out += 1; --out; float seen = c[0]; wait_for_products<0>(); c[0] = seen;"
    result = multiplied(emulated, "float16", 64, memory, np.zeros((128, 32), np.float32), wait=early)
    assert np.isnan(result[:, 0]).all() and not np.isnan(result[:, 1:]).any()


def test_a_descriptor_says_where_rows_are(emulated):
    """With another distance between sets of eight rows the product is of other rows."""
    rows, memory, sums, where = operands("float16", 128)
    start = sums[where].astype(np.float32)
    moved = "(operand(dynamic_shared) + (64ull << 32))"  # 2048 bytes instead of 1024
    result = multiplied(emulated, "float16", 128, memory, start, a=moved)
    picked = np.concatenate([rows[16 * i : 16 * i + 8] for i in range(8)])
    np.testing.assert_array_equal(result, (picked @ rows[64:].T + sums)[where])
