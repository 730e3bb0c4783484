r"""Masked training under the kept average, measured on quadratics beside the bound of docs/convergence.md.

Device k of K holds :math:`F_k(x) = \frac12 (x - x_k)^\top H_k (x - x_k)`; x are the rows of a lora_B of rank one. A
round is one step of every device at its masked point, :math:`-\eta D_k (H_k (D_k x - x_k) + \text{noise})` with
:math:`D_k = M_k / q`, where q is the share of rows kept, and the kept average of the steps. The theorem, its proof and
its letters stand in docs/convergence.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from adapter import AdapterSpec, AdapterState, mask_seed, sample_mask
from adapter.mask import kept_count
from adapter.state import ModuleShape
from fedlodrop.study.analyses.linear_model import Array, best_b, draw_fleet
from optimizer.plots import BLUE, VERMILION, new_panels, save, shared_legend
from strategy.aggregation import Answer
from strategy.aggregation.kept import KeptAverage

_LAYER = "quadratic"
_STREAM = 0x71756164  # names the random stream of problems and noise


@dataclass(frozen=True)
class Quadratics:
    """The devices' losses: ``hessians`` (K, n, n), ``targets`` (K, n), and the squared norm of the gradients' noise."""

    hessians: Array
    targets: Array
    noise: float


@dataclass(frozen=True)
class Masking:
    """What the kept average makes of ``rows`` rows, ``kept`` of which every one of ``devices`` devices keeps."""

    devices: int
    rows: int
    kept: int

    @property
    def share(self) -> float:
        """Probability q that a device keeps a row."""
        return self.kept / self.rows

    @property
    def variance(self) -> float:
        """Variance of an entry of D, (1 - q) / q, which is gamma / (1 - gamma)."""
        return 1 / self.share - 1

    @property
    def somebody(self) -> float:
        """Probability that at least one device keeps a row."""
        return 1 - (1 - self.share) ** self.devices

    @property
    def speed(self) -> float:
        """Factor a of the expected step: 1 without dropout, at most 1 / q."""
        return self.somebody / self.share

    @property
    def pair(self) -> float:
        """Mean of the product of two different entries of D; 1 for independent rows, less for a fixed count."""
        return (self.kept - 1) / max(self.rows - 1, 1) / self.share if self.kept < self.rows else 1.0

    def weights(self) -> tuple[float, float]:
        """Return rho_1 and rho_2: what the devices' own variance and their differences count for."""
        n = np.arange(1, self.devices + 1)
        chance = stats.binom.pmf(n, self.devices, self.share)
        spread = (self.devices - n) / (n * max(self.devices - 1, 1))
        return float(np.sum(chance / n)), float(np.sum(chance * spread))


def masked_problem(problem: Quadratics, masking: Masking) -> tuple[Array, Array]:
    """Return the Hessians of the devices' mean losses over masks, (K, n, n), and the minimiser of their mean, (n,)."""
    diagonal = np.einsum("kii->ki", problem.hessians)[:, :, None] * np.eye(masking.rows)
    hessians = masking.pair * problem.hessians + (1 / masking.share - masking.pair) * diagonal
    pull = np.einsum("kij,kj->ki", problem.hessians, problem.targets)
    return hessians, np.linalg.solve(hessians.mean(axis=0), pull.mean(axis=0))


@dataclass(frozen=True)
class Run:
    """Distances ||x_t - x~||^2 of one run, (rounds + 1,), its path, and the constants of the bounds met on it."""

    distances: Array
    path: Array
    radius: float
    heterogeneity: float
    largest_gradient: float  # squared norm of a device's masked gradient


def simulate(
    problem: Quadratics, masking: Masking, rate: float, rounds: int, seed: int, average: str = "kept", steps: int = 1
) -> Run:
    """Run masked training with the product's masks and its ``average``, a device taking ``steps`` steps a round."""
    devices, rows = problem.targets.shape
    spec = AdapterSpec((ModuleShape(_LAYER, rows, 1, 1),))
    rng = np.random.default_rng([_STREAM, seed])
    hessians, minimiser = masked_problem(problem, masking)
    x, gamma, path, spread, largest = np.zeros(rows), 1 - masking.share, [], 0.0, 0.0
    for t in range(rounds + 1):
        path.append(x)
        pulls = np.einsum("kij,j->ki", hessians, x) - np.einsum("kij,kj->ki", problem.hessians, problem.targets)
        spread = max(spread, float(np.mean(np.sum((pulls - pulls.mean(axis=0)) ** 2, axis=1))))
        mean = KeptAverage(spec, average, max_total_weight=devices)
        for k in range(devices):
            mask = sample_mask(spec, mask_seed(seed, t, k), gamma, factors=("B",))
            kept = mask.modules[0].rows
            own = x[kept]
            for _ in range(steps):
                masked = np.zeros(rows)
                masked[kept] = own / masking.share
                gradient = problem.hessians[k] @ (masked - problem.targets[k])
                gradient += rng.standard_normal(rows) * np.sqrt(problem.noise / rows)
                own = own - rate * gradient[kept] / masking.share
                largest = max(largest, float(np.sum(gradient[kept] ** 2)) / masking.share**2)
            mean.add(Answer(AdapterState({}, {_LAYER: (own - x[kept])[:, None]}), mask, 1.0, k))
        start = AdapterState({_LAYER: np.zeros((1, 1))}, {_LAYER: x[:, None]})
        x = mean.finish(start).state.lora_B[_LAYER][:, 0].astype(np.float64)
    walked = np.array(path)
    distances = np.sum((walked - minimiser) ** 2, axis=1)
    return Run(distances, walked, float(np.linalg.norm(walked, axis=1).max()), spread, largest)


def bound(problem: Quadratics, masking: Masking, rate: float, runs: Sequence[Run]) -> Array:
    """Return the bound of the theorem for every round, (rounds + 1,), with the constants met on some runs."""
    radius, heterogeneity = (max(getattr(run, name) for run in runs) for name in ("radius", "heterogeneity"))
    hessians, minimiser = masked_problem(problem, masking)
    strong = float(np.linalg.eigvalsh(hessians.mean(axis=0))[0])
    smooth = max(float(np.linalg.eigvalsh(hessian)[-1]) for hessian in problem.hessians)
    q, (own, between) = masking.share, masking.weights()
    noise = own * (problem.noise + smooth**2 * masking.variance * radius**2) / q**3 + between * heterogeneity / q**2
    shrink = (1 - rate * masking.speed * strong) ** np.arange(len(runs[0].distances))
    found: Array = shrink * (minimiser @ minimiser) + rate * noise / (masking.speed * strong)
    return found


def largest_rate(problem: Quadratics, masking: Masking) -> float:
    """Return the largest learning rate that the theorem admits."""
    hessians, _ = masked_problem(problem, masking)
    return masking.somebody / (masking.speed * float(np.linalg.eigvalsh(hessians.mean(axis=0))[-1]))


def random_quadratics(seed: int, *, devices: int, rows: int, noise: float, spread: float) -> Quadratics:
    """Draw Hessians with eigenvalues from 0.2 to 1 that are not diagonal, and targets around a common one."""
    rng = np.random.default_rng([_STREAM, seed])
    values = np.linspace(0.2, 1.0, rows)
    bases = np.linalg.qr(rng.standard_normal((devices, rows, rows)))[0]
    common = rng.standard_normal(rows)
    targets = common + spread * rng.standard_normal((devices, rows))
    return Quadratics(np.einsum("kij,j,klj->kil", bases, values, bases), targets, noise)


def linear_model_quadratics(seed: int, *, devices: int, rows: int, noise: float, spread: float) -> Quadratics:
    """Return what the linear model of `linear_model` asks of b while a stays: a multiple of the identity each."""
    rng = np.random.default_rng([_STREAM, seed])
    fleet = draw_fleet(rng, devices=devices, examples=50, size=rows, angle=0.5, spread=spread)
    curvature = np.mean((fleet.inputs @ fleet.start) ** 2, axis=1)
    targets = np.array([best_b(fleet, k, fleet.start) for k in range(devices)])
    return Quadratics(curvature[:, None, None] * np.eye(rows), targets, noise)


_PROBLEMS = {"quadratic": random_quadratics, "linear model": linear_model_quadratics}


def study(parameters: dict[str, Any], seeds: Sequence[int], folder: Path) -> pd.DataFrame:
    """Measure the mean distance over repeated runs beside the bound, for every dropout rate and number of devices."""
    p, rows, curves = parameters, [], []
    keys = {key: p[key] for key in ("rows", "noise", "spread")}
    for name, gamma, devices, seed in product(p["problems"], p["dropout_rates"], p["devices"], seeds):
        problem = _PROBLEMS[name](seed, devices=devices, **keys)
        masking = Masking(devices, keys["rows"], kept_count(keys["rows"], gamma))
        row, mean, limit = _measure(problem, masking, p, seed)
        rows.append({"setting": f"{name}, γ = {gamma:g}, K = {devices}", "seed": seed} | row)
        if seed == seeds[0]:
            curves.append((name, gamma, devices, mean, limit))
    _draw(curves, folder / "figure.png")
    return pd.DataFrame(rows)


Measured = tuple[dict[str, float], Array, Array]  # a row of the table, mean distances and their bound by round


def _measure(problem: Quadratics, masking: Masking, p: dict[str, Any], seed: int) -> Measured:
    rate, rounds = p["rate"] * largest_rate(problem, masking), p["rounds"]
    runs = [simulate(problem, masking, rate, rounds, 1000 * seed + repeat) for repeat in range(p["repeats"])]
    mean = np.mean([run.distances for run in runs], axis=0)
    limit = bound(problem, masking, rate, runs)
    hessians, minimiser = masked_problem(problem, masking)
    error = np.mean([run.path for run in runs], axis=0)[: p["early"]] - minimiser  # (early, n)
    step = np.eye(masking.rows) - rate * masking.speed * hessians.mean(axis=0)
    predicted = np.array([-np.linalg.matrix_power(step, t) @ minimiser for t in range(p["early"])])
    row = {
        "measured / bound, worst round": float(np.max(mean / limit)),
        "mean path against theory": float(np.linalg.norm(error - predicted) / np.linalg.norm(predicted)),
        "speed a": masking.speed,
        "floor, measured": float(mean[len(mean) // 2 :].mean()),
        "floor, bound": float(limit[-1]),
    }
    return row, mean, limit


def _draw(curves: list[tuple[str, float, int, Array, Array]], path: Path) -> None:
    panels = list(dict.fromkeys((name, gamma) for name, gamma, *_ in curves))
    figure, axes = new_panels(len(panels), 4, 3.4, 3.0)
    for panel, (name, gamma) in zip(axes, panels, strict=True):
        here = [curve[2:] for curve in curves if curve[:2] == (name, gamma)]
        for line, (devices, mean, limit) in zip(("-", "--", ":"), here, strict=False):
            panel.semilogy(mean, line, color=BLUE, label=f"measured, K = {devices}")
            panel.semilogy(limit, line, color=VERMILION, label=f"bound, K = {devices}")
        panel.set(title=f"{name}, γ = {gamma:g}", xlabel="round", ylabel="squared distance (1)")
    shared_legend(figure, axes)
    save(figure, path)
