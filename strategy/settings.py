"""Settings that all methods share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapter.privacy import PrivacySettings
from strategy.aggregation.server_optimizer import ServerSettings


class MethodError(ValueError):
    """Settings that a method cannot work with; the message is one line for the user."""


@dataclass(frozen=True)
class StrategySettings:
    """Plain settings of a method."""

    factors: str = "both"  # that train: "both", "b_only", or "alternate", by ``phases``
    phases: tuple[str, ...] = ("B", "A")  # factor of every round, repeated; B first: while B = 0, A has no gradient
    aggregation: str = "kept"  # or "previous" (kept.py in strategy.aggregation), "exact", "measured" (products.py)
    mask: str = "fixed"  # or "bernoulli", see adapter.mask
    fraction: float = 1.0  # of the devices takes part in a round,
    devices_per_round: int | None = None  # or so many of them
    wire_dtype: str = "fp32"  # number type of the changes that devices send: "fp32", "fp16", "int8", "int4"
    wire_noise: Mapping[str, float] = field(default_factory=dict)  # of the types that a plan chooses from: their noise
    downlink_dtype: str = "fp32"  # number type of the values that the server sends: "fp32", "fp16"
    seed: int = 0  # of participants, masks and random allocators
    round_timeout_s: float = 600.0  # how long a round waits for answers [s]
    code: bytes = b""  # digest of the source the server runs
    client_evaluation: bool = False  # devices score the new model on their own held-out examples
    ranks: tuple[int, ...] = ()  # of every device, for methods with ranks of their own; empty: the layout's
    scaling: float = 1.0  # s of W0 + s B A at the layout's rank r
    rank_exponent: float = 1.0  # a device of rank r' has scale s (r / r')**rank_exponent
    clip_factor: float | None = None  # answers longer than so many medians are scaled down, see `NormGuard`
    max_weight: float | None = None  # a device weighs at most so many medians of the numbers of examples
    robust: str = "mean"  # or "trimmed_mean", "median", "multi_krum", "geometric_median"
    trim: float = 0.1  # share of the asked devices that may be hostile, for a trimmed mean or a median
    server: ServerSettings = ServerSettings()  # what is made of the mean change
    central: PrivacySettings | None = None  # clipping and noise on the server; ``fraction`` is then the sampling rate
    realtime: bool = False  # devices are told their rates and wait for their radio
    num_rounds: int = 1  # over which batteries must last
    priced_battery: bool = True  # or every round may spend what is left
    smoothing: float = 0.0  # weight of measured times in the estimates, see strategy.round.fleet.Estimates.observe
