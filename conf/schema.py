"""Types and ranges of every key; values: the YAML files beside it. After a change: python -m conf.reference."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from adapter.protocol import DTYPES
from conf.ranges import (
    AT_LEAST_1,
    BELOW_1,
    CLOCK_RANGE,
    DEVICE,
    FOLDER_NAME,
    INSIDE_0_1,
    LAYERS,
    NOISE,
    NOT_NEGATIVE,
    PHASES,
    POSITIVE,
    SEED,
    WAYS,
    Range,
    Section,
    one_of,
    ranged,
)
from conf.together import check_finite, check_together

PERSONALISED_HOLDOUT = 0.2  # run.client_evaluation of strategy=fedsa_lora and local where the user names none


@dataclass
class TaskConfig(Section):
    """Which data; see conf/task."""

    name: str = MISSING
    train_file: str | None = MISSING
    validation_file: str | None = MISSING
    text_columns: list[str] | None = MISSING
    label_column: str | None = MISSING
    group_column: str | None = MISSING
    kind: str | None = MISSING
    train_limit: int | None = ranged(POSITIVE.or_null())
    validation_limit: int | None = ranged(POSITIVE.or_null())
    holdout: int | None = ranged(AT_LEAST_1.or_null("{} or null (they choose the best round)"))
    label_noise: float = ranged(BELOW_1)
    labels: list[Any] | None = MISSING
    schema: bool = MISSING
    dataset: str | None = MISSING


@dataclass
class ModelConfig:
    """Which base model; see conf/model."""

    name: str = MISSING
    path: str | None = MISSING
    gguf_file: str | None = MISSING
    chat_template: str | None = MISSING
    pooling: str = MISSING
    head: str = MISSING
    freeze_head: bool = MISSING
    dropout: float = MISSING
    max_tokens: int = MISSING
    hidden_size: int = MISSING
    frozen_weight: bool = MISSING
    load_in_4bit: bool = MISSING


@dataclass
class PartitionConfig:
    """How the training data is spread over the devices; see conf/partition."""

    kind: str = MISSING
    alpha: float = MISSING
    min_size: int = MISSING


@dataclass
class LoraConfig(Section):
    """Shape of the adapter; see conf/lora."""

    r: int = ranged(POSITIVE)
    alpha: float = MISSING
    use_rslora: bool = MISSING
    scale_by_devices: bool = MISSING
    init: str = ranged(one_of("kaiming", "orthogonal"))
    lora_dropout: float = ranged(BELOW_1)
    target_modules: list[str] | None = MISSING
    layers: Any = ranged(LAYERS)


@dataclass
class TrainingConfig(Section):
    """What a device does in one round; see conf/training."""

    local_steps: int | None = MISSING
    local_epochs: int | None = MISSING
    batch_size: int = ranged(POSITIVE)
    micro_batch_size: int | None = ranged(POSITIVE.or_null())
    group_by_length: bool = MISSING
    optimizer: str = ranged(one_of("adamw", "sgd"))
    lr: float = ranged(POSITIVE)
    lr_decay: float = ranged(Range("in (0, 1]", lambda value: 0 < value <= 1))
    lr_schedule: str = ranged(one_of("constant", "linear", "cosine"))
    head_lr: float | None = MISSING
    loraplus_lr_ratio: float = ranged(POSITIVE)
    proximal_mu: float = ranged(NOT_NEGATIVE)
    weight_decay: float = MISSING
    momentum: float = MISSING
    warmup_steps: int = ranged(NOT_NEGATIVE)
    max_grad_norm: float | None = MISSING
    num_threads: int = ranged(POSITIVE)
    gradient_checkpointing: bool = MISSING
    fused_lora: bool = MISSING
    dtype: str = ranged(one_of("auto", "float32", "bfloat16"))
    device: str = ranged(DEVICE)
    prefix_cache: str = ranged(one_of("auto", "off"))
    prefix_cache_mib: float = ranged(NOT_NEGATIVE)
    prefix_cache_disk_mib: float = ranged(NOT_NEGATIVE)
    prefix_cache_dir: str | None = MISSING

    def __post_init__(self) -> None:
        """Check ranges and that a length is given; the default number of steps yields to ``local_epochs``."""
        if self.local_epochs is not None:
            self.local_steps = None
        length = self.local_steps if self.local_epochs is None else self.local_epochs
        given = Range("positive", lambda value: value is not None and value > 0)
        given.check("training.local_steps (or local_epochs)", length)
        super().__post_init__()


@dataclass
class StrategyConfig(Section):
    """Which federated method; see conf/strategy."""

    name: str = MISSING
    factors: str = ranged(one_of("both", "b_only", "alternate"))
    aggregation: str = ranged(one_of("kept", "previous", "exact", "measured"))
    mask: str = ranged(one_of("fixed", "bernoulli"))
    scaled: bool = MISSING
    optimizer_state: str = ranged(one_of("fresh", "kept"))
    ranks: dict[str, int] | None = MISSING
    rank_scaling: str = ranged(one_of("own", "common"))
    prune_decay: float | None = ranged(INSIDE_0_1.or_null())
    prune_weight: float = ranged(NOT_NEGATIVE)
    phases: list[str] = ranged(PHASES)
    server_optimizer: str = ranged(one_of("none", "fedavgm", "fedadam", "fedyogi"))
    server_lr: float = ranged(POSITIVE)
    server_beta1: float = ranged(BELOW_1)
    server_beta2: float = ranged(BELOW_1)
    server_tau: float = ranged(POSITIVE)
    fraction: float = ranged(Range("in (0, 1]", lambda value: 0 < value <= 1))
    devices_per_round: int | None = ranged(POSITIVE.or_null())
    clip_factor: float | None = ranged(AT_LEAST_1.or_null())
    max_weight: float | None = ranged(AT_LEAST_1.or_null())
    robust: str = ranged(one_of("mean", "trimmed_mean", "median", "multi_krum", "geometric_median"))
    trim: float = ranged(Range("in [0, 0.5)", lambda value: 0 <= value < 0.5))

    def __post_init__(self) -> None:
        """Check ranges, those of the ranks by class of device as well."""
        super().__post_init__()
        for name, rank in (self.ranks or {}).items():
            POSITIVE.check(f"strategy.ranks.{name}", rank)


@dataclass
class AllocatorConfig(Section):
    """Who decides dropout rates, bandwidth and power; see conf/allocator."""

    name: str = MISSING
    dropout_rate: float = ranged(BELOW_1)
    gap: float = ranged(POSITIVE)
    time_limit_s: float = ranged(POSITIVE)
    verify: bool = MISSING
    fallback: list[str] = MISSING
    objective: str = ranged(one_of("bound", "time", "tradeoff"))
    max_bound: float | None = ranged(POSITIVE.or_null())
    min_weight: float = ranged(Range("in (0, 1]", lambda share: 0 < share <= 1))
    energy_weight_per_j: float = ranged(NOT_NEGATIVE)
    time_weight_per_s: float = ranged(NOT_NEGATIVE)
    cpu_clock: str = ranged(one_of("fixed", "free"))
    cpu_range: list[float] = ranged(CLOCK_RANGE)

    def __post_init__(self) -> None:
        """Check ranges, and that plans are verified only where there is a proof."""
        super().__post_init__()
        unproven = Range("false with scip, whose plans carry no proof", lambda on: self.name != "scip" or not on)
        unproven.check("allocator.verify", self.verify)
        timed = self.objective == "time"
        words = "a number with allocator.objective=time and null otherwise"
        Range(words, lambda bound: timed == (bound is not None)).check("allocator.max_bound", self.max_bound)


@dataclass
class NetworkConfig(Section):
    """The cell and its channel; see conf/network."""

    access: str = ranged(one_of("fdma", "tdma", "ofdma"))
    shared_downlink: bool = MISSING
    num_devices: int = ranged(AT_LEAST_1)
    min_devices: int | None = MISSING
    total_bandwidth_hz: float = ranged(POSITIVE)
    num_subcarriers: int | None = MISSING
    cell_radius_m: float = MISSING
    min_distance_m: float = MISSING
    carrier_hz: float = MISSING
    fading: str = ranged(one_of("rayleigh", "rician", "none"))
    rician_k_db: float = MISSING
    csi: str = ranged(one_of("perfect", "estimated"))
    outage_probability: float = ranged(INSIDE_0_1)
    shadowing: bool = MISSING
    noise_figure_db: float = MISSING
    delay_spread_s: float = MISSING

    def __post_init__(self) -> None:
        """Check ranges, and keys against each other."""
        super().__post_init__()
        devices = Range("null or from 1 to network.num_devices", lambda count: 1 <= count <= self.num_devices)
        devices.or_null("{}").check("network.min_devices", self.min_devices)
        if self.access == "ofdma":
            several = Range("positive under OFDMA", lambda count: count is not None and count > 0)
            several.check("network.num_subcarriers", self.num_subcarriers)
            Range("perfect under OFDMA", lambda csi: csi == "perfect").check("network.csi", self.csi)
        inside = Range("in (0, cell_radius_m)", lambda distance: 0 < distance < self.cell_radius_m)
        inside.check("network.min_distance_m", self.min_distance_m)


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
    pilot: str | None = None  # files written by `fedlodrop calibrate` do not have this and the following
    time_exponent: float = 0.0
    time_exponent_growth: float = 0.0
    gap_exponent: float = 0.0
    refit: bool = False


@dataclass
class BudgetConfig(Section):
    """What a round may cost."""

    deadline_s: float = ranged(POSITIVE)
    energy_j: float | None = ranged(NOT_NEGATIVE.or_null())
    circuit_energy_j: float = ranged(NOT_NEGATIVE)
    battery_j: dict[str, float] | None = MISSING
    battery_policy: str = ranged(one_of("prices", "spend"))
    max_dropout_rate: float = ranged(BELOW_1)

    def __post_init__(self) -> None:
        """Check ranges, those of the batteries by class of device as well."""
        super().__post_init__()
        for name, charge in (self.battery_j or {}).items():
            NOT_NEGATIVE.check(f"budget.battery_j.{name}", charge)


@dataclass
class WireConfig(Section):
    """How numbers travel."""

    dtype: str = ranged(one_of(*DTYPES))
    choices: list[str] | None = ranged(WAYS.or_null())
    noise: dict[str, float] = ranged(NOISE)
    downlink_dtype: str | None = ranged(one_of("fp32", "fp16").or_null("{}"))
    error_feedback: bool = MISSING


@dataclass
class ProfileConfig(Section):
    """What the plan believes about the devices."""

    source: str = ranged(one_of("config", "node", "probe"))
    smoothing: float = ranged(Range("in [0, 1]", lambda value: 0 <= value <= 1))


@dataclass
class RadioConfig(Section):
    """Whether transmissions are only accounted or also waited for; see conf/radio."""

    mode: str = ranged(one_of("account", "realtime"))


@dataclass
class PrivacyConfig(Section):
    """Clipping and noise, on the devices or once on the server."""

    model: str = ranged(one_of("local", "central"))
    clip_norm: float | None = ranged(POSITIVE.or_null())
    noise_multiplier: float = ranged(NOT_NEGATIVE)
    delta: float = ranged(INSIDE_0_1)
    noise_seed: int | None = ranged(SEED.or_null("{}"))

    def __post_init__(self) -> None:
        """Check ranges, and that there is no noise without a norm to measure it by."""
        super().__post_init__()
        if self.noise_multiplier > 0 or self.model == "central":
            given = Range("given with noise or privacy.model=central", lambda norm: norm is not None)
            given.check("privacy.clip_norm", self.clip_norm)


@dataclass
class TrackingConfig(Section):
    """Where the curves of a running federation go; see conf/tracking."""

    name: str = ranged(one_of("tensorboard", "wandb", "none"))
    project: str = MISSING
    mode: str = ranged(one_of("offline", "online"))


@dataclass
class RunConfig(Section):
    """One run: length, seed, place, engine."""

    name: str = ranged(FOLDER_NAME)
    dir: str | None = MISSING
    num_rounds: int = ranged(AT_LEAST_1)
    patience: int | None = ranged(AT_LEAST_1.or_null())
    seed: int = ranged(SEED)
    resume: str | None = MISSING
    engine: str = ranged(one_of("flower", "local"))
    eval_every: int = ranged(AT_LEAST_1)
    eval_batch_size: int = ranged(AT_LEAST_1)
    eval_threads: int = ranged(AT_LEAST_1)
    train_eval_size: int = ranged(AT_LEAST_1)
    client_evaluation: float = ranged(BELOW_1)
    node_timeout_s: float = ranged(POSITIVE)
    round_timeout_s: float = ranged(POSITIVE)
    client_cpus: int = ranged(AT_LEAST_1)
    client_gpus: float = ranged(NOT_NEGATIVE)


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
        """Check what concerns several groups.

        A personalised method, which has no other score, holds examples out; strategy=centralized puts everybody's
        examples and steps on one device that no radio limits.
        """
        check_finite(self)
        name = self.strategy.name if isinstance(self.strategy, StrategyConfig) else None
        if name in ("fedsa_lora", "local"):
            self.run.client_evaluation = self.run.client_evaluation or PERSONALISED_HOLDOUT
            Range("null with a personalised method", lambda n: n is None).check("run.patience", self.run.patience)
        if name == "centralized" and self.network.num_devices > 1:
            if self.training.local_steps is not None:
                self.training.local_steps *= self.network.num_devices
            self.network.num_devices, self.network.min_devices = 1, None
            self.budget.deadline_s, self.budget.energy_j = 1e6, 1e9
        check_together(self)
