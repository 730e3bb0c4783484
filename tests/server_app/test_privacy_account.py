"""The privacy account: against the closed form of the Gaussian mechanism, and in whole runs."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from conf.compose import ConfigError, compose_config, join_overrides
from server_app.privacy_account import central_epsilon, epsilon
from tests.support.runs import rounds, run

pytest.importorskip("dp_accounting")


def _gaussian_epsilon(sigma: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism of sensitivity 1, from its exact delta(epsilon)."""

    def excess(eps: float) -> float:
        return norm.cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * norm.cdf(-0.5 / sigma - eps * sigma) - delta

    return float(brentq(excess, 0.0, 50.0))


@pytest.mark.parametrize(("answers", "z"), [(1, 4.0), (10, 8.0), (100, 30.0)])
def test_epsilon_is_that_of_the_composed_gaussian(answers: int, z: float) -> None:
    # t Gaussian mechanisms of noise sigma are one of noise sigma / sqrt(t); two data sets are two clipping norms apart.
    expected = _gaussian_epsilon(z / 2 / math.sqrt(answers), 1e-5)
    assert epsilon(answers, z, 1e-5) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("answers", "z"), [(1, 0.1), (50, 0.1), (1000, 0.01), (1, 1e-3), (1, 1e6), (50, 1.0)])
def test_epsilon_for_any_noise_without_much_memory(answers: int, z: float) -> None:
    tracemalloc.start()
    found = epsilon(answers, z, 1e-5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    ratio = 2 * math.sqrt(answers) / z
    # Between the mean of the privacy loss, less five standard deviations, and its tail bound.
    assert max(0.0, ratio**2 / 2 - 5 * ratio) <= found <= ratio**2 / 2 + ratio * math.sqrt(2 * math.log(1e5))
    assert peak < 50e6


def test_epsilon_grows_with_answers_and_shrinks_with_noise() -> None:
    assert epsilon(0, 1.0, 1e-5) == 0 and epsilon(3, 0.0, 1e-5) == math.inf
    assert epsilon(1, 5.0, 1e-5) < epsilon(2, 5.0, 1e-5) < epsilon(2, 4.0, 1e-5)


PRIVATE = ("privacy.clip_norm=0.5", "privacy.noise_multiplier=4.0", "privacy.noise_seed=3")


def test_a_private_run_reports_epsilon_and_keeps_the_loss_at_home(tmp_path: Path) -> None:
    assert run(tmp_path, *PRIVATE) == 0
    records = rounds(tmp_path)
    assert all(device["train_loss"] is None for record in records for device in record["devices"])
    for device, spent in records[-1]["privacy"]["epsilon"].items():
        asked = sum(d["scheduled"] for record in records for d in record["devices"] if d["id"] == device)
        assert spent == pytest.approx(epsilon(asked, 4.0, 1e-5))
    assert "knows" in records[-1]["privacy"]["guarantee"]


def test_noise_of_the_operating_system_differs_from_run_to_run(tmp_path: Path) -> None:
    losses = set()
    for name in ("one", "two"):
        assert run(tmp_path / name, *PRIVATE[:2], "run.num_rounds=1") == 0
        losses.add(rounds(tmp_path / name)[0]["eval"]["loss"])
        assert rounds(tmp_path / name)[0]["privacy"]["guarantee"].startswith("local")
    assert len(losses) == 2


def test_a_resumed_run_remembers_what_was_spent(tmp_path: Path) -> None:
    assert run(tmp_path, *PRIVATE, "run.num_rounds=2") == 0
    assert run(tmp_path, *PRIVATE, "run.num_rounds=3", f"run.resume='{tmp_path}'") == 0
    assert run(tmp_path / "whole", *PRIVATE) == 0
    assert rounds(tmp_path)[-1]["privacy"] == rounds(tmp_path / "whole")[-1]["privacy"]


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ("privacy.noise_multiplier=1.0", "clip_norm"),
        ("privacy.clip_norm=1 run.client_evaluation=0.2", "client_evaluation"),
        ("privacy.delta=0", "delta"),
    ],
)
def test_settings_that_would_not_protect_are_refused(overrides: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        compose_config(overrides)


# Central noise --------------------------------------------------------------------------------------------------------


def _sampled_delta(eps: float, q: float, z: float) -> float:
    """Exact delta(epsilon) of one Poisson-sampled Gaussian, the worse of adding and removing a device."""
    mixture = lambda x: (1 - q) * norm.pdf(x, 0, z) + q * norm.pdf(x, 1, z)  # noqa: E731
    without = lambda x: norm.pdf(x, 0, z)  # noqa: E731
    both = []
    for one, other in ((mixture, without), (without, mixture)):
        grid = np.linspace(-12 * z, 1 + 12 * z, 40_001)
        both.append(np.trapezoid(np.maximum(one(grid) - math.exp(eps) * other(grid), 0), grid))
    return float(max(both))


@pytest.mark.parametrize(("q", "z"), [(0.5, 1.0), (0.1, 0.8), (0.9, 2.0)])
def test_one_sampled_round_is_the_exact_one(q: float, z: float) -> None:
    found = central_epsilon(1, z, q, 1e-5)
    assert _sampled_delta(found, q, z) <= 1.0001e-5 < _sampled_delta(found - 2e-3, q, z)


def test_many_sampled_rounds_by_sampling_their_loss() -> None:
    q, z, rounds, delta = 0.3, 1.2, 12, 0.01
    rng = np.random.default_rng(0)
    x = rng.normal(rng.random((400_000, rounds)) < q, z)  # removal, the worse direction here
    loss = np.log(1 - q + q * np.exp((2 * x - 1) / (2 * z**2))).sum(axis=1)
    found = central_epsilon(rounds, z, q, delta)
    sampled = np.mean(np.maximum(0, 1 - np.exp(found - loss)))
    assert sampled == pytest.approx(delta, rel=0.03)


def test_the_moments_accountants_published_value_bounds_ours() -> None:
    # Abadi et al., Deep Learning with Differential Privacy, CCS 2016, section 3.2: q = 0.01, sigma = 4, delta = 1e-5,
    # 10,000 steps: 1.26 by moments, which the exact composition must stay below, but not far.
    assert 0.8 < central_epsilon(10_000, 4.0, 0.01, 1e-5) < 1.26


def test_central_epsilon_at_its_ends() -> None:
    assert central_epsilon(0, 1.0, 0.5, 1e-5) == 0 and central_epsilon(3, 0.0, 0.5, 1e-5) == math.inf
    assert central_epsilon(4, 3.0, 1.0, 1e-5) == pytest.approx(_gaussian_epsilon(1.5, 1e-5), rel=0.01)
    assert central_epsilon(4, 3.0, 0.999999, 1e-5) == pytest.approx(central_epsilon(4, 3.0, 1.0, 1e-5), rel=1e-3)
    assert 250 < central_epsilon(1, 0.05, 0.5, 1e-5) < 300  # little noise: no hours, no gigabytes


CENTRAL = (
    "privacy.model=central",
    "privacy.clip_norm=0.5",
    "privacy.noise_multiplier=0.5",
    "strategy.clip_factor=null",
    "strategy.aggregation=previous",
)


def test_a_central_run_keeps_losses_out_of_its_records_and_says_what_was_spent(tmp_path: Path) -> None:
    assert run(tmp_path, *CENTRAL, "strategy.fraction=0.5") == 0
    records = rounds(tmp_path)
    for number, record in enumerate(records, 1):
        told = record["privacy"]
        assert told["epsilon"] == pytest.approx(central_epsilon(number, 0.5, 0.5, 1e-5))
        assert told["guarantee"].startswith("central") and told["epsilon"] <= 1.001 * central_epsilon(
            number, 0.5, 1.0, 1e-5
        )
        assert record["train_loss"] is None and not record["clipped"]
        assert all(device["train_loss"] is None for device in record["devices"])
    asked = max(
        sum(bool(row["downlink_bytes"]) for record in records for row in record["devices"] if row["id"] == name)
        for name in {row["id"] for row in records[0]["devices"]}
    )
    assert records[-1]["privacy"]["epsilon_if_draw_is_known"] == pytest.approx(central_epsilon(asked, 0.5, 1.0, 1e-5))


def test_a_round_in_which_nobody_answers_gets_noise_all_the_same(tmp_path: Path) -> None:
    assert run(tmp_path, *CENTRAL, "strategy.fraction=1e-9", "run.num_rounds=2", "network.num_devices=2") != 0
    losses = [record["eval"]["loss"] for record in rounds(tmp_path)]
    assert losses[0] != losses[1] and not any(record["answers"]["asked"] for record in rounds(tmp_path))


@pytest.mark.parametrize("method", [("strategy=fedlodrop", "network.total_bandwidth_hz=2e4"), ("strategy=rolora",)])
def test_plans_do_not_depend_on_who_was_drawn(tmp_path: Path, method: tuple[str, ...]) -> None:
    """The draw is secret: what others send must not tell who was drawn in this or earlier rounds."""
    planned = ("scheduled", "dropout_rate", "tx_power_w", "bandwidth_hz", "reason")
    plans, draws = set(), set()
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        items = [item for item in CENTRAL if "rolora" not in method[0] or "aggregation" not in item]
        assert (
            run(folder, *method, *items, "strategy.fraction=0.5", f"privacy.noise_seed={seed}", "run.eval_every=3") == 0
        )
        rows = [row for record in rounds(folder) for row in record["devices"]]
        plans.add(json.dumps([[row[key] for key in planned] for row in rows]))
        draws.add(tuple(bool(row["downlink_bytes"]) for row in rows))
    assert len(plans) == 1 and len(draws) == 2


def test_the_draw_comes_from_the_operating_system(tmp_path: Path) -> None:
    draws = set()
    for name in ("one", "two"):
        assert (
            run(tmp_path / name, *CENTRAL, "strategy.fraction=0.5", "run.num_rounds=1", "network.num_devices=24") == 0
        )
        draws.add(str([bool(row["downlink_bytes"]) for r in rounds(tmp_path / name) for row in r["devices"]]))
    assert len(draws) == 2


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("strategy.clip_factor=1", "strategy.clip_factor must be null"),
        ("strategy.robust=median", "strategy.robust must be mean"),
        ("strategy.devices_per_round=2", "strategy.devices_per_round must be null"),
        ("strategy.aggregation=kept", "strategy.aggregation must be previous"),
        ("budget.battery_j={watch: 40}", "budget.battery_j must be null"),
        ("profile.smoothing=0.1", "profile.smoothing must be 0"),
        ("privacy.clip_norm=null", "privacy.clip_norm must be given"),
    ],
)
def test_what_would_void_the_central_guarantee_is_refused_in_one_line(override: str, word: str) -> None:
    items = [item for item in CENTRAL if item.split("=")[0] != override.split("=")[0]]
    with pytest.raises(ConfigError, match=word) as refused:
        compose_config(join_overrides([*items, override]))
    assert "\n" not in str(refused.value)


def test_a_method_that_averages_otherwise_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [item for item in CENTRAL if "aggregation" not in item]
    assert run(tmp_path, *items, "strategy=flora", "network.num_devices=2") != 0
    assert "privacy.model=central needs averages" in caplog.text
