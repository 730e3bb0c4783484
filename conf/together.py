"""What settings of several groups ask of one another, in one line each."""

import math
from typing import Any

from conf.ranges import Range, numbers


def check_finite(config: Any) -> None:
    """Raise ValueError where any number of any group is infinite or none."""
    for key, value in numbers(vars(config)):
        Range("a finite number", math.isfinite).check(key, value)


def check_together(config: Any) -> None:
    """Raise ValueError where groups contradict each other; groups that are not composed yet are left out."""
    if hasattr(config.privacy, "clip_norm") and config.privacy.clip_norm is not None and config.run.client_evaluation:
        why = "the scores would leave the device without noise"
        raise ValueError(f"run.client_evaluation must be 0 with privacy.clip_norm: {why}")
    if hasattr(config.network, "access"):
        _check_extensions(config)


def _check_extensions(config: Any) -> None:
    """Check what the extensions of the plan (docs/multi_round.md) cannot be combined with."""
    network, budget, choices = config.network, config.budget, config.wire.choices
    if budget.battery_j:
        for where, beyond in (
            ("under OFDMA", network.access == "ofdma"),
            ("with network.shared_downlink", network.shared_downlink),
            ("with wire.choices", choices),
        ):
            if beyond:
                spends = Range(f"spend {where}", lambda policy: policy == "spend")
                spends.check("budget.battery_policy", budget.battery_policy)
    if choices:
        Range("fixed with wire.choices", lambda clock: clock == "fixed").check(
            "allocator.cpu_clock", config.allocator.cpu_clock
        )
        unknown_noise = Range("null with wire.choices, whose noise it does not know", lambda pilot: pilot is None)
        unknown_noise.check("bound.pilot", config.bound.pilot)
