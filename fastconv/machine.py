"""What the cost models know of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fastconv.settings import available_cores


@dataclass(frozen=True)
class Machine:
    """Rates from which algorithms predict their time; bytes and flops are per second."""

    name: str
    cores: int
    flops: float  # float32 multiply-adds of all cores, counted as two operations
    bandwidth: float  # main (or device) memory
    cache: int  # bytes of the last private cache of one core (L2), or of a GPU's L2
    launch: float  # seconds to start work on all cores, or to launch one GPU kernel
    transfer: float = 0.0  # host to device and back; 0 where there is no such way


@cache
def cpu() -> Machine:
    """This CPU.

    The peak is cores x clock-class x FMA width. It is derived from what the CPU is, not timed on the spot, so that
    the same call picks the same algorithm, and so gives the same bits, on every run.
    """
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    cores = available_cores()
    lanes = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
    # Two FMA pipes at about 3.5 GHz; measured: 250e9 on AVX-512 (Zen 5), 105e9 on AVX2 (Zen 3).
    flops = cores * lanes * 2 * 2 * 3.5e9
    return Machine("cpu", cores, flops, bandwidth=1.5e10 * min(cores, 4), cache=512 << 10, launch=30e-6)


@cache
def gpu() -> Machine:
    """The CUDA device that is current at the first call, from what CuPy says of it.

    The peak is multiprocessors x clock x float32 lanes. The launch time and the rate over PCI Express are what such
    machines usually have, not measured here.
    """
    import cupy

    device = cupy.cuda.Device()
    about = device.attributes
    cores, kilohertz = about["MultiProcessorCount"], about["ClockRate"]
    # Float32 lanes of a multiprocessor: 64 up to the A100 (8.0), 128 since.
    lanes = 64 if int(device.compute_capability) <= 80 else 128
    flops = 2.0 * cores * lanes * kilohertz * 1e3
    # Memory transfers twice in a clock, over a bus given in bits.
    bandwidth = 2e3 * about["MemoryClockRate"] * about["GlobalMemoryBusWidth"] / 8
    return Machine("gpu", cores, flops, bandwidth, about["L2CacheSize"], launch=5e-6, transfer=1.2e10)
