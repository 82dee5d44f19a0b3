"""``tune``: measures which algorithm is fastest on this machine, and remembers it."""

from __future__ import annotations

import argparse

from fastconv.commands import convolution
from fastconv.commands.console import CommandError, progress, table

HELP = "measure which algorithm is fastest on this machine, and remember it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    convolution.add_arguments(parser, required=False)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--show", action="store_true", help="print what is remembered on this machine")
    instead.add_argument("--forget", action="store_true", help="remove everything that is remembered")


def run(args: argparse.Namespace) -> int:
    """Tune one convolution, or the layers of all networks; or show or forget what was measured."""
    import fastconv
    from fastconv import dispatch, remembered

    options = convolution.options(args)
    asked = options.pop("device", "auto")
    device = "gpu" if asked == "gpu" else "cpu"
    no_gpu = dispatch.why_no_gpu() if device == "gpu" else None
    if no_gpu:
        raise CommandError(f"--device gpu: {no_gpu}")
    if (args.x is None) != (args.w is None):
        raise CommandError("--x and --w: expected both, or neither for the layers of all networks")
    if args.x is None and options.keys() - {"dtype"}:
        raise CommandError(f"{', '.join(sorted(options.keys() - {'dtype'}))}: expected --x and --w too")
    try:
        if args.forget:
            print(f"{_problems(remembered.forget())} forgotten, in {remembered.folder()}")
        elif args.show:
            _show(device)
        elif args.x is not None:
            print(fastconv.tune(args.x, args.w, device=device, **options))
        else:
            _tune_networks(options.get("dtype", "float32"), device)
            _show(device)
    except (ValueError, TypeError) as problem:
        raise CommandError(str(problem)) from None
    except OSError as error:
        raise CommandError(f"{error}: FASTCONV_CACHE_DIR can name another folder") from None
    return 0


def _tune_networks(dtype: str, device: str) -> None:
    from fastconv.networks import LAYERS
    from fastconv.tuning import tune_problem

    problems = {layer.problem(dtype): layer for layer in LAYERS}
    with progress(len(problems)) as report:
        for done, (problem, layer) in enumerate(problems.items()):
            report(done, f"measuring {layer}")
            tune_problem(problem, device)


def _show(device: str) -> None:
    from fastconv import remembered

    rows = [
        (problem, *(cell for times in record for cell in _fastest(times)))
        for problem, record in remembered.recall_all(device).items()
    ]
    table(f"fastest on this {device}", ("problem", "call", "ms", "prepared", "ms"), rows)
    print(f"{_problems(len(rows))} remembered in {remembered.folder()}")


def _problems(count: int) -> str:
    return f"{count} problem{'s' * (count != 1)}"


def _fastest(times: dict[str, float]) -> tuple[str, str]:
    name = min(times, key=times.__getitem__)
    return name, f"{times[name] * 1e3:.3g}"
