"""The same bits whatever the number of threads; many callers at once; forked children; a cache shared by processes."""

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from promise import assert_kept
from strategies import make_operands, numpy_dtype

import fastconv
from fastconv.cpu.jit import Kernel, array, integer
from fastconv.problem import OPS, ConvProblem
from fastconv.registry import algorithms

each_algorithm = pytest.mark.parametrize("algorithm", algorithms("cpu"), ids=lambda a: a.name)

# Enough work for several threads, and sizes that no block divides.
LARGE = {
    "dense": ConvProblem.forward(2, (3, 37, 41, 43), (51, 37, 3, 3), padding=1),
    "one image": ConvProblem.forward(2, (1, 19, 97, 89), (23, 19, 3, 3), stride=2, bias=True, activation="silu"),
    "depthwise": ConvProblem.forward(2, (2, 61, 57, 59), (61, 1, 5, 5), groups=61, padding=2),
    "signal": ConvProblem.forward(1, (1, 5, 20011), (7, 5, 31), padding="causal"),
    "volume": ConvProblem.forward(3, (1, 7, 17, 19, 23), (11, 7, 3, 3, 3), padding=1, padding_mode="reflect"),
}


def compute(algorithm, problem, arrays):
    reason = algorithm.why_not(problem)
    if reason is not None:
        pytest.skip(reason)
    out = np.empty(problem.result_shape, numpy_dtype(problem.result_dtype))
    algorithm.apply(problem, *arrays[:2], out, *arrays[2:])
    return out


@each_algorithm
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("op", OPS)
def test_the_number_of_threads_does_not_change_a_bit(algorithm, name, op):
    p = dataclasses.replace(LARGE[name], op=op)
    if op != "forward":
        p = dataclasses.replace(p, bias=False, padding_mode="zeros")
    arrays = make_operands(p)
    with fastconv.threads(1):
        expected = compute(algorithm, p, arrays)
    assert_kept(algorithm, p, expected, *arrays)
    for n in (2, 3, 8):
        with fastconv.threads(n):
            assert compute(algorithm, p, arrays).tobytes() == expected.tobytes()


@each_algorithm
@pytest.mark.parametrize("dtype", ["float16", "float64", "complex64"])
def test_the_same_call_gives_the_same_bits(algorithm, dtype):
    p = dataclasses.replace(LARGE["dense"], dtype=dtype)
    arrays = make_operands(p)
    assert len({compute(algorithm, p, arrays).tobytes() for _ in range(5)}) == 1


@each_algorithm
def test_eight_callers_at_once(algorithm):
    once = [(p, make_operands(p)) for p in LARGE.values() if algorithm.why_not(p) is None]
    cases, expected = once * 8, [compute(algorithm, *case).tobytes() for case in once] * 8
    together = threading.Barrier(8)

    def run(index):
        if index < 8:
            together.wait()
        with fastconv.threads(1 + index % 3):
            return compute(algorithm, *cases[index]).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(len(cases)))) == expected


def test_threads_holds_in_its_own_python_thread_only():
    before = fastconv.get_num_threads()
    with fastconv.threads(before + 3):
        assert fastconv.get_num_threads() == before + 3
        with fastconv.threads(1):
            assert fastconv.get_num_threads() == 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(fastconv.get_num_threads).result() == before
    assert fastconv.get_num_threads() == before
    try:
        fastconv.set_num_threads(before + 1)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(fastconv.get_num_threads).result() == before + 1
    finally:
        fastconv.set_num_threads(before)


# -- fork -------------------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def in_forked_child(function):
    """Run `function` in a fork of this process; a child that hangs fails the test, not the session."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        child.join()
        pytest.fail("the forked child hangs")
    assert child.exitcode == 0


@needs_fork
@forks
@each_algorithm
def test_a_child_forked_after_use_computes(algorithm):
    p = LARGE["dense"]
    arrays = make_operands(p)
    with fastconv.threads(4):
        expected = compute(algorithm, p, arrays).tobytes()

    def child():
        with fastconv.threads(4):
            assert compute(algorithm, p, arrays).tobytes() == expected
            in_forked_child(grandchild)

    def grandchild():
        with fastconv.threads(2), ThreadPoolExecutor(4) as pool:
            results = pool.map(lambda _: compute(algorithm, p, arrays).tobytes(), range(8))
            assert set(results) == {expected}

    in_forked_child(child)
    assert compute(algorithm, p, arrays).tobytes() == expected


@contextlib.contextmanager
def busy(work, threads):
    """Others who call `work` over and over meanwhile."""
    stop = threading.Event()

    def loop():
        while not stop.is_set():
            work()

    others = [threading.Thread(target=loop) for _ in range(threads)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        stop.set()
        for other in others:
            other.join()


@needs_fork
@forks
@each_algorithm
def test_a_child_forked_while_others_compute(algorithm):
    p = LARGE["one image"]
    arrays = make_operands(p)
    expected = compute(algorithm, p, arrays).tobytes()

    def child():
        with fastconv.threads(3):
            assert compute(algorithm, p, arrays).tobytes() == expected

    with busy(lambda: compute(algorithm, p, arrays), threads=3):
        for _ in range(10):
            in_forked_child(child)


@needs_fork
@forks
@pytest.mark.parametrize("lock", ["team._growing", "blas._lock"])
def test_a_child_does_not_wait_for_a_lock_that_was_held_at_the_fork(lock):
    """What the test before this one would meet once in a thousand runs."""
    from fastconv.cpu import blas, team

    modules = {"team": team, "blas": blas}
    module, name = lock.split(".")
    p = LARGE["dense"]
    arrays = make_operands(p)

    def child():
        with fastconv.threads(64):
            for algorithm in (a for a in algorithms("cpu") if a.why_not(p) is None):
                assert_kept(algorithm, p, compute(algorithm, p, arrays), *arrays)

    with getattr(modules[module], name):
        in_forked_child(child)


# -- kernels kept on disk ---------------------------------------------------------------------------------------------

COMPUTE = """
import sys
import numpy as np, ml_dtypes
import fastconv
for name in sys.argv[1:]:
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    x = np.arange(-8, 8).reshape(1, 2, 8).astype(dtype)
    w = np.array([[[1, -2], [0.5, 3]]]).astype(dtype)
    y = fastconv.conv1d(x, w, algorithm="direct")
    wide = [v.astype(np.float64)[0] for v in (x, w)]
    exact = sum(np.correlate(a, b) for a, b in zip(*wide))
    assert y.dtype == dtype and np.array_equal(y[0, 0].astype(np.float64), exact), (name, y, exact)
print("compiled" if "numba" in sys.modules else "loaded")
"""


@pytest.fixture
def sandbox(tmp_path):
    """A copy of the package with a cache of its own, and how to run a script on it."""
    shutil.copytree(Path(fastconv.__file__).parent, tmp_path / "fastconv", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "FASTCONV_CACHE_DIR": str(tmp_path / "cache")}

    def start(*dtypes):
        command = [sys.executable, "-c", COMPUTE, *dtypes]
        return subprocess.Popen(
            command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return start


def finished(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output.strip()


def test_processes_share_kernels_and_never_take_each_others(sandbox, tmp_path):
    """float16 and bfloat16 travel as the same 16-bit integers; float32 and float64 differ by type alone."""
    starts = [("float32", "float16"), ("float32", "float16"), ("float64", "bfloat16")]  # all at once
    assert [finished(process) for process in [sandbox(*dtypes) for dtypes in starts]] == ["compiled"] * 3
    assert finished(sandbox("float64", "bfloat16", "float16", "float32")) == "loaded"
    assert not list(tmp_path.glob("cache/kernels/*/tmp*")), "unfinished files are left"
    # Kernels inline helpers from other files: when one of those changes, no old code may be loaded.
    with (tmp_path / "fastconv" / "cpu" / "elements.py").open("a") as file:
        file.write("# changed\n")
    assert finished(sandbox("float32")) == "compiled"
    assert finished(sandbox("float32")) == "loaded"


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_a_damaged_object_file_is_made_anew(sandbox, tmp_path, damage):
    assert finished(sandbox("float32")) == "compiled"
    for path in tmp_path.glob("cache/kernels/*/*.o"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes({"cut": content[:-100], "altered": content, "empty": b""}[damage])
    assert finished(sandbox("float32")) == "compiled"
    assert finished(sandbox("float32")) == "loaded"


def test_without_a_place_for_files_kernels_are_compiled_in_memory(sandbox, tmp_path):
    (tmp_path / "cache").write_text("a file where the directory should be")
    assert finished(sandbox("float32")) == finished(sandbox("float32")) == "compiled"


NUMBA_BESIDE = """
import numpy as np, numba

@numba.njit
def before(n):
    words = {}
    for i in range(n):
        words[i] = str(i)
    return len(words) + np.linalg.norm(np.ones(n))

assert before(4) == 6
import fastconv
x, w = np.ones((1, 4, 8, 8), np.float32), np.ones((4, 4, 3, 3), np.float32)
for algorithm in ("direct", "depthwise"):
    assert (fastconv.conv2d(x, w, algorithm=algorithm) == 36).all()

@numba.njit(parallel=True)
def after(n):
    total = 0.0
    for i in numba.prange(n):
        total += np.sqrt(i)
    return np.sort(np.array([total, 1.0]))

assert after(3)[0] == 1
assert before(4) == 6
"""


def test_kernels_and_the_users_own_numba_leave_each_other_alone(tmp_path):
    """Numba keeps much of what it knows in one place for the whole process."""
    environment = os.environ | {"FASTCONV_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", NUMBA_BESIDE], env=environment, check=True, timeout=300)


def nothing(n):
    """A kernel."""


def test_object_files_of_old_versions_are_deleted(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    old, recent = (tmp_path / "kernels" / name for name in ("old", "recent"))
    for generation in (old, recent):
        generation.mkdir(parents=True)
        (generation / "kernel.o").touch()
    os.utime(old, times=(0, 0))
    Kernel(nothing).compile(integer)
    assert not old.exists()
    assert recent.exists()


def test_a_kernel_refuses_arguments_other_than_those_declared():
    def double(x, y):
        for i in range(x.shape[0]):
            y[i] = 2 * x[i]

    kernel = Kernel(double).compile(array(np.dtype("f4"), 1), array(np.dtype("f4"), 1, contiguous=True, readonly=False))
    x, y = np.arange(6, dtype="f4")[::2], np.empty(3, "f4")
    assert kernel(x, y) is None
    assert y.tolist() == [0, 4, 8]
    readonly = y.copy()
    readonly.flags.writeable = False
    for wrong in ((x,), (x, y, y), (x, None), (x, [0, 0, 0]), (x[None], y), (x, x), (x, readonly), (x, y.astype("f8")),
                  (x.astype("i4"), y)):  # fmt: skip
        with pytest.raises(TypeError, match="kernel double: expected"):
            kernel(*wrong)
    count = Kernel(nothing).compile(integer)
    assert count(np.int64(3)) is None
    for wrong in (1.5, "1", None, y):
        with pytest.raises(TypeError):
            count(wrong)
    with pytest.raises(OverflowError):
        count(1 << 63)
