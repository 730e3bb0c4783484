"""Whole runs on Flower's simulation: ours and the baseline, each as a command of its own, measured from outside."""

import json
import os
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.setting import Setting
from benchmarks.watch import Usage, watch
from conf.compose import ROOT, compose_config, join_overrides
from server_app.engines.flower import EngineError, FlowerEngine

BASELINE = ROOT / "benchmarks" / "baseline_app"


def run_ours(setting: Setting, folder: Path) -> dict[str, Any]:
    """Run `fedlodrop run` and return its figures; a run that fails is a RuntimeError."""
    command = [str(Path(sys.executable).parent / "fedlodrop"), "run", *setting.overrides, f"run.dir='{folder}'"]
    usage = _measured(command, folder)
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    metric = summary["primary_metric"]
    return {
        **_figures(usage),
        "accuracy": rounds[-1]["eval"][metric],
        "start_s": rounds[0]["first_step_at"] - usage.began_at,
        "overhead": median(overhead_share(record) for record in rounds),
    }


def run_baseline(setting: Setting, folder: Path) -> dict[str, Any]:
    """Run the baseline app on the same engine and return its figures; a run that fails is a RuntimeError."""
    command = [sys.executable, "-P", "-m", "benchmarks.federations", json.dumps(baseline_config(setting)), str(folder)]
    usage = _measured(command, folder)
    scores = json.loads((folder / "summary.json").read_text())["rounds"]
    return {**_figures(usage), "accuracy": scores[-1]["accuracy"]}


def baseline_config(setting: Setting) -> dict[str, Any]:
    """Return the baseline's run configuration, its learning rates and steps taken from ours."""
    config = compose_config(join_overrides(setting.overrides))
    t = config.training
    defaults = tomllib.loads((BASELINE / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return {
        **defaults,
        "task": setting.task,
        "train-file": setting.train_file,
        "test-file": setting.test_file,
        "train-limit": setting.train_limit,
        "num-devices": setting.num_devices,
        "num-rounds": setting.num_rounds,
        "local-steps": t.local_steps,
        "batch-size": t.batch_size,
        "lr": t.lr,
        "head-lr": t.head_lr or t.lr,
        "lora-r": config.lora.r,
        "lora-alpha": int(config.lora.alpha),
        "seed": config.run.seed,
        "max-length": setting.baseline_tokens,
    }


def overhead_share(record: dict[str, Any], workers: int | None = None) -> float:
    """Share of a round's wall time (``record`` is a line of rounds.jsonl) that is neither training nor evaluation.

    Training counts as if the workers (one per core, if not given) had shared it without a gap, so waiting for the last
    device is overhead too.
    """
    count = workers or os.cpu_count() or 1
    trained_s = sum(device["train_s"] or 0.0 for device in record["devices"]) / count
    return 1.0 - (trained_s + record.get("eval_s", 0.0)) / float(record["wall_s"])


def _figures(usage: Usage) -> dict[str, Any]:
    figures = asdict(usage)
    return {name: figures[name] for name in ("cpu_s", "wall_s", "worker_peak_rss_mib", "by_process")}


def _measured(command: list[str], folder: Path) -> Usage:
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    usage = watch(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, log=log)
    if usage.code:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(
            f"a measured run failed ({' '.join(command[:3])}): {lines[-1] if lines else usage.code}; see {log}"
        )
    return usage


def main() -> None:
    """Run the baseline once: `python -m benchmarks.federations CONFIG_JSON FOLDER`."""
    config, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with FlowerEngine(folder / "flower.log") as engine:
        engine.wait_ready()
        run_config = {**config, "out": str(folder / "summary.json")}
        run_id = engine.submit_app(BASELINE, run_config, config["num-devices"])
        status = engine.wait(run_id, folder)
    if status != "finished:completed":
        raise EngineError(f"the baseline ended as {status}; see {folder / 'flower.log'}")


if __name__ == "__main__":
    main()
