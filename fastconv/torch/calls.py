"""The public functions on tensors, where a call is more to torch than the arrays in its operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv
from fastconv import ConvProblem
from fastconv.torch.operator import channels_last, convolution, dtype_name, eager, frozen, intercepted, plain, watched


def concerns(x: Tensor, *others: Any) -> bool:
    """Whether a call is more to torch than the arrays in its operands.

    It is where torch records gradients, traces, transforms or casts, where the result must keep a memory format, and
    where dtypes differ, which is an error between tensors.
    """
    if watched() or _autocast(x):
        return True
    dtype, records = x.dtype, torch.is_grad_enabled()
    for value in (x, *others):
        if isinstance(value, Tensor) and (
            not plain(value)
            or value.dtype is not dtype
            or (records and value.requires_grad)
            or (not value.is_contiguous() and channels_last(value))
        ):
            return True
    return False


_ACTIVATIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    None: lambda y: y,
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
}


def convolve(
    op: str, ndim: int, x: Tensor, w: Any, bias: Any, residual: Any, out: Any, algorithm: str, device: str, *,
    stride: Any, padding: Any, dilation: Any, groups: int, padding_mode: str, data_format: str, weight_format: str,
    activation: Any, flip_kernel: bool, precision: str, output_padding: Any = 0,
) -> Tensor:  # fmt: skip
    """A public function's call that concerns torch: the operator, with formats, residual and activation around it.

    `op` is "forward", or "input_grad" for a transposed convolution; the rest is as for :func:`fastconv.conv2d` and
    :func:`fastconv.conv_transpose2d`.
    """
    if out is not None:
        raise TypeError("out= cannot be recorded, traced, cast or laid out by torch: expected None")
    given = {"x": x, "w": w, "bias": bias, "residual": residual}
    cast = torch.get_autocast_dtype(x.device.type) if _autocast(x) else None
    x, w, bias, residual = [_operand(name, value, x.device, cast) for name, value in given.items()]
    if x.dtype != w.dtype:
        raise TypeError(f"x has dtype {x.dtype} and w {w.dtype}: expected tensors of one dtype")
    compute, geometry = convolution, None
    tensors = [t for t in (x, w, bias, residual) if t is not None]
    if not intercepted(*tensors):
        options = _hashable((
            stride, padding, dilation, groups, padding_mode, data_format, weight_format, activation, flip_kernel,
            precision, output_padding,
        ))  # fmt: skip
        described = op, ndim, x.shape, w.shape, x.dtype, bias is not None, residual is not None, options
        call = _described(*described, _kinds(options))
        if residual is not None and residual.shape != call.problem.result_shape:
            raise ValueError(f"residual has shape {tuple(residual.shape)}: expected {call.problem.result_shape}")
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
            return _unrecorded(call, x, w, bias, residual, algorithm, device)
        compute, geometry = eager, call.geometry

    last = data_format == "channels_last" or data_format.endswith("C")
    if last:
        x, residual = (t if t is None else t.movedim(-1, -1 - ndim) for t in (x, residual))
    if weight_format.endswith("IO"):
        w = w.movedim((-1, -2), (0, 1))
    elif weight_format.endswith("I"):
        w = w.movedim(-1, 1)
    if flip_kernel:
        w = w.flip(list(range(2, 2 + ndim)))
    batch = x.shape[: -1 - ndim]
    if len(batch) != 1:
        x = x.flatten(0, len(batch) - 1) if batch else x.unsqueeze(0)

    if geometry is None:  # a tracer's sizes may be symbols; the operator checks what is known of them
        geometry = _geometry(
            op, x.shape[2:], w.shape[2:], *map(frozen, (stride, padding, dilation, output_padding))
        )  # fmt: skip
    size, *others = geometry
    y = compute(x, w, bias, op, size, groups, *others, padding_mode, precision, algorithm, device)
    if len(batch) != 1:
        y = y.reshape(*batch, *y.shape[1:])
    if residual is not None:
        if residual.shape != y.shape:
            raise ValueError(f"residual has shape {tuple(residual.shape)}: expected {tuple(y.shape)}")
        y = (y + residual).to(y.dtype)
    y = y.clamp(*activation) if isinstance(activation, (list, tuple)) else _ACTIVATIONS[activation](y)
    return y.movedim(-1 - ndim, -1) if last else y


def _autocast(x: Tensor) -> bool:
    return (x.is_cpu and torch.is_autocast_enabled("cpu")) or (x.is_cuda and torch.is_autocast_enabled("cuda"))


def _operand(name: str, value: Any, device: torch.device, cast: torch.dtype | None) -> Tensor | None:
    """An operand as a tensor, of the dtype that autocast gives it, if it does."""
    if value is None:
        return None
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    if tensor.device != device:
        raise TypeError(f"{name} is on {tensor.device} and x on {device}: expected both on one device")
    if cast is not None and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(cast)
    return tensor


_OPTIONS = (
    "stride", "padding", "dilation", "groups", "padding_mode", "data_format", "weight_format", "activation",
    "flip_kernel", "precision", "output_padding",
)  # fmt: skip


def _hashable(options: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        hash(options)
    except TypeError:  # a list among them
        return frozen(options)
    return options


def _kinds(option: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types in options: 1, 1.0 and True are equal, but not equally good."""
    return tuple([_kinds(v) if type(v) is tuple else type(v) for v in option])


class _Call(NamedTuple):
    """A public function's call on tensors without a tracer."""

    problem: ConvProblem
    #: The same with channels behind; None where the caller's own formats say where they are.
    channels_last: ConvProblem | None
    #: What :func:`_geometry` has for it.
    geometry: tuple[Any, ...]


@lru_cache(maxsize=4096)
def _described(
    op: str, ndim: int, x_shape: tuple[int, ...], w_shape: tuple[int, ...], dtype: torch.dtype, bias: bool,
    residual: bool, options: tuple[Any, ...], kinds: Any,
) -> _Call:  # fmt: skip
    """The call with :data:`_OPTIONS`, remembered for those of the same `kinds`; raises fastconv's error about them."""
    given = dict(zip(_OPTIONS, options, strict=True))
    stride, padding, dilation, extra = (given[name] for name in ("stride", "padding", "dilation", "output_padding"))
    build: Callable[..., ConvProblem] = ConvProblem.transposed
    if op == "forward":
        del given["output_padding"]
        build = ConvProblem.forward
    problem = build(ndim, x_shape, w_shape, dtype=dtype_name(dtype), bias=bias, residual=residual, **given)
    movable = len(x_shape) == ndim + 2 and not problem.channels_last and problem.weight_order == "OI*"
    last = replace(problem, channels_last=True, weight_order="O*I") if movable else None
    lengths = (problem.size if op == "forward" else problem.out_size)[-ndim:]
    return _Call(problem, last, _geometry(op, lengths, problem.kernel[-ndim:], stride, padding, dilation, extra))


def _unrecorded(
    call: _Call, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, algorithm: str, device: str
) -> Tensor:
    """The result where no gradient is recorded, with the channels behind where torch would have them there."""
    if call.channels_last is None or not channels_last(x, w):
        return fastconv.execute(call.problem, x, w, bias, residual, algorithm=algorithm, device=device)
    x, w, residual = (t if t is None else t.movedim(1, -1) for t in (x, w, residual))
    y = fastconv.execute(call.channels_last, x, w, bias, residual, algorithm=algorithm, device=device)
    return y.movedim(-1, 1)


def _geometry(
    op: str, lengths: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, output_padding: Any
) -> tuple[Any, ...]:  # fmt: skip
    """The size of the result, and stride, padding and dilation as the operator takes them."""
    stride, dilation, output_padding = (_per_axis(v, len(lengths)) for v in (stride, dilation, output_padding))
    pairs = _pairs(padding, lengths, kernel, stride, dilation, op == "input_grad")
    same = isinstance(padding, str) and padding.startswith("same")
    size = [
        _length(op, n, d * (k - 1) + 1, s, sum(pair), extra, same)
        for n, k, s, d, pair, extra in zip(lengths, kernel, stride, dilation, pairs, output_padding, strict=True)
    ]
    return tuple(size), stride, tuple(n for pair in pairs for n in pair), dilation


def _per_axis(option: Any, ndim: int) -> tuple[int, ...]:
    return option if isinstance(option, tuple) else (option,) * ndim


# ConvProblem knows the two rules below too, for numbers: a tracer's sizes may be symbols.


def _pairs(padding: Any, size: Any, kernel: Any, stride: Any, dilation: Any, transposed: bool) -> list[tuple[int, int]]:
    """How much is added before and behind each axis."""
    if not isinstance(padding, str):
        return [pad if isinstance(pad, tuple) else (pad, pad) for pad in _per_axis(padding, len(size))]
    pairs = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        reach = d * (k - 1)
        if padding.startswith("same"):
            exact = transposed or s == 1  # the stride divides the size
            total = max(reach + 1 - s if exact else (-(-n // s) - 1) * s + reach + 1 - n, 0)
            less, more = total // 2, total - total // 2
            pairs.append((less, more) if padding == "same" else (more, less))
        else:
            pairs.append({"valid": (0, 0), "full": (reach, reach), "causal": (reach, 0)}[padding])
    return pairs


def _length(op: str, n: int, reach: int, stride: int, padding: int, extra: int, same: bool) -> int:
    """Length of an axis of the result, of one of `n` under a kernel that covers `reach`."""
    if op == "forward":
        return max((n + padding - reach) // stride + 1, 0) if n == 0 else (n + padding - reach) // stride + 1
    if n == 0:
        return 0
    restored = max(stride - reach, 0) if same else 0
    return (n - 1) * stride - padding + reach + extra + restored
