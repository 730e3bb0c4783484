"""One process after another run in it, as in a notebook: files that have changed since, and other folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fedlodrop
from adapter.plugins import PluginError, load_plugin
from client_app.worker import open_device
from conf.compose import compose_config, join_overrides
from conf.places import make_importable
from tests.support.runs import FAST

TASK = """
import numpy as np
from tasks.data.examples import TextExamples
from tasks.data.load import TaskData

def task(settings):
    train = TextExamples(tuple(f"number {k}" for k in range(COUNT)), np.arange(COUNT) % 2)
    none = train.subset([])
    return TaskData(settings.name, train, none, none, "classification", ("NAME", "odd"), ("accuracy",))
"""
SHORT = (*FAST, "run.num_rounds=1", "network.num_devices=2", "network.total_bandwidth_hz=1e8", "tracking=none")


@pytest.fixture(autouse=True)
def as_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin in an empty folder and leave neither modules nor places to look for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "again"]:
        del sys.modules[name]


def _module(folder: str, text: str, name: str = "again.py") -> None:
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _loaded(path: str) -> str:
    """Return the docstring of what a run that begins now would use."""
    make_importable(compose_config(f"allocator.class={path}"), anew=True)
    return str(load_plugin(path, "allocator.class").__doc__)


def _method(says: str) -> str:
    return f'def mine(problem, arguments):\n    """{says}"""\n'


def test_server_and_devices_use_the_module_as_it_is_now() -> None:
    items = [*SHORT, "task.class=again:task"]
    _module(".", TASK.replace("NAME", "even").replace("COUNT", "100"))
    before = len(open_device({"overrides": join_overrides(items)}, {"partition-id": 0, "num-partitions": 2}).train)
    _module(".", TASK.replace("NAME", "straight").replace("COUNT", "150"))
    run = fedlodrop.run(*items, "run.dir=run")
    assert run.summary["label_names"] == ["straight", "odd"] and not any(run.rounds["failures"])
    assert run.devices["num_examples"][0] > 1.3 * before


def test_another_folders_module_and_one_that_was_edited_are_imported_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _module("a", _method("first"))
    _module("b", _method("other"))
    _module("c", _method("inside"), "again/deep.py")
    monkeypatch.chdir("a")
    assert _loaded("again:mine") == "first"
    _module(".", _method("edited since"))
    assert _loaded("again:mine") == "edited since"
    _module(".", "def mine(:\n")
    with pytest.raises(PluginError, match="allocator.class: cannot import 'again:mine' .SyntaxError") as caught:
        _loaded("again:mine")
    assert "\n" not in str(caught.value)
    _module(".", _method("mended at last"))
    assert _loaded("again:mine") == "mended at last"
    for folder, path, says in (("b", "again:mine", "other"), ("c", "again.deep:mine", "inside")):
        monkeypatch.chdir(tmp_path / folder)
        assert _loaded(path) == says
    monkeypatch.chdir(tmp_path / "a")
    assert _loaded("again:mine") == "mended at last"


def test_a_module_that_python_finds_elsewhere_is_one_line(tmp_path: Path) -> None:
    _module("installed", _method("of somebody else"))
    sys.path.append(str(tmp_path / "installed"))
    _module(".", _method("mine"))
    with pytest.raises(PluginError, match="found .*installed/again.py; rename") as caught:
        _loaded("again:mine")
    assert "allocator.class: expected 'again:mine' in" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has so many GPUs")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_begun() -> None:
    with pytest.raises(ValueError, match="training.device=cuda:7: expected a GPU .*; use training.device=auto"):
        fedlodrop.run(*SHORT, "training.device=cuda:7", "run.dir=gpu")
    assert not Path("gpu").exists()
