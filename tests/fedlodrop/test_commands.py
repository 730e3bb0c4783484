"""What the commands print and take: the next step, names of devices, the home folder."""

from __future__ import annotations

import html
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from conf.compose import compose_config, join_overrides, quoted
from fedlodrop.cli import cli
from fedlodrop.console.display import print_summary
from server_app import build
from tasks.data.load import load_task
from tests.fedlodrop.conftest import Call
from tests.support.runs import FAST

HEAVY = set("cvxpy datasets flwr matplotlib pandas peft pyomo ray scipy torch transformers".split())


def _next_command(folder: Path, overrides: list[str], allocator: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Give a finished run another command line and return the words of the next step."""
    begun = folder / "environment.json"
    begun.write_text(json.dumps(json.loads(begun.read_text()) | {"overrides": join_overrides(overrides)}))
    summary = folder / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"allocator": allocator}))
    print_summary(Console(width=80), folder, "fedlodrop")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next:")]
    return shlex.split(line.removeprefix("next:").split("   (")[0])


@pytest.mark.parametrize(
    ("given", "allocator", "other"),
    [
        (["strategy=rolora", "run.seed=7", "training.lr=0.01"], "exact", "equal"),
        (["run.seed=1", "allocator=equal", "run.seed=2"], "equal", "exact"),
        (["allocator=fixed", "allocator.dropout_rate=0.3", "task.text_columns=[a, b]"], "fixed", "equal"),
        (
            ["run.name=it is", f"task.train_file={quoted('/data/my files/a.tsv')}", "task.labels=['да, 1']"],
            "exact",
            "equal",
        ),
        (["allocator.name=psca"], "psca", "equal"),
    ],
)
def test_the_next_step_repeats_this_run_with_one_change(
    given: list[str], allocator: str, other: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    words = _next_command(folder, [*given, "run.dir='/somewhere/run'"], allocator, capsys)
    assert words[:2] == ["fedlodrop", "run"] and not any(word.startswith("run.dir") for word in words)
    before, after = (asdict(compose_config(join_overrides(items))) for items in (given, words[2:]))
    assert before["allocator"].pop("name") == allocator and after["allocator"].pop("name") == other
    assert before == after
    assert not any("='" in word for word in words)  # readable: quotes of Hydra's only where it needs them


@pytest.mark.parametrize(("early", "longer"), [(True, "run.patience=null"), (False, "run.num_rounds=")])
def test_how_a_run_becomes_longer(
    early: bool, longer: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"ended_early": early}))
    print_summary(Console(width=400), folder, "fedlodrop")
    assert f"longer:  fedlodrop resume {folder} {longer}" in capsys.readouterr().out


def test_settings_in_a_file_and_what_can_be_chosen(call: Call, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("strategy: fedit\nrun.seed: 7\n")
    shown = yaml.safe_load(_output("config", "--config", tmp_path / "my.yaml", "run.seed=8"))
    assert shown["strategy"]["name"] == "fedit" and shown["run"]["seed"] == 8
    listed = _output("config", "--list")
    assert "experiment=tight-cell" in listed and "fedit | fedlodrop" in listed
    (tmp_path / "my.yaml").write_text("strategy: fedi\n")
    code, complaint = call("run", "--config", tmp_path / "my.yaml")
    assert code == 2 and "my.yaml" in complaint and "fedit" in complaint


def test_a_run_says_what_it_is_before_it_begins_and_in_its_report(tmp_path: Path) -> None:
    lines = _output("run", *FAST, "run.num_rounds=1", "run.seed=5", f"run.dir={tmp_path / 'run'}").splitlines()[:10]
    known = json.loads((tmp_path / "run" / "environment.json").read_text())["facts"]
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    for name, words in known.items():
        assert any(line.startswith(f"{name}:") and line.endswith(words) for line in lines), (name, lines)
        assert f"<dt>{name}</dt><dd>{words}</dd>" in page
    assert "seed 5" in known["method"] and "96 training" in known["data"] and known["test set"] == "generated"
    assert any(line.startswith("folder:") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "held_out", "origin"),
    [
        ("task=tsv task.train_file=a.tsv", True, "a fifth of a.tsv, held out from training"),
        ("task=mnist task.train_file=a.npz", False, "what a.npz sets apart for it"),
        ("task=hub task.dataset=u/d", False, "what u/d sets apart for it"),
        ("task=cola task.train_file=a.tsv task.validation_file=b.tsv", False, "b.tsv"),
        ("task=rte", False, "GLUE's validation set"),
    ],
)
def test_where_the_test_set_comes_from(overrides: str, held_out: bool, origin: str) -> None:
    assert build._origin(compose_config(overrides), held_out) == origin


def test_a_file_without_a_test_set_gives_a_fifth(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(40)))
    alone, beside = (
        load_task("tsv", seed=0, train_file=str(tmp_path / "a.tsv"), validation_file=other)
        for other in (None, str(tmp_path / "a.tsv"))
    )
    assert (alone.test_held_out, len(alone.test)) == (True, 8) and (beside.test_held_out, len(beside.test)) == (
        False,
        40,
    )


def test_the_runs_of_a_sweep_are_named_where_one_is_wanted(call: Call, tmp_path: Path) -> None:
    for k in range(7):
        (tmp_path / f"seed-{k}").mkdir()
        (tmp_path / f"seed-{k}/rounds.jsonl").touch()
    for folder in (tmp_path, tmp_path / "seed-9"):
        code, complaint = call("show", folder)
        assert code == 2 and f"in {tmp_path} there are seed-0, seed-1, " in complaint and "seed-6" not in complaint


def _output(*words: object) -> str:
    """Return what a command that ends well prints."""
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize("device", ["1", "device-1"])
def test_a_device_is_named_as_the_records_name_it(device: str, call: Call, finished: Path) -> None:
    code, complaint = call("explain", finished, "--device", device)
    assert code == 0, complaint


@pytest.mark.parametrize("device", ["device-", "phone", "device-99", "-1", "99"])
def test_another_device_is_one_line(device: str, call: Call, finished: Path) -> None:
    code, complaint = call("explain", finished, f"--device={device}")
    assert code == 2 and len(complaint.splitlines()) == 1 and "--device" in complaint and "device-0" in complaint


def test_the_home_folder_in_an_option(
    call: Call, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, complaint = call("report", finished, "--out=~/page.html")
    assert code == 0, complaint
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["page.html"]


def test_help_loads_none_of_the_heavy_libraries() -> None:
    program = (
        "import sys; from fedlodrop.cli import cli; cli(['--help'], standalone_mode=False); "
        f"print(*sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Run" in done.stdout and done.stderr.strip() == ""


@pytest.mark.benchmark
def test_help_costs_less_than_a_second_of_cpu() -> None:
    program = (
        "import sys, time; from fedlodrop.cli import cli; cli(['--help'], standalone_mode=False); "
        "print(time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Run" in done.stdout and float(done.stderr) < 1.0


@pytest.mark.parametrize(
    ("words", "module", "function", "said"),
    [
        (
            "run model=tiny allocator=equal",
            "shared",
            "say",
            ["intents", "tiny", "fedlodrop", "equal", "10 devices", "10 rounds"],
        ),
        ("run --dry-run", "runs", "working", ["model", "data"]),
        ("resume RUN", "shared", "say", ["RUN"]),
        ("predict RUN hello", "results", "working", ["RUN"]),
        ("export RUN", "results", "working", ["RUN"]),
        ("explain RUN", "results", "working", ["RUN"]),
        ("figures RUN", "results", "working", ["libraries"]),
        ("report RUN", "results", "working", ["report"]),
    ],
)
def test_what_is_loaded_is_said_before_the_heavy_imports(
    words: str, module: str, function: str, said: list[str], finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "RUN"))
    program = f"""
import sys
import fedlodrop.commands.{module} as commands
def first(text):
    print(sorted({{"torch", "flwr", "scipy", "plotly", "matplotlib", "cvxpy"}} & set(sys.modules)), text)
    sys.exit(7)
commands.{function} = first
from fedlodrop.cli import main
main()
"""
    arguments = words.replace("RUN", run.name).split()
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("[] ") and all(word in done.stdout for word in said), done.stdout


@pytest.mark.parametrize("own", ["hydra.sweep.dir=x", "hydra/launcher=joblib", "hydra.verbose=true", "run.dir=x"])
def test_a_key_that_a_sweep_does_not_honour_is_refused_by_name(own: str, call: Call, tmp_path: Path) -> None:
    code, complaint = call("sweep", "-m", "model=tiny", "run.seed=0,1", own)
    assert code == 2 and len(complaint.splitlines()) == 1, complaint
    assert own.partition("=")[0] in complaint and "--dir" in complaint and "--jobs" in complaint
    assert not any(tmp_path.iterdir())
