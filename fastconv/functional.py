"""Convolution as functions of arrays: arguments in, arrays out.

:func:`conv2d` explains every argument; its twins differ in the number of spatial axes only.
"""

from __future__ import annotations

from typing import Any

from fastconv.calling import call


def conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCHW",
    weight_format: str = "OIHW",
    activation: Any = None,
    residual: Any = None,
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Two-dimensional convolution ``act(conv(x, w) + bias + residual)``.

    With ``p`` the padded input, ``y[n, o, i, j] = sum over c, k, l of w[o, c, k, l] * p[n, c, i * stride + k *
    dilation, j * stride + l * dilation]``: the cross-correlation that deep learning calls convolution; `flip_kernel`
    makes it the mathematician's.

    Parameters
    ----------
    x : array_like
        ``(*batch, C_in, H, W)``: any number of leading batch axes, none included; any strides. float32, float64,
        float16, bfloat16, complex64, complex128, int8, uint8, int16, int32 or int64. Never written to.
    w : array_like
        ``(C_out, C_in / groups, KH, KW)``. If its dtype differs from x's, both are brought to
        ``numpy.result_type(x, w)``.
    bias : array_like, optional
        ``(C_out,)``.
    stride : int or sequence of int
        One, or one for each spatial axis, at least 1.
    padding : int, sequence of int, sequence of (int, int) or str
        How much to add at both sides, one or one for each axis; or a ``(lo, hi)`` pair for each axis; or ``"valid"``
        (none), ``"same"`` (``ceil(in / stride)`` outputs, an odd one goes at the end: TensorFlow's rule),
        ``"same_lower"`` (an odd one goes at the start), ``"full"`` (every overlap), and in 1-D ``"causal"`` (outputs
        see no later inputs).
    dilation : int or sequence of int
        Distance between kernel elements, at least 1.
    groups : int
        Channels are split into so many groups that do not see each other; ``groups = C_in`` is depthwise.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the padding holds. No padded copy of the input is made.
    data_format : str
        ``"NCHW"`` or ``"NHWC"``; ``"channels_first"`` or ``"channels_last"``. Holds for `x`, `residual`, `out` and the
        result.
    weight_format : {"OIHW", "OHWI", "HWIO"}
        Order of the axes of `w`.
    activation : str or (float, float), optional
        ``"relu"``, ``"relu6"``, ``"leaky_relu"`` (slope 0.01), ``"sigmoid"``, ``"tanh"``, ``"silu"``, ``"gelu"`` (the
        exact one), or a range ``(low, high)`` to clip to.
    residual : array_like, optional
        Of the result's shape; added before the activation.
    flip_kernel : bool
        True flips `w` along its spatial axes.
    out : array, optional
        Where to write the result: of its shape and dtype, any strides, sharing no memory with `x`, `w` or `bias`. It
        may be `residual` itself.
    algorithm : str
        ``"auto"``, or the name of a registered algorithm (see :func:`fastconv.explain`).
    precision : {"highest", "high", "fast"}
        ``"highest"`` sums the products as they are, in the dtype's own arithmetic; ``"high"`` takes transforms as well,
        whose errors :func:`fastconv.explain` publishes; ``"fast"`` allows inputs of reduced precision.
    device : {"auto", "cpu", "gpu"}
        ``"auto"`` computes where the arrays live, and sends NumPy arrays to a GPU only where that is predicted to be
        at least 1.5 times faster, with the costs of copies that were measured on this machine. They go in chunks of
        the batch, whose copies overlap computing.

    Returns
    -------
    array
        ``(*batch, C_out, H_out, W_out)`` of the kind of `x`, where ``H_out = floor((H + lo + hi - dilation * (KH - 1) -
        1) / stride) + 1``. Its dtype is ``numpy.result_type(x, w)`` for floating point (half types are summed in
        float32), int32 for integers of up to 32 bits (summed in int32, wrapping round), int64 for int64.

    Raises
    ------
    ValueError
        If shapes or values do not fit together; the message names the argument and what was expected.
    TypeError
        If an argument is of the wrong type, or a dtype is not supported.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> w = np.ones((1, 1, 3, 3), np.float32)
    >>> fastconv.conv2d(x, w)
    array([[[[45., 54.],
             [81., 90.]]]], dtype=float32)
    >>> fastconv.conv2d(x, w, stride=2, padding="same", bias=np.float32([-60]), activation="relu").shape
    (1, 1, 2, 2)

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, 2016.
    """
    options = (stride, padding, dilation, groups, padding_mode, data_format, weight_format, activation, flip_kernel,
               precision)  # fmt: skip
    return call("forward", 2, x, w, bias, residual, out, algorithm, device, options)


def conv1d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCW",
    weight_format: str = "OIW",
    activation: Any = None,
    residual: Any = None,
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """One-dimensional convolution: :func:`conv2d` with one spatial axis.

    Parameters
    ----------
    x : array_like
        ``(*batch, C_in, W)``.
    w : array_like
        ``(C_out, C_in / groups, K)``.
    bias, stride, padding, dilation, groups, padding_mode, activation, residual, flip_kernel, out, algorithm, precision, device
        As for :func:`conv2d`; `padding` may also be ``"causal"``.
    data_format : str
        ``"NCW"`` or ``"NWC"``; ``"channels_first"`` or ``"channels_last"``.
    weight_format : {"OIW", "OWI", "WIO"}
        Order of the axes of `w`.

    Returns
    -------
    array
        ``(*batch, C_out, W_out)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[[1.0, 1.0]]])
    >>> fastconv.conv1d(x, w, padding="causal")
    array([[1., 3., 5., 7.]])
    """  # noqa: E501
    options = (stride, padding, dilation, groups, padding_mode, data_format, weight_format, activation, flip_kernel,
               precision)  # fmt: skip
    return call("forward", 1, x, w, bias, residual, out, algorithm, device, options)


def conv3d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCDHW",
    weight_format: str = "OIDHW",
    activation: Any = None,
    residual: Any = None,
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Three-dimensional convolution: :func:`conv2d` with three spatial axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C_in, D, H, W)``.
    w : array_like
        ``(C_out, C_in / groups, KD, KH, KW)``.
    bias, stride, padding, dilation, groups, padding_mode, activation, residual, flip_kernel, out, algorithm, precision, device
        As for :func:`conv2d`.
    data_format : str
        ``"NCDHW"`` or ``"NDHWC"``; ``"channels_first"`` or ``"channels_last"``.
    weight_format : {"OIDHW", "ODHWI", "DHWIO"}
        Order of the axes of `w`.

    Returns
    -------
    array
        ``(*batch, C_out, D_out, H_out, W_out)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 3, 8, 16, 16), np.float32), np.ones((4, 3, 3, 3, 3), np.float32)
    >>> fastconv.conv3d(x, w, stride=(1, 2, 2), padding=1).shape
    (1, 4, 8, 8, 8)
    """  # noqa: E501
    options = (stride, padding, dilation, groups, padding_mode, data_format, weight_format, activation, flip_kernel,
               precision)  # fmt: skip
    return call("forward", 3, x, w, bias, residual, out, algorithm, device, options)


def conv_transpose2d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCHW",
    weight_format: str = "OIHW",
    activation: Any = None,
    residual: Any = None,
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Two-dimensional transposed convolution, the input gradient (adjoint) of :func:`conv2d` with the same arguments.

    Parameters
    ----------
    x : array_like
        ``(*batch, C_in, H, W)``.
    w : array_like
        ``(C_in, C_out / groups, KH, KW)``: the weight of the convolution whose adjoint this is.
    bias : array_like, optional
        ``(C_out,)``.
    padding : int, sequence of int, sequence of (int, int) or str
        That of the convolution whose adjoint this is: it takes away from the result. ``"same"`` and ``"same_lower"``
        give ``in * stride`` outputs.
    output_padding : int or sequence of int
        Added to the result's size at the end of each axis, for the sizes that a strided convolution maps to one; must
        be smaller than the stride or the dilation.
    padding_mode : {"zeros"}
        The others have no transposed form.
    weight_format : {"OIHW", "OHWI", "HWIO"}
        Order of the axes of `w`, where O is ``C_in`` and I is ``C_out / groups``.
    stride, groups, dilation, data_format, activation, residual, flip_kernel, out, algorithm, precision, device
        As for :func:`conv2d`.

    Returns
    -------
    array
        ``(*batch, C_out, H_out, W_out)`` where ``H_out = (H - 1) * stride - lo - hi + dilation * (KH - 1) +
        output_padding + 1``.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[[[1.0, 2.0]]]])
    >>> w = np.array([[[[1.0, 10.0]]]])
    >>> fastconv.conv_transpose2d(x, w, stride=2)
    array([[[[ 1., 10.,  2., 20.]]]])
    """
    options = (stride, padding, output_padding, groups, dilation, padding_mode, data_format, weight_format, activation,
               flip_kernel, precision)  # fmt: skip
    return call("input_grad", 2, x, w, bias, residual, out, algorithm, device, options)


def conv_transpose1d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCW",
    weight_format: str = "OIW",
    activation: Any = None,
    residual: Any = None,
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """One-dimensional transposed convolution: :func:`conv_transpose2d` with one spatial axis.

    Parameters
    ----------
    x : array_like
        ``(*batch, C_in, W)``.
    w : array_like
        ``(C_in, C_out / groups, K)``.
    bias, stride, padding, output_padding, groups, dilation, padding_mode, data_format, weight_format, activation, residual, flip_kernel, out, algorithm, precision, device
        As for :func:`conv_transpose2d` and :func:`conv1d`.

    Returns
    -------
    array
        ``(*batch, C_out, W_out)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv_transpose1d(np.array([[1.0, 2.0]]), np.array([[[1.0, 10.0, 100.0]]]), stride=2)
    array([[  1.,  10., 102.,  20., 200.]])
    """  # noqa: E501
    options = (stride, padding, output_padding, groups, dilation, padding_mode, data_format, weight_format, activation,
               flip_kernel, precision)  # fmt: skip
    return call("input_grad", 1, x, w, bias, residual, out, algorithm, device, options)


def conv_transpose3d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    padding_mode: str = "zeros",
    data_format: str = "NCDHW",
    weight_format: str = "OIDHW",
    activation: Any = None,
    residual: Any = None,
    flip_kernel: bool = False,
    out: Any = None,
    algorithm: str = "auto",
    precision: str = "high",
    device: str = "auto",
) -> Any:
    """Three-dimensional transposed convolution: :func:`conv_transpose2d` with three spatial axes.

    Parameters
    ----------
    x : array_like
        ``(*batch, C_in, D, H, W)``.
    w : array_like
        ``(C_in, C_out / groups, KD, KH, KW)``.
    bias, stride, padding, output_padding, groups, dilation, padding_mode, data_format, weight_format, activation, residual, flip_kernel, out, algorithm, precision, device
        As for :func:`conv_transpose2d` and :func:`conv3d`.

    Returns
    -------
    array
        ``(*batch, C_out, D_out, H_out, W_out)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 4, 4, 8, 8), np.float32), np.ones((4, 2, 2, 2, 2), np.float32)
    >>> fastconv.conv_transpose3d(x, w, stride=2).shape
    (1, 2, 8, 16, 16)
    """  # noqa: E501
    options = (stride, padding, output_padding, groups, dilation, padding_mode, data_format, weight_format, activation,
               flip_kernel, precision)  # fmt: skip
    return call("input_grad", 3, x, w, bias, residual, out, algorithm, device, options)
