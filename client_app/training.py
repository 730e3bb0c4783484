"""One device's round: restore the sub-adapter, train it under its mask, answer with the changes.

References
----------
[Cho2024] Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, EMNLP 2024.
[Li2020] Li et al., Federated Optimization in Heterogeneous Networks (FedProx), MLSys 2020, arXiv 1812.06127.
[Hayou2024] Hayou, Ghosh and Yu, LoRA+: Efficient Low Rank Adaptation of Large Models, ICML 2024, arXiv 2402.12354.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adapter import AdapterMask, AdapterSpec, AdapterState, RoundInstruction, RoundReport, sample_mask
from adapter.masked_training import masked_adapter
from adapter.pack import gather, pack
from adapter.privacy import clip_and_noise
from adapter.protocol import Delivery, wire_spec
from adapter.quantize import rounding_rng
from client_app.feedback import pack_with_feedback
from client_app.memory import DeviceMemory, Parcel, restore
from client_app.moments import load_moments, save_moments
from client_app.worker import Device, SharedModel
from conf import convert
from conf.schema import TrainingConfig
from tasks.data.batches import grouped_by_length, sample_batches
from tasks.models.lora import get_adapter, lora_layers, set_adapter, trainable_parameters
from tasks.scoring.evaluation import batch_loss, compute_metrics, evaluate

_BATCH_STREAM = 0x62617463  # names the random stream of the mini-batches
_NOISE_STREAM = 0x6E6F6973  # names the random stream of seeded privacy noise


def train_round(
    shared: SharedModel, device: Device, parcel: Parcel, instruction: RoundInstruction, memory: DeviceMemory
) -> tuple[npt.NDArray[np.generic], RoundReport]:
    """Train from what was received and remembered, and return the changes of the entries that travel.

    The device's number, the seed and the round fix the mini-batches. The caller commits the memory. PayloadError if a
    buffer does not fit, or training ended in values that are not finite; MemoryLostError as in `restore`.
    """
    started = time.perf_counter()
    config, model, factors, delivery = device.config, shared.model, tuple(instruction.factors), instruction.delivery
    torch.set_num_threads(config.training.num_threads)
    wire = wire_spec(shared.spec, delivery)
    mask = sample_mask(wire, instruction.mask_seed, instruction.dropout_rate, config.strategy.mask, factors)
    spec, server_round = replace(wire, head=shared.spec.head), instruction.server_round
    local = restore(shared, parcel, delivery, mask, convert.downlink_dtype(config), memory)
    received = gather(spec, local, mask, factors)
    scale = (1 - instruction.dropout_rate) ** -len(factors) if config.strategy.scaled else 1.0
    if delivery.rank:
        scale *= (shared.spec.rank / delivery.rank) ** convert.rank_exponent(config)
    lower = pruned_rank(config.strategy.prune_decay, wire.rank)
    set_adapter(model, local.padded(shared.spec))
    with masked_adapter(dict(lora_layers(model)), spec, received, mask, scale=scale, factors=factors):
        tail = functools.partial(tail_norm, trainable_parameters(model), spec, lower)
        before = float(tail().detach())
        loss: float | None = _train(shared, device, spec, mask, instruction, memory)
        pruned = lower if float(tail().detach()) < before else 0
        trained = gather(spec, get_adapter(model).cut_rank(wire.rank), mask, factors)
    if pruned:
        wire = wire_spec(wire, Delivery(rank=pruned))
        trained, received = trained.cut_rank(pruned), received.cut_rank(pruned)
    changes = trained.zip(received, np.subtract)
    if delivery.personal >= 0:
        own = AdapterState({}, trained.lora_B, trained.head).to_tensors()
        memory.put("personal", server_round, own)
        factors, changes = ("A",), AdapterState(changes.lora_A, {})
    privacy = convert.privacy_settings(config)
    if privacy.clip_norm is not None:
        loss = None  # computed from the data without noise, it stays here
        noise = None if privacy.noise_seed is None else [_NOISE_STREAM, privacy.noise_seed, server_round, device.number]
        changes = clip_and_noise(changes, privacy.clip_norm, privacy.noise_multiplier, np.random.default_rng(noise))
    dtype = instruction.wire_dtype or config.wire.dtype
    payload = wire, changes, mask, dtype, factors, rounding_rng(instruction.mask_seed, server_round)
    flat = pack_with_feedback(*payload, memory, server_round) if config.wire.error_feedback else pack(*payload)
    elapsed = time.perf_counter() - started
    return flat, RoundReport(server_round, instruction.mask_seed, len(device.train), loss, elapsed, pruned)


def score(
    shared: SharedModel, device: Device, parcel: Parcel, instruction: RoundInstruction, memory: DeviceMemory
) -> dict[str, Any]:
    """Score a whole adapter on a device's held-out examples; the caller does not commit the memory."""
    data, t = device.holdout, device.config.training
    if not len(data):
        raise ValueError("this device holds out no examples; raise run.client_evaluation")
    torch.set_num_threads(t.num_threads)
    mask = AdapterMask.full(wire_spec(shared.spec, instruction.delivery))
    state = restore(shared, parcel, instruction.delivery, mask, convert.downlink_dtype(device.config), memory)
    set_adapter(shared.model, state.padded(shared.spec))
    loss, predictions = evaluate(shared.model, shared.examples(data), t.batch_size)
    return {"loss": loss, **compute_metrics(device.task.metrics, predictions, data.labels), "num-examples": len(data)}


def _train(
    shared: SharedModel,
    device: Device,
    spec: AdapterSpec,
    mask: AdapterMask,
    instruction: RoundInstruction,
    memory: DeviceMemory,
) -> float:
    """Run the local steps on the adapter of layout ``spec``; return the mean loss over them."""
    config, model, server_round = device.config, shared.model, instruction.server_round
    data = shared.examples(device.train)
    t, s, parameters = config.training, config.strategy, trainable_parameters(model, tuple(instruction.factors))
    rng = np.random.default_rng([_BATCH_STREAM, config.run.seed, server_round, device.number])
    start = [value.detach().clone() for value in parameters.values()]
    rate = rate_factor(t, config.run.num_rounds, server_round)
    optimizer = _torch_optimizer(parameter_groups(parameters, t, rate), t)
    kept = {f"{name}.{part}": index for part, name, index in mask.survivors(spec)}
    moments = optimizer, parameters, kept, memory
    if s.optimizer_state == "kept":
        load_moments(*moments)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (t.warmup_steps + 1)))

    def penalty() -> torch.Tensor:
        tail = s.prune_weight * tail_norm(parameters, spec, pruned_rank(s.prune_decay, spec.rank))
        return tail + proximal(parameters.values(), start, t.proximal_mu) if t.proximal_mu else tail

    losses: list[float] = []
    where, size = next(model.parameters()).device, t.micro_batch_size or t.batch_size
    model.train()
    try:
        # Model dropout draws from the global generator: seed it from this round's stream and put it back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            drawn = sample_batches(len(data), t.batch_size, steps=t.local_steps, epochs=t.local_epochs, rng=rng)
            for index in grouped_by_length(drawn, data.lengths, rng) if t.group_by_length else drawn:
                optimizer.zero_grad(set_to_none=True)
                batches = [data.batch(part).to(where) for part in np.split(index, range(size, len(index), size))]
                losses.append(_backward(model, batches, penalty))
                if t.max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(list(parameters.values()), t.max_grad_norm)
                optimizer.step()
                schedule.step()
    finally:
        model.eval()
    if s.optimizer_state == "kept":
        save_moments(*moments, server_round)
    return float(np.mean(losses))


def _backward(model: Any, batches: Sequence[Any], penalty: Callable[[], torch.Tensor]) -> float:
    """Add up the gradients of a batch, computed in parts; return its mean loss without the penalty."""
    counts, mean = [len(batch.labels) for batch in batches], 0.0  # of examples, or of tokens to learn
    for batch, count in zip(batches, counts, strict=True):
        loss = batch_loss(model, batch)
        ((loss + penalty()) * (count / sum(counts))).backward()  # type: ignore[no-untyped-call]
        mean += float(loss.detach()) * (count / sum(counts))
    return mean


def rate_factor(t: TrainingConfig, num_rounds: int, server_round: int) -> float:
    """Factor on the rates in round t of T: lr_decay^(t-1) times 1, or with u = (t-1)/T times 1-u, (1+cos(pi u))/2."""
    done = (server_round - 1) / num_rounds
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return t.lr_decay ** (server_round - 1) * shapes[t.lr_schedule]


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], t: TrainingConfig, decay: float
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: lora_A at the rate eta, lora_B at lambda eta [Hayou2024], the head at its own."""
    rates = {"lora_A": t.lr, "lora_B": t.loraplus_lr_ratio * t.lr}
    groups = dict[float, list[torch.nn.Parameter]]()
    for name, value in parameters.items():
        groups.setdefault(rates.get(name.rsplit(".", 1)[-1], t.head_lr or t.lr) * decay, []).append(value)
    return [{"params": values, "lr": rate} for rate, values in groups.items()]


def pruned_rank(decay: float | None, rank: int) -> int:
    """Rank that HetLoRA's self-pruning leaves [Cho2024], at least 1; ``decay`` None: no pruning."""
    return rank if decay is None else max(1, math.floor(decay * rank))


def tail_norm(parameters: Mapping[str, torch.nn.Parameter], spec: AdapterSpec, rank: int) -> torch.Tensor:
    r"""Return :math:`\sum_j \|B_j[:, r':]\|_F\|A_j[r':]\|_F` over modules j, r' = ``rank``; 0 for no such components.

    It regularises the loss; where it has shrunk after the local steps, the device keeps the first r' components only.
    """
    norm, total = torch.linalg.vector_norm, torch.zeros(())
    for module in spec.modules if rank < spec.rank else ():
        A, B = parameters[f"{module.name}.lora_A"], parameters[f"{module.name}.lora_B"]
        total = total.to(A.device) + norm(B[:, rank : module.r]) * norm(A[rank : module.r])
    return total


def proximal(parameters: Iterable[torch.Tensor], start: Iterable[torch.Tensor], mu: float) -> torch.Tensor:
    r"""FedProx's penalty :math:`\frac{\mu}{2}\|w - w_{received}\|^2` [Li2020] over what trains."""
    moved = [(now - then).square().sum() for now, then in zip(parameters, start, strict=True)]
    return mu / 2 * torch.stack(moved).sum()


def _torch_optimizer(groups: list[dict[str, Any]], t: TrainingConfig) -> torch.optim.Optimizer:
    if t.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=t.momentum, weight_decay=t.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=t.weight_decay)
