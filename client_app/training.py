"""One device's round: restore the sub-adapter, train it under its mask, answer with the changes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adapter import AdapterSpec, AdapterState, RoundInstruction, RoundReport, pack, rounding_rng, sample_mask, unpack
from adapter.masking import masked_adapter, read_sub_adapter
from adapter.privacy import PrivacySettings, clip_and_noise
from tasks.batching import Tokenised, evaluate, sample_batches, task_loss
from tasks.lora import lora_layers, set_adapter, trainable_parameters
from tasks.metrics import compute_metrics

_BATCH_STREAM = 0x62617463  # names the random stream of the mini-batches
_NOISE_STREAM = 0x6E6F6973  # names the random stream of seeded privacy noise


@dataclass(frozen=True)
class TrainingSettings:
    """Plain settings of the local training; see conf/training."""

    local_steps: int | None
    local_epochs: int | None
    batch_size: int
    optimizer: str
    lr: float
    head_lr: float | None
    weight_decay: float
    momentum: float
    warmup_steps: int
    max_grad_norm: float | None
    num_threads: int
    mask: str
    scaled: bool
    wire_dtype: str  # of the changes sent
    downlink_dtype: str  # of the values received
    seed: int
    privacy: PrivacySettings = PrivacySettings()


@dataclass(frozen=True)
class SharedModel:
    """A model that all devices of a process use in turn, its layout, and the adapter it was built with."""

    model: Any
    spec: AdapterSpec
    initial: AdapterState


def train_round(
    shared: SharedModel,
    data: Tokenised,
    buffer: bytes,
    instruction: RoundInstruction,
    settings: TrainingSettings,
    device: int,
) -> tuple[npt.NDArray[np.generic], RoundReport]:
    """Train a received sub-adapter and return the changes of its entries.

    Parameters
    ----------
    shared : SharedModel
        Its adapter and head are overwritten from the buffer (and from the seeded start, for a factor that does not travel).
    data : Tokenised
        The device's own examples.
    buffer : bytes
        Received survivors and head.
    instruction : RoundInstruction
        The device's orders.
    settings : TrainingSettings
        Static settings.
    device : int
        Partition id; with the seed and the round it fixes the mini-batches.

    Returns
    -------
    tuple
        Flat buffer of changes, number type of the wire, and the report.

    Raises
    ------
    adapter.PayloadError
        If the buffer does not fit the instruction, or training ended in values that are not finite.
    """
    started = time.perf_counter()
    torch.set_num_threads(settings.num_threads)
    model, spec, factors = shared.model, shared.spec, tuple(instruction.factors)
    mask = sample_mask(spec, instruction.mask_seed, instruction.dropout_rate, settings.mask, factors)
    received = unpack(spec, buffer, mask, settings.downlink_dtype, factors)
    scale = (1 - instruction.dropout_rate) ** -len(factors) if settings.scaled else 1.0
    rng = np.random.default_rng([_BATCH_STREAM, settings.seed, instruction.server_round, device])
    head = _head(model, spec)
    set_adapter(model, replace(shared.initial, head={**shared.initial.head, **received.head}))
    layers = dict(lora_layers(model))
    with masked_adapter(layers, spec, received, mask, scale=scale, factors=factors):
        loss = _train(model, head, data, factors, settings, rng)
        trained = read_sub_adapter(layers, head, spec, mask, factors=factors)
    rounding = rounding_rng(instruction.mask_seed, instruction.server_round)
    changes = _private(_difference(trained, received), settings, instruction.server_round, device)
    flat = pack(spec, changes, mask, settings.wire_dtype, factors, rounding)
    elapsed = time.perf_counter() - started
    # The loss is computed from the data without noise: it stays here when privacy was asked for.
    told = loss if settings.privacy.clip_norm is None else None
    return flat, RoundReport(instruction.server_round, instruction.mask_seed, len(data), told, elapsed)


def score(
    shared: SharedModel, data: Tokenised, buffer: bytes, settings: TrainingSettings, metrics: Sequence[str]
) -> dict[str, Any]:
    """Score a whole adapter on a device's held-out examples.

    Returns
    -------
    dict
        ``loss``, the metrics and ``num-examples``.
    """
    if not len(data):
        raise ValueError("this device holds out no examples; raise run.client_evaluation")
    torch.set_num_threads(settings.num_threads)
    mask = sample_mask(shared.spec, 0, 0.0)
    set_adapter(shared.model, unpack(shared.spec, buffer, mask, settings.downlink_dtype))
    loss, predictions = evaluate(shared.model, data, settings.batch_size)
    return {"loss": loss, **compute_metrics(metrics, predictions, data.labels), "num-examples": len(data)}


def _head(model: Any, spec: AdapterSpec) -> dict[str, torch.nn.Parameter]:
    names = dict(spec.head)
    return {name: value for name, value in trainable_parameters(model).items() if name in names}


def _difference(new: AdapterState, old: AdapterState) -> AdapterState:
    return AdapterState(
        {name: value - old.lora_A[name] for name, value in new.lora_A.items()},
        {name: value - old.lora_B[name] for name, value in new.lora_B.items()},
        {name: value - old.head[name] for name, value in new.head.items()},
    )


def _private(changes: AdapterState, settings: TrainingSettings, server_round: int, device: int) -> AdapterState:
    """Clip and noise the changes if privacy was asked for."""
    p = settings.privacy
    if p.clip_norm is None:
        return changes
    seed = None if p.noise_seed is None else [_NOISE_STREAM, p.noise_seed, server_round, device]
    return clip_and_noise(changes, p.clip_norm, p.noise_multiplier, np.random.default_rng(seed))


def _train(
    model: Any,
    head: Mapping[str, torch.nn.Parameter],
    data: Tokenised,
    factors: tuple[str, ...],
    settings: TrainingSettings,
    rng: np.random.Generator,
) -> float:
    """Run the local steps; return the mean loss over them."""
    parameters = trainable_parameters(model, factors)
    groups = [
        {"params": [value for name, value in parameters.items() if name not in head], "lr": settings.lr},
        {"params": list(head.values()), "lr": settings.head_lr or settings.lr},
    ]
    optimizer = _torch_optimizer([group for group in groups if group["params"]], settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (settings.warmup_steps + 1)))
    losses = []
    model.train()
    try:
        # Model dropout draws from the global generator: seed it from this round's stream and put it back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            for index in sample_batches(
                len(data), settings.batch_size, steps=settings.local_steps, epochs=settings.local_epochs, rng=rng
            ):
                optimizer.zero_grad(set_to_none=True)
                batch = data.batch(index)
                loss = task_loss(model(**batch.inputs), batch.labels, model.kind)
                loss.backward()  # type: ignore[no-untyped-call]
                if settings.max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.max_grad_norm)
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
    finally:
        model.eval()
    return float(np.mean(losses))


def _torch_optimizer(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
