"""How well the learning-curve bound and the two-term bound predict the best dropout rate on what they have not seen.

The runs are those of finished studies, federated and with one dropout rate each. Two ways of leaving out:

- ``task left out``: exponents fitted on the other tasks; of this task one pilot run without dropout is known;
- ``rates left out``: one seed of this task; every rate is predicted from the others.

The mean of the other seeds judges.

The two-term bound has the same chances: fitted to the other tasks' runs, or to one seed's runs at the other rates.
"""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from conf.compose import ROOT, compose_config
from fedlodrop.study.tables import read_rounds_table
from optimizer.calibration import Sweep
from optimizer.calibration import fit as fit_two_terms
from optimizer.learning_curve import Curve, fit_exponents
from optimizer.plots import BLUE, GREY, VERMILION, new_panels, save, shared_legend
from optimizer.problem import FloatArray

_NEAR, _CLOSE = 0.15, 1.03  # a good pick: this near to the best rate, or this close to its loss
_OTHERS = ("centralized", "local", "optimized")  # reference lines, and a rate of each device's own
Predict = Callable[[float], float]


class _Runs:
    """Curves of a study's runs by task, dropout rate and seed; without a seed, the mean."""

    def __init__(self, rounds: pd.DataFrame) -> None:
        fixed = rounds.groupby(["setting", "method"])["dropout_rate"].transform(lambda rate: rate.nunique() == 1)
        planned = rounds.groupby(["setting", "method", "seed"])["dropout_rate"].transform("max")
        kept = rounds[fixed & ~rounds["method"].isin(_OTHERS)]
        self.table = kept.assign(rate=planned.round(2).fillna(0.0))
        self.tasks = list(dict.fromkeys(self.table["setting"]))
        self.rates = sorted(self.table["rate"].unique())
        self.examples = float(rounds["num_examples"].mean())

    def seeds(self, task: str) -> list[int]:
        return sorted(self.table[self.table["setting"] == task]["seed"].unique().tolist())

    def curve(self, task: str, rate: float, seeds: Sequence[int]) -> Curve:
        here = self.table[(self.table["setting"] == task) & (self.table["rate"] == rate)]
        mean = here[here["seed"].isin(seeds)].groupby("round")[["train_loss", "test_loss"]].mean()
        return Curve(mean.index.to_numpy(float), mean["train_loss"].to_numpy(), mean["test_loss"].to_numpy())

    def test_loss(self, task: str, rate: float, at: int, seeds: Sequence[int]) -> float:
        curve = self.curve(task, rate, seeds)
        return float(curve.test[curve.rounds == at].item())

    def pairs(self, task: str, seeds: Sequence[int], without: float = 0.0) -> list[tuple[Curve, float, Curve]]:
        """Return pilot, rate and run for every rate above 0 but one."""
        rates = [rate for rate in self.rates if rate not in (0.0, without)]
        return [(self.curve(task, 0.0, seeds), rate, self.curve(task, rate, seeds)) for rate in rates]

    def two_terms(self, tasks: Sequence[str], at: int, seeds: Sequence[int], without: float | None = None) -> Predict:
        """Fit the two-term bound to the losses after a round and return its prediction."""
        t = self.table
        chosen = t[t["setting"].isin(tasks) & (t["round"] == at) & t["seed"].isin(seeds) & (t["rate"] != without)]
        rate, train, gap = (chosen[name].to_numpy(float) for name in ("rate", "train_loss", "gap_loss"))
        sweep = Sweep(rate, train, gap, chosen["seed"].to_numpy(), self.examples)
        kept = compose_config("").bound
        fitted = fit_two_terms(sweep, curvature_min=kept.curvature_min, confidence=kept.confidence)
        return lambda rate: float(fitted.predict(np.array([rate]), self.examples)[0])


def study(parameters: dict[str, Any], seeds: Sequence[int], folder: Path) -> pd.DataFrame:
    """Judge both bounds on every task and round; write the figure and return a row per case and pilot seed."""
    runs = _Runs(pd.concat([read_rounds_table(ROOT / table) for table in parameters["tables"]], ignore_index=True))
    rows, pictures = [], []
    for task in runs.tasks:
        others = [other for other in runs.tasks if other != task]
        abroad = fit_exponents([pair for other in others for pair in runs.pairs(other, seeds)])
        known = [seed for seed in runs.seeds(task) if seed in seeds]
        for at, seed in product(parameters["rounds"], known):
            rest, where = [other for other in known if other != seed] or [seed], f"{task}, round {at}"
            measured = np.array([runs.test_loss(task, rate, at, rest) for rate in runs.rates])
            pilot, two = runs.curve(task, 0.0, [seed]), runs.two_terms(others, at, seeds)
            away = [(float(abroad.test_loss(pilot, rate, at)), two(rate)) for rate in runs.rates]
            rows.append(_row(f"{where}, task left out", seed, runs.rates, measured, away))
            if seed == known[0]:
                pictures.append((where, runs.rates, measured, np.array(away).T))
            own = []
            for rate in runs.rates:
                exponents = fit_exponents(runs.pairs(task, [seed], rate))
                two = runs.two_terms([task], at, [seed], rate)
                own.append((float(exponents.test_loss(pilot, rate, at)), two(rate)))
            rows.append(_row(f"{where}, rates left out", seed, runs.rates, measured, own))
    _draw(pictures, folder / "figure.png")
    return pd.DataFrame(rows)


def _row(
    setting: str, seed: int, rates: Sequence[float], measured: FloatArray, both: list[tuple[float, float]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"setting": setting, "seed": seed}
    for name, predicted in zip(("learning curve", "two terms"), np.array(both).T, strict=True):
        picked, best = int(predicted.argmin()), int(measured.argmin())
        excess = float(measured[picked] / measured[best])
        near = abs(rates[picked] - rates[best]) <= _NEAR + 1e-9
        constant = np.ptp(predicted) < 1e-12
        row[f"{name}: loss at its rate / best"] = excess
        row[f"{name}: good pick"] = float(near or excess <= _CLOSE)
        row[f"{name}: rank correlation"] = 0.0 if constant else float(stats.spearmanr(predicted, measured).statistic)
    ranks = [row[f"{name}: rank correlation"] for name in ("learning curve", "two terms")]
    return row | {"rank correlation, learning curve − two terms": ranks[0] - ranks[1]}


def _draw(pictures: list[tuple[str, list[float], FloatArray, FloatArray]], path: Path) -> None:
    figure, axes = new_panels(len(pictures), 3, 3.6, 2.9)
    for panel, (title, rates, measured, predictions) in zip(axes, pictures, strict=True):
        panel.plot(rates, measured, "o-", color=GREY, label="measured, other seeds")
        for values, color, look, label in zip(
            predictions, (BLUE, VERMILION), ("s--", "^:"), ("learning curve", "two terms"), strict=True
        ):
            panel.plot(rates, values, look, color=color, label=f"{label}, task left out")
        panel.set(title=title, xlabel="dropout rate (1)", ylabel="test loss (nats)")
    shared_legend(figure, axes)
    save(figure, path)
