"""The page of a report: its sections and their order.

`data` reads the folders, `curves` and `devices` make charts and tables, `html` and `plot` are what they
are made of; page.html, parts.html, style.css, script.js and charts.json are the page itself.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from fedlodrop.report import data
from fedlodrop.report.curves import AXES, cost_charts, last_round, learning_chart, prediction_charts, solver_charts
from fedlodrop.report.data import SPLITS, Run
from fedlodrop.report.devices import MOST_CELLS, device_part, waiting_table
from fedlodrop.report.html import MISSING, TEMPLATES, Chart, cut, number, packed, part, score, table, thinned
from fedlodrop.report.plot import GLYPHS, STROKES
from optimizer.plots import PALETTE, pair
from server_app.results import write_atomic

_MOST_ROWS = 300  # of a table over rounds, or of failures
_FEW = 4  # settings that have room beside the figures
_NAMED = 10  # devices in a sentence
_HELD_BACK = {
    "clipped": "longer than the limit of their round and scaled down",
    "capped": "weighted less because their devices announced too many examples",
}

Part = tuple[str, list[Chart]]  # HTML, and the charts that have a place in it
Build = Callable[[list[Run]], Part]


def write_report(folders: Sequence[Path], target: Path) -> None:
    """Write the report of one run, or of several to compare, as one self-contained HTML file, atomically.

    Raises ReportError if a folder does not hold a run.
    """
    write_atomic(target, build_report(folders))


def draw_report(folder: Path, say: Callable[[str], None]) -> None:
    """Draw the report of a run that has ended; one that cannot be drawn is said and does not make the run a failure."""
    try:
        write_report([folder], folder / "report.html")
    except Exception as error:  # the results are complete
        say(f"the report could not be drawn ({type(error).__name__}: {error}); try: fedlodrop report {folder}")


def build_report(folders: Sequence[Path], live: str = "") -> str:
    """Return the HTML text that `write_report` writes; ``live``, what `fedlodrop.report.live` shows, asks for news."""
    runs = data.load_runs(folders)
    parts = {key: (title, *build(runs)) for key, (title, build) in _SECTIONS.items()}
    names = {str(k): run.name for k, run in enumerate(runs)}
    looks = {k: part("run_key", PALETTE[color], GLYPHS[symbol]) for k in names for color, symbol in [pair(int(k))]}
    return TEMPLATES.get_template("page.html").render(
        runs=runs,
        live=live,
        sections={key: (title, body) for key, (title, body, _) in parts.items() if body},
        # The one legend of all charts that compare runs; unticking a run takes it out of them.
        legend=part("controls", "Runs", "data-runs", "checkbox", names, names, looks),
        library=_library(),
        figures=packed([vars(chart) for _, _, charts in parts.values() for chart in charts]),
    )


@functools.cache
def _library() -> str:  # a fifth of a second, and the same in every report of a sweep
    return packed(get_plotlyjs())


def _key_figures(runs: list[Run]) -> Part:
    """Return cards for one run; for several a table of their figures, and one of the settings in which they differ."""
    if len(runs) == 1:
        return part("cards", data.key_facts(runs[0])), []
    differ = {key: ["null" if v is None else str(v) for v in vs] for key, vs in data.differing_settings(runs).items()}
    leading = differ if len(differ) <= _FEW else {}
    names = [run.name for run in runs]
    columns = {"run": names, **leading, **data.figures_of(runs)}
    settings = [(key, *values) for key, values in differ.items()]
    cells = zip(*columns.values(), strict=True)
    return part("key_figures", list(columns), cells, len(leading), names, settings), []


def _learning(runs: list[Run]) -> Part:
    several, measures = len(runs) > 1, ["loss", *data.metric_names(runs)]
    made = [learning_chart(runs, measure, f"learning-{k}") for k, measure in enumerate(measures)]
    charts = [chart for chart in made if chart]
    present = {split for chart in charts for split in chart.splits}
    # Four curves per run are too many to tell several runs apart: then only the test curve is shown at first.
    shown = {"eval"} if several and "eval" in present else present
    for chart in charts:
        for trace, split in zip(chart.data, chart.splits, strict=True):
            trace["visible"] = not split or split in shown
    titles = {name: title for name, (title, _, _) in AXES.items()}
    splits = {key: words for key, words in SPLITS if key in present}
    dashes = zip(SPLITS, STROKES.values(), strict=True) if several else ()
    samples = {key: part("dash_key", strokes) for (key, _), strokes in dashes}
    tables = [_curve_table(run, measures, several=several) for run in runs]
    return part("learning", charts, "".join(tables), several, titles, splits, shown, samples), charts


def _curve_table(run: Run, measures: list[str], *, several: bool) -> str:
    rows = data.curve(run)
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
            *(number(row[key], 4) for key in ("time_s", "energy_j")),
            *(number(row[key] / 1e6, 4) for key in ("upload_bytes", "download_bytes")),
            f"{row['served']}/{row['asked']}",
            *(score((row.get(split) or {}).get(measure)) for split, measure in columns.values()),
        )
        for row in (rows[k] for k in kept)
    ]
    more = f"; {len(kept)} of {len(rows)} rounds" if len(kept) < len(rows) else ""
    title = "Table of the learning curves" + (f" of {run.name}" if several else "")
    return part("details", title, table(f"Running totals and scores{more}", head, body)) if rows else ""


def _over_rounds(draw: Callable[[list[Run]], list[Chart]], more: Callable[[list[Run]], str] = lambda runs: "") -> Build:
    """Return the builder of a section of charts over rounds, with ``more`` below them."""

    def build(runs: list[Run]) -> Part:
        charts = draw(runs) if last_round(runs) else []
        return part("drawn", charts) + more(runs) if charts else "<p>No round has finished yet.</p>", charts

    return build


def _plans(runs: list[Run]) -> str:
    """Return the table of how the plans were found: one row per run, method, status and note."""
    counted = Counter(
        (run.name, str(plan["solver"]), f"{plan.get('status', '')}{verified}", "; ".join(plan.get("notes") or []))
        for run in runs
        for plan in (record["plan"] for record in run.rounds)
        for verified in [", verified" if plan.get("verified") else ""]
    )
    rows = [(*names, count, notes or MISSING) for (*names, notes), count in counted.items()]
    title, head = "How the plans were found", ("run", "method", "status", "rounds", "notes")
    body = table(title, head, rows[:_MOST_ROWS], words=(0, 1, 2, 4))
    noted = sum(row[4] != MISSING for row in rows)
    return body if len(runs) == 1 else part("details", f"{title} ({noted or 'no'} rows with notes)", body)


def _one_by_one(tell: Callable[[Run], str]) -> Build:
    """Return the builder of a section without charts that tells of one run after the other."""
    return lambda runs: (part("each", [run.name for run in runs], [tell(run) for run in runs]), [])


def _devices(runs: list[Run]) -> Part:
    parts = [device_part(run, f"run-{k}", MOST_CELLS // len(runs)) for k, run in enumerate(runs)]
    bodies = part("each", [run.name for run in runs], [text for text, _ in parts])
    return bodies, [chart for _, charts in parts for chart in charts]


def _failures(run: Run) -> str:
    """Say what answers were not used, and whose counted less than they came."""
    found = [(record["round"], failure) for record in run.rounds for failure in record["failures"]]
    rows = [(r, f["device"] or "unknown device", f["kind"], f["message"]) for r, f in found[:_MOST_ROWS]]
    held = []
    for key, words in _HELD_BACK.items():
        devices = [str(row["device"]) for record in run.rounds for row in record.get(key) or ()]
        names = sorted(set(devices), key=lambda name: (len(name), name))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        held += [f"Answers {words}: {len(devices)} ({', '.join(names[:_NAMED])}{more})."] if devices else []
    return part("failures", rows, cut(len(found), _MOST_ROWS), held)


def _recipe(run: Run) -> str:
    found, again, config = run.environment, data.command(run), run.folder / "config.yaml"
    commit = found.get("commit")
    facts = [("results", run.folder), ("commit", commit or "not recorded"), ("source digest", found.get("source"))]
    facts += [(key, found.get(key)) for key in ("seed", "started")]
    for key, words in (("hardware", "hardware"), ("versions", "version")):
        facts += [(f"{words}: {name}", value) for name, value in (found.get(key) or {}).items()]
    lines = f"git checkout {commit}\n{again}" if commit and again else again
    text = config.read_text(encoding="utf-8") if config.exists() else "config.yaml is missing"
    return part("recipe", lines, facts, text)


def _answers(run: Run) -> str:
    """What a language model wrote to requests of the test set, before and after the training; empty for other runs."""
    if not (found := run.summary.get("answers")):
        return ""
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found["scores"].items())
    rows = [[sample[key] for key in ("request", "expected", "before", "after")] for sample in found["samples"]]
    head = ("request", "expected", "before training", "after training")
    return table(f"{scores} over {found['num_examples']} unseen requests", head, rows, words=range(4), css="all")


def _confusion(run: Run) -> str:
    """How often each class of the test set was taken for which, in the last scored round; empty for other tasks."""
    if not (counts := run.summary.get("confusion")):
        return ""
    names = run.summary["label_names"]
    rows = [(name, *row) for name, row in zip(names, counts, strict=True)]
    return table("rows are the true classes, columns what was answered", ("", *names), rows)


_SECTIONS: dict[str, tuple[str, Build]] = {
    "figures": ("Key figures", _key_figures),
    "learning": ("Learning curves", _learning),
    "confusion": ("What is taken for what", _one_by_one(_confusion)),
    "answers": ("Answers before and after", _one_by_one(_answers)),
    "prediction": ("Prediction and measurement", _over_rounds(prediction_charts)),
    "solver": ("Solver", _over_rounds(solver_charts, _plans)),
    "cost": ("Time and energy", _over_rounds(cost_charts)),
    "devices": ("Devices", _devices),
    "waiting": ("Devices that sat out", _one_by_one(waiting_table)),
    "failures": ("Failures", _one_by_one(_failures)),
    "reproduce": ("Configuration and reproduction", _one_by_one(_recipe)),
}
