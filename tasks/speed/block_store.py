"""Bytes kept under a key: in files that processes map and so share, or in memory alone.

A file is written under a temporary name and renamed, so a reader sees all of it or nothing and needs no lock. Its head
is a digest of the rest: a file that was cut short or altered counts as absent. Deleting a file that another process has
mapped is harmless; that is how the files are kept within their limit. Whatever else lies in the folder is not looked
at: the names of our files are digests that nobody types.
"""

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
_DIGEST = 16  # bytes at the head of a file
_OURS = re.compile(r"fedlodrop-[0-9a-f]{48}\.states(\.\w+\.tmp)?")
_MIB = 2**20

log = logging.getLogger(__name__)


@dataclass
class StoreStats:
    """What a store did since it was made."""

    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    memory_bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the requests that were answered, 0 before the first one."""
        found = self.memory_hits + self.disk_hits
        return found / max(1, found + self.misses)


class BlockStore:
    """A bounded map from keys to read-only bytes.

    What was not used longest goes first: from memory, mapped files among it, at ``memory_mib``, from the folder at
    ``disk_mib``, whichever process wrote it. The folder is created with access for this user only; None keeps nothing
    but memory.
    """

    def __init__(self, memory_mib: float, folder: Path | None, disk_mib: float) -> None:
        self.memory_limit, self.disk_limit = int(memory_mib * _MIB), int(disk_mib * _MIB)
        self.stats = StoreStats()
        self._memory: OrderedDict[str, Bytes] = OrderedDict()
        self._folder = None if folder is None or not self.disk_limit else _private_folder(folder)
        self._written = self.disk_limit  # the first file that is written looks at the folder's size

    def get(self, key: str, size: int) -> Bytes | None:
        """Return what was put under ``key``, or None; what has another size counts as absent."""
        found = self._memory.get(key)
        if found is not None and found.size == size:
            self._memory.move_to_end(key)
            self.stats.memory_hits += 1
            return found
        mapped = self._map(key, size)
        if mapped is None:
            self.stats.misses += 1
            return None
        self.stats.disk_hits += 1
        return self._keep(key, mapped)

    def put(self, key: str, value: Bytes) -> Bytes:
        """Keep bytes; return them, or the file's view of them, whose memory processes share."""
        if self._folder is not None and value.nbytes <= self.disk_limit and self._write(self._path(key), value):
            with contextlib.suppress(OSError):  # another process deletes, too
                value = np.memmap(self._path(key), np.uint8, "r")[_DIGEST:]
        return self._keep(key, value)

    def _keep(self, key: str, kept: Bytes) -> Bytes:
        """Keep in memory, as long as it fits at all."""
        kept.setflags(write=False)
        if kept.nbytes > self.memory_limit:
            return kept
        self._memory.pop(key, None)
        self._memory[key] = kept
        while sum(held.nbytes for held in self._memory.values()) > self.memory_limit:
            self._memory.popitem(last=False)
        self.stats.memory_bytes = sum(held.nbytes for held in self._memory.values())
        return kept

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"fedlodrop-{hashlib.blake2b(key.encode(), digest_size=24).hexdigest()}.states"

    def _map(self, key: str, size: int) -> Bytes | None:
        if self._folder is None:
            return None
        path = self._path(key)
        try:
            whole = np.memmap(path, np.uint8, "r")
            if whole[:_DIGEST].tobytes() != _digest(whole[_DIGEST:]):
                raise ValueError("its digest is another one")
            os.utime(path)  # the time of the last use decides what is deleted first
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("cache: %s is computed again: %s", path, error)
            return None
        return whole[_DIGEST:] if whole.size - _DIGEST == size else None

    def _write(self, path: Path, value: Bytes) -> bool:
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                file.write(_digest(value))
                file.write(value.data)
            os.replace(temporary, path)
            self._written += value.nbytes
            if self._written >= self.disk_limit / 8:  # not at every file: listing a folder takes time
                self._written = 0
                self._shrink()
            return True
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            log.warning("cache: %s cannot be written (%s); nothing new is kept there", self._folder, error)
            self._folder = None
        return False

    def _shrink(self) -> None:
        """Delete the files used longest ago until an eighth of the limit is free."""
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.disk_limit * 7 // 8:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _files(self) -> list[tuple[int, int, Path]]:
        """Time of the last use, size and path of every file that a store wrote."""
        found = []
        for path in [] if self._folder is None else self._folder.iterdir():
            if _OURS.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # another process deletes, too
                    found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        return found

    def disk_bytes(self) -> int:
        """Bytes on the disk now, whichever process wrote them."""
        return sum(size for _, size, _ in self._files())


def _digest(data: Bytes) -> bytes:
    return hashlib.blake2b(data.data, digest_size=_DIGEST).digest()


def _private_folder(folder: Path) -> Path | None:
    """Create the folder for this user alone; None, and a warning, where somebody else could put files into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        log.warning("cache: %s cannot be used (%s); nothing is kept there", folder, error)
        return None
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        log.warning("cache: %s can be written by others; nothing is kept there", folder)
        return None
    return folder
