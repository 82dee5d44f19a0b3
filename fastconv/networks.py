"""Convolution layers of real networks: what the benchmarks run.

Each line of the table is one layer: network, name, channels in > out, input size, then options by their first letter:
``k`` kernel, ``s`` stride, ``p`` padding, ``d`` dilation, ``g`` groups, ``n`` batch, ``T`` transposed. One number
stands for all axes. Repeated layers of a network are listed once.

A ``*`` marks the survey: layers that between them show each kind of convolution, for which results are quoted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fastconv.problem import ConvProblem

_TABLE = """
alexnet      conv1        3>96       227x227     k11 s4 *
alexnet      conv2        96>256     27x27       k5 p2 g2 *
alexnet      conv3        256>384    13x13       k3 p1 *
alexnet      conv4        384>384    13x13       k3 p1 g2
alexnet      conv5        384>256    13x13       k3 p1 g2

vgg16        conv1_1      3>64       224x224     k3 p1 *
vgg16        conv1_2      64>64      224x224     k3 p1 *
vgg16        conv2_1      64>128     112x112     k3 p1
vgg16        conv2_2      128>128    112x112     k3 p1 *
vgg16        conv3_1      128>256    56x56       k3 p1
vgg16        conv3_2      256>256    56x56       k3 p1 *
vgg16        conv4_1      256>512    28x28       k3 p1
vgg16        conv4_2      512>512    28x28       k3 p1 *
vgg16        conv5_1      512>512    14x14       k3 p1 *
vgg16        fc6          512>4096   7x7         k7 *

googlenet    3a_5x5       16>32      28x28       k5 p2 *

resnet50     conv1        3>64       224x224     k7 s2 p3 *
resnet50     2_reduce1    64>64      56x56       k1
resnet50     2_3x3        64>64      56x56       k3 p1 *
resnet50     2_3x3_n32    64>64      56x56       k3 p1 n32 *
resnet50     2_expand     64>256     56x56       k1 *
resnet50     2_reduce     256>64     56x56       k1 *
resnet50     3_reduce1    256>128    56x56       k1
resnet50     3_3x3_s2     128>128    56x56       k3 s2 p1 *
resnet50     3_expand     128>512    28x28       k1
resnet50     3_project    256>512    56x56       k1 s2 *
resnet50     3_reduce     512>128    28x28       k1
resnet50     3_3x3        128>128    28x28       k3 p1
resnet50     4_reduce1    512>256    28x28       k1
resnet50     4_3x3_s2     256>256    28x28       k3 s2 p1
resnet50     4_expand     256>1024   14x14       k1
resnet50     4_project    512>1024   28x28       k1 s2
resnet50     4_reduce     1024>256   14x14       k1
resnet50     4_3x3        256>256    14x14       k3 p1 *
resnet50     5_reduce1    1024>512   14x14       k1
resnet50     5_3x3_s2     512>512    14x14       k3 s2 p1
resnet50     5_expand     512>2048   7x7         k1
resnet50     5_project    1024>2048  14x14       k1 s2
resnet50     5_reduce     2048>512   7x7         k1 *
resnet50     5_3x3        512>512    7x7         k3 p1 *

densenet121  3_1x1        256>128    28x28       k1 *
densenet121  3_3x3        128>32     28x28       k3 p1 *

mobilenetv2  conv1        3>32       224x224     k3 s2 p1
mobilenetv2  1_dw         32>32      112x112     k3 p1 g32
mobilenetv2  1_project    32>16      112x112     k1
mobilenetv2  2_expand1    16>96      112x112     k1
mobilenetv2  2_dw_s2      96>96      112x112     k3 s2 p1 g96
mobilenetv2  2_project1   96>24      56x56       k1
mobilenetv2  2_expand     24>144     56x56       k1 *
mobilenetv2  2_dw         144>144    56x56       k3 p1 g144 *
mobilenetv2  2_project    144>24     56x56       k1
mobilenetv2  3_dw_s2      144>144    56x56       k3 s2 p1 g144 *
mobilenetv2  3_project1   144>32     28x28       k1
mobilenetv2  3_expand     32>192     28x28       k1
mobilenetv2  3_dw         192>192    28x28       k3 p1 g192
mobilenetv2  3_project    192>32     28x28       k1
mobilenetv2  4_dw_s2      192>192    28x28       k3 s2 p1 g192
mobilenetv2  4_project1   192>64     14x14       k1
mobilenetv2  4_expand     64>384     14x14       k1
mobilenetv2  4_dw         384>384    14x14       k3 p1 g384
mobilenetv2  4_project    384>64     14x14       k1
mobilenetv2  5_project1   384>96     14x14       k1
mobilenetv2  5_expand     96>576     14x14       k1
mobilenetv2  5_dw         576>576    14x14       k3 p1 g576
mobilenetv2  5_project    576>96     14x14       k1
mobilenetv2  6_dw_s2      576>576    14x14       k3 s2 p1 g576
mobilenetv2  6_project1   576>160    7x7         k1
mobilenetv2  6_expand     160>960    7x7         k1
mobilenetv2  6_dw         960>960    7x7         k3 p1 g960 *
mobilenetv2  6_project    960>160    7x7         k1
mobilenetv2  7_project    960>320    7x7         k1
mobilenetv2  conv_last    320>1280   7x7         k1

resnext50    2_3x3        128>128    56x56       k3 p1 g32 *
convnext     1_dw         96>96      56x56       k7 p3 g96 *
replknet     1_dw         128>128    56x56       k31 p15 g128 *
deeplab      dilated      256>256    64x64       k3 p2 d2 *
vit          patches      3>768      224x224     k16 s16 *

unet         down1_1      3>64       256x256     k3 p1
unet         down1_2      64>64      256x256     k3 p1 *
unet         down2_1      64>128     128x128     k3 p1
unet         down2_2      128>128    128x128     k3 p1
unet         down3_1      128>256    64x64       k3 p1
unet         down3_2      256>256    64x64       k3 p1
unet         down4_1      256>512    32x32       k3 p1
unet         down4_2      512>512    32x32       k3 p1
unet         bottom_1     512>1024   16x16       k3 p1
unet         bottom_2     1024>1024  16x16       k3 p1
unet         up4_T        1024>512   16x16       k2 s2 T
unet         up4_1        1024>512   32x32       k3 p1
unet         up3_T        512>256    32x32       k2 s2 T
unet         up3_1        512>256    64x64       k3 p1
unet         up2_T        256>128    64x64       k2 s2 T
unet         up2_1        256>128    128x128     k3 p1
unet         up1_T        128>64     128x128     k2 s2 T
unet         up1_1        128>64     256x256     k3 p1
unet         classes      64>2       256x256     k1

dcgan        deconv1      100>1024   1x1         k4 T
dcgan        deconv2      1024>512   4x4         k4 s2 p1 T
dcgan        deconv3      512>256    8x8         k4 s2 p1 T *
dcgan        deconv4      256>128    16x16       k4 s2 p1 T
dcgan        deconv5      128>64     32x32       k4 s2 p1 T *
dcgan        deconv6      64>3       64x64       k4 s2 p1 T

wavenet      dilated1     64>128     16000       k2 d1
wavenet      dilated2     64>128     16000       k2 d2
wavenet      dilated4     64>128     16000       k2 d4
wavenet      dilated8     64>128     16000       k2 d8
wavenet      dilated16    64>128     16000       k2 d16
wavenet      dilated32    64>128     16000       k2 d32
wavenet      dilated64    64>128     16000       k2 d64
wavenet      dilated128   64>128     16000       k2 d128
wavenet      dilated256   64>128     16000       k2 d256
wavenet      dilated512   64>128     16000       k2 d512 *
wavenet      residual     64>64      16000       k1

wav2vec2     conv1        1>512      16000       k10 s5 *
wav2vec2     conv2        512>512    3199        k3 s2 *
whisper      conv1        80>384     3000        k3 p1 *
hifigan      up1          512>256    100         k16 s8 p4 T *

c3d          conv1a       3>64       16x112x112  k3 p1 *
c3d          conv2a       64>128     16x56x56    k3 p1
c3d          conv3a       128>256    8x28x28     k3 p1 *
c3d          conv3b       256>256    8x28x28     k3 p1
c3d          conv4a       256>512    4x14x14     k3 p1
c3d          conv4b       512>512    4x14x14     k3 p1
c3d          conv5a       512>512    2x7x7       k3 p1

unet3d       down1_2      32>64      32x64x64    k3 p1 *
r2plus1d     2_spatial    64>144     8x56x56     k1x3x3 p0x1x1 *
"""


#: The format in which a GPU may multiply float32: stands among the dtypes that layers are timed in.
TF32 = "tf32"


def stored(dtype: str) -> str:
    """The dtype of the arrays of a layer that is computed in `dtype`."""
    return "float32" if dtype == TF32 else dtype


@dataclass(frozen=True)
class Layer:
    """One convolution layer of a network; ``size`` is that of its input, channels are those of its input and output.

    ``op`` is ``"forward"``, or which of the layer's gradients is meant: ``"input_grad"`` or ``"weight_grad"``. A layer
    that is ``fused`` has a bias, and a ReLU behind it.
    """

    network: str
    name: str
    ndim: int
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    batch: int = 1
    op: str = "forward"
    fused: bool = False

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.batch, self.in_channels, *self.size)

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        if self.transposed:
            return (self.in_channels, self.out_channels // self.groups, *self.kernel)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the functions of ``fastconv``, and of ``torch.nn.functional``, which agree on them."""
        names = ("stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    def settings(self, dtype: str) -> dict[str, Any]:
        """Keyword arguments that fastconv's functions alone have."""
        return {"activation": "relu" if self.fused else None, "precision": "fast" if dtype == TF32 else "high"}

    def function(self, module: Any) -> Any:
        """The function of ``fastconv`` or ``torch.nn.functional`` that computes this layer."""
        return getattr(module, f"conv{'_transpose' * self.transposed}{self.ndim}d")

    def problem(self, dtype: str = "float32") -> ConvProblem:
        """This layer, or the gradient that is meant, as a problem."""
        make = ConvProblem.transposed if self.transposed else ConvProblem.forward
        layer = make(
            self.ndim, self.x_shape, self.w_shape, dtype=stored(dtype), bias=self.fused, **self.options,
            **self.settings(dtype),
        )  # fmt: skip
        if self.op == "input_grad":
            return replace(layer, op="forward" if self.transposed else "input_grad")
        return replace(layer, op="weight_grad") if self.op == "weight_grad" else layer

    def __str__(self) -> str:
        said = f" {self.op}" if self.op != "forward" else " bias+relu" if self.fused else ""
        return f"{self.network} {self.name}{said}"


def read_layer(line: str) -> Layer:
    """The layer that a line of the table describes."""
    network, name, channels, size_text, *options = line.rstrip(" *").split()
    size = tuple(map(int, size_text.split("x")))
    given = {option[0]: option[1:] for option in options}

    def axes(letter: str, default: str) -> tuple[int, ...]:
        values = tuple(map(int, given.get(letter, default).split("x")))
        return values * len(size) if len(values) == 1 else values

    in_channels, out_channels = map(int, channels.split(">"))
    return Layer(
        network=network,
        name=name,
        ndim=len(size),
        in_channels=in_channels,
        out_channels=out_channels,
        size=size,
        kernel=axes("k", "1"),
        stride=axes("s", "1"),
        padding=axes("p", "0"),
        dilation=axes("d", "1"),
        groups=int(given.get("g", "1")),
        transposed="T" in given,
        batch=int(given.get("n", "1")),
    )


#: Every layer, network by network.
LAYERS = tuple(read_layer(line) for line in _TABLE.splitlines() if line)

#: One layer of each kind.
SURVEY = tuple(read_layer(line) for line in _TABLE.splitlines() if line.endswith("*"))

#: Names of the networks, in the order of the table.
NETWORKS = tuple(dict.fromkeys(layer.network for layer in LAYERS))
