"""Types and ranges of every key; values: the YAML files beside it. After a change: python -m conf.reference."""

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

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
    train_limit: int | None = positive()
    validation_limit: int | None = positive()
    holdout: int | None = within("at least 1 or null (they choose the best round)", lambda count: count >= 1)
    label_noise: float = below_1()
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
class LoraConfig:
    """Shape of the adapter; see conf/lora."""

    r: int = positive()
    alpha: float = MISSING
    use_rslora: bool = MISSING
    scale_by_devices: bool = MISSING
    init: str = one_of("kaiming", "orthogonal")
    lora_dropout: float = below_1()
    target_modules: list[str] | None = MISSING
    layers: Any = within("'all' or a positive number of upper layers", lambda n: n == "all" or type(n) is int and n > 0)


@dataclass
class TrainingConfig:
    """What a device does in one round; see conf/training."""

    local_steps: int | None = MISSING
    local_epochs: int | None = MISSING
    batch_size: int = positive()
    micro_batch_size: int | None = positive()
    group_by_length: bool = MISSING
    optimizer: str = one_of("adamw", "sgd")
    lr: float = positive()
    lr_decay: float = share()
    lr_schedule: str = one_of("constant", "linear", "cosine")
    head_lr: float | None = MISSING
    loraplus_lr_ratio: float = positive()
    proximal_mu: float = not_negative()
    weight_decay: float = MISSING
    momentum: float = MISSING
    warmup_steps: int = not_negative()
    max_grad_norm: float | None = MISSING
    num_threads: int = positive()
    gradient_checkpointing: bool = MISSING
    fused_lora: bool = MISSING
    dtype: str = one_of("auto", "float32", "bfloat16")
    device: str = within("auto, cpu, cuda or cuda:N", re.compile(r"(auto|cpu|cuda(:\d+)?)\Z").match)
    prefix_cache: str = one_of("auto", "off")
    prefix_cache_mib: float = not_negative()
    prefix_cache_disk_mib: float = not_negative()
    prefix_cache_dir: str | None = MISSING


@dataclass
class StrategyConfig:
    """Which federated method; see conf/strategy."""

    name: str = MISSING
    factors: str = one_of("both", "b_only", "alternate")
    aggregation: str = one_of("kept", "previous", "exact", "measured")
    mask: str = one_of("fixed", "bernoulli")
    scaled: bool = MISSING
    optimizer_state: str = one_of("fresh", "kept")
    ranks: dict[str, int] | None = MISSING
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


@dataclass
class AllocatorConfig:
    """Who decides dropout rates, bandwidth and power; see conf/allocator."""

    name: str = MISSING
    dropout_rate: float = below_1()
    gap: float = positive()
    time_limit_s: float = positive()
    verify: bool = MISSING
    fallback: list[str] = MISSING
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


@dataclass
class NetworkConfig:
    """The cell and its channel; see conf/network."""

    access: str = one_of("fdma", "tdma", "ofdma")
    shared_downlink: bool = MISSING
    num_devices: int = at_least_1()
    min_devices: int | None = MISSING
    total_bandwidth_hz: float = positive()
    num_subcarriers: int | None = MISSING
    cell_radius_m: float = MISSING
    min_distance_m: float = MISSING
    carrier_hz: float = MISSING
    fading: str = one_of("rayleigh", "rician", "none")
    rician_k_db: float = MISSING
    csi: str = one_of("perfect", "estimated")
    outage_probability: float = inside_0_1()
    shadowing: bool = MISSING
    noise_figure_db: float = MISSING
    delay_spread_s: float = MISSING


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
class BudgetConfig:
    """What a round may cost."""

    deadline_s: float = positive()
    energy_j: float | None = not_negative()
    circuit_energy_j: float = not_negative()
    battery_j: dict[str, float] | None = MISSING
    battery_policy: str = one_of("prices", "spend")
    max_dropout_rate: float = below_1()


@dataclass
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
    error_feedback: bool = MISSING


@dataclass
class ProfileConfig:
    """What the plan believes about the devices."""

    source: str = one_of("config", "node", "probe")
    smoothing: float = within("in [0, 1]", lambda value: 0 <= value <= 1)


@dataclass
class RadioConfig:
    """Whether transmissions are only accounted or also waited for; see conf/radio."""

    mode: str = one_of("account", "realtime")


@dataclass
class PrivacyConfig:
    """Clipping and noise, on the devices or once on the server."""

    model: str = one_of("local", "central")
    clip_norm: float | None = positive()
    noise_multiplier: float = not_negative()
    delta: float = inside_0_1()
    noise_seed: int | None = random_seed()


@dataclass
class TrackingConfig:
    """Where the curves of a running federation go; see conf/tracking."""

    name: str = one_of("tensorboard", "wandb", "none")
    project: str = MISSING
    mode: str = one_of("offline", "online")


@dataclass
class RunConfig:
    """One run: length, seed, place, engine."""

    name: str = within("a plain folder name", lambda name: name not in ("", ".", "..") and not set(name) & set("/\\\0"))
    dir: str | None = MISSING
    num_rounds: int = at_least_1()
    patience: int | None = at_least_1()
    seed: int = random_seed()
    resume: str | None = MISSING
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
