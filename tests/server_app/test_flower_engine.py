from pathlib import Path

import pytest

from server_app.flower_engine import EngineError, FlowerEngine, engine_environment


def test_every_run_has_its_own_superlink_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap 2: a local SuperLink is found by its port alone, and keeps the environment of whoever started it.
    monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "39091")
    first, second = FlowerEngine(tmp_path / "a.log"), FlowerEngine(tmp_path / "b.log")
    assert first._port != second._port and 39091 not in (first._port, second._port)
    assert first._home != second._home
    for engine in (first, second):
        engine.__exit__(None, None, None)
        assert not engine._home.exists()


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
