"""The convolutions of ``cupy.cudnn``, which CuPy 14 took away: ``from fastconv.compat import cudnn`` is all to change.

Arguments are those of CuPy 13, results are written into the arrays that are given, and these may be CuPy arrays on a
GPU or NumPy arrays. Beyond cuDNN, one spatial axis, any strides in memory and any dtype of :func:`fastconv.conv2d` will
do, complex ones among them.

Three arguments choose among cuDNN's kernels and have nothing to choose here: the dispatcher picks the kernel, every
kernel gives the same bits on every run, and reduced precision is never taken unasked. They are ignored.
"""

from __future__ import annotations

from typing import Any

import fastconv
from fastconv import grad

#: Values of ``d_layout`` and ``w_layout``, as in ``cupy.cuda.cudnn``.
CUDNN_TENSOR_NCHW, CUDNN_TENSOR_NHWC = 0, 1

_TENSOR_CORE = ("auto", "always", "never")
_FUNCTIONS = {
    1: (fastconv.conv1d, grad.conv1d_input, grad.conv1d_weight),
    2: (fastconv.conv2d, grad.conv2d_input, grad.conv2d_weight),
    3: (fastconv.conv3d, grad.conv3d_input, grad.conv3d_weight),
}
_WEIGHT_FORMATS = {1: ("OIW", "OWI"), 2: ("OIHW", "OHWI"), 3: ("OIDHW", "ODHWI")}


def convolution_forward(
    x: Any,
    W: Any,
    b: Any,
    y: Any,
    pad: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...] | None,
    groups: int,
    *,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write the convolution of `x` with `W`, plus `b`, into `y`.

    Parameters
    ----------
    x : array
        ``(N, C_in, *spatial)``, of one to three spatial axes.
    W : array
        ``(C_out, C_in / groups, *kernel)``.
    b : array or None
        ``C_out`` numbers of any shape.
    y : array
        ``(N, C_out, *out_spatial)``: written to.
    pad, stride, dilation : tuple of int
        One for each spatial axis; None for `dilation` is 1.
    groups : int
        As for :func:`fastconv.conv2d`.
    auto_tune : bool
        Ignored.
    tensor_core : {"auto", "always", "never"}
        Ignored.
    d_layout, w_layout : int
        ``CUDNN_TENSOR_NCHW`` or ``CUDNN_TENSOR_NHWC``: whether channels are the last axis of `x` and `y`, and of `W`.

    Raises
    ------
    ValueError
        If shapes or values do not fit together; the message names the argument and what was expected, and calls `W`
        ``w`` and `y` ``out``.
    TypeError
        If an argument is of the wrong type, or a dtype is not supported.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.compat import cudnn
    >>> x, W, y = np.ones((1, 2, 4, 4)), np.ones((1, 2, 3, 3)), np.empty((1, 1, 2, 2))
    >>> cudnn.convolution_forward(x, W, None, y, (0, 0), (1, 1), (1, 1), 1, auto_tune=True, tensor_core="auto")
    >>> y
    array([[[[18., 18.],
             [18., 18.]]]])
    """
    ndim, options = _options(W, pad, stride, dilation, groups, tensor_core, d_layout, w_layout)
    convolve, _, _ = _FUNCTIONS[ndim]
    convolve(x, W, None if b is None else b.ravel(), **options, out=y)


def convolution_backward_filter(
    x: Any,
    gy: Any,
    gW: Any,
    pad: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...] | None,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write the gradient of :func:`convolution_forward` with respect to its `W` into `gW`.

    Parameters
    ----------
    x : array
        ``(N, C_in, *spatial)``.
    gy : array
        ``(N, C_out, *out_spatial)``: the gradient with respect to `y`.
    gW : array
        ``(C_out, C_in / groups, *kernel)``: written to.
    pad, stride, dilation, groups, auto_tune, tensor_core, d_layout, w_layout
        As for :func:`convolution_forward`.
    deterministic : bool
        Ignored: results always are.

    Raises
    ------
    ValueError, TypeError
        As :func:`convolution_forward` does.

    Examples
    --------
    >>> import numpy as np
    >>> x, gy, gW = np.arange(4.0).reshape(1, 1, 4), np.ones((1, 1, 3)), np.empty((1, 1, 2))
    >>> convolution_backward_filter(
    ...     x, gy, gW, (0,), (1,), (1,), 1, deterministic=False, auto_tune=False, tensor_core="never"
    ... )
    >>> gW
    array([[[3., 6.]]])
    """
    ndim, options = _options(gW, pad, stride, dilation, groups, tensor_core, d_layout, w_layout)
    _, _, to_weight = _FUNCTIONS[ndim]
    to_weight(x, gW.shape, gy, **options, out=gW)


def convolution_backward_data(
    W: Any,
    x: Any,
    b: Any,
    y: Any,
    pad: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...] | None,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write the transposed convolution of `x` with `W`, plus `b`, into `y`.

    That is the gradient of :func:`convolution_forward` with respect to its input, if `x` is that of its result.

    Parameters
    ----------
    W : array
        ``(C_x, C_y / groups, *kernel)``: that of the convolution whose adjoint this is.
    x : array
        ``(N, C_x, *spatial)``.
    b : array or None
        ``C_y`` numbers of any shape.
    y : array
        ``(N, C_y, *out_spatial)``: written to. Its size says how many of the inputs there are that a strided
        convolution maps to `x`.
    pad, stride, dilation, groups, auto_tune, tensor_core, d_layout, w_layout
        As for :func:`convolution_forward`.
    deterministic : bool
        Ignored: results always are.

    Raises
    ------
    ValueError, TypeError
        As :func:`convolution_forward` does.

    Examples
    --------
    >>> import numpy as np
    >>> W, x, y = np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0]]]), np.empty((1, 1, 5))
    >>> convolution_backward_data(
    ...     W, x, None, y, (0,), (2,), (1,), 1, deterministic=False, auto_tune=False, tensor_core="never"
    ... )
    >>> y
    array([[[ 1., 10.,  2., 20.,  0.]]])
    """
    ndim, options = _options(W, pad, stride, dilation, groups, tensor_core, d_layout, w_layout)
    _, to_input, _ = _FUNCTIONS[ndim]
    to_input(y.shape, W, x, **options, out=y)
    if b is not None:
        y += b.reshape(-1) if d_layout == CUDNN_TENSOR_NHWC else b.reshape(-1, *[1] * ndim)


def _options(
    weight: Any,
    pad: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...] | None,
    groups: int,
    tensor_core: str,
    d_layout: int,
    w_layout: int,
) -> tuple[int, dict[str, Any]]:
    """Number of spatial axes and keyword arguments of the functions here that do the work."""
    if not hasattr(weight, "shape"):
        raise TypeError(f"the weight is a {type(weight).__name__}: expected an array")
    ndim = len(weight.shape) - 2
    if ndim not in _FUNCTIONS:
        raise ValueError(f"the weight has shape {tuple(weight.shape)}: expected 3, 4 or 5 axes")
    if tensor_core not in _TENSOR_CORE:
        raise ValueError(f"tensor_core={tensor_core!r}: expected one of {', '.join(map(repr, _TENSOR_CORE))}")
    for name, layout in (("d_layout", d_layout), ("w_layout", w_layout)):
        if layout not in (CUDNN_TENSOR_NCHW, CUDNN_TENSOR_NHWC):
            raise ValueError(f"{name}={layout!r}: expected 0 (CUDNN_TENSOR_NCHW) or 1 (CUDNN_TENSOR_NHWC)")
    return ndim, {
        "stride": stride,
        "padding": pad,
        "dilation": 1 if dilation is None else dilation,
        "groups": groups,
        "data_format": "channels_last" if d_layout == CUDNN_TENSOR_NHWC else "channels_first",
        "weight_format": _WEIGHT_FORMATS[ndim][w_layout],
    }
