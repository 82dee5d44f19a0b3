"""Every CPU algorithm, and pooling, in other vectors than the host's: LLVM makes wide ones of several narrow ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastconv.machine import vector_bytes

# Set before anything asks for it. Kernels of another width are kept apart from the host's own.
_RUN = """
import sys
import fastconv.machine
fastconv.machine.vector_bytes = lambda: int(sys.argv[1])
import numpy as np
import fastconv
from fastconv import pooling_reference
from fastconv.pooling_problem import PoolProblem
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms
from promise import assert_kept
from strategies import make_operands

PROBLEMS = [
    ConvProblem.forward(2, (2, 5, 13, 11), (19, 5, 3, 3), padding=1, bias=True, activation="relu"),
    ConvProblem.forward(2, (1, 14, 14, 20), (17, 20, 3, 3), padding=1, data_format="NHWC"),
    ConvProblem.forward(2, (1, 24, 12, 13), (40, 24, 1, 1)),
    ConvProblem.forward(2, (2, 29, 1, 1), (19, 29, 1, 1), dtype="float64"),
    ConvProblem.forward(2, (1, 6, 17, 19), (6, 1, 5, 3), groups=6, stride=2, padding=2),
    ConvProblem.forward(2, (1, 18, 9, 40), (18, 1, 3, 3), groups=18, padding=1),
    ConvProblem.forward(2, (1, 9, 11, 20), (20, 4, 3, 3), groups=5, padding=1, bias=True, data_format="NHWC"),
    ConvProblem.transposed(1, (2, 7, 30), (7, 9, 4), stride=2, padding=1),
    ConvProblem.forward(1, (1, 3, 700), (4, 3, 129), padding=64),
    ConvProblem.forward(2, (1, 5, 13, 11), (19, 5, 3, 3), padding=1, dtype="int8"),
]
done = 0
for problem in PROBLEMS:
    operands = make_operands(problem)
    for algorithm in algorithms("cpu"):
        if algorithm.why_not(problem) is None:
            out = np.empty(problem.result_shape, problem.result_dtype)
            algorithm.apply(problem, *operands[:2], out, *operands[2:])
            assert_kept(algorithm, problem, out, *operands)
            done += 1
assert done > 2 * len(PROBLEMS)

x = np.random.default_rng(0).random((2, 21, 14, 13), np.float32)
for data_format in ("NCHW", "NHWC"):
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if data_format == "NHWC" else x
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 1, 2), ((14, 13), 1, 0), (2, 4, 0)):
        case = {"stride": stride, "padding": padding, "data_format": data_format}
        largest, mean = (PoolProblem.sliding(op, 2, x.shape, kernel, **case) for op in ("max", "sum"))
        y, indices = fastconv.max_pool2d(x, kernel, return_indices=True, **case)
        np.testing.assert_array_equal(y, pooling_reference.pool(largest, x))
        np.testing.assert_array_equal(fastconv.max_pool2d(x, kernel, **case), y)
        np.testing.assert_array_equal(indices, pooling_reference.indices(largest, x))
        result = fastconv.avg_pool2d(x, kernel, count_include_pad=False, **case)
        np.testing.assert_allclose(result, pooling_reference.pool(mean, x), rtol=1e-5)
        result = fastconv.grad.avg_pool2d_input(x.shape, y, kernel, count_include_pad=False, **case)
        np.testing.assert_allclose(result, pooling_reference.gradient(mean, x, y), rtol=1e-5)
"""


@pytest.mark.parametrize("width", [w for w in (16, 32, 64) if w != vector_bytes()])
def test_algorithms_in_vectors_of(width):
    run = subprocess.run(
        [sys.executable, "-c", _RUN, str(width)], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
