"""What a device is: clock, radio and budgets, given by classes of devices and their seeded mix."""

from collections.abc import Mapping

import numpy as np

from wireless.units import FloatArray, dbm_to_w, largest_remainder

_POSITIVE = ("cpu_hz", "flops_per_cycle", "downlink_rate_bps")


def _hardware(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """Numbers of one class, its power cap in watts; refuse values that no device has."""
    found = {key: float(value) for key, value in values.items() if key not in ("share", "max_tx_power_dbm")}
    found["max_tx_power_w"] = float(dbm_to_w(values["max_tx_power_dbm"]))
    for key, value in found.items():
        if not np.isfinite(value) or value < 0 or (value == 0 and key in _POSITIVE):
            rule = "> 0" if key in _POSITIVE else ">= 0"
            raise ValueError(f"device class {name!r}: {key} must be finite and {rule}, found {value!r}")
    return found


def assign_classes(rng: np.random.Generator, num_devices: int, shares: Mapping[str, float]) -> tuple[str, ...]:
    """Give every device a class: counts follow the shares by largest remainder, the order is drawn.

    The shares are not negative and need not sum to 1.
    """
    names = sorted(shares)  # independent of the order in a file
    share = np.array([float(shares[name]) for name in names])
    if not (np.isfinite(share).all() and (share >= 0).all() and share.sum() > 0):
        raise ValueError(f"shares of device classes must be >= 0 with a positive sum, found {dict(shares)!r}")
    members = np.repeat(np.array(names, dtype=object), largest_remainder(share, num_devices))
    return tuple(members[rng.permutation(num_devices)])


def draw_devices(
    rng: np.random.Generator, num_devices: int, classes: Mapping[str, Mapping[str, float]]
) -> tuple[tuple[str, ...], dict[str, FloatArray]]:
    """Draw a fleet: the class of every device, and its numbers as arrays (K,) keyed like `ResourceProblem`'s fields.

    A class says what conf/device says: its share, clock [Hz], ``flops_per_cycle`` (which turns FLOPs into cycles),
    switched capacitance kappa [W s^3] (a cycle costs kappa f^2 [J]), power cap [dBm], budget [J] and downlink [bit/s].
    """
    hardware = {name: _hardware(name, values) for name, values in classes.items()}
    drawn = assign_classes(rng, num_devices, {name: values["share"] for name, values in classes.items()})
    return drawn, {key: np.array([hardware[name][key] for name in drawn]) for key in hardware[drawn[0]]}
