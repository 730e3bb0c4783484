"""A download whose numbers travel in another type than the upload's: every method must count it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.allocator import METHODS, make_allocator
from optimizer.fdma.admission import admit_fdma
from optimizer.feasibility import check_solution, evaluate
from optimizer.files import read_problem, write_problem
from optimizer.problem import ResourceProblem
from tests.optimizer.fleets import random_fleet
from tests.optimizer.ofdma_instances import random_problem


def _wider(problem: ResourceProblem, factor: float) -> ResourceProblem:
    """The same fleet with a download ``factor`` times as large; slow enough to matter."""
    return replace(
        problem,
        downlink_rate_bps=problem.downlink_rate_bps / 3,
        downlink_fixed_bits=problem.fixed_bits * factor,
        downlink_droppable_bits=problem.droppable_bits * factor,
    )


def test_the_latency_counts_each_direction_in_its_own_bits() -> None:
    problem, none = (_wider(random_fleet(0, 4), factor) for factor in (2.0, 0.0))
    gamma, band = np.full(4, 0.25), np.full(4, 1e5)
    latency_s = [evaluate(cell, gamma, cell.max_tx_power_w, band).cost.latency_s for cell in (problem, none)]
    bits = problem.fixed_bits + 0.75 * problem.droppable_bits
    np.testing.assert_allclose(latency_s[0] - latency_s[1], 2 * bits / problem.downlink_rate_bps, rtol=1e-9)


@pytest.mark.parametrize("name", sorted(name for name, table in METHODS.items() if "fdma" in table and name != "scip"))
def test_fdma_methods_keep_the_deadline(name: str) -> None:
    problem = _wider(random_fleet(3, 6, total_bandwidth_hz=2e6), 2.0)
    solution = make_allocator(name).allocate(problem, rng=np.random.default_rng(0))
    assert solution.scheduled.any() and check_solution(problem, solution) == []


@pytest.mark.parametrize("name", ["exact", "bnb", "psca", "equal"])
def test_ofdma_methods_keep_the_deadline(name: str) -> None:
    problem = _wider(random_problem(3, 8, 1), 2.0)
    solution = make_allocator(name, time_limit_s=2.0).allocate(problem, rng=np.random.default_rng(0))
    assert solution.scheduled.any() and check_solution(problem, solution) == []


@pytest.mark.parametrize("name", ["exact", "bnb", "psca"])
def test_twice_the_download_is_half_the_downlink_rate(name: str) -> None:
    problem = _wider(random_fleet(5, 5), 2.0)
    slower = replace(
        problem, downlink_rate_bps=problem.downlink_rate_bps / 2, downlink_fixed_bits=None, downlink_droppable_bits=None
    )
    wide, slow = (make_allocator(name).allocate(p, rng=np.random.default_rng(0)) for p in (problem, slower))
    np.testing.assert_allclose(wide.dropout_rate, slow.dropout_rate, atol=1e-9)
    assert wide.objective == pytest.approx(slow.objective, rel=1e-9)


def test_scip_counts_it_too() -> None:
    pytest.importorskip("pyscipopt")
    problem = _wider(random_fleet(1, 2), 2.0)
    solution = make_allocator("scip").allocate(problem, rng=np.random.default_rng(0))
    exact = make_allocator("exact").allocate(problem, rng=np.random.default_rng(0))
    assert check_solution(problem, solution) == [] and solution.objective == pytest.approx(exact.objective, rel=1e-4)


def test_it_survives_subsets_and_files(tmp_path: Path) -> None:
    problem = _wider(random_fleet(2, 5), 3.0)
    part = problem.subset(np.array([1, 3]))
    np.testing.assert_array_equal(part.downlink_payload[1], 3 * part.droppable_bits)
    write_problem(tmp_path / "p.json", problem)
    np.testing.assert_array_equal(read_problem(tmp_path / "p.json").downlink_payload[0], problem.downlink_payload[0])


def test_a_device_that_cannot_download_in_time_is_told_so() -> None:
    problem = _wider(random_fleet(2, 3), 1000.0)
    admission = admit_fdma(problem)
    assert not admission.scheduled.any() and all(
        "time to download and compute" in reason for reason in admission.reasons
    )
