"""Bytes of one device per round, up and down, with the options that change messages, from real messages.

Run as `python -m benchmarks.traffic`: short runs of MiniLM in this process, four devices of one class, rank 8 in all 12
modules, everybody served; prints a table of kilobytes in rounds 1 to 4, headers and head included.
"""

import json
import tempfile
from pathlib import Path

from conf.compose import join_overrides, split_overrides
from server_app.engines.in_process import run_in_process

_SMALL = split_overrides(
    "run.engine=local run.num_rounds=4 run.eval_every=4 run.train_eval_size=8 tracking=none model=minilm task=intents "
    "task.train_limit=64 task.validation_limit=8 task.holdout=8 training.local_steps=1 training.batch_size=2 "
    "device=laptop network.num_devices=4 network.total_bandwidth_hz=1e9 budget.deadline_s=1e4 budget.energy_j=1e6"
)
_CENTRAL = "privacy.model=central privacy.clip_norm=1 strategy.clip_factor=null"
CASES = {
    "fedit": "strategy=fedit",
    "fedlodrop, rate 0.5": "strategy=fedlodrop allocator=fixed allocator.dropout_rate=0.5",
    "rolora": "strategy=rolora",
    "rolora, phases [B, B, A]": "strategy=rolora strategy.phases=[B,B,A]",
    "rolora, central privacy": f"strategy=rolora {_CENTRAL}",
    "fedit, fedadam on the server": "strategy=fedit strategy.server_optimizer=fedadam strategy.server_lr=0.01",
    "fedit, int8": "strategy=fedit wire.dtype=int8",
    "fedit, int4": "strategy=fedit wire.dtype=int4",
    "fedlodrop, rate 0.5, int4": "strategy=fedlodrop allocator=fixed allocator.dropout_rate=0.5 wire.dtype=int4",
}


def measure(overrides: str, folder: Path) -> list[tuple[float, float]]:
    """Run a short federation and return the kilobytes of its first device, up and down, round by round."""
    if code := run_in_process(join_overrides([*_SMALL, *split_overrides(overrides), f"run.dir='{folder}'"]), 4):
        raise RuntimeError(f"the run with {overrides} ended with code {code}")
    rows = [json.loads(line)["devices"][0] for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [(row["uplink_bytes"] / 1e3, row["downlink_bytes"] / 1e3) for row in rows]


def main() -> None:
    """Measure and print a table."""
    print("| method | up: rounds 1 to 4 | down: rounds 1 to 4 |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, overrides) in enumerate(CASES.items()):
            up, down = zip(*measure(overrides, Path(folder) / str(number)), strict=True)
            print(
                f"| {name} | {' · '.join(f'{x:.1f}' for x in up)} | {' · '.join(f'{x:.1f}' for x in down)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
