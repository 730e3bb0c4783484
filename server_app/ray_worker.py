"""What a simulation worker leaves out: Ray calls `prepare` in every worker process before Flower's actor is loaded.

Flower's actor lies in a package whose import brings SQLAlchemy, FastAPI and all of the SuperLink, and Ray imports Arrow
for tables that are never sent: 60 MiB and most of a second in each worker. `server_app.flower_engine` copies this file into a
folder of the run, where Ray finds it, so it imports nothing of this project.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

_PACKAGE = "flwr.simulation"


def prepare() -> None:
    """Defer what no device needs; a worker where that fails says so and starts with everything."""
    try:
        _without_tables()
        _without_superlink()
    except Exception as error:  # other versions of Ray or Flower: slower and larger, not broken
        print(f"fedlodrop: a worker starts with all imports ({type(error).__name__}: {error})", file=sys.stderr, flush=True)


def _without_tables() -> None:
    import ray._private.arrow_serialization as tables

    if not callable(tables._register_custom_datasets_serializers):
        raise TypeError("Ray registers tables in another way")
    tables._register_custom_datasets_serializers = lambda context: None


class _Deferred(types.ModuleType):
    """A package whose parts can be imported; its own code runs when something else of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if not name.startswith("__") and spec is not None and spec.loader is not None:
            self.__class__ = types.ModuleType  # type: ignore[assignment]
            spec.loader.exec_module(self)
        return types.ModuleType.__getattribute__(self, name)


def _without_superlink() -> None:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or _PACKAGE in sys.modules:
        raise ImportError(f"{_PACKAGE} is missing or imported already")
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Deferred
    sys.modules[_PACKAGE] = module
