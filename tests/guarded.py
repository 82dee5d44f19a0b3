"""Fixtures that show a kernel which does not keep to its scratch memory; a module that imports them is guarded."""

import numpy as np
import pytest

from fastconv.cpu import parallel


@pytest.fixture(autouse=True, scope="module")
def guarded_scratch():
    """Scratch memory of just the length asked for: full of NaN before a kernel has it, with a fence that must stay."""
    fence, fences = 4096, []

    def scratch(length, dtype):
        block = np.full(length * dtype.itemsize + fence + parallel.CACHE_LINE, 0xFF, np.uint8)
        start = -block.ctypes.data % parallel.CACHE_LINE
        end = start + length * dtype.itemsize
        fences.append(block[end:])
        return block[start:end].view(dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "scratch", scratch)
        yield fences


@pytest.fixture(autouse=True)
def scratch_is_kept_to(guarded_scratch):
    """Look at the fences after each test."""
    yield
    assert all((fence == 0xFF).all() for fence in guarded_scratch), "a kernel wrote beyond its scratch memory"
    guarded_scratch.clear()
