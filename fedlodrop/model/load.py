"""The model a run ended with, exactly: adapter, head, and the change of the base for methods that make one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from adapter import AdapterState
from conf.compose import ConfigError, read_config
from conf.schema import Config
from conf.settings import lora_settings, model_settings
from server_app.trained import BASE_DELTA
from strategy import STRATEGIES
from tasks.models.build import adapter_spec, build_model, set_adapter


def check_single(config: Config, folder: Path) -> None:
    """Refuse the run of a personalised method.

    Raises
    ------
    ConfigError
        If every device ends with a model of its own.
    """
    if STRATEGIES[config.strategy.name].personalised:
        raise ConfigError(
            f"{folder}: {config.strategy.name} ends with one model per device, which the devices keep; "
            "there is no single one to load, export or ask"
        )


def load_result(folder: str | Path) -> Any:
    """Rebuild the final model of a finished run.

    Parameters
    ----------
    folder : str or Path
        A results folder with ``config.yaml``, ``summary.json`` and ``adapter/``.

    Returns
    -------
    peft.PeftModel
        In evaluation mode, with base, factors and head as the server evaluated them last.

    Raises
    ------
    ConfigError
        If the folder does not hold a finished run, or one of a personalised method, which has no single model.
    """
    folder = Path(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        config = read_config(folder / "config.yaml")
        saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: expected the results folder of a finished run ({error})") from error
    check_single(config, folder)
    model = build_model(
        model_settings(config),
        lora_settings(config),
        num_outputs=summary["num_outputs"],
        kind=summary["kind"],
        seed=config.run.seed,
    )
    spec = adapter_spec(model)
    lora_A, lora_B = ({m.name: saved[f"{m.name}.{part}.weight"] for m in spec.modules} for part in ("lora_A", "lora_B"))
    base = load_file(folder / BASE_DELTA) if (folder / BASE_DELTA).exists() else {}
    set_adapter(model, AdapterState(lora_A, lora_B, {name: saved[name] for name, _ in spec.head}, base))
    return model
