"""Views and statistics of studies, on tables made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from conf.compose import ConfigError
from fedlodrop.study.paired_statistics import cost_of_target, effect, estimate, judge, view
from fedlodrop.study.tables import ROUND_COLUMNS


def rounds(method: str, seed: int, train: list[float], **columns: list[float]) -> pd.DataFrame:
    """One run: round 0 and the rounds after it; what is not given is 0."""
    table = pd.DataFrame(0.0, index=range(len(train)), columns=ROUND_COLUMNS)
    table["setting"], table["method"], table["seed"] = "a", method, seed
    table["round"], table["train_loss"] = range(len(train)), train
    for name, values in columns.items():
        table[name] = values
    return table


class TestViews:
    table = pd.concat(
        [
            rounds(
                "slow",
                0,
                [1.0, 0.8, 0.4],
                gap_loss=[0.0, 0.1, 0.3],
                validation_metric=[0, 0.5, 0.7],
                sim_time_s=[0, 3, 6],
                uplink_bytes=[0, 10, 20],
            ),
            rounds(
                "fast",
                0,
                [1.0, 0.2, 0.1],
                gap_loss=[0.0, 0.4, 0.9],
                validation_metric=[0, 0.8, 0.6],
                sim_time_s=[0, 5, 10],
                uplink_bytes=[0, 100, 200],
            ),
        ]
    )

    def pick(self, name: str, column: str) -> dict[str, float]:
        points = view(self.table, name)
        return dict(zip(points["method"], points[column], strict=True))

    def test_fixed_is_the_last_round(self):
        assert self.pick("fixed", "gap_loss") == {"slow": 0.3, "fast": 0.9}

    def test_best_is_chosen_by_validation_never_before_training(self):
        assert self.pick("best", "round") == {"slow": 2, "fast": 1}

    def test_matched_interpolates_where_the_common_loss_is_crossed(self):
        # The lowest loss both reach is 0.4: slow in round 2; fast between rounds 0 and 1, at share (1 - 0.4)/0.8.
        assert self.pick("matched", "round") == pytest.approx({"slow": 2, "fast": 0.75})
        assert self.pick("matched", "gap_loss") == pytest.approx({"slow": 0.3, "fast": 0.3})
        assert self.pick("matched", "train_loss")["slow"] == 0.4

    def test_equal_time_interpolates_where_the_shorter_run_ends(self):
        # The shorter run has 6 s: a fifth of the way from round 1 (5 s) to round 2 (10 s) of the other.
        assert self.pick("time", "round") == pytest.approx({"slow": 2, "fast": 1.2})
        assert self.pick("time", "gap_loss") == pytest.approx({"slow": 0.3, "fast": 0.5})

    def test_equal_upload_interpolates_where_the_smaller_one_ends(self):
        assert self.pick("bytes", "round") == pytest.approx({"slow": 2, "fast": 0.2})  # 20 bytes of 100 in round 1
        assert self.pick("bytes", "gap_loss") == pytest.approx({"slow": 0.3, "fast": 0.08})

    def test_bytes_until_a_target_and_who_never_reaches_it(self):
        points = cost_of_target(self.table, 0.75)
        assert points.set_index("method")["uplink_bytes"]["fast"] == 100
        assert np.isnan(points.set_index("method")["uplink_bytes"]["slow"])

    def test_unknown_view(self):
        with pytest.raises(ValueError, match="expected one of fixed, matched, best, time, energy, bytes, found 'last'"):
            view(self.table, "last")


class TestEstimates:
    def test_against_scipy(self):
        from scipy import stats

        values = [0.70, 0.74, 0.71, 0.79]
        found = estimate(values)
        theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
        assert found.text(2) == f"0.73 [{theirs.low:.2f}, {theirs.high:.2f}]"

    def test_one_seed_says_so_and_none_is_a_dash(self):
        assert estimate([0.5, np.nan]).text() == "0.500 (one seed)"
        assert estimate([]).text() == "–"

    def test_effects_are_paired_by_seed(self):
        points = pd.concat(
            [rounds("ref", s, [0.0], gap_loss=[g]) for s, g in enumerate([1.0, 2.0, 4.0])]
            + [rounds("new", s, [0.0], gap_loss=[g]) for s, g in enumerate([0.5, 1.0, 2.0])]
        )
        relative = effect(points, "a", "new", "ref", "gap_loss", "relative")
        assert (relative.mean, relative.low, relative.high) == (-0.5, -0.5, -0.5)
        assert relative.text(percent=True) == "-50 % [-50 %, -50 %]"
        assert effect(points, "a", "new", "ref", "gap_loss", "difference").mean == pytest.approx(-3.5 / 3)
        assert effect(points, "a", "new", "ref", "gap_loss", "ratio").mean == 0.5


class TestTargets:
    table = pd.concat(
        [rounds(m, s, [1.0, 0.5], gap_loss=[0, g]) for s in (0, 1) for m, g in (("ref", 1.0), ("new", 0.4))]
    )
    target = {"text": "t", "view": "fixed", "column": "gap_loss", "method": "new", "kind": "relative"}

    @pytest.mark.parametrize(
        ("limit", "met"), [({"at_most": -0.5}, True), ({"at_most": -0.7}, False), ({"at_least": 0}, False)]
    )
    def test_verdicts(self, limit, met):
        (verdict,) = judge(self.table, [self.target | limit], "ref")
        assert verdict.met is met and verdict.sure and verdict.found.mean == pytest.approx(-0.6)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({}, "one of at_most and at_least"),
            ({"at_most": 0, "view": "last"}, "target view"),
            ({"at_most": 0, "column": "score"}, "target column"),
            ({"at_most": 0, "kind": "odd"}, "target kind"),
        ],
    )
    def test_unusable_targets(self, change, message):
        with pytest.raises(ConfigError, match=message):
            judge(self.table, [self.target | change], "ref")
