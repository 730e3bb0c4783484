"""Comparison of methods: ways to pick one point per run, means and paired effects over seeds, and targets.

Slower fitting looks like better generalization when methods are compared after the same number of rounds only, so the
same runs are also compared at equal training loss, at the round that the validation data choose, and after equal
simulated time, energy and upload.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from conf.compose import ConfigError
from fedlodrop.study.tables import COSTS, KEYS, SCORES

_LINEAR = "; between rounds, linear"
_BOTH = f"that the method and the reference both have{_LINEAR}"
VIEWS = {
    "fixed": "after the same number of rounds",
    "matched": f"at equal training loss (the lowest that the method and the reference both reach{_LINEAR})",
    "best": "at the round with the best validation score",
    "time": f"at equal simulated time (the longest {_BOTH})",
    "energy": f"at equal simulated energy (the most {_BOTH})",
    "bytes": f"after equal upload (the most {_BOTH})",
}
_COST = {"time": "sim_time_s", "energy": "energy_j", "bytes": "uplink_bytes"}
_VALUES = ["round", *SCORES, *COSTS, "dropout_rate"]


def view(rounds: pd.DataFrame, name: str) -> pd.DataFrame:
    """Pick one point per run in one of `VIEWS`, a row per setting, method and seed; NaN if a run never gets there."""
    trained = rounds[rounds["round"] > 0]
    if name == "fixed":
        return _per_run(trained, lambda run: run.iloc[-1])
    if name == "best":
        return _per_run(trained, lambda run: run.iloc[int(run["validation_metric"].to_numpy().argmax())])
    if cost := _COST.get(name):
        horizon = trained.groupby(KEYS)[cost].max().groupby(["setting", "seed"]).min()
        return _per_run(rounds, lambda run: _at_cost(run, cost, horizon[run["setting"].iloc[0], run["seed"].iloc[0]]))
    if name == "matched":
        lowest = rounds.groupby(KEYS)["train_loss"].min().groupby(["setting", "seed"]).max()
        return _per_run(rounds, lambda run: _at_loss(run, lowest[run["setting"].iloc[0], run["seed"].iloc[0]]))
    raise ValueError(f"view: expected one of {', '.join(VIEWS)}, found {name!r}")


def cost_of_target(rounds: pd.DataFrame, target: float) -> pd.DataFrame:
    """Return what each run has spent when its validation score first reaches ``target``; NaN if it never does."""

    def reached(run: pd.DataFrame) -> "pd.Series[Any]":
        good = run[run["validation_metric"] >= target]
        return good.iloc[0] if len(good) else _nowhere(run)

    return _per_run(rounds[rounds["round"] > 0], reached)


def _per_run(rounds: pd.DataFrame, pick: "Callable[[pd.DataFrame], pd.Series[Any]]") -> pd.DataFrame:
    rows = [pick(run.sort_values("round").reset_index(drop=True)) for _, run in rounds.groupby(KEYS, sort=False)]
    return pd.DataFrame(rows, columns=rounds.columns).reset_index(drop=True)


def _at_cost(run: pd.DataFrame, cost: str, most: float) -> "pd.Series[Any]":
    """Interpolate between the two scored rounds around a cost; the one before alone may lie far back."""
    within = int((run[cost] <= most * (1 + 1e-9)).sum())
    if within in (0, len(run)):
        return run.iloc[-1] if within else _nowhere(run)
    one, two = run.iloc[within - 1], run.iloc[within]
    return _between(one, two, (most - one[cost]) / (two[cost] - one[cost]))


def _at_loss(run: pd.DataFrame, loss: float) -> "pd.Series[Any]":
    """Interpolate between the two rounds around the first crossing of ``loss``."""
    below = np.flatnonzero(run["train_loss"].to_numpy() <= loss * (1 + 1e-9))
    if not below.size or below[0] == 0:
        return run.iloc[0] if below.size else _nowhere(run)
    one, two = run.iloc[below[0] - 1], run.iloc[below[0]]
    return _between(one, two, (one["train_loss"] - loss) / (one["train_loss"] - two["train_loss"]))


def _between(one: "pd.Series[Any]", two: "pd.Series[Any]", share: float) -> "pd.Series[Any]":
    found = one.copy()
    for name in _VALUES:
        if pd.notna(two[name]):
            start = two[name] if pd.isna(one[name]) else one[name]
            found[name] = start + share * (two[name] - start)
    return found


def _nowhere(run: pd.DataFrame) -> "pd.Series[Any]":
    return run.iloc[-1].where(run.columns.isin(KEYS), np.nan)


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with a 95 % interval (Student's t); ``low`` and ``high`` are NaN for a single seed."""

    mean: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 3, *, percent: bool = False) -> str:
        """Return e.g. ``.735 [.720, .750]``; one seed has no interval and says so."""
        if self.count == 0:
            return "–"

        values = (self.mean, self.low, self.high)
        mean, low, high = (f"{100 * value:+.0f} %" if percent else f"{value:.{digits}f}" for value in values)
        return f"{mean} (one seed)" if self.count == 1 else f"{mean} [{low}, {high}]"


def estimate(values: npt.ArrayLike) -> Estimate:
    """Return mean and 95 % interval, ``mean ± t_{n-1} s / sqrt(n)``, of the finite values."""
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[np.isfinite(sample)]
    mean = float(sample.mean()) if sample.size else np.nan
    if sample.size < 2:
        return Estimate(mean, np.nan, np.nan, sample.size)
    half = float(stats.t.ppf(0.975, sample.size - 1) * sample.std(ddof=1) / np.sqrt(sample.size))
    return Estimate(mean, mean - half, mean + half, sample.size)


def effect(points: pd.DataFrame, setting: str, method: str, reference: str, column: str, kind: str) -> Estimate:
    """Compare a method with a reference, seed by seed.

    ``kind`` is ``difference`` (method - reference), ``relative`` ((method - reference) / |reference|), ``ratio``, or
    ``value`` (the method alone); ConfigError if it is none of them.
    """
    here = points[points["setting"] == setting].set_index("seed")
    ours = here.loc[here["method"] == method, column].astype(float)
    if kind == "value":
        return estimate(ours)
    theirs = here.loc[here["method"] == reference, column].astype(float)
    ours, theirs = ours.align(theirs, join="inner")
    kinds = {"difference": ours - theirs, "relative": (ours - theirs) / theirs.abs(), "ratio": ours / theirs}
    if kind not in kinds:
        raise ConfigError(f"target kind: expected value, {', '.join(kinds)}, found {kind!r}")
    return estimate(kinds[kind])


@dataclass(frozen=True)
class Verdict:
    """One target in one setting."""

    target: Mapping[str, Any]  # as in the study's file
    setting: str
    found: Estimate  # of the worst seed, where the target asks for that
    limit: str
    met: bool | None  # None where nothing was measured; the mean decides
    sure: bool  # whether the whole interval is on one side of the limit

    def shown(self) -> str:
        """Return what was found, with its interval or its number of seeds."""
        if self.target.get("worst") and self.found.count:
            return f"{self.found.mean:.3g} (worst of {self.found.count})"
        return self.found.text(percent=self.target.get("kind") == "relative")


def judge(table: pd.DataFrame, targets: Sequence[Mapping[str, Any]], reference: str = "") -> list[Verdict]:
    """Hold what was measured against the targets of a study; the mean decides, the interval is shown beside it.

    ``table`` has the rounds of runs, whose methods are compared with ``reference``, or a row per setting and seed of an
    analysis; of that, a target with ``worst`` is decided by its worst seed. A target that lacks a key, or names an
    unknown view or column, raises ConfigError.
    """
    verdicts, analysis, names = [], "method" not in table, table["setting"].unique()
    present = [str(name) for name in (names if analysis else sorted(names))]
    for target in targets:
        _check(target, ("text", "column") if analysis else ("text", "view", "column", "method"), table)
        column, method, other = target["column"], target.get("method", ""), target.get("reference", reference)
        if analysis:
            points = table.assign(method=method)
        elif target["view"] in VIEWS:
            # Of the two alone: what they have in common is not limited by the slowest of all others.
            points = view(table[table["method"].isin([method, other])], target["view"])
        else:
            raise ConfigError(f"target view: expected one of {', '.join(VIEWS)}, found {target['view']!r}")
        for setting in [name for name in target.get("settings") or present if name in present]:
            found = effect(points, setting, method, other, column, "value" if analysis else target.get("kind", "value"))
            if analysis and target.get("worst") and found.count:
                here = points.loc[points["setting"] == setting, column]
                worst = float(here.min() if target.get("at_most") is None else here.max())
                found = Estimate(worst, worst, worst, found.count)
            verdicts.append(_verdict(target, setting, found))
    return verdicts


def _check(target: Mapping[str, Any], keys: Sequence[str], table: pd.DataFrame) -> None:
    if not set(keys) <= set(target) or (target.get("at_most") is None) == (target.get("at_least") is None):
        raise ConfigError(f"target {dict(target)}: expected {', '.join(keys)} and one of at_most and at_least")
    if target["column"] not in table:
        raise ConfigError(f"target column: expected one of {', '.join(map(str, table))}, found {target['column']!r}")


def _verdict(target: Mapping[str, Any], setting: str, found: Estimate) -> Verdict:
    word, sign = ("at most", 1) if target.get("at_most") is not None else ("at least", -1)
    limit = float(target[word.replace(" ", "_")])
    met = bool(sign * found.mean <= sign * limit) if found.count else None
    sure = target.get("worst", False) or found.count > 1 and not found.low <= limit <= found.high
    return Verdict(target, setting, found, f"{word} {limit:g}", met, found.count > 0 and sure)


def claims(verdicts: Sequence[Verdict]) -> list[tuple[str, str, list[Verdict]]]:
    """Return every claim, its verdict (holds, undecided, refuted, not measured) and what decided it.

    A claim holds if all its verdicts are met with their whole interval (one of them, where the claim asks for one
    setting only), and is refuted by one (by all) that is missed with its whole interval.
    """
    found = []
    for claim in dict.fromkeys(verdict.target["claim"] for verdict in verdicts if verdict.target.get("claim")):
        own = [verdict for verdict in verdicts if verdict.target.get("claim") == claim]
        holds = [bool(verdict.met) and verdict.sure for verdict in own]
        refuted = [verdict.met is False and verdict.sure for verdict in own]
        one, every = (any, all) if own[0].target.get("need") == "any" else (all, any)
        word = "holds" if one(holds) else "refuted" if every(refuted) else "undecided"
        found.append((claim, "not measured" if all(v.met is None for v in own) else word, own))
    return found
