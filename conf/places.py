"""Where files and modules of the user's own are looked for."""

import functools
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from adapter.plugins import forget_folder, renew_plugin
from conf.schema import Config

_searched: list[str] = []  # folders that were put on Python's path for modules of the user's


@functools.lru_cache(maxsize=1)
def checkout() -> Path:
    """Return the folder that relative paths belong to: the installed checkout, else the current folder.

    Under `flwr run` the code is a copy in Flower's folder; an editable installation remembers the checkout.
    """
    try:
        origin = json.loads(distribution("fedlodrop").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    if origin.get("dir_info", {}).get("editable"):
        return Path(unquote(urlparse(origin["url"]).path))
    return Path.cwd()


def local_path(path: str) -> Path | None:
    """Return an existing file or folder as an absolute path, None for none.

    Looked up in FEDLODROP_FILES (set by the scripts of deploy/), in the current folder, then in the checkout.
    """
    for base in bases():
        found = base / Path(path).expanduser()
        if found.exists():
            return found.resolve()
    return None


def bases() -> tuple[Path, ...]:
    """Return the folders in which files are looked for, the first one first."""
    given = os.environ.get("FEDLODROP_FILES")
    return (*([Path(given)] if given else []), Path.cwd(), checkout())


def make_importable(config: Config, *, anew: bool = False) -> None:
    """Let Python find the modules of all import paths, ``my.module:Mine``, of a configuration.

    A run that begins imports them ``anew``, as their files are now: this process may have imported others. PluginError,
    one line, if one cannot be imported, or if Python finds another module of its name first.
    """
    named = [("strategy.class", config.strategy.name), ("allocator.class", config.allocator.name)]
    named += [("task.class", config.task.name), ("partition.class", config.partition.kind)]
    for key, path in (*named, *(("allocator.fallback", name) for name in config.allocator.fallback)):
        file = _make_importable(path) if ":" in path else None
        if file and anew:
            renew_plugin(path, key, file)


def _make_importable(path: str) -> Path | None:
    """Let Python find the module of an import path where `local_path` finds files, and nowhere it found them before."""
    module, places = path.partition(":")[0].replace(".", "/"), bases()
    for other in [other for other in _searched if Path(other) not in places]:
        _searched.remove(other)
        forget_folder(other)
    for base in places:
        for file in (base / f"{module}.py", base / module / "__init__.py"):
            if file.exists():
                if str(base) not in sys.path:
                    sys.path.append(str(base))  # last: it must not take the place of anything
                    _searched.append(str(base))
                return file
    return None
