"""Tables over seeds: means, spreads, the best in bold, paired differences, in three formats."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from conf.compose import ConfigError
from fedlodrop.cli import cli
from fedlodrop.study.seeds import Seeds, by_setting, runs_in, written
from tests.support.runs import FAST, run

SCORES = {"exact": (0.5, 0.6, 0.7), "equal": (0.4, 0.55, 0.6)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return six runs that differ in allocator and seed; their scores are set to known ones."""
    folder = tmp_path_factory.mktemp("seeds")
    assert run(folder / "first", "run.num_rounds=1") == 0
    for allocator, scores in SCORES.items():
        for seed, score in enumerate(scores):
            copy = Path(shutil.copytree(folder / "first", folder / "runs" / f"{allocator}-{seed}"))
            config = (copy / "config.yaml").read_text().replace("seed: 0", f"seed: {seed}")
            (copy / "config.yaml").write_text(config.replace("name: exact", f"name: {allocator}"))
            summary = json.loads((copy / "summary.json").read_text())
            summary["final"]["eval"]["accuracy"] = score
            (copy / "summary.json").write_text(json.dumps(summary))
    return folder / "runs"


def test_means_spreads_and_paired_differences_are_those_of_scipy(folder: Path) -> None:
    table = by_setting(runs_in([folder]))
    rows = {row[0].split("=")[-1]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert (
        rows["exact"]["test accuracy"] == f"0.600 ± {np.std(SCORES['exact'], ddof=1):.3f}"
        and rows["exact"]["seeds"] == "3"
    )
    first, other = ("equal", "exact") if table.rows[0][0].endswith("equal") else ("exact", "equal")
    apart = np.subtract(SCORES[other], SCORES[first])
    low, high = stats.t.interval(0.95, 2, apart.mean(), stats.sem(apart))
    assert rows[other]["− first, paired"].lstrip("+") == f"{apart.mean():.3f} [{low:.3f}, {high:.3f}]"
    best = {row[0].split("=")[-1]: marks for row, marks in zip(table.rows, table.best, strict=True)}
    assert 2 in best["exact"] and 2 not in best["equal"]
    low, high = stats.t.interval(0.95, 2, 0.6, stats.sem(SCORES["exact"]))
    again = {row[0].split("=")[-1]: row[2] for row in by_setting(runs_in([folder]), interval=True).rows}
    assert again["exact"] == f"0.600 [{low:.3f}, {high:.3f}]"


def test_the_three_formats(folder: Path) -> None:
    markdown, latex, text = (_table(folder, form) for form in ("md", "latex", "csv"))
    assert markdown.count("\n") == 4 and "**0.600 ± 0.100**" in markdown and "**0.517" not in markdown
    assert r"\textbf{0.600 $\pm$ 0.100}" in latex and latex.count(r"\\") == 3 and r"\begin{tabular}{lrrrrrrrr}" in latex
    numbers = pd.read_csv(io.StringIO(text))
    assert len(numbers) == 6 and sorted(numbers["test accuracy"]) == sorted(sum(SCORES.values(), ()))
    with pytest.raises(ConfigError, match="md, latex, csv"):
        written(by_setting(runs_in([folder])), "html")
    with pytest.raises(ConfigError, match=r"no rounds\.jsonl"):
        runs_in([folder / "exact-0" / "adapter"])


def test_latex_shows_names_and_signs_as_they_are() -> None:
    row = ["a_b & {c} #1^2~ lr=1e-3 labels=[-1,0] no-dropout", "-0.083 [-0.150, +inf] ± 0.1"]
    latex = written(Seeds(("setting", "− first"), [row], [set()], pd.DataFrame()), "latex")
    assert r"setting & $-$ first \\" in latex
    assert (
        r"a\_b \& \{c\} \#1\^{}2\~{} lr=1e-3 labels=[$-$1,0] no-dropout & $-$0.083 [$-$0.150, +inf] $\pm$ 0.1 \\"
        in latex
    )


def _table(folder: Path, form: str) -> str:
    done = CliRunner().invoke(cli, ["table", str(folder), "--format", form])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_seeds_in_a_sweep_are_summed_up_and_its_folder_is_reported(tmp_path: Path) -> None:
    items = [item for item in FAST if not item.startswith(("run.num_rounds", "run.engine"))]
    words = ["sweep", *items, "run.num_rounds=1", "run.seed=0,1", "allocator=exact,equal", "--dir", str(tmp_path / "s")]
    done = CliRunner().invoke(cli, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, (done.output, done.exception)
    (line,) = [line for line in done.output.splitlines() if "allocator=equal" in line and "[" in line]
    jobs = pd.read_csv(tmp_path / "s" / "jobs.csv").query("allocator == 'equal'")
    assert f"{jobs['final.eval.accuracy'].mean():.3f} [" in line
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "s")]).exit_code == 0
    assert "4 runs side by side" in (tmp_path / "s" / "report.html").read_text()


def test_a_run_that_failed_is_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    (tmp_path / "runs" / "equal-1" / "summary.json").unlink()  # its rounds are there
    table = by_setting(runs_in([tmp_path / "runs"]))
    assert {row[0].split("=")[-1]: row[1] for row in table.rows} == {"exact": "3", "equal": "2"}
    done = CliRunner().invoke(cli, ["table", str(tmp_path / "runs")])
    assert done.exit_code == 0 and "1 of 6 runs have no final score" in done.stderr and "1 of 6" not in done.stdout
