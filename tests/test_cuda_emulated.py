"""The CUDA kernels, compiled by the system's C++ compiler and run on the CPU, against the reference.

The host side is the one that a GPU gets: the same plans launch the same sources. Operands lie inside memory filled with
NaN, results inside memory that must not change, so reading or writing out of bounds shows.
"""

import dataclasses

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler
from promise import assert_kept

from fastconv import dispatch
from fastconv.arrays import named_dtype
from fastconv.compilation import variants
from fastconv.gpu import (
    arguments,
    depthwise,
    direct,
    gathering,
    im2col,
    implicit_gemm,
    implicit_gemm_hopper,
    patches,
    runtime,
    tiled,
    winograd,
)
from fastconv.gpu.pooling import POOLING, SCATTER
from fastconv.gpu.source import program
from fastconv.lowering import GEOMETRY, Views, lower
from fastconv.pooling_problem import WINDOW
from fastconv.problem import Activation, ConvProblem
from fastconv.registry import algorithms
from fastconv.sampling import random_operands, random_problem, random_values

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")

ALGORITHMS = {algorithm.name: algorithm for algorithm in algorithms("gpu")}
WITH_EACH = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())


@pytest.fixture(scope="module", autouse=True)
def emulated():
    """The kernels built for the CPU, and put in the GPU's place while this module runs.

    Those of `implicit_gemm` and its sibling are many, and are built when a test first asks for one.
    """
    emulated = EmulatedRuntime()
    ahead = (algorithm for name, algorithm in ALGORITHMS.items() if not name.startswith("implicit_gemm"))
    emulated.build(spec for algorithm in ahead for spec in algorithm.variants())
    with runtime.use(emulated), np.errstate(all="ignore"):
        yield emulated


def surrounded(array, filler, flips=()):
    """A copy of `array` whose neighbours in memory hold `filler`, and the whole buffer.

    The last axis gets room for a vector on each side, so that vectors stay aligned. `flips` are axes whose order in
    memory is reversed.
    """
    vector = max(16 // array.itemsize, 4)
    room = [(1, 1)] * (array.ndim - 1) + [(vector, vector)]
    buffer = np.full([n + lo + hi for n, (lo, hi) in zip(array.shape, room, strict=True)], filler, array.dtype)
    inside = buffer[tuple(slice(lo, lo + n) for n, (lo, _) in zip(array.shape, room, strict=True))]
    inside = inside[tuple(slice(None, None, -1 if axis in flips else 1) for axis in range(-array.ndim, 0))]
    inside[...] = array
    return inside, buffer


def poison(dtype):
    """What no kernel should read: NaN, or an integer that no sum of small ones hides."""
    dtype = named_dtype(dtype)
    return np.iinfo(dtype).max if dtype.kind in "iu" else np.nan


def apply(algorithm, problem, operands, flips=(), limit=64 << 20):
    """Run an algorithm with poison around all it reads, and check what lies around its result."""
    # One batch axis: merging two with room between them would copy, and a result must not be a copy.
    joined = dataclasses.replace(problem, batch_shape=(problem.batch,))
    shapes = (*joined.operand_shapes, None, joined.result_shape)
    a, b, bias, residual = (
        v if v is None else surrounded(v.reshape(shape or v.shape), poison(v.dtype.name), flips if shape else ())[0]
        for v, shape in zip(operands, shapes, strict=True)
    )
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    out, buffer = surrounded(np.full(joined.result_shape, 77, named_dtype(problem.result_dtype)), 78, flips)
    algorithm.apply(joined, a, b, out, bias, residual, limit)
    result = out.reshape(problem.result_shape).copy()
    out[...] = 78
    assert (buffer == 78).all(), "wrote outside of the result"
    return result


def check(algorithm, problem, operands, **options):
    """Hold an algorithm to its promise; what it declines is not its business."""
    if algorithm.why_not(problem) is None:
        result = apply(algorithm, problem, operands, **options)
        assert_kept(algorithm, problem, result, *operands)


@WITH_EACH
@pytest.mark.parametrize("block", range(8))
def test_random_problems(algorithm, block):
    for seed in range(100 * block, 100 * block + 100):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng)
        operands = random_operands(problem, rng)
        flips = [axis for axis in range(-4, 0) if rng.random() < 0.1]
        check(algorithm, problem, operands, flips=flips)


def finite_operands(problem):
    """Operands without NaN; unlike `random_operands` also for empty problems."""
    rng = np.random.default_rng(1)
    a, b = (random_values(shape, problem.dtype, rng) for shape in problem.operand_shapes)
    bias = random_values((problem.result_channels,), problem.accumulator_dtype, rng) if problem.bias else None
    residual = random_values(problem.result_shape, problem.result_dtype, rng) if problem.residual else None
    return a, b, bias, residual


def forward(x_shape, w_shape, **options):
    return ConvProblem.forward(len(w_shape) - 2, x_shape, w_shape, **options)


def transposed(x_shape, w_shape, **options):
    return ConvProblem.transposed(len(w_shape) - 2, x_shape, w_shape, **options)


def weight_grad(x_shape, w_shape, **options):
    return dataclasses.replace(forward(x_shape, w_shape, **options), op="weight_grad")


EDGES = {
    "one pixel out": forward((2, 5, 7, 7), (3, 5, 7, 7)),
    "one pixel in": forward((1, 3, 1, 1), (2, 3, 3, 3), padding=1),
    "kernel larger than input": forward((1, 2, 2, 3), (3, 2, 7, 5), padding=((3, 2), (1, 4))),
    "stride past the end": forward((1, 2, 5, 5), (2, 2, 1, 1), stride=9),
    "stride larger than kernel": forward((1, 2, 11, 13), (2, 2, 2, 2), stride=5),
    "dilation": forward((1, 4, 29), (4, 4, 3), dilation=13, padding=5),
    "primes": forward((3, 7, 17, 19), (11, 7, 5, 3), stride=(3, 2), padding=((1, 2), (0, 3)), dilation=(2, 1)),
    "prime channels last": forward((2, 17, 13, 7), (11, 7, 5, 3), data_format="NHWC", padding=2),
    "vectors of channels": forward((2, 9, 9, 8), (12, 8, 3, 3), data_format="NHWC", padding=1, bias=True),
    "vectors, padded by reflection": forward(
        (1, 9, 9, 8), (12, 8, 3, 3), data_format="NHWC", padding=2, padding_mode="reflect"
    ),
    "circular, all the way": forward((1, 2, 3, 4), (2, 2, 3, 4), padding=((3, 3), (4, 4)), padding_mode="circular"),
    "reflected to the far edge": forward((1, 2, 3, 4), (2, 2, 3, 4), padding=((2, 2), (3, 3)), padding_mode="reflect"),
    "replicated far out": forward((1, 2, 3, 4), (2, 2, 3, 4), padding=9, padding_mode="replicate"),
    "depthwise": forward((2, 33, 9, 9), (66, 1, 3, 3), groups=33, padding=1, bias=True, activation="relu"),
    "depthwise, 31 x 31": forward((1, 3, 20, 19), (3, 1, 31, 31), groups=3, padding=15),
    "depthwise, one dimension": forward((2, 9, 50), (9, 1, 7), groups=9, padding=3, dilation=2),
    "depthwise, three dimensions": forward((1, 5, 6, 7, 8), (10, 1, 3, 3, 3), groups=5, padding=1, stride=(1, 2, 1)),
    "three dimensions": forward((1, 3, 5, 6, 7), (4, 3, 2, 3, 4), padding=1, stride=(1, 2, 3), activation="gelu"),
    "causal": forward((2, 3, 20), (4, 3, 4), padding="causal", dilation=3),
    "empty batch": forward((0, 3, 5, 5), (4, 3, 3, 3)),
    "no input channels": forward((2, 0, 5, 5), (4, 0, 3, 3), bias=True, activation="sigmoid"),
    "no output channels": forward((2, 3, 5, 5), (0, 3, 3, 3)),
    "no pixels": forward((2, 3, 0, 5), (4, 3, 3, 3)),
    "transposed, stride beyond kernel": transposed((1, 3, 4, 4), (3, 5, 2, 2), stride=3, bias=True),
    "transposed, taps that no target meets": transposed((2, 4, 5, 6), (4, 3, 3, 4), stride=4, dilation=2, padding=1),
    "transposed, depthwise": transposed((1, 6, 7, 7), (6, 1, 4, 4), groups=6, stride=2, padding=1, activation="silu"),
    "transposed, one pixel in": transposed((1, 3, 1, 1), (3, 2, 4, 4), output_padding=0, residual=True),
    "transposed, empty batch": transposed((0, 3, 4, 4), (3, 5, 2, 2), stride=2),
    "weight gradient, long sum": weight_grad((3, 2, 31, 29), (4, 2, 3, 3), padding=1),
    "weight gradient, strided": weight_grad((2, 6, 15, 14), (4, 3, 3, 2), stride=(3, 2), groups=2, dilation=(1, 3)),
    "weight gradient, empty batch": weight_grad((0, 2, 9, 9), (4, 2, 3, 3)),
}  # fmt: skip


@WITH_EACH
@pytest.mark.parametrize("problem", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "complex64"])
def test_edges(algorithm, problem, dtype):
    if "float" not in dtype:
        problem = dataclasses.replace(problem, activation=Activation("none"))
    problem = dataclasses.replace(problem, dtype=dtype)
    check(algorithm, problem, finite_operands(problem))


@WITH_EACH
@pytest.mark.parametrize("kind", [*Activation.KINDS, "clip to one value"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_activations(algorithm, kind, dtype):
    act = Activation("clip", 0.25, 0.25) if kind == "clip to one value" else Activation(kind, 0.1, 1.5)
    problem = dataclasses.replace(forward((1, 1, 400), (3, 1, 1), dtype=dtype, bias=True), activation=act)
    x = np.linspace(-100, 100, 400)
    x[:7] = np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, 3e38
    w, bias = np.array([1, -1, 0.01]), np.array([0, 0, 1.0])
    check(algorithm, problem, (x.reshape(1, 1, 400).astype(dtype), w.reshape(3, 1, 1).astype(dtype),
                               bias.astype(problem.accumulator_dtype), None))  # fmt: skip


@WITH_EACH
@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_stays_in_its_receptive_field(algorithm, channels_last):
    x_shape = (1, 9, 10, 4) if channels_last else (1, 4, 9, 10)
    problem = forward(x_shape, (5, 4, 3, 3), padding=1, data_format="channels_last" if channels_last else "NCHW")
    a, b, *_ = finite_operands(problem)
    a[...] = 1
    a[(0, 4, 5, 2) if channels_last else (0, 2, 4, 5)] = np.nan
    y = apply(algorithm, problem, (a, b, None, None))
    expected = np.zeros((9, 10), bool)
    expected[3:6, 4:7] = True
    assert (np.isnan(y if channels_last else np.moveaxis(y, 1, -1)) == expected[None, :, :, None]).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_integers_wrap_round_and_clip_exactly(dtype):
    problem = forward((2, 33, 40), (3, 33, 1), dtype=dtype)
    limits, rng = np.iinfo(dtype), np.random.default_rng(1)
    operands = [rng.integers(limits.min, limits.max, s, dtype, endpoint=True) for s in problem.operand_shapes]
    check(ALGORITHMS["direct"], problem, (*operands, None, None))
    if dtype == "int64":
        large = 2**53 + 1  # no float64
        problem = forward((1, 1, 3), (1, 1, 1), dtype=dtype, activation=(0, large + 2))
        x = np.array([[[large, -large, large + 4]]])
        y = apply(ALGORITHMS["direct"], problem, (x, np.ones((1, 1, 1), dtype), None, None))
        assert y.ravel().tolist() == [large, 0, int(float(large + 2))]


@pytest.mark.parametrize("limit", [1 << 10, 1 << 12, 1 << 14, 1 << 16])
def test_im2col_in_small_tiles(limit):
    problem = forward((3, 12, 11, 13), (9, 4, 3, 3), groups=3, padding=1, bias=True, residual=True)
    algorithm = ALGORITHMS["im2col"]
    assert 0 < algorithm.workspace_bytes(problem, limit) <= limit
    check(algorithm, problem, finite_operands(problem), limit=limit)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_all_tiles_give_the_same_bits(monkeypatch, dtype, emulated):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    problems = [
        forward(
            (2, 9, 11, 16), (130, 16, 3, 3), dtype=dtype, data_format="NHWC", padding=1, bias=True, activation="silu"
        ),
        forward((2, 3, 15, 13), (70, 3, 3, 2), dtype=dtype, padding=2, padding_mode="replicate", residual=True),
        transposed((1, 6, 9, 10), (6, 35, 4, 4), dtype=dtype, stride=2, padding=1),
    ]
    emulated.launched.clear()
    for problem in problems:
        operands, results = finite_operands(problem), []
        for tile in tiled._TILES[dtype][0]:
            monkeypatch.setattr(tiled, "_best_tile", lambda piece, dtype, tile=tile: tile)
            check(ALGORITHMS["tiled"], problem, operands)
            results.append(apply(ALGORITHMS["tiled"], problem, operands).tobytes())
        assert len(set(results)) == 1
    assert emulated.launched == {s for s in ALGORITHMS["tiled"].variants() if ("STORAGE", dtype) in s.defines}


def test_tiles_fit_their_problems():
    def tile(*shapes, **options):
        return tiled._best_tile(lower(forward(*shapes, **options))[0], "float32")

    assert tile((32, 256, 56, 56), (256, 256, 3, 3), padding=1) == tiled._LARGE
    assert tile((32, 3, 224, 224), (32, 3, 3, 3), stride=2) == tiled._FLAT
    assert tile((1, 64, 14, 14), (64, 64, 3, 3)) == tiled._SMALL


@WITH_EACH
def test_equal_pack_keys_share_packed_weights(algorithm):
    small = transposed((1, 4, 5, 6), (4, 3, 3, 4), stride=2, padding=1)
    large = transposed((2, 4, 9, 8), (4, 3, 3, 4), stride=2, padding=1)
    plans = [algorithm.plan(problem, 64 << 20) for problem in (small, large)]
    assert plans[0].pack_key == plans[1].pack_key
    a, b, *_ = finite_operands(large)
    out, views = np.empty(large.result_shape, np.float32), Views(large)
    plans[1].run(views.source(a), plans[0].pack(Views(small).weight(b)), views.result(out), None, None)
    assert_kept(algorithm, large, out, a, b)


def test_every_kernel_has_run(emulated):
    """Every variant that can be asked for runs here, on a problem that asks for it."""
    emulated.launched.clear()
    for algorithm in (ALGORITHMS["direct"], ALGORITHMS["im2col"]):
        for dtype in {dict(spec.defines)["STORAGE"] for spec in algorithm.variants()}:
            if dtype == "bfloat16":
                pytest.importorskip("ml_dtypes")
            for problem in (forward((1, 2, 9), (2, 2, 3), dtype=dtype), forward((1, 40, 9), (2, 40, 3), dtype=dtype)):
                check(algorithm, problem, finite_operands(problem))
        assert set(algorithm.variants()) <= emulated.launched


STRIPS = {
    "columns along the row": ((2, 5, 29, 40), (5, 1, 3, 5), {"padding": (1, 2), "groups": 5}),
    "rows along the row": ((2, 5, 1, 300), (5, 1, 1, 31), {"padding": (0, 15), "groups": 5}),
    "few channels in a group": ((2, 24, 17, 15), (32, 3, 3, 3), {"groups": 8, "padding": 1}),
    "runs of every length": ((1, 3, 60, 12), (3, 1, 31, 3), {"padding": 1, "groups": 3}),
    "runs of every other row": ((1, 3, 60, 12), (3, 1, 9, 3), {"padding": 1, "groups": 3, "stride": (2, 1)}),
    "taps alone": ((1, 3, 40, 12), (3, 1, 5, 3), {"groups": 3, "stride": (3, 1), "dilation": (2, 1)}),
}


@pytest.mark.parametrize("rows", depthwise._ROWS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", STRIPS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_depthwise_in_strips_of_any_height(monkeypatch, emulated, dtype, name, channels_last, rows):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(depthwise, "_ROWS", (rows,))
    depthwise._cut.cache_clear()
    x, w, arguments = STRIPS[name]
    problem = dataclasses.replace(forward(x, w, dtype=dtype, bias=True, **arguments), channels_last=channels_last)
    emulated.launched.clear()
    check(ALGORITHMS["depthwise"], problem, finite_operands(problem))
    depthwise._cut.cache_clear()
    assert emulated.launched == {depthwise._spec(dtype, rows)}


class Captured(EmulatedRuntime):
    """A device whose stream is being captured."""

    def captured(self):
        return True


def test_no_kernel_is_checked_while_a_graph_is_captured():
    problem = forward((1, 8, 6, 6), (8, 8, 3, 3), dtype="float16")
    operands = finite_operands(problem)
    with runtime.use(Captured()), pytest.raises(RuntimeError, match="before the stream is captured"):
        apply(ALGORITHMS["implicit_gemm"], problem, operands)
    check(ALGORITHMS["implicit_gemm"], problem, operands)


class Gpus(EmulatedRuntime):
    """Several devices, of which one is current."""

    def __init__(self):
        super().__init__()
        self.current, self.uploads = 0, []

    def device(self):
        return self.current

    def upload(self, array):
        self.uploads.append(self.current)
        return super().upload(array)


def test_each_gpu_has_tables_and_checks_of_its_own():
    problem = forward((1, 8, 6, 6), (8, 8, 3, 3), dtype="float16")
    a, b, *_ = finite_operands(problem)
    out = np.empty(problem.result_shape, np.float16)
    with runtime.use(Gpus()) as gpus:
        execution = dispatch.Execution(problem, ALGORITHMS["implicit_gemm"])
        keys, checked, uploads = [], [], []
        for gpus.current in (0, 1, 0):
            gpus.launched.clear()
            gpus.uploads.clear()
            execution(a, b, out=out)
            keys.append(execution.pack_key())
            checked.append("direct.cu" in {spec.file for spec in gpus.launched})  # which it is compared with
            uploads.append(list(gpus.uploads))
            assert_kept(ALGORITHMS["implicit_gemm"], problem, out, a, b)
    assert checked == [True, True, False]
    assert uploads[0] and set(uploads[0]) == {0} and uploads[1] and set(uploads[1]) == {1} and not uploads[2]
    assert keys[0] == keys[2] != keys[1]


RECORDS = {
    "depthwise.cu": {"Depthwise": depthwise.DEPTHWISE},
    "direct.cu": {
        "Geometry": GEOMETRY, "View<float>": arguments.VIEW, "Epilogue": arguments.EPILOGUE, "Direct": direct.DIRECT,
    },
    "im2col.cu": {"Tile": im2col.TILE, "Pack<float>": im2col.PACK, "Unpack": im2col.UNPACK},
    "patches.cu": {"Pack<float>": im2col.PACK, "Fold": patches.FOLD},
    "implicit_gemm.cu": {"Divisor": gathering.DIVISOR, "ImplicitGemm": implicit_gemm.IMPLICIT_GEMM},
    "implicit_gemm_hopper.cu": {"ImplicitGemmHopper": implicit_gemm_hopper.IMPLICIT_GEMM_HOPPER},
    "pooling.cu": {"Window": WINDOW, "Pooling": POOLING},
    "scatter.cu": {"Scatter": SCATTER},
    "splits.cu": {"ImplicitGemm": implicit_gemm.IMPLICIT_GEMM},
    "tiled.cu": {"Tap": gathering.TAP, "Tiled": tiled.TILED},
    "winograd.cu": {"Winograd": winograd.WINOGRAD},
}  # fmt: skip


@pytest.mark.parametrize("file", RECORDS)
def test_records_are_laid_out_alike_on_both_sides(emulated, file):
    expected, statements = [], []
    for struct, dtype in RECORDS[file].items():
        expected.append(dtype.itemsize)
        statements.append(f"sizeof({struct})")
        for name, (_, offset) in dtype.fields.items():
            expected.append(offset)
            statements.append(f"__builtin_offsetof({struct}, {name})")
    body = " ".join(f"p.out[{i}] = {statement};" for i, statement in enumerate(statements))
    kernel = f'struct Out {{ long long* out; }};\nextern "C" __global__ void layout(const Out p) {{ {body} }}'
    options = next(spec.options for spec in variants() if spec.file == file)
    out = np.zeros(len(expected), np.int64)
    emulated.launch_text(
        f"{program(file)}\n{kernel}", "layout", (1, 1, 1), (1, 1, 1), np.array([out.ctypes.data]), options
    )
    assert out.tolist() == expected


def far_apart(folder, name, shape, dtype, axis):
    """An array whose neighbours along one axis are 2**31 elements apart, in a file with holes between them."""
    itemsize = np.dtype(dtype).itemsize
    strides = list(np.empty([1 if i == axis else n for i, n in enumerate(shape)], dtype).strides)
    strides[axis] = itemsize << 31
    memory = np.memmap(folder / name, dtype, "w+", shape=((shape[axis] - 1) << 31) + (1 << 10))
    return np.lib.stride_tricks.as_strided(memory, shape, strides)


@WITH_EACH
@pytest.mark.parametrize("axis", ["images", "slices", "slices, channels last"])
def test_offsets_beyond_two_to_the_31_elements(emulated, algorithm, axis, tmp_path):
    """From image to image, and within one, as in a volume of 1282 x 722 x 124 voxels of 32 channels."""
    if axis == "images":
        problem, far = forward((2, 2, 6, 7), (3, 2, 3, 3), padding=1), 0
    elif axis == "slices":
        problem, far = forward((1, 2, 3, 6, 7), (3, 2, 2, 3, 3), padding=1, dtype="float16"), 2
    else:
        problem, far = forward((1, 3, 6, 7, 8), (5, 8, 2, 3, 3), padding=1, dtype="float16", data_format="NDHWC"), 1
    if algorithm.why_not(problem) is not None:
        pytest.skip(algorithm.why_not(problem))
    a, b, *_ = finite_operands(problem)
    x, y = (
        far_apart(tmp_path, name, shape, problem.dtype, far)
        for name, shape in (("x", problem.x_shape), ("y", problem.y_shape))
    )
    x[...] = a
    emulated.launched.clear()
    algorithm.apply(problem, x, b, y)
    assert emulated.launched & set(algorithm.variants())
    assert_kept(algorithm, problem, y.copy(), a, b)


@pytest.mark.parametrize("images_fastest", [False, True])
def test_positions_beyond_two_to_the_31(emulated, images_fastest):
    """Of five images of some 2**29 pixels: which one, and where in it."""
    height, width = 3, ((1 << 29) - 7) // 3
    piece = lower(forward((5, 1, height, width), (1, 1, 1, 1)))[0]
    struct = "struct Asked { Geometry q; long long first, local, images_fastest; long long* out; };"
    body = """const Position t = position_of(p.q, p.first, (unsigned int)p.local, p.images_fastest);
    p.out[0] = t.n; p.out[1] = t.d; p.out[2] = t.h; p.out[3] = t.w;"""
    text = f'{program("gather.cuh")}{struct}extern "C" __global__ void ask(const Asked p) {{ {body} }}'
    options = tuple(f"-D{name}={value}" for name, value in runtime.dtype_defines("float16"))
    pixels = height * width
    for first in (0, pixels - 64, (1 << 31) - 64, 1 << 31, 5 * pixels // 128 * 128):
        for local in (0, 63, 127):
            number = first + local
            n, pixel = (number % 5, number // 5) if images_fastest else divmod(number, pixels)
            if n < 5 and pixel < pixels:
                out = np.zeros(4, np.int64)
                words = np.array([*arguments.geometry(piece), first, local, images_fastest, out.ctypes.data], np.int64)
                emulated.launch_text(text, "ask", (1, 1, 1), (1, 1, 1), words, options)
                assert out.tolist() == [n, 0, pixel // width, pixel % width]
