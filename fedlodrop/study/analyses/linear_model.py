r"""RoLoRA's theory: devices k see :math:`Y_k = X_k a_* b_{*k}^\top` and learn a (unit length) and b, rank one.

Let :math:`\delta` be the sine of the angle between a and :math:`a_*`, and :math:`b_*` the mean of the
:math:`b_{*k}`. One alternating step solves for b with a fixed, averages, takes a gradient step on a, averages again and
normalises. [Chen2025]'s claims, for the losses :math:`\frac{1}{2m}\|Y_k - X_k a b^\top\|^2` of m examples each:

    RoLoRA      :math:`\delta_{t+1} \le \delta_t \sqrt{1 - \eta (1 - \delta_0^2) \|b_*\|^2}`
    FFA-LoRA    its loss (without the factor 1/2) stays at :math:`(1 + c) \|b_*\|^2 \delta_0^2` or above

With infinitely many examples both are exact statements: :math:`b = (a^\top a_*) b_*`, so that FFA-LoRA's loss is
:math:`\|b_*\|^2 \delta_0^2`, and with :math:`x = \eta \|b_*\|^2 (1 - \delta^2)` RoLoRA's angle obeys
:math:`\delta_{t+1} = \delta_t (1 - x) / \sqrt{1 + x^2 \delta^2 / (1 - \delta^2)}`, below the claim for :math:`x \le 1`.

References
----------
.. [Chen2025] Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA, arXiv 2502.01755.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from adapter import AdapterMask, AdapterSpec, AdapterState
from adapter.state import ModuleShape
from optimizer.plots import BLUE, GREY, VERMILION, new_figure, save, shared_legend
from strategy.aggregation import Answer
from strategy.aggregation.kept import KeptAverage

Array = npt.NDArray[np.float64]
_LAYER = "linear"
_SMALLEST = 1e-4  # sines below it are rounded by the float32 adapter
_STREAM = 0x6C696E65  # names the random stream of the data


@dataclass(frozen=True)
class LinearFleet:
    """Devices' data: ``inputs`` (K, m, d), ``a_star`` (d,) of length one, ``b_stars`` (K, e), the start of a (d,)."""

    inputs: Array
    a_star: Array
    b_stars: Array
    start: Array

    @property
    def b_star(self) -> Array:
        """Mean of the devices' right factors, (e,)."""
        return np.asarray(self.b_stars.mean(axis=0))


def draw_fleet(
    rng: np.random.Generator, *, devices: int, examples: int, size: int, angle: float, spread: float
) -> LinearFleet:
    """Draw standard normal inputs, a start whose sine to ``a_star`` is ``angle``, and right factors of mean length one.

    ``spread`` is the standard deviation of the length of a device's own deviation from the mean right factor.
    """
    a_star, other = np.linalg.qr(rng.standard_normal((size, 2)))[0].T
    mean = rng.standard_normal(size)
    own = rng.standard_normal((devices, size)) * spread / np.sqrt(size)
    b_stars = mean / np.linalg.norm(mean) + own - own.mean(axis=0)
    start = np.sqrt(1 - angle**2) * a_star + angle * other
    return LinearFleet(rng.standard_normal((devices, examples, size)), a_star, b_stars, start)


def sine(a: Array, a_star: Array) -> float:
    """Sine of the angle between two directions."""
    unit = a / np.linalg.norm(a)
    return float(np.linalg.norm(unit - (unit @ a_star) * a_star))


def best_b(fleet: LinearFleet, device: int, a: Array) -> Array:
    """Return a device's least-squares right factor for a fixed a."""
    scores = fleet.inputs[device] @ a  # (m,)
    target = fleet.inputs[device] @ fleet.a_star
    return np.asarray((scores @ target / (scores @ scores)) * fleet.b_stars[device])


def gradients(fleet: LinearFleet, device: int, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the gradients of a device's loss, squared error over 2 m, with respect to a (d,) and b (e,)."""
    x = fleet.inputs[device]
    error = np.outer(x @ a, b) - np.outer(x @ fleet.a_star, fleet.b_stars[device])  # (m, e)
    return x.T @ (error @ b) / len(x), error.T @ (x @ a) / len(x)


def excess_loss(fleet: LinearFleet, a: Array, b: Array) -> float:
    """Return the squared error on unseen inputs of the mean target, ``||a b' - a* b*'||^2``."""
    return float(np.sum((np.outer(a, b) - np.outer(fleet.a_star, fleet.b_star)) ** 2))


def average(a: Array, b: Array, answers: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Average what devices made of (a, b), by the product's own average of lora_A = a' and lora_B = b."""
    spec = AdapterSpec((ModuleShape(_LAYER, b.size, a.size, 1),))
    mean = KeptAverage(spec, max_total_weight=len(answers))
    for device, (own_a, own_b) in enumerate(answers):
        change = AdapterState({_LAYER: (own_a - a)[None]}, {_LAYER: (own_b - b)[:, None]})
        mean.add(Answer(change, AdapterMask.full(spec), 1.0, device))
    state = mean.finish(AdapterState({_LAYER: a[None]}, {_LAYER: b[:, None]})).state
    return state.lora_A[_LAYER][0].astype(np.float64), state.lora_B[_LAYER][:, 0].astype(np.float64)


def rolora(fleet: LinearFleet, rate: float, rounds: int) -> tuple[list[float], float]:
    """Run the alternating method; return the sine before every round and after the last, and the excess loss."""
    a, b, sines = fleet.start, np.zeros_like(fleet.b_star), [sine(fleet.start, fleet.a_star)]
    devices = range(len(fleet.inputs))
    for _ in range(rounds):
        _, b = average(a, b, [(a, best_b(fleet, k, a)) for k in devices])
        a, _ = average(a, b, [(a - rate * gradients(fleet, k, a, b)[0], b) for k in devices])
        a /= np.linalg.norm(a)
        sines.append(sine(a, fleet.a_star))
    _, b = average(a, b, [(a, best_b(fleet, k, a)) for k in devices])
    return sines, excess_loss(fleet, a, b)


def ffa_lora(fleet: LinearFleet) -> float:
    """Return the excess loss of the best b for the starting a, averaged: more rounds change nothing."""
    devices = range(len(fleet.inputs))
    _, b = average(fleet.start, 0 * fleet.b_star, [(fleet.start, best_b(fleet, k, fleet.start)) for k in devices])
    return excess_loss(fleet, fleet.start, b)


def lora(fleet: LinearFleet, rate: float, rounds: int, local_steps: int) -> tuple[list[float], float]:
    """Train both factors at once; return the averaging error of every round and the final excess loss.

    The error is ``||mean(a b') - mean(a) mean(b)'|| / ||mean(a b')||``.
    """
    a, b, errors = fleet.start, np.zeros_like(fleet.b_star), []
    for _ in range(rounds):
        answers = []
        for k in range(len(fleet.inputs)):
            own_a, own_b = a, b
            for _ in range(local_steps):
                to_a, to_b = gradients(fleet, k, own_a, own_b)
                own_a, own_b = own_a - rate * to_a, own_b - rate * to_b
            answers.append((own_a, own_b))
        product = np.mean([np.outer(*answer) for answer in answers], axis=0)
        a, b = average(a, b, answers)
        errors.append(float(np.linalg.norm(product - np.outer(a, b)) / np.linalg.norm(product)))
    return errors, excess_loss(fleet, a, b)


def claimed_factor(rate: float, angle: float, b_star: Array) -> float:
    """Return the factor by which the sine shrinks in every round at least, according to [Chen2025]_."""
    return float(np.sqrt(1 - rate * (1 - angle**2) * (b_star @ b_star)))


def study(parameters: dict[str, Any], seeds: Sequence[int], folder: Path) -> pd.DataFrame:
    """Measure all claims for every angle, learning rate and spread; write the figure and return a row per run."""
    p, rows, curves = parameters, [], []
    fleet_keys = {key: int(p[key]) for key in ("devices", "examples", "size")}
    for angle, rate, spread, seed in product(p["angles"], p["rates"], p["spreads"], seeds):
        fleet = draw_fleet(np.random.default_rng([_STREAM, seed]), **fleet_keys, angle=angle, spread=spread)
        row, sines = _measure(fleet, angle, rate, p)
        rows.append({"setting": f"δ0 = {angle:g}, η = {rate:g}, spread {spread:g}", "seed": seed} | row)
        curves.append((angle, rate, spread, sines, row))
    _draw([curve for curve in curves if curve[2] == p["spreads"][0]], folder / "figure.png")
    return pd.DataFrame(rows)


def _measure(fleet: LinearFleet, angle: float, rate: float, p: dict[str, Any]) -> tuple[dict[str, float], list[float]]:
    sines, rolora_loss = rolora(fleet, rate, p["rounds"])
    claim, floor = claimed_factor(rate, angle, fleet.b_star), float(fleet.b_star @ fleet.b_star) * angle**2
    steps = [(one, two) for one, two in zip(sines, sines[1:], strict=False) if two > _SMALLEST]
    errors, lora_loss = lora(fleet, rate, p["rounds"], p["local_steps"])
    row = {
        "claimed factor": claim,
        "slowest / claimed": max(two / one for one, two in steps) / claim,
        "slowest / claimed, sine above 0.2": max(two / one for one, two in steps if one > 0.2) / claim,
        "last sine": sines[-1],
        "FFA-LoRA loss / floor": ffa_lora(fleet) / floor,
        "RoLoRA loss / floor": rolora_loss / floor,
        "LoRA loss / floor": lora_loss / floor,
        "log10(LoRA loss / RoLoRA loss)": float(np.log10(lora_loss / rolora_loss)),
        "LoRA largest averaging error": max(errors),
    }
    return row, sines


def _draw(curves: list[tuple[float, float, float, list[float], dict[str, float]]], path: Path) -> None:
    angles = sorted({curve[0] for curve in curves})
    figure, axes = new_figure(len(angles), width=4.0, height=3.2)
    rate = min(curve[1] for curve in curves)
    for panel, angle in zip(axes, angles, strict=True):
        for _, _, _, sines, row in (curve for curve in curves if curve[:2] == (angle, rate)):
            claim = angle * row["claimed factor"] ** np.arange(len(sines))
            panel.semilogy(np.maximum(sines, _SMALLEST), color=BLUE, alpha=0.4, label="RoLoRA, every seed")
            panel.semilogy(np.maximum(claim, _SMALLEST), "--", color=VERMILION, label="claimed bound")
            panel.axhline(angle, color=GREY, linestyle=":", label="FFA-LoRA")
        panel.set(title=f"start {angle:g}, η = {rate:g}", xlabel="round", ylabel="sine of the angle (1)")
    shared_legend(figure, axes)
    save(figure, path)
