"""The learning curve of a finished run, from which `optimizer.learning_curve` tells what dropout would have done."""

import json

import numpy as np

from conf.compose import ConfigError
from conf.places import local_path
from conf.schema import Config
from optimizer.learning_curve import Curve, Exponents, LearningCurveBound
from optimizer.objective import SeparableObjective
from server_app.results import read_rounds


def objective(config: Config) -> SeparableObjective | None:
    """Return what the plan minimises where a pilot run is named: phi at the end of the run; None: the two-term bound.

    ConfigError if its folder holds no finished run with two scored rounds or more, or it had dropout.
    """
    b = config.bound
    if b.pilot is None:
        return None
    exponents = Exponents(b.time_exponent, b.time_exponent_growth, b.gap_exponent)
    return LearningCurveBound(read_curve(b.pilot), exponents, float(config.run.num_rounds))


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
