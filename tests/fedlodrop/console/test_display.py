"""The live view: a panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlodrop.commands.shared import err, out
from fedlodrop.console.display import RoundProgress, sparkline, standing, trouble_lines
from server_app.progress import round_line


def _record(number: int) -> dict[str, Any]:
    def device(k: int, scheduled: bool) -> dict[str, Any]:
        return {
            "id": f"device-{k}",
            "scheduled": scheduled,
            "reason": None if scheduled else "deadline",
            "dropout_rate": 0.4,
            "uplink_bytes": 10**6 if scheduled else 0,
            "downlink_bytes": 2 * 10**6,
        }

    return {
        "round": number,
        "train_loss": 1.0 / number,
        "eval": {"loss": 1.0, "accuracy": 0.1 * number},
        "energy_j": 2.0,
        "devices": [device(0, True), device(1, True), device(2, False)],
        "sim_time_s": 4.0 * number,
        "failures": [{"device": "device-1", "kind": "client_error", "message": "[out of] memory"}],
    }


def _shown(folder: Path, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    with RoundProgress(console, folder, 3, "accuracy") as progress:
        progress.say("loading the model")
        (folder / "rounds.jsonl").write_text("".join(json.dumps(_record(k)) + "\n" for k in (1, 2)))
        for _ in range(1000):
            if len(progress._rounds) == 2:
                break
            time.sleep(0.01)
        assert len(progress._rounds) == 2
        if terminal:
            progress._live.refresh()
    return text.getvalue()


def test_without_a_terminal_there_are_plain_lines(tmp_path: Path) -> None:
    text = _shown(tmp_path, terminal=False)
    assert "\x1b" not in text and "left" not in text
    lines = text.splitlines()
    assert lines[0] == "loading the model" and lines[1].startswith("round 1/3") and "simulated 4.0 s" in lines[1]
    assert lines[2:4] == ["  sits out: device-2 (deadline)", "  device-1: client_error: [out of] memory"]
    assert sum(line.startswith("round ") for line in lines) == 2


def test_a_terminal_shows_where_the_run_stands(tmp_path: Path) -> None:
    text = _shown(tmp_path, terminal=True)
    expected = (
        "test accuracy",
        "▁█",
        "2 in, 1 out",
        "dropout 0.40",
        "4.00 MB up",
        "12.00 MB down",
        "8.0 s",
        "4.00 J",
        "left",
    )
    for part in expected:
        assert part in text, part


def test_a_narrow_terminal_breaks_lines_between_figures(tmp_path: Path) -> None:
    text = io.StringIO()
    with RoundProgress(Console(file=text, force_terminal=True, width=80), tmp_path, 10, "accuracy"):
        (tmp_path / "rounds.jsonl").write_text(json.dumps(_record(1) | {"round": 8, "sim_time_s": 31.9}) + "\n")
    lines = [line.rstrip() for line in Text.from_ansi(text.getvalue()).plain.splitlines()]
    first = next(k for k, line in enumerate(lines) if line.startswith("round 8/10"))
    assert all(len(line) <= 80 for line in lines[first : first + 2])
    whole = lines[first].removesuffix(" ·") + " · " + lines[first + 1].strip()
    assert whole == round_line(_record(1) | {"round": 8, "sim_time_s": 31.9}, 10, "accuracy")


EVIL = "[red]x[/] [/] \x1b[2J\x1b]0;title\x07 \u202etxt\rround 1/1 \n[link=file:///]y"


@pytest.mark.parametrize("terminal", [True, False])
def test_what_devices_and_files_say_is_shown_and_not_obeyed(tmp_path: Path, terminal: bool) -> None:
    record, text = _record(1), io.StringIO()
    for device in record["devices"]:
        device |= {"id": EVIL, "reason": EVIL}
    record |= {"failures": [{"device": EVIL, "kind": EVIL, "message": EVIL}], "plan": {"notes": [EVIL]}}
    console = Console(file=text, force_terminal=terminal, width=300)
    with RoundProgress(console, tmp_path, 3, EVIL) as progress:
        progress.say(EVIL)
        record["eval"][EVIL] = 0.5
        (tmp_path / "rounds.jsonl").write_text(json.dumps(record) + "\n")
    shown = text.getvalue()
    for sent in ("\x1b[2J", "\x1b]0", "\x07", "\u202e", "\rround 1/1"):
        assert sent not in shown, sent
    assert r"[red]x[/] [/] \x1b[2J\x1b]0;title\x07 \u202etxt\rround 1/1 \n[link=file:///]y" in shown


def test_no_command_obeys_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (out, err):
        text, table = io.StringIO(), Table(EVIL, title=EVIL)
        table.add_row(EVIL)
        monkeypatch.setattr(console, "_width", 400)
        monkeypatch.setattr(console, "_file", text)
        console.print(table)
        console.print(EVIL, ":warning: one line\nanother")
        shown = text.getvalue()
        assert shown.count("[red]x[/] [/] \\x1b[2J\\x1b]0;title\\x07 \\u202etxt\\rround 1/1") == 4
        assert "\x1b" not in shown and "\u202e" not in shown and ":warning: one line\nanother" in shown


def test_what_was_held_back_is_said_once(tmp_path: Path) -> None:
    clipped = {"device": "device-1", "norm": 9.0, "threshold": 1.0}
    capped = {"device": "device-0", "num_examples": 10**9, "weight": 80.0}
    records = [_record(k) | {"clipped": [clipped], "capped": [capped]} for k in (1, 2)]
    text = io.StringIO()
    with RoundProgress(Console(file=text, width=200), tmp_path, 2, "accuracy"):
        (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert text.getvalue().count("device-1: its change of norm 9 was scaled down to 1") == 2
    assert text.getvalue().count("device-0: announces 1000000000 examples and weighs 80") == 1


def test_who_took_over_from_the_allocator_is_said() -> None:
    record = _record(1) | {"failures": [], "plan": {"notes": ["psca failed: SolverError: no answer"]}}
    assert trouble_lines(record)[-1] == "allocator: psca failed: SolverError: no answer"


def test_sparklines_span_the_blocks() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█" and sparkline([2.0, 2.0]) == "▁▁"


def test_many_devices_that_sit_out_share_a_line() -> None:
    record = _record(1)
    record["devices"] = [{**record["devices"][2], "id": f"device-{k}"} for k in range(9)]
    record["failures"] = []
    (line,) = trouble_lines(record)
    assert line == "sits out: device-0, device-1, device-2, device-3, device-4 … (deadline)"
    assert standing([record], "accuracy").row_count == 6
