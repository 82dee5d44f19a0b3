"""One frozen description of a convolution: its shape arithmetic and every error about its arguments.

Everything downstream (dispatch, kernels, reference, adapters) receives a :class:`ConvProblem`; nothing downstream
looks at user arguments again. All three spatial axes are always present: a 1-D problem has size ``(1, 1, W)``, a 2-D
one ``(1, H, W)``. ``ndim`` says how many of them the user knows about.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fastconv.parsing import DATA_FORMATS as DATA_FORMATS
from fastconv.parsing import (
    LARGEST,
    DataFormat,
    Pairs,
    addressable,
    flag,
    integer,
    lengths,
    lift,
    one_of,
    parse_padding,
    per_axis,
    triple,
)
from fastconv.parsing import Triple as Triple

OPS = ("forward", "input_grad", "weight_grad")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
PRECISIONS = ("highest", "high", "fast")
WEIGHT_FORMATS = {1: ("OIW", "OWI", "WIO"), 2: ("OIHW", "OHWI", "HWIO"), 3: ("OIDHW", "ODHWI", "DHWIO")}

#: input dtype -> (result dtype, accumulator dtype)
DTYPES = {
    "float32": ("float32", "float32"),
    "float64": ("float64", "float64"),
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "complex64": ("complex64", "complex64"),
    "complex128": ("complex128", "complex128"),
    "int8": ("int32", "int32"),
    "uint8": ("int32", "int32"),
    "int16": ("int32", "int32"),
    "int32": ("int32", "int32"),
    "int64": ("int64", "int64"),
}


@dataclass(frozen=True)
class Activation:
    """What is applied to ``conv + bias + residual``: a name and two parameters.

    ``clip`` limits to ``[a, b]`` (relu is ``[0, inf]``, relu6 is ``[0, 6]``); ``leaky_relu`` has slope ``a`` below
    zero; the others take no parameter. ``gelu`` is the exact one, ``v * Phi(v)`` (Hendrycks and Gimpel, 2016).
    """

    kind: str
    a: float = 0.0
    b: float = math.inf

    KINDS = ("none", "clip", "leaky_relu", "sigmoid", "tanh", "silu", "gelu")

    @property
    def code(self) -> int:
        """The number by which kernels know this activation."""
        return self.KINDS.index(self.kind)

    @classmethod
    def parse(cls, activation: Any, dtype: str) -> Activation:
        """Read the ``activation`` argument; ``dtype`` limits what is possible."""
        named = {"relu": cls("clip"), "relu6": cls("clip", 0.0, 6.0), "leaky_relu": cls("leaky_relu", 0.01)}
        named |= {kind: cls(kind) for kind in ("sigmoid", "tanh", "silu", "gelu")}
        if activation is None:
            return cls("none")
        if isinstance(activation, str) and activation in named:
            parsed = named[activation]
        elif _is_clip_range(activation):
            parsed = cls("clip", float(activation[0]), float(activation[1]))
        else:
            raise ValueError(
                f"activation={activation!r}: expected None, one of {', '.join(named)}, or a clip range (low, high)"
            )
        if dtype.startswith("complex"):
            raise TypeError(f"activation={activation!r}: not defined for {dtype} results")
        if "int" in dtype and parsed.kind != "clip":
            raise TypeError(f"activation={activation!r}: integer results take 'relu', 'relu6' or a clip range only")
        if "int" in dtype:
            limits = np.iinfo(DTYPES[dtype][0])
            finite = [bound for bound in (parsed.a, parsed.b) if math.isfinite(bound)]
            if any(not bound.is_integer() or not limits.min <= bound <= limits.max for bound in finite):
                raise ValueError(f"activation={activation!r}: expected integers that {limits.dtype} holds, or infinity")
        return parsed


def _is_clip_range(value: Any) -> bool:
    if isinstance(value, str):  # two digits are not a range
        return False
    try:
        low, high = value
        return bool(float(low) <= float(high))
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True)
class ConvProblem:
    """A convolution ``y = x (*) w`` or one of its two gradients, without the data.

    Channels, sizes and paddings are always those of the *forward* convolution; ``op`` says which of the three arrays
    is the unknown: ``forward`` (y from x, w), ``input_grad`` (x from y, w: a transposed convolution) or
    ``weight_grad`` (w from x, y). Build one with :meth:`forward` or :meth:`transposed`; derive the gradients with
    ``dataclasses.replace(problem, op=...)``.
    """

    op: str
    ndim: int
    batch_shape: tuple[int, ...]
    in_channels: int
    out_channels: int
    groups: int
    size: Triple
    kernel: Triple
    out_size: Triple
    stride: Triple
    dilation: Triple
    padding: Pairs
    dtype: str
    padding_mode: str = "zeros"
    flip_kernel: bool = False
    channels_last: bool = False
    weight_order: str = "OI*"
    bias: bool = False
    residual: bool = False
    activation: Activation = Activation("none")
    precision: str = "high"

    def __post_init__(self) -> None:
        addressable(self, self.result_shape)

    # -- construction ---------------------------------------------------------------------------------------------

    @classmethod
    def forward(
        cls,
        ndim: int,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        *,
        dtype: str = "float32",
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        data_format: str = "channels_first",
        weight_format: str | None = None,
        activation: Any = None,
        flip_kernel: bool = False,
        precision: str = "high",
        bias: bool = False,
        residual: bool = False,
    ) -> ConvProblem:
        """Describe ``y = conv(x, w)`` from user arguments, or say what is wrong with them."""
        args = _Arguments(
            ndim, stride, dilation, groups, padding_mode, data_format, weight_format, precision, flip_kernel
        )
        x_shape, w_shape = lengths("x_shape", x_shape), lengths("w_shape", w_shape)
        batch_shape, channels, size = args.data_format.split("x", x_shape)
        out_channels, group_channels, kernel = args.split_weight(w_shape)
        if channels != group_channels * args.groups:
            raise ValueError(
                f"w has shape {w_shape} ({args.weight_name}), so with groups={args.groups} x must have "
                f"{group_channels} * {args.groups} = {group_channels * args.groups} channels; "
                f"x has shape {x_shape} ({args.data_format.name}) with {channels}"
            )
        args.check_groups("output channels (from w)", out_channels)
        pads = parse_padding(padding, ndim, size, kernel, args.stride, args.dilation, transposed=False)
        args.check_padding_mode(pads, size, x_shape)
        out_size = [
            _output_length(size[i], kernel[i], args.stride[i], pads[i], args.dilation[i], 3 - ndim <= i, x_shape)
            for i in range(3)
        ]
        return cls(
            op="forward",
            batch_shape=batch_shape,
            in_channels=channels,
            out_channels=out_channels,
            size=size,
            kernel=kernel,
            out_size=triple(out_size),
            padding=pads,
            dtype=dtype,
            bias=bias,
            residual=residual,
            activation=Activation.parse(activation, dtype),
            **args.fields(),
        )

    @classmethod
    def transposed(
        cls,
        ndim: int,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        *,
        dtype: str = "float32",
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        data_format: str = "channels_first",
        weight_format: str | None = None,
        activation: Any = None,
        flip_kernel: bool = False,
        precision: str = "high",
        bias: bool = False,
        residual: bool = False,
    ) -> ConvProblem:
        """Describe ``y = conv_transpose(x, w)``: the input gradient of the convolution that maps y's shape to x's."""
        args = _Arguments(
            ndim, stride, dilation, groups, padding_mode, data_format, weight_format, precision, flip_kernel
        )
        x_shape, w_shape = lengths("x_shape", x_shape), lengths("w_shape", w_shape)
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode={padding_mode!r}: a transposed convolution takes 'zeros' only")
        batch_shape, channels, out_size = args.data_format.split("x", x_shape)
        weight_channels, group_channels, kernel = args.split_weight(w_shape)
        if channels != weight_channels:
            raise ValueError(
                f"w has shape {w_shape} ({args.weight_name}, where O is x's channels in a transposed "
                f"convolution), so x must have {weight_channels} channels; "
                f"x has shape {x_shape} ({args.data_format.name}) with {channels}"
            )
        args.check_groups("input channels", channels)
        pads = parse_padding(padding, ndim, out_size, kernel, args.stride, args.dilation, transposed=True)
        extra = lift(per_axis("output_padding", output_padding, ndim, 0), 0)
        size = []
        for i in range(3):
            if extra[i] >= max(args.stride[i], args.dilation[i]) and extra[i] > 0:
                raise ValueError(
                    f"output_padding={output_padding!r}: must be smaller than stride ({args.stride[i]}) or "
                    f"dilation ({args.dilation[i]}) on each axis"
                )
            reach = args.dilation[i] * (kernel[i] - 1) + 1
            if isinstance(padding, str) and padding.startswith("same"):  # the adjoint of "same" restores size * stride
                extra = _replace(extra, i, extra[i] + max(args.stride[i] - reach, 0))
            length = (out_size[i] - 1) * args.stride[i] - sum(pads[i]) + reach + extra[i]
            if length < 0 and out_size[i] > 0:
                raise ValueError(
                    f"padding={padding!r}: takes away more than there is; x of shape {x_shape} with kernel "
                    f"{kernel[3 - ndim :]} and stride {args.stride[3 - ndim :]} gives an output axis of length {length}"
                )
            size.append(max(length, 0) if out_size[i] > 0 else 0)
        return cls(
            op="input_grad",
            batch_shape=batch_shape,
            in_channels=group_channels * args.groups,
            out_channels=channels,
            size=triple(size),
            kernel=kernel,
            out_size=out_size,
            padding=pads,
            dtype=dtype,
            bias=bias,
            residual=residual,
            activation=Activation.parse(activation, dtype),
            **args.fields(),
        )

    @classmethod
    def without_pixels(cls, op: str, ndim: int, w_shape: Sequence[int], **options: Any) -> ConvProblem:
        """Describe `op` for an input that has channels but no pixels, or say what is wrong with weight and options."""
        args = _Arguments(ndim, **{name: options[name] for name in _SHARED})
        outer, inner, _ = args.split_weight(lengths("w_shape", w_shape))
        describe, channels = (cls.forward, inner * args.groups) if op == "forward" else (cls.transposed, outer)
        x_shape = args.data_format.join((), channels, (0, 0, 0))
        if args.padding_mode != "zeros":  # which makes nothing of no pixels
            describe(ndim, x_shape, w_shape, **options | {"padding": 0})
        return describe(ndim, x_shape, w_shape, **options | {"padding_mode": "zeros"})

    # -- what follows from the fields -----------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Number of items: the product of the leading batch axes."""
        return math.prod(self.batch_shape)

    @property
    def result_dtype(self) -> str:
        """Name of the dtype of the result."""
        return DTYPES[self.dtype][0]

    @property
    def accumulator_dtype(self) -> str:
        """Name of the dtype in which products are summed."""
        return DTYPES[self.dtype][1]

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the forward input, in the user's format."""
        return self._data_shape(self.in_channels, self.size)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the forward output, in the user's format."""
        return self._data_shape(self.out_channels, self.out_size)

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of the weight, in the user's format."""
        kernel = self.kernel[3 - self.ndim :]
        parts = {"O": (self.out_channels,), "I": (self.in_channels // self.groups,), "*": kernel}
        return tuple(n for letter in self.weight_order for n in parts[letter])

    @property
    def operand_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the two arrays that ``op`` reads."""
        return {
            "forward": (self.x_shape, self.w_shape),
            "input_grad": (self.y_shape, self.w_shape),
            "weight_grad": (self.x_shape, self.y_shape),
        }[self.op]

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the array that ``op`` makes."""
        return {"forward": self.y_shape, "input_grad": self.x_shape, "weight_grad": self.w_shape}[self.op]

    @property
    def result_channels(self) -> int:
        """Channels of the result, which is also the length of a bias."""
        return self.in_channels if self.op == "input_grad" else self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-adds of the definition (padding counted); the same for all three ops."""
        taps = math.prod(self.kernel) * (self.in_channels // max(self.groups, 1))
        return self.batch * self.out_channels * math.prod(self.out_size) * taps

    def _data_shape(self, channels: int, size: Triple) -> tuple[int, ...]:
        return DataFormat(self.ndim, self.channels_last).join(self.batch_shape, channels, size)

    def __str__(self) -> str:
        x, w = self.operand_shapes
        name = {"forward": "conv", "input_grad": "conv_transpose", "weight_grad": "conv_weight_grad"}[self.op]
        at = 3 - self.ndim
        extras = [f"stride={self.stride[at:]}"] if max(self.stride) > 1 else []
        extras += [f"padding={self.padding[at:]}"] if any(map(any, self.padding)) else []
        extras += [f"dilation={self.dilation[at:]}"] if max(self.dilation) > 1 else []
        extras += [f"groups={self.groups}"] if self.groups > 1 else []
        extras += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        extras += ["channels_last"] if self.channels_last else []
        return f"{name}{self.ndim}d {x} * {w} -> {self.result_shape} {self.dtype} {' '.join(extras)}".rstrip()


def compute_dtype(x_dtype: Any, w_dtype: Any, names: tuple[str, str] = ("x", "w")) -> str:
    """Name of the dtype both operands are brought to, by NumPy's promotion; `TypeError` if it is not supported."""
    for name, dtype in zip(names, (x_dtype, w_dtype), strict=True):
        if dtype.name not in DTYPES:
            raise TypeError(f"{name} has dtype {dtype}: expected one of {', '.join(DTYPES)}")
    if x_dtype == w_dtype:
        return str(x_dtype.name)
    try:
        return str(np.result_type(x_dtype, w_dtype).name)
    except TypeError:
        raise TypeError(
            f"{names[0]} has dtype {x_dtype} and {names[1]} {w_dtype}: expected two that NumPy promotes to one"
        ) from None


# -- reading the arguments -----------------------------------------------------------------------------------------


class _Arguments:
    """The arguments that forward and transposed convolutions read alike."""

    def __init__(
        self,
        ndim: int,
        stride: Any,
        dilation: Any,
        groups: Any,
        padding_mode: str,
        data_format: str,
        weight_format: str | None,
        precision: str,
        flip_kernel: bool,
    ) -> None:
        self.ndim = ndim
        self.stride = lift(per_axis("stride", stride, ndim, 1), 1)
        self.dilation = lift(per_axis("dilation", dilation, ndim, 1), 1)
        self.groups = integer("groups", groups, 1)
        self.padding_mode = one_of("padding_mode", padding_mode, PADDING_MODES)
        self.precision = one_of("precision", precision, PRECISIONS)
        self.flip_kernel = flag("flip_kernel", flip_kernel)
        self.data_format = DataFormat.parse(ndim, data_format)
        self.channels_last = self.data_format.channels_last
        self.weight_name = WEIGHT_FORMATS[ndim][0] if weight_format is None else weight_format
        one_of("weight_format", self.weight_name, WEIGHT_FORMATS[ndim])
        self.weight_order = ("OI*", "O*I", "*IO")[WEIGHT_FORMATS[ndim].index(self.weight_name)]

    def fields(self) -> dict[str, Any]:
        """What of this a :class:`ConvProblem` holds under the same name."""
        own = {field.name for field in fields(ConvProblem)}
        return {name: value for name, value in vars(self).items() if name in own}

    def split_weight(self, shape: tuple[int, ...]) -> tuple[int, int, Triple]:
        """Outer channels (O), channels per group (I) and lifted kernel size of a weight array."""
        if len(shape) != self.ndim + 2:
            raise ValueError(f"w has shape {shape}: expected {self.ndim + 2} axes, {self.weight_name}")
        kernel = {"OI*": shape[2:], "O*I": shape[1:-1], "*IO": shape[:-2]}[self.weight_order]
        outer, inner = {"OI*": shape[:2], "O*I": shape[:: self.ndim + 1], "*IO": shape[:-3:-1]}[self.weight_order]
        if min(kernel) < 1:
            raise ValueError(f"w has shape {shape} ({self.weight_name}): every kernel axis must be at least 1 long")
        return outer, inner, lift(kernel, 1)

    def check_groups(self, what: str, channels: int) -> None:
        if channels % self.groups:
            raise ValueError(f"groups={self.groups}: must divide the number of {what}, {channels}")

    def check_padding_mode(self, pads: Pairs, size: Triple, x_shape: tuple[int, ...]) -> None:
        """Reflection reaches at most size - 1 past the edge, a circle once round, replication needs an edge."""
        if self.padding_mode == "zeros":
            return
        for pair, length in zip(pads, size, strict=True):
            most = {"reflect": length - 1, "circular": length, "replicate": LARGEST if length else 0}
            if max(pair) > max(most[self.padding_mode], 0):
                raise ValueError(
                    f"padding={pair} with padding_mode={self.padding_mode!r}: an axis of length {length} "
                    f"(x has shape {x_shape}) takes at most {max(most[self.padding_mode], 0)} on a side"
                )


_SHARED = tuple(inspect.signature(_Arguments).parameters)[1:]


def ndim_of(w_shape: Sequence[int]) -> int:
    """Number of spatial axes of a convolution with a weight of this shape."""
    axes = lengths("w_shape", w_shape)
    if not 3 <= len(axes) <= 5:
        raise ValueError(f"w_shape={axes}: expected 3, 4 or 5 axes (two of channels, the rest spatial)")
    return len(axes) - 2


def _output_length(
    size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int, real: bool, x_shape: tuple[int, ...]
) -> int:
    padded, reach = size + sum(pads), dilation * (kernel - 1) + 1
    if padded >= reach:
        return (padded - reach) // stride + 1
    if size == 0 and real:
        return 0  # an empty axis gives an empty result, as NumPy would
    raise ValueError(
        f"the kernel covers {reach} elements (length {kernel}, dilation {dilation}) but x of shape {x_shape} has only "
        f"{padded} on that axis with padding {pads}"
    )


def _replace(values: Triple, axis: int, value: int) -> Triple:
    return triple([value if i == axis else v for i, v in enumerate(values)])
