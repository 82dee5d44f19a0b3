"""``implicit_gemm_hopper`` on the CPU: the kernel of Hopper, its copy engine and its products emulated."""

import ctypes
import dataclasses

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler
from promise import assert_kept

from fastconv.arrays import named_dtype
from fastconv.gpu import implicit_gemm_hopper, runtime
from fastconv.gpu.tensor_maps import Pixels
from fastconv.machine import Machine
from fastconv.problem import Activation, ConvProblem
from fastconv.sampling import random_operands, random_values

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")

ALGORITHM = implicit_gemm_hopper._ALGORITHM
SMALLEST = implicit_gemm_hopper._TILES[-1]
DTYPES = tuple(implicit_gemm_hopper._RATES)
H100 = Machine(cores=132, flops=6e13, bandwidth=3e12, launch=5e-6)


@pytest.fixture(scope="module", autouse=True)
def emulated():
    emulated = EmulatedRuntime()
    with runtime.use(emulated), np.errstate(all="ignore"):
        yield emulated


def problem_of(op, x_shape, w_shape, dtype="float16", **options):
    """A channels-last problem of shapes without a batch of more than two axes."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    axes = len(x_shape) - 2
    make = ConvProblem.transposed if op == "transposed" else ConvProblem.forward
    precision = "fast" if dtype == "float32" else "high"
    return make(axes, x_shape, w_shape, dtype=dtype, data_format=("NWC", "NHWC", "NDHWC")[axes - 1],
                precision=precision, **options)  # fmt: skip


def aligned(array):
    """A copy as the copy engine wants it, with the same poison before and after it."""
    room = 64
    buffer = np.full(array.nbytes + 3 * room, 0x7F, np.uint8)
    start = -buffer.ctypes.data % room + room
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def operands_of(problem, rng=None):
    """Contiguous operands; the first may hold NaN and infinities."""
    drawn = random_operands(problem, rng or np.random.default_rng(1))
    return [v if v is None else aligned(np.ascontiguousarray(v)) for v in drawn]


def computed(problem, operands, layout=lambda array: array):
    a, b, bias, residual = operands
    out = layout(np.full(problem.result_shape, 77, named_dtype(problem.result_dtype)))
    ALGORITHM.apply(problem, a, b, out, bias, residual)
    return out


def check(problem, emulated, operands=None):
    """Hold the kernel itself to the promise, not what takes its place."""
    assert ALGORITHM.why_not(problem) is None
    operands = operands or operands_of(problem)
    emulated.launched.clear()
    result = computed(problem, operands)
    assert "implicit_gemm_hopper" in {spec.entry for spec in emulated.launched}
    assert "implicit_gemm" not in {spec.entry for spec in emulated.launched}
    assert_kept(ALGORITHM, problem, result, *operands)
    return result


@pytest.fixture
def tile(monkeypatch):
    """Have every piece computed in one tile."""

    def choose_tile(tile):
        monkeypatch.setattr(implicit_gemm_hopper, "_best_tile", lambda piece, dtype, processors: tile)

    choose_tile(SMALLEST)
    return choose_tile


CASES = {
    "one axis": ("forward", (2, 300, 8), (20, 8, 5), {"padding": 2, "dilation": 3}),
    "one axis, far taps": ("forward", (1, 900, 16), (9, 16, 2), {"dilation": 700}),
    "two axes": ("forward", (2, 9, 11, 72), (70, 72, 3, 3), {"padding": 1}),
    "asymmetric": ("forward", (3, 8, 12, 16), (12, 16, 2, 4), {"padding": ((0, 2), (3, 1)), "stride": (2, 3)}),
    "pointwise": ("forward", (3, 7, 9, 40), (130, 40, 1, 1), {}),
    "pointwise, strided": ("forward", (3, 7, 9, 40), (30, 40, 1, 1), {"stride": 2}),
    "rows past the last tap": ("forward", (2, 11, 13, 24), (16, 24, 2, 2), {"stride": 5}),
    "one target": ("forward", (2, 7, 7, 16), (5, 16, 7, 7), {"stride": 9}),
    "three axes": ("forward", (2, 4, 6, 7, 16), (24, 16, 2, 3, 4), {"padding": 1, "stride": (1, 2, 3)}),
    "wide padding": ("forward", (1, 5, 6, 8), (6, 8, 3, 3), {"padding": 9}),
    "many images": ("forward", (300, 1, 2, 8), (6, 8, 1, 2), {"padding": (0, 1)}),
    "transposed": ("transposed", (2, 6, 7, 24), (24, 10, 4, 4), {"stride": 2, "padding": 1}),
    "transposed, uneven phases": ("transposed", (1, 5, 6, 16), (16, 7, 3, 5), {"stride": (2, 3), "dilation": (3, 2)}),
    "transposed, places without taps": (
        "transposed",
        (1, 6, 6, 8),
        (8, 5, 1, 2),
        {"stride": 3, "activation": "sigmoid"},
    ),
    "transposed, three axes": ("transposed", (1, 3, 4, 5, 16), (16, 8, 2, 2, 2), {"stride": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_geometries(emulated, tile, name):
    op, x_shape, w_shape, options = CASES[name]
    check(problem_of(op, x_shape, w_shape, bias=True, **options), emulated)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["forward", "transposed"])
def test_dtypes(emulated, tile, dtype, op):
    channels = 144 // (1 if dtype == "int8" else named_dtype(dtype).itemsize)
    w_shape = (channels, 20, 3, 3) if op == "transposed" else (20, channels, 3, 3)
    problem = problem_of(op, (2, 8, 9, channels), w_shape, dtype, padding=1, bias=True, activation="relu")
    check(problem, emulated, operands_of(dataclasses.replace(problem, residual=True)))


def test_all_tiles_give_the_same_bits(emulated, tile):
    """Several tiles for each block, and the epilogue; other dtypes differ in the same numbers for every tile."""
    problem = problem_of("forward", (2, 19, 23, 80), (300, 80, 2, 2), bias=True, residual=True)
    problem = dataclasses.replace(problem, activation=Activation("clip", -3.0, 5.0))
    operands, results = operands_of(problem), []
    for each in implicit_gemm_hopper._TILES:
        tile(each)
        results.append(check(problem, emulated, operands).tobytes())
        assert implicit_gemm_hopper._spec("float16", each) in emulated.launched
    assert len(set(results)) == 1


def test_tuning_measures_every_tile(emulated):
    problem = problem_of("transposed", (2, 5, 6, 16), (16, 70, 3, 3), stride=2, bias=True)
    operands = operands_of(problem)
    configurations = {c.configuration: c for c in ALGORITHM.configurations(problem)}
    assert list(configurations) == ["128x256", "256x128", "128x128", "256x64", "128x64"]
    for name, configuration in configurations.items():
        assert configuration.key == f"implicit_gemm_hopper {name}"
        assert configuration.cost(problem, H100) >= ALGORITHM.cost(problem, H100)
        emulated.launched.clear()
        out = np.full(problem.result_shape, 77, np.float16)
        configuration.apply(problem, *operands[:2], out, operands[2])
        assert_kept(configuration, problem, out, *operands)
        tile = next(tile for tile in implicit_gemm_hopper._TILES if str(tile) == name)
        assert emulated.launched >= {implicit_gemm_hopper._spec("float16", tile)}


@pytest.mark.parametrize("block", range(4))
def test_random_problems(emulated, tile, block):
    for seed in range(15 * block, 15 * block + 15):
        rng = np.random.default_rng(seed)
        axes, op = int(rng.integers(1, 4)), str(rng.choice(["forward", "transposed"]))
        inner, outer = 8 * int(rng.integers(1, 12)), int(rng.integers(1, 80))
        kernel = [int(k) for k in rng.integers(1, 4, axes)]
        dilation = [int(d) for d in rng.integers(1, 3, axes)]
        size = [(k - 1) * d + int(rng.integers(1, 7)) for k, d in zip(kernel, dilation, strict=True)]
        weight = (inner, outer) if op == "transposed" else (outer, inner)
        most = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
        padding = [tuple(int(side) for side in rng.integers(n + 1, size=2)) for n in most]
        problem = problem_of(
            op, (int(rng.integers(1, 4)), *size, inner), (*weight, *kernel), dilation=dilation,
            stride=[int(s) for s in rng.integers(1, 4, axes)], padding=padding,
            bias=bool(rng.random() < 0.5), residual=bool(rng.random() < 0.3),
            activation=str(rng.choice(["relu6", "relu", "silu"])) if rng.random() < 0.7 else None,
        )  # fmt: skip
        check(problem, emulated, operands_of(problem, rng))


@pytest.mark.parametrize("channels", [12, 13])
def test_results_of_any_layout(emulated, tile, channels):
    """Vectors where they fit, elements where not; nothing is written beside them."""
    problem = problem_of("forward", (2, 5, 6, 16), (channels, 16, 2, 2), bias=True)
    operands = operands_of(problem)
    plain = check(problem, emulated, operands)
    layouts = (
        lambda y: np.full((*y.shape[:-1], 40), 7, y.dtype)[..., 3 : 3 + channels],
        lambda y: np.full((*y.shape[:-1], 40), 7, y.dtype)[..., : 2 * channels : 2],
        lambda y: np.full(y.shape[::-1], 7, y.dtype).T,
        lambda y: np.full(y.shape, 7, y.dtype)[:, ::-1],
    )
    for layout in layouts:
        y = computed(problem, operands, layout)
        np.testing.assert_array_equal(y, plain)
        whole = y if y.base is None else y.base
        assert (whole == 7).sum() >= whole.size - y.size


LAYOUTS = {
    "misaligned": lambda x: np.concatenate([x[..., :1], x], axis=-1)[..., 1:],
    "channels apart": lambda x: x.repeat(2, axis=-1)[..., ::2],
    "backwards": lambda x: x[:, ::-1].copy()[:, ::-1],
    "channels first": lambda x: np.moveaxis(np.moveaxis(x, -1, 1).copy(), 1, -1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_the_copy_engine_cannot_read_goes_to_implicit_gemm(emulated, tile, name):
    problem = problem_of("forward", (2, 5, 6, 16), (12, 16, 2, 2))
    x, *others = operands_of(problem)
    emulated.launched.clear()
    result = computed(problem, (LAYOUTS[name](x), *others))
    assert_kept(ALGORITHM, problem, result, x, *others)
    assert "implicit_gemm" in {spec.entry for spec in emulated.launched}


def test_spaced_pixels_are_read_in_place(emulated, tile):
    problem = problem_of("forward", (2, 5, 6, 16), (12, 16, 2, 2))
    x, *others = operands_of(problem)
    spaced = np.full((3, 7, 9, 24), np.nan, np.float16)
    inside = spaced[:2, 1:6, 2:8, 8:]
    inside[...] = x
    check(problem, emulated, (inside, *others))


def test_infinities_stay_in_their_receptive_field(emulated, tile):
    """Channels that fill up a row, and rows that fill up a tile, are zeros on both sides."""
    problem = problem_of("forward", (1, 9, 10, 8), (5, 8, 3, 3), padding=1)
    a, b, *_ = operands_of(problem)
    a[...] = 1
    a[0, 4, 5, 2] = np.inf
    expected = np.zeros((9, 10), bool)
    expected[3:6, 4:7] = True
    y = check(problem, emulated, (a, b, None, None))
    assert (~np.isfinite(y) == expected[None, :, :, None]).all()


def test_a_first_call_compiles_two_programs(tile):
    """Its own kernel's and that of direct, with which it is compared."""
    problem = problem_of("forward", (1, 6, 6, 8), (5, 8, 3, 3), padding=1)
    with runtime.use(EmulatedRuntime()) as device:
        computed(problem, operands_of(problem))
    files = sorted(file for file, _ in {(spec.file, spec.options) for spec in device.launched})
    assert files == ["direct.cu", "implicit_gemm_hopper.cu"]


class Wrong(EmulatedRuntime):
    """A device on which the kernel forgets its first output."""

    def launch(self, spec, grid, block, params):
        super().launch(spec, grid, block, params)
        if spec.entry == "implicit_gemm_hopper":
            at = params.view(implicit_gemm_hopper.IMPLICIT_GEMM_HOPPER)["y"]["data"][0]
            np.ctypeslib.as_array((ctypes.c_uint16 * 1).from_address(int(at)))[:] = 0x5140  # 42


def test_a_kernel_that_is_wrong_is_given_up(tile):
    problem = problem_of("forward", (1, 6, 6, 8), (5, 8, 3, 3), padding=1)
    operands = operands_of(problem)
    with runtime.use(Wrong()):
        with pytest.warns(RuntimeWarning, match=r"implicit_gemm_hopper \(STORAGE=float16 .*otherwise than direct"):
            result = computed(problem, operands)
        assert_kept(ALGORITHM, problem, result, *operands)  # right all the same
        assert "implicit_gemm computes otherwise" in ALGORITHM.why_not(problem)
        assert ALGORITHM.why_not(dataclasses.replace(problem, dtype="bfloat16")) is None
    assert ALGORITHM.why_not(problem) is None


class Reversed(EmulatedRuntime):
    """A device whose driver counts the axes of corners from the other end, as its manual may be read."""

    def encode(self, tensor):
        if isinstance(tensor, Pixels):
            tensor = dataclasses.replace(tensor, lower=tensor.lower[::-1], upper=tensor.upper[::-1])
        return super().encode(tensor)


@pytest.mark.parametrize("axes", [2, 3])
def test_corners_counted_in_another_order_are_found_out(tile, axes):
    problem = problem_of("forward", (1, *(6,) * axes, 8), (5, 8, *(3,) * axes), padding=1)
    operands = operands_of(problem)
    with runtime.use(Reversed()):
        with pytest.warns(RuntimeWarning, match="implicit_gemm_hopper .* a small convolution"):
            result = computed(problem, operands)
        assert_kept(ALGORITHM, problem, result, *operands)
        assert "found wrong on this device" in ALGORITHM.why_not(problem)


REASONS = {
    "not float64": {"dtype": "float64"},
    "takes precision='fast'": {"dtype": "float32", "precision": "high"},
    "channels-last": {"data_format": "NCHW", "x_shape": (2, 16, 9, 9)},
    "more than one group": {"groups": 2, "w_shape": (12, 8, 3, 3)},
    "15 channels of 2 bytes": {"x_shape": (2, 9, 9, 15), "w_shape": (12, 15, 3, 3)},
    "padded with zeros": {"padding_mode": "reflect", "padding": 1},
    "stride of more than 8": {"stride": 9, "x_shape": (2, 30, 30, 16)},
    "beyond the 128 elements": {"padding": 129},
    "reaches over more than": {"dilation": 128, "padding": 128, "x_shape": (2, 300, 300, 16)},
    "needs an input": {"x_shape": (2, 0, 9, 16), "padding": 2},
}


@pytest.mark.parametrize("reason", REASONS)
def test_it_says_what_it_does_not_take(reason):
    options = {"x_shape": (2, 9, 9, 16), "w_shape": (12, 16, 3, 3), "dtype": "float16", "data_format": "NHWC"}
    options |= REASONS[reason]
    problem = ConvProblem.forward(2, options.pop("x_shape"), options.pop("w_shape"), **options)
    assert reason in ALGORITHM.why_not(problem)


def test_it_takes_no_weight_gradient_and_no_other_device():
    problem = problem_of("forward", (2, 9, 9, 16), (12, 16, 3, 3))
    assert ALGORITHM.why_not(problem) is None
    assert "no weight gradient" in ALGORITHM.why_not(dataclasses.replace(problem, op="weight_grad"))

    class Blackwell(EmulatedRuntime):
        def capability(self):
            return 100

    with runtime.use(Blackwell()):
        assert "made for compute capability 9.0, not 10.0" in ALGORITHM.why_not(problem)


def test_equal_weights_are_packed_once_for_it_and_for_implicit_gemm():
    problem = problem_of("forward", (2, 9, 9, 16), (12, 16, 3, 3))
    plan = ALGORITHM.plan(problem, 0)
    other = implicit_gemm_hopper._GENERAL.plan(problem, 0)
    assert plan.pack_key == other.pack_key
    w = random_values((1, 12, 16, 1, 3, 3), "float16", np.random.default_rng(1))
    np.testing.assert_array_equal(plan.pack(w)[0], other.pack(w)[0])


def test_large_layers_are_given_to_it(monkeypatch):
    def cost_against(*shapes, **options):
        problem = problem_of("forward", *shapes, **options)
        return ALGORITHM.cost(problem, H100) / implicit_gemm_hopper._GENERAL.cost(problem, H100)

    assert cost_against((32, 56, 56, 256), (256, 256, 3, 3), padding=1) < 0.6
    assert cost_against((32, 56, 56, 64), (64, 64, 3, 3), padding=1) < 1
    assert cost_against((1, 7, 7, 512), (512, 512, 3, 3), padding=1) > 1, "few outputs, long sums: shared by blocks"


def test_tiles_fit_their_problems():
    def tile(*shapes):
        (piece,) = implicit_gemm_hopper.lower(problem_of("forward", *shapes, padding=1))
        return implicit_gemm_hopper._best_tile(piece, "float16", 132)

    assert tile((32, 56, 56, 256), (256, 256, 3, 3)).channels == 256
    assert tile((32, 56, 56, 128), (128, 128, 3, 3)).channels == 128
    assert tile((32, 56, 56, 64), (64, 64, 3, 3)).channels == 64
