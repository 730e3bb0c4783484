"""Means, intervals and paired effects over seeds, and whether a study's targets were met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from conf.compose import ConfigError
from fedlodrop.study.views import VIEWS, pair_view


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

        def shape(value: float) -> str:
            return f"{100 * value:+.0f} %" if percent else f"{value:.{digits}f}"

        if self.count == 1:
            return f"{shape(self.mean)} (one seed)"
        return f"{shape(self.mean)} [{shape(self.low)}, {shape(self.high)}]"


def estimate(values: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Return mean and t interval, ``mean ± t_{n-1} s / sqrt(n)``, of the finite values."""
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(sample.mean())
    if sample.size == 1:
        return Estimate(mean, np.nan, np.nan, 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, sample.size - 1) * sample.std(ddof=1) / np.sqrt(sample.size))
    return Estimate(mean, mean - half, mean + half, int(sample.size))


def effect(points: pd.DataFrame, setting: str, method: str, reference: str, column: str, kind: str) -> Estimate:
    """Compare a method with a reference, seed by seed.

    Parameters
    ----------
    points : DataFrame
        From `fedlodrop.study.views.view`.
    setting, method, reference, column : str
        What is compared.
    kind : str
        ``difference`` (method - reference), ``relative`` ((method - reference) / |reference|), ``ratio``, or ``value``
        (the method alone).

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    here = points[points["setting"] == setting].set_index("seed")
    ours = here.loc[here["method"] == method, column].astype(float)
    if kind == "value":
        return estimate(ours)
    theirs = here.loc[here["method"] == reference, column].astype(float)
    ours, theirs = ours.align(theirs, join="inner")
    if kind == "difference":
        return estimate(ours - theirs)
    if kind == "relative":
        return estimate((ours - theirs) / theirs.abs())
    if kind == "ratio":
        return estimate(ours / theirs)
    raise ConfigError(f"target kind: expected value, difference, relative or ratio, found {kind!r}")


@dataclass(frozen=True)
class Verdict:
    """One target in one setting."""

    text: str
    setting: str
    found: Estimate
    limit: str
    met: bool | None  # None where nothing was measured; the mean decides
    sure: bool  # whether the whole interval is on one side of the limit
    percent: bool


def judge(rounds: pd.DataFrame, targets: Sequence[Mapping[str, Any]], reference: str) -> list[Verdict]:
    """Hold the measured effects against the targets of the study file; the mean decides, the interval is shown beside it.

    Raises
    ------
    ConfigError
        If a target lacks a key or names an unknown view, method, setting or column.
    """
    verdicts = []
    for target in targets:
        _check_target(target, rounds)
        points = pair_view(rounds, target["view"], target["method"], target.get("reference", reference))
        settings = target.get("settings") or list(dict.fromkeys(rounds["setting"]))
        for setting in settings:
            kind = target.get("kind", "value")
            other = target.get("reference", reference)
            found = effect(points, setting, target["method"], other, target["column"], kind)
            most, least = target.get("at_most"), target.get("at_least")
            good = (
                None
                if found.count == 0
                else bool((most is None or found.mean <= most) and (least is None or found.mean >= least))
            )
            limit = f"at most {most:g}" if most is not None else f"at least {least:g}"
            bound: float = most if most is not None else target["at_least"]
            sure = found.count > 1 and not found.low <= bound <= found.high
            verdicts.append(Verdict(target["text"], setting, found, limit, good, sure, kind == "relative"))
    return verdicts


def _check_target(target: Mapping[str, Any], rounds: pd.DataFrame) -> None:
    missing = [key for key in ("text", "view", "column", "method") if key not in target]
    if missing or (target.get("at_most") is None) == (target.get("at_least") is None):
        raise ConfigError(f"target {dict(target)}: expected text, view, column, method and one of at_most and at_least")
    if target["view"] not in VIEWS:
        raise ConfigError(f"target view: expected one of {', '.join(VIEWS)}, found {target['view']!r}")
    if target["column"] not in rounds.columns:
        raise ConfigError(f"target column: expected one of {', '.join(rounds.columns)}, found {target['column']!r}")
