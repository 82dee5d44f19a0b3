"""Settings and fixtures that tests share."""

import pytest
from hypothesis import settings

# The same examples on every run and machine, however slow the machine (and however cold the Numba cache).
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("ci")


# Doctests are looked for in every file, which means importing it; this one needs torch.
collect_ignore = ["in_torch.py"]


# Files of a few tests that take minutes. They go first: the last test to begin would keep one core while others wait.
LONG = ("test_vector_widths.py", "test_cuda_compile.py", "test_large_arrays.py")


def pytest_collection_modifyitems(items):
    """Put the long tests first."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def in_torch():
    """The oracle in torch; tests that ask for it are skipped where torch is not installed."""
    return pytest.importorskip("in_torch")
