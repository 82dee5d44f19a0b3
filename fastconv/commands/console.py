"""What commands share: their errors, argument types, tables and progress.

Tables and progress bars are rich's where it is installed, and plain text where it is not, so that ``verify`` and
``bench`` run on a machine that has NumPy, Numba and CuPy alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_NAMES = {"PIL": "Pillow"}

# Columns of a table that goes to a file or a pipe, where there is no terminal to ask.
_WIDTH = 200


class CommandError(Exception):
    """What the command was asked cannot be done here; the message says why. Exit status 2."""


def require(extra: str, *modules: str) -> None:
    """Say what to install if one of `modules` is missing.

    Raises
    ------
    CommandError
        That names the missing packages and the extra of fastconv that holds them.
    """
    missing = [_NAMES.get(name, name) for name in modules if not installed(name)]
    if missing:
        raise CommandError(f'needs {" and ".join(missing)}, which is not installed: pip install "fastconv[{extra}]"')


def installed(module: str) -> bool:
    """Whether a top-level module can be imported."""
    return importlib.util.find_spec(module) is not None


def positive_int(text: str) -> int:
    """An argument type of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, not {text!r}")
    return int(text)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; its first column is aligned to the left, the others to the right."""
    if not installed("rich"):
        lines = [columns, *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        print(f"\n{title}")
        for line in lines:
            cells = [
                text.rjust(width) if i else text.ljust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ]
            print("  ".join(cells).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(shown)


@contextmanager
def progress(total: float) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error; yields ``report(done, doing)``, `done` counting up to `total`."""
    if not (installed("rich") and sys.stderr.isatty()):
        shown = ""

        def write(done: float, doing: str) -> None:
            nonlocal shown
            if doing != shown:
                print(f"[{done / total:4.0%}] {doing}", file=sys.stderr, flush=True)
            shown = doing

        yield write
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, doing: bar.update(task, completed=done, description=doing)
