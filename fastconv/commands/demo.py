"""``demo``: a photograph through a bank of filters and one convolution of every kind, each checked, on one sheet."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastconv.commands.console import CommandError, progress, require, table

if TYPE_CHECKING:
    from fastconv.commands.demo_calls import Array, Call

HELP = "convolve a photograph in many ways, check each, and make one picture of them all"

# The reference takes seconds on more pixels than this; the widest kernel reflects 8 pixels.
_LONGEST_SIDE, _SHORTEST_SIDE = 512, 16

# A call is repeated for this long, and the fastest time is kept.
_SECONDS = 0.2


@dataclass(frozen=True)
class Measured:
    """What became of one call."""

    call: Call
    result: Array
    algorithm: str
    cpu_seconds: float
    gpu_seconds: float | None
    difference: float  # largest from the reference
    error: float  # in the unit of the tolerance
    tolerance: float

    @property
    def right(self) -> bool:
        """Whether the promise was kept."""
        return self.error <= self.tolerance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("image", nargs="?", type=Path, help="a photograph (default: one that matplotlib ships)")
    default = Path("fastconv-demo.png")
    parser.add_argument(
        "--output", type=Path, default=default, metavar="FILE", help=f"PNG to write (default: {default})"
    )


def run(args: argparse.Namespace) -> int:
    """Compute, check, print and draw; 1 if any result is further off than promised."""
    require("demo", "rich", "matplotlib", "PIL")
    folder = args.output.absolute().parent
    if not folder.is_dir():
        raise CommandError(f"--output {args.output}: there is no folder {folder}")
    from fastconv import dispatch
    from fastconv.commands import demo_calls, demo_sheet

    photo = _read(args.image)
    calls = demo_calls.calls(photo)
    no_gpu = dispatch.why_no_gpu()
    measured = []
    with progress(len(calls) + 1) as report:
        for done, call in enumerate(calls):
            report(done, f"{call.title}: compile, run, compare with the reference")
            measured.append(_measure(call, on_gpu=no_gpu is None))
        report(len(calls), "draw the sheet")
        demo_sheet.draw(args.output, photo, measured)
    columns = ("call", "algorithm", "CPU ms", "GPU ms", "max error", "of what is promised")
    table("Every call against the float64 reference", columns, [_row(m) for m in measured])
    if no_gpu:
        print(f"No GPU: {no_gpu}")
    print(f"Wrote {args.output}")
    for m in measured:
        if not m.right:
            print(f"FAILED {m.call.title}: error {m.error:.3g}, promised {m.tolerance:.3g}: {m.call.problem}")
    return 0 if all(m.right for m in measured) else 1


def _read(path: Path | None) -> Array:
    """A photograph as ``(3, H, W)`` from 0 to 1, made smaller if need be."""
    import numpy as np
    from matplotlib.cbook import get_sample_data
    from PIL import Image, UnidentifiedImageError

    source: Any = get_sample_data("grace_hopper.jpg") if path is None else path
    try:
        with Image.open(source) as image:
            image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
            pixels = np.asarray(image.convert("RGB"), np.float32)
    except UnidentifiedImageError:
        raise CommandError(f"{path}: not an image that Pillow can read") from None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from None
    if min(pixels.shape[:2]) < _SHORTEST_SIDE:
        raise CommandError(f"{path}: expected at least {_SHORTEST_SIDE} pixels a side, not {pixels.shape[:2]}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / 255


def _measure(call: Call, *, on_gpu: bool) -> Measured:
    import numpy as np

    import fastconv
    from fastconv import dispatch
    from fastconv.accuracy import error
    from fastconv.reference import reference

    function, problem = getattr(fastconv, call.function), call.problem
    result = function(call.x, call.w, device="cpu", **call.options)
    results, devices = [result], ["cpu"]
    cpu_seconds, gpu_seconds = _fastest(lambda: function(call.x, call.w, device="cpu", **call.options)), None
    if on_gpu:
        import cupy

        x, w = cupy.asarray(call.x), cupy.asarray(call.w)
        results.append(function(x, w, **call.options).get())
        devices.append("gpu")

        def on_device() -> None:
            function(x, w, **call.options)
            cupy.cuda.get_current_stream().synchronize()

        gpu_seconds = _fastest(on_device)
    algorithms = [dispatch.choose(problem, device) for device in devices]
    exact = reference(problem, call.x, call.w)
    # Where there are two results, the one that comes nearer to breaking its promise is told of.
    errors = [
        error(problem, y, call.x, call.w, spread=algorithm.spread(problem), exact=exact)
        for y, algorithm in zip(results, algorithms, strict=True)
    ]
    promised = [algorithm.tolerance(problem) for algorithm in algorithms]
    worst = max(range(len(results)), key=lambda i: errors[i] / promised[i])
    return Measured(
        call,
        result,
        ", ".join(f"{a.device} {a.name}" for a in algorithms),
        cpu_seconds,
        gpu_seconds,
        max(float(np.abs(y - exact).max()) for y in results),
        errors[worst],
        promised[worst],
    )


def _fastest(call: Callable[[], Any]) -> float:
    times: list[float] = []
    while sum(times) < _SECONDS:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _row(m: Measured) -> tuple[str, ...]:
    gpu = "no GPU" if m.gpu_seconds is None else f"{m.gpu_seconds * 1e3:.3f}"
    share = f"{m.error / m.tolerance:.1%}"
    return (str(m.call), m.algorithm, f"{m.cpu_seconds * 1e3:.3f}", gpu, f"{m.difference:.1e}", share)
