"""Import transformers and PEFT without PyTorch's compiler, its distributed tensors and SciPy.

Both libraries import them for features that are never used here (compiled models, tensors spread over machines, losses of
object detectors): two thirds of their import time and 70 MiB in every process that trains. Distributed tensors and SciPy are
optional to them, so they are told that there are none. The compiler is not optional; a stand-in takes its place until somebody
asks for more than the marks that PyTorch and transformers put on functions for the compiler's sake.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType
from typing import Any
from unittest import mock

import torch

_COMPILER = "torch._dynamo"
_NEEDED_PART = f"{_COMPILER}._trace_wrapped_higher_order_op"  # what transformers imports of it; needs nothing of the rest
_loading = threading.RLock()


def lean_imports() -> None:
    """Import transformers' models and PEFT with what is never used left out; without effect if they are imported already."""
    if "transformers.modeling_utils" in sys.modules:
        return
    if _COMPILER not in sys.modules:
        _defer_compiler()
    import transformers.utils

    # Both are remembered by the modules imported here, and by nobody else: afterwards PyTorch answers as before.
    with contextlib.ExitStack() as told:
        told.enter_context(mock.patch.object(torch.distributed, "is_available", _no))
        if hasattr(transformers.utils, "is_scipy_available"):
            told.enter_context(mock.patch.object(transformers.utils, "is_scipy_available", _no))
        importlib.import_module("transformers.modeling_utils")
        importlib.import_module("peft")


class _DeferredCompiler(ModuleType):
    """``torch._dynamo`` before its code has run; that happens in place as soon as any other name is asked for."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):  # those are asked by Python itself, of any module
            _load_compiler(self)
        return ModuleType.__getattribute__(self, name)


class _PartsFinder(MetaPathFinder):
    """Loads the whole compiler before its first part: they import each other and need their usual order."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        compiler = sys.modules.get(_COMPILER)
        if not name.startswith(f"{_COMPILER}.") or name == _NEEDED_PART or not isinstance(compiler, _DeferredCompiler):
            return None
        _load_compiler(compiler)
        return spec_from_loader(name, _AlreadyLoaded(sys.modules[name])) if name in sys.modules else None


class _AlreadyLoaded(Loader):
    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def _defer_compiler() -> None:
    spec = PathFinder.find_spec(_COMPILER, list(torch.__path__))
    if spec is None:
        return
    module = module_from_spec(spec)
    module.__class__ = _DeferredCompiler
    for mark in ("disable", "allow_in_graph", "assume_constant_result"):
        setattr(module, mark, _unmarked)
    module.graph_break = _no  # type: ignore[attr-defined]
    sys.modules[_COMPILER] = torch._dynamo = module
    sys.meta_path.insert(0, _PartsFinder())


def _load_compiler(module: ModuleType) -> None:
    """Run the package's code in the stand-in, which then is the real module."""
    with _loading:
        spec = module.__spec__
        if not isinstance(module, _DeferredCompiler) or spec is None or spec.loader is None or module.__dict__.get("_running"):
            return  # another thread has loaded it, or this one is loading it and asks for what is not there yet
        module.__dict__["_running"] = True
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _PartsFinder)]
        spec.loader.exec_module(module)
        module.__class__ = ModuleType  # type: ignore[assignment]


def _unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Return the function as it is: its mark matters to the compiler only."""
    return _unmarked if function is None else function


def _no(*_: Any, **__: Any) -> bool:
    return False
