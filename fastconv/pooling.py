"""Pooling as functions of arrays, in the argument order of ``torch.nn.functional``.

:func:`max_pool2d`, :func:`avg_pool2d` and :func:`lp_pool2d` explain every argument; their twins differ in the number of
spatial axes only.
"""

from __future__ import annotations

from typing import Any

from fastconv.pooling_execution import apply
from fastconv.pooling_problem import PoolProblem


def max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    data_format: str = "NCHW",
    out: Any = None,
) -> Any:
    """Maximum of each window.

    The padding holds minus infinity; a window with a NaN gives NaN.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, H, W)``: any number of leading batch axes, none included; any strides. float32, float64, float16,
        bfloat16, int8, uint8, int16, int32 or int64. Never written to.
    kernel_size : int or sequence of int
        Lengths of a window, one or one for each spatial axis.
    stride : int or sequence of int, optional
        From window to window; `kernel_size` if it is not given.
    padding : int, sequence of int, sequence of (int, int) or str
        As for :func:`fastconv.conv2d`. Every window must hold an element of `x`.
    dilation : int or sequence of int
        Distance between the elements of a window, at least 1.
    ceil_mode : bool
        Round the number of windows up: the last one may stick out of the input and its padding, but not begin past the
        input.
    return_indices : bool
        Whether to give the place of each maximum too.
    data_format : str
        ``"NCHW"`` or ``"NHWC"``; ``"channels_first"`` or ``"channels_last"``. Holds for the results too.
    out : array, optional
        Where to write the result: of its shape and dtype, any strides, sharing no memory with `x`.

    Returns
    -------
    y : array
        ``(*batch, C, H_out, W_out)`` of the kind and dtype of `x`, where ``H_out = floor((H + lo + hi - dilation * (KH
        - 1) - 1) / stride) + 1``.
    indices : array of int64
        Only with `return_indices`: ``h * W + w`` of each maximum, of equal ones the first, of NaN the last.

    Raises
    ------
    ValueError
        If shapes or values do not fit together; the message names the argument and what was expected.
    TypeError
        If an argument is of the wrong type, or the dtype is not supported.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    >>> fastconv.max_pool2d(x, 2)
    array([[[ 5.,  7.],
            [13., 15.]]], dtype=float32)
    >>> fastconv.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)[1]
    array([[[ 5,  7],
            [13, 15]]])
    """
    return apply(
        PoolProblem.sliding, "max", 2, x, kernel_size, return_indices, out, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, data_format=data_format,
    )  # fmt: skip


def max_pool1d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    data_format: str = "NCW",
    out: Any = None,
) -> Any:
    """Maximum of each window along one axis: :func:`max_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, W)``.
    kernel_size, stride, padding, dilation, ceil_mode, return_indices, out
        As for :func:`max_pool2d`.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array, or two with `return_indices`
        As :func:`max_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_pool1d(np.zeros((3, 100)), 3, stride=2, padding=1).shape
    (3, 50)
    """
    return apply(
        PoolProblem.sliding, "max", 1, x, kernel_size, return_indices, out, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, data_format=data_format,
    )  # fmt: skip


def max_pool3d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    data_format: str = "NCDHW",
    out: Any = None,
) -> Any:
    """Maximum of each window along three axes: :func:`max_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, D, H, W)``.
    kernel_size, stride, padding, dilation, ceil_mode, return_indices, out
        As for :func:`max_pool2d`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array, or two with `return_indices`
        As :func:`max_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_pool3d(np.zeros((3, 9, 9, 9)), 3, stride=2, padding=1).shape
    (3, 5, 5, 5)
    """
    return apply(
        PoolProblem.sliding, "max", 3, x, kernel_size, return_indices, out, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, data_format=data_format,
    )  # fmt: skip


def avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
    data_format: str = "NCHW",
    out: Any = None,
) -> Any:
    """Mean of each window.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, H, W)``: float32, float64, float16 or bfloat16; half types are summed in float32.
    kernel_size, stride, padding
        As for :func:`max_pool2d`.
    ceil_mode : bool
        As for :func:`max_pool2d`. What sticks out of the padding is never counted.
    count_include_pad : bool
        Whether the zeros of the padding count as elements of a window.
    divisor_override : int, optional
        Divide each sum by this instead.
    dilation, data_format, out
        As for :func:`max_pool2d`.

    Returns
    -------
    array
        ``(*batch, C, H_out, W_out)`` of the kind and dtype of `x`.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    >>> fastconv.avg_pool2d(x, 2)
    array([[[ 2.5,  4.5],
            [10.5, 12.5]]], dtype=float32)
    >>> fastconv.avg_pool2d(x, 3, stride=3, padding=1, count_include_pad=False)
    array([[[ 2.5,  4.5],
            [10.5, 12.5]]], dtype=float32)
    """
    return apply(
        PoolProblem.sliding, "sum", 2, x, kernel_size, False, out, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, count_include_pad=count_include_pad, divisor_override=divisor_override,
        data_format=data_format,
    )  # fmt: skip


def avg_pool1d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
    data_format: str = "NCW",
    out: Any = None,
) -> Any:
    """Mean of each window along one axis: :func:`avg_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, W)``.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, out
        As for :func:`avg_pool2d`.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        As :func:`avg_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool1d(np.zeros((3, 100)), 3, stride=2, padding=1).shape
    (3, 50)
    """
    return apply(
        PoolProblem.sliding, "sum", 1, x, kernel_size, False, out, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, count_include_pad=count_include_pad, divisor_override=divisor_override,
        data_format=data_format,
    )  # fmt: skip


def avg_pool3d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
    data_format: str = "NCDHW",
    out: Any = None,
) -> Any:
    """Mean of each window along three axes: :func:`avg_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, D, H, W)``.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, out
        As for :func:`avg_pool2d`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        As :func:`avg_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool3d(np.zeros((3, 9, 9, 9)), 3, stride=2, padding=1).shape
    (3, 5, 5, 5)
    """
    return apply(
        PoolProblem.sliding, "sum", 3, x, kernel_size, False, out, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, count_include_pad=count_include_pad, divisor_override=divisor_override,
        data_format=data_format,
    )  # fmt: skip


def lp_pool2d(
    x: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    padding: Any = 0,
    dilation: Any = 1,
    data_format: str = "NCHW",
    out: Any = None,
) -> Any:
    """Power mean of each window: ``(sum of x ** p) ** (1 / p)``.

    As in torch, there is no absolute value in it, so that a negative sum of odd powers has no root and gives NaN; and
    where `ceil_mode` lets a window stick out, the sum is scaled up as if the rest of it were like the part inside.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, H, W)``: float32, float64, float16 or bfloat16; half types are summed in float32.
    norm_type : float
        The power p, positive and finite.
    kernel_size, stride, ceil_mode, padding, dilation, data_format, out
        As for :func:`max_pool2d`; the padding holds zeros.

    Returns
    -------
    array
        ``(*batch, C, H_out, W_out)`` of the kind and dtype of `x`.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.lp_pool2d(np.array([[[3.0, 4.0], [0.0, 0.0]]]), 2, (1, 2))
    array([[[5.],
            [0.]]])
    """
    return apply(
        PoolProblem.sliding, "sum", 2, x, kernel_size, False, out, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, count_include_pad=True, norm_type=norm_type, data_format=data_format,
    )  # fmt: skip


def lp_pool1d(
    x: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    padding: Any = 0,
    dilation: Any = 1,
    data_format: str = "NCW",
    out: Any = None,
) -> Any:
    """Power mean of each window along one axis: :func:`lp_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, W)``.
    norm_type, kernel_size, stride, ceil_mode, padding, dilation, out
        As for :func:`lp_pool2d`.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        As :func:`lp_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.lp_pool1d(np.zeros((3, 100)), 2, 3, stride=2, padding=1).shape
    (3, 50)
    """
    return apply(
        PoolProblem.sliding, "sum", 1, x, kernel_size, False, out, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, count_include_pad=True, norm_type=norm_type, data_format=data_format,
    )  # fmt: skip


def lp_pool3d(
    x: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    padding: Any = 0,
    dilation: Any = 1,
    data_format: str = "NCDHW",
    out: Any = None,
) -> Any:
    """Power mean of each window along three axes: :func:`lp_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, D, H, W)``.
    norm_type, kernel_size, stride, ceil_mode, padding, dilation, out
        As for :func:`lp_pool2d`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        As :func:`lp_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.lp_pool3d(np.zeros((3, 9, 9, 9)), 2, 3, stride=2, padding=1).shape
    (3, 5, 5, 5)
    """
    return apply(
        PoolProblem.sliding, "sum", 3, x, kernel_size, False, out, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, count_include_pad=True, norm_type=norm_type, data_format=data_format,
    )  # fmt: skip
