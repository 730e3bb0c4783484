"""The adversary: every forgery that claims more than is true is refused, and so is what a broken solver claims."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from optimizer import certificate
from optimizer.fdma import admission as fdma_admission
from optimizer.fdma import bandwidth_curve, exact, schemes
from optimizer.objective import GeneralizationBound
from optimizer.ofdma import dual_bound
from optimizer.ofdma.branch_and_bound import solve_bnb_ofdma
from optimizer.ofdma.psca import solve_psca_ofdma
from optimizer.ofdma.set_bound import pricing
from optimizer.solver_interface import Arguments, Limits
from optimizer.verify import Refused, Unusable, verify
from tests.optimizer.fleets import random_fleet
from tests.optimizer.honest import as_files, solve
from tests.optimizer.ofdma_instances import random_problem

Files = tuple[dict[str, Any], dict[str, Any]]
Forge = Callable[[dict[str, Any]], Any]


@cache
def _case(name: str) -> Files:
    """Honest files: a fleet by the exact method or by a rule, an overloaded fleet, a cell, a cell with a search tree."""
    fleet, cell = random_fleet(0, 6), random_problem(3, 8, 1)
    if name == "tree":
        cell = random_problem(3, 7, 8)
        limits = Limits(max_nodes=60, rounds=2, list_length=15, keep=5, split_rates=True)
        return as_files(cell, solve_bnb_ofdma(cell, Arguments(gap=1e-6, limits=limits)))
    if name == "scarce":
        fleet = random_fleet(5, 10, total_bandwidth_hz=1.2e5)
    problem = cell if name == "cell" else fleet
    return as_files(problem, solve(problem, {"rule": "equal", "cell": "bnb"}.get(name, "exact"), gap=1e-9))


def _scale(key: str, factor: float, at: int = 0) -> Forge:
    def forge(solution: dict[str, Any]) -> None:
        if isinstance(solution[key], list):
            solution[key][at] *= factor
        else:
            solution[key] *= factor

    return forge


def _raise_bound(share: float) -> Forge:
    def forge(solution: dict[str, Any]) -> None:
        solution["lower_bound"] += (
            share * (solution["objective"] - solution["lower_bound"]) + 1e-7 * solution["objective"]
        )
        solution["gap"] = (solution["objective"] - solution["lower_bound"]) / solution["objective"]

    return forge


def _swap(*keys: str) -> Forge:
    def forge(solution: dict[str, Any]) -> None:
        for key in keys:
            solution[key][0], solution[key][1] = solution[key][1], solution[key][0]

    return forge


def _certificate(**changes: Any) -> Forge:
    return lambda solution: solution["certificate"].update(changes)


def _change(key: str, change: Callable[[Any], Any]) -> Forge:
    def forge(solution: dict[str, Any]) -> None:
        solution["certificate"][key] = change(solution["certificate"][key])

    return forge


def _put(key: str, value: Any, at: int | None = None) -> Forge:
    def forge(solution: dict[str, Any]) -> None:
        if at is None:
            solution[key] = value
        else:
            solution[key][at] = value

    return forge


def _send_away(solution: dict[str, Any], claim: str = "heaviest") -> None:
    """Leave out a device that is served, and give back what it held."""
    fdma, value = "bandwidth_hz" in solution, 0.0
    solution["scheduled"][0], solution["admission"] = False, claim
    for key in ("dropout_rate", "latency_s", "energy_j"):
        solution[key][0] = None
    solution["tx_power_w"][0] = 0.0 if fdma else [0.0] * len(solution["tx_power_w"][0])
    if fdma:
        solution["bandwidth_hz"][0] = 0.0
        solution["certificate"]["shift"].pop(0)
    else:
        solution["subcarrier_owner"] = [None if k == 0 else k for k in solution["subcarrier_owner"]]
        solution["certificate"] = {
            key: row[1:] if key != "price" else row for key, row in solution["certificate"].items()
        }
    solution["objective"], solution["lower_bound"], solution["gap"] = value, value, 0.0


def _first_leaf(node: dict[str, Any]) -> dict[str, Any]:
    while "parts" in node:
        node = node["parts"][0]
    return node


FORGERIES: dict[str, tuple[str, Forge]] = {
    "objective lowered": ("exact", _scale("objective", 1 - 1e-5)),
    "objective raised": ("exact", _scale("objective", 1 + 1e-5)),
    "bound raised a little": ("exact", _raise_bound(0.0)),
    "bound of a rule set to its objective": ("rule", _raise_bound(1.0)),
    "bound of a rule raised by a hundredth of its gap": ("rule", _raise_bound(0.01)),
    "gap of nothing": ("rule", _put("gap", 0.0)),
    "no certificate": ("exact", _put("certificate", None)),
    "certificate that is a number": ("exact", _put("certificate", 5)),
    "price halved": ("exact", _change("price_per_hz", lambda price: 0.5 * price)),
    "price raised by a hundredth": ("exact", _change("price_per_hz", lambda price: 1.01 * price)),
    "price of nothing": ("exact", _certificate(price_per_hz=0.0)),
    "dropout rate lowered": ("exact", _scale("dropout_rate", 0.99)),
    "dropout rate above its limit": ("exact", _put("dropout_rate", 0.91, 0)),
    "dropout rate negative": ("exact", _put("dropout_rate", -0.1, 0)),
    "devices swapped": ("exact", _swap("dropout_rate", "bandwidth_hz", "tx_power_w", "latency_s", "energy_j")),
    "bandwidths swapped": ("exact", _swap("bandwidth_hz")),
    "bandwidth inflated": ("exact", _scale("bandwidth_hz", 1.01)),
    "power lowered": ("exact", _scale("tx_power_w", 0.99)),
    "power above the cap": ("exact", _scale("tx_power_w", 100.0)),
    "decimal of the latency moved": ("exact", _scale("latency_s", 0.1)),
    "decimal of the energy moved": ("exact", _scale("energy_j", 10.0)),
    "clock changed": ("exact", _put("cpu_hz", [3e9] * 6)),
    "device left out that keeps its band": ("exact", _put("scheduled", False, 0)),
    "nobody served": ("scarce", lambda s: s.update(scheduled=[False] * 10)),
    "band for a device that sits out": (
        "scarce",
        lambda s: s["bandwidth_hz"].__setitem__(s["scheduled"].index(False), 1.0),
    ),
    "heaviest set claimed without a device that fits": ("scarce", _send_away),
    "owner changed": ("cell", _put("subcarrier_owner", 2, 0)),
    "owner that is no device": ("cell", _put("subcarrier_owner", 7, 0)),
    "power on a foreign subcarrier": (
        "cell",
        lambda s: s["tx_power_w"][0].__setitem__(s["subcarrier_owner"].index(1), 1e-6),
    ),
    "subcarrier prices lowered": ("cell", _change("price", lambda row: [0.9 * value for value in row])),
    "subcarrier price of nothing": ("cell", _change("price", lambda row: [0.0] * len(row))),
    "subcarrier price negative": ("cell", _change("price", lambda row: [-1e-3, *row[1:]])),
    "floor raised": ("cell", _change("floor", lambda row: [row[0] * 1.0001, *row[1:]])),
    "floor raised, bound raised": (
        "cell",
        lambda s: (_change("floor", lambda row: [row[0] + 0.01, *row[1:]])(s), _put("lower_bound", s["objective"])(s)),
    ),
    "a leaf dropped": ("tree", _change("parts", lambda parts: parts[:-1])),
    "an owner left out": ("tree", lambda s: s["certificate"]["owners"].__setitem__(0, [])),
    "a part said to be empty": (
        "tree",
        lambda s: s["certificate"]["parts"].__setitem__(0, {"price": [0.0] * 7, "floor": [1e300, 0.0, 0.0]}),
    ),
    "parts in another order": ("tree", _change("parts", lambda parts: parts[::-1])),
    "an empty list of parts": ("tree", _certificate(parts=[], owners=[])),
    "floor raised in one leaf": ("tree", lambda s: _first_leaf(s["certificate"])["floor"].__setitem__(0, 1.0)),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_are_refused(name: str) -> None:
    case, forge = FORGERIES[name]
    problem, solution = _case(case)
    verify(problem, solution)
    forged = copy.deepcopy(solution)
    forge(forged)
    assert forged != solution
    with pytest.raises((Refused, Unusable)) as caught:  # Unusable where the parts do not even match
        verify(problem, forged)
    assert type(caught.value) is Refused or name in UNUSABLE, caught.value


UNUSABLE = {"owner that is no device", "a leaf dropped", "subcarrier price negative", "nobody served"}


def test_floors_beyond_the_range_of_floats_are_unusable() -> None:
    problem, solution = copy.deepcopy(_case("cell"))
    solution["certificate"]["floor"] = [1e308] * 3
    with pytest.raises(Unusable, match="OverflowError"):
        verify(problem, solution)


@pytest.mark.parametrize("rates", ["turned round", "shifted", "all at zero"])
def test_wrong_rates_of_a_certificate_prove_what_the_right_ones_do_and_never_more(rates: str) -> None:
    """They say where to look first; where that is no minimiser, the verifier finds its own."""
    problem, solution = _case("exact")
    wrong = copy.deepcopy(solution)
    own = {"turned round": solution["dropout_rate"][::-1], "all at zero": [0.0] * 6}
    if rates in own:
        _certificate(shift=None, dropout_rate=own[rates])(wrong)
    else:
        wrong["certificate"]["shift"] = [n + 10**7 for n in solution["certificate"]["shift"]]
    proven = verify(problem, wrong).lower_bound
    assert proven == pytest.approx(verify(problem, solution).lower_bound, rel=1e-12) and proven <= solution["objective"]
    with pytest.raises(Refused, match="proven is"):
        verify(problem, wrong | {"lower_bound": solution["objective"] * (1 + 1e-6), "gap": 0.0})


@pytest.mark.parametrize("case", ["exact", "cell"])
def test_other_prices_prove_less_and_never_more(case: str) -> None:
    problem, solution = _case(case)
    best, rng = verify(problem, solution).lower_bound, np.random.default_rng(0)
    for _ in range(20):
        worse = copy.deepcopy(solution)
        factor = float(np.exp(rng.normal(0, 0.3)))
        if case == "exact":
            worse["certificate"]["price_per_hz"] *= factor
        else:
            worse["certificate"]["price"] = [value * factor for value in worse["certificate"]["price"]]
            worse["certificate"]["floor"] = [0.5 * value for value in worse["certificate"]["floor"]]
        worse["lower_bound"] = -1e9
        worse["gap"] = (worse["objective"] + 1e9) / worse["objective"]
        assert verify(problem, worse).lower_bound <= best + 1e-9


def _mutants() -> dict[str, tuple[str, Any, str, Callable[[Any], Any]]]:
    """Ways to break a solver: case, owner of the function, its name, and what stands in for it."""

    def more(amount: float, *, part: int | None = None) -> Callable[[Any], Any]:
        def wrap(function: Any) -> Any:
            def broken(*args: Any, **options: Any) -> Any:
                found = function(*args, **options)
                return found + amount if part is None else (*found[:part], found[part] + amount, *found[part + 1 :])

            return broken

        return wrap

    def times(factor: float) -> Callable[[Any], Any]:
        return lambda function: lambda *args, **options: function(*args, **options) * factor

    def half_the_sets(function: Any) -> Any:
        def broken(psi: Any, reduced: Any, ceiling: float, slack: float, limits: Any) -> Any:
            sets, top = function(psi, reduced, ceiling, slack, limits)
            return sets[1::2], top + 0.01

        return broken

    def scaled(function: Any) -> Any:
        return lambda *args: tuple(part * 0.9 for part in function(*args))

    return {
        "bound of a rule too high": ("rule", certificate, "free_bound", more(1e-5)),
        "price of the bound doubled": (
            "fdma",
            exact,
            "price_certificate",
            lambda f: lambda price, rates: f(2 * price, rates),
        ),
        "bandwidth too small": ("fdma", bandwidth_curve, "spectral_efficiency_nats", times(1.001)),
        "slope of the objective wrong": ("fdma", GeneralizationBound, "derivative", more(0.02)),
        "objective too low": ("fdma", GeneralizationBound, "value", times(0.999)),
        "a lighter set called the heaviest": (
            "scarce",
            fdma_admission,
            "heaviest_fitting",
            lambda f: lambda *a, **o: ((found := f(*a, **o)[0]) & (np.cumsum(found) > 1), True),
        ),
        "device minima too high": ("psca", dual_bound, "device_minima", lambda f: more(1e-3, part=0)(f)),
        "subcarriers worth less": ("psca", dual_bound, "carrier_values", scaled),
        "half the sets forgotten": ("cell", pricing, "list_sets", half_the_sets),
        "least cost of sets too high": ("cell", pricing.Pricing, "cheapest_sets", more(1e-3, part=0)),
    }


@pytest.mark.parametrize("name", _mutants())
def test_a_broken_solver_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, owner, function, wrap = _mutants()[name]
    problem = {
        "fdma": random_fleet(0, 6),
        "rule": random_fleet(0, 6),
        "scarce": random_fleet(5, 10, total_bandwidth_hz=1.2e5),
    }.get(case, random_problem(3, 8, 1))
    run = {"cell": solve_bnb_ofdma, "psca": solve_psca_ofdma, "rule": schemes.equal}.get(case, exact.solve_fdma)
    verify(*as_files(problem, run(problem)))
    monkeypatch.setattr(owner, function, wrap(getattr(owner, function)))
    with pytest.raises(Refused):
        verify(*as_files(problem, run(problem)))
