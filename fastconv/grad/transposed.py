"""Gradients of transposed convolutions.

The input gradient of a transposed convolution is the convolution that it is the adjoint of.
"""

from __future__ import annotations

from typing import Any

from fastconv.grad.calling import gradient
from fastconv.problem import ConvProblem


def conv_transpose2d_input(
    input_size: Any,
    weight: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    data_format: str = "NCHW",
    weight_format: str = "OIHW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv_transpose2d` with respect to its input.

    That is :func:`fastconv.conv2d` of `grad_output` with the same arguments, as far as the input goes.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, ``(*batch, C_in, H, W)``.
    weight : array_like
        ``(C_in, C_out / groups, KH, KW)``.
    grad_output : array_like
        ``(*batch, C_out, H_out, W_out)``: the gradient with respect to the result.
    stride, padding, output_padding, groups, dilation, data_format, weight_format, flip_kernel
        Those of the transposed convolution, as for :func:`fastconv.conv_transpose2d`.
    out, algorithm, precision, device
        As for :func:`fastconv.conv2d`.

    Returns
    -------
    array
        Of shape `input_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.grad.conv2d_input` does.

    Examples
    --------
    >>> import numpy as np
    >>> grad = np.arange(8.0).reshape(1, 1, 2, 4)
    >>> conv_transpose2d_input((1, 1, 1, 2), np.ones((1, 1, 2, 2)), grad, stride=2)
    array([[[[10., 18.]]]])
    """
    return gradient(
        "input", ConvProblem.transposed, 2, input_size, weight, grad_output, out, algorithm, device,
        stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv_transpose2d_weight(
    input: Any,
    weight_size: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    data_format: str = "NCHW",
    weight_format: str = "OIHW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv_transpose2d` with respect to its weight.

    Parameters
    ----------
    input : array_like
        ``(*batch, C_in, H, W)``.
    weight_size : sequence of int
        Shape of the weight, ``(C_in, C_out / groups, KH, KW)``.
    grad_output : array_like
        ``(*batch, C_out, H_out, W_out)``: the gradient with respect to the result.
    stride, padding, output_padding, groups, dilation, data_format, weight_format, flip_kernel
        Those of the transposed convolution, as for :func:`fastconv.conv_transpose2d`.
    out, algorithm, precision, device
        As for :func:`fastconv.conv2d`.

    Returns
    -------
    array
        Of shape `weight_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.grad.conv2d_weight` does.

    Examples
    --------
    >>> import numpy as np
    >>> grad = np.arange(8.0).reshape(1, 1, 2, 4)
    >>> conv_transpose2d_weight(np.array([[[[1.0, 10.0]]]]), (1, 1, 2, 2), grad, stride=2)
    array([[[[20., 31.],
             [64., 75.]]]])
    """
    return gradient(
        "weight", ConvProblem.transposed, 2, input, weight_size, grad_output, out, algorithm, device,
        stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv_transpose1d_input(
    input_size: Any,
    weight: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    data_format: str = "NCW",
    weight_format: str = "OIW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv_transpose1d` with respect to its input: as :func:`conv_transpose2d_input`.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, ``(*batch, C_in, W)``.
    weight : array_like
        ``(C_in, C_out / groups, K)``.
    grad_output : array_like
        ``(*batch, C_out, W_out)``: the gradient with respect to the result.
    stride, padding, output_padding, groups, dilation, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv_transpose1d`.
    out, algorithm, precision, device
        As for :func:`conv_transpose2d_input`.

    Returns
    -------
    array
        Of shape `input_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv_transpose2d_input` does.

    Examples
    --------
    >>> import numpy as np
    >>> conv_transpose1d_input((1, 2), np.array([[[1.0, 10.0]]]), np.array([[1.0, 2.0, 3.0, 4.0]]), stride=2)
    array([[21., 43.]])
    """
    return gradient(
        "input", ConvProblem.transposed, 1, input_size, weight, grad_output, out, algorithm, device,
        stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv_transpose1d_weight(
    input: Any,
    weight_size: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    data_format: str = "NCW",
    weight_format: str = "OIW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv_transpose1d` with respect to its weight: as :func:`conv_transpose2d_weight`.

    Parameters
    ----------
    input : array_like
        ``(*batch, C_in, W)``.
    weight_size : sequence of int
        Shape of the weight, ``(C_in, C_out / groups, K)``.
    grad_output : array_like
        ``(*batch, C_out, W_out)``: the gradient with respect to the result.
    stride, padding, output_padding, groups, dilation, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv_transpose1d`.
    out, algorithm, precision, device
        As for :func:`conv_transpose2d_weight`.

    Returns
    -------
    array
        Of shape `weight_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv_transpose2d_weight` does.

    Examples
    --------
    >>> import numpy as np
    >>> conv_transpose1d_weight(np.array([[1.0, 10.0]]), (1, 1, 2), np.array([[1.0, 2.0, 3.0, 4.0]]), stride=2)
    array([[[31., 42.]]])
    """
    return gradient(
        "weight", ConvProblem.transposed, 1, input, weight_size, grad_output, out, algorithm, device,
        stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv_transpose3d_input(
    input_size: Any,
    weight: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    data_format: str = "NCDHW",
    weight_format: str = "OIDHW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv_transpose3d` with respect to its input: as :func:`conv_transpose2d_input`.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, ``(*batch, C_in, D, H, W)``.
    weight : array_like
        ``(C_in, C_out / groups, KD, KH, KW)``.
    grad_output : array_like
        ``(*batch, C_out, D_out, H_out, W_out)``: the gradient with respect to the result.
    stride, padding, output_padding, groups, dilation, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv_transpose3d`.
    out, algorithm, precision, device
        As for :func:`conv_transpose2d_input`.

    Returns
    -------
    array
        Of shape `input_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv_transpose2d_input` does.

    Examples
    --------
    >>> import numpy as np
    >>> w, grad = np.ones((4, 2, 2, 2, 2), np.float32), np.ones((1, 2, 8, 16, 16), np.float32)
    >>> conv_transpose3d_input((1, 4, 4, 8, 8), w, grad, stride=2).shape
    (1, 4, 4, 8, 8)
    """
    return gradient(
        "input", ConvProblem.transposed, 3, input_size, weight, grad_output, out, algorithm, device,
        stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip


def conv_transpose3d_weight(
    input: Any,
    weight_size: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    data_format: str = "NCDHW",
    weight_format: str = "OIDHW",
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Gradient of :func:`fastconv.conv_transpose3d` with respect to its weight: as :func:`conv_transpose2d_weight`.

    Parameters
    ----------
    input : array_like
        ``(*batch, C_in, D, H, W)``.
    weight_size : sequence of int
        Shape of the weight, ``(C_in, C_out / groups, KD, KH, KW)``.
    grad_output : array_like
        ``(*batch, C_out, D_out, H_out, W_out)``: the gradient with respect to the result.
    stride, padding, output_padding, groups, dilation, data_format, weight_format, flip_kernel
        Those of the convolution, as for :func:`fastconv.conv_transpose3d`.
    out, algorithm, precision, device
        As for :func:`conv_transpose2d_weight`.

    Returns
    -------
    array
        Of shape `weight_size`.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv_transpose2d_weight` does.

    Examples
    --------
    >>> import numpy as np
    >>> x, grad = np.ones((1, 4, 4, 8, 8), np.float32), np.ones((1, 2, 8, 16, 16), np.float32)
    >>> conv_transpose3d_weight(x, (4, 2, 2, 2, 2), grad, stride=2).shape
    (4, 2, 2, 2, 2)
    """
    return gradient(
        "weight", ConvProblem.transposed, 3, input, weight_size, grad_output, out, algorithm, device,
        stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        data_format=data_format, weight_format=weight_format, flip_kernel=flip_kernel,
        precision=precision,
    )  # fmt: skip
