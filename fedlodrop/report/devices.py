"""Charts and tables per device: bandwidth and power, deadline and energy, who sat out and why."""

from typing import Any

import pandas as pd

from fedlodrop.report.data import Record, Run, cause, device_rows
from fedlodrop.report.dropout_map import dropout_chart, tick_names
from fedlodrop.report.html import MISSING, Chart, cut, esc, megabytes, number, part, percent, score, significant, table
from fedlodrop.report.plot import SYMBOLS, WORDS, axis, decades, layout, limit_line
from optimizer.plots import PALETTE

_MOST_DOTS = 60  # beyond it dots are small and whiskers have no ends
_MOST_ROWS = 1_000
_COLUMNS = {"band": "band", "power": "power_share", "time": "time_use", "energy": "energy_use"}  # of `device_rows`
# Columns of the table of devices that are means: title -> column of `device_rows`, factor to the title's unit.
_MEANS = {
    "mean γ (1)": ("dropout_rate", 1),
    "mean band share (%)": ("band", 100),
    "mean power (mW)": ("tx_power_w", 1e3),
    "mean time / deadline (%)": ("time_use", 100),
    "mean energy / budget (%)": ("energy_use", 100),
}


def device_part(run: Run, key: str, most_cells: int) -> tuple[str, list[Chart]]:
    """Return the part of the page about one run's devices, and its charts."""
    rows = device_rows(run)
    if rows.empty:
        return "<p>No round has finished yet.</p>", []
    first = dropout_chart(run, key, most_cells)
    charts = [*([first] if first else []), *_use_charts(run, key, rows)]
    late, over = (int((rows[use] > 1 + 1e-9).sum()) for use in ("time_use", "energy_use"))
    overruns = (
        f"Of {rows['latency_s'].notna().sum()} times that a device took part, {late} ended after the deadline and "
        f"{over} used more than the energy budget."
    )
    return part("devices", charts, overruns, _device_table(run, rows) + _own_scores(run, rows)), charts


def _own_scores(run: Run, rows: pd.DataFrame) -> str:
    """Say who gains and who loses: the scores on devices' own held-out examples, the first and the last round's."""
    if "held_out" not in rows or run.metric is None:
        return ""
    scored = rows[rows["held_out"].notna()]
    own = scored["held_out"].map(lambda found: found.get(run.metric))
    scores = own.groupby(scored["id"]).agg(["first", "last", "size"])
    scores["change"] = scores["last"] - scores["first"]
    body = []
    for device, row in scores.sort_values("change").head(_MOST_ROWS).iterrows():
        ends = (score(row["first"]), score(row["last"]), f"{row['change']:+.3f}", int(row["size"]))
        body.append((device, run.device_class(str(device)) or MISSING, *ends))
    lost = int((scores["change"] < 0).sum())
    head = ("device", "class", f"first {run.metric}", f"last {run.metric}", "change", "rounds scored")
    title = f"Scores on the devices' own held-out examples: {lost} of {len(scores)} lost"
    return part("details", title, table(title, head, body, words=(0, 1)))


def _use_charts(run: Run, key: str, rows: pd.DataFrame) -> list[Chart]:
    """Draw the shares of bandwidth and power, and the use of deadline and energy budget against their limits."""
    band = "subcarriers" if "subcarriers" in rows else "bandwidth"
    highest, used = rows["time_use"].max(), 100 * rows["energy_use"][rows["energy_use"] > 0]
    room = 100 * max(1.12, 1.06 * (0.0 if pd.isna(highest) else highest))
    y: dict[str, dict[str, Any]] = {"band": {"rangemode": "tozero"}, "power": {"rangemode": "tozero"}}
    y |= {"time": {"range": [0, room]}, "energy": decades([*used, 100.0])}
    charts = []
    for name, settings in y.items():
        title, caption, unit = (words.format(band) for words in WORDS[name])
        traces, devices = _groups(run, _COLUMNS[name], rows)
        shown = layout(devices, axis(unit, **settings), showlegend=len(traces) > 1)
        if name in ("time", "energy"):
            shown |= limit_line(100, "limit 100 %", logarithmic=name == "energy")
        charts.append(Chart(f"{key}-{name}", title, caption, _spoken(title, traces), traces, shown, 340))
    return charts


def _groups(run: Run, column: str, rows: pd.DataFrame) -> tuple[list[Record], dict[str, Any]]:
    """Return one trace per device class, with mean and range in per cent, and the axis of all devices."""
    devices = run.devices()
    names, title = tick_names(run, devices, classes=False)
    used = 100 * rows.groupby("id")[column].agg(["mean", "min", "max"]).reindex(devices).dropna()
    few = len(used) <= _MOST_DOTS
    traces = []
    for look, kind in enumerate(sorted({run.device_class(device) for device in devices})):  # the same in every run
        mine = used.loc[[run.device_class(device) == kind for device in used.index]]
        whisker: Record = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3 if few else 0}
        ends = {"array": mine["max"] - mine["mean"], "arrayminus": mine["mean"] - mine["min"]}
        whisker |= {"color": "#8a8f99", **{name: list(map(significant, values)) for name, values in ends.items()}}
        color, symbol = PALETTE[look % len(PALETTE)], SYMBOLS[look % len(SYMBOLS)]
        trace = {
            "type": "scatter",
            "mode": "markers",
            "name": esc(kind or "device"),
            "x": [names[device] for device in mine.index],
            "y": [significant(value) for value in mine["mean"]],
            "error_y": whisker,
            "marker": {"color": color, "symbol": symbol, "size": 9 if few else 5},
            "hovertemplate": f"{title} %{{x}}, {esc(kind)}<br>mean %{{y:.3~g}} %<extra></extra>",
        }
        traces.append(trace)
    # Named in full: the order of the traces must not become the order of the devices.
    order = {"type": "category", "categoryorder": "array", "categoryarray": list(names.values())}
    short = max(map(len, names.values()), default=0) <= 4
    ticks = {"tickangle": 0, "tickmode": "linear", "tick0": 0, "dtick": max(1, -(-len(names) // 15))} if short else {}
    return traces, axis(title, **ticks, **order, range=[-0.6, len(names) - 0.4])


def _spoken(title: str, traces: list[Record]) -> str:
    known = [value for trace in traces for value in trace["y"]]
    span = f"means between {min(known):.3g} and {max(known):.3g} per cent" if known else "no device took part"
    return f"{title} for {len(known)} devices: {span}. The table of devices holds all values."


def _device_table(run: Run, rows: pd.DataFrame) -> str:
    """Return the numbers behind the charts of devices."""
    means = {title: (column, "mean") for title, (column, _) in _MEANS.items()}
    sums = {"energy (J)": ("energy_j", "sum"), "uploaded": ("uplink_bytes", "sum")}
    counts = {"asked": ("scheduled", "size"), "took part": ("scheduled", "sum")}
    table_of = rows.groupby("id").agg(**counts, **means, **sums)
    body = []
    for device, row in table_of.reindex(run.devices()[:_MOST_ROWS]).iterrows():
        shown = [number(None if pd.isna(row[title]) else factor * row[title]) for title, (_, factor) in _MEANS.items()]
        ends = (number(row["energy (J)"]), megabytes(row["uploaded"]))
        kind = run.device_class(str(device)) or MISSING
        body.append((device, kind, int(row["asked"]), int(row["took part"]), *shown, *ends))
    caption = f"Devices{cut(len(table_of), _MOST_ROWS)}"
    shown_table = table(caption, ("device", "class", *table_of), body, words=(0, 1))
    return part("details", f"Table of devices ({len(table_of)})", shown_table)


def waiting_table(run: Run) -> str:
    """Say why devices sat out, how often, and how many of them; the map of dropout rates shows who and when."""
    rows = device_rows(run)
    if rows.empty:
        return "<p>No device was asked yet.</p>"
    waits = rows[~rows["scheduled"].astype(bool)]
    if waits.empty:
        return "<p>Every device that was asked took part.</p>"
    body = []
    for text, found in sorted(waits.groupby(waits["reason"].map(cause)), key=lambda item: -len(item[1])):
        last = found.iloc[-1]
        example = f"{last['id']}, round {last['round']}: {last['reason']}"
        body.append((text, len(found), percent(len(found) / len(rows), 1), found["id"].nunique(), example))
    head = ("cause", "times", "share of all asked", "devices", "example")
    return table("Why devices sat out", head, body, words=(0, 4))
