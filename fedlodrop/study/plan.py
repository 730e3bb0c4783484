"""The plan of a study: one YAML file, checked, and expanded into jobs."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from conf.compose import ConfigError, compose_config, join_overrides, quoted

TUNING, FINAL = "tuning", "final"
_KEYS = {
    "title",
    "question",
    "base",
    "settings",
    "methods",
    "seeds",
    "reference",
    "tuning",
    "targets",
    "notes",
    "quick",
    "data_dir",
    "figures",
    "target_metric",
    "calibrate",
}
_QUICK_KEYS = {"base", "settings", "methods", "seeds", "tuning"}
_TUNING_KEYS = {"grid", "seeds", "base", "settings"}


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Parameters
    ----------
    setting, method : str
        Its place in the grid.
    seed : int
        ``run.seed``.
    phase : str
        ``tuning`` or ``final``.
    choice : str
        The values of the tuned keys, as overrides separated by blanks; empty where nothing is tuned.
    overrides : tuple of str
        Everything but ``run.dir``.
    """

    setting: str
    method: str
    seed: int
    phase: str
    choice: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Relative folder; a digest of all overrides keeps the runs of two plans apart."""
        digest = hashlib.sha256("\0".join(self.overrides).encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.choice)
        return f"{self.setting}/{self.method}/{self.phase}-seed-{self.seed}{'-' + words if words else ''}-{digest}"


@dataclass(frozen=True)
class Tuning:
    """Which values are tried for every method: the same grid, seeds and length, so the same budget.

    Parameters
    ----------
    grid : tuple of tuple of str
        Sets of overrides to choose from.
    seeds : tuple of int
        Seeds of the trials; none of them is a seed of the study.
    base : tuple of str
        Overrides of the trials only, e.g. fewer rounds.
    settings : tuple of str or None
        Where the trials are run; their mean score then chooses one set per method for all settings. None: trials in
        every setting, and a choice for each.
    """

    grid: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    base: tuple[str, ...] = ()
    settings: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Study:
    """A checked study file."""

    name: str
    title: str
    question: str
    base: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]
    methods: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    reference: str
    tuning: Tuning | None
    targets: tuple[Mapping[str, Any], ...] = ()
    notes: str = ""
    figures: tuple[str, ...] = ("rounds",)
    target_metric: float | None = None
    calibrate: bool = False
    quick: bool = field(default=False)

    def tuning_jobs(self) -> list[Job]:
        """Return the trials of every method in every setting."""
        if self.tuning is None:
            return []
        settings = self.tuning.settings or tuple(self.settings)
        grid = itertools.product(settings, self.methods, self.tuning.grid, self.tuning.seeds)
        return [self._job(s, m, seed, TUNING, choice, self.tuning.base) for s, m, choice, seed in grid]

    def final_jobs(self, chosen: Mapping[tuple[str, str], tuple[str, ...]]) -> list[Job]:
        """Return the runs that are compared, with the chosen values of the tuned keys.

        Seed by seed: an interrupted study has fewer seeds of everything, not everything of some methods.
        """
        grid = itertools.product(self.seeds, self.settings, self.methods)
        return [
            self._job(s, m, seed, FINAL, chosen.get((s, m), ()), ()) for seed, s, m in grid if self._known(s, m, chosen)
        ]

    def _known(self, setting: str, method: str, chosen: Mapping[tuple[str, str], tuple[str, ...]]) -> bool:
        return self.tuning is None or (setting, method) in chosen

    def _job(
        self, setting: str, method: str, seed: int, phase: str, choice: tuple[str, ...], more: tuple[str, ...]
    ) -> Job:
        overrides = (*self.base, *self.settings[setting], *self.methods[method], *choice, *more, f"run.seed={seed}")
        return Job(setting, method, seed, phase, " ".join(choice), last_of_each(overrides))


def last_of_each(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the last override of every key, groups first: a group chosen later would overwrite single keys."""
    last = {item.split("=", 1)[0]: item for item in overrides}
    return tuple(sorted(last.values(), key=lambda item: "." in item.split("=", 1)[0]))


def read_study(path: Path, *, quick: bool = False, data_dir: Path | None = None) -> Study:
    """Read and check a study file.

    Parameters
    ----------
    path : Path
        YAML file; its stem is the study's name.
    quick : bool
        Apply the file's ``quick`` section: tiny sizes, the same code.
    data_dir : Path or None
        Stands for ``{data}`` in overrides; None takes the file's ``data_dir``.

    Returns
    -------
    Study
        Every job's overrides have been composed once, so that a wrong key shows before anything runs.

    Raises
    ------
    ConfigError
        If the file, a key of it or an override cannot be used.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"study {path}: expected a readable YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"study {path}: expected keys and values, found {type(content).__name__}")
    _check_keys(content, _KEYS, f"study {path}")
    for key in ("title", "settings", "methods", "seeds"):
        if not content.get(key):
            raise ConfigError(f"study {path}: expected the key {key!r}, found none")
    folder = Path(data_dir if data_dir is not None else content.get("data_dir") or ".").expanduser().resolve()
    study = _study(path, content, folder)
    if quick:
        study = _quick(study, content.get("quick") or {}, path, folder)
    _check(study, path)
    return study


def _study(path: Path, content: dict[str, Any], folder: Path) -> Study:
    methods = {name: _items(items, folder) for name, items in content["methods"].items()}
    return Study(
        name=path.stem,
        title=content["title"],
        question=" ".join(str(content.get("question", "")).split()),
        base=_items(content.get("base"), folder),
        settings=_product(content["settings"], folder),
        methods=methods,
        seeds=tuple(int(seed) for seed in content["seeds"]),
        reference=content.get("reference") or next(iter(methods)),
        tuning=_tuning(content.get("tuning"), folder, path),
        targets=tuple(content.get("targets") or ()),
        notes=str(content.get("notes") or "").strip(),
        figures=tuple(content.get("figures") or ("rounds",)),
        target_metric=content.get("target_metric"),
        calibrate=bool(content.get("calibrate")),
    )


def _quick(study: Study, quick: dict[str, Any], path: Path, folder: Path) -> Study:
    _check_keys(quick, _QUICK_KEYS, f"study {path}, quick")
    return replace(
        study,
        base=(*study.base, *_items(quick.get("base"), folder)),
        settings=_chosen(study.settings, quick.get("settings"), path),
        methods=_chosen(study.methods, quick.get("methods"), path),
        seeds=tuple(quick.get("seeds") or study.seeds[:1]),
        tuning=_tuning(quick["tuning"], folder, path) if quick.get("tuning") else study.tuning,
        quick=True,
    )


def _chosen(known: Mapping[str, tuple[str, ...]], names: list[str] | None, path: Path) -> dict[str, tuple[str, ...]]:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ConfigError(f"study {path}, quick: expected some of {', '.join(known)}, found {unknown[0]!r}")
    return {name: items for name, items in known.items() if names is None or name in names}


def _product(axes: Any, folder: Path) -> dict[str, tuple[str, ...]]:
    """Settings: one mapping of name to overrides, or a list of such axes, all of whose combinations are run."""
    axes = axes if isinstance(axes, list) else [axes]
    combined = itertools.product(*(axis.items() for axis in axes))
    return {
        "-".join(str(name) for name, _ in parts): tuple(item for _, items in parts for item in _items(items, folder))
        for parts in combined
    }


def _tuning(content: dict[str, Any] | None, folder: Path, path: Path) -> Tuning | None:
    if not content:
        return None
    _check_keys(content, _TUNING_KEYS, f"study {path}, tuning")
    grid = content["grid"]
    values = itertools.product(*([f"{key}={value}" for value in values] for key, values in grid.items()))
    settings = content.get("settings")
    return Tuning(
        tuple(values),
        tuple(content["seeds"]),
        _items(content.get("base"), folder),
        tuple(settings) if settings else None,
    )


def _items(items: list[str] | None, folder: Path) -> tuple[str, ...]:
    return tuple(_filled(str(item), folder) for item in items or ())


def _filled(item: str, folder: Path) -> str:
    """Put the data folder in place of ``{data}``, as a quoted value of Hydra's grammar."""
    if "{data}" not in item:
        return item
    key, value = item.split("=", 1)
    return f"{key}={quoted(Path(value.replace('{data}', str(folder))))}"


def _check_keys(content: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(content) - known)
    if unknown:
        raise ConfigError(f"{where}: expected some of {', '.join(sorted(known))}, found {unknown[0]!r}")


def _check(study: Study, path: Path) -> None:
    if study.reference not in study.methods:
        raise ConfigError(
            f"study {path}: reference must be one of {', '.join(study.methods)}, found {study.reference!r}"
        )
    if study.tuning and set(study.tuning.seeds) & set(study.seeds):
        raise ConfigError(
            f"study {path}: tuning seeds {study.tuning.seeds} must not be seeds of the study {study.seeds}"
        )
    unknown = [name for name in (study.tuning.settings or ()) if name not in study.settings] if study.tuning else []
    if unknown:
        raise ConfigError(
            f"study {path}, tuning: expected settings among {', '.join(study.settings)}, found {unknown[0]!r}"
        )
    for setting, method, choice in _samples(study):
        job = study._job(setting, method, 0, FINAL, choice, study.tuning.base if study.tuning and choice else ())
        try:
            compose_config(join_overrides(list(job.overrides)))
        except ConfigError as error:
            raise ConfigError(f"study {path}, setting {setting}, method {method}: {error}") from error


def _samples(study: Study) -> list[tuple[str, str, tuple[str, ...]]]:
    """Every setting, every method and every choice at least once; all combinations would take a minute to compose."""
    settings, methods = list(study.settings), list(study.methods)
    choices = list(study.tuning.grid) if study.tuning else []
    return [
        *((setting, methods[0], ()) for setting in settings),
        *((settings[0], method, ()) for method in methods[1:]),
        *((settings[0], methods[0], choice) for choice in choices),
    ]
