"""The results page of studies, written from their files alone; page.md is its form."""

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from fedlodrop.study.paired_statistics import VIEWS, Verdict, claims, cost_of_target, effect, estimate, judge, view
from fedlodrop.study.plan import Analysis, Study
from fedlodrop.study.tables import WRITTEN, read_rounds_table
from server_app.results import write_atomic

_MOST_SETTINGS = 3  # of a claim, that are all shown at the top
DISTANCE, CORRELATION = 0.15, 0.8  # what a useful calibrated bound should reach
_METHODS = "setting | method | test score | − {0} | test loss | train loss | loss gap | gap vs {0}"
_COSTS = "setting | method | uplink per round, kB | downlink per round, kB | runs that reach it | rounds"
_OWN = "setting | method | mean score of the devices' models, own held-out examples | uplink kB per round | seeds"
_FITS = "task | best γ predicted | best γ measured | distance | rank correlation | distance, seed held out"

Table = tuple[str, str, list[list[Any]]]  # title, heads between bars, rows; one without rows is not shown
# How far a study is, its judged targets, tables, titles and names of pictures.
Section = tuple[str, list[Verdict], list[Table], list[tuple[str, str]]]


def write_page(path: Path, studies: Sequence[tuple[Study | Analysis, Path, str]]) -> None:
    """Write the Markdown page of studies, each with the folder of its tables and the command that made them.

    A line per claim stands at the top. A study whose folder has no tables is said to be missing.
    """
    lines, sections = [], []
    for study, folder, command in studies:
        section = _analysis(study, folder) if isinstance(study, Analysis) else _study(study, folder)
        state, verdicts, tables, pictures = section
        lines += [[claim, word, _shown(own), f"`{command}`"] for claim, word, own in claims(verdicts)]
        found = [(title, folder / name) for title, name in pictures if (folder / name).exists()]
        places = [(title, os.path.relpath(picture, path.parent)) for title, picture in found]
        sections.append((study, command, state, tables, places))
    form = jinja2.Template((Path(__file__).parent / "page.md").read_text(encoding="utf-8"), trim_blocks=True)
    write_atomic(path, form.render(claims=lines, sections=sections).rstrip() + "\n")


def _shown(verdicts: Sequence[Verdict]) -> str:
    """Return what was found: every setting's with its interval, or from the least to the largest."""
    if len(verdicts) <= _MOST_SETTINGS:
        return "; ".join(f"{verdict.shown()} ({verdict.setting})" for verdict in verdicts)
    means, met = sorted(verdict.found.mean for verdict in verdicts), sum(bool(verdict.met) for verdict in verdicts)
    return f"{means[0]:.4g} to {means[-1]:.4g}, {verdicts[0].limit} wanted: met in {met} of {len(verdicts)} settings"


def _judged(study: Study, rounds: pd.DataFrame) -> list[Verdict]:
    """Judge a study by its rounds; a target of a method or setting that they lack is not measured."""
    methods = set(rounds["method"])
    usable = [t for t in study.targets if {t["method"], t.get("reference", study.reference)} <= methods]
    nothing = [Verdict(t, "–", estimate([]), "–", None, sure=False) for t in study.targets if t not in usable]
    return judge(rounds, usable, study.reference) + nothing


def _study(study: Study, folder: Path) -> Section:
    if not (folder / "rounds.csv").exists():
        return "Not run yet.", [], [], []
    rounds, runs = read_rounds_table(folder / "rounds.csv"), pd.read_csv(folder / "runs.csv", dtype={"choice": str})
    state, name, verdicts = _state(study, rounds, runs), study.name, _judged(study, rounds)
    if rounds.empty:
        return state, verdicts, [], []
    views = ("fixed", "matched", "best", *(cost for cost in ("time", "energy", "bytes") if cost in study.figures))
    tables = [_targets(study, verdicts), *(_methods(study, rounds, each) for each in views)]
    if study.target_metric is not None:
        title = f"{name}: until the validation score reaches {study.target_metric:g}"
        heads = f"{_COSTS} | uplink until then, kB | downlink until then, kB | test score at the end"
        tables.append((title, heads, _costs(rounds, study.target_metric)))
    tuned = runs[(runs["phase"] == "final") & (runs["choice"].fillna("") != "")]
    chosen = tuned[["setting", "method", "choice"]].drop_duplicates()
    tables += [
        _written(study, runs),
        (f"{name}: personalised, not to be ranked with the others", _OWN, _personalised(runs)),
        (f"{name}: what the tuning chose", "setting | method | choice", chosen.to_numpy().tolist()),
    ]
    if (folder / "calibration.json").exists():
        tables.append(_calibration(json.loads((folder / "calibration.json").read_text())))
    pictures = [("Measured and predicted error", "calibration.png")]
    return state, verdicts, tables, pictures + [(study.title, f"{figure}.png") for figure in study.figures]


def _state(study: Study, rounds: pd.DataFrame, runs: pd.DataFrame) -> str:
    final = runs[runs["phase"] == "final"]
    finished, failed = (int((final["status"] == state).sum()) for state in ("finished", "failed"))
    planned = len(study.settings) * len(study.methods) * len(study.seeds)
    trials = int((runs["phase"] == "tuning").sum())
    text = "" if finished == planned else "**Incomplete.** "
    text += f"{finished} of {planned} planned runs are finished, {failed} failed"
    text += f"; {trials} tuning trials" if trials else ""
    text += f"; {runs['cpu_s'].sum() / 60:.0f} CPU minutes" if "cpu_s" in runs else ""
    seeds = sorted((setting, method, group["seed"].nunique()) for setting, method, group in _groups(rounds))
    fewer = [f"{setting} {method} {count}" for setting, method, count in seeds if count < len(study.seeds)]
    text += f". Fewer seeds than planned ({len(study.seeds)}): {', '.join(fewer)}" if fewer else ""
    return f"{text}."


def _analysis(study: Analysis, folder: Path) -> Section:
    if not (folder / "table.csv").exists():
        return "Not computed yet.", [], [], []
    table = pd.read_csv(folder / "table.csv")
    verdicts = judge(table, study.targets)
    measures = [name for name in table.columns if name not in ("setting", "seed")]
    rows = [[s, *(_of_any_size(own[m]) for m in measures)] for s, own in table.groupby("setting", sort=False)]
    found = (f"{study.name}: what was measured", " | ".join(["setting", *measures]), rows)
    return "", verdicts, [_targets(study, verdicts), found], [(study.title, "figure.png")]


def _of_any_size(values: "pd.Series[float]") -> str:
    found = estimate(values)
    return f"{found.mean:.3g}" + (f" [{found.low:.3g}, {found.high:.3g}]" if found.low < found.high else "")


def _targets(study: Study | Analysis, verdicts: Sequence[Verdict]) -> Table:
    rows = []
    for verdict in verdicts:
        word = {True: "met", False: "**missed**", None: "not measured"}[verdict.met]
        if verdict.met is not None and not verdict.sure:
            word += ", one seed: no evidence" if verdict.found.count == 1 else ", but the interval holds the limit"
        rows.append([verdict.target["text"], verdict.setting, verdict.shown(), verdict.limit, word])
    return f"{study.name}: targets", "target | setting | found | limit | verdict", rows


def _methods(study: Study, rounds: pd.DataFrame, name: str) -> Table:
    """Return the scores of every method in one view, and its effects against the reference, paired by seed."""
    rows, reference = [], study.reference
    which = rounds["method"]
    pairs = {method: view(rounds[which.isin([method, reference])], name) for method in which.unique()}
    for setting, method, _ in _groups(rounds):
        found, score, gap = partial(effect, pairs[method], setting, method, reference), "–", "–"
        if method != reference:
            score = found("test_metric", "difference").text()
            score = score if score.startswith(("-", "–")) else f"+{score}"
            gap = found("gap_loss", "relative").text(percent=True)
        columns = ("test_metric", "test_loss", "train_loss", "gap_loss", "round")
        metric, *losses, last = (found(column, "value") for column in columns)
        saved = found("uplink_adapter_bytes", "ratio")
        ends = f"{saved.mean:.3f}" if saved.count else "–", f"{last.mean:.1f}", metric.count
        rows.append([setting, method, metric.text(), score, *(loss.text() for loss in losses), gap, *ends])
    return f"{study.name}: {VIEWS[name]}", _METHODS.format(reference) + " | adapter uplink ratio | round | seeds", rows


def _costs(rounds: pd.DataFrame, target: float) -> list[list[Any]]:
    last, rows, ways = view(rounds, "fixed"), [], ("uplink_bytes", "downlink_bytes")
    for setting, method, runs in _groups(cost_of_target(rounds, target)):
        ends = last[(last["setting"] == setting) & (last["method"] == method)]
        per_round = [f"{(ends[name] / ends['round']).mean() / 1e3:.1f}" for name in ways]
        reached = f"{int(runs['round'].notna().sum())} of {len(runs)}"
        spent = [estimate(runs[name] / 1e3).text(0) for name in ways]
        score = estimate(ends["test_metric"]).text()
        rows.append([setting, method, *per_round, reached, estimate(runs["round"]).text(1), *spent, score])
    return rows


def _written(study: Study, runs: pd.DataFrame) -> Table:
    """Return how language models' written answers score at the end of the runs, and what the runs had cost by then."""
    scores, rows = [name for name in map(str, runs) if name.startswith(WRITTEN)], []
    finished = runs[(runs["phase"] == "final") & (runs["status"] == "finished")]
    there = bool(scores) and finished[scores[0]].notna().any()
    for setting, method, own in _groups(finished) if there else ():
        lead = effect(finished, setting, method, study.reference, scores[0], "difference").text()
        cost = [estimate(own[name]).text(0) for name in ("sim_time_s", "energy_j")]
        cost.append(estimate(own["uplink_bytes"] / 1e6).text(1))
        means = [estimate(own[name]).text() for name in scores]
        rows.append([setting, method, *means, "–" if method == study.reference else lead, *cost, len(own)])
    names = [name.removeprefix(WRITTEN).replace("_", " ") for name in scores]
    heads = ["setting", "method", *names, *(f"{name} − {study.reference}" for name in names[:1])]
    heads += ["simulated time, s", "simulated energy, J", "uplink, MB", "seeds"]
    return f"{study.name}: answers as they were written, after the last round", " | ".join(heads), rows


def _personalised(runs: pd.DataFrame) -> list[list[Any]]:
    """Return the methods whose devices keep models of their own: apart, because their score is no competitor's."""
    if "personalised_metric" not in runs:
        return []
    rows, finished = [], runs[(runs["phase"] == "final") & (runs["status"] == "finished")]
    for setting, method, group in _groups(finished[finished["personalised_metric"].notna()]):
        per_round = estimate(group["uplink_bytes"] / group["rounds"] / 1e3).text(1)
        rows.append([setting, method, estimate(group["personalised_metric"]).text(), per_round, len(group)])
    return rows


def _calibration(records: list[dict[str, Any]]) -> Table:
    rows = []
    for record in records:
        correlation, interval = record["rank_correlation"], record["predicted_rate_interval"]
        missed = ["distance"] * (record["distance"] > DISTANCE) + ["correlation"] * ((correlation or -1) < CORRELATION)
        verdict = f"**missed**: {' and '.join(missed)}" if missed else "met"
        verdict += " (one seed: no evidence)" if record["seeds"] == 1 else ""
        predicted = f"{record['predicted_rate']:.2f}" + (" [{:.2f}, {:.2f}]".format(*interval) if interval else "")
        names = "measured_rate", "distance", "rank_correlation", "held_out_distance", "held_out_rank_correlation"
        shown = ["–" if record[name] is None else f"{record[name]:.2f}" for name in names]
        rows.append([record["setting"], predicted, *shown, verdict])
    heads = f"{_FITS} | correlation, seed held out | within {DISTANCE:g} and at least {CORRELATION:g}"
    where = records[0]["view"] + (" rounds" if records[0]["view"] == "fixed" else "")
    return f"Calibrated bound ({where})", heads, rows


def _groups(points: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    return ((str(s), str(m), group) for (s, m), group in points.groupby(["setting", "method"], sort=False))
