"""Looking into plans: explain, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server_app.commands.console import out, run_folder


def explain(
    folder: Annotated[Path, typer.Argument(help="Folder of a run")],
    server_round: Annotated[int, typer.Option("--round", help="Round, from 1")] = 1,
    device: Annotated[int, typer.Option(help="Index of the device, from 0")] = 0,
) -> None:
    """Say why a device got its dropout rate, bandwidth and power in a round, and what more would buy."""
    from server_app.explain import explain as why
    from server_app.explain import print_explanation

    print_explanation(why(run_folder(folder), server_round, device), out)
