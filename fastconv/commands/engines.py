"""The engines that ``bench`` races, by name."""

from __future__ import annotations

from fastconv.commands.engine import Engine
from fastconv.commands.own_engines import ChannelsLast, Functional, OneAlgorithm, Prepared, PreparedChannelsLast
from fastconv.commands.peers import CudnnFused, OnnxRuntime, OpenVINO, PyTorch, PyTorchChannelsLast, SciPy

#: Every engine by its name.
ENGINES = {
    engine.name: engine
    for engine in (
        Functional, ChannelsLast, Prepared, PreparedChannelsLast, PyTorch, PyTorchChannelsLast, CudnnFused, SciPy,
        OnnxRuntime, OpenVINO,
    )
}  # fmt: skip

#: Names that ``--peers`` takes -> the engines they stand for.
PEERS: dict[str, tuple[type[Engine], ...]] = {
    "pytorch": (PyTorch, PyTorchChannelsLast, CudnnFused),
    "scipy": (SciPy,),
    "onnxruntime": (OnnxRuntime,),
    "openvino": (OpenVINO,),
}


def start(name: str, device: str, threads: int) -> Engine:
    """The engine of that name; ``fastconv:direct`` is fastconv with that algorithm alone."""
    _, _, algorithm = name.partition(":")
    return OneAlgorithm(device, threads, algorithm) if algorithm else ENGINES[name](device, threads)
