"""Gradients of pooling with respect to its input, as functions of arrays."""

from __future__ import annotations

from typing import Any

from fastconv.arrays import adopt
from fastconv.grad.spreading import scatter, spread
from fastconv.pooling_problem import PoolProblem


def max_pool2d_input(
    input_size: Any,
    indices: Any,
    grad_output: Any,
    *,
    data_format: str = "NCHW",
) -> Any:
    """Gradient of max pooling with respect to its input: each number goes to where the maximum was found.

    Parameters
    ----------
    input_size : sequence of int
        ``(*batch, C, H, W)``: the shape of the input.
    indices : array_like of int64
        As :func:`fastconv.max_pool2d` or :func:`fastconv.adaptive_max_pool2d` gave them.
    grad_output : array_like
        Of the shape of `indices`: the gradient with respect to the pooling's result.
    data_format : str
        ``"NCHW"`` or ``"NHWC"``; ``"channels_first"`` or ``"channels_last"``. Holds for all arrays.

    Returns
    -------
    array
        Of the input's shape, and of the kind and dtype of `grad_output`; half types are summed in float32.

    Raises
    ------
    ValueError, TypeError
        If arguments do not fit together; the message names the argument and what was expected.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.max_pool2d_input((1, 1, 4), np.array([[[1, 3]]]), np.array([[[5.0, 7.0]]]))
    array([[[0., 5., 0., 7.]]])
    """
    return scatter(2, input_size, indices, grad_output, data_format)


def max_pool1d_input(
    input_size: Any,
    indices: Any,
    grad_output: Any,
    *,
    data_format: str = "NCW",
) -> Any:
    """As :func:`max_pool2d_input`, along one axis.

    Parameters
    ----------
    input_size, indices, grad_output
        As for :func:`max_pool2d_input`.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        Of the input's shape.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d_input` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.max_pool1d_input((2, 4), np.zeros((2, 2), np.int64), np.ones((2, 2))).sum()
    np.float64(4.0)
    """
    return scatter(1, input_size, indices, grad_output, data_format)


def max_pool3d_input(
    input_size: Any,
    indices: Any,
    grad_output: Any,
    *,
    data_format: str = "NCDHW",
) -> Any:
    """As :func:`max_pool2d_input`, along three axes.

    Parameters
    ----------
    input_size, indices, grad_output
        As for :func:`max_pool2d_input`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        Of the input's shape.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d_input` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.max_pool3d_input((2, 4, 4, 4), np.zeros((2, 2, 2, 2), np.int64), np.ones((2, 2, 2, 2))).sum()
    np.float64(16.0)
    """
    return scatter(3, input_size, indices, grad_output, data_format)


def avg_pool2d_input(
    input_size: Any,
    grad_output: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
    data_format: str = "NCHW",
) -> Any:
    """Gradient of average pooling with respect to its input: each number is shared out over its window.

    Parameters
    ----------
    input_size : sequence of int
        ``(*batch, C, H, W)``: the shape of the input.
    grad_output : array_like
        The gradient with respect to the pooling's result.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
        As for :func:`fastconv.avg_pool2d`.
    data_format : str
        ``"NCHW"`` or ``"NHWC"``; ``"channels_first"`` or ``"channels_last"``. Holds for all arrays.

    Returns
    -------
    array
        Of the input's shape, and of the kind and dtype of `grad_output`; half types are summed in float32.

    Raises
    ------
    ValueError, TypeError
        If arguments do not fit together; the message names the argument and what was expected.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.avg_pool2d_input((1, 2, 4), np.array([[[4.0, 8.0]]]), 2)
    array([[[1., 1., 2., 2.],
            [1., 1., 2., 2.]]])
    """
    return spread(
        PoolProblem.sliding, 2, input_size, kernel_size, grad_output, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, count_include_pad=count_include_pad,
        divisor_override=divisor_override, data_format=data_format,
    )  # fmt: skip


def avg_pool1d_input(
    input_size: Any,
    grad_output: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
    data_format: str = "NCW",
) -> Any:
    """As :func:`avg_pool2d_input`, along one axis.

    Parameters
    ----------
    input_size, grad_output, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
        As for :func:`avg_pool2d_input`.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        Of the input's shape.

    Raises
    ------
    ValueError, TypeError
        As :func:`avg_pool2d_input` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.avg_pool1d_input((2, 4), np.ones((2, 2)), 2).sum()
    np.float64(4.0)
    """
    return spread(
        PoolProblem.sliding, 1, input_size, kernel_size, grad_output, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, count_include_pad=count_include_pad,
        divisor_override=divisor_override, data_format=data_format,
    )  # fmt: skip


def avg_pool3d_input(
    input_size: Any,
    grad_output: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
    data_format: str = "NCDHW",
) -> Any:
    """As :func:`avg_pool2d_input`, along three axes.

    Parameters
    ----------
    input_size, grad_output, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
        As for :func:`avg_pool2d_input`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        Of the input's shape.

    Raises
    ------
    ValueError, TypeError
        As :func:`avg_pool2d_input` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.avg_pool3d_input((2, 4, 4, 4), np.ones((2, 2, 2, 2)), 2).sum()
    np.float64(16.0)
    """
    return spread(
        PoolProblem.sliding, 3, input_size, kernel_size, grad_output, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, count_include_pad=count_include_pad,
        divisor_override=divisor_override, data_format=data_format,
    )  # fmt: skip


def lp_pool2d_input(
    x: Any,
    grad_output: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    padding: Any = 0,
    dilation: Any = 1,
    data_format: str = "NCHW",
) -> Any:
    """Gradient of Lp pooling with respect to its input; zero where the pooling's result is zero.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, H, W)``: the input.
    grad_output : array_like
        The gradient with respect to the pooling's result.
    norm_type, kernel_size, stride, ceil_mode, padding, dilation
        As for :func:`fastconv.lp_pool2d`.
    data_format : str
        ``"NCHW"`` or ``"NHWC"``; ``"channels_first"`` or ``"channels_last"``. Holds for all arrays.

    Returns
    -------
    array
        Of the input's shape, and of the kind and dtype of `grad_output`; half types are summed in float32.

    Raises
    ------
    ValueError, TypeError
        If arguments do not fit together; the message names the argument and what was expected.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.lp_pool2d_input(np.array([[[3.0, 4.0]]]), np.array([[[10.0]]]), 2, (1, 2))
    array([[[6., 8.]]])
    """
    x, _ = adopt("x", x)
    return spread(
        PoolProblem.sliding, 2, x.shape, kernel_size, grad_output, x, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, count_include_pad=True, norm_type=norm_type, data_format=data_format,
    )  # fmt: skip


def lp_pool1d_input(
    x: Any,
    grad_output: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    padding: Any = 0,
    dilation: Any = 1,
    data_format: str = "NCW",
) -> Any:
    """As :func:`lp_pool2d_input`, along one axis.

    Parameters
    ----------
    x, grad_output, norm_type, kernel_size, stride, ceil_mode, padding, dilation
        As for :func:`lp_pool2d_input`.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        Of the input's shape.

    Raises
    ------
    ValueError, TypeError
        As :func:`lp_pool2d_input` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.lp_pool1d_input(np.ones((2, 4)), np.ones((2, 2)), 1, 2).sum()
    np.float64(8.0)
    """
    x, _ = adopt("x", x)
    return spread(
        PoolProblem.sliding, 1, x.shape, kernel_size, grad_output, x, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, count_include_pad=True, norm_type=norm_type, data_format=data_format,
    )  # fmt: skip


def lp_pool3d_input(
    x: Any,
    grad_output: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    padding: Any = 0,
    dilation: Any = 1,
    data_format: str = "NCDHW",
) -> Any:
    """As :func:`lp_pool2d_input`, along three axes.

    Parameters
    ----------
    x, grad_output, norm_type, kernel_size, stride, ceil_mode, padding, dilation
        As for :func:`lp_pool2d_input`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        Of the input's shape.

    Raises
    ------
    ValueError, TypeError
        As :func:`lp_pool2d_input` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.lp_pool3d_input(np.ones((2, 4, 4, 4)), np.ones((2, 2, 2, 2)), 1, 2).sum()
    np.float64(128.0)
    """
    x, _ = adopt("x", x)
    return spread(
        PoolProblem.sliding, 3, x.shape, kernel_size, grad_output, x, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, count_include_pad=True, norm_type=norm_type, data_format=data_format,
    )  # fmt: skip
