"""Configuration files of people's own: partial YAML files, or a run's config.yaml, as overrides."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.compose import CONF_DIR, ConfigError, check_names, choices, groups, quoted, readable
from conf.schema import DeviceClassConfig

_MAPPINGS = ("strategy.ranks",)  # with names of the user's: set as a whole
_PLACES = ("run.dir", "run.resume")  # where a run lies, not what it is


def with_files(files: Sequence[str | Path], overrides: Sequence[str]) -> list[str]:
    """Return files and overrides as one list of overrides: a later file wins over an earlier one, overrides over all.

    Choosing a group (``allocator=equal``) takes the place of all that earlier files say of the group.
    """
    found: list[str] = []
    for above in (*map(file_overrides, files), list(overrides)):
        chosen = {key for item in above if (key := readable(item).partition("=")[0]) in groups()}
        found = [item for item in found if item.partition("=")[0].split(".")[0] not in chosen] + above
    return found


def file_overrides(path: str | Path) -> list[str]:
    """Return what a file sets as overrides; ``task: cola``, its name, or a ``defaults`` list choose a group.

    ConfigError, one line, if it cannot be read, or holds an unknown key or choice.
    """
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: expected a readable YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}")
    listed = [entry for item in tree.pop("defaults", None) or () if isinstance(item, dict) for entry in item.items()]
    chosen = [f"{name.removeprefix('override ').lstrip('/')}={choice}" for name, choice in listed]
    chosen += [f"{name}={tree.pop(name)}" for name in list(tree) if name in groups() and isinstance(tree[name], str)]
    device = _device_choice(tree)
    items = [*chosen, *([f"device={device}"] if device else []), *_leaves(tree)]
    items = [readable(item) for item in items if item.partition("=")[0] not in _PLACES]
    try:
        check_names(items)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return items


def _device_choice(tree: dict[Any, Any]) -> str | None:
    """Return which choice of conf/device has the classes that a file describes in full, as a run's config.yaml does."""
    classes = (tree.get("device") or {}).get("classes") or {}
    whole = {field.name for field in fields(DeviceClassConfig)}
    if not classes or any(set(found) != whole for found in classes.values()):
        return None
    known = ((name, yaml.safe_load((CONF_DIR / "device" / f"{name}.yaml").read_text())) for name in choices("device"))
    return next((name for name, content in known if set(content["classes"]) == set(classes)), None)


def _leaves(tree: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in _MAPPINGS:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return json.dumps(value)
