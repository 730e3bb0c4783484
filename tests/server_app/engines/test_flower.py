import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from flwr.cli.build import build_fab_from_disk

from conf.compose import ROOT, source_files
from server_app.engines.flower import (
    HOME,
    EngineError,
    FlowerEngine,
    end_leftover,
    engine_environment,
    failed_starts,
    federation_settings,
    stage_app,
)


def test_every_run_has_its_own_superlink_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap 2: a local SuperLink is found by its port alone, and keeps the environment of whoever started it.
    monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "39091")
    first, second = FlowerEngine(tmp_path / "a" / "flower.log"), FlowerEngine(tmp_path / "b" / "flower.log")
    assert first._port != second._port and 39091 not in (first._port, second._port)
    assert first._home != second._home


def test_no_second_installation_and_nothing_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "0")
    env = engine_environment(tmp_path)
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1" and env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_HOME"] == str(tmp_path)


def test_a_superlink_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FlowerEngine(tmp_path / "flower.log")
    monkeypatch.setattr(engine, "_port", -1)
    with engine, pytest.raises(EngineError, match=r"the SuperLink ended with code .*flower\.log"):
        engine.wait_ready(30)
    assert not engine._home.exists()


def test_a_run_has_ended_when_its_server_is_done_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("Flower was asked")

    engine = FlowerEngine(tmp_path / "flower.log")
    monkeypatch.setattr(engine, "_simulation_runs", lambda: True)  # Ray is being taken down
    monkeypatch.setattr(engine, "status", asked)
    code = (
        "import sys, time, pathlib; from server_app.results import ResultsFolder\n"
        "r = ResultsFolder(pathlib.Path(sys.argv[1])); r.hold()\n"
        "(r.folder / 'summary.json').write_text('{}'); time.sleep(1.5)\n"
        "(r.folder / 'report.html').touch(); r.release(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as server:
        try:
            assert engine.wait(1, tmp_path) == "finished:completed"
            assert (tmp_path / "report.html").exists() and server.poll() is None
            monkeypatch.setattr(engine, "status", lambda _: "finished:stopped")
            assert engine.wait(1, tmp_path, taken_down=True) == "finished:stopped"
        finally:
            server.kill()


@contextmanager
def _sleeper(**environment: str) -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, **environment})
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def test_what_a_killed_command_left_behind_is_ended(tmp_path: Path) -> None:
    home = tmp_path / HOME
    home.mkdir()
    with _sleeper(FLWR_HOME=str(home)) as superlink, _sleeper(FLWR_HOME=str(tmp_path)) as foreign, _sleeper() as other:
        assert end_leftover(tmp_path)
        assert psutil.wait_procs([superlink], timeout=5)[1] == []
        assert foreign.is_running() and other.is_running() and not home.exists()
    assert not end_leftover(tmp_path)


def test_flower_packs_our_code_and_looks_at_nothing_else(tmp_path: Path) -> None:
    app = stage_app(tmp_path / "app")
    (app / "left_from_before.py").touch()
    assert stage_app(app) == app
    staged = {path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file()}
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))) as fab:
        packed = {name for name in fab.namelist() if not name.startswith(".info")}
    assert packed == staged  # nothing that Flower's own rules leave out, nothing to look through in vain
    assert packed == {path.relative_to(ROOT).as_posix() for path in source_files()} | {"pyproject.toml"}
    assert {"server_app/app.py", "client_app/app.py", "conf/config.yaml"} <= packed


def test_shares_of_a_gpu_reach_ray_and_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert federation_settings(4, 2, 0.25) == (
        "num-supernodes=4 client-resources-num-cpus=2 client-resources-num-gpus=0.25"
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert federation_settings(4, 1, 0.0) == "num-supernodes=4 client-resources-num-cpus=1"
    with pytest.raises(EngineError, match="run.client_gpus needs a GPU"):
        federation_settings(4, 1, 0.25)


def test_a_machine_too_busy_for_flower_ends_a_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.corestate import sql_corestate

    assert sql_corestate.HEARTBEAT_DEFAULT_INTERVAL == 30  # seconds, as the message says
    log = tmp_path / "flower.log"
    refused = "ERROR: [/v1/runtime/pull-task-input][ApiError:1008] Runtime task-token authentication failed.\n"
    log.write_text(f"{refused}Started task 1 of run 2\n{refused}Finished task 1 of run 2\n{3 * refused}")
    assert failed_starts(log) == 3 and failed_starts(tmp_path / "none.log") == 0
    log.write_text(9 * refused)
    engine = FlowerEngine(log)
    monkeypatch.setattr(engine, "_simulation_runs", lambda: True)
    monkeypatch.setattr("server_app.engines.flower._STATUS_EVERY_S", -1.0)
    with pytest.raises(EngineError, match="gave up 9 processes .* too busy; .* run.engine=local"):
        engine.wait(2, tmp_path)
