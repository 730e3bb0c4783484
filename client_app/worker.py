"""What a process keeps between calls: the base model, the tokenised data and its partition, each loaded once.

Flower runs many devices in one process, and one device in many processes. Nothing kept here belongs to a device:
adapter and head are overwritten from the received buffer before every use, so no device can see what another one
trained.
"""

import functools
import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.common.logger import log

from client_app.pruning import PruningSettings
from client_app.training import SharedModel, TrainingSettings
from conf import convert
from conf.compose import compose_config
from conf.places import local_path
from conf.schema import Config
from tasks.data.batches import Encoded, tokenise
from tasks.data.load import TaskData, load_own_data, load_task
from tasks.data.partition import partition_examples
from tasks.models.build import build_model
from tasks.models.lora import adapter_spec, get_adapter
from tasks.models.placement import KeptStates, keep_states
from tasks.models.tokenizer import load_tokenizer
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings, PrefixSettings

_HOLDOUT_STREAM = 0x686F6C64  # names the random stream of the local hold-out

OWN_FILE = "task.train_file"  # key of the node configuration
# The first pass computes what the later ones find; with less than this there is nothing to find.
_PASSES_THAT_PAY = 1.5

_Items = tuple[tuple[str, Any], ...]  # keyword arguments as a hashable value
_Source = tuple[_Items, Callable[..., TaskData]]  # the arguments of a loader, and the loader


@dataclass(frozen=True)
class Device:
    """One device: its number, its examples (``holdout`` is empty without client evaluation) and its settings."""

    number: int
    train: Encoded
    holdout: Encoded
    task: TaskData
    settings: TrainingSettings
    config: Config


def open_device(run_config: Mapping[str, Any], node_config: Mapping[str, Any]) -> Device:
    """Return the device that Flower calls; ValueError for a federation of another size or data that cannot be used."""
    config = compose_config(str(run_config.get("overrides", "")))
    number, places, partition = int(node_config["partition-id"]), config.network.num_devices, None
    if OWN_FILE in node_config:  # what its owner gave it is its partition
        file = str(node_config[OWN_FILE])
        settings = convert.task_settings(config) | {"train_file": str(local_path(file) or file), "group_column": None}
        source: _Source = tuple(settings.items()), load_own_data
    else:
        if (num_nodes := int(node_config["num-partitions"])) != places:
            raise ValueError(
                f"the federation has {num_nodes} nodes, the configuration names {places} (network.num_devices); start "
                f"it with --federation-config 'num-supernodes={places} client-resources-num-cpus=1' or use "
                "`fedlodrop run`"
            )
        source = tuple(convert.task_settings(config).items()), load_task
        partition = tuple(convert.partition_settings(config).items())
    own = _share(source, partition, number, convert.model_settings(config))
    shuffled = np.random.default_rng([_HOLDOUT_STREAM, config.run.seed, number]).permutation(len(own))
    held = int(round(config.run.client_evaluation * len(own)))
    train, holdout = own.subset(np.sort(shuffled[held:])), own.subset(np.sort(shuffled[:held]))
    return Device(number, train, holdout, _task(source), training_settings(config), config)


def training_settings(config: Config) -> TrainingSettings:
    """Return the static settings of the local training."""
    return TrainingSettings(
        **convert.local_training(config),
        mask=config.strategy.mask,
        scaled=config.strategy.scaled,
        wire_dtype=config.wire.dtype,
        downlink_dtype=convert.downlink_dtype(config),
        optimizer_state=config.strategy.optimizer_state,
        rank_exponent=convert.rank_exponent(config),
        seed=config.run.seed,
        num_rounds=config.run.num_rounds,
        privacy=convert.privacy_settings(config),
        pruning=PruningSettings(config.strategy.prune_decay, config.strategy.prune_weight),
        error_feedback=config.wire.error_feedback,
    )


def shared_model(device: Device) -> SharedModel:
    """Return this process's model for a device's configuration."""
    config, task = device.config, device.task
    model, lora, compute = (
        convert.model_settings(config),
        convert.lora_settings(config),
        convert.compute_settings(config),
    )
    shared = _shared_model(model, lora, task.num_outputs, task.kind, config.run.seed, compute)
    if _expected_passes(config, len(device.train)) < _PASSES_THAT_PAY:
        return shared
    return replace(shared, prefix=_prefix_cache(shared.model, convert.prefix_settings(config)))


def _expected_passes(config: Config, num_examples: int) -> float:
    """How often an example of a device will be trained on in the whole run, on average."""
    t, total = config.training, config.network.num_devices
    chosen = config.strategy.devices_per_round
    share = config.strategy.fraction if chosen is None else min(1.0, chosen / total)
    per_step = min(t.batch_size / num_examples, 1.0)
    per_round = float(t.local_epochs or 0) if t.local_steps is None else t.local_steps * per_step
    return config.run.num_rounds * share * per_round


@functools.lru_cache(maxsize=2)
def _shared_model(
    model: ModelSettings, lora: LoraSettings, num_outputs: int, kind: Any, seed: int, compute: ComputeSettings
) -> SharedModel:
    built = build_model(model, lora, num_outputs=num_outputs, kind=kind, seed=seed, compute=compute)
    return SharedModel(adapter_spec(built), get_adapter(built), seed, built)


# One cache per model; it goes with the model when another one takes its place.
_caches: weakref.WeakKeyDictionary[Any, dict[PrefixSettings | None, KeptStates | None]] = weakref.WeakKeyDictionary()


def _prefix_cache(model: Any, settings: PrefixSettings | None) -> KeptStates | None:
    caches = _caches.setdefault(model, {})
    if settings not in caches:
        caches.clear()
        caches[settings], reason = keep_states(model, settings)
        if reason:
            log(logging.INFO, reason)
    cache = caches[settings]
    if cache is not None:
        cache.uses += 1
        if cache.uses.bit_count() == 1 and cache.uses > 1:  # 2, 4, 8 …: often enough to follow, never a flood
            log(logging.INFO, "prefix cache after %d calls: %s", cache.uses - 1, cache.describe())
    return cache


@functools.lru_cache(maxsize=2)
def _task(source: _Source) -> TaskData:
    settings, load = source
    return load(**dict(settings))


@functools.lru_cache(maxsize=4)
def _partitions(source: _Source, partition: _Items) -> list[np.ndarray]:
    return partition_examples(_task(source).train, **dict(partition))


@functools.lru_cache(maxsize=1024)
def _share(source: _Source, partition: _Items | None, number: int, model: ModelSettings) -> Encoded:
    """Tokenise a device's examples and no others: a process that answers one message needs no more."""
    train = _task(source).train
    chosen = train if partition is None else train.subset(_partitions(source, partition)[number])
    return tokenise(_tokenizer(model), chosen)


_tokenizer = functools.lru_cache(maxsize=2)(load_tokenizer)


def forget_data() -> None:
    """Read data anew for the next device, its files may have changed; the model stays."""
    for kept in (_task, _partitions, _share):
        kept.cache_clear()
