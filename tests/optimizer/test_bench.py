import csv
from pathlib import Path

import numpy as np
import pytest

from optimizer.__main__ import main
from optimizer.bench import excess_over_optimum, objective_against, plot_objectives, plot_times, sample_problem, table
from optimizer.fdma import solve_fdma
from optimizer.schemes import common


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


def test_sweep_and_plots(tmp_path: Path) -> None:
    rows = objective_against("deadline_s", (1.0, 1.5), ("exact", "equal"), num_devices=5)
    exact = [row["objective"] for row in rows if row["method"] == "exact"]
    equal = [row["objective"] for row in rows if row["method"] == "equal"]
    assert exact[1] < exact[0] and all(a <= b for a, b in zip(exact, equal, strict=True))
    plot_objectives(tmp_path / "a.png", rows)
    plot_times(tmp_path / "b.png", [{"method": "exact", "devices": k, "median_s": 0.01 * k} for k in (3, 10)])
    assert (tmp_path / "a.png").stat().st_size > 1000 and (tmp_path / "b.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_whole_bench(tmp_path: Path) -> None:
    assert main(["bench", "--out", str(tmp_path), "--methods", "exact,equal", "--repeats", "1"]) == 0
    with (tmp_path / "table.csv").open(encoding="utf-8") as stream:
        assert {row["method"] for row in csv.DictReader(stream)} == {"exact", "equal"}
    assert {path.name for path in tmp_path.glob("*.png")} == {"times.png", "deadline.png", "energy.png"}
