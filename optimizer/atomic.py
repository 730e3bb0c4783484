"""Files that are written whole or not at all, and what killed writers left behind."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_TEMPORARY = re.compile(r"\.(.+)\.(\d{1,9})\.tmp")  # .NAME.PROCESS.tmp


def temporary_name(path: Path) -> Path:
    """Return the name beside ``path`` under which this process prepares it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``; at the end of the block it is on the disk and takes its place.

    A reader sees the old file or the new one, never a part; after an error the old one is still there.
    """
    remove_leftovers(path.parent, path.name)
    temporary = temporary_name(path)
    try:
        yield temporary
        synced(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def synced(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what processes that are gone prepared in a folder and did not finish; ``name``: of this file only."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or (name is not None and found[1] != name) or psutil.pid_exists(int(found[2])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
