"""The learning curve of a finished run: what `optimizer.learning_curve` tells from it of this one, round by round."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from conf.compose import ConfigError
from conf.places import local_path
from conf.schema import Config
from optimizer.learning_curve import Curve, Exponents, LearningCurveBound, fit_exponents
from optimizer.objective import SeparableObjective
from optimizer.problem import FloatArray
from server_app.results import read_rounds


def objective(config: Config, records: Sequence[dict[str, Any]] = ()) -> SeparableObjective | None:
    """Return what the plan minimises where a pilot run is named: phi at the end of the run; None: the two-term bound.

    With `bound.refit` the exponents are fitted to what the run itself has shown in its ``records``, near those given.
    ConfigError if the pilot's folder holds no finished run with two scored rounds or more, or it had dropout.
    """
    b = config.bound
    if b.pilot is None:
        return None
    exponents, pilot = Exponents(b.time_exponent, b.time_exponent_growth, b.gap_exponent), read_curve(b.pilot)
    if b.refit and (shown := _shown(pilot, records)):
        exponents = fit_exponents([shown], prior=exponents)
    return LearningCurveBound(pilot, exponents, float(config.run.num_rounds))


def _shown(pilot: Curve, records: Sequence[dict[str, Any]]) -> tuple[Curve, FloatArray, Curve] | None:
    """Return the scored rounds of a run with the mean dropout rate up to each; None without any."""
    rates, rows = list[float](), [(0.0, pilot.train[0], pilot.test[0], 0.0)]
    for record in records:
        rates += [float(device["dropout_rate"]) for device in record["devices"] if device["scheduled"]]
        if record.get("validation") and rates:
            scores = record["train_eval"]["loss"], record["validation"]["loss"]
            rows.append((float(record["round"]), *scores, float(np.mean(rates))))
    rounds, train, test, means = np.array(rows, dtype=np.float64).T
    return (pilot, means, Curve(rounds, train, test)) if len(rows) > 1 else None


def read_curve(pilot: str) -> Curve:
    """Return training and *validation* losses of a run: test data must not decide."""
    folder = local_path(pilot)
    what = "bound.pilot: expected the folder of a finished run without dropout whose validation data are scored"
    if folder is None or not (folder / "summary.json").is_file():
        raise ConfigError(f"{what}, found {pilot!r}")
    start = json.loads((folder / "summary.json").read_text()).get("initial") or {}
    records = read_rounds(folder)
    if any(device["dropout_rate"] > 0 for record in records for device in record["devices"] if device["scheduled"]):
        raise ConfigError(f"{what}, found one with dropout: {pilot!r}")
    scored = [{"round": 0, **start}, *records]
    rows = [(r["round"], r["train_eval"]["loss"], r["validation"]["loss"]) for r in scored if r.get("validation")]
    if len(rows) < 2:
        raise ConfigError(f"{what}, found {len(rows)} scored rounds in {pilot!r}")
    return Curve(*np.array(rows, dtype=np.float64).T)
