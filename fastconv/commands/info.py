"""``info``: this machine and installation, as a bug report needs them."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

HELP = "describe this machine and installation: what a bug report needs"

_PACKAGES = ("numpy", "numba", "llvmlite", "ml_dtypes", "scipy", "torch", "onnx", "onnxruntime", "openvino")

_CUDA_PACKAGES = (
    "cupy",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
)

_PLACES = ("location", "kernel_cache", "cuda_sources")

# Of the many features of a CPU, those that kernels make use of.
_FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512vnni", "avx512bf16", "neon", "sve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Print what :func:`collect` finds."""
    found = collect()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name.replace('_', ' '):{width}}  {_text(value)}")
    return 0


def collect(places: bool = True) -> dict[str, Any]:
    """Everything ``info`` tells, ready for JSON; without places on this machine's disk if the file goes elsewhere."""
    import fastconv
    from fastconv import dispatch, machine, registry, settings
    from fastconv.gpu import source

    here = Path(fastconv.__file__).parent
    found = {
        "fastconv": fastconv.__version__,
        "location": str(here),
        "git_commit": git_commit(here),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": machine.cpu_model(),
        **_cpu(),
        "cores": settings.available_cores(),
        "threads": settings.get_num_threads(),
        "workspace_limit_bytes": settings.workspace_limit(),
        "versions": versions(_PACKAGES),
        "numpy_blas": _numpy_blas(),
        "kernel_cache": _kernel_cache(),
        "no_gpu_because": dispatch.why_no_gpu(),
        "gpu": _gpu(),
        "cuda_versions": versions(_CUDA_PACKAGES),
        "cuda_sources": str(source.directory()),
        "algorithms": {at: [a.name for a in registry.algorithms(at)] for at in ("cpu", "gpu")},
    }
    return found if places else {name: value for name, value in found.items() if name not in _PLACES}


def git_commit(where: Path) -> str | None:
    """The commit that is checked out at `where`, marked where files differ from it; None outside a checkout.

    A folder of installed packages may lie inside the checkout of something else, which does not track it.
    """
    tracked = ["git", "-C", str(where), "ls-files", "--error-unmatch", "."]
    commit = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        subprocess.run(tracked, capture_output=True, check=True)
        return subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The version of each of `packages` that is installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k} {_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _cpu() -> dict[str, Any]:
    import llvmlite.binding as llvm

    from fastconv import machine

    features = llvm.get_host_cpu_features()
    return {
        "cpu_name_of_llvm": llvm.get_host_cpu_name(),
        "cpu_features": [name for name in _FEATURES if features.get(name)],
        "vector_bits": 8 * machine.vector_bytes(),
    }


def _numpy_blas() -> str:
    import numpy as np

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[call-overload]
    return f"{blas['name']} {blas['version']}"


def _kernel_cache() -> str:
    from fastconv.cpu import objects

    return str(objects.directory())


def _gpu() -> dict[str, Any] | None:
    """The current GPU and the CUDA that drives it; None where there is none."""
    from fastconv import dispatch

    if dispatch.why_no_gpu() is not None:
        return None
    import cupy

    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    return {
        "name": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "multiprocessors": device.attributes["MultiProcessorCount"],
        "memory_bytes": device.mem_info[1],
        "l2_bytes": device.attributes["L2CacheSize"],
        "cuda_driver": cupy.cuda.runtime.driverGetVersion(),
        "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
    }
