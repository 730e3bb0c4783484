"""Federations with hostile devices: how far they move the model, by attack, their number and the average.

Every case is a federation of the real apps in this process, in which some devices, drawn with the seed, answer
something else than they should. Cases that are finished in the folder are not run again; the table is printed as
Markdown.

    python -m benchmarks.poisoning run.num_rounds=6 --out poisoning --seeds 0 1 2
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

import client_app.app
import client_app.training
from adapter.protocol import DeviceAnnouncement
from conf.compose import compose_config, join_overrides
from fedlodrop.study.runner import FINISHED, Task, message, run_tasks, status
from fedlodrop.study.tables import markdown

_HOSTILE_STREAM = 0x686F7374  # names the random stream of who is hostile and of what noise they send
BILLION = 10**9
# By what a change is multiplied. Noise comes in its place, ten times as long; a label flip trains on labels counted
# from the other end; a claim is the sign flip of a device that announces a billion examples.
ATTACKS = {"sign flip": -1, "scaled": -10, "noise": 0, "label flip": 1, "claim": -1}
AVERAGES = ("unprotected", "default", "trimmed_mean", "median", "multi_krum", "geometric_median")
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
        return out / "-".join(map(str, astuple(self))).replace(" ", "_")

    def settings(self, devices: int) -> tuple[str, ...]:
        """What the server does about the hostile ones of so many devices."""
        if self.average == "unprotected":
            return "strategy.clip_factor=null", "strategy.max_weight=null"
        robust = f"strategy.robust={self.average}", f"strategy.trim={max(self.hostile, 1) / devices:g}"
        return () if self.average == "default" else robust


def poisoned(attack: str, flat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what a hostile device sends in place of its change."""
    noise = rng.standard_normal(flat.size)
    noise *= (attack == "noise") * 10 * np.linalg.norm(flat) / np.linalg.norm(noise)
    return (ATTACKS[attack] * flat + noise).astype(flat.dtype)


@contextmanager
def hostile(attack: str, devices: frozenset[int], seed: int) -> Iterator[None]:
    """Let some devices of this process attack."""
    honest = client_app.training.train_round

    def train_round(shared, device, *rest):  # type: ignore[no-untyped-def]
        if device.number not in devices:
            return honest(shared, device, *rest)
        if attack == "label flip":
            labels = device.train.labels
            device = replace(device, train=replace(device.train, labels=labels.max() - labels))
        flat, report = honest(shared, device, *rest)
        rng = np.random.default_rng([_HOSTILE_STREAM, seed, report.server_round, device.number])
        examples = BILLION if attack == "claim" else report.num_examples
        return poisoned(attack, flat, rng), replace(report, num_examples=examples)

    def announcement(number: int, examples: int, *rest: Any) -> DeviceAnnouncement:
        return DeviceAnnouncement(number, BILLION if attack == "claim" and number in devices else examples, *rest)

    claims = patch.object(client_app.app, "DeviceAnnouncement", announcement)
    with patch.object(client_app.training, "train_round", train_round), claims:
        yield


def run_case(case: Case, overrides: Sequence[str], out: Path) -> float:
    """Return the score after the last round of a case, run unless its folder is finished; RuntimeError if it failed."""
    devices = compose_config(join_overrides(overrides)).network.num_devices
    drawn = np.random.default_rng([_HOSTILE_STREAM, case.seed]).permutation(devices)[: case.hostile]
    items = (*_QUICK, f"run.seed={case.seed}", *case.settings(devices), *overrides)
    folder = case.folder(out)
    with hostile(case.attack, frozenset(drawn.tolist()), case.seed):
        run_tasks([Task(folder, items, folder.name)], out, 0, print)
    if status(folder) != FINISHED:
        raise RuntimeError(f"{folder.name}: {message(folder)}")
    summary = json.loads((folder / "summary.json").read_text())
    return float(summary["final"]["eval"][summary["primary_metric"]])


def table(scores: dict[Case, float]) -> str:
    """Return the mean score over the seeds, one line per attack and number of hostile devices, as Markdown."""
    frame = pd.DataFrame([asdict(case) | {"score": score} for case, score in scores.items()])
    frame.loc[frame["hostile"] == 0, "attack"] = "none"
    cells = frame.groupby(["attack", "hostile", "average"], sort=False)["score"].agg(_cell).unstack(sort=False)
    rows = cells[[name for name in AVERAGES if name in cells]].fillna("").reset_index()
    return markdown(rows.columns, rows.to_numpy().tolist()).rstrip()


def _cell(found: pd.Series) -> str:
    spread = f"{found.min():.2f} to {found.max():.2f}, " if len(found) > 1 else ""
    return f"{found.mean():.3f} ({spread}n={len(found)})"


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
        for attack, count, average, seed in product(given.attacks, given.hostile, given.averages, given.seeds)
        if count or attack == given.attacks[0]  # without hostile devices all attacks are one
    )
    print(table({case: run_case(case, given.overrides, given.out) for case in cases}))


if __name__ == "__main__":
    main()
