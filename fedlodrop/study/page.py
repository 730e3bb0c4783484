"""The results page of studies: written from their files alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedlodrop.study.analyses.plan import Analysis
from fedlodrop.study.compare import chosen_values
from fedlodrop.study.comparison import (
    VIEWS,
    Verdict,
    claims,
    cost_of_target,
    effect,
    estimate,
    judge,
    judge_table,
    pair_view,
    view,
)
from fedlodrop.study.plan import Study
from fedlodrop.study.tables import WRITTEN, read_rounds_table
from server_app.results import write_atomic

_MOST_SETTINGS = 3  # of a claim, that are all shown at the top
DISTANCE, CORRELATION = 0.15, 0.8  # what a useful calibrated bound should reach

_INTRODUCTION = """# Results

Every number below was computed from the tables in `studies/tables/` by `fedlodrop compare STUDY.yaml --no-run --page
PAGE`; nothing here is typed by hand but the questions and the remarks, which stand in the study files. Brackets are 95
% intervals (Student's t) over seeds; effects are paired by seed. "Test" data were never used to choose anything:
learning rates and rounds are chosen on a validation split of the training data. Scores are the task's own (accuracy
unless said otherwise); the gap is test − train loss on a fixed sample of the training data. Times and energies are
those of the simulated radio and devices.

"""

_CLAIMS = """Holds: the target, fixed before the runs, is met with the whole 95 % interval (or in every seed, where a
proof says so) in every setting that the claim names. Refuted: missed with the whole interval in one. Undecided: the
rest.
"""


def write_page(path: Path, studies: Sequence[tuple[Study | Analysis, Path, str]]) -> None:
    """Write the Markdown page of studies, each with the folder of its tables and the command that made them.

    A line per claim stands at the top. A study whose folder has no tables is said to be missing.
    """
    lines, sections = [], []
    for study, folder, command in studies:
        verdicts = _verdicts(study, folder)
        lines += [[c, word, _shown(own), f"`{command}`"] for c, word, own in claims(verdicts)]
        sections.append(_section(study, verdicts, folder, command, path.parent))
    top = ["## Claims\n", _CLAIMS, _markdown("claim | verdict | found | command", lines)] if lines else []
    write_atomic(path, _INTRODUCTION + "\n".join([*top, *sections]))


def _shown(verdicts: Sequence[Verdict]) -> str:
    """Return what was found: every setting's with its interval, or from the least to the largest."""
    if len(verdicts) <= _MOST_SETTINGS:
        return "; ".join(f"{verdict.shown()} ({verdict.setting})" for verdict in verdicts)
    means, met = sorted(verdict.found.mean for verdict in verdicts), sum(bool(verdict.met) for verdict in verdicts)
    return f"{means[0]:.4g} to {means[-1]:.4g}, {verdicts[0].limit} wanted: met in {met} of {len(verdicts)} settings"


def _verdicts(study: Study | Analysis, folder: Path) -> list[Verdict]:
    """Judge a study by its tables; empty where there are none."""
    if isinstance(study, Analysis):
        path = folder / "table.csv"
        return judge_table(pd.read_csv(path), study.targets) if path.exists() else []
    if not (folder / "rounds.csv").exists():
        return []
    rounds = read_rounds_table(folder / "rounds.csv")
    present, methods = sorted(set(rounds["setting"])), set(rounds["method"])
    usable = [t for t in study.targets if {t["method"], t.get("reference", study.reference)} <= methods]
    here = [{**t, "settings": [s for s in t.get("settings") or present if s in present]} for t in usable]
    missing = [t for t in study.targets if t not in usable]
    nothing = [Verdict(t["text"], "–", estimate([]), "–", None, False, claim=t.get("claim")) for t in missing]
    return judge(rounds, here, study.reference) + nothing


def _section(study: Study | Analysis, verdicts: Sequence[Verdict], folder: Path, command: str, base: Path) -> str:
    parts = [f"## {study.title}\n", study.question + "\n", f"```\n{command}\n```\n"]
    if isinstance(study, Analysis):
        return "\n".join(parts + _analysis(study, verdicts, folder, base))
    if not (folder / "rounds.csv").exists():
        return "\n".join([*parts, "Not run yet.\n"])
    rounds, runs = read_rounds_table(folder / "rounds.csv"), pd.read_csv(folder / "runs.csv", dtype={"choice": str})
    parts.append(_state(study, rounds, runs))
    if rounds.empty:
        return "\n".join(parts)
    parts += _targets(study, verdicts)
    for name in ("fixed", "matched", "best", *(name for name in ("time", "energy") if name in study.figures)):
        parts += [f"### {study.name}: {VIEWS[name]}\n", _methods(rounds, name, study.reference)]
    if study.target_metric is not None:
        title = f"### {study.name}: until the validation score reaches {study.target_metric:g}\n"
        parts += [title, _costs(rounds, study.target_metric)]
    parts += _written(study, runs)
    parts += _personalised(study, runs)
    chosen = chosen_values(runs)
    if len(chosen):
        table = _markdown("setting | method | choice", chosen.to_numpy().tolist())
        parts += [f"### {study.name}: what the tuning chose\n", table]
    parts += _calibration(folder, base)
    names = [f"{name}.png" for name in study.figures if (folder / f"{name}.png").exists()]
    parts += [f"![{study.title}]({os.path.relpath(folder / name, base)})\n" for name in names]
    if study.notes:
        parts += ["Remarks. " + study.notes + "\n"]
    return "\n".join(parts)


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
        listed = [f"{' '.join(place)} {count}" for place, count in fewer.to_dict().items()]  # type: ignore[arg-type]
        text += ", ".join(listed)
    return text + ".\n"


def _analysis(study: Analysis, verdicts: Sequence[Verdict], folder: Path, base: Path) -> list[str]:
    if not (folder / "table.csv").exists():
        return ["Not computed yet.\n"]
    table = pd.read_csv(folder / "table.csv")
    measures = [name for name in table.columns if name not in ("setting", "seed")]
    rows = [[s, *(_of_any_size(own[m]) for m in measures)] for s, own in table.groupby("setting", sort=False)]
    parts = [*_targets(study, verdicts), f"### {study.name}: what was measured\n"]
    parts.append(_markdown(" | ".join(["setting", *measures]), rows))
    if (folder / "figure.png").exists():
        parts.append(f"![{study.title}]({os.path.relpath(folder / 'figure.png', base)})\n")
    return parts + ([f"Remarks. {study.notes}\n"] if study.notes else [])


def _of_any_size(values: pd.Series[float]) -> str:
    """Return mean and interval with three figures each."""
    found = estimate(values)
    return f"{found.mean:.3g}" + (f" [{found.low:.3g}, {found.high:.3g}]" if found.low < found.high else "")


def _targets(study: Study | Analysis, verdicts: Sequence[Verdict]) -> list[str]:
    rows = []
    for verdict in verdicts:
        word = {True: "met", False: "**missed**", None: "not measured"}[verdict.met]
        if verdict.met is not None and not verdict.sure:
            word += ", one seed: no evidence" if verdict.found.count == 1 else ", but the interval holds the limit"
        rows.append([verdict.text, verdict.setting, verdict.shown(), verdict.limit, word])
    header = "target | setting | found | limit | verdict"
    return [f"### {study.name}: targets\n", _markdown(header, rows)] if rows else []


def _methods(rounds: pd.DataFrame, name: str, reference: str) -> str:
    """Return the scores of every method in one view, and its effects against the reference, paired by seed."""
    rows = []
    pairs = {method: pair_view(rounds, name, method, reference) for method in rounds["method"].unique()}
    for setting, method, _ in _groups(rounds):
        points = pairs[method]
        runs = points[(points["setting"] == setting) & (points["method"] == method)]
        saved = effect(points, setting, method, reference, "uplink_adapter_bytes", "ratio")
        score = gap = "–"
        if method != reference:
            score = effect(points, setting, method, reference, "test_metric", "difference").text()
            score = score if score.startswith(("-", "–")) else f"+{score}"
            gap = effect(points, setting, method, reference, "gap_loss", "relative").text(percent=True)
        metric, test, train, own_gap = (
            estimate(runs[column]).text() for column in ("test_metric", "test_loss", "train_loss", "gap_loss")
        )
        ratio = f"{saved.mean:.3f}" if saved.count else "–"
        last = f"{runs['round'].mean():.1f}", int(runs["test_metric"].notna().sum())
        rows.append([setting, method, metric, score, test, train, own_gap, gap, ratio, *last])
    header = f"setting | method | test score | − {reference} | test loss | train loss | loss gap | gap vs {reference}"
    return _markdown(header + " | adapter uplink ratio | round | seeds", rows)


def _costs(rounds: pd.DataFrame, target: float) -> str:
    """Return what every method has spent when its validation score first reaches the target."""
    last = view(rounds, "fixed")
    rows = []
    for setting, method, runs in _groups(cost_of_target(rounds, target)):
        ends = last[(last["setting"] == setting) & (last["method"] == method)]
        per_round = [f"{(ends[name] / ends['round']).mean() / 1e3:.1f}" for name in ("uplink_bytes", "downlink_bytes")]
        reached = f"{int(runs['round'].notna().sum())} of {len(runs)}"
        spent = [estimate(runs[name] / 1e3).text(0) for name in ("uplink_bytes", "downlink_bytes")]
        score = estimate(ends["test_metric"]).text()
        rows.append([setting, method, *per_round, reached, estimate(runs["round"]).text(1), *spent, score])
    header = "setting | method | uplink per round, kB | downlink per round, kB | runs that reach it | rounds"
    return _markdown(header + " | uplink until then, kB | downlink until then, kB | test score at the end", rows)


def _written(study: Study, runs: pd.DataFrame) -> list[str]:
    """Return how language models' written answers score at the end of the runs, and what the runs had cost by then."""
    scores = [name for name in runs if name.startswith(WRITTEN)]
    finished = runs[(runs["phase"] == "final") & (runs["status"] == "finished")]
    if not scores or finished[scores[0]].isna().all():
        return []
    rows = []
    for setting, method, own in _groups(finished):
        lead = effect(finished, setting, method, study.reference, scores[0], "difference").text()
        cost = [estimate(own[name]).text(0) for name in ("sim_time_s", "energy_j")]
        cost.append(estimate(own["uplink_bytes"] / 1e6).text(1))
        means = [estimate(own[name]).text() for name in scores]
        rows.append([setting, method, *means, "–" if method == study.reference else lead, *cost, len(own)])
    names = [name.removeprefix(WRITTEN).replace("_", " ") for name in scores]
    header = ["setting", "method", *names, f"{names[0]} − {study.reference}"]
    header += ["simulated time, s", "simulated energy, J", "uplink, MB", "seeds"]
    return [
        f"### {study.name}: answers as they were written, after the last round\n",
        _markdown(" | ".join(header), rows),
    ]


def _personalised(study: Study, runs: pd.DataFrame) -> list[str]:
    """Return the methods whose devices keep models of their own: apart, because their score is no competitor's."""
    finished = runs[(runs["phase"] == "final") & (runs["status"] == "finished")]
    if "personalised_metric" not in finished or finished["personalised_metric"].isna().all():
        return []
    rows = []
    for setting, method, group in _groups(finished[finished["personalised_metric"].notna()]):
        per_round = estimate(group["uplink_bytes"] / group["rounds"] / 1e3).text(1)
        rows.append([setting, method, estimate(group["personalised_metric"]).text(), per_round, len(group)])
    header = "setting | method | mean score of the devices' models, own held-out examples | uplink kB per round | seeds"
    return [f"### {study.name}: personalised, not to be ranked with the others\n", _markdown(header, rows)]


def _calibration(folder: Path, base: Path) -> list[str]:
    """Return what ``calibration.json`` says; nothing where there is no such file."""
    path = folder / "calibration.json"
    if not path.exists():
        return []
    records: list[dict[str, Any]] = json.loads(path.read_text())
    header = "task | best γ predicted | best γ measured | distance | rank correlation | distance, seed held out"
    header += f" | correlation, seed held out | within {DISTANCE:g} and at least {CORRELATION:g}"
    where = records[0]["view"] + (" rounds" if records[0]["view"] == "fixed" else "")
    picture = f"![Measured and predicted error]({os.path.relpath(folder / 'calibration.png', base)})\n"
    return [f"### Calibrated bound ({where})\n", _markdown(header, [_fit(record) for record in records]), picture]


def _fit(record: dict[str, Any]) -> list[str]:
    correlation, interval = record["rank_correlation"], record["predicted_rate_interval"]
    reached = {"distance": record["distance"] <= DISTANCE, "correlation": (correlation or -1) >= CORRELATION}
    missed = [word for word, good in reached.items() if not good]
    verdict = f"**missed**: {' and '.join(missed)}" if missed else "met"
    verdict += " (one seed: no evidence)" if record["seeds"] == 1 else ""
    predicted = f"{record['predicted_rate']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
    held_out = record["held_out_distance"], record["held_out_rank_correlation"]
    numbers = [f"{record['measured_rate']:.2f}", f"{record['distance']:.2f}"]
    numbers += ["–" if value is None else f"{value:.2f}" for value in (correlation, *held_out)]
    return [record["setting"], predicted, *numbers, verdict]


def _groups(points: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    pairs = points[["setting", "method"]].drop_duplicates().itertuples(index=False)
    return ((s, m, points[(points["setting"] == s) & (points["method"] == m)]) for s, m in pairs)


def _markdown(header: str, rows: list[list[Any]]) -> str:
    line = "| --- " * (header.count(" | ") + 1) + "|"
    return "\n".join([f"| {header} |", line, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"
