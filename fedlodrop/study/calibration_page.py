"""The part of the results page that a calibration adds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

DISTANCE, CORRELATION = 0.15, 0.8  # what a useful bound should reach


def calibration_section(folder: Path, base: Path) -> list[str]:
    """Return the lines about ``calibration.json`` in a study's folder; none where there is no such file."""
    path = folder / "calibration.json"
    if not path.exists():
        return []
    records: list[dict[str, Any]] = json.loads(path.read_text())
    rows = [_row(record) for record in records]
    header = [
        "task",
        "best γ predicted",
        "best γ measured",
        "distance",
        "rank correlation",
        "distance, seed held out",
        "correlation, seed held out",
        f"within {DISTANCE:g} and at least {CORRELATION:g}",
    ]
    table = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    picture = f"![Measured and predicted error]({os.path.relpath(folder / 'calibration.png', base)})\n"
    where = records[0]["view"]
    return [
        f"### Calibrated bound ({where} rounds)\n" if where == "fixed" else f"### Calibrated bound ({where})\n",
        "\n".join(table) + "\n",
        picture,
    ]


def _row(record: dict[str, Any]) -> list[str]:
    correlation = record["rank_correlation"]
    near = record["distance"] <= DISTANCE
    ordered = correlation is not None and correlation >= CORRELATION
    verdict = (
        "met"
        if near and ordered
        else "**missed**: "
        + " and ".join(word for word, good in (("distance", near), ("correlation", ordered)) if not good)
    )
    verdict += " (one seed: no evidence)" if record["seeds"] == 1 else ""
    interval = record["predicted_rate_interval"]
    predicted = f"{record['predicted_rate']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
    return [
        record["setting"],
        predicted,
        f"{record['measured_rate']:.2f}",
        f"{record['distance']:.2f}",
        _number(correlation),
        _number(record["held_out_distance"]),
        _number(record["held_out_rank_correlation"]),
        verdict,
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
