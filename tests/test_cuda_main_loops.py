"""What stands in the main loop of a kernel, read in the PTX that NVRTC makes of it, without a GPU."""

import re

import pytest

from fastconv.compilation import programs
from fastconv.gpu.source import program

LABEL = re.compile(r"(\$L__BB\w+):")
BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$L__BB\w+)")


def ptx_of(spec):
    nvrtc = pytest.importorskip("cupy.cuda").nvrtc
    handle = nvrtc.createProgram(program(spec.file), spec.file, (), ())
    nvrtc.compileProgram(handle, (*spec.options, spec.architecture(90).replace("sm_", "compute_")))
    return nvrtc.getPTX(handle).decode()


def main_loops(ptx):
    """The innermost loops in which matrices are multiplied: what is between a branch back and where it goes."""
    lines = ptx.splitlines()
    labels = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line))}
    branches = ((labels.get(match[1], i), i) for i, line in enumerate(lines) if (match := BRANCH.search(line)))
    loops = [(first, last) for first, last in branches if first < last and "mma" in "\n".join(lines[first:last])]
    inner = [(a, b) for a, b in loops if not any(a <= first and last < b for first, last in loops)]
    return ["\n".join(lines[first:last]) for first, last in inner]


@pytest.mark.parametrize(
    "name",
    [
        "implicit_gemm float16 0 128 256",
        "implicit_gemm int8 0 64 64 32 32 4 3 1 1 0 0",
        "implicit_gemm float16 0 64 64 32 32 4 3 8 8 0 1",
        "implicit_gemm float32 1 128 64 64 32 4 2 4 1 0 0",
        "implicit_gemm_hopper float16 128 256",
    ],
)
def test_the_main_loop_divides_nothing(name):
    ((spec, *_), *_) = programs(90, (name,))
    ptx = ptx_of(spec)
    loops = main_loops(ptx)
    division = re.compile(r"\b(div|rem)\.")
    assert loops
    assert not any(map(division.search, loops))
    assert division.search(ptx)  # it is found where there is one: before the loop, a block finds its positions by it
