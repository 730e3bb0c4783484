"""The model of a run, rebuilt: adapter, head, and the change of the base for methods that make one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from adapter import AdapterSpec, AdapterState
from conf.compose import ConfigError, read_config
from conf.convert import lora_settings, model_settings
from conf.schema import Config
from server_app.build import load_data
from server_app.checkpoint import load_checkpoint
from server_app.results import BASE_DELTA
from strategy import method
from tasks.models.build import build_model, describe_model
from tasks.models.lora import set_adapter
from tasks.models.tokenizer import TextTokenizer, load_tokenizer
from tasks.settings import ComputeSettings, Kind


@dataclass
class TrainedModel:
    """The model of a run after its last finished round, in evaluation mode, and what it belongs to."""

    config: Config
    model: Any
    tokenizer: TextTokenizer
    kind: Kind
    label_names: tuple[str, ...]
    base_changed: bool


def load_trained(folder: str | Path) -> TrainedModel:
    """Rebuild the model of a run from its checkpoint or, where that was thrown away, from the saved adapter.

    ConfigError or CheckpointError if the folder holds no run, no finished round, or a personalised method's run.
    """
    folder = Path(folder)
    config = read_config(folder / "config.yaml")
    if method(config.strategy.name).personalised:
        name = config.strategy.name
        raise ConfigError(f"{folder}: {name} ends with one model per device, which they keep; none to load here")
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    if "label_names" in summary:
        kind, labels = summary["task_kind"], tuple(summary["label_names"])
    else:
        task = load_data(config)
        kind, labels = task.kind, task.label_names
    outputs, model, lora = len(labels) or 1, model_settings(config), lora_settings(config)
    spec = describe_model(model, lora, outputs, kind=kind).spec
    saved = path.exists() and not (folder / "checkpoint").exists()
    state = _saved_state(folder, spec) if saved else load_checkpoint(folder, spec).state
    # float32: merging into bfloat16 would round small changes away
    compute = ComputeSettings(dtype="float32")
    built = build_model(model, lora, num_outputs=outputs, kind=kind, seed=config.run.seed, compute=compute)
    set_adapter(built, state)
    return TrainedModel(config, built.eval(), load_tokenizer(model), kind, labels, bool(state.base))


def _saved_state(folder: Path, spec: AdapterSpec) -> AdapterState:
    """Read what a finished run saved: the adapter in PEFT's format and the change of the base."""
    try:
        saved = load_file(folder / "adapter" / "adapter_model.safetensors")
        lora_A, lora_B = ({m.name: saved[f"{m.name}.{p}.weight"] for m in spec.modules} for p in ("lora_A", "lora_B"))
        head = {name: saved[name] for name, _ in spec.head}
    except (OSError, KeyError) as error:
        raise ConfigError(f"{folder}: expected the results folder of a finished run ({error})") from error
    base = load_file(folder / BASE_DELTA) if (folder / BASE_DELTA).exists() else {}
    return AdapterState(lora_A, lora_B, head, base)
