"""CPU algorithms, one file each, compiled by Numba when first used."""
