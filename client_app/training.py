"""One device's round: restore the sub-adapter, train it under its mask, answer with the changes.

References
----------
[Li2020] Li et al., Federated Optimization in Heterogeneous Networks (FedProx), MLSys 2020, arXiv 1812.06127.
[Hayou2024] Hayou, Ghosh and Yu, LoRA+: Efficient Low Rank Adaptation of Large Models, ICML 2024, arXiv 2402.12354.
"""

import functools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adapter import (
    AdapterMask,
    AdapterSpec,
    AdapterState,
    RoundInstruction,
    RoundReport,
    gather,
    pack,
    rounding_rng,
    sample_mask,
)
from adapter.delivery import Delivery, wire_spec
from adapter.masked_training import masked_adapter
from adapter.privacy import PrivacySettings, clip_and_noise
from client_app.feedback import pack_with_feedback
from client_app.memory import DeviceMemory
from client_app.moments import load_moments, save_moments
from client_app.pruning import PruningSettings
from client_app.restore import Parcel, Start, restore
from tasks.data.batches import Encoded, grouped_by_length, sample_batches
from tasks.models.lora import get_adapter, lora_layers, set_adapter, trainable_parameters
from tasks.models.placement import KeptStates
from tasks.scoring.evaluation import batch_loss, evaluate
from tasks.scoring.metrics import compute_metrics

_BATCH_STREAM = 0x62617463  # names the random stream of the mini-batches
_NOISE_STREAM = 0x6E6F6973  # names the random stream of seeded privacy noise


@dataclass(frozen=True)
class TrainingSettings:
    """Plain settings of the local training; see conf/training."""

    local_steps: int | None
    local_epochs: int | None
    batch_size: int
    group_by_length: bool
    optimizer: str
    lr: float
    lr_decay: float
    head_lr: float | None
    loraplus_lr_ratio: float  # rate of lora_B over that of lora_A
    proximal_mu: float
    weight_decay: float
    momentum: float
    warmup_steps: int
    max_grad_norm: float | None
    num_threads: int
    mask: str
    scaled: bool
    wire_dtype: str  # of the changes sent
    downlink_dtype: str  # of the values received
    optimizer_state: str
    rank_exponent: float  # a device of rank r' trains at scale s (r / r')**rank_exponent
    seed: int
    privacy: PrivacySettings = PrivacySettings()
    pruning: PruningSettings = PruningSettings()
    error_feedback: bool = False
    lr_schedule: str = "constant"  # or "linear" or "cosine", over
    num_rounds: int = 1
    micro_batch_size: int | None = None  # examples of a batch computed at a time; None: all


@dataclass(frozen=True)
class SharedModel(Start):
    """A model that all devices of a process use in turn, and what it was built with."""

    model: Any
    prefix: KeptStates | None = None

    def examples(self, data: Encoded) -> Encoded:
        """Return a device's examples, their frozen lower layers' states in place of token ids where these are kept."""
        return data if self.prefix is None else self.prefix.source(data)


@dataclass(frozen=True)
class LocalRound:
    """One device's trainable part of one round: layout at the device's rank, survivors, trained factors."""

    spec: AdapterSpec
    mask: AdapterMask
    factors: tuple[str, ...]
    server_round: int


def train_round(
    shared: SharedModel,
    data: Encoded,
    parcel: Parcel,
    instruction: RoundInstruction,
    settings: TrainingSettings,
    device: int,
    memory: DeviceMemory,
) -> tuple[npt.NDArray[np.generic], RoundReport]:
    """Train from what was received and remembered, and return the changes of the entries that travel.

    Adapter, head and base of the shared model are overwritten before use. ``device`` is the partition id; with the seed
    and the round it fixes the mini-batches. The caller commits the memory.

    Raises adapter.PayloadError if a buffer does not fit the instruction, or training ended in values that are not
    finite. Raises client_app.memory.MemoryLostError if the server counts on something that the device does not hold.
    """
    started = time.perf_counter()
    torch.set_num_threads(settings.num_threads)
    model, factors, delivery = shared.model, tuple(instruction.factors), instruction.delivery
    wire = wire_spec(shared.spec, delivery)
    mask = sample_mask(wire, instruction.mask_seed, instruction.dropout_rate, settings.mask, factors)
    here = LocalRound(replace(wire, head=shared.spec.head), mask, factors, instruction.server_round)
    local = restore(shared, wire, parcel, instruction, mask, settings.downlink_dtype, memory)
    received = gather(here.spec, local, mask, factors)
    scale = (1 - instruction.dropout_rate) ** -len(factors) if settings.scaled else 1.0
    if delivery.rank:
        scale *= (shared.spec.rank / delivery.rank) ** settings.rank_exponent
    rng = np.random.default_rng([_BATCH_STREAM, settings.seed, instruction.server_round, device])
    set_adapter(model, local.padded(shared.spec))
    with masked_adapter(dict(lora_layers(model)), here.spec, received, mask, scale=scale, factors=factors):
        tail = functools.partial(settings.pruning.tail, trainable_parameters(model), here.spec)
        before = float(tail().detach())
        loss = _train(model, shared.examples(data), here, settings, rng, memory)
        pruned = settings.pruning.pruned_rank(wire.rank) if float(tail().detach()) < before else 0
        trained = gather(here.spec, get_adapter(model).cut_rank(wire.rank), mask, factors)
    if pruned:
        wire = wire_spec(wire, Delivery(rank=pruned))
        trained, received = trained.cut_rank(pruned), received.cut_rank(pruned)
    changes = trained.zip(received, np.subtract)
    if delivery.personal >= 0:
        own = AdapterState({}, trained.lora_B, trained.head).to_tensors()
        memory.put("personal", instruction.server_round, own)
        factors, changes = ("A",), AdapterState(changes.lora_A, {})
    changes = _private(changes, settings.privacy, here.server_round, device)
    dtype = instruction.wire_dtype or settings.wire_dtype
    payload = wire, changes, mask, dtype, factors, rounding_rng(instruction.mask_seed, here.server_round)
    flat = pack_with_feedback(*payload, memory, here.server_round) if settings.error_feedback else pack(*payload)
    elapsed = time.perf_counter() - started
    # The loss is computed from the data without noise: it stays here when privacy was asked for.
    told = loss if settings.privacy.clip_norm is None else None
    return flat, RoundReport(here.server_round, instruction.mask_seed, len(data), told, elapsed, pruned)


def score(
    shared: SharedModel,
    data: Encoded,
    parcel: Parcel,
    instruction: RoundInstruction,
    settings: TrainingSettings,
    metrics: Sequence[str],
    memory: DeviceMemory,
) -> dict[str, Any]:
    """Score a whole adapter on a device's held-out examples; the caller does not commit the memory."""
    if not len(data):
        raise ValueError("this device holds out no examples; raise run.client_evaluation")
    torch.set_num_threads(settings.num_threads)
    wire = wire_spec(shared.spec, instruction.delivery)
    mask = AdapterMask.full(wire)
    state = restore(shared, wire, parcel, instruction, mask, settings.downlink_dtype, memory)
    set_adapter(shared.model, state.padded(shared.spec))
    loss, predictions = evaluate(shared.model, shared.examples(data), settings.batch_size)
    return {"loss": loss, **compute_metrics(metrics, predictions, data.labels), "num-examples": len(data)}


def _private(changes: AdapterState, privacy: PrivacySettings, server_round: int, device: int) -> AdapterState:
    """Clip and noise the changes if privacy was asked for."""
    if privacy.clip_norm is None:
        return changes
    seed = None if privacy.noise_seed is None else [_NOISE_STREAM, privacy.noise_seed, server_round, device]
    return clip_and_noise(changes, privacy.clip_norm, privacy.noise_multiplier, np.random.default_rng(seed))


def _train(
    model: Any,
    data: Encoded,
    here: LocalRound,
    settings: TrainingSettings,
    rng: np.random.Generator,
    memory: DeviceMemory,
) -> float:
    """Run the local steps; return the mean loss over them."""
    parameters = trainable_parameters(model, here.factors)
    decay = rate_factor(settings, here.server_round)
    start = [value.detach().clone() for value in parameters.values()]
    optimizer = _torch_optimizer(parameter_groups(parameters, settings, decay), settings)
    if settings.optimizer_state == "kept":
        load_moments(optimizer, parameters, here.spec, here.mask, memory)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (settings.warmup_steps + 1))
    )
    losses: list[float] = []
    where = next(model.parameters()).device
    model.train()
    try:
        # Model dropout draws from the global generator: seed it from this round's stream and put it back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            for index in _batches(data, settings, rng):
                optimizer.zero_grad(set_to_none=True)
                batches = [data.batch(part).to(where) for part in _parts(index, settings.micro_batch_size)]
                counts = [len(batch.labels) for batch in batches]  # of examples, or of tokens to learn
                losses.append(0.0)
                for batch, count in zip(batches, counts, strict=True):
                    loss = batch_loss(model, batch)
                    penalty = settings.pruning.weight * settings.pruning.tail(parameters, here.spec)
                    if settings.proximal_mu:
                        penalty = penalty + proximal(parameters.values(), start, settings.proximal_mu)
                    ((loss + penalty) * (count / sum(counts))).backward()  # type: ignore[no-untyped-call]
                    losses[-1] += float(loss.detach()) * (count / sum(counts))
                if settings.max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.max_grad_norm)
                optimizer.step()
                schedule.step()
    finally:
        model.eval()
    if settings.optimizer_state == "kept":
        save_moments(optimizer, parameters, here.spec, here.mask, memory, here.server_round)
    return float(np.mean(losses))


def _parts(index: npt.NDArray[np.int64], size: int | None) -> list[npt.NDArray[np.int64]]:
    return np.split(index, range(size, len(index), size)) if size else [index]


def rate_factor(settings: TrainingSettings, server_round: int) -> float:
    """Factor on the rates in round t of T: lr_decay^(t-1) times 1, or with u = (t-1)/T times 1-u, (1+cos(pi u))/2."""
    done = (server_round - 1) / settings.num_rounds
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return settings.lr_decay ** (server_round - 1) * shapes[settings.lr_schedule]


def _batches(data: Encoded, settings: TrainingSettings, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    drawn = sample_batches(
        len(data), settings.batch_size, steps=settings.local_steps, epochs=settings.local_epochs, rng=rng
    )
    return grouped_by_length(drawn, data.lengths, rng) if settings.group_by_length else drawn


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], settings: TrainingSettings, decay: float
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: lora_A at the rate eta, lora_B at lambda eta [Hayou2024], the head at its own."""
    rates = {"lora_A": settings.lr, "lora_B": settings.loraplus_lr_ratio * settings.lr}
    head_lr, groups = settings.head_lr or settings.lr, dict[float, list[torch.nn.Parameter]]()
    for name, value in parameters.items():
        groups.setdefault(rates.get(name.rsplit(".", 1)[-1], head_lr) * decay, []).append(value)
    return [{"params": values, "lr": rate} for rate, values in groups.items()]


def proximal(parameters: Iterable[torch.Tensor], start: Iterable[torch.Tensor], mu: float) -> torch.Tensor:
    r"""FedProx's penalty :math:`\frac{\mu}{2}\|w - w_{received}\|^2` [Li2020] over what trains."""
    return (
        mu / 2 * torch.stack([(now - then).square().sum() for now, then in zip(parameters, start, strict=True)]).sum()
    )


def _torch_optimizer(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
