import csv
from pathlib import Path

import numpy as np
import pytest

from optimizer.__main__ import main
from optimizer.bench import (
    RESOURCES,
    excess_over_optimum,
    objective_against,
    objective_against_clock,
    plot_objectives,
    plot_times,
    table,
)
from optimizer.fdma.exact import solve_fdma
from optimizer.fdma.schemes import common
from optimizer.instances import sample_problem
from optimizer.plots import STYLES, draw_single


def test_sampled_fleets_are_seeded_and_bind() -> None:
    first, again = sample_problem(10, 3), sample_problem(10, 3)
    np.testing.assert_array_equal(first.channel_gain, again.channel_gain)
    assert sample_problem(4, 0, access="ofdma", num_subcarriers=8).channel_gain.shape == (4, 8)
    solution = solve_fdma(first)
    assert np.nanmin(solution.dropout_rate) > 0.3


def test_a_cell_of_the_table_runs_apart() -> None:
    rows = table({"small": sample_problem(3, 0)}, ("exact", "scip"), repeats=1, time_limit_s=0.001, gap=1e-4)
    assert rows[0]["objective"] > 0 and rows[0]["nodes"] == 1 and rows[0]["peak_rss_mib"] > 10
    assert "objective" in rows[1] or rows[1]["note"]


def test_excess_compares_with_the_optimum_for_the_same_devices() -> None:
    fleet = sample_problem(6, 1)
    assert abs(excess_over_optimum(fleet, solve_fdma(fleet))) < 1e-9
    assert excess_over_optimum(fleet, common(fleet)) > 1e-4


@pytest.mark.parametrize("name", list(RESOURCES))
def test_sweeps_fall_with_the_resource_and_are_drawn(tmp_path: Path, name: str) -> None:
    values = RESOURCES[name].values
    rows = objective_against(name, ("exact", "equal", "none"), values=(values[0], values[-1]))
    exact, equal = ([row["objective"] for row in rows if row["method"] == method] for method in ("exact", "equal"))
    assert (exact[1] > exact[0]) if name == "devices" else (exact[1] < exact[0])
    assert all(a <= b for a, b in zip(exact, equal, strict=True))
    plot_objectives(tmp_path / "a.png", rows)
    assert (tmp_path / "a.png").stat().st_size > 1000 and not list(tmp_path.glob(".*"))


def test_a_free_clock_buys_something_and_is_drawn(tmp_path: Path) -> None:
    rows = objective_against_clock((1.5,))
    assert rows[1]["objective"] < 0.99 * rows[0]["objective"]
    draw_single(tmp_path / "a.png", rows, "share", "objective")
    plot_times(tmp_path / "b.png", [{"method": "exact", "devices": k, "median_s": 0.01 * k} for k in (3, 10)])
    assert (tmp_path / "a.png").stat().st_size > 1000 and (tmp_path / "b.png").stat().st_size > 1000


def test_no_two_methods_look_alike() -> None:
    assert len(set(STYLES.values())) == len(STYLES)
    assert len({(marker, dash) for _, marker, dash in STYLES.values()}) >= 9  # told apart without colour, too


@pytest.mark.slow
def test_the_whole_bench(tmp_path: Path) -> None:
    assert main(["bench", "--out", str(tmp_path), "--methods", "exact,equal", "--repeats", "1"]) == 0
    with (tmp_path / "table.csv").open(encoding="utf-8") as stream:
        assert {row["method"] for row in csv.DictReader(stream)} == {"exact", "equal"}
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "times.png",
        "clock.png",
        *(f"{name}.png" for name in RESOURCES),
    }
