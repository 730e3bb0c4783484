"""What a run saves of its model at its end: the adapter for PEFT and the change of the base, where there is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from adapter import AdapterState
from conf.schema import Config
from optimizer.atomic import written_whole
from server_app.results import make_readable
from strategy import method
from tasks.export.peft_adapter import save_adapter
from tasks.models.build import set_adapter

BASE_DELTA = "base_delta.safetensors"


def save_trained(folder: Path, model: Any, state: AdapterState, config: Config, label_names: Sequence[str]) -> None:
    """Write ``adapter/`` in PEFT's format and the changes of frozen weights, (out_features, in_features) by module."""
    set_adapter(model, state)
    save_adapter(model, folder / "adapter", label_names=label_names, incomplete=_incomplete(config, state))
    if state.base:
        with written_whole(folder / BASE_DELTA) as temporary:
            save_file(state.base, temporary)
    make_readable([*(folder / "adapter").iterdir(), folder / BASE_DELTA], like=folder / "config.yaml")


def _incomplete(config: Config, state: AdapterState) -> str:
    """Say why the factors that the server holds are no trained model; "" where they are one."""
    name, alone = config.strategy.name, "These factors alone are no trained model"
    if method(name).personalised:
        return f"{alone}: with {name} every device keeps the rest of its own, and only what all devices share is here."
    if state.base:
        written = f"lies in `{BASE_DELTA}` beside this folder; `fedlodrop export RUN --to merged` writes the whole"
        return f"{alone}: {name} also changed the base. Its change {written}."
    return ""
