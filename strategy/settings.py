"""Plain settings of a method."""

from __future__ import annotations

from dataclasses import dataclass


class MethodError(ValueError):
    """Settings that a method cannot work with; the message is one line for the user."""


@dataclass(frozen=True)
class StrategySettings:
    """Plain settings of a method.

    Parameters
    ----------
    factors : {"both", "b_only", "alternate"}
        Factors that train: both, lora_B alone, or lora_B in odd rounds and lora_A in even ones.
    aggregation : {"kept", "previous", "exact"}
        See `strategy.aggregation` and `strategy.exact`.
    mask : {"fixed", "bernoulli"}
        See `adapter.mask`.
    fraction, devices_per_round
        Participants per round, see `strategy.sampling`.
    wire_dtype : {"fp32", "fp16", "int8", "int4"}
        Number type of the changes that devices send.
    downlink_dtype : {"fp32", "fp16"}
        Number type of the values that the server sends.
    seed : int
        Seed of participants, masks and random allocators.
    round_timeout_s : float
        How long a round waits for answers [s].
    code : bytes
        Digest of the source the server runs.
    ranks : tuple of int
        Rank of every device, for methods with ranks of their own; empty: the layout's.
    scaling : float
        s of W0 + s B A at the layout's rank r.
    rank_exponent : float
        A device of rank r' has scale s (r / r')**rank_exponent.
    client_evaluation : bool
        Whether devices score the new model on their own held-out examples.
    clip_factor : float or None
        Answers longer than this many medians are scaled down, see `strategy.robust`.
    max_weight : float or None
        A device weighs at most this many medians of the announced numbers of examples; None: what it announces.
    robust : {"mean", "trimmed_mean", "median"}
        How the devices' votes on an entry are summed up, see `strategy.robust`.
    trim : float
        Share of the asked devices that may be hostile, for a trimmed mean or a median.
    realtime : bool
        Whether devices are told their rates and wait for their radio.
    smoothing : float
        Weight of measured times in the compute and link estimates, see `strategy.fleet.Estimates.observe`; 0: none.
    """

    factors: str = "both"
    aggregation: str = "kept"
    mask: str = "fixed"
    fraction: float = 1.0
    devices_per_round: int | None = None
    wire_dtype: str = "fp32"
    downlink_dtype: str = "fp32"
    seed: int = 0
    round_timeout_s: float = 600.0
    code: bytes = b""
    client_evaluation: bool = False
    ranks: tuple[int, ...] = ()
    scaling: float = 1.0
    rank_exponent: float = 1.0
    clip_factor: float | None = None
    max_weight: float | None = None
    robust: str = "mean"
    trim: float = 0.1
    realtime: bool = False
    smoothing: float = 0.0
