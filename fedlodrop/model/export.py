"""The model of a run for other tools: a PEFT adapter or merged weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from conf.compose import ConfigError
from conf.settings import model_settings
from fedlodrop.model.load import TrainedModel, load_trained
from server_app.results import make_readable
from tasks.export.card import base_license
from tasks.export.merged_model import save_merged, save_tokenizer
from tasks.export.peft_adapter import save_adapter
from tasks.export.transformers_names import transformers_layout

FORMATS = ("peft", "merged")


def export(folder: Path, to: str, target: Path) -> str:
    """Write the model of a run into a new folder, completely or not at all.

    Returns
    -------
    str
        Why only this project loads the adapter; "" where transformers and PEFT do.

    Raises
    ------
    ConfigError
        If the format is none of `FORMATS`, the target exists, or the format cannot express the model.
    """
    if to not in FORMATS:
        raise ConfigError(f"--to must be one of {', '.join(FORMATS)}, found {to!r}")
    if target.exists():
        raise ConfigError(f"{target} already exists; choose another --out")
    trained = load_trained(folder)
    if to == "peft" and trained.base_changed:
        raise ConfigError(
            f"{trained.config.strategy.name} also changed the base, which an adapter alone cannot express; "
            "use --to merged"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".export.{os.getpid()}.tmp"
    temporary = work / target.name  # the card names the folder as it will be called
    temporary.mkdir(parents=True)
    try:
        reason = _write(trained, to, temporary)
        make_readable(temporary.rglob("*"), like=temporary / "README.md")
        temporary.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return reason


def _write(trained: TrainedModel, to: str, folder: Path) -> str:
    labels = trained.label_names
    if to != "peft":
        save_merged(trained.model, trained.tokenizer, folder, label_names=labels)
        return ""
    license_name = base_license(model_settings(trained.config), online=True)
    found = transformers_layout(trained.model)
    reason, layout = (found, None) if isinstance(found, str) else ("", found)
    save_adapter(trained.model, folder, label_names=labels, license_name=license_name, layout=layout)
    save_tokenizer(trained.tokenizer, folder)
    return reason
