"""Gradients of convolutions: :func:`conv2d_input` and :func:`conv2d_weight` explain every argument."""

from __future__ import annotations

from typing import Any

from fastconv.grad.calling import gradient
from fastconv.problem import ConvProblem


def conv2d_input(
    input_size: Any,
    weight: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCHW",
    weight_format: str = "OIHW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv2d` with respect to its input.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, ``(*batch, C_in, H, W)``: a strided convolution maps inputs of several sizes to one.
    weight : array_like
        ``(C_out, C_in / groups, KH, KW)``: that of the convolution.
    grad_output : array_like
        ``(*batch, C_out, H_out, W_out)``: the gradient with respect to the convolution's result. If its dtype differs
        from that of `weight`, both are brought to ``numpy.result_type`` of the two.
    stride, padding, dilation, groups, padding_mode, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv2d`. Where padding repeats the input (``"reflect"``,
        ``"replicate"``, ``"circular"``), the gradients of an element's copies are added to its own.
    out : array, optional
        Where to write the result: of its shape and dtype, any strides, sharing no memory with the operands.
    algorithm, precision, device
        As for :func:`fastconv.conv2d`.

    Returns
    -------
    array
        Of shape `input_size` and the kind of `grad_output`. Its dtype is that of :func:`fastconv.conv2d`'s result.

    Raises
    ------
    ValueError
        If shapes or values do not fit together; the message names the argument and what was expected, and calls the
        convolution's input ``x`` and its weight ``w``.
    TypeError
        If an argument is of the wrong type, or a dtype is not supported.

    Examples
    --------
    An input meets as many elements of the weight as there are windows that hold it:

    >>> import numpy as np
    >>> conv2d_input((1, 1, 3, 3), np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)))
    array([[[[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]]]])
    """
    return gradient(
        "input", ConvProblem.forward, 2, input_size, weight, grad_output, out, algorithm, device,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
        padding_mode=padding_mode, data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv2d_weight(
    input: Any,
    weight_size: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCHW",
    weight_format: str = "OIHW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv2d` with respect to its weight.

    Parameters
    ----------
    input : array_like
        ``(*batch, C_in, H, W)``: that of the convolution.
    weight_size : sequence of int
        Shape of the weight, ``(C_out, C_in / groups, KH, KW)``.
    grad_output : array_like
        ``(*batch, C_out, H_out, W_out)``: the gradient with respect to the convolution's result. If its dtype differs
        from that of `input`, both are brought to ``numpy.result_type`` of the two.
    stride, padding, dilation, groups, padding_mode, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv2d`.
    out, algorithm, precision, device
        As for :func:`conv2d_input`.

    Returns
    -------
    array
        Of shape `weight_size` and the kind of `input`. Its dtype is that of :func:`fastconv.conv2d`'s result.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d_input` does.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> conv2d_weight(x, (1, 1, 2, 2), np.ones((1, 1, 2, 2)))
    array([[[[ 8., 12.],
             [20., 24.]]]])
    """
    return gradient(
        "weight", ConvProblem.forward, 2, input, weight_size, grad_output, out, algorithm, device,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
        padding_mode=padding_mode, data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv1d_input(
    input_size: Any,
    weight: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCW",
    weight_format: str = "OIW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv1d` with respect to its input: as :func:`conv2d_input`.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, ``(*batch, C_in, W)``.
    weight : array_like
        ``(C_out, C_in / groups, K)``.
    grad_output : array_like
        ``(*batch, C_out, W_out)``: the gradient with respect to the result.
    stride, padding, dilation, groups, padding_mode, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv1d`.
    out, algorithm, precision, device
        As for :func:`conv2d_input`.

    Returns
    -------
    array
        Of shape `input_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d_input` does.

    Examples
    --------
    >>> import numpy as np
    >>> conv1d_input((1, 1, 4), np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]]), padding_mode="circular")
    array([[[ 1., 12., 23., 30.]]])
    """
    return gradient(
        "input", ConvProblem.forward, 1, input_size, weight, grad_output, out, algorithm, device,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
        padding_mode=padding_mode, data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv1d_weight(
    input: Any,
    weight_size: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCW",
    weight_format: str = "OIW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv1d` with respect to its weight: as :func:`conv2d_weight`.

    Parameters
    ----------
    input : array_like
        ``(*batch, C_in, W)``.
    weight_size : sequence of int
        Shape of the weight, ``(C_out, C_in / groups, K)``.
    grad_output : array_like
        ``(*batch, C_out, W_out)``: the gradient with respect to the result.
    stride, padding, dilation, groups, padding_mode, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv1d`.
    out, algorithm, precision, device
        As for :func:`conv2d_weight`.

    Returns
    -------
    array
        Of shape `weight_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d_weight` does.

    Examples
    --------
    >>> import numpy as np
    >>> conv1d_weight(np.array([[1.0, 2.0, 3.0, 4.0]]), (1, 1, 2), np.ones((1, 3)))
    array([[[6., 9.]]])
    """
    return gradient(
        "weight", ConvProblem.forward, 1, input, weight_size, grad_output, out, algorithm, device,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
        padding_mode=padding_mode, data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv3d_input(
    input_size: Any,
    weight: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCDHW",
    weight_format: str = "OIDHW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv3d` with respect to its input: as :func:`conv2d_input`.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, ``(*batch, C_in, D, H, W)``.
    weight : array_like
        ``(C_out, C_in / groups, KD, KH, KW)``.
    grad_output : array_like
        ``(*batch, C_out, D_out, H_out, W_out)``: the gradient with respect to the result.
    stride, padding, dilation, groups, padding_mode, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv3d`.
    out, algorithm, precision, device
        As for :func:`conv2d_input`.

    Returns
    -------
    array
        Of shape `input_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d_input` does.

    Examples
    --------
    >>> import numpy as np
    >>> w, grad = np.ones((4, 3, 3, 3, 3), np.float32), np.ones((1, 4, 8, 8, 8), np.float32)
    >>> conv3d_input((1, 3, 8, 16, 16), w, grad, stride=(1, 2, 2), padding=1).shape
    (1, 3, 8, 16, 16)
    """
    return gradient(
        "input", ConvProblem.forward, 3, input_size, weight, grad_output, out, algorithm, device,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
        padding_mode=padding_mode, data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv3d_weight(
    input: Any,
    weight_size: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCDHW",
    weight_format: str = "OIDHW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv3d` with respect to its weight: as :func:`conv2d_weight`.

    Parameters
    ----------
    input : array_like
        ``(*batch, C_in, D, H, W)``.
    weight_size : sequence of int
        Shape of the weight, ``(C_out, C_in / groups, KD, KH, KW)``.
    grad_output : array_like
        ``(*batch, C_out, D_out, H_out, W_out)``: the gradient with respect to the result.
    stride, padding, dilation, groups, padding_mode, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv3d`.
    out, algorithm, precision, device
        As for :func:`conv2d_weight`.

    Returns
    -------
    array
        Of shape `weight_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d_weight` does.

    Examples
    --------
    >>> import numpy as np
    >>> x, grad = np.ones((1, 3, 8, 16, 16), np.float32), np.ones((1, 4, 8, 8, 8), np.float32)
    >>> conv3d_weight(x, (4, 3, 3, 3, 3), grad, stride=(1, 2, 2), padding=1).shape
    (4, 3, 3, 3, 3)
    """
    return gradient(
        "weight", ConvProblem.forward, 3, input, weight_size, grad_output, out, algorithm, device,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
        padding_mode=padding_mode, data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip
