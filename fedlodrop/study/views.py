"""Ways to compare runs of different speed: every view picks one point per run.

Slower fitting looks like better generalization when methods are compared after the same number of rounds only, so the
same runs are also compared at equal training loss, at the round that the validation data choose, and at equal simulated
time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from fedlodrop.study.tables import COSTS, KEYS, SCORES

VIEWS = {
    "fixed": "after the same number of rounds",
    "matched": "at equal training loss (the lowest that the method and the reference both reach; between rounds, linear)",
    "best": "at the round with the best validation score",
    "time": "at equal simulated time (the longest that the method and the reference both have)",
}
_VALUES = ["round", *SCORES, *COSTS, "dropout_rate"]


def view(rounds: pd.DataFrame, name: str) -> pd.DataFrame:
    """Pick one point per run.

    Parameters
    ----------
    rounds : DataFrame
        From `fedlodrop.study.tables.collect`.
    name : str
        One of `VIEWS`.

    Returns
    -------
    DataFrame
        One row per setting, method and seed with the columns of the rounds; NaN where a run never gets there.
    """
    trained = rounds[rounds["round"] > 0]
    if name == "fixed":
        return _per_run(trained, lambda run: run.iloc[-1])
    if name == "best":
        return _per_run(trained, lambda run: run.iloc[int(run["validation_metric"].to_numpy().argmax())])
    if name == "time":
        horizon = trained.groupby(KEYS)["sim_time_s"].max().groupby(["setting", "seed"]).min()
        return _per_run(rounds, lambda run: _at_time(run, horizon[_place(run)]))
    if name == "matched":
        lowest = rounds.groupby(KEYS)["train_loss"].min().groupby(["setting", "seed"]).max()
        return _per_run(rounds, lambda run: _at_loss(run, lowest[_place(run)]))
    raise ValueError(f"view: expected one of {', '.join(VIEWS)}, found {name!r}")


def pair_view(rounds: pd.DataFrame, name: str, method: str, reference: str) -> pd.DataFrame:
    """Return `view` of two methods alone: what they have in common is not limited by the slowest of all others."""
    return view(rounds[rounds["method"].isin([method, reference])], name)


def cost_of_target(rounds: pd.DataFrame, target: float) -> pd.DataFrame:
    """Return what each run has spent when its validation score first reaches ``target``; NaN if it never does."""

    def reached(run: pd.DataFrame) -> pd.Series[Any]:
        good = run[run["validation_metric"] >= target]
        return good.iloc[0] if len(good) else _nowhere(run)

    return _per_run(rounds[rounds["round"] > 0], reached)


def _per_run(rounds: pd.DataFrame, pick: Callable[[pd.DataFrame], pd.Series[Any]]) -> pd.DataFrame:
    rows = [pick(run.sort_values("round").reset_index(drop=True)) for _, run in rounds.groupby(KEYS, sort=False)]
    return pd.DataFrame(rows, columns=rounds.columns).reset_index(drop=True)


def _place(run: pd.DataFrame) -> tuple[str, int]:
    return run["setting"].iloc[0], run["seed"].iloc[0]


def _at_time(run: pd.DataFrame, seconds: float) -> pd.Series[Any]:
    within = run[run["sim_time_s"] <= seconds * (1 + 1e-9)]
    return within.iloc[-1] if len(within) else _nowhere(run)


def _at_loss(run: pd.DataFrame, loss: float) -> pd.Series[Any]:
    """Interpolate between the two rounds around the first crossing of ``loss``."""
    below = np.flatnonzero(run["train_loss"].to_numpy() <= loss * (1 + 1e-9))
    if not below.size:
        return _nowhere(run)
    after = int(below[0])
    if after == 0:
        return run.iloc[0]
    one, two = run.iloc[after - 1].copy(), run.iloc[after]
    share = (one["train_loss"] - loss) / (one["train_loss"] - two["train_loss"])
    for name in _VALUES:
        if pd.notna(two[name]):
            start = two[name] if pd.isna(one[name]) else one[name]
            one[name] = start + share * (two[name] - start)
    return one


def _nowhere(run: pd.DataFrame) -> pd.Series[Any]:
    row = run.iloc[-1].copy()
    row[[name for name in run.columns if name not in KEYS]] = np.nan
    return row
