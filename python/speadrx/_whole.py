"""Files that are written whole or not at all, for all folders that write some."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

#: What is in these folders is open already, as /dev/stdout is.
_DESCRIPTORS = ("/dev", "/dev/fd", "/proc/self/fd")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Give a path to write to. What is there takes the place of a file at the end; if that fails, it is removed."""
    file = pathlib.Path(path)
    if file.exists() and (not file.is_file() or str(file.parent) in _DESCRIPTORS):  # a device or a pipe
        yield file
        return
    file = pathlib.Path(os.path.realpath(path))
    part = file.with_name(f"{file.name}.part")
    try:
        yield part
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
