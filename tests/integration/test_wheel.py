"""The wheel, installed in a folder elsewhere: runs, studies by name, and the optimizer without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.compose import ROOT

pytestmark = pytest.mark.slow

STUDY = "title: A study\nbase: [model=tiny, task.train_limit=60, run.num_rounds=1, network.num_devices=2]\n"
STUDY += "settings: {all: []}\nmethods: {fedit: [strategy=fedit]}\nseeds: [0]\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it alone; what it depends on comes from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"the build backend could not be fetched: {built.stderr[-300:]}")
    (wheel,) = folder.glob("fedlodrop-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def _python(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done


def _fedlodrop(site: Path, folder: Path, *words: str) -> str:
    program = f"import fedlodrop; assert fedlodrop.__file__.startswith({str(site)!r}); from fedlodrop.cli import main"
    return _python(site, folder, "-c", f"{program}; main()", *words).stdout


def test_a_run_from_an_empty_folder_writes_to_its_results(site: Path, tmp_path: Path) -> None:
    shown = _fedlodrop(site, tmp_path, "run", "run.engine=local", "model=tiny", "run.num_rounds=1")
    (summary,) = tmp_path.glob("results/*/*/summary.json")
    assert json.loads(summary.read_text())["rounds_done"] == 1 and str(summary.parent) in shown
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.flower
def test_flower_gets_its_app_from_the_wheel(site: Path, tmp_path: Path) -> None:
    _fedlodrop(site, tmp_path, "run", "model=tiny", "run.num_rounds=1", "network.num_devices=2", "run.dir=run")
    assert (tmp_path / "run" / "summary.json").exists()


def test_every_study_ships_and_a_study_is_run(site: Path, tmp_path: Path) -> None:
    studies = sorted(path.name for path in (ROOT / "studies").glob("*.yaml"))
    assert sorted(path.name for path in site.glob("fedlodrop/study/studies/*")) == studies
    for name in studies:
        _fedlodrop(site, tmp_path, "compare", f"studies/{name}", "--no-run", "--out", "tables")
    (tmp_path / "own.yaml").write_text(STUDY)
    _fedlodrop(site, tmp_path, "compare", "own.yaml", "--jobs", "0", "--out", "tables")
    assert "finished" in (tmp_path / "tables" / "own" / "runs.csv").read_text()


def test_the_optimizer_needs_neither_pytorch_nor_flower(site: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfor name in 'torch flwr transformers peft hydra pandas'.split():\n"
        "    sys.modules[name] = None\n"
        "from optimizer.files import write_problem\nfrom optimizer.instances import sample_problem\n"
        "from optimizer.__main__ import main\nwrite_problem('problem.json', sample_problem(5, 0))\n"
        "sys.exit(main(['solve', 'problem.json', '--out', 'solution.json']))"
    )
    assert "optimal" in _python(site, tmp_path, "-c", program).stdout
