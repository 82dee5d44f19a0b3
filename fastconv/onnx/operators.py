"""ONNX's convolutions and poolings, for its reference evaluator, computed by fastconv's public functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

import fastconv

_AUTO_PAD = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid"}


def function(name: str, operator: str, ndim: int) -> Callable[..., Any]:
    """fastconv's function or layer of that name for so many spatial axes.

    Raises
    ------
    ValueError
        If there are none or more than three.
    """
    if not 1 <= ndim <= 3:
        raise ValueError(f"{operator}: the input has {ndim} spatial axes, expected 1, 2 or 3")
    return getattr(fastconv, f"{name}{ndim}d")


def padding(operator: str, ndim: int, auto_pad: Any, pads: Sequence[int] | None) -> Any:
    """fastconv's ``padding`` for ONNX's attributes.

    Raises
    ------
    ValueError
        If an attribute has a value that it cannot have.
    """
    if auto_pad not in (None, "NOTSET", *_AUTO_PAD):
        raise ValueError(f"{operator}: auto_pad={auto_pad!r}: expected NOTSET, {', '.join(_AUTO_PAD)}")
    if auto_pad in _AUTO_PAD:
        return _AUTO_PAD[auto_pad]
    if pads is None:
        return 0
    if len(pads) != 2 * ndim:
        raise ValueError(f"{operator}: pads={list(pads)}: expected {2 * ndim} numbers, all begins and then all ends")
    return list(zip(pads[:ndim], pads[ndim:], strict=True))


def convolution(
    operator: str, w_shape: Sequence[int], *, auto_pad: Any = None, dilations: Any = None, group: Any = None,
    kernel_shape: Any = None, pads: Any = None, strides: Any = None, **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """fastconv's arguments for the attributes of a convolution."""
    refuse(operator, others)
    check_kernel_shape(operator, kernel_shape, w_shape)
    return {
        "stride": 1 if strides is None else strides, "dilation": 1 if dilations is None else dilations,
        "padding": padding(operator, len(w_shape) - 2, auto_pad, pads), "groups": 1 if group is None else group,
    }  # fmt: skip


def transposed(
    x_shape: Sequence[int], w_shape: Sequence[int], *, auto_pad: Any = None, dilations: Any = None, group: Any = None,
    kernel_shape: Any = None, output_padding: Any = None, output_shape: Any = None, pads: Any = None,
    strides: Any = None, **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """fastconv's arguments for the attributes of ConvTranspose, which may give the result's shape and no padding."""
    refuse("ConvTranspose", others)
    check_kernel_shape("ConvTranspose", kernel_shape, w_shape)
    ndim = len(w_shape) - 2
    stride, dilation, extra = strides or [1] * ndim, dilations or [1] * ndim, list(output_padding or [0] * ndim)
    pairs = padding("ConvTranspose", ndim, auto_pad, pads)
    if output_shape is None and pairs in ("same", "same_lower"):
        output_shape = [n * s for n, s in zip(x_shape[2:], stride, strict=True)]
    if output_shape is not None:
        pairs, wanted = [], list(output_shape)[-ndim:]  # before version 11 with batch and channels
        for i in range(ndim):
            reach = dilation[i] * (w_shape[2 + i] - 1) + 1
            total = stride[i] * (x_shape[2 + i] - 1) + extra[i] + reach - wanted[i]
            if -total >= max(stride[i], dilation[i]) - extra[i]:
                raise ValueError(
                    f"ConvTranspose: output_shape={list(output_shape)}: axis {i} would have to be extended by "
                    f"{extra[i] - total}, expected less than the stride ({stride[i]}) or the dilation ({dilation[i]})"
                )
            extra[i] += max(-total, 0)
            less, more = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
            pairs.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return {"stride": stride, "dilation": dilation, "padding": pairs, "output_padding": extra, "groups": group or 1}


def refuse(operator: str, others: dict[str, Any]) -> None:
    """Raise `ValueError` if there are attributes that fastconv does not know."""
    if others:
        raise ValueError(f"{operator}: unknown attributes {', '.join(sorted(others))}")


def check_kernel_shape(operator: str, kernel_shape: Sequence[int] | None, w_shape: Sequence[int]) -> None:
    """Raise `ValueError` if the attribute says other than the weight."""
    if kernel_shape is not None and tuple(kernel_shape) != tuple(w_shape[2:]):
        raise ValueError(f"{operator}: kernel_shape={list(kernel_shape)}, but W has shape {tuple(w_shape)}")


def _pooling(
    operator: str, x: Any, *, kernel_shape: Any, auto_pad: Any = None, ceil_mode: Any = 0, dilations: Any = None,
    pads: Any = None, strides: Any = None, **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """fastconv's arguments for the attributes of a pooling."""
    refuse(operator, others)
    return {
        "kernel_size": kernel_shape, "stride": 1 if strides is None else strides, "ceil_mode": bool(ceil_mode),
        "padding": padding(operator, x.ndim - 2, auto_pad, pads), "dilation": 1 if dilations is None else dilations,
    }  # fmt: skip


def _shifted(values: Any, zero_point: Any) -> Any:
    """8-bit integers less their zero point, of which there may be one for each row of the first axis."""
    if zero_point is None:
        return values
    zero_point = np.asarray(zero_point, np.int16)
    if zero_point.size > 1:
        zero_point = zero_point.reshape(-1, *[1] * (values.ndim - 1))
    return np.subtract(values, zero_point, dtype=np.int16)


class Conv(OpRun):
    """Convolution."""

    def _run(self, x, w, bias=None, **attributes):  # type: ignore[no-untyped-def]
        arguments = convolution("Conv", w.shape, **attributes)
        return (function("conv", "Conv", w.ndim - 2)(x, w, bias, **arguments),)


class ConvTranspose(OpRun):
    """Transposed convolution."""

    def _run(self, x, w, bias=None, **attributes):  # type: ignore[no-untyped-def]
        arguments = transposed(x.shape, w.shape, **attributes)
        return (function("conv_transpose", "ConvTranspose", w.ndim - 2)(x, w, bias, **arguments),)


class ConvInteger(OpRun):
    """Convolution of 8-bit integers, less their zero points, summed in 32 bits."""

    def _run(self, x, w, x_zero_point=None, w_zero_point=None, **attributes):  # type: ignore[no-untyped-def]
        arguments = convolution("ConvInteger", w.shape, **attributes)
        conv = function("conv", "ConvInteger", w.ndim - 2)
        return (conv(_shifted(x, x_zero_point), _shifted(w, w_zero_point), **arguments),)


class QLinearConv(OpRun):
    """Convolution of quantised numbers to quantised numbers: ``saturate(round(sum * scale) + zero point)``."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias=None, **attributes
    ):
        arguments = convolution("QLinearConv", w.shape, **attributes)
        conv = function("conv", "QLinearConv", w.ndim - 2)
        sums = conv(_shifted(x, x_zero_point), _shifted(w, w_zero_point), bias, **arguments)
        scale = np.asarray(x_scale * w_scale / y_scale, np.float32).reshape(-1, *[1] * (w.ndim - 2))
        limits = np.iinfo(y_zero_point.dtype)
        quantised = np.rint(sums * scale) + y_zero_point.astype(np.float32)
        return (np.clip(quantised, limits.min, limits.max).astype(y_zero_point.dtype),)


class MaxPool(OpRun):
    """Maximum of each window, and where it stands in the whole input."""

    def _run(self, x, storage_order=0, **attributes):  # type: ignore[no-untyped-def]
        pool, arguments = function("max_pool", "MaxPool", x.ndim - 2), _pooling("MaxPool", x, **attributes)
        if len(self.onnx_node.output) < 2:
            return (pool(x, **arguments),)
        y, indices = pool(x, return_indices=True, **arguments)
        size = x.shape[2:]
        if storage_order:
            indices = np.ravel_multi_index(np.unravel_index(indices, size), size, order="F")
        images = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * len(size))
        return y, indices + images * int(np.prod(size))


class AveragePool(OpRun):
    """Mean of each window."""

    def _run(self, x, count_include_pad=0, **attributes):  # type: ignore[no-untyped-def]
        arguments = _pooling("AveragePool", x, **attributes)
        pool = function("avg_pool", "AveragePool", x.ndim - 2)
        return (pool(x, count_include_pad=bool(count_include_pad), **arguments),)


class LpPool(OpRun):
    """Lp norm of each window; what sticks out of the input counts as zeros."""

    def _run(self, x, p=2, **attributes):  # type: ignore[no-untyped-def]
        arguments = _pooling("LpPool", x, **attributes)
        pool = function("avg_pool", "LpPool", x.ndim - 2)
        return ((pool(np.abs(x) ** p, divisor_override=1, **arguments) ** (1 / p)).astype(x.dtype),)


class GlobalAveragePool(OpRun):
    """Mean of each channel."""

    def _run(self, x):  # type: ignore[no-untyped-def]
        return (function("adaptive_avg_pool", "GlobalAveragePool", x.ndim - 2)(x, 1),)


class GlobalMaxPool(OpRun):
    """Maximum of each channel."""

    def _run(self, x):  # type: ignore[no-untyped-def]
        return (function("adaptive_max_pool", "GlobalMaxPool", x.ndim - 2)(x, 1),)


class Col2Im(OpRun):
    """Columns summed into the image whose patches they are."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, image_shape, block_shape, dilations=None, pads=None, strides=None, **others
    ):
        refuse("Col2Im", others)
        pairs = padding("Col2Im", len(block_shape), None, pads)
        return (fastconv.fold(x, image_shape, block_shape, dilations or 1, pairs, strides or 1),)


#: Hand these to ``onnx.reference.ReferenceEvaluator(model, new_ops=fastconv.onnx.ops)``.
ops: list[type[OpRun]] = [
    Conv, ConvTranspose, ConvInteger, QLinearConv, MaxPool, AveragePool, LpPool, GlobalAveragePool, GlobalMaxPool,
    Col2Im,
]  # fmt: skip
