"""Studies that are computed: the convergence proof over all masks, the linear model, from file to page."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from conf.compose import ConfigError
from fedlodrop.study.analyses import learning_curve
from fedlodrop.study.analyses.convergence import (
    Masking,
    Quadratics,
    bound,
    largest_rate,
    linear_model_quadratics,
    masked_problem,
    random_quadratics,
    simulate,
)
from fedlodrop.study.analyses.linear_model import (
    average,
    best_b,
    claimed_factor,
    draw_fleet,
    excess_loss,
    ffa_lora,
    gradients,
    lora,
    rolora,
    sine,
)
from fedlodrop.study.page import write_page
from fedlodrop.study.plan import Analysis, read_study
from fedlodrop.study.tables import ROUND_COLUMNS

ROWS, DEVICES = 4, 3


def masks(kind: str, kept: int) -> list[tuple[float, np.ndarray]]:
    """Every mask of a device with its probability: a fixed count, or independent rows of the same mean."""
    if kind == "fixed":
        chosen = [np.isin(np.arange(ROWS), rows) for rows in combinations(range(ROWS), kept)]
        return [(1 / len(chosen), mask) for mask in chosen]
    share = kept / ROWS
    each = [np.array(bits, bool) for bits in product([0, 1], repeat=ROWS)]
    return [(float(np.prod(np.where(mask, share, 1 - share))), mask) for mask in each]


def steps(problem: Quadratics, x: np.ndarray, kind: str, kept: int) -> list[list[tuple[float, np.ndarray, np.ndarray]]]:
    """For every device and mask: probability, mask, and h = D grad F(D x)."""
    share = kept / ROWS
    return [
        [(p, m, m / share * (hessian @ (m / share * x - target))) for p, m in masks(kind, kept)]
        for hessian, target in zip(problem.hessians, problem.targets, strict=True)
    ]


def moves(problem: Quadratics, x: np.ndarray, kind: str, kept: int) -> Iterator[tuple[float, np.ndarray]]:
    """Every joint draw of all devices' masks: its probability and the kept average G."""
    for draw in product(*steps(problem, x, kind, kept)):
        keepers = sum(mask.astype(int) for _, mask, _ in draw)
        yield (float(np.prod([p for p, _, _ in draw])), sum(h for _, _, h in draw) / np.maximum(keepers, 1))


@pytest.mark.parametrize(("kind", "kept"), [("fixed", 2), ("fixed", 3), ("independent", 2)])
class TestTheProof:
    """docs/convergence.md, line by line, on random quadratics."""

    @pytest.fixture
    def problem(self) -> Quadratics:
        return random_quadratics(5, devices=DEVICES, rows=ROWS, noise=0.0, spread=0.5)

    @pytest.fixture
    def x(self) -> np.ndarray:
        return np.random.default_rng(7).standard_normal(ROWS)

    def mean_gradients(self, problem: Quadratics, x: np.ndarray, kind: str, kept: int) -> np.ndarray:
        return np.array([sum(p * h for p, _, h in device) for device in steps(problem, x, kind, kept)])

    def test_lemma_1_speed(self, problem, x, kind, kept):
        gradient = self.mean_gradients(problem, x, kind, kept).mean(axis=0)
        mean = sum(p * move for p, move in moves(problem, x, kind, kept))
        np.testing.assert_allclose(mean, Masking(DEVICES, ROWS, kept).speed * gradient, rtol=1e-12)

    def test_lemma_2_variance(self, problem, x, kind, kept):
        masking = Masking(DEVICES, ROWS, kept)
        q, (own, between) = masking.share, masking.weights()
        given, variance = [], []
        for device in steps(problem, x, kind, kept):
            one = sum(p * h for p, _, h in device) / q
            given.append(one)
            variance.append(sum(p * m * (h - one) ** 2 for p, m, h in device) / q)
        dropped = (1 - q) ** DEVICES
        expected = own * np.mean(variance, axis=0) + between * np.var(given, axis=0)
        expected += dropped * (1 - dropped) * np.mean(given, axis=0) ** 2
        draws = list(moves(problem, x, kind, kept))
        mean = sum(p * move for p, move in draws)
        np.testing.assert_allclose(sum(p * (move - mean) ** 2 for p, move in draws), expected, rtol=1e-10)

    def test_lemma_3_what_masks_add(self, problem, x, kind, kept):
        masking = Masking(DEVICES, ROWS, kept)
        q = masking.share
        for hessian, device in zip(problem.hessians, steps(problem, x, kind, kept), strict=True):
            one = sum(p * h for p, _, h in device) / q
            total = float(sum(p * m * (h - one) ** 2 for p, m, h in device).sum() / q)
            smooth = np.linalg.eigvalsh(hessian)[-1]
            assert total <= smooth**2 * masking.variance * (x @ x) / q**3

    def test_part_c_drift_and_noise(self, problem, x, kind, kept):
        """E of the squared kept average of any e_k(mask), zero where dropped; and what an entry's noise counts for."""
        masking, rng = Masking(DEVICES, ROWS, kept), np.random.default_rng(3)
        drawn = [[(p, m, m * rng.standard_normal(ROWS)) for p, m in masks(kind, kept)] for _ in range(DEVICES)]
        total, noise = 0.0, 0.0
        for draw in product(*drawn):
            keepers, chance = sum(m.astype(int) for _, m, _ in draw), np.prod([p for p, _, _ in draw])
            total += chance * np.sum((sum(e for _, _, e in draw) / np.maximum(keepers, 1)) ** 2)
            noise += chance * np.sum([m[0] / max(keepers[0], 1) ** 2 for _, m, _ in draw])
        each = sum(sum(p * (e @ e) for p, _, e in device) for device in drawn)
        assert total <= masking.speed / DEVICES * each
        assert noise == pytest.approx(masking.weights()[0])

    def test_smoothness_convexity_and_closeness(self, problem, x, kind, kept):
        q = kept / ROWS
        spectrum = np.linalg.eigvalsh(problem.hessians)
        drawn = masks(kind, kept)
        mean = [sum(p * np.outer(m, m) * h / q**2 for p, m in drawn) for h in problem.hessians]
        found = np.linalg.eigvalsh(np.mean(mean, axis=0))
        assert found[-1] <= spectrum.max() / q and found[0] >= spectrum.min() / q

        def loss(point: np.ndarray) -> float:
            return float(
                np.mean(
                    [(point - t) @ h @ (point - t) / 2 for h, t in zip(problem.hessians, problem.targets, strict=True)]
                )
            )

        masked = sum(p * loss(m / q * x) for p, m in drawn)
        assert abs(masked - loss(x)) <= spectrum.max() * (1 / q - 1) / 2 * (x @ x)

    def test_the_masked_problem_in_closed_form(self, problem, x, kind, kept):
        if kind == "independent":  # the product's masks keep a fixed count; here only that its pairs differ
            assert Masking(DEVICES, ROWS, kept).pair < 1
            return
        hessians, minimiser = masked_problem(problem, Masking(DEVICES, ROWS, kept))
        gradient = self.mean_gradients(problem, x, kind, kept)
        pull = np.einsum("kij,kj->ki", problem.hessians, problem.targets)
        np.testing.assert_allclose(np.einsum("kij,j->ki", hessians, x) - pull, gradient, atol=1e-12)
        np.testing.assert_allclose(self.mean_gradients(problem, minimiser, kind, kept).mean(axis=0), 0, atol=1e-12)


class TestRates:
    def test_bounds_of_the_weights(self):
        for devices, kept in product((2, 5, 20), (2, 10, 19)):
            masking = Masking(devices, 20, kept)
            own, between = masking.weights()
            assert between <= own <= 2 / ((devices + 1) * masking.share)
        assert Masking(5, 20, 20).weights() == pytest.approx((0.2, 0))

    @pytest.mark.parametrize("draw", [random_quadratics, linear_model_quadratics])
    @pytest.mark.parametrize("kept", [5, 10, 20])
    def test_the_bound_holds_and_the_speed_is_right(self, draw, kept):
        problem, masking = draw(3, devices=5, rows=20, noise=0.1, spread=0.3), Masking(5, 20, kept)
        rate = 0.5 * largest_rate(problem, masking)
        runs = [simulate(problem, masking, rate, 30, seed) for seed in range(6)]
        limit = bound(problem, masking, rate, runs)
        assert (np.mean([run.distances for run in runs], axis=0) <= limit).all()
        hessians, minimiser = masked_problem(problem, masking)
        first = np.mean([run.path[1] for run in runs], axis=0)
        expected = rate * masking.speed * hessians.mean(axis=0) @ minimiser
        assert np.linalg.norm(first - expected) < 0.4 * np.linalg.norm(expected)

    @pytest.mark.parametrize("kept", [10, 20])
    def test_several_local_steps_stay_below_part_c(self, kept):
        steps, rounds = 4, 60
        problem, masking = random_quadratics(3, devices=5, rows=20, noise=0.1, spread=0.3), Masking(5, 20, kept)
        rate = largest_rate(problem, masking) / (4 * steps)
        runs = [simulate(problem, masking, rate, rounds, seed, steps=steps) for seed in range(3)]
        hessians, minimiser = masked_problem(problem, masking)
        mean, q, a = hessians.mean(axis=0), masking.share, masking.speed
        norms = [np.sum(((run.path[:rounds] - minimiser) @ mean) ** 2, axis=1).mean() for run in runs]
        (own, between), smooth = masking.weights(), float(np.linalg.eigvalsh(problem.hessians).max())
        radius, largest = max(run.radius for run in runs), max(run.largest_gradient for run in runs)
        heterogeneity = max(run.heterogeneity for run in runs)
        masks_add = own * smooth**2 * masking.variance * radius**2 / q**3 + between * heterogeneity / q**2
        limit = minimiser @ mean @ minimiser / (rate * steps * a * rounds)  # 2 (F(0) - F(x~)) is the quadratic form
        limit += 2 * rate * np.linalg.eigvalsh(mean)[-1] / a * (steps * masks_add + own * problem.noise / q**3)
        limit += 5 / 6 * (smooth * rate * steps) ** 2 * largest / (a * q**4)
        assert np.mean(norms) <= limit

    def test_who_dropped_votes_for_the_old_value_and_is_slower(self):
        problem, masking = random_quadratics(1, devices=20, rows=20, noise=0.0, spread=0.0), Masking(20, 20, 10)
        rate = 0.1 * largest_rate(problem, masking)
        kept, previous = (simulate(problem, masking, rate, 1, 0, name).path[1] for name in ("kept", "previous"))
        assert np.linalg.norm(kept) / np.linalg.norm(previous) == pytest.approx(masking.speed, rel=0.1)


class TestLinearModel:
    FLEET = draw_fleet(np.random.default_rng(1), devices=6, examples=400, size=12, angle=0.8, spread=0.0)

    def test_the_start_has_its_angle(self):
        assert sine(self.FLEET.start, self.FLEET.a_star) == pytest.approx(0.8)
        assert np.linalg.norm(self.FLEET.b_star) == pytest.approx(1.0)

    def test_gradients_are_those_of_the_loss(self):
        a, b = self.FLEET.start, np.random.default_rng(2).standard_normal(12)

        def loss(a: np.ndarray, b: np.ndarray) -> float:
            x = self.FLEET.inputs[0]
            error = np.outer(x @ a, b) - np.outer(x @ self.FLEET.a_star, self.FLEET.b_stars[0])
            return float((error**2).sum() / (2 * len(x)))

        to_a, to_b = gradients(self.FLEET, 0, a, b)
        for i in range(3):
            nudge = 1e-6 * np.eye(12)[i]
            assert (loss(a + nudge, b) - loss(a - nudge, b)) / 2e-6 == pytest.approx(to_a[i], abs=1e-6)
            assert (loss(a, b + nudge) - loss(a, b - nudge)) / 2e-6 == pytest.approx(to_b[i], abs=1e-6)
        at_best = gradients(self.FLEET, 0, a, best_b(self.FLEET, 0, a))[1]
        np.testing.assert_allclose(at_best, 0, atol=1e-12)

    @pytest.mark.parametrize("rate", [0.1, 0.5])
    def test_rolora_contracts_as_claimed(self, rate):
        sines, loss = rolora(self.FLEET, rate, 40)
        claim = claimed_factor(rate, 0.8, self.FLEET.b_star)
        assert all(two <= claim * one for one, two in zip(sines, sines[1:], strict=False) if two > 1e-4)
        assert loss < 1e-3

    def test_the_exact_law_with_many_examples(self):
        fleet = draw_fleet(np.random.default_rng(3), devices=4, examples=20_000, size=5, angle=0.8, spread=0.0)
        first, second = rolora(fleet, 0.5, 1)[0]
        x = 0.5 * (1 - first**2)
        assert second == pytest.approx(first * (1 - x) / np.sqrt(1 + x**2 * first**2 / (1 - first**2)), rel=0.02)

    def test_ffa_lora_stays_at_its_floor(self):
        assert 0.8**2 <= ffa_lora(self.FLEET) < 1.02 * 0.8**2

    def test_lora_averages_with_an_error_that_local_steps_enlarge(self):
        spread = draw_fleet(np.random.default_rng(1), devices=6, examples=100, size=12, angle=0.8, spread=1.0)
        one, many = (max(lora(spread, 0.1, 10, local)[0]) for local in (1, 20))
        assert many > 2 * one > 0

    def test_the_average_is_the_products(self):
        a, b = average(np.ones(3), np.zeros(2), [(np.ones(3), np.ones(2)), (3 * np.ones(3), np.zeros(2))])
        np.testing.assert_allclose(a, 2)
        np.testing.assert_allclose(b, 0.5)
        assert excess_loss(self.FLEET, self.FLEET.a_star, self.FLEET.b_star) == pytest.approx(0, abs=1e-20)


class TestFromFileToPage:
    PLAN = {
        "analysis": "linear_model",
        "title": "A tiny analysis",
        "parameters": {
            "devices": 2,
            "examples": 30,
            "size": 4,
            "angles": [0.5],
            "rates": [0.5],
            "spreads": [0],
            "rounds": 4,
            "local_steps": 1,
        },
        "seeds": [0, 1],
        "targets": [
            {"text": "angle", "claim": "it turns", "column": "last sine", "worst": True, "at_most": 0.4},
            {"text": "floor", "claim": "it stays", "column": "FFA-LoRA loss / floor", "worst": True, "at_least": 2},
        ],
    }

    def write(self, folder: Path, **changes: object) -> Path:
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(self.PLAN | changes))
        return path

    def test_table_figure_claims(self, tmp_path: Path):
        plan = read_study(self.write(tmp_path))
        assert isinstance(plan, Analysis)
        plan.run(tmp_path / "out")
        table = pd.read_csv(tmp_path / "out/table.csv")
        assert len(table) == 2 and (tmp_path / "out/figure.png").stat().st_size > 1000
        write_page(tmp_path / "page.md", [(plan, tmp_path / "out", "command"), (plan, tmp_path / "nowhere", "c")])
        page = (tmp_path / "page.md").read_text()
        assert "| it turns | holds |" in page and "| it stays | refuted |" in page
        assert f"{table['last sine'].mean():.3g} [" in page and "(out/figure.png)" in page and "Not computed" in page

    @pytest.mark.parametrize(
        ("changes", "message"), [({"analysis": "magic"}, "analysis must be one of"), ({"sedes": [1]}, "found 'sedes'")]
    )
    def test_unusable_files_are_refused(self, tmp_path: Path, changes: dict, message: str):
        with pytest.raises(ConfigError, match=message):
            read_study(self.write(tmp_path, **changes))


def _rounds(task: str, seeds: int, *, every: int = 1, ceiling: float | None = None) -> pd.DataFrame:
    """Losses that fall the more slowly the higher the dropout rate; ``ceiling``: of central training, if there is one."""
    rows = []
    rates = {"fedit": 0.0, "gamma_0.2": 0.2, "gamma_0.4": 0.4, "gamma_0.6": 0.6}
    methods = [(method, rate, 1 - rate) for method, rate in rates.items()]
    if ceiling is not None:
        methods.append(("centralized", 0.0, ceiling))
    for (method, rate, speed), seed, at in product(methods, range(seeds), range(0, 5, every)):
        train = np.exp(-0.3 * speed * at) + 0.01 * seed
        known = {"setting": task, "method": method, "seed": seed, "round": at, "num_examples": 50.0}
        losses = {"train_loss": train, "test_loss": train + 0.02 * at * speed, "gap_loss": 0.02 * at * speed}
        rows.append(dict.fromkeys(ROUND_COLUMNS, 0.0) | known | losses | {"dropout_rate": rate if at else np.nan})
    return pd.DataFrame(rows)


def test_reference_lines_are_no_runs_without_dropout_and_tasks_may_lie_in_several_tables(tmp_path: Path) -> None:
    found = {}
    for name, ceiling in (("alone", None), ("beside", 40.0)):
        (folder := tmp_path / name).mkdir()
        _rounds("one", 3, ceiling=ceiling).to_csv(folder / "one.csv", index=False)
        _rounds("two", 2, every=2, ceiling=ceiling).to_csv(folder / "two.csv", index=False)
        parameters = {"tables": [str(folder / "one.csv"), str(folder / "two.csv")], "rounds": [4]}
        found[name] = learning_curve.study(parameters, [0, 1, 2], folder)
    pd.testing.assert_frame_equal(found["beside"], found["alone"])
    assert found["alone"].groupby("setting")["seed"].nunique().to_dict() == {
        f"{task}, round 4, {kind} left out": seeds
        for task, seeds in (("one", 3), ("two", 2))
        for kind in ("task", "rates")
    }
