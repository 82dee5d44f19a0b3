"""The algorithms for NVIDIA GPUs: host side on CuPy arrays, device side in ``cuda/``; one file for each algorithm."""
