"""The part of the results page that a calibration adds."""

from __future__ import annotations

from pathlib import Path


def calibration_section(folder: Path, base: Path) -> list[str]:
    """Return the lines about ``calibration.csv`` in a study's folder; none where there is no such file."""
    return []
