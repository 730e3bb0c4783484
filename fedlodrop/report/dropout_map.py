"""The map of one run's dropout rates: devices down, rounds across, with who sat out or failed."""

import os.path
import textwrap
from collections.abc import Sequence
from typing import Any

from fedlodrop.report.data import Record, Run, cause
from fedlodrop.report.html import Chart, esc, part, significant, thinned
from fedlodrop.report.plot import FAILED, SAT_OUT, axis, layout, round_step

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


def tick_names(run: Run, devices: Sequence[str], *, classes: bool) -> tuple[dict[str, str], str]:
    """Return short escaped names for an axis, and the axis title; a prefix that all share goes to the title."""
    prefix = os.path.commonprefix(list(devices)).rstrip("0123456789") if len(devices) > 1 else ""
    if not all(device[len(prefix) :].isdigit() for device in devices):
        prefix = ""
    kinds = {device: run.device_class(device) if classes else "" for device in devices}
    names = {device: esc(" · ".join(filter(None, (device[len(prefix) :], kinds[device])))) for device in devices}
    return names, esc(prefix.rstrip("-_ ") or "device")


def dropout_chart(run: Run, key: str, most_cells: int = MOST_CELLS) -> Chart | None:
    """Draw the dropout rate of every device and round; None if no device was ever asked."""
    devices = run.devices()
    if not devices:
        return None
    records = [run.rounds[k] for k in thinned(len(run.rounds), max(1, most_cells // len(devices)))]
    names, title = tick_names(run, devices, classes=True)
    cells = _cells(records, devices)
    marked = len(devices) * len(records) <= _MOST_MARKS
    data = _traces(run, cells, [record["round"] for record in records], list(names.values()), title, marked)
    rounds = axis("round", dtick=round_step(records[-1]["round"]), tickformat="d", showgrid=False)
    rows = axis(title, type="category", autorange="reversed", showgrid=False)
    if len(devices) <= _MOST_NAMES:
        rows |= {"tickmode": "linear", "dtick": 1}
    return Chart(
        f"{key}-dropout",
        "Dropout rate γ per device and round",
        _caption(cells, len(records), len(run.rounds)),
        _spoken(run, devices, cells),
        data,
        layout(rounds, rows, showlegend=False),
        min(940, max(260, 110 + 24 * len(devices))),
        wide=True,
    )


def _traces(run: Run, cells: _Cells, x: list[int], y: list[str], title: str, marked: bool) -> list[dict[str, Any]]:
    """Return one heat map of the rates, one per kind of trouble, and marks where a cell has room for one."""
    low, high = rate_span(run)
    gap = 1 if marked else 0
    shared = {"type": "heatmap", "x": x, "y": y, "xgap": gap, "ygap": gap}
    where = f"{title} %{{y}}<br>round %{{x}}<br>"
    rates = {"name": "dropout rate", "z": cells["rate"], "zmin": low, "zmax": high}
    hover = f"{where}dropout rate γ = %{{z:.3f}}<extra></extra>"
    data: list[dict[str, Any]] = [shared | rates | {"hovertemplate": hover}]
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


def rate_span(run: Run) -> tuple[float, float]:
    """Return the limits of the map's colours: the rates that occur; at least a tenth, lest rounding shows."""
    found = (row["dropout_rate"] for record in run.rounds for row in record["devices"])
    rates = [rate for rate in found if rate is not None]
    if not rates:
        return 0.0, 1.0
    low, high = min(rates), max(rates)
    spare = max(0.0, 0.1 - (high - low)) / 2
    return low - spare, high + spare


def _cells(records: list[Record], devices: list[str]) -> _Cells:
    """Sort every (device, round) into one of three maps; a device that was not asked is in none."""
    row_of = {device: k for k, device in enumerate(devices)}
    maps: _Cells = {name: [[None] * len(records) for _ in devices] for name in ("rate", *_TROUBLE)}
    waiting = sum(not row["scheduled"] for record in records for row in record["devices"])
    for column, record in enumerate(records):
        failed = {failure["device"]: f"{failure['kind']}: {failure['message']}" for failure in record["failures"]}
        for row in record["devices"]:
            shown: float | str | None
            name, shown = "rate", significant(row["dropout_rate"], 4)
            if not row["scheduled"]:
                reason = row["reason"] or "no reason given"
                name, shown = "sat out", _lines(reason if waiting <= _MOST_REASONS else cause(reason))
            elif row["latency_s"] is None:
                name, shown = "no usable answer", _lines(failed.get(row["id"], "nothing came back"))
            maps[name][row_of[str(row["id"])]][column] = shown
    return maps


def _lines(text: str) -> str:
    """Escape and wrap text for a hover label: plotly does not wrap, and a phone is narrow."""
    return "<br>".join(esc(line) for line in textwrap.wrap(text, 48)[:12])


def _caption(cells: _Cells, shown: int, rounds: int) -> str:
    """Say in HTML what the colours and marks that occur mean."""
    maps = [cells["rate"], *(cells[name] for name in _TROUBLE)]
    keys = [
        (color, mark, words)
        for name, (color, mark, words) in _TROUBLE.items()
        if any(cell is not None for row in cells[name] for cell in row)
    ]
    if any(cell == (None, None, None) for rows in zip(*maps, strict=True) for cell in zip(*rows, strict=True)):
        keys.append(("", "", "empty: not asked in that round"))
    return part("map_caption", keys, shown, rounds)


def _spoken(run: Run, devices: list[str], cells: _Cells) -> str:
    rates = [value for row in cells["rate"] for value in row if value is not None]
    waits = sum(cell is not None for row in cells["sat out"] for cell in row)
    span = f"rates between {min(rates):.3f} and {max(rates):.3f}" if rates else "no device trained"
    return f"Map of {len(devices)} devices and {len(run.rounds)} rounds: {span}; {waits} times a device sat out."
