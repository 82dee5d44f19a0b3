"""What CuPy is asked for, as far as it answers without a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastconv.gpu.arguments import NO_VIEW, VIEW, record

cupy = pytest.importorskip("cupy")


def test_cupy_takes_a_record_by_value():
    """CuPy looks at the parameters before it asks the driver to launch a kernel, which here is none."""
    kernel = cupy.cuda.Function.__new__(cupy.cuda.Function)

    def launch(parameter):
        kernel((1, 1, 1), (1, 1, 1), (parameter,), 0, SimpleNamespace(ptr=0))

    with pytest.raises(TypeError, match="size one"):
        launch(np.zeros(7, np.int64))
    with pytest.raises((cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)):
        launch(record(VIEW, data=0, stride=NO_VIEW[1:]))
