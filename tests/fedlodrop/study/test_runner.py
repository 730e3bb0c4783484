"""The runner of many runs: workers that die, interruptions, a second command, states that survive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import yaml

from fedlodrop.study import runner
from fedlodrop.study.runner import RunnerError, Task, message, run_tasks, status
from server_app.checkpoint import StorageError
from server_app.results import claimed, write_json
from tests.support.cases import first
from tests.support.study import TINY

PROGRAM = "from fedlodrop.cli import main; main()"


def _tasks(folder: Path, *words: str) -> list[Task]:
    return [Task(folder / word, (f"run.name={word}",), word) for word in words]


def _act(task: Task, defaults: Sequence[str] = ()) -> None:
    """Stand in for a run: some words kill the process, before or after the run has begun."""
    if task.label.startswith("early"):
        os._exit(9)
    task.folder.mkdir(parents=True, exist_ok=True)
    write_json(task.folder / "job.json", {"status": "running"})
    time.sleep(0.3)
    if task.label.startswith("dies"):
        os._exit(9)
    summary = {"primary_metric": "accuracy", "final": None, "personalised": {"accuracy": 0.5}, "cpu_s": 1.0}
    (task.folder / "report.html").touch()
    write_json(task.folder / "summary.json", summary)
    write_json(task.folder / "job.json", {"status": "finished"})


WORDS = ["a", "dies", "b", "c", "dies too", "d"]


@pytest.mark.parametrize(("workers", "words"), first(1, [(3, WORDS[:4]), (1, WORDS), (3, WORDS)]))
def test_a_run_that_kills_its_process_is_found_out_and_costs_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, words: list[str]
) -> None:
    monkeypatch.setattr(runner, "work", _act)
    said: list[str] = []
    tasks, deadly = _tasks(tmp_path, *words), {word for word in words if word.startswith("dies")}
    run_tasks(tasks, tmp_path, workers, said.append)
    found = {task.label: status(task.folder) for task in tasks}
    assert found == {word: "failed" if word in deadly else "finished" for word in words}
    assert "died 2 times" in str(message(tmp_path / "dies"))
    assert sum("a worker process died" in line for line in said) <= len(deadly)
    last = f"run {len(words)}/{len(words)} "
    assert sum(line.startswith("run ") for line in said) == len(words) and any(line.startswith(last) for line in said)


@pytest.mark.parametrize("workers", first(1, [2, 1]))
def test_workers_that_die_before_they_begin_end_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(runner, "work", _act)
    with pytest.raises(RunnerError, match="die before they begin a run") as caught:
        run_tasks(_tasks(tmp_path, "early", "early too"), tmp_path, workers, lambda line: None)
    assert "\n" not in str(caught.value)


def test_an_interruption_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = _tasks(tmp_path, "a")

    def interrupt(each: Task, *_: object) -> None:
        each.folder.mkdir(exist_ok=True)
        write_json(each.folder / "job.json", {"status": "running"})
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "work", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_tasks([task], tmp_path, 0, lambda line: None)
    assert status(task.folder) == "interrupted"


def test_two_commands_do_not_run_the_same_tasks(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(StorageError, match="another process is writing to"):
        run_tasks(_tasks(tmp_path, "a"), tmp_path, 0, lambda line: None)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("workers", first(1, [1, 2]))
def test_ctrl_c_ends_the_workers_with_the_command(tmp_path: Path, workers: int) -> None:
    base = [item for item in TINY["base"] if not item.startswith("run.num_rounds")]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"base": [*base, "run.num_rounds=100000"]}))
    command = [sys.executable, "-c", PROGRAM, "compare", "tiny.yaml", "--jobs", str(workers), "--out", "out"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while len(list(tmp_path.glob("out/tiny/runs/*/*/*/rounds.jsonl"))) < workers:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (
        process.returncode == 130
        and "interrupted; the same command goes on" in complaint
        and "Traceback" not in complaint
    )
    assert len(family) >= workers and psutil.wait_procs(family, timeout=5)[1] == []
    states = [json.loads(path.read_text())["status"] for path in tmp_path.glob("out/tiny/runs/*/*/*/job.json")]
    assert states == ["interrupted"] * workers


def test_workers_end_with_the_command_that_started_them(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from fedlodrop.study.runner import start_worker\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'), initializer=start_worker,\n"
        "                               initargs=(os.getpid(),))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert worker.wait(timeout=30) in (None, 1)
