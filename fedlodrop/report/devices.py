"""Charts and tables per device: dropout rates, bandwidth and power, deadline and energy, who sat out and why."""

import textwrap
from typing import Any

import pandas as pd

from fedlodrop.report.data import Record, Run, cause, device_rows
from fedlodrop.report.html import Chart, cut, esc, number, part, score, significant, table, thinned
from fedlodrop.report.plot import FAILED, SAT_OUT, SYMBOLS, WORDS, axis, decades, layout, limit_line, round_axis
from optimizer.plots import PALETTE

MOST_CELLS = 120_000  # of all maps together; beyond it rounds are left out, so that the page stays below 5 MB
_MOST_REASONS = 20_000  # cells that carry the whole reason; beyond it only its first words
_MOST_MARKS = 1_500  # cells that are large enough for a mark inside
_MOST_NAMES = 36  # devices whose names all have room
# What a cell shows beside a rate -> colour, mark, words of the key. Colour must not be the only difference.
_TROUBLE = {
    "sat out": (SAT_OUT, "×", "sat out, reason under the pointer"),
    "no usable answer": (FAILED, "!", "scheduled, but no usable answer"),
}
_Cells = dict[str, list[list[Any]]]
_MOST_DOTS = 60  # beyond it dots are small and whiskers have no ends
_MOST_ROWS = 1_000
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
    charts = [dropout_chart(run, key, most_cells), *_use_charts(run, key, rows)]
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
    body = [
        (device, run.device_class(device) or None, score(first), score(last), f"{change:+.3f}", size)
        for device, first, last, size, change in scores.sort_values("change").head(_MOST_ROWS).itertuples()
    ]
    lost = int((scores["change"] < 0).sum())
    head = ("device", "class", f"first {run.metric}", f"last {run.metric}", "change", "rounds scored")
    title = f"Scores on the devices' own held-out examples: {lost} of {len(scores)} lost"
    return part("details", title, table(title, head, body, words=(0, 1)))


def _use_charts(run: Run, key: str, rows: pd.DataFrame) -> list[Chart]:
    """Draw the shares of bandwidth and power, and the use of deadline and energy budget against their limits."""
    band = "subcarriers" if "subcarriers" in rows else "bandwidth"
    highest, used = rows["time_use"].max(), 100 * rows["energy_use"][rows["energy_use"] > 0]
    room = 100 * max(1.12, 1.06 * (0.0 if pd.isna(highest) else highest))
    drawn: list[tuple[str, str, dict[str, Any]]] = [  # words, column of `device_rows`, vertical axis
        ("band", "band", {"rangemode": "tozero"}),
        ("power", "power_share", {"rangemode": "tozero"}),
        ("time", "time_use", {"range": [0, room]}),
        ("energy", "energy_use", decades([*used, 100.0])),
    ]
    charts = []
    for name, column, settings in drawn:
        title, caption, unit = (words.format(band) for words in WORDS[name])
        traces, devices = _groups(run, column, rows)
        shown = layout(devices, axis(unit, **settings), showlegend=len(traces) > 1)
        if name in ("time", "energy"):
            shown |= limit_line(100, "limit 100 %", logarithmic=name == "energy")
        known = [value for trace in traces for value in trace["y"]]
        span = f"means between {min(known):.3g} and {max(known):.3g} per cent" if known else "no device took part"
        told = f"{title} for {len(known)} devices: {span}. The table of devices holds all values."
        charts.append(Chart(f"{key}-{name}", title, caption, told, traces, shown, 340))
    return charts


def _groups(run: Run, column: str, rows: pd.DataFrame) -> tuple[list[Record], dict[str, Any]]:
    """Return one trace per device class, with mean and range in per cent, and the axis of all devices."""
    devices = run.devices()
    names = {device: esc(_short(device)) for device in devices}
    used = 100 * rows.groupby("id")[column].agg(["mean", "min", "max"]).reindex(devices).dropna()
    few = len(used) <= _MOST_DOTS
    traces = []
    for look, kind in enumerate(sorted({run.device_class(device) for device in devices})):  # the same in every run
        mine = used.loc[[run.device_class(device) == kind for device in used.index]]
        whisker: Record = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3 if few else 0}
        ends = {"array": mine["max"] - mine["mean"], "arrayminus": mine["mean"] - mine["min"]}
        whisker |= {"color": "#8a8f99", **{name: list(map(significant, values)) for name, values in ends.items()}}
        color, symbol = PALETTE[look % len(PALETTE)], SYMBOLS[look % len(SYMBOLS)]
        trace: Record = {"type": "scatter", "mode": "markers", "name": esc(kind or "device"), "error_y": whisker}
        trace |= {"x": [names[device] for device in mine.index], "y": list(map(significant, mine["mean"]))}
        trace |= {"marker": {"color": color, "symbol": symbol, "size": 9 if few else 5}}
        traces.append(trace | {"hovertemplate": f"device %{{x}}, {esc(kind)}<br>mean %{{y:.3~g}} %<extra></extra>"})
    # Named in full: the order of the traces must not become the order of the devices.
    order = {"type": "category", "categoryorder": "array", "categoryarray": list(names.values())}
    short = max(map(len, names.values()), default=0) <= 4
    ticks = {"tickangle": 0, "tickmode": "linear", "tick0": 0, "dtick": max(1, -(-len(names) // 15))} if short else {}
    return traces, axis("device", **ticks, **order, range=[-0.6, len(names) - 0.4])


def _device_table(run: Run, rows: pd.DataFrame) -> str:
    means = {title: (column, "mean") for title, (column, _) in _MEANS.items()}
    sums = {"energy (J)": ("energy_j", "sum"), "uploaded (MB)": ("uplink_bytes", "sum")}
    counts = {"asked": ("scheduled", "size"), "took part": ("scheduled", "sum")}
    table_of = rows.groupby("id").agg(**counts, **means, **sums)
    body = []
    for device, row in table_of.reindex(run.devices()[:_MOST_ROWS]).iterrows():
        shown = [number(factor * row[title]) for title, (_, factor) in _MEANS.items()]
        kind, count = run.device_class(str(device)) or None, (int(row["asked"]), int(row["took part"]))
        body.append((device, kind, *count, *shown, number(row["energy (J)"]), number(row["uploaded (MB)"] / 1e6)))
    head = ("device", "class", *table_of)
    found = table(f"Devices{cut(len(table_of), _MOST_ROWS)}", head, body, words=(0, 1))
    return part("details", f"Table of devices ({len(table_of)})", found)


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
        body.append((text, len(found), f"{100 * len(found) / len(rows):.1f} %", found["id"].nunique(), example))
    head = ("cause", "times", "share of all asked", "devices", "example")
    return table("Why devices sat out", head, body, words=(0, 4))


def dropout_chart(run: Run, key: str, most_cells: int = MOST_CELLS) -> Chart:
    """Draw the dropout rate of every device and round: devices down, rounds across, with who sat out or failed."""
    devices = run.devices()
    records = [run.rounds[k] for k in thinned(len(run.rounds), max(1, most_cells // len(devices)))]
    names = [esc(" · ".join(filter(None, (_short(name), run.device_class(name))))) for name in devices]
    cells = _cells(records, devices)
    rates = [rate for row in cells["rate"] for rate in row if rate is not None]
    waits = sum(cell is not None for row in cells["sat out"] for cell in row)
    keys = [look for name, look in _TROUBLE.items() if any(cell is not None for row in cells[name] for cell in row)]
    if sum(len(record["devices"]) for record in records) < len(devices) * len(records):
        keys.append(("", "", "empty: not asked in that round"))
    span = f"rates between {min(rates):.3f} and {max(rates):.3f}" if rates else "no device trained"
    told = f"Map of {len(devices)} devices and {len(records)} rounds: {span}; {waits} times a device sat out."
    rounds = round_axis(records[-1]["round"]) | {"showgrid": False}
    rows = axis("device", type="category", autorange="reversed", showgrid=False)
    if len(devices) <= _MOST_NAMES:
        rows |= {"tickmode": "linear", "dtick": 1}
    return Chart(
        f"{key}-dropout",
        "Dropout rate γ per device and round",
        part("map_caption", keys, len(records), len(run.rounds)),
        told,
        _traces(cells, rates, [record["round"] for record in records], names),
        layout(rounds, rows, showlegend=False),
        min(940, max(260, 110 + 24 * len(devices))),
        wide=True,
    )


def _traces(cells: _Cells, rates: list[float], x: list[int], y: list[str]) -> list[dict[str, Any]]:
    """Return one heat map of the rates, one per kind of trouble, and marks where a cell has room for one."""
    low, high = min(rates, default=0.0), max(rates, default=1.0)
    spare = max(0.0, 0.1 - (high - low)) / 2  # the colours span the rates that occur; at least a tenth of them
    marked = len(x) * len(y) <= _MOST_MARKS
    shared = {"type": "heatmap", "x": x, "y": y, "xgap": int(marked), "ygap": int(marked)}
    where = "device %{y}<br>round %{x}<br>"
    scale = {"name": "dropout rate", "z": cells["rate"], "zmin": low - spare, "zmax": high + spare}
    data = [shared | scale | {"hovertemplate": f"{where}dropout rate γ = %{{z:.3f}}<extra></extra>"}]
    for name, (color, mark, _) in _TROUBLE.items():
        text = cells[name]
        points = [(x[c], y[r]) for r, row in enumerate(text) for c, cell in enumerate(row) if cell is not None]
        if not points:
            continue
        one = [[None if cell is None else 1 for cell in row] for row in text]
        look = {"colorscale": [[0, color], [1, color]], "zmin": 0, "zmax": 2, "showscale": False}
        hover = f"{where}{name}:<br>%{{text}}<extra></extra>"
        data.append(shared | look | {"name": name, "z": one, "text": text, "hovertemplate": hover})
        if marked:
            across, down = zip(*points, strict=True)
            inside = {"text": mark, "textfont": {"color": "#ffffff", "size": 14}, "hoverinfo": "skip"}
            data.append({"type": "scatter", "mode": "text", "x": across, "y": down, **inside, "name": f"mark {name}"})
    return data


def _cells(records: list[Record], devices: list[str]) -> _Cells:
    """Sort every (device, round) into one of three maps; a device that was not asked is in none."""
    row_of = {device: k for k, device in enumerate(devices)}
    maps: _Cells = {name: [[None] * len(records) for _ in devices] for name in ("rate", *_TROUBLE)}
    waiting = sum(not row["scheduled"] for record in records for row in record["devices"])
    for column, record in enumerate(records):
        failed = {failure["device"]: f"{failure['kind']}: {failure['message']}" for failure in record["failures"]}
        for row in record["devices"]:
            cell, reason = row_of[str(row["id"])], row["reason"] or "no reason given"
            if not row["scheduled"]:
                maps["sat out"][cell][column] = _lines(reason if waiting <= _MOST_REASONS else cause(reason))
            elif row["latency_s"] is None:
                maps["no usable answer"][cell][column] = _lines(failed.get(row["id"], "nothing came back"))
            else:
                maps["rate"][cell][column] = significant(row["dropout_rate"], 4)
    return maps


def _short(device: str) -> str:
    return device.removeprefix("device-")  # the axis says so


def _lines(text: str) -> str:
    """Escape and wrap text for a hover label: plotly does not wrap, and a phone is narrow."""
    return "<br>".join(esc(line) for line in textwrap.wrap(text, 48)[:12])
