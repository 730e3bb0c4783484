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
import secrets
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
_DIGEST = 16  # bytes at the head of a file
_OURS = re.compile(r"fedlodrop-[0-9a-f]{48}\.states(\.\w+\.tmp)?")
_MIB = 2**20

log = logging.getLogger(__name__)


class BlockStore:
    """A bounded map from keys to read-only bytes.

    What was not used longest goes first: from memory, mapped files among it, at ``memory_mib``, from the folder at
    ``disk_mib``, whichever process wrote it. No folder, or 0 MiB on disk, keeps nothing but memory.
    """

    def __init__(self, memory_mib: float, folder: Path | None, disk_mib: float) -> None:
        self.memory_limit, self.disk_limit = int(memory_mib * _MIB), int(disk_mib * _MIB)
        self.memory_hits = self.disk_hits = self.misses = 0
        self._memory: OrderedDict[str, Bytes] = OrderedDict()
        self._written = self.disk_limit  # since the folder was looked at: the first file is a reason to look
        self._folder = None if folder is None or not self.disk_limit else _private_folder(folder)

    def get(self, key: str, size: int) -> Bytes | None:
        """Return what was put under ``key``, or None; what has another size counts as absent."""
        found = self._memory.get(key)
        if found is not None and found.size == size:
            self._memory.move_to_end(key)
            self.memory_hits += 1
            return found
        mapped = self._map(key, size)
        if mapped is None:
            self.misses += 1
            return None
        self.disk_hits += 1
        return self._keep(key, mapped)

    def put(self, key: str, value: Bytes) -> Bytes:
        """Keep bytes; return them, or the file's view of them, whose memory processes share."""
        if self._folder is not None and value.nbytes <= self.disk_limit and self._write(self._path(key), value):
            with contextlib.suppress(OSError):  # another process deletes, too
                value = np.memmap(self._path(key), np.uint8, "r")[_DIGEST:]
        return self._keep(key, value)

    def _keep(self, key: str, kept: Bytes) -> Bytes:
        kept.setflags(write=False)
        if kept.nbytes <= self.memory_limit:
            self._memory.pop(key, None)
            self._memory[key] = kept
            while self.memory_bytes() > self.memory_limit:
                self._memory.popitem(last=False)
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
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(_digest(value))
                file.write(value.data)
            temporary.replace(path)
            self._written += value.nbytes
            if self._written >= self.disk_limit / 8:  # not at every file: listing a folder takes time
                self._written = 0
                self._shrink()
            return True
        except OSError as error:
            with contextlib.suppress(OSError):  # a folder on a read-only disk refuses even what is not there
                temporary.unlink()
            log.warning("cache: %s cannot be written (%s); nothing new is kept there", self._folder, error)
            self._folder = None
        return False

    def _shrink(self) -> None:
        """Delete the files used longest ago until an eighth of the limit is free."""
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) - self.disk_limit * 7 // 8
        for _, size, path in files:
            if excess > 0:
                path.unlink(missing_ok=True)
                excess -= size

    def _files(self) -> list[tuple[int, int, Path]]:
        found = []
        for path in [] if self._folder is None else self._folder.iterdir():
            if _OURS.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # another process deletes, too
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        return found

    def memory_bytes(self) -> int:
        """Bytes in memory now."""
        return sum(held.nbytes for held in self._memory.values())

    def disk_bytes(self) -> int:
        """Bytes on the disk now, whichever process wrote them."""
        return sum(size for _, size, _ in self._files())

    def report(self) -> dict[str, float]:
        """Return the share of the requests that were answered, how many from where, and sizes."""
        found = self.memory_hits + self.disk_hits
        asked = {"memory_hits": self.memory_hits, "disk_hits": self.disk_hits, "misses": self.misses}
        sizes = {"memory_mib": self.memory_bytes() / _MIB, "disk_mib": self.disk_bytes() / _MIB}
        return {"hit_rate": found / max(1, found + self.misses), **asked, **sizes}


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
