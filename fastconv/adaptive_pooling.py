"""Pooling to a given size, in the argument order of ``torch.nn.functional``; to a size of 1 it is global pooling."""

from __future__ import annotations

from typing import Any

from fastconv.pooling_execution import apply
from fastconv.pooling_problem import PoolProblem


def adaptive_avg_pool2d(
    x: Any,
    output_size: Any,
    *,
    data_format: str = "NCHW",
    out: Any = None,
) -> Any:
    """Means of windows that are spread evenly over each axis, so many of them as are asked for.

    Window t of T covers the elements from ``floor(t * H / T)`` to ``ceil((t + 1) * H / T)``. An `output_size` of 1 is
    global average pooling.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, H, W)``: float32, float64, float16 or bfloat16; half types are summed in float32.
    output_size : int or sequence of (int or None)
        Lengths of the result's axes, one or one for each; None keeps an axis as it is.
    data_format, out
        As for :func:`max_pool2d`.

    Returns
    -------
    array
        ``(*batch, C, *output_size)`` of the kind and dtype of `x`.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_avg_pool2d(np.ones((8, 2048, 7, 7), np.float32), 1).shape
    (8, 2048, 1, 1)
    >>> fastconv.adaptive_avg_pool2d(np.array([[[1.0, 2.0, 3.0, 4.0, 5.0]]]), (None, 2))
    array([[[2., 4.]]])
    """
    return apply(PoolProblem.adaptive, "sum", 2, x, output_size, False, out, data_format=data_format)


def adaptive_avg_pool1d(
    x: Any,
    output_size: Any,
    *,
    data_format: str = "NCW",
    out: Any = None,
) -> Any:
    """Means of windows spread evenly along one axis: :func:`adaptive_avg_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, W)``.
    output_size, out
        As for :func:`adaptive_avg_pool2d`.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        As :func:`adaptive_avg_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_avg_pool1d(np.zeros((3, 100)), 4).shape
    (3, 4)
    """
    return apply(PoolProblem.adaptive, "sum", 1, x, output_size, False, out, data_format=data_format)


def adaptive_avg_pool3d(
    x: Any,
    output_size: Any,
    *,
    data_format: str = "NCDHW",
    out: Any = None,
) -> Any:
    """Means of windows spread evenly along three axes: :func:`adaptive_avg_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, D, H, W)``.
    output_size, out
        As for :func:`adaptive_avg_pool2d`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array
        As :func:`adaptive_avg_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_avg_pool3d(np.zeros((3, 9, 9, 9)), 4).shape
    (3, 4, 4, 4)
    """
    return apply(PoolProblem.adaptive, "sum", 3, x, output_size, False, out, data_format=data_format)


def adaptive_max_pool2d(
    x: Any,
    output_size: Any,
    return_indices: bool = False,
    *,
    data_format: str = "NCHW",
    out: Any = None,
) -> Any:
    """Maxima of windows that are spread evenly over each axis, as in :func:`adaptive_avg_pool2d`.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, H, W)`` of a dtype that :func:`max_pool2d` takes.
    output_size : int or sequence of (int or None)
        As for :func:`adaptive_avg_pool2d`.
    return_indices, data_format, out
        As for :func:`max_pool2d`.

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
    >>> fastconv.adaptive_max_pool2d(np.array([[[1.0, 2.0, 3.0, 4.0, 5.0]]]), (None, 2))
    array([[[3., 5.]]])
    """
    return apply(PoolProblem.adaptive, "max", 2, x, output_size, return_indices, out, data_format=data_format)


def adaptive_max_pool1d(
    x: Any,
    output_size: Any,
    return_indices: bool = False,
    *,
    data_format: str = "NCW",
    out: Any = None,
) -> Any:
    """Maxima of windows spread evenly along one axis: :func:`adaptive_max_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, W)``.
    output_size, return_indices, out
        As for :func:`adaptive_max_pool2d`.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array, or two with `return_indices`
        As :func:`adaptive_max_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_max_pool1d(np.zeros((3, 100)), 4).shape
    (3, 4)
    """
    return apply(PoolProblem.adaptive, "max", 1, x, output_size, return_indices, out, data_format=data_format)


def adaptive_max_pool3d(
    x: Any,
    output_size: Any,
    return_indices: bool = False,
    *,
    data_format: str = "NCDHW",
    out: Any = None,
) -> Any:
    """Maxima of windows spread evenly along three axes: :func:`adaptive_max_pool2d` of another number of axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, D, H, W)``.
    output_size, return_indices, out
        As for :func:`adaptive_max_pool2d`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.

    Returns
    -------
    array, or two with `return_indices`
        As :func:`adaptive_max_pool2d` gives.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_pool2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_max_pool3d(np.zeros((3, 9, 9, 9)), 4).shape
    (3, 4, 4, 4)
    """
    return apply(PoolProblem.adaptive, "max", 3, x, output_size, return_indices, out, data_format=data_format)
