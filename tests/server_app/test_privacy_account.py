"""The privacy account: against the closed form of the Gaussian mechanism, and in whole runs."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from conf.compose import ConfigError, compose_config
from server_app.privacy_account import epsilon
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
