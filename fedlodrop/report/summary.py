"""The key figures at the top of the report."""

from collections.abc import Sequence

from fedlodrop.report.data import Run, dense_share, differing_settings
from fedlodrop.report.html import duration, megabytes, number, part, percent, score

_FEW = 4  # settings that have room beside the figures
Fact = tuple[str, str, str]  # name, value, note


def key_figures(runs: Sequence[Run]) -> str:
    """Return cards for one run; for several a table of their figures, and one of the settings in which they differ."""
    if len(runs) == 1:
        return part("cards", _facts(runs[0]))
    figures = figures_of(runs)
    differ = {
        key: ["null" if value is None else str(value) for value in v] for key, v in differing_settings(runs).items()
    }
    leading = differ if len(differ) <= _FEW else {}
    columns = {"run": [run.name for run in runs], **leading, **figures}
    settings = [(key, *values) for key, values in differ.items()]
    return part(
        "key_figures", list(columns), zip(*columns.values(), strict=True), len(leading), columns["run"], settings
    )


def figures_of(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Return the key figures of several runs, a value per run, None where it has none."""
    found = [_figures(run) for run in runs]
    return {name: [figures.get(name) for figures in found] for figures in found for name in figures}


def _figures(run: Run) -> dict[str, str]:
    """Return the key figures of one of several runs; what the cards say in small print gets a row of its own."""
    metric = run.metric or "loss"
    column = {"rounds": run.status.removeprefix("finished: ").removesuffix(" rounds")}
    if run.initial:
        column[f"test {metric}, before training"] = score(run.initial["eval"].get(metric))
    for name, value, _ in _facts(run):
        column[name] = value
        if name == "uploaded":
            column["adapter part of dense fp32"] = percent(dense_share(run.summary))
    return column


def _facts(run: Run) -> list[Fact]:
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


def _scores(run: Run) -> list[Fact]:
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
