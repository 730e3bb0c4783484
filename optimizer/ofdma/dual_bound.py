"""OFDMA: a lower bound from two prices per device, lambda on its rate and eta on its power.

For prices lambda, eta >= 0 one subcarrier is worth at most D_km = max_p lambda log2(1 + p/inv_km) - eta p to device k:
with the water level omega = lambda/(eta ln 2), lambda log2(omega/inv) - eta (omega - inv) where omega > inv, else zero.
Every assignment obeys

    objective >= sum_k min_gamma { phi_k + lambda_k r_k - eta_k q_k }  -  sum_m max_k D_km,

r = S/(tau Delta) the rate needed, q = min(P, eps/tau) the power allowed. With t = 1/tau(gamma) as variable r is affine,
q is concave and phi convex (increasing and convex in gamma, which is convex in t), so the inner minimum is a convex
scalar problem: a tangent in t at any point certifies it, whatever the accuracy of that point. The maximum over the
prices is the value of the continuous relaxation (docs/ofdma.md, [Yu2006]); L-BFGS on a smoothed maximum finds it, only
the formula above is trusted.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from optimizer.certificate import Leaf
from optimizer.objective import EVERY, Part
from optimizer.ofdma.model import LN2, OfdmaModel, power_budget, required_rate, uplink_time
from optimizer.ofdma.waterfilling import set_rates
from optimizer.problem import BoolArray, FloatArray, IntArray
from optimizer.timing import time_is_up

_STEPS = 14  # of a device's minimisation
_TEMPERATURES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)  # relative to the mean price of a subcarrier
_threads = cache(ThreadpoolController)
_LOG_RANGE = (-80.0, 60.0)  # prices stay within exp of this
_REACH = 3.0  # and change by e^3 at most in one climb: in logarithms one that has fallen to nothing never rises again


@dataclass(frozen=True)
class OwnershipBox:
    """A part of the search space: device k may own subcarrier m (K, M), and bounds (K,) on the dropout rates.

    ``low`` is at least the rate reached with every allowed subcarrier.
    """

    allowed: BoolArray
    low: FloatArray
    high: FloatArray

    @property
    def unserved(self) -> IntArray:
        """Devices that cannot be served at all; the box is empty where there is one."""
        return np.flatnonzero(~(self.low <= self.high))


class Relaxation(NamedTuple):
    """The best prices lambda and eta, (2, K), what they certify, and the soft ownership (K, M) that goes with them."""

    leaf: Leaf
    prices: FloatArray
    share: FloatArray


def root_box(model: OfdmaModel) -> OwnershipBox:
    """Everything allowed to every device."""
    allowed = np.ones(model.inv_snr.shape, dtype=bool)
    return tighten(model, OwnershipBox(allowed, model.rate_low, model.rate_high))


def tighten(model: OfdmaModel, box: OwnershipBox) -> OwnershipBox:
    """Raise the lower rates to what all allowed subcarriers together reach."""
    return OwnershipBox(box.allowed, np.maximum(box.low, set_rates(model, model.devices, box.allowed)), box.high)


def alone_bound(model: OfdmaModel, box: OwnershipBox) -> Leaf:
    """Everyone alone with all that it may own: subcarriers are free."""
    floor = model.value(box.low)
    return Leaf(float(floor.sum()), np.zeros(model.num_subcarriers), floor)


def lagrangian_slope(model: OfdmaModel, gamma: FloatArray, prices: FloatArray, device: Part = EVERY) -> FloatArray:
    """Derivative in gamma (N,) of phi + lambda r - eta q at prices (lambda, eta), (2, N), where tau > 0."""
    lam, eta = prices
    tau = uplink_time(model, gamma, device)
    bits = model.bits0[device] - model.bits1[device] * gamma
    rate_slope = -(model.bits1[device] * tau + bits * model.tau1[device]) / tau**2
    power = power_budget(model, gamma, device)
    by_energy = (model.joule1[device] - power * model.tau1[device]) / tau
    power_slope = np.where(power >= model.power[device], 0.0, by_energy)
    return model.slope(gamma, device) + lam * rate_slope - eta * power_slope


def device_minima(
    model: OfdmaModel, box: OwnershipBox, prices: FloatArray, device: Part = EVERY
) -> tuple[FloatArray, FloatArray]:
    """Certified lower bounds (N,) on min_gamma { phi + lambda r - eta q } over [low, high], and rates near these.

    ``device`` (N,) says whose prices (2, N) these are. The function is unimodal in gamma, so its slope's signs bracket
    the minimiser in [a, b]; convexity in t = 1/tau gives f >= f(c) - |f'(c)| (b - a) tau(c)/tau(end) for either end c.
    """
    model = model.convex_on(box.low, box.high)

    def slope_at(gamma: FloatArray) -> FloatArray:
        return lagrangian_slope(model, gamma, prices, device)

    def value_at(gamma: FloatArray) -> FloatArray:
        rate, power = required_rate(model, gamma, device), power_budget(model, gamma, device)
        return model.value(gamma, device) + prices[0] * rate - prices[1] * power

    low, high = box.low[device], box.high[device]
    down, up = slope_at(low), slope_at(high)
    low, down = np.where(up <= 0, high, low), np.where(up <= 0, up, down)
    high, up = np.where(down >= 0, low, high), np.where(down >= 0, down, up)
    weight_low, weight_high = down.copy(), up.copy()
    for _ in range(_STEPS):  # Illinois: false position with the stale end's weight halved, bisection where it stalls
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
    from_low = value_at(low) - np.abs(down) * width * tau_low / tau_high
    from_high = value_at(high) - np.abs(up) * width * tau_high / tau_low
    return np.maximum(from_low, from_high), np.where(-down < up, low, high)


def carrier_values(
    model: OfdmaModel, prices: FloatArray, device: Part = EVERY
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """D_km for prices (2, N) of ``device``, with the rate [bit/s/Hz] and the power [W] that attain it; (N, M) each."""
    (lam, eta), inverse = prices[:, :, None], model.inv_snr[device]
    power = np.maximum(lam / (eta * LN2) - inverse, 0.0)  # up to the water level
    rate = np.log1p(power / inverse) / LN2
    return np.maximum(lam * rate - eta * power, 0.0), rate, power


def certify_prices(model: OfdmaModel, box: OwnershipBox, prices: FloatArray) -> Leaf:
    """Certify prices (lambda, eta), (2, K): the bound of the module's formula, without any smoothing."""
    minima = device_minima(model, box, prices)[0]
    price = np.where(box.allowed, carrier_values(model, prices)[0], 0.0).max(axis=0)
    return Leaf(float(minima.sum() - price.sum()), price, minima)


@dataclass(frozen=True)
class SoftBound:
    """The bound with a smooth maximum at a temperature, relative to ``unit``, a typical price of a subcarrier.

    ``cost`` (K, M) is what owning a subcarrier costs beside.
    """

    model: OfdmaModel
    box: OwnershipBox
    unit: float
    relative: float
    cost: FloatArray | float = 0.0

    def share(self, worth: FloatArray) -> tuple[FloatArray, float]:
        """Soft ownership (K, M) at what subcarriers are worth (K, M), and the smooth maximum of that."""
        allowed, temperature = self.box.allowed, self.relative * self.unit
        worth = np.where(allowed, worth - self.cost, 0.0)
        top = np.maximum(worth.max(axis=0), 0.0)
        share = np.where(allowed, np.exp((worth - top) / temperature), 0.0)
        total = share.sum(axis=0) + np.exp(-top / temperature)  # the last term: owned by nobody
        return share / total, float(np.sum(top + temperature * np.log(total)))

    def at(self, log_prices: FloatArray) -> tuple[float, FloatArray]:
        """Negative bound and its gradient in (ln lambda, ln eta), both per ``unit``."""
        prices = np.exp(log_prices.reshape(2, -1))
        minima, gamma = device_minima(self.model, self.box, prices)
        worth, rate, power = carrier_values(self.model, prices)
        share, paid = self.share(worth)
        by_rate = required_rate(self.model, gamma) - np.sum(share * rate, axis=1)
        by_power = np.sum(share * power, axis=1) - power_budget(self.model, gamma)
        return -float(minima.sum() - paid) / self.unit, -(np.stack([by_rate, by_power]) * prices).ravel() / self.unit

    def climb(self, log_prices: FloatArray, max_steps: int) -> FloatArray:
        """Log prices (2 K,) that L-BFGS ends at; its stopping rules are absolute, hence ``unit``."""

        def watch(intermediate_result: object) -> None:
            if time_is_up():
                raise StopIteration  # the way in which SciPy is asked to hand out what it has

        limits = np.clip(log_prices[:, None] + [-_REACH, _REACH], *_LOG_RANGE)
        options = {"maxiter": max_steps, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-5}
        # Threads that wait for each other over a few dozen rows cost ten times the work.
        with _threads().limit(limits=1):
            result = minimize(  # type: ignore[call-overload]
                self.at, log_prices, jac=True, method="L-BFGS-B", bounds=limits, options=options, callback=watch
            )
        return np.asarray(result.x, dtype=np.float64)


def stationary_prices(model: OfdmaModel, gamma: FloatArray, level: FloatArray, device: Part = EVERY) -> FloatArray:
    """Prices (lambda, eta), (2, N), that make rates ``gamma`` (N,) stationary at water levels ``level`` (N,) [W].

    lambda = -phi'/(r' - q'/(omega ln 2)), eta = lambda/(omega ln 2). At the rate and level that a set of subcarriers
    reaches they are the set's own multipliers: its Lagrangian bound is its value. Not finite or negative where none do.
    """
    per_watt = 1.0 / (np.maximum(level, 1e-300) * LN2)
    unit = np.stack([np.ones(len(gamma)), per_watt])
    with np.errstate(divide="ignore", invalid="ignore"):
        per_price = lagrangian_slope(model, gamma, unit, device) - lagrangian_slope(model, gamma, 0.0 * unit, device)
        lam = np.where(per_price < 0, np.maximum(model.slope(gamma, device), 0.0) / -per_price, 0.0)
    return np.stack([lam, lam * per_watt])


def start_prices(model: OfdmaModel, box: OwnershipBox) -> FloatArray:
    """Prices (lambda, eta), (2, K), for a dropout rate a fifth of the way up, with an even share of the band."""
    each = max(model.num_subcarriers // model.num_devices, 1)
    level = model.sorted_inv_snr[:, :each].mean(axis=1) + model.power / each
    gamma = box.low + 0.2 * (box.high - box.low)
    lam = stationary_prices(model.convex_on(box.low, box.high), gamma, level)[0]
    usable = lam[np.isfinite(lam) & (lam > 0)]
    typical = float(np.median(usable)) if len(usable) else 1e-6
    # In logarithms a price that starts near zero hardly moves; one that should be zero falls quickly.
    lam = np.clip(np.where(np.isfinite(lam), lam, typical), 0.1 * typical, 1e3 * typical)
    return np.stack([lam, lam / (np.maximum(level, 1e-300) * LN2)])


def maximise_bound(model: OfdmaModel, box: OwnershipBox) -> Relaxation:
    """Best certified bound of a box that is not empty, along a sequence of smoothed problems."""
    prices, share = start_prices(model, box), np.zeros(model.inv_snr.shape)
    best, best_prices, log_prices = certify_prices(model, box, prices), prices, np.log(prices).ravel()
    for relative in _TEMPERATURES:
        soft = SoftBound(model, box, max(float(best.price.mean()), 1e-10), relative)
        log_prices = soft.climb(log_prices, 80)
        prices = np.exp(log_prices).reshape(2, -1)
        leaf, share = certify_prices(model, box, prices), soft.share(carrier_values(model, prices)[0])[0]
        if leaf.bound > best.bound:
            best, best_prices = leaf, prices
        if time_is_up():
            break
    return Relaxation(best, best_prices, share)
