"""Settings and fixtures that tests share."""

import pytest
from hypothesis import settings

# The same examples on every run and machine, however slow the machine (and however cold the Numba cache).
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("ci")


# Doctests are looked for in every file, which means importing it; this one needs torch.
collect_ignore = ["in_torch.py"]


@pytest.fixture(scope="session")
def in_torch():
    """The oracle in torch; tests that ask for it are skipped where torch is not installed."""
    return pytest.importorskip("in_torch")
