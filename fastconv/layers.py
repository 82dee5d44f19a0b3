"""Convolutions with their weights bound once: packed, transformed and on the device before the first call."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any, ClassVar

from fastconv.arrays import Kind, adopt, at_home, is_plain
from fastconv.calling import check, freeze, lookup
from fastconv.dispatch import Execution, adopt_all, times_chosen
from fastconv.settings import workspace_limit

# Forms of the weight kept by one layer: a layer met by inputs of very different sizes may use a few algorithms.
_MOST_PACKED = 4
# Shapes of NumPy inputs for which one layer remembers how to run.
_MOST_READY = 64


class _Layer:
    """What all six layers share; subclasses say which convolution they are."""

    ndim: ClassVar[int]
    op: ClassVar[str]

    @at_home
    def __init__(self, w: Any, bias: Any, options: tuple[Any, ...], algorithm: str, device: str) -> None:
        self._w = adopt("w", w)[0].copy()
        self._bias = None if bias is None else adopt("bias", bias)[0].copy()
        self._options = freeze(options)  # a list among them is the caller's
        self._algorithm, self._device = algorithm, device
        check(self.op, self.ndim, self._w, self._bias, freeze(algorithm), freeze(device), self._options)
        self._packed: OrderedDict[Any, Any] = OrderedDict()
        self._ready: dict[Any, tuple[Execution, Any]] = {}

    def __repr__(self) -> str:
        """The weight's shape and dtype, and every option that is not the default."""
        parameters = inspect.signature(type(self)).parameters
        bound = {"w": None, "bias": None, "algorithm": self._algorithm, "device": self._device}
        options = zip((name for name in parameters if name not in bound), self._options, strict=True)
        shown = {name: repr(value) for name, value in (bound | dict(options)).items() if value is not None}
        changed = [f"{n}={shown[n]}" for n in parameters if n in shown and shown[n] != repr(parameters[n].default)]
        bias = [] if self._bias is None else ["bias"]
        return f"{type(self).__name__}({', '.join([f'w {self._w.shape} {self._w.dtype}', *bias, *changed])})"

    def __call__(self, x: Any, residual: Any = None, out: Any = None) -> Any:
        """Apply the layer.

        Parameters
        ----------
        x : array_like
            ``(*batch, C_in, *spatial)``, or channels last.
        residual : array_like, optional
            Of the result's shape; added before the activation.
        out : array, optional
            Where to write the result.

        Returns
        -------
        array
            Of the kind of `x`.
        """
        if residual is None and is_plain(x) and (out is None or is_plain(out)):
            # Beside the kernel of a small layer all else counts, so what follows from these four is kept.
            key = x.shape, x.dtype, workspace_limit(), times_chosen()
            ready = self._ready.get(key)
            if ready is None:
                ready = self._make_ready(*adopt_all(x, self._w, self._bias, None, None))
                if len(self._ready) >= _MOST_READY:
                    self._ready.clear()
                if ready[0].device == "cpu":  # on a GPU, a packed weight is for the one that is current
                    self._ready[key] = ready
            execution, packed = ready
            return execution(x, self._w, self._bias, None, out, packed=packed)
        return self._apply(x, residual, out)

    @at_home
    def _apply(self, x: Any, residual: Any, out: Any) -> Any:
        arrays, kind = adopt_all(x, self._w, self._bias, residual, out)
        execution, packed = self._make_ready(arrays, kind)
        result = execution(*arrays, packed=packed)
        return kind.give(result) if out is None else out

    def _make_ready(self, arrays: tuple[Any, ...], kind: Kind) -> tuple[Execution, Any]:
        """The execution for adopted arrays, and the weight packed as it wants it."""
        where = self._algorithm, self._device, self._options
        execution = lookup(self.op, self.ndim, arrays, kind, *where, prepared=True)
        key = execution.pack_key()
        packed = self._packed.get(key)
        if packed is None:
            packed = self._packed[key] = execution.pack(arrays[1])
            if len(self._packed) > _MOST_PACKED:
                self._packed.popitem(last=False)
                self._ready.clear()  # which hold it too
        return execution, packed


class _Conv(_Layer):
    op = "forward"

    def __init__(
        self,
        w: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        data_format: str = "channels_first",
        weight_format: str | None = None,
        activation: Any = None,
        flip_kernel: bool = False,
        algorithm: str = "auto",
        precision: str = "high",
        device: str = "auto",
    ) -> None:
        options = (stride, padding, dilation, groups, padding_mode, data_format, weight_format, activation,
                   flip_kernel, precision)  # fmt: skip
        super().__init__(w, bias, options, algorithm, device)


class _ConvTranspose(_Layer):
    op = "input_grad"

    def __init__(
        self,
        w: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
        *,
        padding_mode: str = "zeros",
        data_format: str = "channels_first",
        weight_format: str | None = None,
        activation: Any = None,
        flip_kernel: bool = False,
        algorithm: str = "auto",
        precision: str = "high",
        device: str = "auto",
    ) -> None:
        options = (stride, padding, output_padding, groups, dilation, padding_mode, data_format, weight_format,
                   activation, flip_kernel, precision)  # fmt: skip
        super().__init__(w, bias, options, algorithm, device)


class Conv2d(_Conv):
    """A two-dimensional convolution with its weight bound.

    The weight is copied and brought into the kernel's own form once; later changes to the caller's array do not show.

    Parameters
    ----------
    w : array_like
        ``(C_out, C_in / groups, KH, KW)``.
    bias : array_like, optional
        ``(C_out,)``.
    stride, padding, dilation, groups, padding_mode, data_format, weight_format, activation, flip_kernel, algorithm, precision, device
        As for :func:`fastconv.conv2d`.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.conv2d` does: of the weight, the bias and the options when made, of the rest when called.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> layer = fastconv.Conv2d(np.ones((8, 3, 3, 3), np.float32), padding=1, activation="relu")
    >>> layer(np.ones((2, 3, 32, 32), np.float32)).shape
    (2, 8, 32, 32)
    """  # noqa: E501

    ndim = 2


class Conv1d(_Conv):
    """A one-dimensional convolution with its weight ``(C_out, C_in / groups, K)`` bound: see :class:`Conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.Conv1d(np.ones((8, 4, 3)), padding="causal")(np.ones((4, 100))).shape
    (8, 100)
    """

    ndim = 1


class Conv3d(_Conv):
    """A three-dimensional convolution with its weight ``(C_out, C_in / groups, KD, KH, KW)`` bound.

    See :class:`Conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.Conv3d(np.ones((8, 4, 3, 3, 3)), stride=2)(np.ones((4, 9, 9, 9))).shape
    (8, 4, 4, 4)
    """

    ndim = 3


class ConvTranspose2d(_ConvTranspose):
    """A two-dimensional transposed convolution with its weight bound.

    Parameters
    ----------
    w : array_like
        ``(C_in, C_out / groups, KH, KW)``.
    bias : array_like, optional
        ``(C_out,)``.
    stride, padding, output_padding, groups, dilation, padding_mode, data_format, weight_format, activation, flip_kernel, algorithm, precision, device
        As for :func:`fastconv.conv_transpose2d`.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.conv_transpose2d` does: of the weight, the bias and the options when made, of the rest when
        called.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> layer = fastconv.ConvTranspose2d(np.ones((8, 3, 4, 4), np.float32), stride=2, padding=1)
    >>> layer(np.ones((2, 8, 16, 16), np.float32)).shape
    (2, 3, 32, 32)
    """  # noqa: E501

    ndim = 2


class ConvTranspose1d(_ConvTranspose):
    """A one-dimensional transposed convolution with its weight ``(C_in, C_out / groups, K)`` bound.

    See :class:`ConvTranspose2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.ConvTranspose1d(np.ones((8, 4, 2)), stride=2)(np.ones((8, 100))).shape
    (4, 200)
    """

    ndim = 1


class ConvTranspose3d(_ConvTranspose):
    """A three-dimensional transposed convolution with its weight ``(C_in, C_out / groups, KD, KH, KW)`` bound.

    See :class:`ConvTranspose2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.ConvTranspose3d(np.ones((8, 4, 2, 2, 2)), stride=2)(np.ones((8, 4, 5, 6))).shape
    (4, 8, 10, 12)
    """

    ndim = 3
