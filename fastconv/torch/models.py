"""Models computed by fastconv: :func:`convert` for those you hold, :func:`replaced` for code that you do not own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

import fastconv


def _on_torchs_terms(
    name: str, x: Tensor, w: Tensor, bias: Any, stride: Any, padding: Any, *args: Any, **options: Any
) -> Tensor:
    """Call fastconv's function `name`, where it takes what torch's own takes."""
    ndim = int(name[-2])
    if x.dim() - ndim not in (1, 2):
        raise ValueError(f"input has {x.dim()} axes")
    stride, padding, *rest = [_widened(option) for option in (stride, padding, *args)]
    if padding == "same" and stride not in (1, (1,) * ndim, [1] * ndim):
        raise ValueError("padding='same' with a stride")
    return getattr(fastconv, name)(x, w, bias, stride, padding, *rest, **options)


def _widened(option: Any) -> Any:
    """Torch takes one number for every axis in a sequence too."""
    return option[0] if isinstance(option, (list, tuple)) and len(option) == 1 else option


# What torch refuses is refused in torch's words: its own call comes after an error of fastconv's.


class _Convolution(_ConvNd):  # type: ignore[misc]
    """`forward` of torch's class ends in this method."""

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        try:
            return _on_torchs_terms(
                f"conv{weight.dim() - 2}d", input, weight, bias, self.stride, self.padding, self.dilation, self.groups,
                padding_mode=self.padding_mode,
            )  # fmt: skip
        except (TypeError, ValueError):
            super()._conv_forward(input, weight, bias)
            raise


class _Transposed(_ConvTransposeNd):  # type: ignore[misc]
    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        ndim = self.weight.dim() - 2
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, ndim, self.dilation
        )
        try:
            return _on_torchs_terms(
                f"conv_transpose{ndim}d", input, self.weight, self.bias, self.stride, self.padding, output_padding,
                self.groups, self.dilation,
            )  # fmt: skip
        except (TypeError, ValueError):
            super().forward(input, output_size)
            raise


class Conv1d(_Convolution, nn.Conv1d):  # type: ignore[misc]
    """``torch.nn.Conv1d``, computed by :func:`fastconv.conv1d`."""


class Conv2d(_Convolution, nn.Conv2d):  # type: ignore[misc]
    """``torch.nn.Conv2d``, computed by :func:`fastconv.conv2d`."""


class Conv3d(_Convolution, nn.Conv3d):  # type: ignore[misc]
    """``torch.nn.Conv3d``, computed by :func:`fastconv.conv3d`."""


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose1d``, computed by :func:`fastconv.conv_transpose1d`."""


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose2d``, computed by :func:`fastconv.conv_transpose2d`."""


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose3d``, computed by :func:`fastconv.conv_transpose3d`."""


_OURS = (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
_CONVERTED: dict[Any, Any] = {ours.__mro__[2]: ours for ours in _OURS}
_REVERTED: dict[Any, Any] = {ours: torchs for torchs, ours in _CONVERTED.items()}


def convert(model: nn.Module) -> nn.Module:
    """Have fastconv compute every convolution of a model; it is changed in place.

    Each module of class ``nn.Conv1d`` to ``nn.ConvTranspose3d`` becomes one of a subclass of its own class: the module
    itself, its parameters, buffers, hooks, name in ``state_dict`` and place in the model stay what they are. Subclasses
    of those classes are left alone, as they may compute something else: see :func:`replaced`.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        `model`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU())
    >>> convert(model)[0].__class__
    <class 'fastconv.torch.models.Conv2d'>
    >>> model(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8, 32, 32])
    """
    return _change(model, _CONVERTED)


def revert(model: nn.Module) -> nn.Module:
    """Have torch compute every convolution of a converted model again; it is changed in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        `model`.

    Examples
    --------
    >>> from torch import nn
    >>> revert(convert(nn.Conv1d(1, 1, 3))).__class__
    <class 'torch.nn.modules.conv.Conv1d'>
    """
    return _change(model, _REVERTED)


def _change(model: nn.Module, classes: dict[Any, Any]) -> nn.Module:
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
    return model


_FUNCTIONS = {
    getattr(F, name): name
    for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
}


class _Replacing(TorchFunctionMode):  # type: ignore[misc]
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _FUNCTIONS:
            return func(*args, **kwargs)
        try:
            return _functional(_FUNCTIONS[func], *args, **kwargs)
        except (TypeError, ValueError):
            func(*args, **kwargs)
            raise


def _functional(
    name: str, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    *rest: Any, **options: Any,
) -> Tensor:  # fmt: skip
    """With the names that torch gives its arguments."""
    options = {key: _widened(value) for key, value in options.items()}
    return _on_torchs_terms(name, input, weight, bias, stride, padding, *rest, **options)


@contextmanager
def replaced() -> Iterator[None]:
    """Have fastconv compute ``torch.nn.functional.conv1d`` to ``conv_transpose3d`` inside a ``with`` block.

    Whoever calls them: modules, functions, code that you do not own; in this Python thread. Errors are torch's own.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Conv2d(3, 8, 3)
    >>> with replaced():
    ...     layer(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8, 30, 30])
    """
    with _Replacing():
        yield
