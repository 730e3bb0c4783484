"""Many runs from one command: sweep."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from conf.compose import (
    FILES,
    ConfigError,
    check_files,
    check_names,
    compose_config,
    expand_sweep,
    local_path,
    quoted,
    readable,
    swept,
)
from fedlodrop.commands.console import EXIT_FAILED, EXIT_INTERRUPTED, fail, out, program, say


def sweep(
    overrides: Annotated[
        list[str], typer.Argument(help="Overrides with choices, e.g. allocator=bnb,equal run.seed=0,1,2")
    ],
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="As in Hydra; a sweep always is one")] = True,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Folder of the sweep; default: below results/, the same one for the same command"),
    ] = None,
) -> None:
    """Run all combinations of several values, e.g. `fedlodrop sweep -m allocator=bnb,psca run.seed=0,1,2`.

    Started again, the same command goes on where it was stopped: finished jobs are skipped, failed ones tried once
    more. Hydra's launchers and sweepers work: hydra/launcher=joblib runs jobs side by side, hydra/sweeper=optuna
    searches.
    """
    own = [item for item in overrides if item.lstrip("+").startswith("hydra")]
    items = [readable(item) for item in overrides if item not in own and not item.startswith("run.dir=")]
    check_names(items, sweep=True)
    given = [item.split("=", 1)[1] for item in overrides if item.startswith(("run.dir=", "hydra.sweep.dir="))]
    if len(given) + (folder is not None) > 1:
        raise ConfigError("--dir, hydra.sweep.dir and run.dir all name the sweep's folder; expected one of them")
    own = [item for item in own if not item.startswith("hydra.sweep.dir=")]
    _check_own(own)
    target = (
        (folder or Path(given[-1].strip("'\"") if given else _default_folder([*items, *own]))).expanduser().resolve()
    )
    searching = any(item.startswith("hydra/sweeper=") for item in own)
    check_files([items] if searching else expand_sweep(items))
    items = [_absolute(item) for item in items]
    description = {
        "overrides": items,
        "hydra": own,
        "varied": swept(items),
        "jobs": None if searching else len(expand_sweep(items)),
    }
    _run(items, [*_launcher_defaults(own), *own], target, description)


def _check_own(own: list[str]) -> None:
    """Refuse what a sweep does not honour of Hydra's own settings, and plugins that are not installed."""
    for item in own:
        key, _, value = item.lstrip("+").partition("=")
        if key in ("hydra/launcher", "hydra/sweeper"):
            Plugins.instance()  # plugins register what they offer when they are imported
            known = sorted(name.removesuffix(".yaml") for name in ConfigStore.instance().list(key))
            if value not in known:
                packages = {"joblib": "hydra-joblib-launcher", "optuna": "'fedlodrop[optuna]'"}
                mend = f"; for {value}: pip install {packages[value]}" if value in packages else ""
                raise ConfigError(
                    f"{key} must be one of {', '.join(known)}, found {value!r}, which is not installed{mend}"
                )
        elif not key.startswith(("hydra.launcher.", "hydra.sweeper.")):
            raise ConfigError(
                f"{key} is not honoured by a sweep; of Hydra's own keys these are: hydra.sweep.dir (as --dir), hydra/launcher, "
                "hydra/sweeper, hydra.launcher.*, hydra.sweeper.*"
            )


def _run(items: list[str], own: list[str], target: Path, description: dict[str, Any]) -> None:
    from server_app.folders import writable

    writable(target, "--dir").mkdir(parents=True, exist_ok=True)
    from fedlodrop.study.sweep import run_sweep
    from fedlodrop.study.sweep_table import print_table, write_table
    from server_app.results import write_json

    write_json(target / "sweep.json", description)
    say(f"{description['jobs'] or 'a search for the best'} job(s) in {target}")
    try:
        run_sweep(target, items, own, say)
    except KeyboardInterrupt:
        write_table(target)
        fail(f"interrupted; the same command goes on; the jobs so far: {target / 'jobs.csv'}", EXIT_INTERRUPTED)
    table = write_table(target)
    print_table(out, table, target, program())
    failed = int((table["status"] != "finished").sum())
    if failed:
        fail(f"{failed} of {len(table)} jobs failed; the same command tries them again", EXIT_FAILED)


def _default_folder(overrides: list[str]) -> Path:
    """Return the folder of a sweep without ``--dir``: the same for the same command, whatever the order of its words."""
    digest = hashlib.sha256("\0".join(sorted(overrides)).encode()).hexdigest()[:8]
    return Path("results") / f"sweep-{digest}"


def _absolute(item: str) -> str:
    """Make the path in ``key=path`` absolute where it names a local file or folder: jobs may run elsewhere."""
    key, value = item.split("=", 1)
    if key not in FILES:
        return item
    found = local_path(value.strip("'\""))
    return f"{key}={quoted(found)}" if found else item


def _launcher_defaults(own: list[str]) -> list[str]:
    """Return how many jobs joblib may run side by side, unless it was said: as many as the cores carry."""
    if "hydra/launcher=joblib" not in own:
        return []
    given = [item.split("=", 1)[1] for item in own if item.startswith("hydra.launcher.n_jobs=")]
    if given and not given[-1].lstrip("-").isdecimal():
        raise ConfigError(f"hydra.launcher.n_jobs: expected a number of jobs, found {given[-1]!r}")
    if given:
        return []
    return [f"hydra.launcher.n_jobs={max(1, (os.cpu_count() or 1) // compose_config('').training.num_threads)}"]
