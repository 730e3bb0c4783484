"""What a person sees while a federation runs, and at its end."""

import shlex
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from conf.compose import split_overrides
from fedlodrop.console.printing import make_table, print_lines, printable
from fedlodrop.report.data import key_facts, load_runs
from server_app.folders import saved_overrides
from server_app.progress import failure_text, guard_lines, round_line
from server_app.results import read_rounds

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK = 40  # rounds that a sparkline shows
_ANSWER = 120  # characters shown of a model's answer
_NAMED = 5  # devices named in a line


class RoundProgress:
    """Follow rounds.jsonl of a running federation in a thread of its own; ``metric`` is the task's primary metric.

    In a terminal a panel below the finished rounds shows where the run stands; elsewhere there are plain lines only.
    """

    def __init__(self, console: Console, folder: Path, num_rounds: int, metric: str) -> None:
        self._console, self._folder, self._num_rounds, self._metric = console, folder, num_rounds, metric
        self._rounds = read_rounds(folder)
        self._before = len(self._rounds)  # rounds of an earlier, interrupted start say nothing about this one's pace
        self._begun = time.monotonic()
        self._size = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        phase, left = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[left]}")
        columns = (SpinnerColumn(), phase, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left)
        self._progress = Progress(*columns, console=console)
        self._live = Live(get_renderable=self._panel, console=console, transient=True, refresh_per_second=5)

    def __enter__(self) -> "RoundProgress":
        """Start following."""
        self._bar = self._progress.add_task("starting", total=self._num_rounds, completed=len(self._rounds), left="")
        if self._console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Show what is still unseen and stop."""
        self._stop.set()
        self._thread.join()
        self._show_new()
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """Name the current phase."""
        self._progress.update(self._bar, description=printable(text))
        if not self._console.is_terminal:
            show(self._console, text)

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self._show_new()

    def _show_new(self) -> None:
        path = self._folder / "rounds.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:  # a long run's file is not parsed again five times a second
            return
        self._size = size
        seen = self._rounds[-1]["round"] if self._rounds else 0
        for record in read_rounds(self._folder):
            if record["round"] > seen:
                self._rounds.append(record)
                show(self._console, round_line(record, self._num_rounds, self._metric))
                begins = len(self._rounds) == self._before + 1
                for line in (*trouble_lines(record), *guard_lines(record, begins=begins)):
                    show(self._console, f"  {line}", style="yellow")
                done = record["round"]
                self._progress.update(self._bar, description="training", completed=done, left=self._time_left(done))

    def _time_left(self, done: int) -> str:
        """Return the time that the remaining rounds take at the pace so far; the first estimate includes the start."""
        rounds = len(self._rounds) - self._before
        if not rounds or done >= self._num_rounds:
            return ""
        seconds = (self._num_rounds - done) * (time.monotonic() - self._begun) / rounds
        return f"about {seconds // 60:.0f} min {seconds % 60:02.0f} s left"

    def _panel(self) -> RenderableType:
        return Group(*([standing(self._rounds, self._metric)] if self._rounds else []), self._progress)


def show(console: Console, line: str, *, style: str = "") -> None:
    """Print one line as it is; a terminal breaks it between figures, not inside them, anything else keeps it whole."""
    text = printable(line)
    if console.is_terminal:
        parts = " · ".join(part.replace(" ", "\xa0") for part in text.split(" · ")) if " · " in text else text
        broken = textwrap.wrap(parts, console.width, subsequent_indent="    ", break_on_hyphens=False)
        text = "\n".join(broken).replace("\xa0", " ")
    console.print(Text(text, style), soft_wrap=True)


def trouble_lines(record: dict[str, Any]) -> list[str]:
    """Return who sat out of a round and why, what failed, and who took over from the allocator."""
    reasons: dict[str, list[str]] = {}
    for device in record["devices"]:
        if not device["scheduled"]:
            reasons.setdefault(device["reason"] or "no reason given", []).append(device["id"])
    named = {why: ", ".join(who[:_NAMED]) + " …" * (len(who) > _NAMED) for why, who in reasons.items()}
    lines = [f"sits out: {who} ({why})" for why, who in named.items()]
    lines += map(failure_text, record["failures"])
    return lines + [f"allocator: {note}" for note in record.get("plan", {}).get("notes", ())]


def standing(rounds: list[dict[str, Any]], metric: str) -> Table:
    """Return the state of a run as a small table: last scores with their course, devices, cost so far."""
    last, table = rounds[-1], Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    scores = {
        "train loss": [record["train_loss"] for record in rounds],
        "test loss": [(record.get("eval") or {}).get("loss") for record in rounds],
        f"test {metric}": [(record.get("eval") or {}).get(metric) for record in rounds],
    }
    for name, values in scores.items():
        if known := [value for value in values if value is not None]:
            table.add_row(Text(printable(name)), f"{known[-1]:.3f}", sparkline(known[-_SPARK:]))
    rates = [device["dropout_rate"] for device in last["devices"] if device["scheduled"]]
    out = len(last["devices"]) - len(rates)
    mean = f"mean dropout {sum(rates) / len(rates):.2f}" if rates else ""
    table.add_row("devices", f"{len(rates)} in, {out} out", mean)
    devices = [device for record in rounds for device in record["devices"]]
    up, down = (sum(device[f"{way}_bytes"] for device in devices) / 1e6 for way in ("uplink", "downlink"))
    table.add_row("sent", f"{up:.2f} MB up", f"{down:.2f} MB down")
    table.add_row("simulated", f"{last['sim_time_s']:.1f} s", f"{sum(record['energy_j'] for record in rounds):.2f} J")
    return table


def sparkline(values: list[float]) -> str:
    """Return a row of blocks, the lowest value as the lowest block and the highest as the highest."""
    low, high = min(values), max(values)
    span = high - low
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1)) if span > 0 else 0] for value in values)


def print_summary(console: Console, folder: Path, program: str) -> None:
    """Print the table at the end of a run and the next step, with ``program`` as it can be called from here."""
    (run,) = load_runs([folder])
    summary = run.summary
    title = f"{summary['strategy']} with allocator {summary['allocator']} on {summary['task']}, {run.status}"
    facts = [(name, note, value) for name, value, note in key_facts(run)[1:]]  # the title says how far it got
    console.print(make_table(title, ["", ""], ["value"], facts))
    if summary.get("answers"):
        console.print(_answers(summary["answers"]))
    items = {item.split("=", 1)[0]: item for item in split_overrides(saved_overrides(folder))}  # the last counts
    kept = [item for key, item in items.items() if key not in ("run.dir", "run.resume", "allocator", "allocator.name")]
    optimal = "allocator=exact", "the optimal plan"
    other, change = optimal if summary["allocator"] == "equal" else ("allocator=equal", "equal bandwidth")
    longer = "run.patience=null" if summary.get("ended_early") else f"run.num_rounds={2 * summary['rounds_done']}"
    lines = (
        f"results: {folder}",
        f"report:  {folder / 'report.html'}",
        f"next:    {program} {shlex.join(['run', *kept, other])}   (the same with {change})",
        f"         {program} report {folder}/ OTHER/   (two runs side by side)",
        f"longer:  {program} resume {folder} {longer}",
    )
    print_lines(console, lines)


def _answers(answers: dict[str, Any]) -> Table:
    """Return requests of the test set with what a language model wrote before and after the training."""
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in answers["scores"].items())
    title = f"{answers['num_examples']} unseen requests: {scores}"
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("request", "before", "after"):
        table.add_column(column, ratio=1)
    for sample in answers["samples"]:
        wrong = "" if sample["after"] == sample["expected"] else f"  (expected {sample['expected']})"
        cells = (sample["request"], sample["before"][:_ANSWER], sample["after"][:_ANSWER] + wrong)
        table.add_row(*(Text(printable(" ".join(cell.split()))) for cell in cells))
    return table
