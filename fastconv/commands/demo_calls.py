"""The calls that ``demo`` makes on a photograph, and the panels that their results are shown in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastconv.problem import ConvProblem

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Panel:
    """Which channels of a result are one picture; a signed one, of a filter whose sum is zero, has two colours."""

    title: str
    channels: tuple[int, ...]
    signed: bool = False


@dataclass(frozen=True)
class Call:
    """One call of a function of ``fastconv``."""

    title: str
    function: str
    x: Array
    w: Array
    options: dict[str, Any]
    panels: tuple[Panel, ...] = field(repr=False)

    @property
    def problem(self) -> ConvProblem:
        """What the call asks for."""
        make = ConvProblem.transposed if self.function == "conv_transpose2d" else ConvProblem.forward
        return make(2, self.x.shape, self.w.shape, dtype="float32", **self.options)

    def __str__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{self.function}(x, w{options})"


def calls(photo: Array) -> list[Call]:
    """A bank of filters, then a dilated, a pointwise, a depthwise, a strided and a transposed call.

    `photo` is ``(3, H, W)`` in float32 from 0 to 1, with H and W at least 16.
    """
    grey = photo.mean(axis=0, keepdims=True)
    bank = tuple(Panel(name, (i,), signed=abs(f.sum()) < 1e-6) for i, (name, f) in enumerate(_BANK.items()))
    blurs = np.stack([_gaussian(17, 4.0), np.eye(17) / 17] * 3)
    box = np.full((3, 8, 8), 1 / 64)
    height, width = (n // 8 for n in photo.shape[1:])
    tiles = photo[:, : height * 8, : width * 8].reshape(3, height, 8, width, 8).mean(axis=(2, 4))
    ramp = 1 - np.abs(np.arange(16) - 7.5) / 8
    enlarge = np.stack([np.outer(ramp, ramp)] * 3)
    edges = {"padding": "same", "padding_mode": "replicate"}
    return [
        _call("filter bank", grey, np.stack(list(_BANK.values()))[:, None], bank, **edges),
        _call("dilated", grey, _LAPLACIAN[None, None], (Panel("dilated Laplacian", (0,), signed=True),),
              dilation=4, **edges),
        _call("pointwise", photo, _SEPIA[:, :, None, None], (Panel("sepia", (0, 1, 2)),), activation=(0.0, 1.0)),
        _call("depthwise", photo, blurs[:, None], (Panel("wide blur", (0, 2, 4)), Panel("motion blur", (1, 3, 5))),
              padding="same", padding_mode="reflect", groups=3),
        _call("strided", photo, box[:, None], (Panel("mosaic", (0, 1, 2)),), stride=8, groups=3),
        _call("transposed", tiles, enlarge[:, None], (Panel("mosaic enlarged", (0, 1, 2)),),
              stride=8, padding=4, groups=3),
    ]  # fmt: skip


def _call(title: str, x: Array, w: Array, panels: tuple[Panel, ...], **options: Any) -> Call:
    function = "conv_transpose2d" if title == "transposed" else "conv2d"
    return Call(title, function, x.astype(np.float32), w.astype(np.float32), options, panels)


def _gaussian(size: int, sigma: float) -> Array:
    distance = np.arange(size) - (size - 1) / 2
    profile = np.exp(-0.5 * (distance / sigma) ** 2)
    kernel: Array = np.outer(profile, profile) / profile.sum() ** 2
    return kernel


def _gabor() -> Array:
    """A wave along the diagonal under a bell, with a sum of zero."""
    y, x = np.mgrid[-2:3, -2:3]
    wave = _gaussian(5, 1.5) * np.cos(2 * np.pi * (x + y) / 4)
    kernel: Array = wave - wave.mean()
    return kernel


_LAPLACIAN = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
_SOBEL = np.outer([1, 2, 1], [-1, 0, 1])
_SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
_BANK = {
    "Gaussian blur": _gaussian(5, 1.2),
    "sharpen": 3 * np.pad([[1.0]], 2) - 2 * _gaussian(5, 1.2),
    "emboss": np.pad([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], 1),
    "Laplacian": np.pad(_LAPLACIAN, 1),
    "Sobel x": np.pad(_SOBEL, 1),
    "Sobel y": np.pad(_SOBEL.T, 1),
    "difference of Gaussians": _gaussian(5, 0.8) - _gaussian(5, 1.6),
    "Gabor": _gabor(),
}
