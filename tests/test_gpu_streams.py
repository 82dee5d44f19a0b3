"""Streams, graphs and devices: where work on GPU arrays is done. Without a GPU these tests are skipped."""

import numpy as np
import pytest
from promise import assert_kept
from test_gpu import ALGORITHMS, WITH_EACH, cupy  # noqa: F401

import fastconv
from fastconv.dispatch import Execution
from fastconv.gpu import runtime, selfcheck
from fastconv.gpu.runtime import CupyRuntime
from fastconv.problem import ConvProblem
from fastconv.sampling import random_operands

# Long sums of few results, which blocks share: every algorithm that has scratch memory uses it.
PROBLEM = ConvProblem.forward(2, (2, 64, 14, 14), (64, 64, 3, 3), padding=1, bias=True, activation="relu")


@pytest.fixture
def torch(cupy):  # noqa: F811
    """PyTorch, where it has a GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return torch


@pytest.fixture
def second_gpu(cupy):  # noqa: F811
    """The number of another GPU than the current one."""
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    return 1


def new_operands(seed):
    return random_operands(PROBLEM, np.random.default_rng(seed))


@WITH_EACH
def test_a_captured_call_can_be_replayed(cupy, algorithm):  # noqa: F811
    """With new numbers in the arrays, and after other work has taken what memory is free."""
    if algorithm.why_not(PROBLEM) is not None:
        pytest.skip(algorithm.why_not(PROBLEM))
    execution = Execution(PROBLEM, algorithm)
    a, b, bias, _ = new_operands(1)
    x, w, added = map(cupy.asarray, (a, b, bias))
    out = cupy.empty(PROBLEM.result_shape, np.float32)
    packed = execution.pack(w)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    layer = fastconv.Conv2d(w, added, padding=1, activation="relu", algorithm=algorithm.name)
    with stream:
        execution(x, w, added, out=out, packed=packed)  # the first one, which prepares
        layer(x, out=out)
        stream.begin_capture()
        layer(x, out=out)
        graph = stream.end_capture()
    for seed in (2, 3):
        a, _, _, _ = new_operands(seed)
        x.set(a)
        others = [cupy.full(1 << 20, np.nan, np.float32) for _ in range(20)]
        out.fill(np.nan)
        cupy.cuda.Device().synchronize()
        graph.launch(stream)
        stream.synchronize()
        assert_kept(algorithm, PROBLEM, out.get(), a, b, bias)
        del others


def test_the_first_call_cannot_be_captured(cupy, monkeypatch):  # noqa: F811
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    monkeypatch.setattr(runtime, "_current", CupyRuntime())
    x, w = cupy.ones((1, 3, 11, 13), np.float32), cupy.ones((5, 3, 3, 3), np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    CupyRuntime._kernel.cache_clear()
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="before the stream is captured"):
            fastconv.conv2d(x, w, algorithm="direct")
        stream.end_capture()
    assert fastconv.conv2d(x, w, algorithm="direct").shape == (1, 5, 9, 11)


def test_torch_tensors_are_worked_on_in_torchs_stream(torch):
    """The stream is kept busy, so what ran on another one would read operands that are not there yet."""
    a, b, bias, _ = new_operands(1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        busy = torch.ones(4096, 4096, device="cuda")
        for _ in range(20):
            busy = busy @ busy * 1e-4
        nothing = busy[0, 0] * 0
        x, w, added = (torch.from_numpy(v).cuda(non_blocking=True) + nothing for v in (a, b, bias))
        y = fastconv.conv2d(x, w, added, padding=1, activation="relu")
        result = (y + nothing).cpu().numpy()
    assert_kept(ALGORITHMS["direct"], PROBLEM, result, a, b, bias)


def test_results_come_from_torchs_memory(torch):
    x, w = torch.ones(8, 16, 64, 64, device="cuda"), torch.ones(16, 16, 3, 3, device="cuda")
    fastconv.conv2d(x, w)
    before = torch.cuda.memory_allocated()
    y = fastconv.conv2d(x, w)
    assert torch.cuda.memory_allocated() - before >= y.numel() * 4
    del y
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_torch_graphs(torch, dtype):
    a, b, bias, _ = new_operands(1)
    x, w = (torch.from_numpy(v).cuda().to(getattr(torch, dtype)) for v in (a, b))
    added = torch.from_numpy(bias).cuda()

    def call():
        with torch.no_grad():
            return fastconv.conv2d(x, w, added, padding=1, activation="relu")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    for seed in (2, 3):
        x.copy_(torch.from_numpy(new_operands(seed)[0]))
        others = [torch.full((1 << 20,), torch.nan, device="cuda") for _ in range(20)]
        graph.replay()
        assert torch.equal(y, call())
        del others


def test_arrays_on_another_gpu(cupy, second_gpu):  # noqa: F811
    a, b, bias, _ = new_operands(1)
    layer = fastconv.Conv2d(cupy.asarray(b), cupy.asarray(bias), padding=1, activation="relu")
    for device in (second_gpu, 0):
        with cupy.cuda.Device(device):
            x, w, added = map(cupy.asarray, (a, b, bias))
        for y in (fastconv.conv2d(x, w, added, padding=1, activation="relu"), layer(x)):
            assert y.device.id == device
            assert_kept(ALGORITHMS["direct"], PROBLEM, y.get(), a, b, bias)
    assert cupy.cuda.Device().id == 0


def test_out_on_another_gpu_is_refused(cupy, second_gpu):  # noqa: F811
    x, w = cupy.ones((1, 3, 11, 13), np.float32), cupy.ones((5, 3, 3, 3), np.float32)
    with cupy.cuda.Device(second_gpu):
        out = cupy.empty((1, 5, 9, 11), np.float32)
    with pytest.raises(TypeError, match="on the device of the operands"):
        fastconv.conv2d(x, w, out=out)


def test_torch_tensors_on_another_gpu(torch, second_gpu):
    a, b, _, _ = new_operands(1)
    x, w = (torch.from_numpy(v).to(f"cuda:{second_gpu}") for v in (a, b))
    y = fastconv.conv2d(x, w, padding=1)
    assert y.device.index == second_gpu
    torch.testing.assert_close(y.cpu(), torch.nn.functional.conv2d(x.cpu(), w.cpu(), padding=1), rtol=1e-3, atol=1e-3)
