"""What a process keeps between calls: the base model, the tokenised data and its partition, each loaded once.

Flower runs many devices in one process, and one device in many processes. Nothing kept here belongs to a device:
adapter and head are overwritten from the received buffer before every use, so no device can see what another one
trained.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.common.logger import log

from client_app.memory import Start
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
# The first pass computes what the later ones find, in larger batches than training's: little more than one pass pays
# (`experiment=llm`, 1.3 passes: 236 instead of 270 s).
_PASSES_THAT_PAY = 1.2

_Items = tuple[tuple[str, Any], ...]  # keyword arguments as a hashable value
_Source = tuple[_Items, Callable[..., TaskData]]  # the arguments of a loader, and the loader


@dataclass(frozen=True)
class Device:
    """One device: its number, its examples (``holdout`` is empty without client evaluation) and its configuration."""

    number: int
    train: Encoded
    holdout: Encoded
    task: TaskData
    config: Config


@dataclass(frozen=True)
class SharedModel(Start):
    """A model that all devices of a process use in turn, and what it was built with."""

    model: Any
    prefix: KeptStates | None = None
    caches: dict[PrefixSettings | None, KeptStates | None] = field(default_factory=dict)  # one, with its settings

    def examples(self, data: Encoded) -> Encoded:
        """Return a device's examples, their frozen lower layers' states in place of token ids where these are kept."""
        return data if self.prefix is None else self.prefix.source(data)


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
    return Device(number, train, holdout, _task(source), config)


def shared_model(device: Device) -> SharedModel:
    """Return this process's model for a device's configuration."""
    config, task = device.config, device.task
    model, lora = convert.model_settings(config), convert.lora_settings(config)
    compute = convert.compute_settings(config)
    shape = ("num_outputs", task.num_outputs), ("kind", task.kind), ("seed", config.run.seed)
    shared, prefix = _shared_model(model, lora, shape, compute), convert.prefix_settings(config)
    if _expected_passes(config, len(device.train)) < _PASSES_THAT_PAY:
        return shared
    if prefix not in shared.caches:
        shared.caches.clear()
        shared.caches[prefix], reason = keep_states(shared.model, prefix)
        if reason:
            log(logging.INFO, reason)
    return replace(shared, prefix=shared.caches[prefix])


def _expected_passes(config: Config, num_examples: int) -> float:
    """How often an example of a device will be trained on in the whole run, on average."""
    t, total = config.training, config.network.num_devices
    chosen = config.strategy.devices_per_round
    share = config.strategy.fraction if chosen is None else min(1.0, chosen / total)
    per_step = min(t.batch_size / num_examples, 1.0)
    per_round = float(t.local_epochs or 0) if t.local_steps is None else t.local_steps * per_step
    return config.run.num_rounds * share * per_round


@functools.lru_cache(maxsize=2)
def _shared_model(model: ModelSettings, lora: LoraSettings, shape: _Items, compute: ComputeSettings) -> SharedModel:
    built = build_model(model, lora, compute=compute, **dict(shape))
    return SharedModel(adapter_spec(built), get_adapter(built), dict(shape)["seed"], built)


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
