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

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import ThreadpoolController

from optimizer.certificate import Leaf
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
    def is_empty(self) -> bool:
        """Whether some device cannot be served at all."""
        return bool(np.any(~(self.low <= self.high)))


@dataclass(frozen=True)
class DualPoint:
    """Prices and what they certify: lambda and eta (K,), mu_m = max_k D_km (M,), rates that attain the minima (K,)."""

    bound: float
    rate_price: FloatArray
    power_price: FloatArray
    price: FloatArray
    gamma: FloatArray
    minima: FloatArray

    def leaf(self) -> Leaf:
        """Return what the verifier needs of it."""
        return Leaf(self.bound, self.price, self.minima)


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
) -> tuple[FloatArray, FloatArray]:
    """Certified lower bounds (N,) on min_gamma { phi + lambda r - eta q } over [low, high], and rates near these.

    ``device`` (N,) says whose prices these are, every device in order when left out. The function is unimodal in gamma,
    so the signs of its slope bracket the minimiser in [a, b]; convexity in t = 1/tau gives
    f >= f(c) - |f'(c)| (b - a) tau(c)/tau(end) for either end c of the bracket.
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
    from_low = _lagrangian(model, low, rate_price, power_price, device) - np.abs(down) * width * tau_low / tau_high
    from_high = _lagrangian(model, high, rate_price, power_price, device) - np.abs(up) * width * tau_high / tau_low
    return np.maximum(from_low, from_high), np.where(-down < up, low, high)


def carrier_values(
    model: OfdmaModel, rate_price: FloatArray, power_price: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """D_km, with the rate [bit/s/Hz] and the power [W] that attain it; each (K, M)."""
    level = (rate_price / (power_price * LN2))[:, None]  # (K, 1) water level [W]
    power = np.maximum(level - model.inv_snr, 0.0)
    rate = np.log1p(power / model.inv_snr) / LN2
    return np.maximum(rate_price[:, None] * rate - power_price[:, None] * power, 0.0), rate, power


def evaluate_prices(model: OfdmaModel, box: OwnershipBox, rate_price: FloatArray, power_price: FloatArray) -> DualPoint:
    """Certify the given prices: the bound of the module's formula, without any smoothing."""
    minima, gamma = device_minima(model, box, rate_price, power_price)
    worth = np.where(box.allowed, carrier_values(model, rate_price, power_price)[0], 0.0)
    price = worth.max(axis=0)
    return DualPoint(float(minima.sum() - price.sum()), rate_price, power_price, price, gamma, minima)


@dataclass(frozen=True)
class SoftBound:
    """The bound with a smooth maximum at a temperature, and the soft ownership (K, M) that goes with it.

    With ``price`` (M,) the devices do not compete: each one buys subcarriers at these prices, and the value is the sum
    of their own dual functions psi_k - sum_m [D_km - mu_m]^+. ``cost`` (K, M) is what owning costs beside.
    """

    model: OfdmaModel
    box: OwnershipBox
    temperature: float
    price: FloatArray | None = None
    cost: FloatArray | float = 0.0

    def share(self, worth: FloatArray) -> tuple[FloatArray, float]:
        """Soft ownership (K, M) at what subcarriers are worth (K, M), and the smooth maximum of that."""
        allowed, worth = self.box.allowed, np.where(self.box.allowed, worth - self.cost, 0.0)
        if self.price is None:
            top = np.maximum(worth.max(axis=0), 0.0)
            share = np.where(allowed, np.exp((worth - top) / self.temperature), 0.0)
            total = share.sum(axis=0) + np.exp(-top / self.temperature)  # the last term: owned by nobody
            return share / total, float(np.sum(top + self.temperature * np.log(total)))
        over = (worth - self.price) / self.temperature
        paid = self.temperature * np.sum(np.logaddexp(0.0, over), where=allowed)
        return np.where(allowed, expit(over), 0.0), float(paid)

    def at(self, log_prices: FloatArray) -> tuple[float, FloatArray]:
        """Negative bound and its gradient in (ln lambda, ln eta)."""
        model, device = self.model, np.arange(self.model.num_devices)
        lam, eta = np.exp(log_prices.reshape(2, -1))
        minima, gamma = device_minima(model, self.box, lam, eta)
        worth, rate, power = carrier_values(model, lam, eta)
        share, paid = self.share(worth)
        by_rate = required_rate(model, gamma, device) - np.sum(share * rate, axis=1)
        by_power = np.sum(share * power, axis=1) - power_budget(model, gamma, device)
        return -float(minima.sum() - paid), -np.concatenate([by_rate * lam, by_power * eta])

    def climb(self, log_prices: FloatArray, unit: float, max_steps: int) -> FloatArray:
        """Log prices that L-BFGS ends at, from ``log_prices`` on; its stopping rules are absolute, hence ``unit``."""

        def cost(point: FloatArray) -> tuple[float, FloatArray]:
            value, gradient = self.at(point)
            return value / unit, gradient / unit

        def watch(intermediate_result: object) -> None:
            if time_is_up():
                raise StopIteration  # the way in which SciPy is asked to hand out what it has

        limits = np.clip(log_prices[:, None] + [-_REACH, _REACH], *_LOG_RANGE)
        options = {"maxiter": max_steps, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-5}
        # Threads that wait for each other over a few dozen rows cost ten times the work.
        with _threads().limit(limits=1):
            result = minimize(  # type: ignore[call-overload]
                cost, log_prices, jac=True, method="L-BFGS-B", bounds=limits, options=options, callback=watch
            )
        return np.asarray(result.x, dtype=np.float64)


def stationary_prices(
    model: OfdmaModel, gamma: FloatArray, level: FloatArray, device: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Prices (lambda, eta), (N,) each, that make rates ``gamma`` stationary at water levels ``level`` [W].

    lambda = -phi'/(r' - q'/(omega ln 2)), eta = lambda/(omega ln 2). At the rate and level that a set of subcarriers
    reaches they are the set's own multipliers: its Lagrangian bound is its value. Not finite or negative where none do.
    """
    one, zero, per_watt = np.ones(len(gamma)), np.zeros(len(gamma)), 1.0 / (np.maximum(level, 1e-300) * LN2)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_price = lagrangian_slope(model, gamma, one, per_watt, device)
        per_price -= lagrangian_slope(model, gamma, zero, zero, device)
        lam = np.where(per_price < 0, np.maximum(model.slope(gamma, device), 0.0) / -per_price, 0.0)
    return lam, lam * per_watt


def start_prices(model: OfdmaModel, box: OwnershipBox) -> tuple[FloatArray, FloatArray]:
    """Prices (lambda, eta) for a modest dropout rate, a fifth of the way up, with an even share of the band."""
    count, width = model.inv_snr.shape
    each = max(width // count, 1)
    level = model.sorted_inv_snr[:, :each].mean(axis=1) + model.power / each
    gamma = box.low + 0.2 * (box.high - box.low)
    lam, eta = stationary_prices(model.convex_on(box.low, box.high), gamma, level, np.arange(count))
    usable = lam[np.isfinite(lam) & (lam > 0)]
    typical = float(np.median(usable)) if len(usable) else 1e-6
    # In logarithms a price that starts near zero hardly moves; one that should be zero falls quickly.
    lam = np.clip(np.where(np.isfinite(lam), lam, typical), 0.1 * typical, 1e3 * typical)
    return lam, lam / (np.maximum(level, 1e-300) * LN2)


def maximise_bound(
    model: OfdmaModel, box: OwnershipBox, start: tuple[FloatArray, FloatArray], *, max_steps: int = 80
) -> tuple[DualPoint, FloatArray]:
    """Best certified bound of a box that is not empty, along a sequence of smoothed problems, from lambda and eta (K,).

    Returns the best `DualPoint` seen and the soft ownership (K, M) at the end.
    """
    best = evaluate_prices(model, box, *start)
    log_prices, share = np.log(np.concatenate(start)), np.zeros(model.inv_snr.shape)
    for relative in _TEMPERATURES:
        unit = max(float(best.price.mean()), 1e-10)
        soft = SoftBound(model, box, relative * unit)
        log_prices = soft.climb(log_prices, unit, max_steps)
        prices = np.exp(log_prices.reshape(2, -1))
        point = evaluate_prices(model, box, *prices)
        share = soft.share(carrier_values(model, *prices)[0])[0]
        best = point if point.bound > best.bound else best
        if time_is_up():
            break
    return best, share


def alone_bound(model: OfdmaModel, box: OwnershipBox) -> Leaf:
    """Everyone alone with all that it may own: subcarriers are free."""
    floor = model.value(box.low, np.arange(model.num_devices))
    return Leaf(float(floor.sum()), np.zeros(model.num_subcarriers), floor)
