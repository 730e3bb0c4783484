"""Charts and tables per device: dropout map, bandwidth and power, deadline and energy, who sat out and why."""

from __future__ import annotations

import os.path
import textwrap
from collections.abc import Sequence
from typing import Any

from fedlodrop.report.data import Record, Run, cause, mean, per_device
from fedlodrop.report.html import MISSING, Chart, details, esc, megabytes, number, percent, significant, table, thinned
from fedlodrop.report.plot import axis, decades, layout, limit_line, round_step
from fedlodrop.report.style import FAILED, GLYPHS, PALETTE, SAT_OUT, SYMBOLS

MOST_CELLS = 120_000  # of all dropout maps together; beyond it rounds are left out, so that the page stays below 5 MB
_MOST_REASONS = 20_000  # cells that carry the whole reason; beyond it only its first words
_MOST_MARKS = 1_500  # cells that are large enough for a mark inside
_MOST_BARS = 150  # thinner bars would cover each other
_MOST_ROWS = 1_000
_MOST_WAITING = 400


def tick_names(run: Run, devices: Sequence[str], *, classes: bool) -> tuple[dict[str, str], str]:
    """Return short escaped names for an axis, and the axis title; a prefix that all share goes to the title."""
    prefix = os.path.commonprefix(list(devices)).rstrip("0123456789") if len(devices) > 1 else ""
    rest = {device: device[len(prefix) :] for device in devices}
    if not all(part.isdigit() for part in rest.values()):
        rest, prefix = {device: device for device in devices}, ""
    names = {}
    for device, part in rest.items():
        kind = run.device_class(device) if classes else ""
        names[device] = esc(f"{part} · {kind}" if kind else part)
    return names, esc(prefix.rstrip("-_ ") or "device")


def dropout_chart(run: Run, key: str, most_cells: int = MOST_CELLS) -> Chart | None:
    """Draw the dropout rate of every device and round; None if no device was ever asked."""
    devices = run.devices()
    if not devices:
        return None
    kept = thinned(len(run.rounds), max(1, most_cells // len(devices)))
    records = [run.rounds[k] for k in kept]
    names, title = tick_names(run, devices, classes=True)
    cells = _cells(run, records, devices)
    x, y = [record["round"] for record in records], [names[device] for device in devices]
    low, high = rate_span(run)
    marks = len(devices) * len(records) <= _MOST_MARKS
    shared = {
        "type": "heatmap",
        "x": x,
        "y": y,
        "hoverongaps": False,
        "xgap": 1 if marks else 0,
        "ygap": 1 if marks else 0,
    }
    scale = {
        "title": {"text": "dropout rate γ (1)", "side": "right", "font": {"size": 13}},
        "thickness": 12,
        "outlinewidth": 0,
        "len": 1,
    }
    data: list[dict[str, Any]] = [
        {
            **shared,
            "name": "dropout rate",
            "z": cells["rate"],
            "zmin": low,
            "zmax": high,
            "colorscale": "Viridis",
            "colorbar": scale,
            "hovertemplate": f"{title} %{{y}}<br>round %{{x}}<br>dropout rate γ = %{{z:.3f}}<extra></extra>",
        },
    ]
    for name, color, mark in (("sat out", SAT_OUT, "×"), ("no usable answer", FAILED, "!")):
        text = cells[name]
        where = [(x[c], y[r]) for r, row in enumerate(text) for c, cell in enumerate(row) if cell is not None]
        if not where:
            continue
        data.append(
            {
                **shared,
                "name": name,
                "z": [[None if cell is None else 1 for cell in row] for row in text],
                "text": text,
                "colorscale": [[0, color], [1, color]],
                "zmin": 0,
                "zmax": 2,
                "showscale": False,
                "hovertemplate": f"{title} %{{y}}<br>round %{{x}}<br>{name}:<br>%{{text}}<extra></extra>",
            }
        )
        if marks:  # a mark inside the cell: colour must not be the only difference
            data.append(
                {
                    "type": "scatter",
                    "mode": "text",
                    "x": [at[0] for at in where],
                    "y": [at[1] for at in where],
                    "text": mark,
                    "textfont": {"color": "#ffffff", "size": 14},
                    "hoverinfo": "skip",
                    "name": f"mark {name}",
                }
            )
    return Chart(
        f"{key}-dropout",
        "Dropout rate γ per device and round",
        _legend(data, len(records), len(run.rounds)),
        _spoken(run, devices, cells),
        data,
        _map_layout(records, title, len(devices)),
        int(min(940, max(260, 110 + 24 * len(devices)))),
    )


def rate_span(run: Run) -> tuple[float, float]:
    """Return the limits of the map's colours: the rates that occur, and at least a tenth, lest rounding looks like a choice."""
    rates = [
        row["dropout_rate"] for record in run.rounds for row in record["devices"] if row["dropout_rate"] is not None
    ]
    if not rates:
        return 0.0, 1.0
    low, high = min(rates), max(rates)
    spare = max(0.0, 0.1 - (high - low)) / 2
    return low - spare, high + spare


def _map_layout(records: list[Record], title: str, count: int) -> dict[str, Any]:
    last = records[-1]["round"] if records else 0
    rounds = axis("round", dtick=round_step(last), tickformat="d", showgrid=False)
    names = axis(title, type="category", autorange="reversed", showgrid=False)
    if count <= 36:
        names |= {"tickmode": "linear", "dtick": 1}  # room for every name
    return layout(rounds, names, showlegend=False)


def _cells(run: Run, records: list[Record], devices: list[str]) -> dict[str, list[list[Any]]]:
    """Sort every (device, round) into one of three maps; a device that was not asked is in none."""
    row_of = {device: k for k, device in enumerate(devices)}
    maps: dict[str, list[list[Any]]] = {
        name: [[None] * len(records) for _ in devices] for name in ("rate", "sat out", "no usable answer")
    }
    waiting = sum(not row["scheduled"] for record in records for row in record["devices"])
    for column, record in enumerate(records):
        failed = {failure["device"]: f"{failure['kind']}: {failure['message']}" for failure in record["failures"]}
        for row in record["devices"]:
            text: float | str | None
            name, text = "rate", significant(row["dropout_rate"], 4)  # number or words
            if not row["scheduled"]:
                reason = row["reason"] or "no reason given"
                name, text = "sat out", _lines(reason if waiting <= _MOST_REASONS else cause(reason))
            elif row["latency_s"] is None:
                name, text = "no usable answer", _lines(failed.get(row["id"], "nothing came back"))
            maps[name][row_of[str(row["id"])]][column] = text
    return maps


def _lines(text: str) -> str:
    """Escape and wrap text for a hover label: plotly does not wrap, and a phone is narrow."""
    return "<br>".join(esc(line) for line in textwrap.wrap(text, 48)[:12])


def _legend(data: list[dict[str, Any]], shown: int, rounds: int) -> str:
    keys = [f'<span class="key"><i style="background:{SAT_OUT}">×</i>sat out, reason under the pointer</span>'] * any(
        trace["name"] == "sat out" for trace in data
    )
    keys += [f'<span class="key"><i style="background:{FAILED}">!</i>scheduled, but no usable answer</span>'] * any(
        trace["name"] == "no usable answer" for trace in data
    )
    maps = [trace["z"] for trace in data if trace["type"] == "heatmap"]
    if any(
        all(cell is None for cell in cells) for rows in zip(*maps, strict=True) for cells in zip(*rows, strict=True)
    ):
        keys.append('<span class="key"><i></i>empty: not asked in that round</span>')
    thin = f" Only {shown} of {rounds} rounds are drawn; rounds.jsonl holds all." if shown < rounds else ""
    what = "γ is the share of the adapter's rows and columns that a device leaves out in a round. "
    return what + "".join(keys) + thin


def _spoken(run: Run, devices: list[str], cells: dict[str, list[list[Any]]]) -> str:
    rates = [value for row in cells["rate"] for value in row if value is not None]
    waits = sum(cell is not None for row in cells["sat out"] for cell in row)
    span = f"rates between {min(rates):.3f} and {max(rates):.3f}" if rates else "no device trained"
    return f"Map of {len(devices)} devices and {len(run.rounds)} rounds: {span}; {waits} times a device sat out."


def share_charts(run: Run, key: str, found: dict[str, Record]) -> list[Chart]:
    """Draw the shares of bandwidth and of transmit power."""
    ofdma = any("subcarriers" in row for record in run.rounds for row in record["devices"])
    resource = "subcarriers" if ofdma else "bandwidth"
    bars = "Bar or dot: mean over the rounds in which the device took part; whisker: smallest and largest."
    return [
        _bars(
            run,
            f"{key}-band",
            f"Share of {resource}",
            f"{bars} The whole band is 100 %.",
            f"share of {resource} (%)",
            "band",
            found,
        ),
        _bars(
            run,
            f"{key}-power",
            "Share of transmit power",
            f"{bars} 100 % is the sum over the devices scheduled in a round; the table holds the power itself.",
            "share of transmit power (%)",
            "power_share",
            found,
        ),
    ]


def use_charts(run: Run, key: str, found: dict[str, Record]) -> list[Chart]:
    """Draw the use of the deadline and of the energy budget against their limits."""
    dots = "Dot: mean over rounds; whisker: smallest and largest; dashed: the limit."
    time = _dots(run, f"{key}-time", "Use of the deadline", dots, "latency / deadline (%)", "time_use", found)
    energy = _dots(
        run,
        f"{key}-energy",
        "Use of the energy budget",
        f"{dots} Logarithmic.",
        "energy / budget (%)",
        "energy_use",
        found,
    )
    time.layout["yaxis"] |= {"range": [0, 100 * max(1.12, 1.06 * _highest(found, "time_use"))]}
    used = [100 * value for entry in found.values() for value in entry["energy_use"] if value > 0]
    energy.layout["yaxis"] |= decades([*used, 100.0])
    energy.layout["annotations"][0]["y"] = (
        2  # of a logarithmic axis plotly wants the exponent for annotations, not for shapes
    )
    return [time, energy]


def _highest(found: dict[str, Record], key: str) -> float:
    return max((value for entry in found.values() for value in entry[key]), default=0.0)


def _groups(run: Run, key: str, found: dict[str, Record]) -> tuple[list[Record], dict[str, Any]]:
    """Return one trace per device class, with mean and range in per cent, and the axis of all devices in natural order."""
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
                    "width": 3 if len(used) <= 60 else 0,
                    "color": "#8a8f99",
                    "array": [significant(100 * (max(values) - middle[d])) for d, values in mine.items()],
                    "arrayminus": [significant(100 * (middle[d] - min(values))) for d, values in mine.items()],
                },
                "marker": {
                    "color": PALETTE[look % len(PALETTE)],
                    "symbol": SYMBOLS[look % len(SYMBOLS)],
                    "size": 9 if len(used) <= 60 else 5,
                },
                "hovertemplate": f"{title} %{{x}}, {esc(kind)}<br>mean %{{y:.3~g}} %<extra></extra>",
            }
        )
    # Named in full: the order of the traces must not become the order of the devices.
    order = {"type": "category", "categoryorder": "array", "categoryarray": list(names.values())}
    short = max(map(len, names.values()), default=0) <= 4
    ticks = {"tickangle": 0, "tickmode": "linear", "tick0": 0, "dtick": max(1, -(-len(names) // 15))} if short else {}
    return traces, axis(title, **ticks, **order, range=[-0.6, len(names) - 0.4])


def _bars(run: Run, key: str, title: str, caption: str, unit: str, column: str, found: dict[str, Record]) -> Chart:
    traces, devices = _groups(run, column, found)
    for look, trace in enumerate(traces):
        if len(found) > _MOST_BARS:
            trace |= {"type": "scatter", "mode": "markers"}
        else:
            glyph = GLYPHS[
                look % len(GLYPHS)
            ]  # at the foot of the bar and in the legend: colour must not be the only difference
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
    # Overlay: every device has one bar, so bars of several classes need no room beside each other.
    shown = layout(devices, axis(unit, rangemode="tozero"), showlegend=len(traces) > 1, bargap=0.25, barmode="overlay")
    return Chart(key, title, caption, _range_label(title, traces), traces, shown, 340)


def _dots(run: Run, key: str, title: str, caption: str, unit: str, column: str, found: dict[str, Record]) -> Chart:
    traces, devices = _groups(run, column, found)
    for trace in traces:
        trace |= {"type": "scatter", "mode": "markers"}
    shown = layout(devices, axis(unit), showlegend=len(traces) > 1) | limit_line(100, "limit 100 %")
    return Chart(key, title, caption, _range_label(title, traces), traces, shown, 340)


def _range_label(title: str, traces: list[Record]) -> str:
    known = [value for trace in traces for value in trace["y"]]
    span = f"means between {min(known):.3g} and {max(known):.3g} per cent" if known else "no device took part"
    return f"{title} for {len(known)} devices: {span}. The table of devices holds all values."


def overruns(run: Run) -> str:
    """Say in one sentence whether measured time and energy kept to their limits."""
    rows = [row for record in run.rounds for row in record["devices"] if row["latency_s"] is not None]
    slack = 1 + 1e-9
    late = sum(row["latency_s"] > row["deadline_s"] * slack for row in rows)
    over = sum(row["energy_j"] > row["energy_budget_j"] * slack for row in rows)
    return (
        f"Of {len(rows)} times that a device took part, {late} ended after the deadline and "
        f"{over} used more than the energy budget."
    )


def device_table(run: Run, found: dict[str, Record]) -> str:
    """Return the numbers behind the charts of devices."""
    head = (
        "device",
        "class",
        "asked",
        "took part",
        "mean γ (1)",
        "mean band share (%)",
        "mean power (mW)",
        "mean time / deadline (%)",
        "mean energy / budget (%)",
        "energy (J)",
        "uploaded",
    )
    rows = []
    for device, entry in list(found.items())[:_MOST_ROWS]:
        watt = mean(entry["power_w"])
        rows.append(
            (
                device,
                run.device_class(device) or MISSING,
                entry["asked"],
                entry["served"],
                number(mean(entry["dropout"])),
                _hundred(entry["band"]),
                number(None if watt is None else 1e3 * watt),
                _hundred(entry["time_use"]),
                _hundred(entry["energy_use"]),
                number(sum(entry["energy_j"])),
                megabytes(sum(entry["upload_bytes"])),
            )
        )
    more = f"; the first {_MOST_ROWS} of {len(found)}" if len(found) > _MOST_ROWS else ""
    return details(f"Table of devices ({len(found)})", table(f"Devices{more}", head, rows, words=(0, 1)))


def _hundred(shares: list[float]) -> str:
    average = mean(shares)
    return number(None if average is None else 100 * average)


def waiting_tables(run: Run) -> str:
    """Say which devices sat out and why."""
    found = per_device(run)
    waits = [(device, round_, reason) for device, entry in found.items() for round_, reason in entry["waits"]]
    if not waits:
        asked = "No device was asked yet." if not found else "Every device that was asked took part."
        return f"<p>{asked}</p>"
    causes: dict[str, list[tuple[str, int, str]]] = {}
    for wait in waits:
        causes.setdefault(cause(wait[2]), []).append(wait)
    ordered = sorted(causes.items(), key=lambda item: -len(item[1]))
    asked = sum(entry["asked"] for entry in found.values())
    why = table(
        "Why devices sat out",
        ("cause", "times", "share of all asked", "devices", "example"),
        [
            (
                text,
                len(w),
                percent(len(w) / asked, 1),
                len({d for d, _, _ in w}),
                f"{w[-1][0]}, round {w[-1][1]}: {w[-1][2]}",
            )
            for text, w in ordered
        ],
        words=(0, 4),
    )
    rows = [
        (
            device,
            run.device_class(device) or MISSING,
            f"{len(entry['waits'])} of {entry['asked']}",
            _spans([round_ for round_, _ in entry["waits"]]),
            f"round {entry['waits'][-1][0]}: {entry['waits'][-1][1]}",
        )
        for device, entry in found.items()
        if entry["waits"]
    ]
    more = f"; the first {_MOST_WAITING} of {len(rows)}" if len(rows) > _MOST_WAITING else ""
    who = table(
        f"Devices that sat out{more}",
        ("device", "class", "sat out", "rounds", "last reason"),
        rows[:_MOST_WAITING],
        words=(0, 1, 3, 4),
    )
    return why + details(f"Table of devices that sat out ({len(rows)})", who)


def _spans(rounds: Sequence[int]) -> str:
    """Write 1, 2, 3, 7 as 1-3, 7."""
    spans: list[list[int]] = []
    for round_ in rounds:
        if spans and round_ == spans[-1][1] + 1:
            spans[-1][1] = round_
        else:
            spans.append([round_, round_])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in spans)


def device_part(run: Run, key: str, most_cells: int, level: int) -> tuple[str, list[Chart]]:
    """Return the part of the page about one run's devices, with headings of ``level``, and its charts."""
    found = per_device(run)
    if not found:
        return "<p>No round has finished yet.</p>", []
    first = dropout_chart(run, key, most_cells)
    charts = [*([first] if first else []), *share_charts(run, key, found), *use_charts(run, key, found)]
    wide = charts[0].html(level).replace('class="chart"', 'class="chart wide"', 1)
    body = wide + "".join(chart.html(level) for chart in charts[1:])
    return f'<div class="charts">{body}</div><p class="note">{esc(overruns(run))}</p>' + device_table(
        run, found
    ), charts
