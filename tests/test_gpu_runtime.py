"""What CuPy is asked for, as far as it answers without a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest

import fastconv
from fastconv import compilation
from fastconv.dispatch import adopt_all
from fastconv.gpu import cubins, direct, implicit_gemm_hopper
from fastconv.gpu.arguments import NO_VIEW, VIEW, record
from fastconv.gpu.source import program

cupy = pytest.importorskip("cupy")


def test_cupy_takes_a_record_by_value():
    """CuPy looks at the parameters before it asks the driver to launch a kernel, which here is none."""
    kernel = cupy.cuda.Function.__new__(cupy.cuda.Function)

    def launch(parameter):
        kernel((1, 1, 1), (1, 1, 1), (parameter,), 0, SimpleNamespace(ptr=0))

    with pytest.raises(TypeError, match="size one"):
        launch(np.zeros(7, np.int64))
    with pytest.raises((cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)):
        launch(record(VIEW, data=0, stride=NO_VIEW[1:]))


NUMPY = np.zeros((1, 1, 3, 3), np.float32)
MIXED = {
    "w": lambda there: fastconv.conv2d(NUMPY, there),
    "bias": lambda there: fastconv.conv2d(NUMPY, NUMPY, there),
    "residual": lambda there: fastconv.conv2d(NUMPY, NUMPY, residual=there),
    "out": lambda there: fastconv.conv2d(NUMPY, NUMPY, out=there),
    "out of a pooling": lambda there: fastconv.max_pool2d(NUMPY, 2, out=there),
}


@pytest.mark.parametrize("argument", MIXED)
def test_arrays_on_two_devices_are_refused_by_name(argument):
    """An array of CuPy's over memory that nobody reads, which takes no GPU."""
    memory = cupy.cuda.UnownedMemory(0, NUMPY.nbytes, None, device_id=0)
    there = cupy.ndarray(NUMPY.shape, np.float32, cupy.cuda.MemoryPointer(memory, 0))
    name = argument.partition(" ")[0]
    with pytest.raises(TypeError, match=rf"^{name} is a cupy array on the gpu, but x is a numpy array on the cpu"):
        MIXED[argument](there)


def test_numpy_operands_beside_cupys_are_refused_by_name():
    memory = cupy.cuda.UnownedMemory(0, NUMPY.nbytes, None, device_id=0)
    there = cupy.ndarray(NUMPY.shape, np.float32, cupy.cuda.MemoryPointer(memory, 0))
    for at, name in enumerate(("w", "bias", "residual", "out"), 1):
        operands = [there, there, None, None, None]
        operands[at] = NUMPY
        with pytest.raises(TypeError, match=f"^{name} is a numpy array on the cpu, but x is a cupy array on the gpu"):
            adopt_all(*operands)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


SPEC = next(iter(implicit_gemm_hopper.ImplicitGemmHopper().variants()))
OPTIONS = *SPEC.options, SPEC.architecture(90)


def test_programs_are_compiled_once(cache):
    code = cubins.cubin(SPEC.file, OPTIONS)
    (path,) = (cache / "cubins").iterdir()
    path.write_bytes(b"what is on the disk")
    assert cubins.cubin(SPEC.file, OPTIONS) == b"what is on the disk"
    assert len(code) > 1000


def test_machine_code_is_whole(cache):
    """As NVRTC itself gives it, but for the hash in it: CuPy leaves out the last byte."""
    expected, _ = compilation._compile(program(SPEC.file), SPEC.file, OPTIONS)
    code = cubins.cubin(SPEC.file, OPTIONS)
    assert len(code) == len(expected)
    assert code[-16:] == expected[-16:]


def test_a_cache_that_cannot_be_written_to_is_done_without(cache):
    cache.write_text("a file where the folder should be")
    assert cubins.cubin(SPEC.file, OPTIONS).startswith(b"\x7fELF")


def test_a_program_that_does_not_compile_says_why(cache):
    options = *SPEC.options, "-arch=sm_90"
    with pytest.raises(RuntimeError, match=r"implicit_gemm_hopper\.cu .*-arch=sm_90: (.|\n)*not supported on .target"):
        cubins.cubin(SPEC.file, options)
    assert not cache.exists()


def test_devices_that_the_compiler_does_not_know_yet_get_ptx(cache):
    assert cubins.architecture(90) == "-arch=sm_90"
    newest = max(cupy.cuda.nvrtc.getSupportedArchs())
    target = cubins.architecture(newest + 50)
    assert target == f"-arch=compute_{newest}"
    spec = direct._spec("direct_thread", "float32")
    code = cubins.cubin(spec.file, (*spec.options, target))
    assert code.startswith(b"//") and f".target sm_{newest}".encode() in code and code.endswith(b"\0")
