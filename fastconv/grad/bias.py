"""Gradients with respect to a bias: what its channel's gradients add up to."""

from __future__ import annotations

from typing import Any

from fastconv.arrays import at_home, check_out, named_dtype
from fastconv.dispatch import adopt_all
from fastconv.parsing import DataFormat
from fastconv.problem import DTYPES, compute_dtype


def conv2d_bias(grad_output: Any, *, data_format: str = "NCHW", out: Any = None) -> Any:
    """Gradient of a two-dimensional convolution, transposed or not, with respect to its bias.

    Parameters
    ----------
    grad_output : array_like
        ``(*batch, C_out, H_out, W_out)``: the gradient with respect to the convolution's result.
    data_format : str
        ``"NCHW"`` or ``"NHWC"``; ``"channels_first"`` or ``"channels_last"``.
    out : array, optional
        Where to write the result: of its shape and dtype, sharing no memory with `grad_output`.

    Returns
    -------
    array
        ``(C_out,)``: the sum over all other axes, taken in float32 for half types. Of the kind of `grad_output` and of
        its dtype, except that integers of fewer than 32 bits give int32.

    Raises
    ------
    ValueError
        If a shape or a format does not fit; the message names the argument and what was expected.
    TypeError
        If an argument is of the wrong type, or a dtype is not supported.

    Examples
    --------
    >>> import numpy as np
    >>> conv2d_bias(np.ones((2, 3, 4, 5)))
    array([40., 40., 40.])
    """
    return _bias(2, grad_output, data_format, out)


def conv1d_bias(grad_output: Any, *, data_format: str = "NCW", out: Any = None) -> Any:
    """Gradient of a one-dimensional convolution with respect to its bias: as :func:`conv2d_bias`.

    Parameters
    ----------
    grad_output : array_like
        ``(*batch, C_out, W_out)``.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.
    out : array, optional
        Where to write the result.

    Returns
    -------
    array
        ``(C_out,)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d_bias` does.

    Examples
    --------
    >>> import numpy as np
    >>> conv1d_bias(np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([3., 7.])
    """
    return _bias(1, grad_output, data_format, out)


def conv3d_bias(grad_output: Any, *, data_format: str = "NCDHW", out: Any = None) -> Any:
    """Gradient of a three-dimensional convolution with respect to its bias: as :func:`conv2d_bias`.

    Parameters
    ----------
    grad_output : array_like
        ``(*batch, C_out, D_out, H_out, W_out)``.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.
    out : array, optional
        Where to write the result.

    Returns
    -------
    array
        ``(C_out,)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d_bias` does.

    Examples
    --------
    >>> import numpy as np
    >>> conv3d_bias(np.ones((2, 4, 5, 6, 3)), data_format="NDHWC")
    array([240., 240., 240.])
    """
    return _bias(3, grad_output, data_format, out)


@at_home
def _bias(ndim: int, grad_output: Any, data_format: str, out: Any) -> Any:
    names = "grad_output", "grad_output"
    (gradient, _, _, _, target), kind = adopt_all(grad_output, grad_output, None, None, out, names)
    result, accumulator = map(named_dtype, DTYPES[compute_dtype(gradient.dtype, gradient.dtype, names)])
    layout = DataFormat.parse(ndim, data_format)
    batch, _, _ = layout.split("grad_output", gradient.shape)
    channel_axis = gradient.ndim - 1 if layout.channels_last else len(batch)
    others = tuple(axis for axis in range(gradient.ndim) if axis != channel_axis)
    total = gradient.sum(others, dtype=accumulator).astype(result, copy=False)
    if out is None:
        return kind.give(total)
    check_out(target, total.shape, result, {"grad_output": gradient})
    target[...] = total
    return out
