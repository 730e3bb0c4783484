"""Runs that differ in their seed alone as one line: mean and spread, the best in bold, differences paired by seed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from conf.compose import ConfigError
from fedlodrop.report.data import differing_settings, load_runs
from fedlodrop.study.paired_statistics import estimate
from fedlodrop.study.tables import markdown

_MINUS = re.compile(r"(?<![\w.)\]-])-(?=[\d.]|inf)")  # a sign before a number, not the hyphen of a name
_LATEX: dict[str, str | int | None] = {c: f"\\{c}" for c in "_%&#${}"}
_LATEX.update({"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "±": r"$\pm$", "−": "$-$", "–": "--"})
FORMATS = ("md", "latex", "csv")
# Columns of a table: title -> name in the summary, factor to the title's unit, digits, whether more is better.
_COSTS = {
    "test loss": ("final.eval.loss", 1.0, 3, False),
    "gap": ("final.gap.loss", 1.0, 3, False),
    "upload MB": ("uplink_bytes", 1e-6, 2, False),
    "time s": ("sim_time_s", 1.0, 1, False),
    "energy J": ("energy_j", 1.0, 1, False),
}


@dataclass(frozen=True)
class Seeds:
    """A table of settings: a row each, with mean and spread of every measure in words, and the numbers behind them."""

    head: tuple[str, ...]
    rows: list[list[str]]
    best: list[set[int]]  # columns of each row that are the best of their column
    numbers: pd.DataFrame  # setting, seed and the measures of every run


def runs_in(folders: Sequence[str | Path]) -> list[Path]:
    """Return the given folders of runs, and all runs below the others (of a sweep or a study); ConfigError if none."""
    found: list[Path] = []
    for folder in map(Path, folders):
        places = [folder] if (folder / "rounds.jsonl").exists() else [p.parent for p in folder.glob("**/rounds.jsonl")]
        if not places:
            raise ConfigError(f"expected the folder of a run or of a sweep, found no rounds.jsonl in or below {folder}")
        found += sorted(places)
    return found


def by_setting(folders: Sequence[Path], *, interval: bool = False) -> Seeds:
    """Return finished runs by setting: mean ± standard deviation over seeds, or with its 95 % ``interval``.

    Settings are named by what differs; the last column is the difference of the score from the first setting, paired by
    seed. Raises ConfigError if none of the runs is finished, or they are judged by different metrics.
    """
    runs = [run for run in load_runs(folders) if run.finished and run.summary.get("final")]  # not what failed half-way
    metrics = {run.metric for run in runs}
    if len(metrics) != 1:
        names = ", ".join(sorted(map(str, metrics))) or "none"
        raise ConfigError(f"expected finished runs judged by one metric, found {names}")
    score = f"test {runs[0].metric}"
    measures = {score: (f"final.eval.{runs[0].metric}", 1.0, 3, True), **_COSTS}
    apart = {key: values for key, values in differing_settings(runs).items() if key != "run.seed"}
    differ = {key.removesuffix(".name").rsplit(".", 1)[-1]: values for key, values in apart.items()}
    flat = pd.json_normalize([run.summary for run in runs])
    table = pd.DataFrame({title: flat[key] * factor for title, (key, factor, _, _) in measures.items()})
    labels = [" ".join(f"{key}={values[k]}" for key, values in differ.items()) or "all" for k in range(len(runs))]
    table.insert(0, "setting", labels)
    table.insert(1, "seed", [run.setting("run.seed") for run in runs])
    means = table.groupby("setting", sort=False)[list(measures)].mean()
    most = {title: means[title].max() if more else means[title].min() for title, (_, _, _, more) in measures.items()}
    rows, best = [], []
    for name, group in table.groupby("setting", sort=False):
        cells = [_cell(group[title], measures[title][2], interval) for title in measures]
        rows.append([str(name), str(len(group)), *cells, _paired(table, score, str(name), str(means.index[0]))])
        best.append({k for k, title in enumerate(measures, 2) if len(means) > 1 and means[title][name] == most[title]})
    return Seeds(("setting", "seeds", *measures, "− first, paired"), rows, best, table)


def _cell(values: "pd.Series[float]", digits: int, interval: bool) -> str:
    if interval or len(values) == 1:
        return estimate(values).text(digits).replace(" (one seed)", "")
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def _paired(table: pd.DataFrame, column: str, setting: str, first: str) -> str:
    """Return the difference from the first setting over the seeds that both have."""
    if setting == first:
        return "–"
    here = table.drop_duplicates(["setting", "seed"]).pivot(index="seed", columns="setting", values=column)
    found = estimate(np.asarray(here[setting] - here[first], dtype=float))
    return found.text() if found.count == 0 or found.mean < 0 else f"+{found.text()}"


def written(table: Seeds, form: str) -> str:
    """Return a table as Markdown, LaTeX (booktabs) or, with every run's numbers, CSV; ConfigError if another."""
    if form not in FORMATS:
        raise ConfigError(f"--format: expected one of {', '.join(FORMATS)}, found {form!r}")
    if form == "csv":
        return table.numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    said, bold = (str, "**{}**") if form == "md" else (_latex, r"\textbf{{{}}}")
    rows = [
        [bold.format(said(cell)) if k in best else said(cell) for k, cell in enumerate(row)]
        for row, best in zip(table.rows, table.best, strict=True)
    ]
    if form == "md":
        return markdown(table.head, rows, figures=True)
    columns = "l" + "r" * (len(table.head) - 1)
    return pd.DataFrame(rows, columns=[*map(_latex, table.head)]).to_latex(index=False, column_format=columns)


def _latex(text: str) -> str:
    return _MINUS.sub("−", text).translate(str.maketrans(_LATEX))
