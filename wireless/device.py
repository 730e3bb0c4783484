"""What a device is: clock, radio and budgets; classes of devices and their seeded mix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from wireless.units import FloatArray, dbm_to_w, largest_remainder


@dataclass(frozen=True)
class DeviceProfile:
    """Hardware of one device."""

    device_class: str  # name of the class it was drawn from
    cpu_hz: float  # clock f
    flops_per_cycle: float  # turns FLOPs into cycles
    capacitance: float  # switched, kappa [W s^3]; a cycle costs kappa f^2 [J]
    max_tx_power_w: float  # power cap P
    energy_budget_j: float  # what a round may take
    downlink_rate_bps: float  # D

    def __post_init__(self) -> None:
        """Refuse values that no device has."""
        for name in (item.name for item in fields(self)[1:]):
            value, positive = getattr(self, name), name in ("cpu_hz", "flops_per_cycle", "downlink_rate_bps")
            if not np.isfinite(value) or (value <= 0 if positive else value < 0):
                text = f"{name} must be finite and {'> 0' if positive else '>= 0'}, found {value!r}"
                raise ValueError(f"device class {self.device_class!r}: {text}")


CLASS_KEYS = (
    *("share", "cpu_hz", "flops_per_cycle", "capacitance", "max_tx_power_dbm"),
    *("energy_budget_j", "downlink_rate_bps"),
)


def profile_from_class(name: str, values: Mapping[str, float]) -> DeviceProfile:
    """Return the profile of a device class given as plain numbers under `CLASS_KEYS`; unknown or missing keys raise."""
    wrong = sorted(set(values) ^ set(CLASS_KEYS))
    if wrong:
        verb = "is unknown" if wrong[0] in values else "is missing"
        raise ValueError(f"device class {name!r}: key {wrong[0]!r} {verb}; expected {', '.join(CLASS_KEYS)}")
    plain = {key: float(values[key]) for key in CLASS_KEYS if key not in ("share", "max_tx_power_dbm")}
    return DeviceProfile(device_class=name, max_tx_power_w=float(dbm_to_w(values["max_tx_power_dbm"])), **plain)


def assign_classes(rng: np.random.Generator, num_devices: int, shares: Mapping[str, float]) -> list[str]:
    """Give every device a class: counts follow the shares by largest remainder, the order is drawn.

    The shares are not negative and need not sum to 1.
    """
    names = sorted(shares)  # independent of the order in a file
    share = np.array([float(shares[name]) for name in names])
    if not (np.isfinite(share).all() and (share >= 0).all() and share.sum() > 0):
        raise ValueError(f"shares of device classes must be >= 0 with a positive sum, found {dict(shares)!r}")
    count = largest_remainder(share, num_devices)
    members = [name for name, number in zip(names, count, strict=True) for _ in range(number)]
    return [members[i] for i in rng.permutation(num_devices)]


def draw_devices(
    rng: np.random.Generator, num_devices: int, classes: Mapping[str, Mapping[str, float]]
) -> list[DeviceProfile]:
    """Draw a fleet from device classes (plain numbers under `CLASS_KEYS`, see conf/device)."""
    profiles = {name: profile_from_class(name, values) for name, values in classes.items()}
    return [profiles[name] for name in assign_classes(rng, num_devices, {n: v["share"] for n, v in classes.items()})]


def device_arrays(devices: Sequence[DeviceProfile]) -> dict[str, FloatArray]:
    """Stack profiles to arrays (K,), keyed like `ResourceProblem`'s fields, plus ``flops_per_cycle``."""
    names = [item.name for item in fields(DeviceProfile)[1:]]
    return {name: np.array([getattr(device, name) for device in devices], dtype=np.float64) for name in names}


def cycles_for(flops: npt.ArrayLike, flops_per_cycle: npt.ArrayLike) -> FloatArray:
    """CPU cycles that ``flops`` floating-point operations take."""
    return np.asarray(flops, dtype=np.float64) / np.asarray(flops_per_cycle, dtype=np.float64)
