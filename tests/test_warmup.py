"""Compiling ahead: after it, a fresh process calls common layers without the compiler."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv

ROOT = Path(__file__).parents[1]

COMMON_CALLS = """
import sys
import numpy as np, fastconv
x = np.ones((1, 64, 56, 56), np.float32)
dense, depthwise, pointwise = (np.ones(shape, np.float32) for shape in ((64, 64, 3, 3), (64, 1, 3, 3), (64, 64, 1, 1)))
fastconv.conv2d(x, dense, np.ones(64), padding=1, activation="relu")
fastconv.conv2d(x, depthwise, padding=1, groups=64)
fastconv.Conv2d(pointwise)(x)
fastconv.conv_transpose2d(x, dense, stride=2, padding=1)
print("numba" in sys.modules)
"""


def python(*arguments, cache):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FASTCONV_CACHE_DIR": str(cache)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, text=True, capture_output=True, check=False, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_common_calls_find_their_kernels(tmp_path):
    said = python("-m", "fastconv", "warmup", cache=tmp_path)
    kernels = list(tmp_path.glob("kernels/*/*.o"))
    assert re.search(rf"^\d+\.\d s; {len(kernels)} kernels, [\d.]+ MiB, in {kernels[0].parent}$", said, re.MULTILINE)
    assert python("-c", COMMON_CALLS, cache=tmp_path) == "False\n"
    again = "import sys, fastconv; fastconv.warmup(); print('numba' in sys.modules)"
    assert python("-c", again, cache=tmp_path) == "False\n"


def test_a_dtype_that_is_not_supported_is_refused():
    with pytest.raises(ValueError, match="dtype='float8': expected one of float32"):
        fastconv.warmup("float8")
