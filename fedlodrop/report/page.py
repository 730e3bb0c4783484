"""The report of one run, or of several side by side: one HTML file that needs nothing else.

`data` reads the folders, `curves` and `devices` make charts and tables, `html`, `style` and
`script` are the page around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from fedlodrop.report.curves import (
    AXES,
    bound_charts,
    cost_charts,
    last_round,
    learning_chart,
    order_chart,
    solver_charts,
)
from fedlodrop.report.data import (
    SPLITS,
    Record,
    ReportError,
    Run,
    command,
    curve,
    load_runs,
    metric_names,
    natural,
)
from fedlodrop.report.devices import device_part, waiting_tables
from fedlodrop.report.dropout_map import MOST_CELLS
from fedlodrop.report.html import (
    MISSING,
    Chart,
    details,
    esc,
    number,
    packed,
    packed_json,
    score,
    section,
    table,
    thinned,
)
from fedlodrop.report.plot import dash_key, run_key
from fedlodrop.report.script import SCRIPT
from fedlodrop.report.style import CSS
from fedlodrop.report.summary import key_figures, status
from server_app.results import write_atomic

_MOST_ROWS = 300  # of a table over rounds
_MOST_FAILURES = 300
_NAMED = 10  # devices in a sentence
_PLANS = ("run", "method", "status", "rounds", "notes")

# Nothing may be loaded from anywhere, whatever a file that went into the page contains.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "form-action 'none'; base-uri 'none'"
)


def write_report(folders: Sequence[Path], target: Path) -> None:
    """Write the report of one or several runs as one self-contained HTML file, atomically.

    Parameters
    ----------
    folders : sequence of Path
        Run folders; several are compared.
    target : Path
        The HTML file; its folder must exist.

    Raises
    ------
    ReportError
        If a folder does not hold a run.
    """
    write_atomic(target, build_report(folders))


def build_report(folders: Sequence[Path]) -> str:
    """Return the HTML text that `write_report` writes."""
    runs = load_runs(folders)
    parts = [
        (_section("figures", key_figures(runs)), []),
        _learning(runs),
        _prediction(runs),
        _solver(runs),
        _cost(runs),
        _devices(runs),
    ]
    figures, *others = (text for text, _ in parts)
    body = figures + (_legend(runs) if len(runs) > 1 else "") + "".join(others)
    body += _waiting(runs) + _failures(runs) + _reproduce(runs)
    return _page(runs, body, [chart for _, charts in parts for chart in charts])


_SECTIONS = (
    ("figures", "Key figures"),
    ("learning", "Learning curves"),
    ("prediction", "Prediction and measurement"),
    ("solver", "Solver"),
    ("cost", "Time and energy"),
    ("devices", "Devices"),
    ("waiting", "Devices that sat out"),
    ("failures", "Failures"),
    ("reproduce", "Configuration and reproduction"),
)
_TITLES = dict(_SECTIONS)


def _section(key: str, body: str) -> str:
    return section(key, _TITLES[key], body)


def _page(runs: list[Run], body: str, charts: list[Chart]) -> str:
    names = ", ".join(run.name for run in runs)
    kind = ' class="compare"' if len(runs) > 1 else ""
    links = "".join(f'<li><a href="#{key}">{esc(title)}</a></li>' for key, title in _SECTIONS)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>fedlodrop: {esc(names)}</title><style>{CSS}</style></head>\n'
        f'<body{kind}><a class="skip" href="#main">Skip to the content</a>\n'
        f"<header>{_head(runs)}</header>\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="main">'
        "<noscript><p class=warning>The charts need JavaScript; the tables hold their numbers.</p></noscript>\n"
        f"{body}</main>\n<footer><p>Made by fedlodrop from the files of the run; charts by plotly.js (MIT licence), embedded. "
        "This page loads nothing from anywhere.</p></footer>\n"
        f'<script type="text/plain" id="plotly-gz">{packed(get_plotlyjs())}</script>\n'
        f'<script type="text/plain" id="figures-gz">{packed_json([chart.payload() for chart in charts])}</script>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _head(runs: list[Run]) -> str:
    if len(runs) > 1:
        title, lead = (
            f"{len(runs)} runs side by side",
            "Every run has one colour and one mark in all charts that compare them.",
        )
    else:
        summary, run = runs[0].summary, runs[0]
        method, allocator, task = (
            summary.get(key) or run.setting(f"{key}.name") or "unknown" for key in ("strategy", "allocator", "task")
        )
        title = f"{method} with allocator {allocator} on {task}"
        state = "" if run.finished else " open"
        facts = (
            run.setting("model.name") and f"model {run.setting('model.name')}",
            run.devices() and f"{len(run.devices())} devices",
            run.setting("run.seed") is not None and f"seed {run.setting('run.seed')}",
            run.environment.get("started") and f"started {str(run.environment['started']).replace('T', ' ')}",
        )
        told = esc("".join(f", {fact}" for fact in facts if fact))
        lead = f'Run <b>{esc(run.name)}</b>{told} · <span class="status{state}">{esc(status(run))}</span>'
    warnings = "".join(_warning(run, several=len(runs) > 1) for run in runs)
    return f'<h1>{esc(title)}</h1><p class="lead">{lead}</p>{warnings}'


def _warning(run: Run, *, several: bool) -> str:
    texts = [f"{note[0].upper()}{note[1:]}." for note in run.summary.get("data_notes", [])]
    if run.failure:
        texts.append(f"It ended early: {run.failure}")
    elif not run.finished:
        texts.append(
            "It has no summary.json: it is still going on or was stopped. Shown is what its finished rounds tell."
        )
    if (
        not run.failure
        and run.rounds
        and not any(row["scheduled"] for record in run.rounds for row in record["devices"])
    ):
        texts.append("No device could take part in any round.")
    texts += [f"{str(note).rstrip('.')}." for note in run.summary.get("data_notes") or []]
    name = f"<b>{esc(run.name)}</b>: " if several else ""
    return f'<p class="warning">{name}{esc(" ".join(texts))}</p>' if texts else ""


def _learning(runs: list[Run]) -> tuple[str, list[Chart]]:
    measures = ["loss", *metric_names(runs)]
    made = [learning_chart(runs, measure, f"learning-{k}") for k, measure in enumerate(measures)]
    charts = [chart for chart in made if chart]
    tables = "".join(_curve_table(run, measures, several=len(runs) > 1) for run in runs)
    if len(runs) > 1:
        tables = details("Tables of the learning curves", tables, css="tables") if tables else ""
    if not charts:
        return _section("learning", "<p>Nothing has been scored yet.</p>" + tables), []
    keys = " ".join(chart.key for chart in charts)
    titles = [(name, title) for name, (title, _, _) in AXES.items()]
    axis = _controls("Horizontal axis", f'data-axis="{keys}"', "radio", titles, {"round"})
    present = {split for chart in charts for split in chart.splits}
    splits = [(key, words) for key, words in SPLITS if key in present]
    # Four curves per run are too many to tell several runs apart: then only the test curve is shown at first.
    shown = present if len(runs) == 1 or "eval" not in present else {"eval"}
    samples = {key: dash_key(dash, "") for dash, (key, _) in enumerate(SPLITS)} if len(runs) > 1 else {}
    curves = _controls("Curves", f'data-splits="{keys}"', "checkbox", splits, shown, samples)
    for chart in charts:
        for trace, split in zip(chart.data, chart.splits, strict=True):
            trace["visible"] = not split or split in shown
    body = f'<div class="controlrow">{axis}{curves}</div>{_drawn(charts)}{tables}'
    return _section("learning", body), charts


def _legend(runs: list[Run]) -> str:
    """Return the one legend of all charts that compare runs; unticking a run takes it out of them."""
    keys = [str(k) for k in range(len(runs))]
    names, samples = zip(keys, (run.name for run in runs), strict=True), {key: run_key(int(key)) for key in keys}
    return _controls("Runs", "data-runs", "checkbox", names, set(keys), samples)


def _controls(
    legend: str,
    data: str,
    kind: str,
    choices: Iterable[tuple[str, str]],
    chosen: set[str],
    samples: dict[str, str] | None = None,
) -> str:
    def box(key: str, words: str) -> str:
        state, sample = " checked" if key in chosen else "", (samples or {}).get(key, "")
        return f'<label><input type="{kind}" name="{esc(legend)}" value="{key}"{state}>{sample}{esc(words)}</label>'

    boxes = "".join(box(key, words) for key, words in choices)
    return f'<fieldset class="controls" {data}><legend>{esc(legend)}</legend>{boxes}</fieldset>'


def _curve_table(run: Run, measures: list[str], *, several: bool) -> str:
    rows = curve(run)
    if not rows:
        return ""
    columns = [
        (split, measure, f"{words} {measure}")
        for measure in measures
        for split, words in SPLITS
        if any(measure in (row.get(split) or {}) for row in rows)
    ]
    kept = thinned(len(rows), _MOST_ROWS)
    head = (
        "round",
        "time (s)",
        "energy (J)",
        "uploaded (MB)",
        "downloaded (MB)",
        "took part",
        *(name for _, _, name in columns),
    )
    body = [
        (
            row["round"],
            number(row["time_s"], 4),
            number(row["energy_j"], 4),
            number(row["upload_bytes"] / 1e6, 4),
            number(row["download_bytes"] / 1e6, 4),
            f"{row['served']}/{row['asked']}",
            *(score((row.get(split) or {}).get(measure)) for split, measure, _ in columns),
        )
        for row in (rows[k] for k in kept)
    ]
    more = f"; {len(kept)} of {len(rows)} rounds" if len(kept) < len(rows) else ""
    title = f"Table of the learning curves of {run.name}" if several else "Table of the learning curves"
    return details(title, table(f"Running totals and scores{more}", head, body))


def _prediction(runs: list[Run]) -> tuple[str, list[Chart]]:
    if not last_round(runs):
        return _section("prediction", "<p>No round has finished yet.</p>"), []
    charts = [*bound_charts(runs), *([order] if (order := order_chart(runs)) else [])]
    return _section("prediction", _drawn(charts)), charts


def _drawn(charts: Sequence[Chart]) -> str:
    return f'<div class="charts">{"".join(chart.html() for chart in charts)}</div>'


def _solver(runs: list[Run]) -> tuple[str, list[Chart]]:
    if not last_round(runs):
        return _section("solver", "<p>No round has finished yet.</p>"), []
    charts = solver_charts(runs)
    counted: dict[tuple[str, ...], int] = {}
    for run in runs:
        for record in run.rounds:
            plan = record["plan"]
            status = str(plan.get("status", "")) + (", verified" if plan.get("verified") else "")
            key = (run.name, str(plan["solver"]), status, "; ".join(plan.get("notes") or []))
            counted[key] = counted.get(key, 0) + 1
    rows = [(name, solver, status, count, notes or MISSING) for (name, solver, status, notes), count in counted.items()]
    if len(runs) == 1:  # one name needs no column
        found = table("How the plans were found", _PLANS[1:], [row[1:] for row in rows[:_MOST_ROWS]], words=(0, 1, 3))
    else:
        found = table("How the plans were found", _PLANS, rows[:_MOST_ROWS], words=(0, 1, 2, 4))
        noted = sum(row[4] != MISSING for row in rows)
        found = details(f"How the plans were found ({noted or 'no'} rows with notes)", found)
    return _section("solver", _drawn(charts) + found), charts


def _cost(runs: list[Run]) -> tuple[str, list[Chart]]:
    if not last_round(runs):
        return _section("cost", "<p>No round has finished yet.</p>"), []
    charts = cost_charts(runs)
    return _section("cost", _drawn(charts)), charts


def _each(runs: list[Run], bodies: Sequence[str]) -> str:
    """Fold away one part per run under the run's name where there are several; what is the same for all is said once."""
    if len(set(bodies)) == 1:
        return bodies[0]
    return "".join(details(run.name, body, css="run") for run, body in zip(runs, bodies, strict=True))


def _devices(runs: list[Run]) -> tuple[str, list[Chart]]:
    parts = [device_part(run, f"run-{k}", MOST_CELLS // len(runs)) for k, run in enumerate(runs)]
    return _section("devices", _each(runs, [text for text, _ in parts])), [
        chart for _, charts in parts for chart in charts
    ]


def _waiting(runs: list[Run]) -> str:
    return _section("waiting", _each(runs, [waiting_tables(run) for run in runs]))


def _failures(runs: list[Run]) -> str:
    bodies = []
    for run in runs:
        found = [(record["round"], failure) for record in run.rounds for failure in record["failures"]]
        rows = [(r, f["device"] or "unknown device", f["kind"], f["message"]) for r, f in found[:_MOST_FAILURES]]
        more = f"; the first {_MOST_FAILURES} of {len(found)}" if len(found) > _MOST_FAILURES else ""
        head = ("round", "device", "kind", "message")
        body = (
            table(f"Answers that were not used{more}", head, rows, words=(1, 2, 3))
            if rows
            else "<p>No device failed in a finished round.</p>"
        )
        bodies.append(body + _held_back(run))
    return _section("failures", _each(runs, bodies))


def _held_back(run: Run) -> str:
    """Say whose answers counted less than they came: longer than the round allows, or with too many examples announced."""
    said = []
    for key, words in (
        ("clipped", "longer than the limit of their round and scaled down"),
        ("capped", "weighted less because their devices announced too many examples"),
    ):
        devices = [str(row["device"]) for record in run.rounds for row in record.get(key) or ()]
        if devices:
            names = sorted(set(devices), key=natural)
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            said.append(f"Answers {words}: {len(devices)} ({', '.join(names[:_NAMED])}{more}).")
    return f'<p class="note">{esc(" ".join(said))}</p>' if said else ""


def _reproduce(runs: list[Run]) -> str:
    return _section("reproduce", _each(runs, [_recipe(run) for run in runs]))


def _recipe(run: Run) -> str:
    environment: Record = run.environment
    commit, again = environment.get("commit"), command(run)
    lines = ([f"git checkout {commit}"] if commit else []) + ([again] if again else [])
    how = (
        f'<pre class="command" tabindex="0" aria-label="Commands that repeat the run">{esc(chr(10).join(lines))}</pre>'
    )
    facts = [
        ("results", run.folder),
        ("commit", commit or "not recorded"),
        ("source digest", environment.get("source")),
        ("seed", environment.get("seed")),
        ("started", environment.get("started")),
        *((f"hardware: {key}", value) for key, value in (environment.get("hardware") or {}).items()),
        *((f"version: {key}", value) for key, value in (environment.get("versions") or {}).items()),
    ]
    config = f'<pre tabindex="0" aria-label="config.yaml">{esc(run.config_text or "config.yaml is missing")}</pre>'
    return (
        (
            "<p>To repeat this run, with the same code, packages and data:</p>" + how
            if again
            else "<p>How it was started is unknown.</p>"
        )
        + details("Environment", table("Environment", ("what", "value"), facts, words=(0, 1)))
        + details("Resolved configuration (config.yaml)", config)
    )


__all__ = ["ReportError", "build_report", "write_report"]
