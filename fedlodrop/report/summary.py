"""The key figures at the top of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedlodrop.report.data import Run, dense_share, differing_settings
from fedlodrop.report.html import details, duration, megabytes, number, part, percent, score, table

_FEW = 4  # settings that have room beside the figures


def status(run: Run) -> str:
    """Say how far a run got."""
    done, planned = run.summary.get("rounds_done", 0), run.setting("run.num_rounds")
    rounds = f"{done} of {planned} rounds" if planned else f"{done} rounds"
    return f"{'finished' if run.finished else 'unfinished'}: {rounds}"


def key_figures(runs: Sequence[Run]) -> str:
    """Return cards for one run; for several a table of their figures, and one of the settings in which they differ."""
    if len(runs) == 1:
        return part("cards", _facts(runs[0]))
    figures = [figures_of(run) for run in runs]
    differ = differing_settings(runs)
    leading = differ if len(differ) <= _FEW else {}
    names = list(dict.fromkeys(name for figure in figures for name in figure))
    head = ("run", *leading, *names)
    rows = [
        (run.name, *(_setting(values[k]) for values in leading.values()), *(figures[k].get(name) for name in names))
        for k, run in enumerate(runs)
    ]
    body = table("Key figures of all runs, and what differs", head, rows, words=range(1 + len(leading)), css="all")
    if not differ:
        return body + "<p>The configurations are identical.</p>"
    rows = [(key, *(_setting(value) for value in values)) for key, values in differ.items()]
    head = ("setting", *(run.name for run in runs))
    what = table("Settings in which the runs differ", head, rows, words=range(len(head)), css="all")
    return body if leading else body + details(f"Settings in which the runs differ ({len(rows)})", what)


def figures_of(run: Run) -> dict[str, str]:
    """Return the key figures of one of several runs; what the cards say in small print gets a row of its own."""
    metric = run.metric or "loss"
    column = {"rounds": status(run).removeprefix("finished: ").removesuffix(" rounds")}
    if run.initial:
        column[f"test {metric}, before training"] = score(run.initial["eval"].get(metric))
    for name, value, _ in _facts(run):
        column[name] = value
        if name == "uploaded":
            column["adapter part of dense fp32"] = percent(dense_share(run.summary))
    return column


def _setting(value: Any) -> str:
    return "null" if value is None else str(value)


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """Return (name, value, note) of the key figures."""
    s, rounds = run.summary, run.summary.get("rounds_done", 0)
    dense = dense_share(s)
    share = f"adapter part: {percent(dense)} of dense fp32 from the same devices" if dense is not None else ""
    asked, served = s.get("devices_asked", 0), s.get("devices_scheduled", 0)
    out = "times asked, over all rounds" if served == asked else f"{asked - served} times one sat out"
    deadline = number(run.setting("budget.deadline_s"), 3, "s")
    memory = f"peak memory {s['peak_rss_mib']:.0f} MiB" if "peak_rss_mib" in s else "finished rounds only"
    return [
        *_scores(run),
        ("uploaded", megabytes(s.get("uplink_bytes")), share),
        ("downloaded", megabytes(s.get("downlink_bytes")), "all devices and rounds"),
        ("simulated time", duration(s.get("sim_time_s")), f"{rounds} rounds, deadline {deadline} each"),
        ("simulated energy", number(s.get("energy_j"), 3, "J"), "all devices and rounds"),
        ("devices took part", f"{served} of {asked}", out),
        ("failures", str(s.get("failures", 0)), "answers that were not used"),
        ("wall time", duration(s.get("wall_s", s.get("train_wall_s"))), memory),
    ]


def _scores(run: Run) -> list[tuple[str, str, str]]:
    """Return the key figures that a run without an evaluated round does not have."""
    metric, final, best = run.metric or "loss", run.summary.get("final"), run.summary.get("best")
    facts = []
    if final:
        before = f"; before training {score(run.initial['eval'].get(metric))}" if run.initial else ""
        last = score(final["eval"].get(metric))
        facts.append((f"test {metric}, last round", last, f"round {final['round']}{before}"))
    if best:
        validated = f"round {best['round']}; validation {score(best['validation'].get(metric))}"
        facts.append((f"test {metric}, best validated round", score(best["eval"].get(metric)), validated))
    if final:
        gap = f"{final['gap']['loss']:+.3f}"
        facts.append(("generalization gap in loss, last round", gap, "test − training sample"))
    return facts
