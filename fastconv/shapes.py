"""The shape arithmetic alone, as functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv.problem import ConvProblem, ndim_of


def conv_output_shape(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    data_format: str = "channels_first",
    weight_format: str | None = None,
) -> tuple[int, ...]:
    """Shape of ``conv1d``/``conv2d``/``conv3d`` of arrays of these shapes, computing nothing else.

    Along each axis ``out = floor((in + lo + hi - dilation * (kernel - 1) - 1) / stride) + 1``. The number of spatial
    axes is that of the weight less two.

    Parameters
    ----------
    x_shape : sequence of int
        ``(*batch, C_in, *spatial)``, or channels last.
    w_shape : sequence of int
        ``(C_out, C_in / groups, *kernel)``, or as `weight_format` says.
    stride, padding, dilation, groups, data_format, weight_format
        As for :func:`fastconv.conv2d`.

    Returns
    -------
    tuple of int

    Raises
    ------
    ValueError
        As :func:`fastconv.conv2d` would.

    Examples
    --------
    AlexNet's first layer, 227 pixels, kernel 11, stride 4: floor((227 - 11) / 4) + 1 = 55.

    >>> conv_output_shape((1, 3, 227, 227), (96, 3, 11, 11), stride=4)
    (1, 96, 55, 55)
    """
    return ConvProblem.forward(
        ndim_of(w_shape), x_shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=groups,
        data_format=data_format, weight_format=weight_format,
    ).result_shape  # fmt: skip


def conv_transpose_output_shape(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    data_format: str = "channels_first",
    weight_format: str | None = None,
) -> tuple[int, ...]:
    """Shape of a transposed convolution of arrays of these shapes, computing nothing else.

    Along each axis ``out = (in - 1) * stride - lo - hi + dilation * (kernel - 1) + output_padding + 1``.

    Parameters
    ----------
    x_shape : sequence of int
        ``(*batch, C_in, *spatial)``, or channels last.
    w_shape : sequence of int
        ``(C_in, C_out / groups, *kernel)``, or as `weight_format` says.
    stride, padding, output_padding, groups, dilation, data_format, weight_format
        As for :func:`fastconv.conv_transpose2d`.

    Returns
    -------
    tuple of int

    Raises
    ------
    ValueError
        As :func:`fastconv.conv_transpose2d` would.

    Examples
    --------
    >>> conv_transpose_output_shape((1, 512, 8, 8), (512, 256, 4, 4), stride=2, padding=1)
    (1, 256, 16, 16)
    """
    return ConvProblem.transposed(
        ndim_of(w_shape), x_shape, w_shape, stride=stride, padding=padding, output_padding=output_padding,
        groups=groups, dilation=dilation, data_format=data_format, weight_format=weight_format,
    ).result_shape  # fmt: skip
