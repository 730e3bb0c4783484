"""The one style of all figures: labels that do not touch, names shown as they are, curves that can be told apart."""

from __future__ import annotations

from itertools import pairwise
from math import radians, sin
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optimizer.plots import draw_lines, new_figure, save, shared_legend, style


def touching(figure: Any) -> list[tuple[str, str]]:
    """Return pairs of tick labels, along horizontal axes, that lie on each other."""
    figure.draw_without_rendering()
    found = []
    for axis in figure.axes:
        low, high = sorted(axis.get_xlim())
        labels = [t for t in axis.get_xticklabels(which="both") if t.get_visible() and t.get_text()]
        labels = sorted((t for t in labels if low <= t.get_position()[0] <= high), key=lambda t: t.get_position()[0])
        for left, right in pairwise(labels):
            turn, size = left.get_rotation(), left.get_fontsize() * figure.dpi / 72
            assert turn == right.get_rotation()
            if turn:  # parallel lines of text: the distance between them counts
                apart = right.get_window_extent().x1 - left.get_window_extent().x1
                clear = apart * sin(radians(turn)) >= size
            else:
                clear = left.get_window_extent().x1 < right.get_window_extent().x0
            found += [] if clear else [(left.get_text(), right.get_text())]
    return found


@pytest.mark.parametrize(
    "values", [[1e-4, 1.1e-4, 3e-4, 1e-3], [10.0**-k for k in range(1, 9)], list(range(100_000_000, 100_000_020))]
)
def test_tick_labels_do_not_touch(tmp_path: Path, values: list[float]) -> None:
    figure, (axis,) = new_figure(width=3.0)
    axis.plot(range(len(values)), values)
    axis.set_xticks(np.linspace(0, 1, len(values)) ** 2, [f"{value:g}" for value in values])
    axis.set_xlim(0, 1)
    save(figure, tmp_path / "deep" / "a.png")
    assert touching(figure) == []
    with Image.open(tmp_path / "deep" / "a.png") as picture:
        assert "Software" not in picture.info


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["_hidden", "$x^2$", "a$b", r"$\frac$", "50 %"]
    figure, axes = new_figure()
    draw_lines(axes[0], [{"method": name, "x": k, "y": 1.0} for name in names for k in range(2)], "x", "y")
    shared_legend(figure, axes)
    save(figure, tmp_path / "a.png")
    shown = [text.get_text().replace(r"\$", "$").strip() for text in figure.legends[0].get_texts()]
    assert shown == names


def test_two_dozen_curves_look_different() -> None:
    looks = [style(f"run {k}", k) for k in range(24)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 24


def test_what_cannot_be_drawn_leaves_nothing_behind(tmp_path: Path) -> None:
    figure, (axis,) = new_figure()
    axis.set_title("$\\frac$")
    with pytest.raises(ValueError):
        save(figure, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
