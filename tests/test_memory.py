"""Memory: results in that of dead ones, and how much a call takes beside its arrays."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from strategies import make_operands

import fastconv
from fastconv import recycling
from fastconv.lowering import Views
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms

SHAPE, FLOAT = (4, 256, 1024), np.dtype(np.float32)  # 4 MiB


@pytest.fixture
def idle(monkeypatch):
    """The blocks that nobody uses, none at first."""
    recycling._idle.clear()
    yield recycling._idle
    fastconv.set_recycling_limit(256 << 20)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again(idle):
    first = recycling.empty(SHAPE, FLOAT)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    where = address(first)
    assert where % 64 == 0
    del first
    assert len(idle) == 1
    assert address(recycling.empty((SHAPE[0] * SHAPE[1] * SHAPE[2],), FLOAT)) == where
    assert recycling.empty((300, 1024), FLOAT).size  # less than half of it: not worth so large a block
    assert address(recycling.empty((9, 100, 1024), FLOAT)) == where


def test_views_keep_the_memory(idle):
    first = recycling.empty(SHAPE, FLOAT)
    first[:] = 7
    views = [first.transpose(2, 0, 1)[5, ::3], memoryview(first[1]), first[2:, 3].view(np.int32)]
    del first
    second = recycling.empty(SHAPE, FLOAT)
    second[:] = 8
    assert not any(np.shares_memory(second, v) for v in views)
    assert (views[0] == 7).all()
    assert len(idle) == 0
    del views
    assert len(idle) == 1


def test_small_results_are_numpys_own(idle):
    y = fastconv.conv1d(np.ones((1, 1, 64)), np.ones((1, 1, 3)))
    assert y.base is None
    del y
    assert len(idle) == 0


def test_a_convolution_writes_all_of_a_used_block(idle):
    x, w = np.ones((1, 3, 300, 400), np.float32), np.ones((4, 3, 3, 3), np.float32)
    expected = fastconv.conv2d(x, w, algorithm="direct").copy()
    for block in idle:
        block[:] = 255  # NaN
    assert len(idle) == 1
    again = fastconv.conv2d(x, w, algorithm="direct")
    assert len(idle) == 0
    np.testing.assert_array_equal(again, expected)


def test_what_is_kept_is_bounded(idle):
    fastconv.set_recycling_limit(10 << 20)
    for arrays in ([recycling.empty(SHAPE, FLOAT) for _ in range(5)], [recycling.empty((5 << 20,), FLOAT)]):
        arrays.clear()
        assert sum(block.size for block in idle) <= 10 << 20
    fastconv.set_recycling_limit(0)
    recycling.empty(SHAPE, FLOAT)
    assert len(idle) == 0
    with pytest.raises(ValueError, match="n_bytes=-1: expected an integer of at least 0"):
        fastconv.set_recycling_limit(-1)
    with pytest.raises(TypeError, match=r"n_bytes=1\.5: expected an integer"):
        fastconv.set_recycling_limit(1.5)


def test_no_two_threads_get_the_same_memory(idle):
    def work(number):
        rng, kept = np.random.default_rng(number), []
        for turn in range(50):
            array = recycling.empty((int(rng.integers(1 << 18, 1 << 19)),), FLOAT)
            array[:] = value = number + 8 * turn
            kept = [*kept[-2:], (array[1000::7], value)]
            assert all((view == value).all() for view, value in kept)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def traced_peak(function):
    """Most bytes that a call has allocated at once, in a thread that has no scratch memory yet."""

    def trace():
        tracemalloc.start()
        function()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    peaks = []
    thread = threading.Thread(target=trace)
    thread.start()
    thread.join()
    return peaks[0]


PROBLEMS = {
    "dense": ConvProblem.forward(2, (2, 64, 96, 96), (64, 64, 3, 3), padding=1),
    "pointwise": ConvProblem.forward(2, (1, 256, 64, 64), (256, 256, 1, 1)),
    "depthwise": ConvProblem.forward(2, (1, 128, 96, 96), (128, 1, 7, 7), padding=3, groups=128),
    "large kernel": ConvProblem.forward(2, (1, 8, 128, 128), (8, 8, 31, 31), padding=15),
    "transposed": ConvProblem.transposed(2, (1, 64, 48, 48), (64, 64, 4, 4), stride=2, padding=1),
}


@pytest.mark.parametrize("algorithm", algorithms("cpu"), ids=lambda a: a.name)
@pytest.mark.parametrize("name", PROBLEMS)
def test_scratch_memory_stays_within_the_limit(algorithm, name):
    p, limit = PROBLEMS[name], 4 << 20
    reason = algorithm.why_not(p)
    if reason is not None:
        pytest.skip(reason)
    a, b, *_ = make_operands(p)
    out, views = np.empty(p.result_shape, np.float32), Views(p)
    with fastconv.threads(1):
        plan = algorithm.plan(p, limit)
    packed = plan.pack(views.weight(b))

    def run():
        with fastconv.threads(1):
            plan.run(views.source(a), packed, views.result(out), None, None)

    run()
    assert traced_peak(run) <= limit + (64 << 10)


def test_out_is_written_in_place_without_another_array():
    x, w = np.ones((1, 16, 256, 256), np.float32), np.ones((16, 16, 3, 3), np.float32)
    layer = fastconv.Conv2d(w, padding=1, algorithm="direct")
    out = layer(x)
    assert traced_peak(lambda: layer(x, out=out)) < out.nbytes / 4
