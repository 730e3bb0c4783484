"""A simulation worker leaves out what no device needs, and can still have it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server_app import ray_worker
from server_app.flower_engine import WORKER_HOOK, lean_workers

START = """
import json, sys
import ray
sys.path.insert(0, sys.argv[1])
from fedlodrop_ray_worker import prepare
prepare()
from ray.util import serialization_addons
class Context:
    def _register_cloudpickle_serializer(self, *_, **__): pass
serialization_addons.apply(Context())
from flwr.simulation.ray_transport.ray_actor import ClientAppActor
"""


def _run(code: str, folder: Path) -> Any:
    done = subprocess.run([sys.executable, "-c", START + code, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "all imports" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    target = tmp_path / "fedlodrop_ray_worker.py"
    target.write_text(Path(ray_worker.__file__).read_text())
    return tmp_path


def test_the_actor_comes_without_superlink_and_tables(hook: Path) -> None:
    modules = _run("print(json.dumps([*sys.modules]))", hook)
    assert not {"sqlalchemy", "fastapi", "pyarrow", "flwr.simulation.app"} & set(modules)


def test_the_package_runs_when_it_is_asked_for(hook: Path) -> None:
    code = """
import flwr.simulation
found = flwr.simulation.run_simulation
print(json.dumps([found.__module__, "sqlalchemy" in sys.modules, type(flwr.simulation).__name__]))
"""
    assert _run(code, hook) == ["flwr.simulation.run_simulation", True, "module"]


def test_a_worker_that_cannot_leave_it_out_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("ray._private.arrow_serialization._register_custom_datasets_serializers", None)
    ray_worker.prepare()
    assert "starts with all imports (TypeError: Ray registers" in capfd.readouterr().err


def test_the_engine_names_the_hook(tmp_path: Path) -> None:
    environment = lean_workers(tmp_path, {"PYTHONPATH": "/elsewhere"})
    hook = {"worker_process_setup_hook": "fedlodrop_ray_worker.prepare"}
    assert json.loads(environment[WORKER_HOOK]) == {"runtime_env": hook}
    folder, rest = environment["PYTHONPATH"].split(os.pathsep)
    assert rest == "/elsewhere"
    assert _run("print(json.dumps('ok'))", Path(folder)) == "ok"


@pytest.mark.parametrize("own", [{"RAY_ADDRESS": "127.0.0.1:6379"}, {WORKER_HOOK: "{}"}])
def test_workers_of_a_cluster_and_hooks_of_the_user_s_are_left_alone(tmp_path: Path, own: dict[str, str]) -> None:
    assert lean_workers(tmp_path, own) == own
