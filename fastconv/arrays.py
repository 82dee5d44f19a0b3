"""Whose array is this? NumPy, CuPy, torch, or anything with DLPack: found without importing any of them.

A foreign array is *adopted*: viewed, without a copy, as a NumPy or CuPy array that kernels can read. :class:`Kind` then
turns the result back into the caller's kind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

_DLPACK_CPU, _DLPACK_CUDA = 1, 2


@dataclass(frozen=True)
class Kind:
    """A sort of array: its library's name, where its data lives, and how to make one from a NumPy or CuPy array."""

    library: str
    device: str
    restore: Callable[[Any], Any] | None = None

    def give(self, result: Any) -> Any:
        """Turn a NumPy or CuPy result into this kind."""
        return result if self.restore is None else self.restore(result)


NUMPY = Kind("numpy", "cpu")
CUPY = Kind("cupy", "gpu")


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_plain(value: Any) -> bool:
    """Whether `value` is a NumPy array that machine code can read as it is."""
    return type(value) is np.ndarray and value.dtype.isnative and value.flags.aligned


def on_gpu(value: Any) -> bool:
    """Whether `value` is a CuPy array, or a torch tensor in a GPU's memory."""
    if is_tensor(value):
        return bool(value.is_cuda)
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def at_home(function: F) -> F:
    """Have a function run on the device and the stream where its first array belongs, if that is on a GPU."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        first = next(filter(on_gpu, args), None)
        if first is None:
            return function(*args, **options)
        from fastconv.gpu.scope import scope

        with scope(first):
            return function(*args, **options)

    return call  # type: ignore[return-value]


def adopt(name: str, value: Any) -> tuple[Any, Kind]:
    """View `value` as a NumPy or CuPy array.

    Parameters
    ----------
    name : str
        What the caller calls it, for error messages.
    value : array_like
        NumPy, CuPy or torch array, anything with DLPack, or nested lists of numbers.

    Returns
    -------
    array : numpy.ndarray or cupy.ndarray
        Of native byte order, aligned to its dtype; shares the caller's memory unless one of those had to be mended.
    kind : Kind

    Raises
    ------
    TypeError
        If it is none of these, has a mask, or is a torch tensor whose gradient torch would expect to follow.

    Examples
    --------
    >>> array, kind = adopt("x", [[1.0, 2.0]])
    >>> array.shape, kind.library
    ((1, 2), 'numpy')
    """
    if is_plain(value):
        return value, NUMPY
    if is_tensor(value):
        return _adopt_torch(name, value, sys.modules["torch"])
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: expected one without a mask, such as {name}.filled(0)")
    if isinstance(value, np.ndarray):
        return _plain(value), NUMPY
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return value, CUPY
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _adopt_dlpack(name, value)
    if isinstance(value, (list, tuple, int, float, complex, np.generic)):
        try:
            return _plain(np.asarray(value)), NUMPY
        except ValueError:
            raise ValueError(f"{name} is nested sequences of unequal lengths: expected an array") from None
    raise TypeError(f"{name} is a {type(value).__name__}: expected an array (NumPy, CuPy, torch, or any with DLPack)")


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A base-class array that machine code can read."""
    if type(array) is not np.ndarray:
        array = np.asarray(array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()


def _adopt_torch(name: str, tensor: Any, torch: Any) -> tuple[Any, Kind]:
    if tensor.requires_grad:
        if torch.is_grad_enabled():
            raise TypeError(
                f"{name} is a torch tensor that requires grad, which this call does not record: "
                f"pass {name}.detach(), or call under torch.no_grad()"
            )
        tensor = tensor.detach()
    try:  # NumPy can view nearly all; asking torch first takes as long again
        return _plain(tensor.numpy()), _TORCH["cpu"]
    except (RuntimeError, TypeError):
        pass
    if name == "out" and (tensor.is_conj() or tensor.is_neg()):
        raise TypeError("out is a lazily conjugated or negated tensor: expected one that holds its own values")
    kind = _TORCH.get(tensor.device.type)
    if kind is None or tensor.layout != torch.strided:
        raise TypeError(f"{name} is a {tensor.layout} tensor on {tensor.device}: expected a dense one on cpu or cuda")
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    # NumPy and torch have no common bfloat16: it travels as 16-bit integers.
    half = tensor.dtype is torch.bfloat16
    if half:
        if kind.device == "gpu":
            _check_bfloat16(name)
        tensor = tensor.view(torch.int16)
    array = _plain(tensor.numpy()) if kind.device == "cpu" else _adopt_dlpack(name, tensor)[0]
    return (array.view(_bfloat16()) if half else array), kind


def _tensor(result: Any) -> Any:
    torch = sys.modules["torch"]
    half = result.dtype.kind == "V"  # bfloat16, the only dtype here that NumPy does not know
    make = torch.from_numpy if isinstance(result, np.ndarray) else torch.from_dlpack
    tensor = make(result.view(np.int16) if half else result)
    return tensor.view(torch.bfloat16) if half else tensor


#: Kinds of tensors by what torch calls their devices.
_TORCH = {"cpu": Kind("torch", "cpu", _tensor), "cuda": Kind("torch", "gpu", _tensor)}


def _adopt_dlpack(name: str, value: Any) -> tuple[Any, Kind]:
    place = int(value.__dlpack_device__()[0])
    namespace = value.__array_namespace__() if hasattr(value, "__array_namespace__") else None
    restore = getattr(namespace, "from_dlpack", None)
    library = type(value).__module__.partition(".")[0]
    if place == _DLPACK_CPU:
        try:
            array = np.from_dlpack(value)
        except BufferError as error:
            raise TypeError(f"{name} is a {library} array that NumPy cannot view: {error}") from None
        return _plain(array), Kind(library, "cpu", restore)
    if place == _DLPACK_CUDA:
        import cupy

        return cupy.from_dlpack(value), Kind(library, "gpu", restore)
    raise TypeError(f"{name} is a {library} array on DLPack device type {place}: expected one on a CPU or CUDA device")


def _bfloat16() -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _check_bfloat16(name: str) -> None:
    import cupy

    if int(cupy.__version__.partition(".")[0]) < 14:
        raise TypeError(f"{name} is of bfloat16, which takes CuPy 14 on a GPU: this is CuPy {cupy.__version__}")


def named_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; bfloat16 comes from ``ml_dtypes``."""
    return _bfloat16() if name == "bfloat16" else np.dtype(name)


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], operands: dict[str, Any]) -> None:
    """Refuse an ``out=`` that cannot take the result, or whose memory an operand (None where there is none) reads.

    Raises
    ------
    TypeError
        If it is no array of the operands' library or of another dtype.
    ValueError
        If its shape differs, it is read-only, its elements overlap each other, or it overlaps an operand.
    """
    expected = type(next(iter(operands.values())))
    if not isinstance(out, expected):
        raise TypeError(f"out is a {type(out).__name__}: expected a {expected.__name__} like the operands")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}: expected {shape}")
    if out.dtype != dtype:
        raise TypeError(f"out has dtype {out.dtype}: expected {dtype}")
    if not getattr(out.flags, "writeable", True):
        raise ValueError("out is read-only: expected an array that can be written to")
    if not out.flags.c_contiguous and _overlaps_itself(out):
        raise ValueError(f"out has strides {out.strides}: expected an array whose elements do not share memory")
    for name, operand in operands.items():
        if operand is None:
            continue
        identical = (
            name == "residual"  # each element of it is read just before that element of out is written
            and operand.shape == out.shape
            and operand.strides == out.strides
            and address(operand) == address(out)
        )
        if not identical and _overlap(out, operand):
            raise ValueError(f"out shares memory with {name}: expected memory of its own")


def address(array: Any) -> int:
    """Where the first element of a NumPy or CuPy array is."""
    if isinstance(array, np.ndarray):
        return int(array.__array_interface__["data"][0])
    return int(array.data.ptr)


def _overlap(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        if not np.may_share_memory(a, b):  # nearly all of them, in half the time
            return False
        try:
            return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True
    low_a, high_a = _extent(a)
    low_b, high_b = _extent(b)
    return low_a < high_b and low_b < high_a


def _overlaps_itself(array: Any) -> bool:
    """Whether elements may share memory: each stride must step over all that the shorter ones span."""
    span = array.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < span:
            return True
        span += stride * (n - 1)
    return False


def _extent(array: Any) -> tuple[int, int]:
    start = address(array)
    steps = [stride * (n - 1) for stride, n in zip(array.strides, array.shape, strict=True)]
    low = start + sum(s for s in steps if s < 0)
    high = start + sum(s for s in steps if s > 0) + array.itemsize
    return (low, high) if array.size else (start, start)
