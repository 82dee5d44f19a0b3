"""NumPy arrays computed on a GPU in chunks: how many, whether it pays, and that the parts make up the whole.

The kernels run in the emulation, so copies take no time here; tests/test_gpu.py has the same on a GPU.
"""

import dataclasses
import math

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler
from promise import assert_kept

from fastconv import calling, dispatch, remembered
from fastconv.arrays import named_dtype
from fastconv.gpu import runtime, transfers
from fastconv.gpu.transfers import Transfers
from fastconv.offloading import Offloaded, schedule
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms
from fastconv.remembered import Record
from fastconv.sampling import random_operands, random_values

DIRECT = next(a for a in algorithms("gpu") if a.name == "direct")
FORWARD = ConvProblem.forward(2, (7, 4, 9, 10), (6, 4, 3, 3), padding=1, bias=True, residual=True, activation="relu")
LAST = ConvProblem.forward(2, (2, 3, 9, 10, 4), (6, 2, 3, 3), groups=2, stride=2, data_format="NHWC", dtype="float16")
TRANSPOSED = ConvProblem.transposed(1, (5, 4, 9), (4, 6, 3), stride=2, bias=True)
WEIGHT = dataclasses.replace(ConvProblem.forward(2, (2, 3, 4, 9, 10), (6, 4, 3, 3)), op="weight_grad")
REFLECTED = dataclasses.replace(
    ConvProblem.forward(2, (5, 4, 9, 10), (6, 4, 3, 3), padding=2, padding_mode="reflect"), op="input_grad"
)
PROBLEMS = {"forward": FORWARD, "channels last": LAST, "transposed": TRANSPOSED, "weight gradient": WEIGHT}


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")
class TestInTheEmulation:
    """What chunks add up to."""

    @pytest.fixture(autouse=True)
    def emulated(self):
        """The kernels on the CPU."""
        with runtime.use(EmulatedRuntime()) as emulated, np.errstate(all="ignore"):
            yield emulated

    @pytest.mark.parametrize("images", [1, 2, 3, 7, 20])
    @pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
    @pytest.mark.parametrize("into", ["new", "strided"])
    def test_chunks_make_up_the_result(self, problem, images, into):
        operands = a, b, bias, residual = random_operands(problem, np.random.default_rng(1))
        out = None
        if into == "strided":
            out = np.empty(problem.result_shape[::-1], named_dtype(problem.result_dtype)).T
        result = Offloaded(problem, DIRECT, images)(a, b, bias, residual, out)
        assert out is None or result is out
        assert_kept(DIRECT, problem, result, *operands)

    def test_operands_of_other_strides_and_dtypes(self):
        a, b, bias, residual = random_operands(FORWARD, np.random.default_rng(1))
        wide = np.repeat(a.astype(np.float64), 2, 0)[::2]
        result = Offloaded(FORWARD, DIRECT, 3)(wide, b, bias, residual[..., ::-1].copy()[..., ::-1])
        assert_kept(DIRECT, FORWARD, result, a, b, bias, residual)

    def test_a_gradient_is_folded_chunk_by_chunk(self):
        a, b = (random_values(s, "float32", np.random.default_rng(1)) for s in REFLECTED.operand_shapes)
        whole, parts = (Offloaded(REFLECTED, DIRECT, images)(a, b) for images in (5, 2))
        np.testing.assert_array_equal(whole, parts)
        on_cpu = dispatch.execute(REFLECTED, a, b, device="cpu")
        np.testing.assert_allclose(whole, on_cpu, rtol=0, atol=1e-4)

    def test_a_weight_is_packed_once_for_all_chunks(self, emulated):
        execution = Offloaded(FORWARD, DIRECT, 2)
        a, b, bias, residual = random_operands(FORWARD, np.random.default_rng(1))
        packed = execution.pack(b)
        assert_kept(DIRECT, FORWARD, execution(a, None, bias, residual, packed=packed), a, b, bias, residual)

    def test_an_empty_batch(self):
        problem = dataclasses.replace(FORWARD, batch_shape=(0,), bias=False, residual=False)
        x, w = (np.ones(shape, np.float32) for shape in problem.operand_shapes)
        assert Offloaded(problem, DIRECT, 1)(x, w).shape == problem.result_shape

    def test_wrong_shapes_are_named(self):
        a, b, bias, residual = random_operands(FORWARD, np.random.default_rng(1))
        with pytest.raises(ValueError, match=r"residual has shape \(3, 6, 9, 10\): expected \(7, 6, 9, 10\)"):
            Offloaded(FORWARD, DIRECT, 3)(a, b, bias, residual[:3])


FAST = Transfers(to_device=2e10, to_host=2e10, staging=1e12, chunk=1e-5)
LARGE = ConvProblem.forward(2, (64, 64, 112, 112), (64, 64, 3, 3), padding=1)
BYTES = 4 * math.prod(LARGE.x_shape)


def test_all_that_is_moved_counts():
    """With one image a call is one chunk, whose stages follow one another."""
    one = dataclasses.replace(LARGE, batch_shape=(1,))
    transfers = Transfers(to_device=1e10, to_host=2e10, staging=4e10, chunk=1e-5)
    weight = 4 * math.prod(one.w_shape)
    expected = 3e-3 + BYTES / 64 * (1 / 1e10 + 1 / 2e10 + 2 / 4e10) + 1e-5
    assert schedule(one, 3e-3, transfers, prepared=True) == (1, pytest.approx(expected))
    assert schedule(one, 3e-3, transfers, prepared=False) == (1, pytest.approx(expected + weight / 1e10))
    beside = dataclasses.replace(one, residual=True)
    residual = BYTES / 64 * (1 / 1e10 + 1 / 4e10)
    assert schedule(beside, 3e-3, transfers, prepared=True).seconds == pytest.approx(expected + residual)


@pytest.mark.parametrize("computing", [0.0, 1e-3, 1e-2, 1e-1])
def test_chunks_hide_what_they_can(computing):
    """The slowest stage is the floor; one chunk at a time is the ceiling."""
    stages = BYTES / 2e10, computing, BYTES / 2e10
    found = schedule(LARGE, computing, FAST, prepared=True)
    assert max(*stages, sum(stages) / 3) < found.seconds < sum(stages)
    assert 1 <= found.images < 64


def test_chunks_that_cost_much_are_few():
    slow = FAST._replace(chunk=1.0)
    assert schedule(LARGE, 1e-3, slow, prepared=True).images == 64
    images = [schedule(LARGE, 1e-3, FAST._replace(chunk=c), prepared=True).images for c in (1e-6, 1e-4, 1e-2)]
    assert images == sorted(images)


def test_the_last_chunk_wastes_little():
    """Chunks of one more image than fits would compute nearly one chunk for nothing."""
    problem = dataclasses.replace(LARGE, batch_shape=(9,))
    images = schedule(problem, 1e-2, FAST, prepared=True).images
    assert -(-9 // images) * images - 9 <= 1


def test_a_sum_over_the_batch_stays_whole():
    assert schedule(dataclasses.replace(LARGE, op="weight_grad"), 1e-3, FAST, prepared=True).images == 64


def test_an_empty_batch_takes_no_chunks():
    assert schedule(dataclasses.replace(LARGE, batch_shape=(0,)), 0.0, FAST, prepared=True).images == 1


class Costs(EmulatedRuntime):
    """A GPU with known costs of copies."""

    def transfers(self):
        return FAST


@pytest.mark.parametrize(("on_gpu", "expected"), [(0.5e-3, "gpu"), (1.0, "cpu")])
def test_numpy_arrays_go_where_it_pays(monkeypatch, tmp_path, on_gpu, expected):
    """By measured times of both devices and the costs of copies."""
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("fastconv.machine.identity", lambda device: f"a {device}")
    monkeypatch.setattr(dispatch, "why_no_gpu", lambda: None)
    problem = dataclasses.replace(LARGE, batch_shape=(4,))
    for device, seconds in (("cpu", 20e-3), ("gpu", on_gpu)):
        with runtime.use(Costs()):
            willing = [a for a in algorithms(device) if a.why_not(problem) is None]
            times = {one.key: seconds for a in willing for one in (a, *a.configurations(problem))}
        remembered.remember(problem, device, Record(times, times))
    calling.choose_anew()
    with runtime.use(Costs()):
        assert dispatch.place(problem, "auto", "cpu") == expected
        assert dispatch.offloading(problem) == schedule(problem, on_gpu, FAST, prepared=False)
    calling.choose_anew()


def test_measured_costs_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("fastconv.machine.identity", lambda device: f"a {device}")
    assert transfers.recall(lambda: FAST) == FAST
    assert transfers.recall(lambda: pytest.fail("measured again")) == FAST
    (file,) = tmp_path.glob("transfers/*.json")
    for text in ("", "{}", '{"to_device": 1}', '{"to_device": 0.0, "to_host": 1.0, "staging": 1.0, "chunk": 1.0}'):
        file.write_text(text)
        slow = FAST._replace(to_host=1.0)
        assert transfers.recall(lambda slow=slow: slow) == slow


def test_rates_are_measured_from_copies():
    found = transfers.measure(EmulatedRuntime().lanes(1)[0], np.empty)
    assert all(0 < value < math.inf for value in found)
