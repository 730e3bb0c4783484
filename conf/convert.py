"""From configuration objects, which stop here, to the plain settings that both apps build model and data from."""

import hashlib
import math
from typing import Any, cast

from adapter.plugins import plugin_source
from adapter.privacy import PrivacySettings
from conf.compose import DEVICE_PACKAGES, source_digest
from conf.places import local_path
from conf.schema import Config
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings, PrefixSettings


def model_settings(config: Config) -> ModelSettings:
    """Return the base model's settings; a hub id that is no path here stays what it is."""
    m = config.model
    template = m.chat_template if "{" in (m.chat_template or "") else _file(m.chat_template)
    return ModelSettings(
        **{**vars(m), "path": _file(m.path), "gguf_file": _file(m.gguf_file), "chat_template": template}
    )


def lora_settings(config: Config) -> LoraSettings:
    """Return the adapter's settings."""
    c = config.lora
    rest = {**vars(c), "target_modules": _tuple(c.target_modules)}
    s, places = config.strategy, config.network.num_devices
    asked = min(s.devices_per_round or math.ceil(s.fraction * places - 1e-9), places)
    alpha = rest.pop("alpha") * (asked**0.5 if rest.pop("scale_by_devices") else 1.0)
    return LoraSettings(lora_alpha=alpha, **rest)


def bound_constants(config: Config) -> dict[str, float]:
    """Return the constants of the two-term bound, by the names of `optimizer.problem.BoundConstants`."""
    others = ("pilot", "time_exponent", "time_exponent_growth", "gap_exponent", "refit")
    return {name: value for name, value in vars(config.bound).items() if name not in others}


def compute_settings(config: Config) -> ComputeSettings:
    """Return how models are computed."""
    t = config.training
    return ComputeSettings(t.fused_lora, cast(Any, t.dtype), cast(Any, t.device), t.gradient_checkpointing)


def prefix_settings(config: Config) -> PrefixSettings | None:
    """Return where the frozen prefix's states are kept, None for nowhere."""
    t = config.training
    if t.prefix_cache == "off":
        return None
    return PrefixSettings(t.prefix_cache_mib, t.prefix_cache_disk_mib, t.prefix_cache_dir)


def device_code(config: Config) -> bytes:
    """Return the digest of what a device runs, 8 bytes: our packages; with modules of the user's own, 4 for each."""
    ours = source_digest(DEVICE_PACKAGES)
    own = plugin_source(config.task.name, "task.class") + plugin_source(config.partition.kind, "partition.class")
    return ours[:4] + hashlib.sha256(own).digest()[:4] if own else ours


def task_settings(config: Config) -> dict[str, Any]:
    """Return the keyword arguments of `tasks.data.load.load_task`, all hashable."""
    t = config.task
    files = {name: _file(getattr(t, name)) for name in ("train_file", "validation_file", "dataset")}
    lists = {"text_columns": _tuple(t.text_columns), "labels": _tuple(t.labels)}
    return {**vars(t), **files, **lists, "seed": config.run.seed}


def partition_settings(config: Config) -> dict[str, Any]:
    """Return the keyword arguments of `tasks.data.partition.partition_examples`, all hashable."""
    return {**vars(config.partition), "num_devices": config.network.num_devices, "seed": config.run.seed}


def downlink_dtype(config: Config) -> str:
    """Return the number type of the values the server sends: fp16 unless the changes travel in full precision."""
    return config.wire.downlink_dtype or ("fp32" if config.wire.dtype == "fp32" else "fp16")


def privacy_settings(config: Config) -> PrivacySettings:
    """Return what a device does to its changes before they leave it; the noise of the central model is the server's."""
    p = config.privacy
    return PrivacySettings(p.clip_norm, p.noise_multiplier if p.model == "local" else 0.0, p.noise_seed)


def rank_exponent(config: Config) -> float:
    """Return e of a device's scale s (r / r')**e at rank r': alpha / r' (rsLoRA: alpha / sqrt r'), or the common s."""
    if config.strategy.rank_scaling == "common":
        return 0.0
    return 0.5 if config.lora.use_rslora else 1.0


def _file(path: str | None) -> str | None:
    return path if path is None else str(local_path(path) or path)


def _tuple(items: list[Any] | None) -> tuple[Any, ...] | None:
    return None if items is None else tuple(items)
