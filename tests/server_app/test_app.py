"""The ServerApp's end when a run cannot go on: an error that Flower reports at once, not a process that is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from server_app import app as module


def _run(overrides: str) -> BaseException:
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"overrides": overrides})
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - the kind of the error is what is tested
        module.app(cast(Grid, None), context)
    return caught.value


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("trainin.lr=1", "training.lr"),
        ("run.dir=/elsewhere", "run.dir must lie below"),
        ("run.dir=first task=tsv task.train_file=nowhere.tsv task.validation_file=nowhere.tsv", "nowhere.tsv"),
    ],
)
def test_a_refused_run_ends_with_an_error_and_its_reason(
    overrides: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLODROP_RESULTS", str(tmp_path))
    error = _run(overrides)
    # Flower's process catches exceptions; a SystemExit is a silent death to it, which it notices after a minute.
    assert isinstance(error, module.RunEndedError) and error.exit_code == module.EXIT_BAD_INPUT
    assert str(error).startswith(module.ENDED[error.exit_code]) and said in str(error) and "\n" not in str(error)


def test_a_run_that_lacks_devices_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from strategy.round.roster import FederationError

    def nobody(*_: Any) -> None:
        raise FederationError("every device has left")

    monkeypatch.setenv("FEDLODROP_RESULTS", str(tmp_path))
    monkeypatch.setattr("server_app.session.run_session", nobody)
    error = _run("run.dir=first")  # another try may find them
    assert isinstance(error, module.RunEndedError) and str(error) == "every device has left"


def test_a_run_that_diverges_says_so_and_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server_app.rounds import DivergedError, FruitlessRunError

    for error, code in ((DivergedError("the run diverged: inf"), 4), (FruitlessRunError("nobody was served"), 3)):

        def end(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setenv("FEDLODROP_RESULTS", str(tmp_path))
        monkeypatch.setattr("server_app.session.run_session", end)
        ended = _run(f"run.dir=run-{code}")
        assert isinstance(ended, module.RunEndedError) and ended.exit_code == code
        assert str(ended) == f"{module.ENDED[code]} {error}"
        failure = json.loads((tmp_path / f"run-{code}" / "failure.json").read_text())
        assert failure == {"message": str(error), "exit_code": code}
