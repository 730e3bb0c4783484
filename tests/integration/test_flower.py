"""On real Flower: SuperLink, Ray workers, `flwr run`; the traps that cost others days."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest

from conf.compose import join_overrides
from server_app.engines.in_process import run_in_process
from tests.support.flower import BIN, ROOT, SMALL, environment, flwr, superlink, wait_finished
from tests.support.runs import rounds, without_wall_times

pytestmark = pytest.mark.flower


def _fedlodrop(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "fedlodrop"), *arguments]
    return subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=300, check=False
    )


def test_both_engines_write_the_same_rounds(tmp_path: Path) -> None:
    flower, local = tmp_path / "flower", tmp_path / "local"
    done = _fedlodrop(tmp_path, "run", *SMALL, f"run.dir={flower}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2/2" in done.stdout and str(flower) in done.stdout
    assert run_in_process(join_overrides([*SMALL, f"run.dir='{local}'"]), 3) == 0
    assert [without_wall_times(r) for r in rounds(flower)] == [without_wall_times(r) for r in rounds(local)]
    assert (flower / "adapter" / "adapter_model.safetensors").read_bytes() == (
        local / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_workers_run_this_checkout_even_from_a_superlink_started_elsewhere(tmp_path: Path) -> None:
    # Trap 1: Ray's workers import from the folder the SuperLink was started in. Here that folder holds other packages
    # of the same names, which break when imported. Trap 4: the SuperLink installs dependencies per run, and there is no
    # network.
    foreign, home, out = tmp_path / "foreign", tmp_path / "home", tmp_path / "out"
    for package in ("client_app", "adapter", "conf", "tasks"):
        (foreign / package).mkdir(parents=True)
        (foreign / package / "__init__.py").write_text("raise RuntimeError('stale code from another folder ran')\n")
    (foreign / "client_app" / "app.py").write_text("raise RuntimeError('stale code from another folder ran')\n")
    home.mkdir()
    with superlink(home, foreign, UV_OFFLINE="1") as env:
        overrides = " ".join([*SMALL, f"run.dir={out}"])
        answer = flwr(
            env,
            "run",
            ".",
            "--federation-config",
            "num-supernodes=3 client-resources-num-cpus=1",
            "-c",
            f'overrides="{overrides}"',
        )
        status = wait_finished(env, str(answer["run-id"]))
    assert status == "finished:completed", (home / "superlink.log").read_text()[-4000:]
    assert [len(r["failures"]) for r in rounds(out)] == [0, 0]
    # No second environment: nothing was installed for the run.
    installed = [p for p in home.rglob("site-packages/*") if p.suffix != ".pyc"]
    assert not installed, installed[:5]


@pytest.mark.slow
def test_a_failed_run_is_a_failure(tmp_path: Path) -> None:
    # Trap 3: `flwr run` exits 0 when the run failed.
    out = tmp_path / "out"
    done = _fedlodrop(tmp_path, "run", *SMALL, "budget.energy_j=0", f"run.dir={out}")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "no device could be served" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((out / "failure.json").read_text())["exit_code"] == 3


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_resume_finishes_it(tmp_path: Path) -> None:
    # Trap 7, for real: one of two Ray workers is killed between rounds.
    out = tmp_path / "out"
    command = [str(BIN / "fedlodrop"), "run", *SMALL, "run.num_rounds=40", f"run.dir={out}"]
    process = subprocess.Popen(
        command, env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not (out / "rounds.jsonl").exists() or not rounds(out):
        assert process.poll() is None
        time.sleep(0.2)
    workers = [
        p for p in psutil.Process(process.pid).children(recursive=True) if "ClientAppActor" in " ".join(p.cmdline())
    ]
    assert workers, "no Ray worker found"
    workers[0].kill()
    _, stderr = process.communicate(timeout=300)
    assert process.returncode != 0 and b"simulation worker died" in stderr and b"fedlodrop resume" in stderr
    done = _fedlodrop(tmp_path, "resume", str(out), "run.num_rounds=40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [r["round"] for r in rounds(out)] == list(range(1, 41))


def test_the_readme_command_reaches_the_same_app() -> None:
    text = (ROOT / "README.md").read_text()
    assert "flwr run . --federation-config 'num-supernodes=10 client-resources-num-cpus=1' --stream" in text


@pytest.mark.slow
def test_a_run_is_watched_until_it_ends_early(tmp_path: Path) -> None:
    out, still = (
        tmp_path / "out",
        "training.lr=1e-12 training.head_lr=1e-12".split(),
    )  # no round is better than the first
    run = [str(BIN / "fedlodrop"), "run", *SMALL[:1], *SMALL[2:], "run.num_rounds=9", "run.patience=2", *still]
    env, pipe = environment(tmp_path), subprocess.PIPE
    with subprocess.Popen([*run, f"run.dir={out}"], env=env, cwd=tmp_path, stdout=pipe, text=True) as running:
        while not out.exists():
            assert running.poll() is None
            time.sleep(0.2)
        watch = [str(BIN / "fedlodrop"), "watch", str(out), "--port", "0"]
        with subprocess.Popen(watch, env=env, stdout=pipe, text=True) as watching:
            try:
                assert watching.stdout is not None and running.stdout is not None
                (address,) = re.findall(r"http://\S+/", watching.stdout.readline())
                seen: list[str] = []
                while running.poll() is None:
                    seen.append(httpx.get(address, timeout=60).raise_for_status().text)
                    time.sleep(0.5)
                last = httpx.get(address, timeout=60).text
            finally:
                watching.send_signal(signal.SIGINT)
        said = running.stdout.read()
    assert running.returncode == 0 and "ended early (run.patience): 3 of 9 rounds" in said
    assert len(rounds(out)) == 3 and json.loads((out / "summary.json").read_text())["ended_early"]
    assert any("still going on" in page for page in seen) and "still going on" not in last and watching.returncode == 0
    versions = {found[1] for page in seen if (found := re.search('data-version="([^"]+)"', page))}
    assert "ended early (run.patience): 3 of 9 rounds" in last and len(versions) > 1
