"""The page of a report: its head, its sections and their order.

`data` reads the folders, `curves`, `devices` and `dropout_map` make charts and tables, `html` and `plot` are what they
are made of; page.html, parts.html, style.css and script.js are the page itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from fedlodrop.report.curves import AXES, cost_charts, last_round, learning_chart, prediction_charts, solver_charts
from fedlodrop.report.data import SPLITS, Run, command, curve, load_runs, metric_names, natural
from fedlodrop.report.devices import device_part, waiting_table
from fedlodrop.report.dropout_map import MOST_CELLS
from fedlodrop.report.html import (
    MISSING,
    TEMPLATES,
    Chart,
    cut,
    details,
    drawn,
    esc,
    number,
    packed,
    packed_json,
    part,
    score,
    table,
    thinned,
)
from fedlodrop.report.plot import dash_key, run_key
from fedlodrop.report.summary import key_figures, status
from server_app.results import write_atomic

_MOST_ROWS = 300  # of a table over rounds
_MOST_FAILURES = 300
_NAMED = 10  # devices in a sentence

Part = tuple[str, list[Chart]]  # HTML, and the charts that have a place in it


def write_report(folders: Sequence[Path], target: Path) -> None:
    """Write the report of one run, or of several to compare, as one self-contained HTML file, atomically.

    Raises
    ------
    ReportError
        If a folder does not hold a run.
    """
    write_atomic(target, build_report(folders))


def build_report(folders: Sequence[Path], live: str = "") -> str:
    """Return the HTML text that `write_report` writes; ``live``, what `fedlodrop.report.live` shows, asks for news."""
    runs, here = load_runs(folders), Path(__file__).parent
    parts = [(key, title, *build(runs)) for key, (title, build) in _SECTIONS.items()]
    sections = [{"key": key, "title": title, "body": body} for key, title, body, _ in parts if body]
    return TEMPLATES.get_template("page.html").render(
        **_head(runs),
        names=", ".join(run.name for run in runs),
        several=len(runs) > 1,
        live=live,
        facts=runs[0].environment.get("facts") if len(runs) == 1 else None,
        warnings=[(run.name, text) for run in runs if (text := _warning(run))],
        sections=sections,
        legend=_legend(runs) if len(runs) > 1 else "",
        library=packed(get_plotlyjs()),
        figures=packed_json([chart.payload() for _, _, _, charts in parts for chart in charts]),
        style=(here / "style.css").read_text(encoding="utf-8"),
        script=(here / "script.js").read_text(encoding="utf-8"),
    )


def _head(runs: list[Run]) -> dict[str, Any]:
    """Return what stands at the top: of one run what it was and how far it came."""
    if len(runs) > 1:
        return {"title": f"{len(runs)} runs side by side"}
    run = runs[0]
    method, allocator, task = (
        run.summary.get(key) or run.setting(f"{key}.name") or "unknown" for key in ("strategy", "allocator", "task")
    )
    facts = (
        run.setting("model.name") and f"model {run.setting('model.name')}",
        run.devices() and f"{len(run.devices())} devices",
        run.setting("run.seed") is not None and f"seed {run.setting('run.seed')}",
        run.environment.get("started") and f"started {str(run.environment['started']).replace('T', ' ')}",
    )
    told = "".join(f", {fact}" for fact in facts if fact)
    title = f"{method} with allocator {allocator} on {task}"
    return {"title": title, "told": told, "finished": run.finished, "status": status(run)}


def _warning(run: Run) -> str:
    """Return what to know of a run before its figures are believed."""
    texts = [f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in map(str, run.summary.get("data_notes") or ())]
    if run.failure:
        texts.append(f"It ended early: {run.failure}")
    elif not run.finished:
        texts.append(
            "It has no summary.json: it is still going on or was stopped. Shown is what its finished rounds tell."
        )
    served = any(row["scheduled"] for record in run.rounds for row in record["devices"])
    if run.rounds and not served and not run.failure:
        texts.append("No device could take part in any round.")
    return " ".join(texts)


def _legend(runs: list[Run]) -> str:
    """Return the one legend of all charts that compare runs; unticking a run takes it out of them."""
    names = {str(k): run.name for k, run in enumerate(runs)}
    return part("controls", "Runs", "data-runs", "checkbox", names, names, {key: run_key(int(key)) for key in names})


def _learning(runs: list[Run]) -> Part:
    several, measures = len(runs) > 1, ["loss", *metric_names(runs)]
    made = [learning_chart(runs, measure, f"learning-{k}") for k, measure in enumerate(measures)]
    charts = [chart for chart in made if chart]
    tables = "".join(_curve_table(run, measures, several=several) for run in runs)
    if several and tables:
        tables = details("Tables of the learning curves", tables, css="tables")
    if not charts:
        return "<p>Nothing has been scored yet.</p>" + tables, []
    present = {split for chart in charts for split in chart.splits}
    # Four curves per run are too many to tell several runs apart: then only the test curve is shown at first.
    shown = {"eval"} if several and "eval" in present else present
    for chart in charts:
        for trace, split in zip(chart.data, chart.splits, strict=True):
            trace["visible"] = not split or split in shown
    keys = " ".join(chart.key for chart in charts)
    titles = {name: title for name, (title, _, _) in AXES.items()}
    splits = {key: words for key, words in SPLITS if key in present}
    samples = {key: dash_key(dash) if several else "" for dash, (key, _) in enumerate(SPLITS)}
    plain = dict.fromkeys(titles, "")
    axis = part("controls", "Horizontal axis", f'data-axis="{keys}"', "radio", titles, {"round"}, plain)
    curves = part("controls", "Curves", f'data-splits="{keys}"', "checkbox", splits, shown, samples)
    return f'<div class="controlrow">{axis}{curves}</div>{drawn(charts)}{tables}', charts


def _curve_table(run: Run, measures: list[str], *, several: bool) -> str:
    rows = curve(run)
    if not rows:
        return ""
    columns = {
        f"{words} {measure}": (split, measure)
        for measure in measures
        for split, words in SPLITS
        if any(measure in (row.get(split) or {}) for row in rows)
    }
    kept = thinned(len(rows), _MOST_ROWS)
    head = ("round", "time (s)", "energy (J)", "uploaded (MB)", "downloaded (MB)", "took part", *columns)
    body = [
        (
            row["round"],
            number(row["time_s"], 4),
            number(row["energy_j"], 4),
            number(row["upload_bytes"] / 1e6, 4),
            number(row["download_bytes"] / 1e6, 4),
            f"{row['served']}/{row['asked']}",
            *(score((row.get(split) or {}).get(measure)) for split, measure in columns.values()),
        )
        for row in (rows[k] for k in kept)
    ]
    more = f"; {len(kept)} of {len(rows)} rounds" if len(kept) < len(rows) else ""
    title = "Table of the learning curves" + (f" of {run.name}" if several else "")
    return details(title, table(f"Running totals and scores{more}", head, body))


def _over_rounds(
    draw: Callable[[list[Run]], list[Chart]], more: Callable[[list[Run]], str] = lambda runs: ""
) -> Callable[[list[Run]], Part]:
    """Return the builder of a section of charts over rounds, with ``more`` below them."""

    def build(runs: list[Run]) -> Part:
        if not last_round(runs):
            return "<p>No round has finished yet.</p>", []
        charts = draw(runs)
        return drawn(charts) + more(runs), charts

    return build


def _plans(runs: list[Run]) -> str:
    """Return the table of how the plans were found: one row per run, method, status and note."""
    counted = Counter(
        (run.name, str(plan["solver"]), str(plan.get("status", "")), "; ".join(plan.get("notes") or []))
        for run in runs
        for plan in (record["plan"] for record in run.rounds)
    )
    rows: list[tuple[Any, ...]] = [(*names, count, notes or MISSING) for (*names, notes), count in counted.items()]
    title, head = "How the plans were found", ("run", "method", "status", "rounds", "notes")
    if len(runs) == 1:  # one name needs no column
        return table(title, head[1:], [row[1:] for row in rows[:_MOST_ROWS]], words=(0, 1, 3))
    noted = sum(row[4] != MISSING for row in rows)
    return details(
        f"{title} ({noted or 'no'} rows with notes)", table(title, head, rows[:_MOST_ROWS], words=(0, 1, 2, 4))
    )


def _each(runs: list[Run], bodies: Sequence[str]) -> str:
    """Fold away one part per run under its name where there are several; what is the same for all is said once."""
    if len(set(bodies)) == 1:
        return bodies[0]
    return "".join(details(run.name, body, css="run") for run, body in zip(runs, bodies, strict=True))


def _one_by_one(tell: Callable[[Run], str]) -> Callable[[list[Run]], Part]:
    """Return the builder of a section without charts that tells of one run after the other."""
    return lambda runs: (_each(runs, [tell(run) for run in runs]), [])


def _devices(runs: list[Run]) -> Part:
    parts = [device_part(run, f"run-{k}", MOST_CELLS // len(runs)) for k, run in enumerate(runs)]
    return _each(runs, [text for text, _ in parts]), [chart for _, charts in parts for chart in charts]


def _failures(run: Run) -> str:
    found = [(record["round"], failure) for record in run.rounds for failure in record["failures"]]
    rows = [(r, f["device"] or "unknown device", f["kind"], f["message"]) for r, f in found[:_MOST_FAILURES]]
    title = f"Answers that were not used{cut(len(found), _MOST_FAILURES)}"
    none = "<p>No device failed in a finished round.</p>"
    body = table(title, ("round", "device", "kind", "message"), rows, words=(1, 2, 3)) if rows else none
    return body + _held_back(run)


def _held_back(run: Run) -> str:
    """Say whose answers counted less than they came: too long, or with too many examples announced."""
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


def _recipe(run: Run) -> str:
    environment = run.environment
    commit, again = environment.get("commit"), command(run)
    facts = [
        ("results", run.folder),
        ("commit", commit or "not recorded"),
        *((name, environment.get(key)) for name, key in (("source digest", "source"), ("seed", "seed"))),
        ("started", environment.get("started")),
        *((f"hardware: {key}", value) for key, value in (environment.get("hardware") or {}).items()),
        *((f"version: {key}", value) for key, value in (environment.get("versions") or {}).items()),
    ]
    lines = f"git checkout {commit}\n{again}" if commit and again else again
    return part("recipe", lines, facts, run.config_text or "config.yaml is missing")


def _answers(runs: list[Run]) -> Part:
    """What language models wrote to requests of the test set, before and after the training; empty for other runs."""
    parts = []
    for run in runs:
        found = run.summary.get("answers") or {}
        scores = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.get("scores", {}).items())
        rows = [[s["request"], s["expected"], s["before"], s["after"]] for s in found.get("samples", ())]
        if rows:
            caption = f"{run.name}: {scores} over {found['num_examples']} unseen requests"
            head = ("request", "expected", "before training", "after training")
            parts.append(table(caption, head, rows, words=range(4), css="all"))
    return "".join(parts), []


def _confusion(runs: list[Run]) -> Part:
    """How often each class of the test set was taken for which, in the last scored round; empty for other tasks."""
    parts = []
    for run in runs:
        counts, names = run.summary.get("confusion"), [str(name) for name in run.summary.get("label_names") or ()]
        if counts:
            rows = [(name, *row) for name, row in zip(names, counts, strict=True)]
            parts.append(table(f"{run.name}: rows are the true classes, columns what was answered", ("", *names), rows))
    body = "".join(parts)
    return (details("Confusion matrices", body, css="tables") if len(runs) > 1 and body else body), []


_SECTIONS: dict[str, tuple[str, Callable[[list[Run]], Part]]] = {
    "figures": ("Key figures", lambda runs: (key_figures(runs), [])),
    "learning": ("Learning curves", _learning),
    "confusion": ("What is taken for what", _confusion),
    "answers": ("Answers before and after", _answers),
    "prediction": ("Prediction and measurement", _over_rounds(prediction_charts)),
    "solver": ("Solver", _over_rounds(solver_charts, _plans)),
    "cost": ("Time and energy", _over_rounds(cost_charts)),
    "devices": ("Devices", _devices),
    "waiting": ("Devices that sat out", _one_by_one(waiting_table)),
    "failures": ("Failures", _one_by_one(_failures)),
    "reproduce": ("Configuration and reproduction", _one_by_one(_recipe)),
}
