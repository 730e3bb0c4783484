"""Looking into plans: explain, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlodrop.commands.console import out, run_folder, say, working


def explain(
    folder: Annotated[Path, typer.Argument(help="Folder of a run")],
    server_round: Annotated[int, typer.Option("--round", help="Round, from 1")] = 1,
    device: Annotated[str, typer.Option(help="The device, by its name or its index from 0")] = "device-0",
) -> None:
    """Say why a device got its dropout rate, bandwidth and power in a round, and what more would buy."""
    source = run_folder(folder)
    with working(f"building round {server_round} of {folder} again: loading its data and model files"):
        from fedlodrop.console.explain import explain as why
        from fedlodrop.console.explain import print_explanation

        found = why(source, server_round, device)
    print_explanation(found, out)


def figures(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders of runs to compare", show_default=False)] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Where to write PNG and CSV files")] = Path("figures"),
    every: Annotated[int, typer.Option(min=1, help="Draw every so-manieth point of the sweeps only")] = 1,
) -> None:
    """Draw the bound, all schemes against every resource, solve times, and runs side by side; PNG and CSV."""
    from dataclasses import asdict

    from conf.compose import compose_config, read_config
    from server_app.folders import writable

    runs = [run_folder(folder) for folder in folders or []]
    writable(out_folder, "--out")
    with working("loading libraries"):
        from fedlodrop.study.paper_figures import write_figures
        from optimizer.problem import BoundConstants

    config = read_config(runs[0] / "config.yaml") if runs else compose_config("")
    for picture in write_figures(out_folder, BoundConstants(**asdict(config.bound)), runs, say=say, every=every):
        say(f"{picture}")
