"""Convolution for arrays: every kind, one dispatcher, CPU and CUDA kernels, checked against a NumPy reference.

>>> import numpy as np, fastconv
>>> fastconv.conv2d(np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), padding="same").shape
(1, 4, 8, 8)

Importing this costs NumPy and nothing more; Numba, CuPy and torch are imported where first needed.
"""

from fastconv import grad
from fastconv.adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
)
from fastconv.dispatch import execute
from fastconv.explanation import explain
from fastconv.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from fastconv.layers import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from fastconv.pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from fastconv.problem import ConvProblem
from fastconv.settings import get_num_threads, set_num_threads, set_recycling_limit, set_workspace_limit, threads
from fastconv.shapes import conv_output_shape, conv_transpose_output_shape
from fastconv.tuning import tune
from fastconv.unfolding import fold, unfold
from fastconv.warming import warmup

__version__ = "0.1.0"

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvProblem",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_output_shape",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_transpose_output_shape",
    "execute",
    "explain",
    "fold",
    "get_num_threads",
    "grad",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "set_num_threads",
    "set_recycling_limit",
    "set_workspace_limit",
    "threads",
    "tune",
    "unfold",
    "warmup",
]
