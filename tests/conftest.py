"""Settings that every test shares."""

from hypothesis import settings

# The same examples on every run and machine, however slow the machine (and however cold the Numba cache).
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("ci")
