"""Federations with hostile devices: how far they move the model, by attack, their number and the average.

Every case is a federation of the real apps in this process, in which some devices, drawn with the seed, answer
something else than they should. Cases that are finished in the folder are not run again; the table is printed as
Markdown.

    python -m benchmarks.poisoning run.num_rounds=6 --out poisoning --seeds 0 1 2
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np

import client_app.app
import client_app.training
from adapter.announcement import DeviceAnnouncement
from conf.compose import compose_config, join_overrides
from fedlodrop.study.runner import FINISHED, Task, message, run_tasks, status
from fedlodrop.study.tables import markdown

_HOSTILE_STREAM = 0x686F7374  # names the random stream of who is hostile and of what noise they send
BILLION = 10**9

Flat = np.ndarray
ATTACKS: dict[str, Callable[[Flat, np.random.Generator], Flat]] = {
    "sign flip": lambda flat, _: -flat,
    "scaled": lambda flat, _: -10 * flat,  # the sign flip, ten times as long
    "noise": lambda flat, rng: _noise(flat, rng),
    "label flip": lambda flat, _: flat,  # trained on labels counted from the other end
    "claim": lambda flat, _: -flat,  # the sign flip of a device that announces a billion examples
}
# What the server does: settings for b hostile devices of K.
AVERAGES: dict[str, Callable[[int, int], tuple[str, ...]]] = {
    "unprotected": lambda b, k: ("strategy.clip_factor=null", "strategy.max_weight=null"),
    "default": lambda b, k: (),
    "trimmed mean": lambda b, k: ("strategy.robust=trimmed_mean", f"strategy.trim={max(b, 1) / k:g}"),
    "median": lambda b, k: ("strategy.robust=median", f"strategy.trim={max(b, 1) / k:g}"),
    "multi-Krum": lambda b, k: ("strategy.robust=multi_krum", f"strategy.trim={max(b, 1) / k:g}"),
    "geometric median": lambda b, k: ("strategy.robust=geometric_median", f"strategy.trim={max(b, 1) / k:g}"),
}
_QUICK = ("tracking=none", "run.eval_every=1000", "run.train_eval_size=16")  # scores of the last round alone are enough


@dataclass(frozen=True)
class Case:
    """One federation."""

    attack: str
    hostile: int
    average: str
    seed: int

    def folder(self, out: Path) -> Path:
        """Where its run lies."""
        return out / f"{self.attack}-{self.hostile}-{self.average}-{self.seed}".replace(" ", "_")


def _noise(flat: Flat, rng: np.random.Generator) -> Flat:
    """Return Gaussian noise ten times as long as the change."""
    noise = rng.standard_normal(flat.size)
    return (10 * np.linalg.norm(flat) / np.linalg.norm(noise) * noise).astype(flat.dtype)


@contextmanager
def hostile(attack: str, devices: frozenset[int], seed: int) -> Iterator[None]:
    """Let some devices of this process attack."""
    honest = client_app.training.train_round

    def train_round(
        shared: Any, data: Any, parcel: Any, instruction: Any, settings: Any, device: int, memory: Any
    ) -> Any:
        bad = device in devices
        if bad and attack == "label flip":
            data = replace(data, labels=data.labels.max() - data.labels)
        flat, report = honest(shared, data, parcel, instruction, settings, device, memory)
        if not bad:
            return flat, report
        rng = np.random.default_rng([_HOSTILE_STREAM, seed, instruction.server_round, device])
        examples = BILLION if attack == "claim" else report.num_examples
        return ATTACKS[attack](flat, rng), replace(report, num_examples=examples)

    def announcement(number: int, examples: int, *rest: Any) -> DeviceAnnouncement:
        return DeviceAnnouncement(number, BILLION if attack == "claim" and number in devices else examples, *rest)

    with (
        patch.object(client_app.training, "train_round", train_round),
        patch.object(client_app.app, "DeviceAnnouncement", announcement),
    ):
        yield


def run_case(case: Case, overrides: Sequence[str], out: Path) -> float:
    """Return the score after the last round of a case, run unless its folder is finished; RuntimeError if it failed."""
    devices = compose_config(join_overrides(overrides)).network.num_devices
    drawn = np.random.default_rng([_HOSTILE_STREAM, case.seed]).permutation(devices)[: case.hostile]
    items = (*_QUICK, f"run.seed={case.seed}", *AVERAGES[case.average](case.hostile, devices), *overrides)
    folder = case.folder(out)
    with hostile(case.attack, frozenset(drawn.tolist()), case.seed):
        run_tasks([Task(folder, items, folder.name)], out, 0, print)
    if status(folder) != FINISHED:
        raise RuntimeError(f"{folder.name}: {message(folder)}")
    summary = json.loads((folder / "summary.json").read_text())
    return float(summary["final"]["eval"][summary["primary_metric"]])


def table(scores: dict[Case, float]) -> str:
    """Return the mean score over the seeds, one line per attack and number of hostile devices, as Markdown."""
    averages = [name for name in AVERAGES if any(case.average == name for case in scores)]
    rows = []
    for attack, count in product(ATTACKS, sorted({case.hostile for case in scores})):
        cells = []
        for name in averages:
            wanted = (attack, count, name)
            found = [score for case, score in scores.items() if (case.attack, case.hostile, case.average) == wanted]
            spread = f"{min(found):.2f} to {max(found):.2f}, " if len(found) > 1 else ""
            cells.append(f"{mean(found):.3f} ({spread}n={len(found)})" if found else "")
        if any(cells):
            rows.append((attack if count else "none", count, *cells))
    return markdown(("attack", "hostile", *averages), rows).rstrip()


def main() -> None:
    """Run what is missing of a study, case by case, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="settings of the federation, as for fedlodrop run")
    parser.add_argument("--out", type=Path, default=Path("poisoning"), help="folder of the runs, for these settings")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--averages", nargs="+", choices=AVERAGES, default=list(AVERAGES))
    parser.add_argument("--hostile", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_intermixed_args()
    cases = (
        Case(attack, count, average, seed)
        for seed, count, attack, average in product(given.seeds, given.hostile, given.attacks, given.averages)
        if count or attack == given.attacks[0]  # without hostile devices all attacks are one
    )
    print(table({case: run_case(case, given.overrides, given.out) for case in cases}))


if __name__ == "__main__":
    main()
