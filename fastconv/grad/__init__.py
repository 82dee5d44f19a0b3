"""Gradients of convolutions and of transposed convolutions, as functions of arrays.

Each computes what a framework's backward pass needs of one layer: given the gradient of some number with respect to the
layer's result, that with respect to its input, its weight or its bias. Arguments and their order are those of
``torch.nn.grad``, followed by the keyword arguments of the layer's own function here.

The gradient of a complex argument is the plain sum, without conjugation: the adjoint of ``y = conv(x, w)`` as a map of
``x`` is ``conv2d_input(x.shape, w.conj(), y)``.

Examples
--------
One step down the gradient of ``sum((conv1d(x, w) - target) ** 2) / 2``:

>>> import numpy as np, fastconv
>>> x, w, target = np.array([[1.0, 2.0, 3.0]]), np.array([[[0.0, 1.0]]]), np.array([[1.0, 2.0]])
>>> residual = fastconv.conv1d(x, w) - target
>>> fastconv.grad.conv1d_weight(x, w.shape, residual)
array([[[3., 5.]]])
"""

from fastconv.grad.adaptive_pooling import (
    adaptive_avg_pool1d_input,
    adaptive_avg_pool2d_input,
    adaptive_avg_pool3d_input,
)
from fastconv.grad.bias import conv1d_bias, conv2d_bias, conv3d_bias
from fastconv.grad.convolution import (
    conv1d_input,
    conv1d_weight,
    conv2d_input,
    conv2d_weight,
    conv3d_input,
    conv3d_weight,
)
from fastconv.grad.pooling import (
    avg_pool1d_input,
    avg_pool2d_input,
    avg_pool3d_input,
    lp_pool1d_input,
    lp_pool2d_input,
    lp_pool3d_input,
    max_pool1d_input,
    max_pool2d_input,
    max_pool3d_input,
)
from fastconv.grad.transposed import (
    conv_transpose1d_input,
    conv_transpose1d_weight,
    conv_transpose2d_input,
    conv_transpose2d_weight,
    conv_transpose3d_input,
    conv_transpose3d_weight,
)

__all__ = [
    "adaptive_avg_pool1d_input",
    "adaptive_avg_pool2d_input",
    "adaptive_avg_pool3d_input",
    "avg_pool1d_input",
    "avg_pool2d_input",
    "avg_pool3d_input",
    "conv1d_bias",
    "conv1d_input",
    "conv1d_weight",
    "conv2d_bias",
    "conv2d_input",
    "conv2d_weight",
    "conv3d_bias",
    "conv3d_input",
    "conv3d_weight",
    "conv_transpose1d_input",
    "conv_transpose1d_weight",
    "conv_transpose2d_input",
    "conv_transpose2d_weight",
    "conv_transpose3d_input",
    "conv_transpose3d_weight",
    "lp_pool1d_input",
    "lp_pool2d_input",
    "lp_pool3d_input",
    "max_pool1d_input",
    "max_pool2d_input",
    "max_pool3d_input",
]
