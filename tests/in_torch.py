"""The same definitions in torch, in double precision: an oracle that shares nothing with ours."""

import torch
import torch.nn.functional as F

# The problems are small, and others compute beside this process.
torch.set_num_threads(1)

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
ACTIVATIONS = {
    "none": lambda v: v,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
}


def tensor(array):
    """The values of a NumPy array in double precision; None stays None."""
    if array is None:
        return None
    return torch.from_numpy(array.astype("complex128" if array.dtype.kind == "c" else "float64"))


def compute(problem, a, b, bias=None, residual=None):
    """What `problem`, a forward one or an input gradient, makes of tensors in the problem's formats."""
    p = problem
    data = a.movedim(-1, -1 - p.ndim) if p.channels_last else a
    data = data.reshape(p.batch, *data.shape[len(p.batch_shape) :])
    result = (_forward if p.op == "forward" else _input_grad)(p, data, _weight(p, b))
    if bias is not None:
        result = result + bias.reshape(-1, *[1] * p.ndim)
    result = result.reshape(*p.batch_shape, *result.shape[1:])
    result = result.movedim(-1 - p.ndim, -1) if p.channels_last else result
    result = result if residual is None else result + residual
    if p.activation.kind == "clip":
        return result.clamp(p.activation.a, p.activation.b)
    if p.activation.kind == "leaky_relu":
        return F.leaky_relu(result, p.activation.a)
    return ACTIVATIONS[p.activation.kind](result)


def _forward(p, x, w):
    pads = [n for pair in reversed(p.padding[-p.ndim :]) for n in pair]
    padded = F.pad(x, pads, mode=PAD_MODES[p.padding_mode])
    return CONV[p.ndim](padded, w, stride=p.stride[-p.ndim :], dilation=p.dilation[-p.ndim :], groups=p.groups)


def _input_grad(p, y, w):
    full = CONV_TRANSPOSE[p.ndim](y, w, stride=p.stride[-p.ndim :], dilation=p.dilation[-p.ndim :], groups=p.groups)
    # Padding crops the full result; output padding extends its end.
    crop = []
    for axis in range(-1, -p.ndim - 1, -1):
        low, _ = p.padding[axis]
        crop += [-low, p.size[axis] + low - full.shape[axis]]
    return F.pad(full, crop)


def _weight(p, w):
    if p.weight_order == "O*I":
        w = w.movedim(-1, 1)
    elif p.weight_order == "*IO":
        w = w.movedim((-1, -2), (0, 1))
    return w.flip(tuple(range(-p.ndim, 0))) if p.flip_kernel else w
