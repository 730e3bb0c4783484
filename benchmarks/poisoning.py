"""Federations with hostile devices: how far they move the model, by attack, their number and the average.

Run as `python -m benchmarks.poisoning [OVERRIDE ...]`; every case is a federation of the real apps in this process, in
which some devices, drawn with the seed, answer something else than they should. Finished cases are lines of a file, so
an interrupted study goes on where it stopped; the table is printed as Markdown.

    python -m benchmarks.poisoning run.num_rounds=6 --out poisoning.jsonl --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

import client_app.app
import client_app.training
from adapter.announcement import DeviceAnnouncement
from conf.compose import compose_config, join_overrides
from server_app.engines.in_process import run_in_process
from server_app.results import read_rounds

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
}
# Scores of the last round alone are enough.
_QUICK = ("run.engine=local", "tracking=none", "run.eval_every=1000", "run.train_eval_size=16")


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


def run_case(attack: str, count: int, average: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Run one federation and return its score after the last round.

    Raises
    ------
    RuntimeError
        If the run failed.
    """
    devices = compose_config(join_overrides(overrides)).network.num_devices
    drawn = np.random.default_rng([_HOSTILE_STREAM, seed]).permutation(devices)[:count]
    with TemporaryDirectory(prefix="fedlodrop-poisoning-") as folder, hostile(attack, frozenset(map(int, drawn)), seed):
        items = [*_QUICK, f"run.seed={seed}", *AVERAGES[average](count, devices), *overrides, f"run.dir='{folder}'"]
        code = run_in_process(join_overrides(items), devices)
        if code:
            raise RuntimeError(f"{attack}, {count} hostile, {average}, seed {seed}: the run ended with code {code}")
        summary = json.loads((Path(folder) / "summary.json").read_text())
        last = read_rounds(Path(folder))[-1]
    unmoved = last.get("robust", {}).get("unmoved")
    return {"score": last["eval"][summary["primary_metric"]], "rounds": last["round"], "unmoved": unmoved}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the mean score over the seeds, one line per attack and number of hostile devices, as Markdown."""
    averages = [name for name in AVERAGES if any(row["average"] == name for row in rows)]
    lines = ["| attack | hostile | " + " | ".join(averages) + " |", "|---|---|" + "---|" * len(averages)]
    cases = {(row["hostile"], row["attack"]) for row in rows}
    for count, attack in sorted(cases, key=lambda case: (list(ATTACKS).index(case[1]), case[0])):
        cells = []
        for name in averages:
            case = (attack, count, name)
            found = [row["score"] for row in rows if (row["attack"], row["hostile"], row["average"]) == case]
            spread = f"{min(found):.2f} to {max(found):.2f}, " if len(found) > 1 else ""
            cells.append(f"{mean(found):.3f} ({spread}n={len(found)})" if found else "")
        lines.append(f"| {attack if count else 'none'} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing of a study, case by case, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="settings of the federation, as for fedlodrop run")
    parser.add_argument("--out", type=Path, default=Path("poisoning.jsonl"), help="finished cases, one line each")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--averages", nargs="+", choices=AVERAGES, default=list(AVERAGES))
    parser.add_argument("--hostile", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_intermixed_args()
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    cases = (
        {"attack": attack, "hostile": count, "average": average, "seed": seed, "with": given.overrides}
        for seed in given.seeds
        for count in given.hostile
        for attack in given.attacks[: None if count else 1]  # without hostile devices all attacks are one
        for average in given.averages
    )
    for case in cases:
        if not any(all(row[key] == value for key, value in case.items()) for row in rows):
            found = run_case(case["attack"], case["hostile"], case["average"], case["seed"], given.overrides)
            rows.append(case | found)
            with given.out.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(rows[-1]) + "\n")
    print(table([row for row in rows if row["with"] == given.overrides]))


if __name__ == "__main__":
    main()
