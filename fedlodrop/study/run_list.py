"""The runs in a folder: listed, compared, packed."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

from conf.compose import ConfigError
from fedlodrop.report.data import Run, differing_settings, figures_of, load_runs
from fedlodrop.runs import run_folder
from optimizer.atomic import written_whole
from server_app.checkpoint import StorageError
from server_app.results import check_free

_PACKED = ("config.yaml", "environment.json", "rounds.jsonl", "summary.json", "report.html", "base_delta.safetensors")


def find_runs(folder: Path) -> list[Run]:
    """Return the runs below a folder, the latest first."""
    places = [path.parent for path in folder.rglob("environment.json") if (path.parent / "rounds.jsonl").exists()]
    runs = load_runs(places) if places else []
    return sorted(runs, key=lambda run: str(run.environment.get("started", "")), reverse=True)


def state(run: Run) -> str:
    """Return ``running``, ``finished``, ``failed`` or ``unfinished``."""
    try:
        check_free(run.folder)
    except StorageError:
        return "running"
    return "finished" if run.finished else "failed" if run.failure else "unfinished"


def score(run: Run) -> str:
    """Return the last test score of a run in words, "" if it has none."""
    final = run.summary.get("final") or {}
    return f"{run.metric} {final['eval'][run.metric]:.3f}" if final and run.metric else ""


def differences(folders: Sequence[Path]) -> tuple[list[Run], dict[str, list[str]], dict[str, list[str]]]:
    """Return runs, the settings in which they differ and their key figures, a value per run."""
    runs = load_runs([run_folder(folder) for folder in folders])
    settings = {key: [str(value) for value in values] for key, values in differing_settings(runs).items()}
    return runs, settings, {name: [value or "" for value in values] for name, values in figures_of(runs).items()}


def pack(folder: Path, target: Path) -> list[str]:
    """Write one archive with what a run was and found: configuration, versions, rounds, adapter, report.

    Returns the names of what is in it; ConfigError if the run is unfinished or the archive exists.
    """
    folder = run_folder(folder)
    if not (folder / "summary.json").exists():
        raise ConfigError(f"{folder} is unfinished; go on with: fedlodrop resume {folder}")
    if target.exists():
        raise ConfigError(f"{target} already exists; choose another --out")
    files = [folder / name for name in _PACKED if (folder / name).exists()]
    files += sorted(path for path in (folder / "adapter").rglob("*") if path.is_file())
    with written_whole(target) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for path in files:
            archive.add(path, f"{folder.name}/{path.relative_to(folder)}")
    return [str(path.relative_to(folder)) for path in files]
