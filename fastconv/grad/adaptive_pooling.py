"""Gradients of adaptive average pooling; that of adaptive max pooling is :func:`fastconv.grad.max_pool2d_input`."""

from __future__ import annotations

from typing import Any

from fastconv.grad.spreading import output_size, spread
from fastconv.pooling_problem import PoolProblem


def adaptive_avg_pool2d_input(
    input_size: Any,
    grad_output: Any,
    *,
    data_format: str = "NCHW",
) -> Any:
    """Gradient of adaptive average pooling with respect to its input.

    Parameters
    ----------
    input_size : sequence of int
        ``(*batch, C, H, W)``: the shape of the input.
    grad_output : array_like
        The gradient with respect to the pooling's result, whose shape says what the output size was.
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
    >>> fastconv.grad.adaptive_avg_pool2d_input((1, 1, 3), np.array([[[2.0, 4.0]]]))
    array([[[1., 3., 2.]]])
    """
    size = output_size(2, grad_output, data_format)
    return spread(PoolProblem.adaptive, 2, input_size, size, grad_output, data_format=data_format)


def adaptive_avg_pool1d_input(
    input_size: Any,
    grad_output: Any,
    *,
    data_format: str = "NCW",
) -> Any:
    """As :func:`adaptive_avg_pool2d_input`, along one axis.

    Parameters
    ----------
    input_size, grad_output
        As for :func:`adaptive_avg_pool2d_input`.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        Of the input's shape.

    Raises
    ------
    ValueError, TypeError
        As :func:`adaptive_avg_pool2d_input` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.adaptive_avg_pool1d_input((2, 4), np.ones((2, 2))).sum()
    np.float64(4.0)
    """
    size = output_size(1, grad_output, data_format)
    return spread(PoolProblem.adaptive, 1, input_size, size, grad_output, data_format=data_format)


def adaptive_avg_pool3d_input(
    input_size: Any,
    grad_output: Any,
    *,
    data_format: str = "NCDHW",
) -> Any:
    """As :func:`adaptive_avg_pool2d_input`, along three axes.

    Parameters
    ----------
    input_size, grad_output
        As for :func:`adaptive_avg_pool2d_input`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        Of the input's shape.

    Raises
    ------
    ValueError, TypeError
        As :func:`adaptive_avg_pool2d_input` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.adaptive_avg_pool3d_input((2, 4, 4, 4), np.ones((2, 2, 2, 2))).sum()
    np.float64(16.0)
    """
    size = output_size(3, grad_output, data_format)
    return spread(PoolProblem.adaptive, 3, input_size, size, grad_output, data_format=data_format)
