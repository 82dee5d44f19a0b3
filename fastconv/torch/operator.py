"""The operator ``torch.ops.fastconv.convolution``: what torch sees of a convolution that it records or traces.

With ``<g, y>`` the inner product, a convolution and its two gradients are three ways to read one trilinear form,

    T(x, w, y) = <y, conv(x, w)>:    y = conv(x, w),    x = input_grad(y, w),    w = weight_grad(x, y),

so each is made of the derivatives of another. The operator has an argument that says which of the three it computes,
its backward is two calls of itself, and gradients of any order follow.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

import fastconv
from fastconv import ConvProblem

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_PLAIN = frozenset((Tensor, nn.Parameter))


def intercepted(*tensors: Tensor) -> bool:
    """Whether something must see the call before a kernel does: a tracer, a transform, a tensor of its own kind."""
    return watched() or not all(map(plain, tensors))


def watched() -> bool:
    """Whether a tracer or a transform must see every call."""
    return (
        torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or _transformed()
        or torch._C._is_tracing()
    )


def plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but its values."""
    return type(tensor) in _PLAIN and not is_legacy_batchedtensor(tensor)


def _transformed() -> bool:
    """Whether the call is under a transform of ``torch.func``, or in forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def channels_last(*tensors: Tensor) -> bool:
    """Whether torch would give the result in its channels-last memory format: if any operand is."""
    strided = [t for t in tensors if not t.is_contiguous()]  # seldom any
    return any(
        t.is_contiguous(memory_format=_CHANNELS_LAST[t.dim()]) for t in strided if t.dim() in _CHANNELS_LAST
    )  # fmt: skip


# Operands and result are channels first with one batch axis, weights "OI" with the kernel's axes behind; any strides.
_SCHEMA = (
    "(Tensor a, Tensor b, Tensor? bias, str op, SymInt[] size, SymInt groups, int[] stride, SymInt[] padding, "
    "int[] dilation, str padding_mode, str precision, str algorithm, str device) -> Tensor"
)


def _compute(a: Tensor, b: Tensor, bias: Tensor | None, op: str, size: list[int], groups: int, *fixed: Any) -> Tensor:
    """Compute ``op`` from its two operands; `size` is that of the result's spatial axes, or of the kernel."""
    last = channels_last(a, b)
    problem, algorithm, device = _problem_of(a, b, bias, op, size, groups, last, *fixed), *fixed[-2:]
    if last:
        a, b = a.movedim(1, -1), b.movedim(1, -1)
    result = fastconv.execute(problem, a, b, bias, algorithm=algorithm, device=device)
    return result.movedim(-1, 1) if last else result


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def frozen(option: Any) -> Any:
    """An option with tuples for lists."""
    return tuple(map(frozen, option)) if isinstance(option, (list, tuple)) else option


def _problem_of(
    a: Tensor, b: Tensor, bias: Tensor | None, op: str, size: Any, groups: int, last: bool, stride: Any, padding: Any,
    dilation: Any, padding_mode: str, precision: str, *_: str,
) -> ConvProblem:  # fmt: skip
    """The problem that the operator's arguments describe; torch's dispatcher gives lists for what were tuples."""
    return _problem(
        op, a.shape, b.shape, a.dtype, bias is not None, tuple(size), groups, last, tuple(stride), tuple(padding),
        tuple(dilation), padding_mode, precision,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _problem(
    op: str,
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
    dtype: torch.dtype,
    bias: bool,
    size: tuple[int, ...],
    groups: int,
    last: bool,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    padding_mode: str,
    precision: str,
) -> ConvProblem:
    x_shape, w_shape, y_size = {
        "forward": (a_shape, b_shape, size),
        "input_grad": ((a_shape[0], b_shape[1] * groups, *size), b_shape, a_shape[2:]),
        "weight_grad": (a_shape, (b_shape[1], a_shape[1] // groups, *size), b_shape[2:]),
    }[op]
    ndim = len(stride)
    problem = ConvProblem.forward(
        ndim, x_shape, w_shape, dtype=dtype_name(dtype), stride=stride, dilation=dilation,
        padding=tuple(zip(padding[::2], padding[1::2], strict=True)), groups=groups, padding_mode=padding_mode,
        precision=precision,
    )  # fmt: skip
    # An input of some sizes more has the same transposed convolution; the output never has more than the input gives.
    out_size: Any = (1,) * (3 - ndim) + tuple(y_size)
    if any(n > most for n, most in zip(out_size, problem.out_size, strict=True)):
        raise ValueError(f"size={size}: an output of size {y_size} does not follow from {x_shape} and {w_shape}")
    order = "O*I" if last else "OI*"
    return dataclasses.replace(problem, op=op, out_size=out_size, bias=bias, channels_last=last, weight_order=order)


def _fake(a: Tensor, b: Tensor, bias: Tensor | None, op: str, size: list[int], groups: int, *fixed: Any) -> Tensor:
    """What `_compute` returns, without its values."""
    last = channels_last(a, b)
    if all(isinstance(n, int) for n in (*a.shape, *b.shape, *size, groups)):  # none is a symbol: all can be checked
        _problem_of(a, b, bias, op, size, groups, last, *fixed)
    batch, channels = {
        "forward": (a.shape[0], b.shape[0]),
        "input_grad": (a.shape[0], b.shape[1] * groups),
        "weight_grad": (b.shape[1], a.shape[1] // groups),
    }[op]
    dtype = torch.int32 if a.dtype in (torch.int8, torch.uint8, torch.int16) else a.dtype
    if last:
        return a.new_empty((batch, *size, channels), dtype=dtype).movedim(-1, 1)
    return a.new_empty((batch, channels, *size), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, bias, ctx.op, ctx.size, ctx.groups, *ctx.fixed = inputs
    ctx.save_for_backward(a, b)
    ctx.save_for_forward(a, b)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    a, b = (t.conj() for t in ctx.saved_tensors)
    first, second = {
        "forward": (("input_grad", g, b), ("weight_grad", a, g)),
        "input_grad": (("forward", g, b), ("weight_grad", g, a)),
        "weight_grad": (("input_grad", b, g), ("forward", a, g)),
    }[ctx.op]
    *geometry, _, device = ctx.fixed  # an algorithm is named for the one operation
    grads = [
        convolution(*operands, None, op, like.shape[2:], ctx.groups, *geometry, "auto", device) if needed else None
        for needed, (op, *operands), like in zip(ctx.needs_input_grad, (first, second), (a, b), strict=False)
    ]
    axes = [axis for axis in range(g.dim()) if axis != 1]
    bias = g.sum(axes).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
    return (*grads, bias, *[None] * (len(ctx.needs_input_grad) - 3))


def _jvp(ctx: Any, da: Tensor | None, db: Tensor | None, dbias: Tensor | None, *_: None) -> Tensor:
    """The operator is linear in each operand."""
    a, b = ctx.saved_tensors
    options = ctx.op, ctx.size, ctx.groups, *ctx.fixed
    terms = [
        convolution(*pair, None, *options) for pair in ((da, b), (a, db)) if pair[0] is not None and pair[1] is not None
    ]
    if dbias is not None:
        terms.append(dbias.reshape(-1, *[1] * len(ctx.size)))
    return sum(terms)


def _vmap(info: Any, in_dims: tuple[Any, ...], a: Tensor, b: Tensor, bias: Any, op: str, size: Any, groups: int,
          *fixed: Any) -> tuple[Tensor, int]:  # fmt: skip
    """Fold the mapped axis into the batch where only data has it, and else into the groups."""
    n = info.batch_size
    a_axis, b_axis, bias_axis = in_dims[:3]
    if op != "weight_grad" and b_axis is None and bias_axis is None:
        result = convolution(a.movedim(a_axis, 0).flatten(0, 1), b, bias, op, size, groups, *fixed)
        return result.unflatten(0, (n, result.shape[0] // n)), 0

    def channels(t: Tensor, mapped: int | None, axis: int) -> Tensor:
        t = t.unsqueeze(0).expand(n, *t.shape) if mapped is None else t.movedim(mapped, 0)
        return t.movedim(0, axis).flatten(axis, axis + 1)

    a, b = channels(a, a_axis, 1), channels(b, b_axis, 1 if op == "weight_grad" else 0)
    bias = None if bias is None else channels(bias, bias_axis, 0)
    result = convolution(a, b, bias, op, size, groups * n, *fixed)
    axis = 0 if op == "weight_grad" else 1
    return result.unflatten(axis, (n, result.shape[axis] // n)), axis


class _Recorded(torch.autograd.Function):  # type: ignore[misc]
    """The operator with its backward for eager calls, at a seventh of what torch's dispatcher takes for the same."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Tensor:
        result = _compute(a, b, bias, *options)
        _setup_context(ctx, (a, b, bias, *options), result)
        return result

    backward = staticmethod(_backward)


class _Transformed(torch.autograd.Function):  # type: ignore[misc]
    """The operator for ``torch.func`` and forward mode, which a registered operator alone takes only in part."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return torch.ops.fastconv.convolution(*inputs)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_jvp)
    vmap = staticmethod(_vmap)


def convolution(a: Tensor, b: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """Call the operator by the shortest way that all who must see the call allow."""
    tensors = (a, b) if bias is None else (a, b, bias)
    if not intercepted(*tensors):
        return eager(a, b, bias, *options)
    if _transformed() and not torch.compiler.is_compiling():
        return _Transformed.apply(a, b, bias, *options)
    if torch.jit.is_tracing():
        raise RuntimeError("torch.jit.trace cannot record fastconv's operator: use torch.export or torch.compile")
    return torch.ops.fastconv.convolution(a, b, bias, *options)


def eager(a: Tensor, b: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """Call the operator where nothing intercepts it."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad or (bias is not None and bias.requires_grad)):
        return _Recorded.apply(a, b, bias, options)  # torch takes time for each argument
    return _compute(a, b, bias, *options)


torch.library.define("fastconv::convolution", _SCHEMA)
torch.library.impl("fastconv::convolution", ("cpu", "cuda"), _compute)
torch.library.register_fake("fastconv::convolution", _fake)
torch.library.register_autograd("fastconv::convolution", _backward, setup_context=_setup_context)
torch.library.register_vmap("fastconv::convolution", _vmap)
