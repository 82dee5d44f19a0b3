"""Files that several processes may read and write at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_at_once(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it: whoever reads sees an old one or a new one, never half of one.

    Raises
    ------
    OSError
        If the folder cannot be made, or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
