"""The admitted values of configuration keys: declared beside each key, checked alone and against one another."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, field, fields
from functools import partial
from itertools import chain
from typing import Any, get_args

PERSONALISED = ("fedsa_lora", "local")  # methods whose devices keep models of their own
_BUILT_IN_CLASSES = {"watch", "phone", "laptop"}  # of devices; a run's fleet need not have all


def within(words: str, admits: Callable[[Any], object]) -> Any:
    """Declare a key with its admitted values, in words and as a predicate; null is one where the type says so."""
    return field(metadata={"words": words, "admits": admits})


def one_of(*choices: str) -> Any:
    """Declare a key with a fixed set of words."""
    return within("one of " + ", ".join(choices), lambda value: value in choices)


positive = partial(within, "positive", lambda value: value > 0)
not_negative = partial(within, ">= 0", lambda value: value >= 0)
at_least_1 = partial(within, "at least 1", lambda value: value >= 1)
below_1 = partial(within, "in [0, 1)", lambda value: 0 <= value < 1)
inside_0_1 = partial(within, "in (0, 1)", lambda value: 0 < value < 1)
share = partial(within, "in (0, 1]", lambda value: 0 < value <= 1)
# PyTorch's and the wire's integers have 64 bits.
random_seed = partial(within, "from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check(config: Any) -> None:
    """Raise ValueError, in one line, at the first key of a configuration whose value is not admitted."""
    for key, found, words, admitted in chain(_alone(config), _finite(config), _together(config)):
        if not admitted:
            raise ValueError(f"{key} must be {words}, found {found!r}")


_Checks = Iterator[tuple[str, object, str, bool]]  # key, value, what it must be, whether it is


def _alone(config: Any) -> _Checks:
    for group in fields(config):
        section = getattr(config, group.name)
        for key in fields(section):
            value = getattr(section, key.name)
            null = type(None) in get_args(key.type)
            if "words" in key.metadata:
                words = key.metadata["words"] + " or null" * (null and "null" not in key.metadata["words"])
                admitted = (null and value is None) or bool(key.metadata["admits"](value))
                yield f"{group.name}.{key.name}", value, words, admitted


def _finite(config: Any) -> _Checks:
    for key, value in leaves(asdict(config)).items():
        for number in value if isinstance(value, list) else [value]:
            yield key, number, "a finite number", not isinstance(number, float) or math.isfinite(number)


def _together(config: Any) -> _Checks:
    a, n, p, r, s, t = (getattr(config, name) for name in "allocator network privacy run strategy training".split())
    length = t.local_epochs if t.local_steps is None else t.local_steps
    yield "training.local_steps (or local_epochs)", length, "positive", length is not None and length > 0
    unproven = "false with scip, whose plans carry no proof"
    yield "allocator.verify", a.verify, unproven, a.name != "scip" or not a.verify
    bounded = (a.objective == "time") == (a.max_bound is not None)
    yield "allocator.max_bound", a.max_bound, "a number with allocator.objective=time and null otherwise", bounded
    yield "network.min_distance_m", n.min_distance_m, "in (0, cell_radius_m)", 0 < n.min_distance_m < n.cell_radius_m
    enough = n.min_devices is None or 1 <= n.min_devices <= n.num_devices
    yield "network.min_devices", n.min_devices, "null or from 1 to network.num_devices", enough
    if n.access == "ofdma":
        yield "network.num_subcarriers", n.num_subcarriers, "positive under OFDMA", (n.num_subcarriers or 0) > 0
        yield "network.csi", n.csi, "perfect under OFDMA", n.csi == "perfect"
    if s.name in PERSONALISED:
        yield "run.patience", r.patience, "null with a personalised method", r.patience is None
    if s.name in ("flora", "flexlora"):
        anew = f"false with {s.name}: its factors are new every round, what was kept back does not belong to them"
        yield "wire.error_feedback", config.wire.error_feedback, anew, not config.wire.error_feedback
    if p.clip_norm is not None:
        secret = "0 with privacy.clip_norm: the scores would leave the device without noise"
        yield "run.client_evaluation", r.client_evaluation, secret, r.client_evaluation == 0
    noisy = p.noise_multiplier > 0 or p.model == "central"
    yield "privacy.clip_norm", p.clip_norm, "given with noise or privacy.model=central", bool(p.clip_norm) or not noisy
    yield from _by_class(config)
    yield from _extensions(config)
    if p.model == "central":
        yield from _central(config)


def _by_class(config: Any) -> _Checks:
    known = _BUILT_IN_CLASSES | set(config.device.classes)
    words = f"named after a device class, one of {', '.join(sorted(known))}"
    for name, rank in (config.strategy.ranks or {}).items():
        yield f"strategy.ranks.{name}", rank, "positive", rank > 0
        yield f"strategy.ranks.{name}", name, words, name in known
    for name, charge in (config.budget.battery_j or {}).items():
        yield f"budget.battery_j.{name}", charge, ">= 0", charge >= 0
        yield f"budget.battery_j.{name}", name, words, name in known


def _extensions(config: Any) -> _Checks:
    """Yield what the extensions of the plan (docs/multi_round.md) cannot be combined with."""
    network, budget, choices, clock = config.network, config.budget, config.wire.choices, config.allocator.cpu_clock
    for where, beyond in (
        ("under OFDMA", network.access == "ofdma"),
        ("with network.shared_downlink", network.shared_downlink),
        ("with wire.choices", choices),
    ):
        if budget.battery_j and beyond:
            yield "budget.battery_policy", budget.battery_policy, f"spend {where}", budget.battery_policy == "spend"
    if choices:
        yield "allocator.cpu_clock", clock, "fixed with wire.choices", clock == "fixed"
        unknown = "null with wire.choices, whose noise it does not know"
        yield "bound.pilot", config.bound.pilot, unknown, config.bound.pilot is None


def _central(config: Any) -> _Checks:
    """Yield what would void the guarantee of privacy.model=central."""
    s, drops = config.strategy, config.strategy.name == "fedlodrop"
    for key, found, admitted, why in (
        ("strategy.clip_factor", s.clip_factor, None, "one device's answer would scale those of the others"),
        ("strategy.robust", s.robust, "mean", "votes depend on all answers"),
        ("strategy.devices_per_round", s.devices_per_round, None, "each is drawn by itself: use strategy.fraction"),
        ("strategy.aggregation", s.aggregation, "previous" if drops else s.aggregation, "who kept an entry is counted"),
        ("budget.battery_j", config.budget.battery_j or None, None, "charges, and so plans, tell who was drawn"),
        ("profile.smoothing", config.profile.smoothing, 0, "estimates, and so plans, tell who was drawn"),
    ):
        words = f"{'null' if admitted is None else admitted} with privacy.model=central ({why})"
        yield key, found, words, found == admitted
