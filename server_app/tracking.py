"""Curves while a run goes on: TensorBoard event files or Weights & Biases, fed with the same record as rounds.jsonl."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.compose import ConfigError
from conf.schema import Config, TrackingConfig

_SCORES = ("eval", "validation", "train_eval", "gap", "client_eval", "plan")
_LONGEST_NAME = 128  # of a run or a group at Weights & Biases, whose server refuses longer ones
Log = Callable[[int, dict[str, float]], None]  # takes a round and its scalars


def scalars_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the curves of a round record, named ``group/quantity`` with units."""
    rates = [device["dropout_rate"] for device in record["devices"] if device["scheduled"]]
    found: dict[str, Any] = {
        "train/loss": record.get("train_loss"),
        "devices/scheduled": len(rates),
        "devices/asked": len(record["devices"]),
        "devices/failures": len(record["failures"]),
        "devices/mean_dropout_rate": sum(rates) / len(rates) if rates else None,
        "simulated/time_s": record["sim_time_s"],
        "simulated/energy_j": record["energy_j"],
        "bytes/uplink": sum(d["uplink_bytes"] for d in record["devices"]),
        "bytes/downlink": sum(d["downlink_bytes"] for d in record["devices"]),
    }
    for block in _SCORES:
        found |= {f"{block}/{key}": value for key, value in (record.get(block) or {}).items()}
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in numbers.items() if not isinstance(value, bool)}


@contextmanager
def tracking(
    config: Config, folder: Path, rounds_done: int, report: Callable[[str], None]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open the chosen tracker, ConfigError if its package is missing, and yield a function that takes a round record.

    One that fails later is said once and left out: curves must not cost the results. ``rounds_done``: of earlier legs.
    """
    check_tracking(config.tracking)
    name = config.tracking.name
    if name == "none":
        yield lambda record: None
        return
    log, close = (_tensorboard if name == "tensorboard" else _weights_and_biases)(config, folder, rounds_done)
    works = True

    def tried(call: Callable[..., None], *values: Any) -> None:
        nonlocal works
        try:
            call(*values)
        except Exception as error:
            if works:
                report(f"tracking={name} failed and is left out from here on: {type(error).__name__}: {error}")
            works = False

    try:
        yield lambda record: tried(log, record["round"], scalars_of(record)) if works else None
    finally:
        tried(close)


def check_tracking(settings: TrackingConfig) -> None:
    """Raise ConfigError before a run starts if its tracker is an optional package that is missing."""
    if settings.name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ConfigError("tracking=wandb needs the package wandb: pip install wandb, or tracking=none")


def _tensorboard(config: Config, folder: Path, rounds_done: int) -> tuple[Log, Callable[[], None]]:
    from tensorboardX import SummaryWriter

    # The purge step hides rounds that were written after the checkpoint from which an interrupted run goes on.
    purge = rounds_done + 1 if rounds_done else None
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge, flush_secs=5)

    def log(server_round: int, scalars: dict[str, float]) -> None:
        for key, value in scalars.items():
            writer.add_scalar(key, value, server_round)
        writer.flush()

    return log, writer.close


def _weights_and_biases(config: Config, folder: Path, rounds_done: int) -> tuple[Log, Callable[[], None]]:
    import wandb

    where: dict[str, Any] = {"project": config.tracking.project, "mode": config.tracking.mode, "dir": str(folder)}
    quiet = wandb.Settings(silent=True, console="off")
    name, group = config.run.name[:_LONGEST_NAME], str(folder)[-_LONGEST_NAME:]  # a path's end tells folders apart
    run = wandb.init(name=name, group=group, config=asdict(config), settings=quiet, **where)
    return lambda server_round, scalars: run.log(scalars, step=server_round), run.finish
