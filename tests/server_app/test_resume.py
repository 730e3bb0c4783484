"""Going on with a run: under the settings it was begun with, extended when it is finished, begun anew when nothing was done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from conf.compose import CONF_DIR, ConfigError, choices, compose_config, config_yaml, groups, read_config
from fedlodrop.commands.runs import resume
from fedlodrop.commands.runs import run as run_command
from fedlodrop.console.explain import explain
from fedlodrop.model.load import load_trained
from server_app.results import ResultsFolder
from tests.support.runs import FAST, rounds, run, without_wall_times

PROGRAM = "from fedlodrop.cli import main; main()"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert run(folder, "run.num_rounds=2", "tracking=none") == 0
    return folder


def _copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


def _visible(folder: Path) -> dict[str, bytes]:
    """Content of all files but the locks (opening one would give it up)."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


CHANGES = [
    (["strategy=rolora", "run.seed=7", "wire.dtype=int8"], ["run.seed", "strategy.name", "wire.dtype"]),
    (["allocator=equal"], ["allocator.name"]),
    (["training.batch_size=4"], ["training.batch_size (8 -> 4)"]),
    (["device.classes.phone.cpu_hz=1e9"], ["device.classes.phone"]),
]


@pytest.mark.parametrize(("changes", "named"), CHANGES, ids=lambda value: value[0])
def test_settings_that_change_results_are_refused_by_name(
    finished: Path, tmp_path: Path, changes: list[str], named: list[str]
) -> None:
    folder = _copy(finished, tmp_path)
    before = _visible(folder)
    with pytest.raises(ConfigError) as caught:
        resume(folder, [*changes, "run.num_rounds=4"])
    assert "\n" not in str(caught.value) and all(name in str(caught.value) for name in named)
    assert "run.num_rounds (" not in str(caught.value)
    assert _visible(folder) == before


def test_the_server_refuses_them_too(finished: Path, tmp_path: Path) -> None:
    folder = _copy(finished, tmp_path)
    before = _visible(folder)
    assert run(folder, "run.num_rounds=4", "tracking=none", "run.seed=7", f"run.resume='{folder}'") == 2
    assert run(folder, "run.num_rounds=4", "tracking=none", "run.seed=7", "run.resume=auto") == 2
    assert run(folder, "run.num_rounds=4", "tracking=none") == 2  # a new run in the folder of another one
    assert _visible(folder) == before


def test_every_choice_is_itself_again_when_it_was_read_back(tmp_path: Path) -> None:
    """Else a run would refuse its own settings."""
    most = max(len(choices(group)) for group in groups())
    for number in range(most):
        items = [f"{group}={choices(group)[number % len(choices(group))]}" for group in groups()]
        config = compose_config(" ".join([*items, "training.lr=1e-5", "task.labels=['01','1']"]))
        (tmp_path / "config.yaml").write_text(config_yaml(config))
        assert read_config(tmp_path / "config.yaml") == config


def _without_new_keys(folder: Path) -> Path:
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.strip().split(":")[0] not in ("clip_factor", "prune_weight")]
    assert len(kept) == len(lines) - 2
    (folder / "config.yaml").write_text("".join(kept))
    return folder


def test_keys_that_are_newer_than_the_run_do_not_stop_it(finished: Path, tmp_path: Path) -> None:
    folder = _without_new_keys(_copy(finished, tmp_path))
    resume(folder, ["run.num_rounds=3"])
    assert len(rounds(folder)) == 3


def test_a_finished_run_is_left_alone_and_can_be_extended(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(finished, tmp_path)
    before = _visible(folder)
    resume(folder)
    assert f"already finished (2 of 2 rounds); extend it with: fedlodrop resume {folder} run.num_rounds=4" in _one(
        capsys
    )
    assert run(folder, "run.num_rounds=2", "tracking=none", f"run.resume='{folder}'") == 0
    assert _visible(folder) == before
    with pytest.raises(ConfigError, match="run.num_rounds must be at least the 2 rounds that are done, found 1"):
        resume(folder, ["run.num_rounds=1"])
    assert _visible(folder) == before
    resume(folder, ["run.num_rounds=3", "tracking=tensorboard"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rounds_done"] == 3 and len(rounds(folder)) == 3
    resume(folder, [])  # with what it was last given
    assert "already finished (3 of 3 rounds)" in _one(capsys)


def _one(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.replace("\n", " ")


def test_wall_time_is_the_sum_of_the_legs(finished: Path, tmp_path: Path) -> None:
    folder = _copy(finished, tmp_path)
    for name in ("checkpoint", "checkpoint.previous"):
        assert json.loads((folder / name / "position.json").read_text())["spent"]["wall_s"] > 0
    _add_to_the_clock(folder, 1000.0)
    resume(folder, ["run.num_rounds=3"])
    summary = json.loads((folder / "summary.json").read_text())
    assert 1000.0 < summary["wall_s"] < 1100.0 and 1000.0 < summary["cpu_s"] < 1200.0


def _add_to_the_clock(folder: Path, seconds: float) -> None:
    """Let the first leg have taken longer."""
    from server_app import checkpoint

    path = folder / "checkpoint" / "position.json"
    position = json.loads(path.read_text())
    position["spent"] = {key: value + seconds for key, value in position["spent"].items()}
    position["sha256"] = checkpoint._digest(path.parent, position)
    path.write_text(json.dumps(position))


def _begin(folder: Path, moment: str) -> None:
    """Run in a child process that is killed at its first call of a method."""
    child = os.fork()
    if child == 0:
        try:
            setattr(ResultsFolder, moment, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
            run(folder, "run.num_rounds=2", "tracking=none", "run.eval_threads=1")
        finally:
            os._exit(7)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("way", ["resume", "run"])
def test_a_run_that_was_killed_before_its_first_round_begins_anew(finished: Path, tmp_path: Path, way: str) -> None:
    folder = tmp_path / "run"
    _begin(folder, "append_round")
    assert (folder / "rounds.jsonl").read_text() == ""
    if way == "resume":
        resume(folder)
    else:
        items = {item.split("=")[0]: item for item in (*FAST, "run.num_rounds=2", "tracking=none")}
        run_command([*items.values(), f"run.dir='{folder}'"])
    assert [without_wall_times(r) for r in rounds(folder)] == [without_wall_times(r) for r in rounds(finished)]


def test_between_the_first_record_and_the_first_checkpoint(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint*", "summary.json", "adapter"))
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    with pytest.raises(ConfigError, match="holds 2 rounds and no checkpoint"):
        resume(folder)
    (folder / "rounds.jsonl").write_text(lines[0])
    resume(folder)
    assert [without_wall_times(r) for r in rounds(folder)] == [without_wall_times(r) for r in rounds(finished)]


def test_a_folder_in_which_nothing_began_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run has begun in .*; start it with: fedlodrop run run.dir="):
        resume(tmp_path)
    with pytest.raises(ConfigError, match="expected the folder of a run, found none at"):
        resume(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_an_interruption_before_anything_was_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedlodrop.runs._run_local", interrupt)
    with pytest.raises(typer.Exit) as ended:
        run_command([*FAST, f"run.dir='{tmp_path}/a/b'"])
    assert ended.value.exit_code == 130 and not list(tmp_path.iterdir())


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_a_second_process_does_not_harm_the_first(tmp_path: Path) -> None:
    """Both as commands; by default the test below, and one of `test_results.py`, show it with a folder held from here."""
    items = {item.split("=")[0]: item for item in (*FAST, "run.num_rounds=80", "tracking=none")}
    first = _start(tmp_path, "run", *items.values(), "run.dir=out")
    try:
        while not (tmp_path / "out" / "checkpoint").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.02)
        second = _start(tmp_path, "resume", "out")  # the same under `run.resume=`: the test below
        said, complaint = second.communicate(timeout=60)
        assert second.returncode == 2 and said.startswith("looking at out: ") and said.count("\n") == 1
        assert complaint.startswith("fedlodrop: another process is writing to ") and complaint.count("\n") == 1
        said, complaint = first.communicate(timeout=120)
    finally:
        first.kill()
    assert first.returncode == 0, complaint
    assert not (tmp_path / "out" / "failure.json").exists() and len(rounds(tmp_path / "out")) == 80
    assert said.count("round 80/80") == 1


def test_a_server_that_does_not_own_the_folder_writes_nothing_into_it(finished: Path, tmp_path: Path) -> None:
    """As under plain `flwr run`, where no command stands before the server."""
    folder = _copy(finished, tmp_path)
    owner = ResultsFolder(folder)
    owner.hold()
    before = _visible(folder)
    code = (
        "import sys; from tests.support.runs import run; from pathlib import Path\n"
        f"sys.exit(run(Path({str(folder)!r}), 'run.num_rounds=3', 'tracking=none', 'run.resume=auto'))"
    )
    second = subprocess.run([sys.executable, "-c", code], cwd=CONF_DIR.parent, capture_output=True, text=True)
    owner.release()
    assert second.returncode == 2 and "another process is writing to" in second.stderr
    assert _visible(folder) == before


def test_files_that_a_killed_process_left_half_written_go(finished: Path, tmp_path: Path) -> None:
    folder = _copy(finished, tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ours = [folder / f".{name}.{gone.pid}.tmp" for name in ("summary.json", "failure.json", "jobs.png")]
    theirs = [folder / ".notes.tmp", folder / f".summary.json.{os.getppid()}.tmp", folder / "a.1.tmp"]
    for path in (*ours, *theirs):
        path.write_text("half")
    (folder / f".checkpoint.{gone.pid}.tmp").mkdir()
    resume(folder, ["run.num_rounds=3"])
    assert not any(path.exists() for path in ours) and all(path.exists() for path in theirs)
    assert not list(folder.glob(".checkpoint*"))


def test_a_run_of_which_no_answer_could_be_used_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = {item.split("=")[0]: item for item in (*FAST, "run.num_rounds=2", "network.num_devices=3", "tracking=none")}
    with pytest.raises(typer.Exit) as ended:
        run_command([*items.values(), "training.lr=1e6", "training.max_grad_norm=null", f"run.dir='{tmp_path}/run'"])
    shown = capsys.readouterr()
    assert ended.value.exit_code == 3
    assert "0 of 6 answers used" in shown.err and "(device-0: payload: " in shown.err
    assert "no answer used" in shown.out and not (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(typer.Exit) as ended:  # and going on does not make it one
        resume(tmp_path / "run", ["run.num_rounds=3"])
    assert ended.value.exit_code == 4 and "diverged" in capsys.readouterr().err  # three rounds without a finite loss


def test_every_command_reads_runs_that_are_older_than_a_key(finished: Path, tmp_path: Path) -> None:
    folder = _without_new_keys(_copy(finished, tmp_path))
    for load in (load_trained, lambda path: explain(path, 1, "0")):
        load(folder)
    (folder / "config.yaml").unlink()
    for load in (load_trained, lambda path: explain(path, 1, "0")):
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            load(folder)
