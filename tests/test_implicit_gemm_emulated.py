"""The tensor-core kernels of ``implicit_gemm`` on the CPU: every way to read the input, shared tiles, shared sums.

Random problems and edges are in test_cuda_emulated.py, with those of all algorithms.
"""

import ctypes
import dataclasses

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler
from test_cuda_emulated import apply, check, finite_operands, forward, transposed, weight_grad

from fastconv import calling, machine, remembered
from fastconv.accuracy import error
from fastconv.dispatch import choose
from fastconv.explanation import describe
from fastconv.gpu import implicit_gemm, runtime, tensor_cores, tiling
from fastconv.gpu.bundling import BundledSums, Bundling
from fastconv.lowering import lower
from fastconv.machine import Machine
from fastconv.problem import Activation
from fastconv.registry import algorithms
from fastconv.remembered import Record

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")

ALGORITHMS = {algorithm.name: algorithm for algorithm in algorithms("gpu")}
ALGORITHM = ALGORITHMS["implicit_gemm"]
DTYPES = ["float32", "float16", "int8", "uint8"]


class H100(EmulatedRuntime):
    """With as many multiprocessors."""

    def processors(self):
        return 132


@pytest.fixture(scope="module", autouse=True)
def emulated():
    """The kernels, put in the GPU's place while this module runs; each is built when a test first asks for it."""
    with runtime.use(H100()) as emulated, np.errstate(all="ignore"):
        yield emulated


def bundling(problem):
    """That of a problem of one piece."""
    (found,) = implicit_gemm._bundlings(problem)
    return found


def in_tile(monkeypatch, tile):
    """Let every kernel have this tile."""
    monkeypatch.setattr(tiling, "tiles", lambda operands, gather: [tile])


# -- reading the input ------------------------------------------------------------------------------------------------

GATHERS = {
    "whole": {"data_format": "NHWC"},
    "narrow": {"data_format": "NHWC"},
    "strided": {},
    "any": {},
    "by product": {},
}  # fmt: skip


def gathered(dtype, name, op, **options):
    """A problem whose input is read in one of the ways that there are."""
    chunk = 16 // np.dtype(dtype).itemsize
    channels = {"whole": 3 * chunk, "narrow": chunk + max(chunk // 4, 1), "strided": 2 * chunk}.get(name, 5)
    outputs = channels if op == "input_grad" else 70
    inputs = 70 if op == "input_grad" else channels
    shape = (2, 9, 8, inputs) if GATHERS[name] else (2, inputs, 9, 8)
    problem = forward(shape, (outputs, inputs, 3, 2), dtype=dtype, stride=(2, 1), padding=1, **GATHERS[name], **options)
    return dataclasses.replace(problem, op=op)


@pytest.mark.parametrize("gather", GATHERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_to_gather(monkeypatch, dtype, gather, emulated):
    """In small tiles; the larger ones differ in the same numbers for every dtype."""
    in_tile(monkeypatch, tensor_cores.SMALL)
    if gather == "any":
        monkeypatch.setattr(tiling, "_MOST_PRODUCTS", 0)
    emulated.launched.clear()
    precision = "fast" if dtype == "float32" else "high"
    operands, expected = tensor_cores.operands_of(gathered(dtype, gather, "forward", precision=precision)), set()
    for op in ("forward", "input_grad"):
        problem = gathered(dtype, gather, op, precision=precision)
        expected |= {tiling.expected_gather(problem, b) for b in implicit_gemm._bundlings(problem)}
        check(ALGORITHM, problem, finite_operands(problem))
    assert {tensor_cores.spec(operands, g, tensor_cores.SMALL) for g in expected} <= emulated.launched
    if gather in ("any", "by product"):
        assert {g.by_product for g in expected} == {gather == "by product"}


@pytest.mark.parametrize("gather", GATHERS)
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_is_not_zeros(monkeypatch, mode, gather):
    if gather == "any":
        monkeypatch.setattr(tiling, "_MOST_PRODUCTS", 0)
    for op in ("forward", "weight_grad"):
        problem = dataclasses.replace(gathered("float16", gather, op), padding_mode=mode)
        check(ALGORITHM, problem, finite_operands(problem))


def test_unsigned_integers_of_every_size():
    """255 is not -1, and a sum of 2**16 products of 255 and 255 wraps round."""
    problem = forward((1, 1 << 16, 1), (2, 1 << 16, 1), dtype="uint8")
    x, w = (np.full(shape, 255, np.uint8) for shape in problem.operand_shapes)
    assert apply(ALGORITHM, problem, (x, w, None, None)).ravel().tolist() == [(255 * 255 << 16) - (1 << 32)] * 2


# -- groups that share a tile -----------------------------------------------------------------------------------------

GROUPS = {
    "ResNeXt": ((32, 4, 4), 16),
    "a quarter of an instruction's channels": ((8, 4, 8), 8),
    "depthwise": ((16, 1, 1), 16),
    "outputs across instructions": ((6, 16, 20), 3),
    "an instruction across groups": ((4, 24, 12), 4),
    "too many for one tile": ((64, 4, 4), 16),
}  # fmt: skip

GRADIENT_GROUPS = {  # that share a tile: as many as have at most 64 outputs
    "ResNeXt": 16,
    "a quarter of an instruction's channels": 8,
    "depthwise": 16,
    "outputs across instructions": 3,
    "an instruction across groups": 4,
    "too many for one tile": 16,
}


def grouped(name, dtype="float16", channels_last=True, **options):
    groups, inner, outer = GROUPS[name][0]
    problem = forward((2, groups * inner, 9, 10), (groups * outer, inner, 3, 3), dtype=dtype, groups=groups, padding=1,
                      bias=True, residual=True, **options)  # fmt: skip
    return dataclasses.replace(problem, channels_last=channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GROUPS)
def test_groups_share_a_tile(name, dtype, channels_last, emulated):
    problem = grouped(name, dtype, channels_last)
    emulated.launched.clear()
    check(ALGORITHM, problem, finite_operands(problem))
    if dtype == "float16":
        assert bundling(problem).size == GROUPS[name][1]
    ran = {dict(s.defines)["GROUPED"] for s in emulated.launched if s.entry == "implicit_gemm"}
    assert ran == {str(int(bundling(problem).size > 1))}


def test_groups_of_an_input_gradient_share_a_tile():
    problem = transposed((2, 32, 7, 6), (32, 4, 3, 3), groups=8, stride=2, padding=1, dtype="float16")
    assert {b.size for b in implicit_gemm._bundlings(problem)} == {8}
    check(ALGORITHM, problem, finite_operands(problem))


def grouped_gradient(name, dtype="float16", channels_last=True, batch=2, **options):
    groups, inner, outer = GROUPS[name][0]
    problem = weight_grad((batch, groups * inner, 9, 10), (groups * outer, inner, 3, 2), dtype=dtype, groups=groups,
                          padding=1, **options)  # fmt: skip
    return dataclasses.replace(problem, channels_last=channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype"), [*((n, "float16") for n in GROUPS), *(("ResNeXt", d) for d in DTYPES if d != "float16")]
)
def test_groups_of_a_weight_gradient_share_a_tile(monkeypatch, name, dtype, channels_last, emulated):
    """Whatever the batch, of which the sums are made, and with sums that blocks share."""
    monkeypatch.setattr(tiling, "_LEAST_STEPS", 2)
    chunk = 16 // np.dtype(dtype).itemsize
    for batch in (3, chunk):
        problem = grouped_gradient(name, dtype, channels_last, batch)
        emulated.launched.clear()
        for waves in (0, 1):
            check(implicit_gemm.ImplicitGemm(tiling.Wish("64x64", waves)), problem, finite_operands(problem))
        assert bundling(problem).size == GRADIENT_GROUPS[name]
        ran = {tuple(dict(s.defines)[n] for n in ("GROUPED", "RUN")) for s in emulated.launched if "gemm" in s.entry}
        assert ran == {("2", str(batch if batch == chunk else 1))}
        assert tensor_cores.sum_spec(dtype) in emulated.launched


@pytest.mark.parametrize("options", [{"padding_mode": "circular"}, {"stride": 2, "dilation": (1, 3)}], ids=str)
def test_groups_of_other_weight_gradients_share_a_tile(options):
    for channels_last in (False, True):
        problem = grouped_gradient("outputs across instructions", "float16", channels_last, **options)
        check(ALGORITHM, problem, finite_operands(problem))


def test_sums_shared_for_several_groups_take_the_memory_of_their_results(monkeypatch):
    """Nothing is kept of what one group has with another."""
    problem = dataclasses.replace(grouped_gradient("ResNeXt"), batch_shape=(64,))
    for waves in (0, 1):
        algorithm = implicit_gemm.ImplicitGemm(tiling.Wish("64x64", waves))
        splits = algorithm._config(problem, bundling(problem), 64 << 20).splits
        partial = algorithm.workspace_bytes(problem, 64 << 20) - implicit_gemm._table_bytes(problem)
        assert partial == (splits > 1) * splits * 128 * 4 * 6 * 4
        assert (splits > 1) == (waves > 0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_not_finite_stays_in_the_weight_gradient_of_its_group(channels_last):
    problem = grouped_gradient("ResNeXt", channels_last=channels_last)
    a, b, *_ = finite_operands(problem)
    for operand, channel, value in ((a, 21, np.inf), (b, 66, np.nan)):
        (np.moveaxis(operand, -1, 1) if channels_last else operand)[0, channel, 4, 4] = value
    y = apply(ALGORITHM, problem, (a, b, None, None))
    groups = np.nonzero(~np.isfinite(y).reshape(32, -1).all(1))[0]
    assert groups.tolist() == [5, 16]
    check(ALGORITHM, problem, (a, b, None, None))


def test_a_weight_gradient_of_many_groups_is_predicted_faster_in_fewer_tiles():
    problem = dataclasses.replace(grouped_gradient("ResNeXt"), batch_shape=(32,))
    (piece,) = lower(problem)
    alone, together = Bundling(piece, 1, 16), bundling(problem)
    operands = tensor_cores.operands_of(problem)
    assert tiling.blocks(together.merged, tensor_cores.SMALL) * together.merged.groups < piece.groups
    alone, together = (
        tiling.configure(b, operands, tiling.gather_of(operands, 1, b), 64 << 20, None).work for b in (alone, together)
    )
    assert together < alone


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_not_finite_stays_in_its_group(dtype, precision, channels_last):
    """Though their weights are zeros, other groups would have infinity times zero."""
    problem = grouped("ResNeXt", dtype, channels_last, precision=precision, padding_mode="reflect")
    a, b, bias, residual = finite_operands(problem)
    channel = np.moveaxis(a, -1, 1) if channels_last else a  # a view
    channel[0, 5, 4, 4], channel[1, 70, 0, 0], channel[1, 127, 8, 9] = np.inf, np.nan, -np.inf
    y = apply(ALGORITHM, problem, (a, b, bias, residual))
    finite = np.isfinite(np.moveaxis(y, -1, 1) if channels_last else y)
    assert set(zip(*np.nonzero(~finite.all((2, 3))), strict=True)) == {
        (n, c) for n, g in ((0, 1), (1, 17), (1, 31)) for c in range(4 * g, 4 * g + 4)
    }
    check(ALGORITHM, problem, (a, b, bias, residual))


@pytest.mark.parametrize("name", GROUPS)
def test_the_share_of_products_is_that_of_instructions_that_meet_a_group(name):
    (_, inner, outer), size = GROUPS[name]
    (piece,) = lower(grouped(name))
    some = BundledSums(piece, size, 16)
    weight = np.zeros((size * inner, -(-size * outer // 8) * 8), bool)
    for group in range(size):
        weight[group * inner : (group + 1) * inner, group * outer : (group + 1) * outer] = True
    instructions = weight.reshape(size * inner // 16, 16, -1, 8).any((1, 3))
    assert some.share == instructions.mean()
    assert some.instructions >= 9 * instructions.sum(0).max() / max(1, -(-8 // outer))


def test_packed_groups_come_back():
    problem = grouped("outputs across instructions")
    w = finite_operands(problem)[1].reshape(6, 20, 16, 1, 3, 3)
    some = bundling(problem)
    packed = some.pack(w, 32)
    assert packed.shape == (2, 60, 448) and np.count_nonzero(packed) == np.count_nonzero(w)
    np.testing.assert_array_equal(some.unpack(packed), w)


# -- tiles and sums ---------------------------------------------------------------------------------------------------


def tiles_of(algorithm_tiles, monkeypatch, problem, operands):
    """The results of a problem, computed in each tile."""
    for tile in algorithm_tiles:
        in_tile(monkeypatch, tile)
        check(ALGORITHM, problem, operands)
        yield apply(ALGORITHM, problem, operands)


@pytest.mark.parametrize("gather", ["whole", "strided"])
def test_tensor_core_tiles_give_the_same_bits(monkeypatch, gather):
    problem = dataclasses.replace(gathered("float16", gather, "forward"), bias=True, residual=True)
    problem = dataclasses.replace(problem, activation=Activation("silu"))
    expected = tiling.expected_gather(problem, bundling(problem))
    tiles = tensor_cores.gathers(tensor_cores.operands_of(problem))[expected]
    assert len(tiles) > 2
    assert len({r.tobytes() for r in tiles_of(tiles, monkeypatch, problem, finite_operands(problem))}) == 1


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_sums_shared_by_blocks(monkeypatch, dtype, data_format, emulated):
    shape = (3, 16, 21, 20) if data_format == "NCHW" else (3, 21, 20, 16)
    problem = weight_grad(shape, (20, 16, 3, 3), dtype=dtype, data_format=data_format, padding=1)
    algorithm, operands = ALGORITHM, finite_operands(problem)
    emulated.launched.clear()
    limit = 1 << 20
    check(algorithm, problem, operands, limit=limit)
    assert tensor_cores.sum_spec(dtype) in emulated.launched
    assert algorithm.workspace_bytes(problem, 0) < algorithm.workspace_bytes(problem, limit) <= limit
    first, again = (apply(algorithm, problem, operands, limit=limit) for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_float32_on_tensor_cores_is_float32():
    """Of a sum whose rounding errors are few: as near as plain float32, thousands of times nearer than TF32."""
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((1, 8, 40), np.float32), rng.standard_normal((9, 8, 1), np.float32)
    problem = forward(x.shape, w.shape)
    plain, split = ALGORITHMS["direct"], ALGORITHM
    errors = [error(problem, apply(a, problem, (x, w, None, None)), x, w) for a in (plain, split)]
    assert errors[1] < 8 * 2.0**-24 + errors[0]
    fast = dataclasses.replace(problem, precision="fast")
    assert error(fast, apply(split, fast, (x, w, None, None)), x, w) > 1000 * errors[1]


def test_infinite_operands_of_both_kinds():
    """Every pair of a sample and a weight that may be infinite, zero or neither; all become what IEEE 754 says."""
    values = np.float32([np.inf, -np.inf, np.nan, 0, 1.5, -3e38, 1e-30])
    x, w = values.reshape(1, 1, -1), values.reshape(-1, 1, 1)
    y = apply(ALGORITHM, forward(x.shape, w.shape), (x, w, None, None))[0]
    exact = values[:, None] * values
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(exact))
    np.testing.assert_allclose(y[np.isfinite(exact)], exact[np.isfinite(exact)], rtol=2.0**-20)


class Wrong(H100):
    """A device on which one kernel forgets its first output."""

    def __init__(self, entry):
        super().__init__()
        self._entry = entry

    def launch(self, spec, grid, block, params):
        super().launch(spec, grid, block, params)
        if spec.entry == self._entry:
            at = params.view(implicit_gemm.IMPLICIT_GEMM)["y"]["data"][0]
            np.ctypeslib.as_array((ctypes.c_uint16 * 1).from_address(int(at)))[:] = 0x5140  # 42


def test_a_kernel_that_is_wrong_is_given_up():
    problem = forward((1, 8, 6, 6), (5, 8, 3, 3), dtype="float16", padding=1)
    algorithm, operands = ALGORITHM, finite_operands(problem)
    with runtime.use(Wrong("implicit_gemm")):
        with pytest.warns(RuntimeWarning, match=r"implicit_gemm \(STORAGE=float16 .*otherwise than direct"):
            check(algorithm, problem, operands)  # right all the same
        assert "direct computes otherwise" in algorithm.why_not(problem)
        assert algorithm.why_not(dataclasses.replace(problem, dtype="bfloat16")) is None
    assert algorithm.why_not(problem) is None


def test_where_the_kernel_that_adds_parts_is_wrong_no_sum_is_shared():
    problem = weight_grad((3, 16, 21, 20), (20, 16, 3, 3), dtype="float16", padding=1)
    operands, parts = finite_operands(problem), tensor_cores.sum_spec("float16")
    with runtime.use(Wrong("add_splits")) as device:
        with pytest.warns(RuntimeWarning, match=r"add_splits \(STORAGE=float16 .*otherwise than direct"):
            check(ALGORITHM, problem, operands)
        assert parts in device.launched
        device.launched.clear()
        check(ALGORITHM, problem, operands)
        assert {spec.entry for spec in device.launched} == {"implicit_gemm"}
        assert ALGORITHM.why_not(problem) is None


class Old(EmulatedRuntime):
    """A device that does not load a kernel."""

    def launch(self, spec, grid, block, params):
        if spec.entry == "implicit_gemm":
            raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU")
        super().launch(spec, grid, block, params)


def test_a_kernel_that_cannot_be_run_is_given_up():
    problem = forward((1, 8, 6, 6), (5, 8, 3, 3), dtype="float16", padding=1)
    with runtime.use(Old()):
        with pytest.warns(RuntimeWarning, match=r"could not compute a small convolution \(CUDA_ERROR_NO_BINARY"):
            check(ALGORITHM, problem, finite_operands(problem))  # right all the same
        assert "direct computes otherwise" in ALGORITHM.why_not(problem)


def test_tensor_cores_of_turing():
    class Turing(EmulatedRuntime):
        def capability(self):
            return 75

    problem = forward((8, 64, 128, 128), (256, 64, 3, 3), dtype="float16")
    algorithm = ALGORITHM
    with runtime.use(Turing()):
        assert algorithm.why_not(problem) is None
        assert "takes compute capability 8.0, not 7.5" in algorithm.why_not(
            dataclasses.replace(problem, dtype="bfloat16")
        )
        gather = tiling.expected_gather(problem, bundling(problem))
        tiles = tensor_cores.tiles(tensor_cores.operands_of(problem), gather)
        assert tiles and all(tile.shared_bytes <= 64 << 10 for tile in tiles)


def test_tensor_core_tiles_fit_their_problems():
    def config(*shapes, make=forward, **options):
        problem = make(*shapes, dtype="float16", data_format="NHWC", padding=1, **options)
        return ALGORITHM._config(problem, bundling(problem), 64 << 20)

    assert config((32, 56, 56, 256), (256, 256, 3, 3)).tile in (tensor_cores.WIDE, tensor_cores.LARGE)
    assert config((32, 56, 56, 256), (256, 256, 3, 3)).splits == 1
    assert config((32, 56, 56, 64), (64, 64, 3, 3)).tile == tensor_cores.TALL
    assert config((32, 56, 56, 64), (64, 64, 3, 3), make=weight_grad).splits > 8
    assert config((1, 7, 7, 512), (512, 512, 3, 3)).splits > 1


# -- measured configurations ------------------------------------------------------------------------------------------


def test_every_configuration_keeps_the_promise():
    problem = forward((2, 9, 10, 64), (100, 64, 3, 3), dtype="float16", data_format="NHWC", padding=1, bias=True)
    operands = finite_operands(problem)
    configurations = {c.configuration: c for c in ALGORITHM.configurations(problem)}
    assert {"128x256", "128x128", "128x64", "64x64", "64x64, sums over 1 waves"} <= configurations.keys()
    for configuration in configurations.values():
        check(configuration, problem, operands)


def test_the_configuration_measured_fastest_is_taken_and_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(machine, "identity", lambda device: "a GPU")
    monkeypatch.setattr(machine, "gpu", lambda: Machine(132, 6e13, 3e12, 5e-6))
    for module in ("dispatch", "explanation"):
        monkeypatch.setattr(f"fastconv.{module}.why_no_gpu", lambda: None)
    calling.choose_anew()
    problem = forward((8, 28, 28, 64), (64, 64, 3, 3), dtype="float16", data_format="NHWC", padding=1)
    assert choose(problem, "gpu", "implicit_gemm").configuration == ""
    times = {"implicit_gemm": 3e-5, "implicit_gemm 64x64": 2e-5, "implicit_gemm 128x64": 4e-5, "direct": 1e-3}
    remembered.remember(problem, "gpu", Record(times, times | {"implicit_gemm 128x64": 1e-5}))
    calling.choose_anew()
    try:
        for algorithm in ("auto", "implicit_gemm"):
            assert choose(problem, "gpu", algorithm).key == "implicit_gemm 64x64"
            assert choose(problem, "gpu", algorithm, prepared=True).key == "implicit_gemm 128x64"
        explanation = describe(problem, device="gpu")
        (row,) = (r for r in explanation.rows if (r.device, r.algorithm) == ("gpu", "implicit_gemm"))
        assert (row.call.configuration, row.call.seconds, row.call.chosen) == ("64x64", 2e-5, True)
        assert "-> 0.01 ms measured (128x64)" in str(explanation)
    finally:
        calling.choose_anew()
