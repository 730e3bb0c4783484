"""What a person sees while a federation runs, and at its end."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from server_app.results import read_rounds
from server_app.rounds import round_line


class RoundProgress:
    """Follow rounds.jsonl of a running federation in a thread of its own; plain lines where there is no terminal.

    Parameters
    ----------
    console : Console
        Where to print.
    folder : Path
        The run's folder.
    num_rounds : int
        Rounds in all.
    metric : str
        The task's primary metric.
    """

    def __init__(self, console: Console, folder: Path, num_rounds: int, metric: str) -> None:
        self._console, self._folder, self._num_rounds, self._metric = console, folder, num_rounds, metric
        self._seen = max((record["round"] for record in read_rounds(folder)), default=0)
        self._size = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, transient=True,
        )  # fmt: skip

    def __enter__(self) -> RoundProgress:
        """Start following."""
        self._bar = self._progress.add_task("starting", total=self._num_rounds, completed=self._seen)
        if self._console.is_terminal:
            self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Show what is still unseen and stop."""
        self._stop.set()
        self._thread.join()
        self._show_new()
        if self._console.is_terminal:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Name the current phase."""
        self._progress.update(self._bar, description=text)
        if not self._console.is_terminal:
            self._console.print(text, highlight=False)

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._show_new()
            time.sleep(0.2)

    def _show_new(self) -> None:
        path = self._folder / "rounds.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:  # a long run's file is not parsed again five times a second
            return
        self._size = size
        for record in read_rounds(self._folder):
            if record["round"] > self._seen:
                self._seen = record["round"]
                self._console.print(round_line(record, self._num_rounds, self._metric), highlight=False, soft_wrap=True)
                for failure in record["failures"]:
                    who = failure["device"] or "unknown device"
                    self._console.print(f"  {who}: {failure['kind']}: {failure['message']}", style="yellow", soft_wrap=True)
                self._progress.update(self._bar, description="training", completed=self._seen)


def print_summary(console: Console, folder: Path, program: str) -> None:
    """Print the table at the end of a run and the next step, with ``program`` as it can be called from here."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    metric, initial, final, best = (summary[key] for key in ("primary_metric", "initial", "final", "best"))
    table = Table(
        title=f"{summary['strategy']} with allocator {summary['allocator']} on {summary['task']}", title_justify="left"
    )
    table.add_column("")
    table.add_column("value", justify="right")

    def scores(block: dict[str, Any]) -> str:
        return f"{block['eval'][metric]:.3f} (loss {block['eval']['loss']:.3f})"

    table.add_row(f"test {metric} before training", scores(initial))
    table.add_row(f"test {metric} after round {final['round']}", scores(final))
    table.add_row(f"test {metric} at the best validated round, {best['round']}", scores(best))
    table.add_row("generalization gap, loss test - train", f"{final['gap']['loss']:+.3f}")
    dense = 4 * summary["adapter_parameters"] * max(1, summary["devices_answered"])
    table.add_row("upload, all devices and rounds", f"{summary['uplink_bytes'] / 1e6:.2f} MB")
    table.add_row(
        "  of it adapter, against dense fp32 adapters of the same devices", f"{summary['uplink_adapter_bytes'] / dense:.0%}"
    )
    table.add_row("download, all devices and rounds", f"{summary['downlink_bytes'] / 1e6:.2f} MB")
    table.add_row("devices that took part", f"{summary['devices_scheduled']} of {summary['devices_asked']}")
    table.add_row("simulated time", f"{summary['sim_time_s']:.1f} s")
    table.add_row("simulated energy", f"{summary['energy_j']:.1f} J")
    table.add_row("wall time of the run", f"{summary['wall_s']:.1f} s")
    console.print(table)
    console.print(f"results: {folder}", highlight=False, soft_wrap=True)
    console.print(f"report:  {folder / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(f"next:    {program} run allocator=equal   (the same with equal bandwidth)", highlight=False, soft_wrap=True)
    console.print(f"         {program} report {folder}/ OTHER/   (two runs side by side)", highlight=False, soft_wrap=True)
