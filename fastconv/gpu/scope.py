"""Where work on a GPU array belongs: its device, the stream of its library, and memory that outlives a graph.

CuPy's arrays are worked on in CuPy's current stream of their device. A torch tensor is worked on in torch's current
stream, and memory comes from torch's allocator, so that nothing has to be synchronised, that both libraries do not keep
free memory from each other, and that a graph that torch captures owns what was allocated for it.

CuPy's own pool knows nothing of graphs: what is freed after a capture would be given to others, and each replay would
write into it. So what is allocated while CuPy's stream is captured is kept for as long as the process lives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache
from typing import Any

_HERE: AbstractContextManager[Any] = nullcontext()
_kept: list[Any] = []


def scope(array: Any) -> AbstractContextManager[Any]:
    """What a call must be inside of that works on a CuPy array or a torch tensor in a GPU's memory."""
    import cupy

    if not isinstance(array, cupy.ndarray):
        return _of_torch(array)
    if cupy.cuda.runtime.getDevice() == array.device.id and not cupy.cuda.get_current_stream().is_capturing():
        return _HERE
    return _of_cupy(array.device)


@contextmanager
def _of_cupy(device: Any) -> Iterator[None]:
    import cupy

    with device:
        if not cupy.cuda.get_current_stream().is_capturing():
            yield
            return
        allocate = cupy.cuda.get_allocator()

        def allocate_and_keep(size: int) -> Any:
            memory = allocate(size)
            _kept.append(memory)
            return memory

        with cupy.cuda.using_allocator(allocate_and_keep):
            yield


@contextmanager
def _of_torch(tensor: Any) -> Iterator[None]:
    import cupy

    device = tensor.device.index
    stream = sys.modules["torch"].cuda.current_stream(device)
    with (
        cupy.cuda.Device(device),
        _stream(stream.cuda_stream, device),
        cupy.cuda.using_allocator(_torch_allocator().malloc),
    ):
        yield


@lru_cache(maxsize=64)
def _stream(address: int, device: int) -> Any:
    """A stream of torch's as one of CuPy's."""
    import cupy

    if not hasattr(cupy.cuda.Stream, "from_external"):  # before CuPy 14
        return cupy.cuda.ExternalStream(address, device)

    class Foreign:
        """What CuPy takes for a stream."""

        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, address  # version of this protocol, stream

    return cupy.cuda.Stream.from_external(Foreign())


@cache
def _torch_allocator() -> Any:
    """Torch's allocator, for CuPy; it allocates for CuPy's current stream, which is torch's here."""
    import cupy
    import torch

    def allocate(size: int, device: int) -> int:
        return int(torch.cuda.caching_allocator_alloc(size, device, cupy.cuda.get_current_stream().ptr))

    def free(address: int, device: int) -> None:
        torch.cuda.caching_allocator_delete(address)

    return cupy.cuda.PythonFunctionAllocator(allocate, free)
