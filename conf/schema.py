"""Types and ranges of every configuration key; the values live in the YAML files beside this module."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from conf.schema_link import PrivacyConfig, ProfileConfig, RadioConfig, WireConfig
from conf.schema_link import one_of as _one_of
from conf.schema_link import require as _require
from conf.schema_link import require_seed as _require_seed

PERSONALISED_HOLDOUT = 0.2  # run.client_evaluation of strategy=fedsa_lora where the user names none


@dataclass
class TaskConfig:
    """Which data; see conf/task."""

    name: str = MISSING
    train_file: str | None = MISSING
    validation_file: str | None = MISSING
    text_columns: list[str] | None = MISSING
    label_column: str | None = MISSING
    group_column: str | None = MISSING
    kind: str | None = MISSING
    train_limit: int | None = MISSING
    validation_limit: int | None = MISSING
    holdout: int | None = MISSING
    label_noise: float = MISSING
    labels: list[Any] | None = MISSING

    def __post_init__(self) -> None:
        """Check ranges."""
        for key in ("train_limit", "validation_limit"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"task.{key}", "positive or null", value)
        ok = self.holdout is None or self.holdout >= 1
        _require(ok, "task.holdout", "at least 1 or null (they choose the best round)", self.holdout)
        _require(0 <= self.label_noise < 1, "task.label_noise", "in [0, 1)", self.label_noise)


@dataclass
class ModelConfig:
    """Which base model; see conf/model."""

    name: str = MISSING
    path: str | None = MISSING
    gguf_file: str | None = MISSING
    pooling: str = MISSING
    head: str = MISSING
    freeze_head: bool = MISSING
    dropout: float = MISSING
    max_tokens: int = MISSING
    hidden_size: int = MISSING
    load_in_4bit: bool = MISSING


@dataclass
class PartitionConfig:
    """How the training data is spread over the devices; see conf/partition."""

    kind: str = MISSING
    alpha: float = MISSING
    min_size: int = MISSING


@dataclass
class LoraConfig:
    """Shape of the adapter; see conf/lora."""

    r: int = MISSING
    alpha: float = MISSING
    use_rslora: bool = MISSING
    target_modules: list[str] | None = MISSING
    layers: Any = MISSING  # "all" or the number of upper layers; checked below

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.r > 0, "lora.r", "positive", self.r)
        ok = self.layers == "all" or (
            isinstance(self.layers, int) and not isinstance(self.layers, bool) and self.layers > 0
        )
        _require(ok, "lora.layers", "'all' or a positive number of upper layers", self.layers)


@dataclass
class TrainingConfig:
    """What a device does in one round; see conf/training."""

    local_steps: int | None = MISSING
    local_epochs: int | None = MISSING
    batch_size: int = MISSING
    optimizer: str = MISSING
    lr: float = MISSING
    head_lr: float | None = MISSING
    weight_decay: float = MISSING
    momentum: float = MISSING
    warmup_steps: int = MISSING
    max_grad_norm: float | None = MISSING
    num_threads: int = MISSING
    fused_lora: bool = MISSING
    dtype: str = MISSING
    device: str = MISSING
    prefix_cache: str = MISSING
    prefix_cache_mib: float = MISSING
    prefix_cache_disk_mib: float = MISSING
    prefix_cache_dir: str | None = MISSING

    def __post_init__(self) -> None:
        """Check ranges and that exactly one length is given."""
        # `training.local_epochs=2` alone should do what it says: the default number of steps steps back.
        if self.local_epochs is not None:
            self.local_steps = None
        length = self.local_steps if self.local_epochs is None else self.local_epochs
        _require(length is not None and length > 0, "training.local_steps (or local_epochs)", "positive", length)
        _require(self.batch_size > 0, "training.batch_size", "positive", self.batch_size)
        _one_of("training.optimizer", self.optimizer, ("adamw", "sgd"))
        _require(self.lr > 0, "training.lr", "positive", self.lr)
        _require(self.num_threads > 0, "training.num_threads", "positive", self.num_threads)
        _require(self.warmup_steps >= 0, "training.warmup_steps", ">= 0", self.warmup_steps)
        _one_of("training.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        _one_of("training.device", self.device, ("auto", "cpu", "cuda"))
        _one_of("training.prefix_cache", self.prefix_cache, ("auto", "off"))
        for key in ("prefix_cache_mib", "prefix_cache_disk_mib"):
            _require(getattr(self, key) >= 0, f"training.{key}", ">= 0", getattr(self, key))


@dataclass
class StrategyConfig:
    """Which federated method; see conf/strategy."""

    name: str = MISSING
    factors: str = MISSING
    aggregation: str = MISSING
    mask: str = MISSING
    scaled: bool = MISSING
    optimizer_state: str = MISSING
    ranks: dict[str, int] | None = MISSING
    rank_scaling: str = MISSING
    prune_decay: float | None = MISSING
    prune_weight: float = MISSING
    fraction: float = MISSING
    devices_per_round: int | None = MISSING
    clip_factor: float | None = MISSING
    max_weight: float | None = MISSING
    robust: str = MISSING
    trim: float = MISSING

    def __post_init__(self) -> None:
        """Check ranges."""
        _one_of("strategy.factors", self.factors, ("both", "b_only", "alternate"))
        _one_of("strategy.aggregation", self.aggregation, ("kept", "previous", "exact"))
        _one_of("strategy.optimizer_state", self.optimizer_state, ("fresh", "kept"))
        _one_of("strategy.rank_scaling", self.rank_scaling, ("own", "common"))
        decay = self.prune_decay
        _require(decay is None or 0 < decay < 1, "strategy.prune_decay", "in (0, 1) or null", decay)
        _require(self.prune_weight >= 0, "strategy.prune_weight", ">= 0", self.prune_weight)
        for name, rank in (self.ranks or {}).items():
            _require(rank > 0, f"strategy.ranks.{name}", "positive", rank)
        _one_of("strategy.mask", self.mask, ("fixed", "bernoulli"))
        _require(
            self.clip_factor is None or self.clip_factor >= 1, "strategy.clip_factor", ">= 1 or null", self.clip_factor
        )
        _require(
            self.max_weight is None or self.max_weight >= 1, "strategy.max_weight", ">= 1 or null", self.max_weight
        )
        _one_of("strategy.robust", self.robust, ("mean", "trimmed_mean", "median"))
        _require(0 <= self.trim < 0.5, "strategy.trim", "in [0, 0.5)", self.trim)
        _require(0 < self.fraction <= 1, "strategy.fraction", "in (0, 1]", self.fraction)
        count = self.devices_per_round
        _require(count is None or count > 0, "strategy.devices_per_round", "positive or null", count)


@dataclass
class AllocatorConfig:
    """Who decides dropout rates, bandwidth and power; see conf/allocator."""

    name: str = MISSING
    dropout_rate: float = MISSING
    gap: float = MISSING
    time_limit_s: float = MISSING
    verify: bool = MISSING
    fallback: list[str] = MISSING
    cpu_clock: str = MISSING
    cpu_range: list[float] = MISSING

    def __post_init__(self) -> None:
        """Check ranges."""
        _one_of("allocator.cpu_clock", self.cpu_clock, ("fixed", "free"))
        pair = list(self.cpu_range)
        ok = len(pair) == 2 and 0 < pair[0] <= 1 <= pair[1]
        _require(ok, "allocator.cpu_range", "[low, high] with 0 < low <= 1 <= high, shares of the class's clock", pair)
        _require(0 <= self.dropout_rate < 1, "allocator.dropout_rate", "in [0, 1)", self.dropout_rate)
        _require(self.gap > 0, "allocator.gap", "positive", self.gap)
        _require(self.time_limit_s > 0, "allocator.time_limit_s", "positive", self.time_limit_s)
        provable = self.cpu_clock == "fixed" and self.name != "scip"
        rule = "false with free clocks and with scip, whose plans carry no proof"
        _require(provable or not self.verify, "allocator.verify", rule, self.verify)


@dataclass
class NetworkConfig:
    """The cell and its channel; see conf/network."""

    access: str = MISSING
    num_devices: int = MISSING
    min_devices: int | None = MISSING
    total_bandwidth_hz: float = MISSING
    num_subcarriers: int | None = MISSING
    cell_radius_m: float = MISSING
    min_distance_m: float = MISSING
    carrier_hz: float = MISSING
    fading: str = MISSING
    rician_k_db: float = MISSING
    shadowing: bool = MISSING
    noise_figure_db: float = MISSING
    delay_spread_s: float = MISSING

    def __post_init__(self) -> None:
        """Check ranges."""
        _one_of("network.access", self.access, ("fdma", "ofdma"))
        _require(self.num_devices >= 1, "network.num_devices", "at least 1", self.num_devices)
        ok = self.min_devices is None or 1 <= self.min_devices <= self.num_devices
        _require(ok, "network.min_devices", "null or from 1 to network.num_devices", self.min_devices)
        _require(self.total_bandwidth_hz > 0, "network.total_bandwidth_hz", "positive", self.total_bandwidth_hz)
        if self.access == "ofdma":
            count = self.num_subcarriers
            _require(count is not None and count > 0, "network.num_subcarriers", "positive under OFDMA", count)
        _one_of("network.fading", self.fading, ("rayleigh", "rician", "none"))
        _require(
            0 < self.min_distance_m < self.cell_radius_m,
            "network.min_distance_m",
            "in (0, cell_radius_m)",
            self.min_distance_m,
        )


@dataclass
class DeviceClassConfig:
    """One class of devices; see conf/device."""

    share: float = MISSING
    cpu_hz: float = MISSING
    flops_per_cycle: float = MISSING
    capacitance: float = MISSING
    max_tx_power_dbm: float = MISSING
    energy_budget_j: float = MISSING
    downlink_rate_bps: float = MISSING


@dataclass
class DeviceConfig:
    """Which classes of devices there are; see conf/device."""

    classes: dict[str, DeviceClassConfig] = MISSING


@dataclass
class BoundConfig:
    """Constants of the generalization bound; see conf/bound."""

    empirical_scale: float = MISSING
    loss_bound: float = MISSING
    lipschitz: float = MISSING
    curvature_min: float = MISSING
    sparsity_regularization: float = MISSING
    confidence: float = MISSING


@dataclass
class BudgetConfig:
    """What a round may cost."""

    deadline_s: float = MISSING
    energy_j: float | None = MISSING
    max_dropout_rate: float = MISSING

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.deadline_s > 0, "budget.deadline_s", "positive", self.deadline_s)
        _require(self.energy_j is None or self.energy_j >= 0, "budget.energy_j", ">= 0 or null", self.energy_j)
        _require(0 <= self.max_dropout_rate < 1, "budget.max_dropout_rate", "in [0, 1)", self.max_dropout_rate)


@dataclass
class TrackingConfig:
    """Where the curves of a running federation go; see conf/tracking."""

    name: str = MISSING
    project: str = MISSING
    mode: str = MISSING

    def __post_init__(self) -> None:
        """Check the choices."""
        _one_of("tracking.name", self.name, ("tensorboard", "wandb", "none"))
        _one_of("tracking.mode", self.mode, ("offline", "online"))


@dataclass
class RunConfig:
    """One run: length, seed, place, engine."""

    name: str = MISSING
    dir: str | None = MISSING
    num_rounds: int = MISSING
    seed: int = MISSING
    resume: str | None = MISSING
    engine: str = MISSING
    eval_every: int = MISSING
    eval_batch_size: int = MISSING
    eval_threads: int = MISSING
    train_eval_size: int = MISSING
    client_evaluation: float = MISSING
    node_timeout_s: float = MISSING
    round_timeout_s: float = MISSING
    client_cpus: int = MISSING

    def __post_init__(self) -> None:
        """Check ranges."""
        for key in ("num_rounds", "eval_every", "eval_batch_size", "eval_threads", "train_eval_size", "client_cpus"):
            _require(getattr(self, key) >= 1, f"run.{key}", "at least 1", getattr(self, key))
        _require_seed("run.seed", self.seed)
        _one_of("run.engine", self.engine, ("flower", "local"))
        _require(0 <= self.client_evaluation < 1, "run.client_evaluation", "in [0, 1)", self.client_evaluation)
        for key in ("node_timeout_s", "round_timeout_s"):
            _require(getattr(self, key) > 0, f"run.{key}", "positive", getattr(self, key))
        ok = self.name not in ("", ".", "..") and not set(self.name) & set("/\\\0")
        _require(ok, "run.name", "a plain folder name", self.name)


@dataclass
class Config:
    """The whole configuration."""

    task: TaskConfig = MISSING
    model: ModelConfig = MISSING
    partition: PartitionConfig = MISSING
    lora: LoraConfig = MISSING
    training: TrainingConfig = MISSING
    strategy: StrategyConfig = MISSING
    allocator: AllocatorConfig = MISSING
    network: NetworkConfig = MISSING
    device: DeviceConfig = MISSING
    bound: BoundConfig = MISSING
    budget: BudgetConfig = MISSING
    wire: WireConfig = MISSING
    profile: ProfileConfig = MISSING
    radio: RadioConfig = MISSING
    privacy: PrivacyConfig = MISSING
    tracking: TrackingConfig = MISSING
    run: RunConfig = MISSING

    def __post_init__(self) -> None:
        """Check what concerns several groups; a personalised method, which has no other score, holds examples out."""
        for key, value in _numbers(vars(self)):
            _require(math.isfinite(value), key, "a finite number", value)
        if isinstance(self.strategy, StrategyConfig) and self.strategy.name == "fedsa_lora":
            self.run.client_evaluation = self.run.client_evaluation or PERSONALISED_HOLDOUT
        if (
            isinstance(self.privacy, PrivacyConfig)
            and self.privacy.clip_norm is not None
            and self.run.client_evaluation > 0
        ):
            raise ValueError(
                "run.client_evaluation must be 0 with privacy.clip_norm: the scores would leave the device without noise"
            )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield every float below a configuration object with its dotted key."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, dict) or hasattr(value, "__dataclass_fields__"):
        for name, item in (value if isinstance(value, dict) else vars(value)).items():
            yield from _numbers(item, f"{key}.{name}" if key else str(name))
