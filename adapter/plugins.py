"""Code of the user's own, named by its import path: ``strategy.class=my.module:LateFreeze``.

Not about adapters: it stands in the lowest room because `tasks`, `optimizer`, `strategy` and `conf` all load such code.
"""

import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
    if not callable(found):
        raise PluginError(f"{key}: expected a class or a function at {path!r}, found {type(found).__name__}")
    return found


def plugin_source(path: str, key: str) -> bytes:
    """Return the source of the module that a path names, which server and devices compare; nothing for a plain name."""
    if ":" not in path:
        return b""
    load_plugin(path, key)
    file = getattr(sys.modules[path.partition(":")[0]], "__file__", None)
    return Path(file).read_bytes() if file else b""
