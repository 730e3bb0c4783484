"""Bad input: one clear line on standard error, a non-zero exit, no traceback, nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedlodrop.cli import main

PROGRAM = "from fedlodrop.cli import main; main()"


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"text number {i}\t{i % 2}\n" for i in range(60)))
    return path


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task=tsv", "task.train_file=train.tsv", "task.text_columns=[title]"], ["title", "sentence"]),
        (["task=tsv", "task.train_file=missing.tsv", "task.text_columns=[sentence]"], ["missing.tsv"]),
        (["training.lrr=1"], ["training.lrr", "training.lr"]),
        (["model=hub", "model.path=./no/such/model"], ["model.path", "no/such/model"]),
        (["network.num_devices=0"], ["network.num_devices", "at least 1", "found 0"]),
        (["model=tiny", "budget.deadline_s=1e-6"], ["budget.deadline_s", "no device"]),
        (["model=tiny", "network.num_devices=5000"], ["5000", "devices"]),
        (["run.resume=nowhere"], ["run.resume", "nowhere"]),
        (["allocator=best"], ["allocator", "exact"]),
        (["model=tiny", "lora.target_modules=[qery]"], ["lora.target_modules", "qery"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    overrides: list[str],
    expected: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedlodrop", "run", "run.engine=local", *overrides])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    _one_line(capfd.readouterr().err, expected)
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


def test_bad_input_is_one_line_in_a_shell(tmp_path: Path) -> None:
    """Not even what libraries say while they are loaded or while the process ends."""
    done = _run(tmp_path, "run", "run.engine=local", "model=tiny", "budget.deadline_s=1e-6")
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    _one_line(done.stderr, ["budget.deadline_s", "no device"])


def _one_line(text: str, expected: list[str]) -> None:
    lines = text.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("fedlodrop: "), text
    for word in expected:
        assert word in lines[0]


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rounds.jsonl").write_text("{}\n")
    done = _run(tmp_path, "run", "run.dir=run")
    assert done.returncode == 2 and "fedlodrop resume" in done.stderr
    assert (tmp_path / "run" / "rounds.jsonl").read_text() == "{}\n"


def test_a_run_without_a_terminal_prints_plain_lines_and_the_next_step(tmp_path: Path, table: Path) -> None:
    done = _run(
        tmp_path,
        "run",
        "run.engine=local",
        "model=tiny",
        "task=tsv",
        "task.train_file=train.tsv",
        "run.num_rounds=2",
        "network.num_devices=3",
        "training.local_steps=1",
        "run.dir=out",
    )
    assert done.returncode == 0, done.stderr
    assert "round 1/2" in done.stdout and "round 2/2" in done.stdout
    assert f"results: {tmp_path / 'out'}" in done.stdout and "next:" in done.stdout
    assert "\x1b[" not in done.stdout


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        # until the SuperLink is on its way
        ("server_app.engines.flower, server_app.folders", {"torch", "transformers", "flwr", "scipy"}),
        # for the first check of data and model
        ("server_app.build", {"peft", "torch._dynamo", "pandas", "sklearn", "cvxpy", "pyomo"}),
    ],
)
def test_a_command_starts_without_what_it_does_not_need(module: str, heavy: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"], capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "conf.compose" in loaded and not loaded & heavy


def test_the_configuration_can_be_printed(tmp_path: Path) -> None:
    done = _run(tmp_path, "config", "run.seed=7")
    assert done.returncode == 0 and "seed: 7" in done.stdout


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "run",
        "run.engine=local",
        "model=tiny",
        "run.num_rounds=1000",
        "run.dir=out",
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with the interrupt ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not (tmp_path / "out" / "checkpoint.previous").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"interrupted; go on with: fedlodrop resume {tmp_path / 'out'}" in stderr and "Traceback" not in stderr
