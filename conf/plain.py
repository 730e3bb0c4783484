"""Configuration objects stop here: the plain settings that both apps build their model and data from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from adapter.privacy import PrivacySettings
from conf.compose import local_path
from conf.schema import Config
from tasks.settings import ComputeSettings, LoraSettings, ModelSettings, PrefixSettings


def model_settings(config: Config) -> ModelSettings:
    """Return the base model's settings."""
    m = config.model
    path = m.path if m.path is None else str(local_path(m.path) or m.path)  # a hub id stays what it is
    return ModelSettings(
        name=cast(Any, m.name),
        path=path,
        pooling=cast(Any, m.pooling),
        head=cast(Any, m.head),
        freeze_head=m.freeze_head,
        dropout=m.dropout,
        max_tokens=m.max_tokens,
        hidden_size=m.hidden_size,
        load_in_4bit=m.load_in_4bit,
        gguf_file=_file(m.gguf_file),
    )


def lora_settings(config: Config) -> LoraSettings:
    """Return the adapter's settings."""
    c = config.lora
    targets = None if c.target_modules is None else tuple(c.target_modules)
    return LoraSettings(r=c.r, lora_alpha=c.alpha, use_rslora=c.use_rslora, target_modules=targets, layers=c.layers)


def compute_settings(config: Config) -> ComputeSettings:
    """Return how models are computed."""
    t = config.training
    return ComputeSettings(fused_lora=t.fused_lora, dtype=cast(Any, t.dtype), device=cast(Any, t.device))


def prefix_settings(config: Config) -> PrefixSettings | None:
    """Return where the frozen prefix's states are kept, None for nowhere."""
    t = config.training
    if t.prefix_cache == "off":
        return None
    return PrefixSettings(t.prefix_cache_mib, t.prefix_cache_disk_mib, t.prefix_cache_dir)


def local_training(config: Config) -> dict[str, Any]:
    """Return the keys of `conf/training` that decide what is learnt; the others decide how fast."""
    speed = {
        "fused_lora",
        "dtype",
        "device",
        "prefix_cache",
        "prefix_cache_mib",
        "prefix_cache_disk_mib",
        "prefix_cache_dir",
    }
    return {name: value for name, value in asdict(config.training).items() if name not in speed}


def task_settings(config: Config) -> dict[str, Any]:
    """Return the keyword arguments of `tasks.data.load.load_task`, all hashable."""
    t = config.task
    return {
        "name": t.name,
        "seed": config.run.seed,
        "train_file": _file(t.train_file),
        "validation_file": _file(t.validation_file),
        "text_columns": None if t.text_columns is None else tuple(t.text_columns),
        "label_column": t.label_column,
        "group_column": t.group_column,
        "kind": t.kind,
        "train_limit": t.train_limit,
        "validation_limit": t.validation_limit,
        "holdout": t.holdout,
        "label_noise": t.label_noise,
        "labels": None if t.labels is None else tuple(t.labels),
    }


def partition_settings(config: Config) -> dict[str, Any]:
    """Return the keyword arguments of `tasks.data.partition.partition_examples`, all hashable."""
    p = config.partition
    return {
        "num_devices": config.network.num_devices,
        "kind": p.kind,
        "alpha": p.alpha,
        "min_size": p.min_size,
        "seed": config.run.seed,
    }


def downlink_dtype(config: Config) -> str:
    """Return the number type of the values the server sends: fp16 unless the changes travel in full precision."""
    return config.wire.downlink_dtype or ("fp32" if config.wire.dtype == "fp32" else "fp16")


def privacy_settings(config: Config) -> PrivacySettings:
    """Return what a device does to its changes before they leave it."""
    p = config.privacy
    return PrivacySettings(p.clip_norm, p.noise_multiplier, p.noise_seed)


def first_factors(config: Config) -> tuple[str, ...]:
    """Return the factors that train and travel in the first round."""
    return ("A", "B") if config.strategy.factors == "both" else ("B",)


def rank_exponent(config: Config) -> float:
    """Return e of a device's scale s (r / r')**e at rank r': alpha / r' (rsLoRA: alpha / sqrt r'), or the common s."""
    if config.strategy.rank_scaling == "common":
        return 0.0
    return 0.5 if config.lora.use_rslora else 1.0


def _file(path: str | None) -> str | None:
    return path if path is None else str(local_path(path) or path)
