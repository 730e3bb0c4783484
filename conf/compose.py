"""Compose the Hydra tree from one string of overrides: the same configuration on the server and on every device."""

import copy
import difflib
import functools
import hashlib
import itertools
import re
import shlex
import threading
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from conf.places import checkout, local_path, make_importable
from conf.schema import Config

CONF_DIR = Path(__file__).resolve().parent
ROOT = CONF_DIR.parent
PACKAGES = ("adapter", "client_app", "conf", "optimizer", "server_app", "strategy", "tasks", "wireless")
DEVICE_PACKAGES = ("adapter", "client_app", "conf", "tasks")  # what a device runs

# Keys that name files or folders of this machine.
FILES = ("task.train_file", "task.validation_file", "model.path", "model.gguf_file", "model.chat_template")
# The key inside a group that tells which choice it is.
NAMES = {f"{group}.name": group for group in ("task", "model", "strategy", "allocator", "tracking")}
NAMES["partition.kind"] = "partition"
# Import paths, `my.module:Mine`, stand where the names of ours do.
CLASSES = {f"{group}.class": key for key, group in NAMES.items() if group not in ("model", "tracking")}
_PART = re.compile(r"""(?:'[^']*'|"[^"]*"|[^,])+""")  # of a value with commas

# Hydra keeps one global instance and is not thread-safe; the local engine and Flower's server may compose from threads.
_LOCK = threading.Lock()


class ConfigError(ValueError):
    """An override that cannot be used; the message says what was expected, what was found and the nearest name."""


def split_overrides(text: str) -> list[str]:
    """Split a command-line string into overrides; ConfigError if a quote is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"cannot read the overrides {text!r}: {error}") from error


join_overrides = shlex.join  # the inverse of `split_overrides`


@functools.lru_cache(maxsize=32)
def compose_config(overrides: str = "") -> Config:
    """Compose and check overrides such as "run.seed=1"; it is cached: read-only. ConfigError, one line, if unusable."""
    items = [readable(item) for item in split_overrides(overrides)]
    check_names(items)
    try:
        return _typed(_compose(items))
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_one_line(error)) from error


def read_config(path: Path) -> Config:
    """Return what a run was resolved to; keys newer than the file take today's default. ConfigError if it is unfit."""
    if not path.is_file():
        raise ConfigError(f"expected the folder of a run with {path.name}, found none in {path.parent}")
    try:
        saved, defaults = OmegaConf.load(path), _compose([])
        OmegaConf.set_struct(defaults, False)
        if OmegaConf.select(saved, "device.classes"):
            defaults.device.classes = {}  # names of classes are the user's: merging would add the default ones
        return _typed(OmegaConf.merge(defaults, saved))
    except (OSError, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} does not fit this version: {_one_line(error)}") from error


def config_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def check_files(jobs: Iterable[Iterable[str]], remedy: str = "") -> None:
    """Refuse local files that are not there, those of all runs at once; ``remedy`` says what else helps here."""
    missing: dict[str, None] = {}
    for items in jobs:
        last = {key: item for item in items if (key := item.partition("=")[0]) in FILES}
        for key, value in ((key, _parsed(item).value()) for key, item in last.items()):
            of_hub = key == "model.path" and not str(value).startswith((".", "/", "~"))
            template = key == "model.chat_template" and "{" in str(value)  # the text itself
            if isinstance(value, str) and not of_hub and not template and local_path(value) is None:
                missing[f"{value} ({key})"] = None
    if missing:
        bases = " and ".join(str(base) for base in dict.fromkeys((Path.cwd(), checkout())))
        raise ConfigError(f"found no file {', '.join(missing)} in {bases}{remedy}; docs/data.md: which lies where")


def quoted(value: Path | str) -> str:
    """Return a path or a name as a value of Hydra's override grammar, in quotes where it needs them."""
    bare = f"x={value}"
    plain = _parses(bare) and not _parsed(bare).is_sweep_override() and _parsed(bare).value() == str(value)
    return str(value) if plain else in_quotes(value)


def in_quotes(value: Path | str) -> str:
    """Return a value in quotes, with those inside it escaped."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(value)) + "'"


def readable(item: str) -> str:
    """Quote what Hydra's grammar cannot read in ``key=value``: brackets, ~, =, apostrophes, other scripts than Latin.

    A comma still separates values, and brackets around the whole value still make a list. ``strategy.class`` becomes
    ``strategy.name``, and with the names of ours the choice of the group, whose other keys it brings.
    """
    key, equals, value = item.partition("=")
    if key in CLASSES:
        return readable(f"{CLASSES[key]}={value}")
    if key in NAMES and set(value.split(",")) <= set(choices(NAMES[key])):
        return f"{NAMES[key]}={value}"
    if not equals or _parses(item):
        return item
    listed = value.startswith("[") and value.endswith("]")
    parts = _PART.findall(value[1:-1] if listed else value)
    slips = [part for part in parts if (part[0] in "'\"" and part[0] != part[-1]) or part.count("[") != part.count("]")]
    if slips or ",".join(parts) != (value[1:-1] if listed else value):  # something is not closed, or empty
        return item
    joined = ",".join(part if _parses(f"x={part}") else quoted(part) for part in parts)
    return f"{key}=[{joined}]" if listed else f"{key}={joined}"


def _parses(item: str) -> bool:
    try:
        OverridesParser.create().parse_override(item)
    except HydraException:
        return False
    return True


def _compose(items: list[str]) -> DictConfig:
    """Compose as Hydra does; single keys are set on what the choices of groups compose to, which takes long."""
    chosen = [item for item in items if "." not in item.partition("=")[0]]
    config = copy.deepcopy(_composed(tuple(chosen)))
    for override in map(_parsed, (item for item in items if item not in chosen)):
        key, value = override.key_or_group, override.value()
        if isinstance(value, str | int | float) and list in _kinds(key):  # task.text_columns=text
            value = [value]
        try:
            known = OmegaConf.select(config, key) is not None  # nothing merges into null
            OmegaConf.update(config, key, value, merge=known)
        except (ConfigKeyError, ConfigAttributeError) as error:  # below a mapping whose names are fixed
            above = key.rpartition(".")[0]
            siblings = [f"{above}.{name}" for name in OmegaConf.select(config, above) or ()]
            raise ConfigError(_unknown("unknown key", key, siblings)) from error
    return config


@functools.lru_cache(maxsize=64)
def _composed(choices_of_groups: tuple[str, ...]) -> DictConfig:
    with _LOCK:
        hydra = GlobalHydra.instance()
        saved, hydra.hydra = hydra.hydra, None  # else a run inside @hydra.main cannot compose
        try:
            with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
                plain = compose("config", overrides=list(choices_of_groups))
        finally:
            hydra.hydra = saved
    typed = OmegaConf.merge(OmegaConf.structured(Config), plain)
    OmegaConf.set_struct(typed, True)
    return cast(DictConfig, typed)


def _typed(config: Any) -> Config:
    typed = cast(Config, OmegaConf.to_object(config))
    make_importable(typed)
    return typed


@functools.cache
def _keys() -> dict[str, Any]:
    """Return every dotted key with its field: type and admitted values."""
    return {f"{group.name}.{key.name}": key for group in fields(Config) for key in fields(cast(Any, group.type))}


def _kinds(key: str) -> set[Any]:
    """Return the kinds of containers that a key may hold: list, dict or neither."""
    kind = _keys()[key].type if key in _keys() else None
    return {get_origin(part) for part in (kind, *get_args(kind))}


def choices(group: str) -> list[str]:
    """Return the choices of a configuration group, sorted."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml") if not path.stem.startswith("_"))


def about(group: str, choice: str) -> str:
    """Return what the first comment of a choice's file says."""
    lines = (CONF_DIR / group / f"{choice}.yaml").read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if line.startswith("#") and "@package" not in line), "")
    return first.lstrip("# ").split("      ")[0].strip()


def groups() -> list[str]:
    """Return the names of all configuration groups, sorted."""
    return sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir() and any(path.glob("*.yaml")))


def valid_keys() -> tuple[str, ...]:
    """Return every dotted key of the tree, sorted."""
    return tuple(sorted((*_keys(), *CLASSES)))


def known_values(key: str) -> list[str]:
    """Return the choices of a group, or the words that a key takes; nothing where any number or text will do."""
    key = NAMES.get(key, key)
    if key in groups():
        return choices(key)
    if key not in _keys():
        return []
    words = _keys()[key].metadata.get("words", "")
    if words.startswith("one of "):
        return list(words.removeprefix("one of ").split(", "))
    return ["true", "false"] if _keys()[key].type is bool else []


def check_names(items: list[str], *, sweep: bool = False) -> None:
    """Refuse an unknown key or choice, naming the nearest; in a ``sweep`` a key may have several values, key=a,b."""
    for item in items:
        override = _parsed(item)
        key = override.key_or_group
        if override.package or override.is_delete() or override.is_add() or override.is_force_add():
            raise ConfigError(f"cannot read {item!r}: keys are neither added nor removed here; expected key=value")
        if override.is_sweep_override() and not sweep:
            values = item.partition("=")[2]
            raise ConfigError(
                f"{item!r} names several values; one run takes one value per key (several: fedlodrop sweep; a list: "
                f"'{key}=[{values}]'; a comma within a value: \"{key}='{values}'\")"
            )
        if key in groups():
            for choice in _values(override):
                if choice.strip("'\"") not in choices(key):
                    raise ConfigError(_unknown(f"{key} has no choice", choice, choices(key)))
        elif key not in _keys() and dict not in _kinds(".".join(key.split(".")[:2])):  # nor named by the user
            raise ConfigError(_unknown("unknown key", key, [*valid_keys(), *groups()]))


def expand_sweep(items: list[str]) -> list[list[str]]:
    """Return the overrides of every job of a sweep: all combinations, the last key varies fastest."""
    settings = [[f"{override.key_or_group}={value}" for value in _values(override)] for override in map(_parsed, items)]
    return [list(job) for job in itertools.product(*settings)]


def swept(items: list[str]) -> list[str]:
    """Return the keys that take several values."""
    return [override.key_or_group for override in map(_parsed, items) if override.is_sweep_override()]


def _parsed(item: str) -> Override:
    try:
        return OverridesParser.create().parse_override(item)
    except HydraException as error:
        raise ConfigError(f"cannot read the override {item!r}; expected key=value ({_one_line(error)})") from error


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line!r}: expected the values of a sweep one by one: key=a,b,c")
    return list(override.sweep_string_iterator())


def _unknown(what: str, found: str, valid: list[str]) -> str:
    last = "." + found.rsplit(".", 1)[-1]
    near = [key for key in valid if "." in key and key.endswith(last)]  # run.lr: training.lr
    near = near or difflib.get_close_matches(found, valid, n=1, cutoff=0.5)
    listing = f"; valid: {', '.join(valid)}" if 0 < len(valid) <= 20 else ""
    return f"{what} {found!r}" + (f"; did you mean {near[0]!r}?" if near else "") + listing


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), "")
    return f"{key}: {message}" if key and key not in message else message


@functools.lru_cache(maxsize=4)
def source_digest(packages: tuple[str, ...] = PACKAGES) -> bytes:
    """Return 8 bytes that identify the code and the configuration files of these packages.

    The server sends that of `DEVICE_PACKAGES`: a Ray worker takes its code from where the SuperLink was started, and a
    device with other code refuses to work instead of silently running it.
    """
    digest = hashlib.sha256()
    for path in source_files(packages):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()[:8]


def source_files(packages: tuple[str, ...] = PACKAGES) -> list[Path]:
    """Return the code and the configuration files of these packages, one after the other."""
    found = (path for package in packages for path in sorted((ROOT / package).rglob("*")))
    return [path for path in found if path.suffix in (".py", ".yaml") and "__pycache__" not in path.parts]
