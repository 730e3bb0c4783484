"""The results page: written from the studies' files alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedlodrop.study.calibration_page import calibration_section
from fedlodrop.study.compare import chosen_values
from fedlodrop.study.plan import Study
from fedlodrop.study.statistics import effect, estimate, judge
from fedlodrop.study.tables import read_rounds_table
from fedlodrop.study.views import VIEWS, cost_of_target, pair_view, view
from server_app.results import write_atomic

_INTRODUCTION = """# Results

Every number below was computed from the tables in `studies/tables/` by `fedlodrop compare STUDY.yaml --no-run --page PAGE`;
nothing here is typed by hand but the questions and the remarks, which stand in the study files. Brackets are 95 % intervals
(Student's t) over seeds; effects are paired by seed. "Test" data were never used to choose anything: learning rates and rounds
are chosen on a validation split of the training data. Scores are the task's own (accuracy unless said otherwise); the gap
is test − train loss on a fixed sample of the training data. Times and energies are those of the simulated radio and devices.

"""


def write_page(path: Path, studies: Sequence[tuple[Study, Path, str]]) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
        Markdown file.
    studies : sequence of (Study, Path, str)
        Each study with the folder of its tables and the command that made them; a folder without tables is said to be
        missing.
    """
    sections = [_section(study, folder, command, path.parent) for study, folder, command in studies]
    write_atomic(path, _INTRODUCTION + "\n".join(sections))


def _section(study: Study, folder: Path, command: str, base: Path) -> str:
    parts = [f"## {study.title}\n", study.question + "\n", f"```\n{command}\n```\n"]
    if not (folder / "rounds.csv").exists():
        return "\n".join([*parts, "Not run yet.\n"])
    rounds, runs = read_rounds_table(folder / "rounds.csv"), pd.read_csv(folder / "runs.csv", dtype={"choice": str})
    parts.append(_state(study, rounds, runs))
    if rounds.empty:
        return "\n".join(parts)
    parts += _targets(study, rounds)
    for name in ("fixed", "matched", "best", *(("time",) if "time" in study.figures else ())):
        parts += [f"### {study.name}: {VIEWS[name]}\n", _table(rounds, name, study.reference)]
    if study.target_metric is not None:
        parts += [
            f"### {study.name}: until the validation score reaches {study.target_metric:g}\n",
            _costs(rounds, study.target_metric),
        ]
    parts += _personalised(study, runs)
    chosen = chosen_values(runs)
    if len(chosen):
        parts += [
            f"### {study.name}: what the tuning chose\n",
            _markdown(["setting", "method", "choice"], chosen.to_numpy().tolist()),
        ]
    parts += calibration_section(folder, base)
    names = [f"{name}.png" for name in study.figures if (folder / f"{name}.png").exists()]
    parts += [f"![{study.title}]({os.path.relpath(folder / name, base)})\n" for name in names]
    if study.notes:
        parts += ["Remarks. " + study.notes + "\n"]
    return "\n".join(parts)


def _personalised(study: Study, runs: pd.DataFrame) -> list[str]:
    """Methods whose devices keep models of their own: reported apart, because their score is no competitor's."""
    finished = runs[(runs["phase"] == "final") & (runs["status"] == "finished")]
    if "personalised_metric" not in finished or finished["personalised_metric"].isna().all():
        return []
    rows = []
    for (setting, method), group in finished[finished["personalised_metric"].notna()].groupby(
        ["setting", "method"], sort=False
    ):
        per_round = group["uplink_bytes"] / group["rounds"] / 1e3
        rows.append(
            [
                setting,
                method,
                estimate(group["personalised_metric"]).text(),
                estimate(per_round).text(1),
                str(len(group)),
            ]
        )
    header = [
        "setting",
        "method",
        "mean score of the devices' models, own held-out examples",
        "uplink kB per round",
        "seeds",
    ]
    return [f"### {study.name}: personalised, not to be ranked with the others\n", _markdown(header, rows)]


def _state(study: Study, rounds: pd.DataFrame, runs: pd.DataFrame) -> str:
    final = runs[runs["phase"] == "final"]
    finished, failed = (int((final["status"] == state).sum()) for state in ("finished", "failed"))
    planned = len(study.settings) * len(study.methods) * len(study.seeds)
    trials = int((runs["phase"] == "tuning").sum())
    text = "" if finished == planned else "**Incomplete.** "
    text += f"{finished} of {planned} planned runs are finished, {failed} failed"
    text += f"; {trials} tuning trials" if trials else ""
    text += f"; {runs['cpu_s'].sum() / 60:.0f} CPU minutes" if "cpu_s" in runs else ""
    seeds = rounds.groupby(["setting", "method"])["seed"].nunique() if len(rounds) else pd.Series(dtype=int)
    fewer = seeds[seeds < len(study.seeds)]
    if len(fewer):
        text += f". Fewer seeds than planned ({len(study.seeds)}): "
        text += ", ".join(f"{' '.join(place)} {count}" for place, count in fewer.to_dict().items())  # type: ignore[arg-type]
    return text + ".\n"


def _targets(study: Study, rounds: pd.DataFrame) -> list[str]:
    if not study.targets:
        return []
    present = set(rounds["setting"])
    methods = set(rounds["method"])
    usable = [t for t in study.targets if {t["method"], t.get("reference", study.reference)} <= methods]
    rows = []
    for verdict in judge(rounds, [{**t, "settings": _present(t, present)} for t in usable], study.reference):
        word = {True: "met", False: "**missed**", None: "not measured"}[verdict.met]
        if verdict.met is not None and not verdict.sure:
            word += ", one seed: no evidence" if verdict.found.count == 1 else ", but the interval holds the limit"
        rows.append([verdict.text, verdict.setting, verdict.found.text(percent=verdict.percent), verdict.limit, word])
    rows += [[t["text"], "–", "–", "–", "not measured"] for t in study.targets if t not in usable]
    return [f"### {study.name}: targets\n", _markdown(["target", "setting", "found", "limit", "verdict"], rows)]


def _present(target: Any, present: set[str]) -> list[str]:
    wanted = target.get("settings")
    return [name for name in (wanted or sorted(present)) if name in present]


def _table(rounds: pd.DataFrame, name: str, reference: str) -> str:
    rows = []
    pairs = {method: pair_view(rounds, name, method, reference) for method in rounds["method"].unique()}
    for setting, method, _ in _groups(rounds):
        points = pairs[method]
        runs = points[(points["setting"] == setting) & (points["method"] == method)]
        gap, score, saved = (
            effect(points, setting, method, reference, column, kind)
            for column, kind in (
                ("gap_loss", "relative"),
                ("test_metric", "difference"),
                ("uplink_adapter_bytes", "ratio"),
            )
        )
        same = method == reference
        rows.append(
            [
                setting,
                method,
                estimate(runs["test_metric"]).text(),
                "–" if same else _signed(score.text()),
                estimate(runs["test_loss"]).text(),
                estimate(runs["train_loss"]).text(),
                estimate(runs["gap_loss"]).text(),
                "–" if same else gap.text(percent=True),
                f"{saved.mean:.3f}" if saved.count else "–",
                f"{runs['round'].mean():.1f}",
                str(int(runs["test_metric"].notna().sum())),
            ]
        )
    header = [
        "setting",
        "method",
        "test score",
        f"− {reference}",
        "test loss",
        "train loss",
        "loss gap",
        f"gap vs {reference}",
        "adapter uplink ratio",
        "round",
        "seeds",
    ]
    return _markdown(header, rows)


def _groups(points: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    pairs = points[["setting", "method"]].drop_duplicates().itertuples(index=False)
    return ((s, m, points[(points["setting"] == s) & (points["method"] == m)]) for s, m in pairs)


def _signed(text: str) -> str:
    return text if text.startswith(("-", "–")) else f"+{text}"


def _costs(rounds: pd.DataFrame, target: float) -> str:
    points = cost_of_target(rounds, target)
    last = view(rounds, "fixed")
    rows = []
    for setting, method, runs in _groups(points):
        ends = last[(last["setting"] == setting) & (last["method"] == method)]
        reached = int(runs["round"].notna().sum())
        per_round = (ends["uplink_bytes"] / ends["round"]).mean(), (ends["downlink_bytes"] / ends["round"]).mean()
        rows.append(
            [
                setting,
                method,
                f"{per_round[0] / 1e3:.1f}",
                f"{per_round[1] / 1e3:.1f}",
                f"{reached} of {len(runs)}",
                estimate(runs["round"]).text(1),
                estimate(runs["uplink_bytes"] / 1e3).text(0),
                estimate(runs["downlink_bytes"] / 1e3).text(0),
                estimate(ends["test_metric"]).text(),
            ]
        )
    header = [
        "setting",
        "method",
        "uplink per round, kB",
        "downlink per round, kB",
        "runs that reach it",
        "rounds",
        "uplink until then, kB",
        "downlink until then, kB",
        "test score at the end",
    ]
    return _markdown(header, rows)


def _markdown(header: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"
