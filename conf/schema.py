"""Types and ranges of every key; values: the YAML files beside it. After a change: python -m conf.reference."""

import re
from dataclasses import dataclass
from typing import Any

from adapter.protocol import DTYPES
from conf.ranges import (
    PERSONALISED,
    at_least_1,
    below_1,
    check,
    inside_0_1,
    not_negative,
    one_of,
    positive,
    random_seed,
    share,
    within,
)

HOLDOUT = 0.2  # run.client_evaluation of personalised methods where the user names none


@dataclass(kw_only=True)
class TaskConfig:
    """Which data; see conf/task."""

    name: str
    train_file: str | None
    validation_file: str | None
    text_columns: list[str] | None
    label_column: str | None
    group_column: str | None
    kind: str | None
    train_limit: int | None = positive()
    validation_limit: int | None = positive()
    holdout: int | None = within("at least 1 or null (they choose the best round)", lambda count: count >= 1)
    label_noise: float = below_1()
    labels: list[Any] | None
    schema: bool
    dataset: str | None


@dataclass(kw_only=True)
class ModelConfig:
    """Which base model; see conf/model."""

    name: str
    path: str | None
    gguf_file: str | None
    chat_template: str | None
    pooling: str
    head: str
    freeze_head: bool
    dropout: float
    max_tokens: int
    hidden_size: int
    frozen_weight: bool
    load_in_4bit: bool


@dataclass(kw_only=True)
class PartitionConfig:
    """How the training data is spread over the devices; see conf/partition."""

    kind: str
    alpha: float
    min_size: int


@dataclass(kw_only=True)
class LoraConfig:
    """Shape of the adapter; see conf/lora."""

    r: int = positive()
    alpha: float
    use_rslora: bool
    scale_by_devices: bool
    init: str = one_of("kaiming", "orthogonal")
    lora_dropout: float = below_1()
    target_modules: list[str] | None
    layers: Any = within("'all' or a positive number of upper layers", lambda n: n == "all" or type(n) is int and n > 0)


@dataclass(kw_only=True)
class TrainingConfig:
    """What a device does in one round; see conf/training."""

    local_steps: int | None
    local_epochs: int | None
    batch_size: int = positive()
    micro_batch_size: int | None = positive()
    group_by_length: bool
    optimizer: str = one_of("adamw", "sgd")
    lr: float = positive()
    lr_decay: float = share()
    lr_schedule: str = one_of("constant", "linear", "cosine")
    head_lr: float | None
    loraplus_lr_ratio: float = positive()
    proximal_mu: float = not_negative()
    weight_decay: float
    momentum: float
    warmup_steps: int = not_negative()
    max_grad_norm: float | None
    num_threads: int = positive()
    gradient_checkpointing: bool
    fused_lora: bool
    dtype: str = one_of("auto", "float32", "bfloat16")
    device: str = within("auto, cpu, cuda or cuda:N", re.compile(r"(auto|cpu|cuda(:\d+)?)\Z").match)
    prefix_cache: str = one_of("auto", "off")
    prefix_cache_mib: float = not_negative()
    prefix_cache_disk_mib: float = not_negative()
    prefix_cache_dir: str | None


@dataclass(kw_only=True)
class StrategyConfig:
    """Which federated method; see conf/strategy."""

    name: str
    factors: str = one_of("both", "b_only", "alternate")
    aggregation: str = one_of("kept", "previous", "exact", "measured")
    mask: str = one_of("fixed", "bernoulli")
    scaled: bool
    optimizer_state: str = one_of("fresh", "kept")
    ranks: dict[str, int] | None
    rank_scaling: str = one_of("own", "common")
    prune_decay: float | None = inside_0_1()
    prune_weight: float = not_negative()
    phases: list[str] = within(
        "a list of A and B that holds both and begins with B: while B = 0, A has no gradient",
        lambda phases: set(phases) == {"A", "B"} and phases[0] == "B",
    )
    server_optimizer: str = one_of("none", "fedavgm", "fedadam", "fedyogi")
    server_lr: float = positive()
    server_beta1: float = below_1()
    server_beta2: float = below_1()
    server_tau: float = positive()
    fraction: float = share()
    devices_per_round: int | None = positive()
    clip_factor: float | None = at_least_1()
    max_weight: float | None = at_least_1()
    robust: str = one_of("mean", "trimmed_mean", "median", "multi_krum", "geometric_median")
    trim: float = within("in [0, 0.5)", lambda value: 0 <= value < 0.5)


@dataclass(kw_only=True)
class AllocatorConfig:
    """Who decides dropout rates, bandwidth and power; see conf/allocator."""

    name: str
    dropout_rate: float = below_1()
    gap: float = positive()
    time_limit_s: float = positive()
    verify: bool
    fallback: list[str]
    objective: str = one_of("bound", "time", "tradeoff")
    max_bound: float | None = positive()
    min_weight: float = share()
    energy_weight_per_j: float = not_negative()
    time_weight_per_s: float = not_negative()
    cpu_clock: str = one_of("fixed", "free")
    cpu_range: list[float] = within(
        "[low, high] with 0 < low <= 1 <= high, shares of the class's clock",
        lambda pair: len(pair) == 2 and 0 < pair[0] <= 1 <= pair[1],
    )


@dataclass(kw_only=True)
class NetworkConfig:
    """The cell and its channel; see conf/network."""

    access: str = one_of("fdma", "tdma", "ofdma")
    shared_downlink: bool
    num_devices: int = at_least_1()
    min_devices: int | None
    total_bandwidth_hz: float = positive()
    num_subcarriers: int | None
    cell_radius_m: float
    min_distance_m: float
    carrier_hz: float
    fading: str = one_of("rayleigh", "rician", "none")
    rician_k_db: float
    csi: str = one_of("perfect", "estimated")
    outage_probability: float = inside_0_1()
    shadowing: bool
    noise_figure_db: float
    delay_spread_s: float


@dataclass(kw_only=True)
class DeviceClassConfig:
    """One class of devices; see conf/device."""

    share: float
    cpu_hz: float
    flops_per_cycle: float
    capacitance: float
    max_tx_power_dbm: float
    energy_budget_j: float
    downlink_rate_bps: float


@dataclass(kw_only=True)
class DeviceConfig:
    """Which classes of devices there are; see conf/device."""

    classes: dict[str, DeviceClassConfig]


@dataclass(kw_only=True)
class BoundConfig:
    """Constants of the generalization bound; see conf/bound."""

    empirical_scale: float
    loss_bound: float
    lipschitz: float
    curvature_min: float
    sparsity_regularization: float
    confidence: float
    pilot: str | None = None  # files written by `fedlodrop calibrate` do not have this and the following
    time_exponent: float = 0.0
    time_exponent_growth: float = 0.0
    gap_exponent: float = 0.0
    refit: bool = False


@dataclass(kw_only=True)
class BudgetConfig:
    """What a round may cost."""

    deadline_s: float = positive()
    energy_j: float | None = not_negative()
    circuit_energy_j: float = not_negative()
    battery_j: dict[str, float] | None
    battery_policy: str = one_of("prices", "spend")
    max_dropout_rate: float = below_1()


@dataclass(kw_only=True)
class WireConfig:
    """How numbers travel."""

    dtype: str = one_of(*DTYPES)
    choices: list[str] | None = within(
        f"a list of different ones of {', '.join(DTYPES)}",
        lambda found: found and set(found) <= set(DTYPES) and len(set(found)) == len(found),
    )
    noise: dict[str, float] = within(
        f"a number >= 0 for each of {', '.join(DTYPES)}",
        lambda found: set(found) == set(DTYPES) and min(found.values()) >= 0,
    )
    downlink_dtype: str | None = one_of("fp32", "fp16")
    error_feedback: bool


@dataclass(kw_only=True)
class ProfileConfig:
    """What the plan believes about the devices."""

    source: str = one_of("config", "node", "probe")
    smoothing: float = within("in [0, 1]", lambda value: 0 <= value <= 1)


@dataclass(kw_only=True)
class RadioConfig:
    """Whether transmissions are only accounted or also waited for; see conf/radio."""

    mode: str = one_of("account", "realtime")


@dataclass(kw_only=True)
class PrivacyConfig:
    """Clipping and noise, on the devices or once on the server."""

    model: str = one_of("local", "central")
    clip_norm: float | None = positive()
    noise_multiplier: float = not_negative()
    delta: float = inside_0_1()
    noise_seed: int | None = random_seed()


@dataclass(kw_only=True)
class TrackingConfig:
    """Where the curves of a running federation go; see conf/tracking."""

    name: str = one_of("tensorboard", "wandb", "none")
    project: str
    mode: str = one_of("offline", "online")


@dataclass(kw_only=True)
class RunConfig:
    """One run: length, seed, place, engine."""

    name: str = within("a plain folder name", lambda name: name not in ("", ".", "..") and not set(name) & set("/\\\0"))
    dir: str | None
    num_rounds: int = at_least_1()
    patience: int | None = at_least_1()
    seed: int = random_seed()
    resume: str | None
    engine: str = one_of("flower", "local")
    eval_every: int = at_least_1()
    eval_batch_size: int = at_least_1()
    eval_threads: int = at_least_1()
    train_eval_size: int = at_least_1()
    client_evaluation: float = below_1()
    node_timeout_s: float = positive()
    round_timeout_s: float = positive()
    client_cpus: int = at_least_1()
    client_gpus: float = not_negative()


@dataclass(kw_only=True)
class Config:
    """The whole configuration."""

    task: TaskConfig
    model: ModelConfig
    partition: PartitionConfig
    lora: LoraConfig
    training: TrainingConfig
    strategy: StrategyConfig
    allocator: AllocatorConfig
    network: NetworkConfig
    device: DeviceConfig
    bound: BoundConfig
    budget: BudgetConfig
    wire: WireConfig
    profile: ProfileConfig
    radio: RadioConfig
    privacy: PrivacyConfig
    tracking: TrackingConfig
    run: RunConfig

    def __post_init__(self) -> None:
        """Check all keys; settle what some of them say of others.

        Epochs take the place of steps. A personalised method, which has no other score, holds examples out.
        strategy=centralized puts everybody's examples and steps on one device that no radio limits.
        """
        t, n = self.training, self.network
        if t.local_epochs is not None:
            t.local_steps = None
        if self.strategy.name in PERSONALISED:
            self.run.client_evaluation = self.run.client_evaluation or HOLDOUT
        check(self)
        if self.strategy.name == "centralized" and n.num_devices > 1:
            if t.local_steps is not None:
                t.local_steps *= n.num_devices
            n.num_devices, n.min_devices, self.budget.deadline_s, self.budget.energy_j = 1, None, 1e6, 1e9
