"""Methods, allocators and tasks of the user's own by import path, from the command line, in both engines."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import fedlodrop
from client_app.app import _require_same_code
from conf.compose import ConfigError, compose_config
from conf.convert import device_code
from conf.files import file_overrides
from fedlodrop.cli import cli
from tests.support.runs import FAST, rounds

MODULE = '''
import numpy as np
from optimizer.fdma.schemes import equal
from strategy import LoraStrategy
from tasks.data.examples import TextExamples
from tasks.data.load import TaskData

class LateFreeze(LoraStrategy):
    """lora_B alone after the first round."""
    def active_factors(self, server_round):
        return ("A", "B") if server_round < 2 else ("B",)

def shares(problem, arguments):
    return equal(problem, arguments)

def broken(problem, arguments):
    raise RuntimeError("out of ideas")

def nothing(settings):
    pass

def parity(settings):
    texts = tuple(f"number {k}" for k in range(200))
    train = TextExamples(texts, np.arange(200) % 2)
    none = train.subset([])
    return TaskData(settings.name, train, none, none, "classification", ("even", "odd"), ("accuracy",))

number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return a module's name that no other test has, its package included; its file lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "methods.py").write_text(MODULE)
    return f"{name}.methods"


def _fedlodrop(*words: str) -> str:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("engine", ["local", pytest.param("flower", marks=[pytest.mark.slow, pytest.mark.flower])])
def test_all_three_from_the_command_line(own: str, engine: str, tmp_path: Path) -> None:
    classes = (f"strategy.class={own}:LateFreeze", f"allocator.class={own}:shares", f"task.class={own}:parity")
    wide = ("network.total_bandwidth_hz=1e8", "run.dir=run")
    _fedlodrop("run", *FAST, *classes, *wide, f"run.engine={engine}")
    found = rounds(tmp_path / "run")
    sent = [sum(device["uplink_adapter_bytes"] for device in record["devices"]) for record in found]
    assert 0 < sent[1] == sent[2] < sent[0]
    assert [record["plan"]["solver"] for record in found] == [f"{own}:shares"] * 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["label_names"] == ["even", "odd"] and summary["strategy"] == f"{own}:LateFreeze"
    assert "number 3" in _fedlodrop("predict", "run", "number 3")


def test_an_allocator_that_fails_is_followed_by_the_fallback(own: str, tmp_path: Path) -> None:
    _fedlodrop("run", *FAST, f"allocator.class={own}:broken", "run.num_rounds=1", "run.dir=run")
    (record,) = rounds(tmp_path / "run")
    assert record["plan"]["solver"] == "exact" and "out of ideas" in record["plan"]["notes"][0]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("strategy.class=no.such:Thing", "strategy.class: cannot import 'no.such:Thing' (ModuleNotFoundError"),
        ("strategy.class=OWN:shares", "strategy.class: expected a subclass of strategy.LoraStrategy, found"),
        ("allocator.class=OWN:number", "allocator.class: expected a class or a function at"),
        ("task.class=OWN:absent", "task.class: cannot import"),
        ("task.class=OWN:nothing", "task.class: expected tasks.data.load.TaskData from OWN:nothing, found NoneType"),
        ("strategy.clas=x:Y", "did you mean 'strategy.class'?"),
    ],
)
def test_what_cannot_be_used_is_one_line(own: str, item: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(says.replace("OWN", own))) as caught:
        fedlodrop.run(*FAST, item.replace("OWN", own), "run.dir=run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_files_and_sweeps_take_paths(own: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"strategy:\n  class: {own}:LateFreeze\n")
    assert file_overrides(tmp_path / "my.yaml") == [f"strategy.name={own}:LateFreeze"]
    varied = f"allocator.class={own}:shares,equal"
    _fedlodrop("sweep", *FAST, varied, "run.num_rounds=1", "--dir", "sweep", "--jobs", "0")
    assert (tmp_path / "sweep" / "jobs.csv").read_text().count("finished") == 2


def test_a_device_with_another_module_refuses(own: str, tmp_path: Path) -> None:
    overrides = f"task.class={own}:parity"
    code, context = device_code(compose_config(overrides)), SimpleNamespace(run_config={"overrides": overrides})
    _require_same_code(code, context)
    assert code != device_code(compose_config("")) == device_code(compose_config(f"strategy.class={own}:LateFreeze"))
    with (tmp_path / f"{own.replace('.', '/')}.py").open("a") as file:
        file.write("# another version\n")
    del sys.modules[own]  # a device is another process
    with pytest.raises(
        RuntimeError, match=f"the module of {own}:parity on this device differs from the server's; copy"
    ):
        _require_same_code(code, context)


def test_a_path_that_is_none(own: str) -> None:
    with pytest.raises(ConfigError):
        compose_config("strategy.class=[a,b]")
