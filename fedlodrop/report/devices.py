"""Charts and tables per device: bandwidth and power, deadline and energy, who sat out and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedlodrop.report.data import Record, Run, cause, mean, per_device
from fedlodrop.report.dropout_map import dropout_chart, tick_names
from fedlodrop.report.html import MISSING, Chart, cut, details, esc, megabytes, number, percent, significant, table
from fedlodrop.report.plot import axis, decades, layout, limit_line
from fedlodrop.report.style import GLYPHS, PALETTE, SYMBOLS

_MOST_BARS = 150  # thinner bars would cover each other
_MOST_DOTS = 60  # beyond it dots are small and whiskers have no ends
_MOST_ROWS = 1_000
_MOST_WAITING = 400
_BARS = "Bar or dot: mean over the rounds in which the device took part; whisker: smallest and largest."
_DOTS = "Dot: mean over rounds; whisker: smallest and largest; dashed: the limit."
# Columns of the table of devices, from what `per_device` collected.
_COLUMNS: dict[str, Callable[[Record], Any]] = {
    "asked": lambda entry: entry["asked"],
    "took part": lambda entry: entry["served"],
    "mean γ (1)": lambda entry: _mean(entry["dropout"]),
    "mean band share (%)": lambda entry: _mean(entry["band"], 100),
    "mean power (mW)": lambda entry: _mean(entry["power_w"], 1e3),
    "mean time / deadline (%)": lambda entry: _mean(entry["time_use"], 100),
    "mean energy / budget (%)": lambda entry: _mean(entry["energy_use"], 100),
    "energy (J)": lambda entry: number(sum(entry["energy_j"])),
    "uploaded": lambda entry: megabytes(sum(entry["upload_bytes"])),
}


def device_part(run: Run, key: str, most_cells: int) -> tuple[str, list[Chart]]:
    """Return the part of the page about one run's devices, and its charts."""
    found = per_device(run)
    if not found:
        return "<p>No round has finished yet.</p>", []
    first = dropout_chart(run, key, most_cells)
    charts = [*([first] if first else []), *_share_charts(run, key, found), *_use_charts(run, key, found)]
    places = "".join(chart.html() for chart in charts).replace('class="chart"', 'class="chart wide"', 1)
    note = f'<p class="note">{esc(_overruns(run))}</p>'
    return f'<div class="charts">{places}</div>{note}{_device_table(run, found)}', charts


def _share_charts(run: Run, key: str, found: dict[str, Record]) -> list[Chart]:
    """Draw the shares of bandwidth and of transmit power."""
    ofdma = any("subcarriers" in row for record in run.rounds for row in record["devices"])
    resource = "subcarriers" if ofdma else "bandwidth"
    whole = "100 % is the sum over the devices scheduled in a round; the table holds the power itself."
    power = "Share of transmit power"
    return [
        _bars(run, f"{key}-band", f"Share of {resource}", f"{_BARS} The whole band is 100 %.", "band", found),
        _bars(run, f"{key}-power", power, f"{_BARS} {whole}", "power_share", found),
    ]


def _use_charts(run: Run, key: str, found: dict[str, Record]) -> list[Chart]:
    """Draw the use of the deadline and of the energy budget against their limits."""
    unit = "energy / budget (%)"
    time = _dots(run, f"{key}-time", "Use of the deadline", _DOTS, "latency / deadline (%)", "time_use", found)
    energy = _dots(run, f"{key}-energy", "Use of the energy budget", f"{_DOTS} Logarithmic.", unit, "energy_use", found)
    highest = max((value for entry in found.values() for value in entry["time_use"]), default=0.0)
    time.layout["yaxis"] |= {"range": [0, 100 * max(1.12, 1.06 * highest)]}
    used = [100 * value for entry in found.values() for value in entry["energy_use"] if value > 0]
    energy.layout["yaxis"] |= decades([*used, 100.0])
    energy.layout["annotations"][0]["y"] = 2  # plotly: exponents for annotations, values for shapes
    return [time, energy]


def _bars(run: Run, key: str, title: str, caption: str, column: str, found: dict[str, Record]) -> Chart:
    """Draw shares as bars, dots where there are too many; a glyph at a bar's foot tells its class without colour."""
    traces, devices = _groups(run, column, found)
    for look, trace in enumerate(traces):
        if len(found) > _MOST_BARS:
            trace |= {"type": "scatter", "mode": "markers"}
            continue
        glyph = GLYPHS[look % len(GLYPHS)]
        trace |= {
            "type": "bar",
            "marker": {"color": trace["marker"]["color"], "line": {"width": 0}},
            "name": f"{glyph} {trace['name']}",
            "text": [glyph] * len(trace["x"]),
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
            "textfont": {"color": "#ffffff", "size": 11},
        }
    unit = f"{title[0].lower()}{title[1:]} (%)"
    # Overlay: every device has one bar, so bars of several classes need no room beside each other.
    shown = layout(devices, axis(unit, rangemode="tozero"), showlegend=len(traces) > 1, bargap=0.25, barmode="overlay")
    return Chart(key, title, caption, _spoken(title, traces), traces, shown, 340)


def _dots(run: Run, key: str, title: str, caption: str, unit: str, column: str, found: dict[str, Record]) -> Chart:
    """Draw the use of a limit as dots."""
    traces, devices = _groups(run, column, found)
    for trace in traces:
        trace |= {"type": "scatter", "mode": "markers"}
    shown = layout(devices, axis(unit), showlegend=len(traces) > 1) | limit_line(100, "limit 100 %")
    return Chart(key, title, caption, _spoken(title, traces), traces, shown, 340)


def _groups(run: Run, key: str, found: dict[str, Record]) -> tuple[list[Record], dict[str, Any]]:
    """Return one trace per device class, with mean and range in per cent, and the axis of all devices."""
    names, title = tick_names(run, list(found), classes=False)
    used = {device: entry[key] for device, entry in found.items() if entry[key]}
    kinds = sorted({run.device_class(device) for device in found})  # the same class looks the same in every run
    traces = []
    for look, kind in enumerate(kinds):
        mine = {device: values for device, values in used.items() if run.device_class(device) == kind}
        middle = {device: sum(values) / len(values) for device, values in mine.items()}
        traces.append(
            {
                "name": esc(kind or "device"),
                "x": [names[d] for d in mine],
                "y": [significant(100 * middle[d]) for d in mine],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "thickness": 1.2,
                    "width": 3 if len(used) <= _MOST_DOTS else 0,
                    "color": "#8a8f99",
                    "array": [significant(100 * (max(values) - middle[d])) for d, values in mine.items()],
                    "arrayminus": [significant(100 * (middle[d] - min(values))) for d, values in mine.items()],
                },
                "marker": {
                    "color": PALETTE[look % len(PALETTE)],
                    "symbol": SYMBOLS[look % len(SYMBOLS)],
                    "size": 9 if len(used) <= _MOST_DOTS else 5,
                },
                "hovertemplate": f"{title} %{{x}}, {esc(kind)}<br>mean %{{y:.3~g}} %<extra></extra>",
            }
        )
    # Named in full: the order of the traces must not become the order of the devices.
    order = {"type": "category", "categoryorder": "array", "categoryarray": list(names.values())}
    short = max(map(len, names.values()), default=0) <= 4
    ticks = {"tickangle": 0, "tickmode": "linear", "tick0": 0, "dtick": max(1, -(-len(names) // 15))} if short else {}
    return traces, axis(title, **ticks, **order, range=[-0.6, len(names) - 0.4])


def _spoken(title: str, traces: list[Record]) -> str:
    known = [value for trace in traces for value in trace["y"]]
    span = f"means between {min(known):.3g} and {max(known):.3g} per cent" if known else "no device took part"
    return f"{title} for {len(known)} devices: {span}. The table of devices holds all values."


def _overruns(run: Run) -> str:
    """Say in one sentence whether measured time and energy kept to their limits."""
    rows = [row for record in run.rounds for row in record["devices"] if row["latency_s"] is not None]
    slack = 1 + 1e-9
    late = sum(row["latency_s"] > row["deadline_s"] * slack for row in rows)
    over = sum(row["energy_j"] > row["energy_budget_j"] * slack for row in rows)
    return (
        f"Of {len(rows)} times that a device took part, {late} ended after the deadline and "
        f"{over} used more than the energy budget."
    )


def _device_table(run: Run, found: dict[str, Record]) -> str:
    """Return the numbers behind the charts of devices."""
    rows = [
        (device, run.device_class(device) or MISSING, *(value(entry) for value in _COLUMNS.values()))
        for device, entry in list(found.items())[:_MOST_ROWS]
    ]
    caption = f"Devices{cut(len(found), _MOST_ROWS)}"
    body = table(caption, ("device", "class", *_COLUMNS), rows, words=(0, 1))
    return details(f"Table of devices ({len(found)})", body)


def _mean(values: Sequence[float], factor: float = 1.0) -> str:
    average = mean(values)
    return number(None if average is None else factor * average)


def waiting_tables(run: Run) -> str:
    """Say which devices sat out and why."""
    found = per_device(run)
    waited = {device: entry for device, entry in found.items() if entry["waits"]}
    if not waited:
        return f"<p>{'Every device that was asked took part.' if found else 'No device was asked yet.'}</p>"
    causes: dict[str, list[tuple[str, int, str]]] = {}
    for device, entry in waited.items():
        for server_round, reason in entry["waits"]:
            causes.setdefault(cause(reason), []).append((device, server_round, reason))
    asked = sum(entry["asked"] for entry in found.values())
    rows = []
    for text, waits in sorted(causes.items(), key=lambda item: -len(item[1])):
        device, server_round, reason = waits[-1]
        devices, example = len({wait[0] for wait in waits}), f"{device}, round {server_round}: {reason}"
        rows.append((text, len(waits), percent(len(waits) / asked, 1), devices, example))
    head = ("cause", "times", "share of all asked", "devices", "example")
    why = table("Why devices sat out", head, rows, words=(0, 4))
    idle = []
    for device, entry in list(waited.items())[:_MOST_WAITING]:
        times, (last, reason) = f"{len(entry['waits'])} of {entry['asked']}", entry["waits"][-1]
        rounds = _spans([server_round for server_round, _ in entry["waits"]])
        idle.append((device, run.device_class(device) or MISSING, times, rounds, f"round {last}: {reason}"))
    head = ("device", "class", "sat out", "rounds", "last reason")
    who = table(f"Devices that sat out{cut(len(waited), _MOST_WAITING)}", head, idle, words=(0, 1, 3, 4))
    return why + details(f"Table of devices that sat out ({len(waited)})", who)


def _spans(rounds: Sequence[int]) -> str:
    """Write 1, 2, 3, 7 as 1-3, 7."""
    spans: list[list[int]] = []
    for server_round in rounds:
        if spans and server_round == spans[-1][1] + 1:
            spans[-1][1] = server_round
        else:
            spans.append([server_round, server_round])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in spans)
