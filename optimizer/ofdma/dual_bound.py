"""OFDMA: a lower bound from two prices per device, lambda on its rate and eta on its power.

For prices lambda, eta >= 0 one subcarrier is worth at most D_km = max_p lambda log2(1 + p/inv_km) - eta p to device k:
with the water level omega = lambda/(eta ln 2), lambda log2(omega/inv) - eta (omega - inv) where omega > inv, else zero.
Every assignment obeys

    objective >= sum_k min_gamma { phi_k + lambda_k r_k - eta_k q_k }  -  sum_m max_k D_km,

r = S/(tau Delta) the rate needed, q = min(P, eps/tau) the power allowed. With t = 1/tau(gamma) as variable r is affine,
q is concave and phi convex (increasing and convex in gamma, which is convex in t), so the inner minimum is a convex
scalar problem: a tangent in t at any point certifies it, whatever the accuracy of that point. The maximum over the
prices is the value of the continuous relaxation (docs/ofdma.md); L-BFGS on a smoothed maximum finds it, only the
formula above is trusted.

References
----------
[Yu2006] Yu and Lui, Dual Methods for Nonconvex Spectrum Optimization of Multicarrier Systems, IEEE Trans. Commun. 2006.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from optimizer.certificate import Leaf
from optimizer.ofdma.model import LN2, OfdmaModel, power_budget, required_rate, uplink_time
from optimizer.ofdma.waterfilling import set_rates
from optimizer.problem import BoolArray, FloatArray, IntArray
from optimizer.timing import time_is_up

_LOG_RANGE = (-80.0, 60.0)  # prices stay within exp of this


@dataclass(frozen=True)
class OwnershipBox:
    """A part of the search space: who may own what, and the dropout rates allowed.

    Parameters
    ----------
    allowed : ndarray
        (K, M) bool; device k may own subcarrier m.
    low, high : ndarray
        (K,) bounds on the dropout rate; ``low`` is at least the rate reached with every allowed subcarrier.
    """

    allowed: BoolArray
    low: FloatArray
    high: FloatArray

    @property
    def is_empty(self) -> bool:
        """Whether some device cannot be served at all."""
        return bool(np.any(~(self.low <= self.high)))


@dataclass(frozen=True)
class DualPoint:
    """Prices and what they certify.

    Parameters
    ----------
    bound : float
        The certified lower bound.
    rate_price, power_price : ndarray
        lambda and eta, shape (K,).
    price : ndarray
        mu_m = max_k D_km, shape (M,): what subcarrier m is worth.
    gamma : ndarray
        (K,) rates that attain the inner minima.
    minima : ndarray
        (K,) these minima.
    """

    bound: float
    rate_price: FloatArray
    power_price: FloatArray
    price: FloatArray
    gamma: FloatArray
    minima: FloatArray

    def leaf(self) -> Leaf:
        """Return what the verifier needs of it."""
        return Leaf(self.bound, self.price, self.minima, self.rate_price, self.power_price)


def root_box(model: OfdmaModel) -> OwnershipBox:
    """Everything allowed to every device."""
    allowed = np.ones(model.inv_snr.shape, dtype=bool)
    return tighten(model, OwnershipBox(allowed, model.rate_low, np.full(model.num_devices, model.rate_high)))


def tighten(model: OfdmaModel, box: OwnershipBox) -> OwnershipBox:
    """Raise the lower rates to what all allowed subcarriers together reach."""
    reach = set_rates(model, np.arange(model.num_devices), box.allowed)
    return OwnershipBox(box.allowed, np.maximum(box.low, reach), box.high)


def lagrangian_slope(
    model: OfdmaModel, gamma: FloatArray, rate_price: FloatArray, power_price: FloatArray, device: IntArray
) -> FloatArray:
    """Derivative in gamma of phi + lambda r - eta q, at points with tau > 0."""
    tau = uplink_time(model, gamma, device)
    bits = model.bits0[device] - model.bits1[device] * gamma
    rate_slope = -(model.bits1[device] * tau + bits * model.tau1[device]) / tau**2
    power = power_budget(model, gamma, device)
    by_energy = (model.joule1[device] - power * model.tau1[device]) / tau
    power_slope = np.where(power >= model.power[device], 0.0, by_energy)
    return model.slope(gamma, device) + rate_price * rate_slope - power_price * power_slope


def _lagrangian(model: OfdmaModel, gamma: FloatArray, lam: FloatArray, eta: FloatArray, device: IntArray) -> FloatArray:
    rate, power = required_rate(model, gamma, device), power_budget(model, gamma, device)
    return model.value(gamma, device) + lam * rate - eta * power


def device_minima(
    model: OfdmaModel,
    box: OwnershipBox,
    rate_price: FloatArray,
    power_price: FloatArray,
    device: IntArray | None = None,
    *,
    steps: int = 14,
) -> tuple[FloatArray, FloatArray]:
    """Certified lower bounds on min_gamma { phi + lambda r - eta q } over [low, high], per price pair.

    ``device`` (N,) says whose prices these are, every device in order when left out.

    The function is unimodal in gamma, so the signs of its slope bracket the minimiser in [a, b]; convexity in t = 1/tau
    gives f >= f(c) - |f'(c)| (b - a) tau(c)/tau(end) for either end c of the bracket.

    Returns
    -------
    tuple of ndarray
        (N,) lower bounds and (N,) rates close to the minimisers.
    """
    device = np.arange(model.num_devices) if device is None else device
    model = model.convex_on(box.low, box.high)

    def slope_at(gamma: FloatArray) -> FloatArray:
        return lagrangian_slope(model, gamma, rate_price, power_price, device)

    low, high = box.low[device], box.high[device]
    down, up = slope_at(low), slope_at(high)
    low, down = np.where(up <= 0, high, low), np.where(up <= 0, up, down)
    high, up = np.where(down >= 0, low, high), np.where(down >= 0, down, up)
    weight_low, weight_high = down.copy(), up.copy()
    for _ in range(steps):  # Illinois: false position with the stale end's weight halved, bisection where it stalls
        span = weight_high - weight_low
        share = np.divide(-weight_low, span, out=np.full_like(span, 0.5), where=span > 0)
        middle = low + np.clip(share, 0.002, 0.998) * (high - low)
        slope = slope_at(middle)
        falling = slope < 0
        weight_high = np.where(falling, 0.5 * weight_high, slope)
        weight_low = np.where(falling, slope, 0.5 * weight_low)
        low, down = np.where(falling, middle, low), np.where(falling, slope, down)
        high, up = np.where(falling, high, middle), np.where(falling, up, slope)
        if np.all(np.minimum(-down, up) * (high - low) <= 1e-15):
            break  # what the tangents below could still give away
    width, tau_low, tau_high = high - low, uplink_time(model, low, device), uplink_time(model, high, device)
    from_low = _lagrangian(model, low, rate_price, power_price, device) - np.abs(down) * width * tau_low / tau_high
    from_high = _lagrangian(model, high, rate_price, power_price, device) - np.abs(up) * width * tau_high / tau_low
    return np.maximum(from_low, from_high), np.where(-down < up, low, high)


def carrier_values(
    model: OfdmaModel, rate_price: FloatArray, power_price: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """D_km, with the rate [bit/s/Hz] and the power [W] that attain it; each (K, M)."""
    level = (rate_price / (power_price * LN2))[:, None]  # (K, 1) water level [W]
    power = np.maximum(level - model.inv_snr, 0.0)
    rate = np.where(power > 0, np.log2(level / model.inv_snr), 0.0)
    return np.maximum(rate_price[:, None] * rate - power_price[:, None] * power, 0.0), rate, power


def evaluate_prices(model: OfdmaModel, box: OwnershipBox, rate_price: FloatArray, power_price: FloatArray) -> DualPoint:
    """Certify the given prices: the bound of the module's formula, without any smoothing."""
    minima, gamma = device_minima(model, box, rate_price, power_price)
    worth = np.where(box.allowed, carrier_values(model, rate_price, power_price)[0], 0.0)
    price = worth.max(axis=0)
    return DualPoint(float(minima.sum() - price.sum()), rate_price, power_price, price, gamma, minima)


def _smoothed(
    model: OfdmaModel, box: OwnershipBox, log_prices: FloatArray, temperature: float, price: FloatArray | None = None
) -> tuple[float, FloatArray, FloatArray]:
    """Negative smoothed bound, its gradient in (ln lambda, ln eta), and the soft ownership (K, M).

    With ``price`` (M,) the devices do not compete: each one buys subcarriers at these prices, and the value is the sum
    of their own dual functions psi_k - sum_m [D_km - mu_m]^+.
    """
    lam, eta = np.exp(log_prices.reshape(2, -1))
    minima, gamma = device_minima(model, box, lam, eta)
    worth, rate, power = carrier_values(model, lam, eta)
    worth = np.where(box.allowed, worth, 0.0)
    if price is None:
        top = worth.max(axis=0)
        share = np.where(box.allowed, np.exp((worth - top) / temperature), 0.0)
        total = share.sum(axis=0) + np.exp(-top / temperature)  # the last term: owned by nobody
        share, paid = share / total, np.sum(top + temperature * np.log(total))
    else:
        share = np.where(box.allowed, expit((worth - price) / temperature), 0.0)
        paid = temperature * np.sum(np.logaddexp(0.0, (worth - price) / temperature), where=box.allowed)
    device = np.arange(model.num_devices)
    by_rate = required_rate(model, gamma, device) - np.sum(share * rate, axis=1)
    by_power = np.sum(share * power, axis=1) - power_budget(model, gamma, device)
    return -float(minima.sum() - paid), -np.concatenate([by_rate * lam, by_power * eta]), share


def start_prices(model: OfdmaModel, box: OwnershipBox) -> tuple[FloatArray, FloatArray]:
    """Prices (lambda, eta) under which a modest dropout rate is stationary, at the water level of an even share of the band.

    lambda = -phi'/(r' - q'/(omega ln 2)), eta = lambda/(omega ln 2), a fifth of the way from the lowest rate to the
    highest.
    """
    count, width = model.inv_snr.shape
    device, one, zero = np.arange(count), np.ones(count), np.zeros(count)
    gamma = box.low + 0.2 * (box.high - box.low)
    each = max(width // count, 1)
    level = model.sorted_inv_snr[:, :each].mean(axis=1) + model.power / each
    per_watt = 1.0 / (np.maximum(level, 1e-300) * LN2)
    model = model.convex_on(box.low, box.high)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_price = lagrangian_slope(model, gamma, one, per_watt, device) - lagrangian_slope(
            model, gamma, zero, zero, device
        )
        lam = np.where(per_price < 0, np.maximum(model.slope(gamma, device), 0.0) / -per_price, 0.0)
    usable = lam[np.isfinite(lam) & (lam > 0)]
    typical = float(np.median(usable)) if len(usable) else 1e-6
    # In logarithms a price that starts near zero hardly moves; one that should be zero falls quickly.
    lam = np.clip(np.where(np.isfinite(lam), lam, typical), 0.1 * typical, 1e3 * typical)
    return lam, lam * per_watt


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """Keep linear algebra on one thread inside the block, where threadpoolctl (it comes with scikit-learn) is at hand.

    L-BFGS-B solves systems of a few dozen rows; on a busy machine threads waiting for each other there cost ten times
    the work.
    """
    try:
        limits: contextlib.AbstractContextManager[object] = importlib.import_module("threadpoolctl").threadpool_limits(
            limits=1
        )
    except ImportError:
        return contextlib.nullcontext()
    return limits


def _climb(
    model: OfdmaModel,
    box: OwnershipBox,
    log_prices: FloatArray,
    temperature: float,
    unit: float,
    max_steps: int,
    price: FloatArray | None = None,
) -> FloatArray:
    """L-BFGS on one smoothed problem, in units of ``unit``; returns the log prices it ends at."""

    def cost(point: FloatArray) -> tuple[float, FloatArray]:
        value, gradient, _ = _smoothed(model, box, point, temperature, price)
        return value / unit, gradient / unit

    limits = [_LOG_RANGE] * len(log_prices)
    options = {"maxiter": max_steps, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-5}

    def watch(intermediate_result: object) -> None:
        if time_is_up():
            raise StopIteration  # the way in which SciPy is asked to hand out what it has

    with one_blas_thread():
        result = minimize(cost, log_prices, jac=True, method="L-BFGS-B", bounds=limits, options=options, callback=watch)  # type: ignore[call-overload]
    return np.asarray(result.x, dtype=np.float64)


def maximise_bound(
    model: OfdmaModel,
    box: OwnershipBox,
    start: tuple[FloatArray, FloatArray],
    *,
    smoothing: tuple[float, ...] = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4),
    max_steps: int = 80,
) -> tuple[DualPoint, FloatArray]:
    """Best certified bound along a sequence of smoothed problems.

    Parameters
    ----------
    model : OfdmaModel
        The problem.
    box : OwnershipBox
        Where to bound it; must not be empty.
    start : tuple of ndarray
        lambda and eta to start from, (K,) each.
    smoothing : tuple of float
        Temperatures, relative to the mean price of a subcarrier.
    max_steps : int
        L-BFGS steps per temperature.

    Returns
    -------
    tuple
        The best `DualPoint` seen and the soft ownership (K, M) there.
    """
    best = evaluate_prices(model, box, *start)
    log_prices = np.log(np.concatenate(start))
    share = np.zeros(model.inv_snr.shape)
    for relative in smoothing:
        unit = max(
            float(best.price.mean()), 1e-10
        )  # stopping rules of L-BFGS-B are absolute: solve in units of a price
        temperature = relative * unit
        log_prices = _climb(model, box, log_prices, temperature, unit, max_steps)
        point = evaluate_prices(model, box, *np.exp(log_prices.reshape(2, -1)))
        share = _smoothed(model, box, log_prices, temperature)[2]
        best = point if point.bound > best.bound else best
        if time_is_up():
            break
    return best, share


def adapt_prices(
    model: OfdmaModel,
    box: OwnershipBox,
    start: tuple[FloatArray, FloatArray],
    price: FloatArray,
    *,
    max_steps: int = 40,
) -> tuple[FloatArray, FloatArray]:
    """Lambda and eta (K,) that maximise every device's own dual function at the subcarrier prices ``price`` (M,).

    They prune the listing of sets in `columns`; any prices do, these do it best.
    """
    unit = max(float(price.mean()), 1e-10)
    log_prices = np.log(np.concatenate(start))
    for relative in (1e-2, 1e-3):
        log_prices = _climb(model, box, log_prices, relative * unit, unit, max_steps, price)
    rate_price, power_price = np.exp(log_prices.reshape(2, -1))
    return rate_price, power_price


def alone_bound(model: OfdmaModel, box: OwnershipBox) -> Leaf:
    """Everyone alone with all that it may own: free subcarriers, and the prices per device that prove the floors."""
    floor, free = model.value(box.low, np.arange(model.num_devices)), np.zeros(model.num_subcarriers)
    return Leaf(float(floor.sum()), free, floor, *adapt_prices(model, box, start_prices(model, box), free))
