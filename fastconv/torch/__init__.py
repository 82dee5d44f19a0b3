"""PyTorch: fastconv's functions on tensors, and the convolutions of a model computed by them.

The six functions (:func:`fastconv.conv2d` and its twins) take tensors as they stand: results are tensors, gradients of
any order are recorded, and ``torch.compile``, ``torch.export`` and ``torch.func`` meet an operator that they know
(``operator.py``). :func:`convert` has fastconv compute the convolutions of a model, :func:`replaced` those of code that
you do not own.

Examples
--------
>>> import torch, fastconv
>>> x, w = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3, requires_grad=True)
>>> fastconv.conv2d(x, w, padding=1).sum().backward()
>>> w.grad
tensor([[[[ 9., 12.,  9.],
          [12., 16., 12.],
          [ 9., 12.,  9.]]]])
"""

from fastconv.torch.calls import concerns, convolve
from fastconv.torch.models import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    convert,
    replaced,
    revert,
)

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "concerns",
    "convert",
    "convolve",
    "replaced",
    "revert",
]
