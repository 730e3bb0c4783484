"""What a run has learnt: export, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlodrop.commands.console import RunFolder, run_folder, say, working


def export(
    folder: RunFolder,
    to: Annotated[str, typer.Option("--to", help="peft | merged | gguf-ready")] = "peft",
    out: Annotated[Path | None, typer.Option(help="A new folder; default: export-<format> in the run's folder")] = None,
) -> None:
    """Write the trained model for other tools: a PEFT adapter, merged weights, or float16 weights for llama.cpp's converter."""
    from server_app.folders import writable

    source = run_folder(folder)
    target = (out or source / f"export-{to}").resolve()
    writable(target.parent, "--out")
    with working(f"loading the model of {folder}"):
        from fedlodrop.model.trained import export as write

        reason = write(source, to, target)
    say(f"exported: {target}")
    if reason:
        say(f"only this project loads it: {reason}; --to merged writes a model that needs neither")


def predict(
    folder: RunFolder,
    texts: Annotated[list[str], typer.Argument(help='One or several texts, e.g. "turn the light off"')],
    pair: Annotated[list[str] | None, typer.Option(help="Second text of each, for tasks that compare two")] = None,
    top: Annotated[int, typer.Option(help="How many labels to show per text", min=1)] = 3,
) -> None:
    """Ask the trained model about texts of your own."""
    if pair is not None and len(pair) != len(texts):
        raise ValueError(f"--pair: expected one per text, {len(texts)}, found {len(pair)}")
    source = run_folder(folder)
    with working(f"loading the model of {folder}"):
        from fedlodrop.model.trained import load_trained
        from fedlodrop.model.trained import predict as ask

        answers = ask(load_trained(source), texts, pair)
    for text, outputs in zip(texts, answers, strict=True):
        say(f"{text!r}: " + ", ".join(f"{name} {value:.3f}" for name, value in outputs[:top]))
