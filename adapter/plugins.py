"""Code of the user's own, named by its import path: ``strategy.class=my.module:LateFreeze``.

Not about adapters: it stands in the lowest room because `tasks`, `optimizer`, `strategy` and `conf` all load such code.
"""

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_sources: dict[str, tuple[ModuleType, bytes]] = {}  # modules that were named, and what they were read from


class PluginError(ValueError):
    """A path that leads to nothing usable; the message is one line for the user."""


def load_plugin(path: str, key: str) -> Callable[..., Any]:
    """Import what ``key`` names by its path, ``module:name``; PluginError if there is no such thing to call."""
    try:
        found = pkgutil.resolve_name(path)
    except Exception as error:  # whatever a module does while it is imported
        raise PluginError(
            f"{key}: cannot import {path!r} ({type(error).__name__}: {error}); expected module:name of an installed "
            "module, or of a file in the folder of the command (in a deployment: of every machine's scripts)"
        ) from error
    _source(path)
    if not callable(found):
        raise PluginError(f"{key}: expected a class or a function at {path!r}, found {type(found).__name__}")
    return found


def plugin_source(path: str, key: str) -> bytes:
    """Return the source of a path's module as it was imported, which both ends compare; nothing for a plain name."""
    if ":" not in path:
        return b""
    load_plugin(path, key)
    return _source(path)


def renew_plugin(path: str, key: str, file: Path) -> None:
    """Import a path's module anew if ``file``, where it lies, has changed; PluginError if Python has another one."""
    module, now = path.partition(":")[0], file.read_bytes()
    if module in sys.modules and _source(path) != now:
        del sys.modules[module]
    importlib.invalidate_caches()
    load_plugin(path, key)
    if _source(path) != now:
        raise PluginError(f"{key}: expected {path!r} in {file}, found {sys.modules[module].__file__}; rename your file")


def forget_folder(folder: str) -> None:
    """Take a folder off Python's path, and with it what was imported from there."""
    sys.path[:] = [place for place in sys.path if place != folder]
    tops = {name for name, module in sys.modules.copy().items() if "." not in name and _place(module) == folder}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops - {"__main__"}]:
        del sys.modules[name]


def _place(module: ModuleType) -> str:
    places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None) or ""]
    return os.path.dirname(places[0])


def _source(path: str) -> bytes:
    """Return the source of a path's module, read when it was first asked for: what came later does not run."""
    module = path.partition(":")[0]
    loaded = sys.modules[module]
    if _sources.get(module, (None, b""))[0] is not loaded:
        file = getattr(loaded, "__file__", None)
        _sources[module] = loaded, Path(file).read_bytes() if file else b""
    return _sources[module][1]
