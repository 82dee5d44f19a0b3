"""What the cost models know of a machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache

from fastconv.settings import available_cores

_USUAL_BANDWIDTH = 2e11  # of memory that a CPU and a GPU share


@dataclass(frozen=True)
class Machine:
    """Rates from which algorithms predict their time; bytes and flops are per second."""

    cores: int
    flops: float  # float32 multiply-adds of all cores, counted as two operations
    bandwidth: float = 0.0  # of a GPU's memory
    launch: float = 0.0  # seconds to launch a GPU kernel


@cache
def vector_bytes() -> int:
    """Bytes of the widest vector of this CPU."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


@cache
def cpu() -> Machine:
    """This CPU.

    The peak is nominal: two multiply-adds of a vector in each cycle of a 3.5 GHz clock. It is derived from what the CPU
    is, not timed on the spot, so that the same call picks the same algorithm, and so gives the same bits, on every run.
    """
    cores, lanes = available_cores(), vector_bytes() // 4
    return Machine(cores, flops=cores * lanes * 2 * 2 * 3.5e9)


@cache
def gpu() -> Machine:
    """The CUDA device that is current at the first call, from what CuPy says of it.

    The peak is multiprocessors x clock x float32 lanes. The launch time is what such machines usually have, not
    measured here.
    """
    import cupy

    device = cupy.cuda.Device()
    about = device.attributes
    cores, kilohertz = about["MultiProcessorCount"], about["ClockRate"]
    # Float32 lanes of a multiprocessor: 64 up to the A100 (8.0), 128 since.
    lanes = 64 if int(device.compute_capability) <= 80 else 128
    flops = 2.0 * cores * lanes * kilohertz * 1e3
    # Memory transfers twice in a clock, over a bus given in bits. GPUs in a CPU's memory may not say.
    bandwidth = 2e3 * about["MemoryClockRate"] * about["GlobalMemoryBusWidth"] / 8 or _USUAL_BANDWIDTH
    return Machine(cores, flops, bandwidth, launch=5e-6)


@cache
def cpu_model() -> str:
    """The CPU's name, as its maker gives it."""
    import platform

    if sys.platform == "linux":
        import re
        from pathlib import Path

        named = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if named:
            return named[1]
    if sys.platform == "darwin":
        import subprocess

        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def identity(device: str) -> str:
    """What makes a machine differ from others in speed, in words: a name for times that were measured on it."""
    if device == "cpu":
        import llvmlite.binding as llvm

        return f"{cpu_model()}, {llvm.get_host_cpu_features().flatten()}, {available_cores()} cores"
    import cupy

    device_id = cupy.cuda.Device().id
    name = cupy.cuda.runtime.getDeviceProperties(device_id)["name"].decode()
    return f"{name}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}, driver {cupy.cuda.runtime.driverGetVersion()}"
