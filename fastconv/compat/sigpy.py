"""sigpy's convolution and its two adjoints, on fastconv.

sigpy computes them on the CPU in three Python loops over ``scipy.signal``, and on a GPU through ``cupy.cudnn``, four
real ones for a complex one. Here each is one call, for NumPy and for CuPy arrays, complex numbers included. Arguments,
results and dtypes are sigpy's, for one to three axes. :func:`replaced` lets sigpy itself call them, its linear
operators among what does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fastconv
from fastconv import grad

_FUNCTIONS = {
    1: (fastconv.conv1d, grad.conv1d_input, grad.conv1d_weight),
    2: (fastconv.conv2d, grad.conv2d_input, grad.conv2d_weight),
    3: (fastconv.conv3d, grad.conv3d_input, grad.conv3d_weight),
}
_NAMES = ("convolve", "convolve_data_adjoint", "convolve_filter_adjoint")


class _Geometry:
    """What sigpy's arguments say: the shapes with all axes, and the options of the functions here."""

    def __init__(
        self,
        data_shape: Sequence[int],
        filt_shape: Sequence[int],
        mode: str,
        strides: Sequence[int] | None,
        multi_channel: bool,
    ) -> None:
        ndim = len(filt_shape) - 2 * multi_channel
        if ndim not in _FUNCTIONS:
            raise ValueError(f"filt has shape {tuple(filt_shape)}, with {ndim} axes to convolve along: expected 1 to 3")
        if mode not in ("full", "valid"):
            raise ValueError(f"mode={mode!r}: expected 'full' or 'valid'")
        self.functions = _FUNCTIONS[ndim]
        self.multi_channel, self._ndim = multi_channel, ndim
        self.data, self.filt = self.with_channels(data_shape), tuple(filt_shape)
        if not multi_channel:
            self.filt = (1, 1, *self.filt)
        self.options: dict[str, Any] = {
            "stride": 1 if strides is None else tuple(strides),
            "padding": mode,
            "flip_kernel": True,
        }

    def with_channels(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of data or of a result, with an axis of channels."""
        shape = tuple(shape)
        return shape if self.multi_channel else (*shape[: -self._ndim], 1, *shape[-self._ndim :])

    def without_channels(self, array: Any) -> Any:
        """An array as sigpy gives it."""
        return array if self.multi_channel else array.squeeze(-1 - self._ndim)


def convolve(
    data: Any, filt: Any, mode: str = "full", strides: Sequence[int] | None = None, multi_channel: bool = False
) -> Any:
    """Convolve as :func:`sigpy.convolve` does.

    Parameters
    ----------
    data : array
        ``(*batch, *m)``, or with `multi_channel` ``(*batch, c_i, *m)``.
    filt : array
        ``n``, or with `multi_channel` ``(c_o, c_i, *n)``; of one to three axes to convolve along.
    mode : {"full", "valid"}
        Every overlap, or those of the whole filter.
    strides : sequence of int, optional
        One for each axis.
    multi_channel : bool
        Whether there are axes of channels.

    Returns
    -------
    array
        ``(*batch, *p)``, or with `multi_channel` ``(*batch, c_o, *p)``, of the dtype of `data`.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.conv2d` does.

    Examples
    --------
    >>> import numpy as np
    >>> convolve(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0]))
    array([ 1., 12., 23., 30.])
    """
    geometry = _Geometry(data.shape, filt.shape, mode, strides, multi_channel)
    forward, _, _ = geometry.functions
    result = forward(data.reshape(geometry.data), filt.reshape(geometry.filt), **geometry.options)
    return geometry.without_channels(result).astype(data.dtype, casting="same_kind", copy=False)


def convolve_data_adjoint(
    output: Any,
    filt: Any,
    data_shape: Sequence[int],
    mode: str = "full",
    strides: Sequence[int] | None = None,
    multi_channel: bool = False,
) -> Any:
    """The adjoint of :func:`convolve` as a map of its data, as :func:`sigpy.convolve_data_adjoint`.

    Parameters
    ----------
    output : array
        Of the shape of a result of :func:`convolve`.
    filt, mode, strides, multi_channel
        As for :func:`convolve`.
    data_shape : sequence of int
        Shape of the data.

    Returns
    -------
    array
        Of shape `data_shape` and the dtype of `output`.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.conv2d` does.

    Examples
    --------
    >>> import numpy as np
    >>> convolve_data_adjoint(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 10.0]), (3,))
    array([21., 32., 43.])
    """
    geometry = _Geometry(data_shape, filt.shape, mode, strides, multi_channel)
    _, to_data, _ = geometry.functions
    output_with_channels = output.reshape(geometry.with_channels(output.shape))
    result = to_data(geometry.data, filt.reshape(geometry.filt).conj(), output_with_channels, **geometry.options)
    return geometry.without_channels(result).astype(output.dtype, casting="same_kind", copy=False)


def convolve_filter_adjoint(
    output: Any,
    data: Any,
    filt_shape: Sequence[int],
    mode: str = "full",
    strides: Sequence[int] | None = None,
    multi_channel: bool = False,
) -> Any:
    """The adjoint of :func:`convolve` as a map of its filter, as :func:`sigpy.convolve_filter_adjoint`.

    Parameters
    ----------
    output : array
        Of the shape of a result of :func:`convolve`.
    data, mode, strides, multi_channel
        As for :func:`convolve`.
    filt_shape : sequence of int
        Shape of the filter.

    Returns
    -------
    array
        Of shape `filt_shape` and the dtype of `output`.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.conv2d` does.

    Examples
    --------
    >>> import numpy as np
    >>> convolve_filter_adjoint(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0]), (2,))
    array([14., 20.])
    """
    geometry = _Geometry(data.shape, filt_shape, mode, strides, multi_channel)
    _, _, to_filter = geometry.functions
    output_with_channels = output.reshape(geometry.with_channels(output.shape))
    result = to_filter(data.reshape(geometry.data).conj(), geometry.filt, output_with_channels, **geometry.options)
    return result.reshape(tuple(filt_shape)).astype(output.dtype, casting="same_kind", copy=False)


@contextmanager
def replaced() -> Iterator[None]:
    """Let sigpy call the functions of this module instead of its own, for as long as the block lasts.

    It holds for the process, not for a thread. ``docs/cudnn.md`` has an example.
    """
    import sigpy

    places = [(module, name, getattr(module, name)) for module in (sigpy, sigpy.conv) for name in _NAMES]
    try:
        for module, name, _ in places:
            setattr(module, name, globals()[name])
        yield
    finally:
        for module, name, own in places:
            setattr(module, name, own)
