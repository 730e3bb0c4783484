"""The key figures at the top of the report."""

from collections.abc import Sequence

from fedlodrop.report.data import Run, differing_settings
from fedlodrop.report.html import duration, number, part, score

_FEW = 4  # settings that have room beside the figures
Fact = tuple[str, str, str]  # name, value, note


def key_figures(runs: Sequence[Run]) -> str:
    """Return cards for one run; for several a table of their figures, and one of the settings in which they differ."""
    if len(runs) == 1:
        return part("cards", key_facts(runs[0]))
    differ = {
        key: ["null" if value is None else str(value) for value in v] for key, v in differing_settings(runs).items()
    }
    leading = differ if len(differ) <= _FEW else {}
    names = [run.name for run in runs]
    columns = {"run": names, **leading, **figures_of(runs)}
    settings = [(key, *values) for key, values in differ.items()]
    return part("key_figures", list(columns), zip(*columns.values(), strict=True), len(leading), names, settings)


def figures_of(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Return the key figures of several runs, a value per run, None where it has none."""
    found = [{name: value for name, value, _ in key_facts(run)} for run in runs]
    return {name: [figures.get(name) for figures in found] for figures in found for name in figures}


def key_facts(run: Run) -> list[Fact]:
    """Return how far a run got, its scores and its costs: name, value, note."""
    s, metric = run.summary, run.metric or "loss"
    final, best, own = s.get("final"), s.get("best"), s.get("personalised")
    facts = [("rounds", run.status.removeprefix("finished: ").removesuffix(" rounds"), "")]
    if run.initial:
        facts.append((f"test {metric}, before training", score(run.initial["eval"].get(metric)), ""))
    if final:
        facts.append((f"test {metric}, last round", score(final["eval"].get(metric)), f"round {final['round']}"))
    if best:
        validated = f"round {best['round']}; validation {score(best['validation'].get(metric))}"
        facts.append((f"test {metric}, best validated round", score(best["eval"].get(metric)), validated))
    if final:
        gap = f"{final['gap']['loss']:+.3f}"
        facts.append(("generalization gap in loss, last round", gap, "test − training sample"))
    if own:
        facts.append((f"{metric} of the devices' own models", score(own.get(metric)), "held-out examples, last round"))
    asked, served = s.get("devices_asked", 0), s.get("devices_scheduled", 0)
    out = "times asked, over all rounds" if served == asked else f"{asked - served} times one sat out"
    dense = 4 * s.get("adapter_parameters", 0) * s.get("devices_answered", 0)  # bytes
    share = 100 * s["uplink_adapter_bytes"] / dense if dense else None
    deadline = number(run.setting("budget.deadline_s"), 3, "s")
    memory = f"peak memory {s['peak_rss_mib']:.0f} MiB" if "peak_rss_mib" in s else "finished rounds only"
    return [
        *facts,
        ("uploaded", number(s["uplink_bytes"] / 1e6, 4, "MB"), "all devices and rounds"),
        ("adapter part of dense fp32", number(share, 2, "%"), "uploaded, from the devices that answered"),
        ("downloaded", number(s["downlink_bytes"] / 1e6, 4, "MB"), "all devices and rounds"),
        ("simulated time", duration(s.get("sim_time_s")), f"deadline {deadline} in each round"),
        ("simulated energy", number(s.get("energy_j"), 3, "J"), "all devices and rounds"),
        ("devices took part", f"{served} of {asked}", out),
        ("failures", str(s.get("failures", 0)), "answers that were not used"),
        ("wall time", duration(s.get("wall_s", s.get("train_wall_s"))), memory),
    ]
