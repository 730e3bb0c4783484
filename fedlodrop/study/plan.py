"""The plan of a study: one YAML file, checked; a study of runs is expanded into jobs, an analysis is computed."""

import hashlib
import importlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from conf.compose import ROOT, ConfigError, check_files, compose_config, in_quotes, join_overrides
from server_app.results import write_atomic

ANALYSES = ("convergence", "learning_curve", "linear_model")  # modules of `fedlodrop.study.analyses`
TUNING, FINAL = "tuning", "final"
# Everybody is served at any dropout rate: a calibration measures learning, not the radio.
_GENEROUS = "network.total_bandwidth_hz=1e9 budget.deadline_s=1000 budget.energy_j=1e9 budget.max_dropout_rate=0.95"


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    setting: str
    method: str
    seed: int  # run.seed
    phase: str  # tuning or final
    choice: str  # the values of the tuned keys, as overrides separated by blanks; empty where nothing is tuned
    overrides: tuple[str, ...]  # everything but run.dir

    @property
    def folder(self) -> str:
        """Relative folder; a digest of all overrides keeps the runs of two plans apart."""
        words, digest = re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.choice), _digest(self.overrides)[:8]
        return f"{self.setting}/{self.method}/{self.phase}-seed-{self.seed}{'-' + words if words else ''}-{digest}"

    @property
    def plan(self) -> str:
        """Digest of everything that is run, wherever its files lie: what a table says under it is this run's."""
        named = (re.sub(r"^([^=]*_file=['\"]?).*/", r"\1", item) for item in (*self.overrides, self.phase))
        return _digest(named)[:12]


def _digest(items: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(items).encode()).hexdigest()


@dataclass(frozen=True)
class Tuning:
    """Which values are tried for every method: the same grid, seeds and length, so the same budget.

    ``settings`` says where the trials are run; their mean score then chooses one set per method for all settings with
    the same part in their names ("": for all). None: trials in every setting, and a choice for each.
    """

    grid: tuple[tuple[str, ...], ...]  # sets of overrides to choose from
    seeds: tuple[int, ...]  # of the trials; none of them is a seed of the study
    base: tuple[str, ...] = ()  # overrides of the trials only, e.g. fewer rounds
    settings: Mapping[str, tuple[str, ...]] | None = None

    def group(self, setting: str) -> str | None:
        """Return what names the settings that share this one's choice; None where the plan forgot it."""
        if self.settings is None:
            return setting
        return next((part for part in ("", *setting.split("-")) if part in self.settings), None)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every study says of itself."""

    name: str
    title: str
    question: str
    seeds: tuple[int, ...]
    targets: tuple[Mapping[str, Any], ...] = ()
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Analysis(Plan):
    """A study that is mathematics, not runs; ``parameters`` are those of the function ``study`` of its module."""

    analysis: str
    parameters: dict[str, Any]

    def run(self, folder: Path) -> None:
        """Compute the table (a row per setting and seed) and the figure anew, and write them into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        module = importlib.import_module(f"fedlodrop.study.analyses.{self.analysis}")
        table = module.study(self.parameters, self.seeds, folder)
        write_atomic(folder / "table.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


@dataclass(frozen=True, kw_only=True)
class Study(Plan):
    """A study of runs."""

    base: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]
    methods: Mapping[str, tuple[str, ...]]
    reference: str
    tuning: Tuning | None
    figures: tuple[str, ...] = ("rounds",)
    target_metric: float | None = None
    calibrate: bool = False

    @property
    def federated(self) -> list[str]:
        """Methods that average: no reference line, of one device that has everything or of devices alone."""
        alone = {"strategy=centralized", "strategy=local"}
        return [name for name, own in self.methods.items() if alone.isdisjoint(last_of_each((*self.base, *own)))]

    def tuning_jobs(self) -> list[Job]:
        """Return the trials of every method in every setting."""
        if self.tuning is None:
            return []
        settings = self.settings if self.tuning.settings is None else itertools.chain(*self.tuning.settings.values())
        grid = itertools.product(settings, self.methods, self.tuning.grid, self.tuning.seeds)
        return [self._job(s, m, seed, TUNING, choice, self.tuning.base) for s, m, choice, seed in grid]

    def final_jobs(self, chosen: Mapping[tuple[str, str], tuple[str, ...]]) -> list[Job]:
        """Return the runs that are compared, with the chosen values of the tuned keys.

        Seed by seed: an interrupted study has fewer seeds of everything, not everything of some methods.
        """
        grid = itertools.product(self.seeds, self.settings, self.methods)
        known = ((seed, s, m) for seed, s, m in grid if self.tuning is None or (s, m) in chosen)
        return [self._job(s, m, seed, FINAL, chosen.get((s, m), ())) for seed, s, m in known]

    def check_data(self, remedy: str = "") -> None:
        """Refuse a study whose data files are missing at once, not run by run."""
        pairs = itertools.product(self.settings, self.methods, self.seeds)
        check_files((self._job(s, m, seed, FINAL).overrides for s, m, seed in pairs), remedy)

    def check(self, where: str) -> None:
        """Refuse what no run would take: a wrong name, a seed that is used twice, an override that cannot be read."""
        tuning = self.tuning
        if self.reference not in self.methods:
            raise ConfigError(f"{where}: reference must be one of {', '.join(self.methods)}, found {self.reference!r}")
        if tuning and set(tuning.seeds) & set(self.seeds):
            raise ConfigError(f"{where}: tuning seeds {tuning.seeds} must not be seeds of the study {self.seeds}")
        if tuning:
            self._check_trials(tuning, where)
        # Every setting, every method and every choice at least once; all combinations would take a minute to compose.
        (setting, *_), (method, *others) = self.settings, self.methods
        jobs = [self._job(each, method, 0, FINAL) for each in self.settings]
        jobs += [self._job(setting, each, 0, FINAL) for each in others]
        jobs += [self._job(setting, method, 0, TUNING, each, tuning.base) for each in tuning.grid] if tuning else []
        for job in jobs:
            try:
                compose_config(join_overrides(list(job.overrides)))
            except ConfigError as error:
                raise ConfigError(f"{where}, setting {job.setting}, method {job.method}: {error}") from error

    def _check_trials(self, tuning: Tuning, where: str) -> None:
        for part, names in (tuning.settings or {}).items():
            if unknown := [name for name in names if name not in self.settings or tuning.group(name) != part]:
                expected = f"expected {part and f'{part} '}settings among {', '.join(self.settings)}"
                raise ConfigError(f"{where}, tuning: {expected}, found {unknown[0]!r}")
        if forgotten := [name for name in self.settings if tuning.group(name) is None]:
            raise ConfigError(f"{where}, tuning: expected trials for every setting, found none for {forgotten[0]!r}")

    def _job(
        self, setting: str, method: str, seed: int, phase: str, choice: Sequence[str] = (), more: Sequence[str] = ()
    ) -> Job:
        overrides = (*self.base, *self.settings[setting], *self.methods[method], *choice, *more, f"run.seed={seed}")
        return Job(setting, method, seed, phase, " ".join(choice), last_of_each(overrides))


def last_of_each(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the last override of every key, groups first: a group chosen later would overwrite single keys."""
    last = {item.split("=", 1)[0]: item for item in overrides}
    return tuple(sorted(last.values(), key=lambda item: "." in item.split("=", 1)[0]))


def read_study(path: Path, *, quick: bool = False, data_dir: Path | None = None) -> Study | Analysis:
    """Read a study file and check every override, so that a wrong key shows before anything runs.

    A file that ships with the package goes by its name (`shipped`). ``quick`` applies the file's section of that name:
    tiny sizes, the same code. ``data_dir`` stands for ``{data}`` in overrides; None takes the file's. Raises
    ConfigError if the file, a key of it or an override cannot be used.
    """
    path = shipped(path)
    where = f"study {path}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{where}: expected a readable YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected keys and values, found {type(content).__name__}")
    kind, needed = (Analysis, ("parameters",)) if "analysis" in content else (Study, ("settings", "methods"))
    known = {field.name for field in fields(kind)} - {"name"} | ({"data_dir", "quick"} if kind is Study else {"quick"})
    _check_keys(content, known, ("title", *needed, "seeds"), where)
    words = {
        "name": path.stem,
        "title": content["title"],
        "question": " ".join(str(content.get("question", "")).split()),
        "seeds": tuple(int(seed) for seed in content["seeds"]),
        "targets": tuple(content.get("targets") or ()),
        "notes": str(content.get("notes") or "").strip(),
    }
    small = (content.get("quick") or {}) if quick else {}
    if kind is Analysis:
        if content["analysis"] not in ANALYSES:
            raise ConfigError(f"{where}: analysis must be one of {', '.join(ANALYSES)}, found {content['analysis']!r}")
        parameters = {**content["parameters"], **small.get("parameters", {})}
        seeds = tuple(small.get("seeds") or words["seeds"])
        return Analysis(**words | {"analysis": content["analysis"], "parameters": parameters, "seeds": seeds})
    folder = Path(data_dir if data_dir is not None else content.get("data_dir") or ".").expanduser().resolve()
    study = _study(content, words, folder, where)
    if quick:
        study = _quick(study, small, folder, where)
    study.check(where)
    return study


def shipped(path: Path) -> Path:
    """Return the path of a study file; for ``NAME`` or ``studies/NAME.yaml`` without one, that in the package."""
    if path.exists() or path.parent not in (Path(), Path("studies")):
        return path
    folders = (ROOT / "studies", Path(__file__).parent / "studies")  # of a checkout, and of an installed wheel
    found = (folder / path.with_suffix(".yaml").name for folder in folders)
    return next((place for place in found if place.exists()), path)


def _check_keys(content: dict[str, Any], known: set[str], needed: Sequence[str], where: str) -> None:
    if unknown := sorted(set(content) - known):
        raise ConfigError(f"{where}: expected some of {', '.join(sorted(known))}, found {unknown[0]!r}")
    if missing := [key for key in needed if not content.get(key)]:
        raise ConfigError(f"{where}: expected the key {missing[0]!r}, found none")


def _study(content: dict[str, Any], words: dict[str, Any], folder: Path, where: str) -> Study:
    methods = {name: _items(items, folder) for name, items in content["methods"].items()}
    return Study(
        **words,
        base=_items(content.get("base"), folder),
        settings=_product(content["settings"], folder),
        methods=methods,
        reference=content.get("reference") or next(iter(methods)),
        tuning=_tuning(content.get("tuning"), folder, where),
        figures=tuple(content.get("figures") or ("rounds",)),
        target_metric=content.get("target_metric"),
        calibrate=bool(content.get("calibrate")),
    )


def _quick(study: Study, quick: dict[str, Any], folder: Path, where: str) -> Study:
    _check_keys(quick, {"base", "settings", "methods", "seeds", "tuning"}, (), f"{where}, quick")

    def some(known: Mapping[str, tuple[str, ...]], names: list[str] | None) -> dict[str, tuple[str, ...]]:
        if unknown := [name for name in names or () if name not in known]:
            raise ConfigError(f"{where}, quick: expected some of {', '.join(known)}, found {unknown[0]!r}")
        return {name: items for name, items in known.items() if names is None or name in names}

    sizes = _items(quick.get("base"), folder)
    return replace(
        study,
        settings=some(study.settings, quick.get("settings")),
        # The sizes come after what settings say.
        methods={name: (*items, *sizes) for name, items in some(study.methods, quick.get("methods")).items()},
        seeds=tuple(quick.get("seeds") or study.seeds[:1]),
        tuning=_tuning(quick.get("tuning"), folder, where) or study.tuning,
    )


def _product(axes: Any, folder: Path) -> dict[str, tuple[str, ...]]:
    """Settings: one mapping of name to overrides, or a list of such axes, all of whose combinations are run."""
    combined = itertools.product(*(axis.items() for axis in (axes if isinstance(axes, list) else [axes])))
    return {
        "-".join(str(name) for name, _ in parts): tuple(item for _, items in parts for item in _items(items, folder))
        for parts in combined
    }


def _tuning(content: dict[str, Any] | None, folder: Path, where: str) -> Tuning | None:
    if not content:
        return None
    _check_keys(content, {"grid", "seeds", "base", "settings"}, ("grid", "seeds"), f"{where}, tuning")
    values = itertools.product(*([f"{key}={value}" for value in some] for key, some in content["grid"].items()))
    told = content.get("settings")
    groups = told if isinstance(told, dict) else {"": told}
    settings = {part: tuple(names or ()) for part, names in groups.items()} if told else None
    return Tuning(tuple(values), tuple(content["seeds"]), _items(content.get("base"), folder), settings)


def _items(items: Iterable[str] | None, folder: Path) -> tuple[str, ...]:
    """Return overrides with the data folder in place of ``{data}``, in quotes: finished runs keep their names."""
    parts = (str(item).partition("=") for item in items or ())
    return tuple(
        f"{key}={in_quotes(value.replace('{data}', str(folder)))}" if "{data}" in value else f"{key}{equals}{value}"
        for key, equals, value in parts
    )


def sweep_of_rates(overrides: list[str], rates: str, seeds: int) -> Study:
    """Return the study behind `fedlodrop calibrate`: one method per dropout rate, in a cell that serves everybody."""
    try:
        values = sorted({float(rate) for rate in rates.split(",")})
    except ValueError:
        raise ConfigError(f"--rates: expected numbers separated by commas, found {rates!r}") from None
    if len(values) < 3 or values[0] < 0 or values[-1] >= 1 or seeds < 1:
        raise ConfigError(
            f"calibrate: expected three rates or more in [0, 1) and a seed, found rates {values}, seeds {seeds}"
        )
    task = compose_config(join_overrides(overrides)).task.name
    fixed = ("strategy=fedlodrop", "allocator=fixed", *_GENEROUS.split())
    return Study(
        name="calibration",
        title=f"Sweep of dropout rates, {task}",
        question="",
        base=last_of_each(("tracking=none", *overrides)),
        settings={task: ()},
        methods={f"gamma_{rate:g}": (*fixed, f"allocator.dropout_rate={rate:g}") for rate in values},
        seeds=tuple(range(seeds)),
        reference=f"gamma_{values[0]:g}",
        tuning=None,
    )
