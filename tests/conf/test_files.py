"""Configuration files of people's own, and the presets."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from conf.compose import ConfigError, choices, compose_config, config_yaml, join_overrides
from conf.files import file_overrides, with_files


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_partial_files_lie_on_the_defaults_and_overrides_win(tmp_path: Path) -> None:
    one = _write(tmp_path / "one.yaml", "task: cola\nallocator: {name: exact, gap: 1e-3}\ntraining.lr: 0.5\n")
    two = _write(
        tmp_path / "two.yaml", "defaults:\n  - override /model: tiny\ntraining:\n  lr: 0.25\nrun.name: it's, a\n"
    )
    config = compose_config(join_overrides(with_files([one, two], ["allocator=equal", "run.seed=7"])))
    assert (config.task.name, config.model.name, config.training.lr) == ("cola", "tiny", 0.25)
    assert (config.allocator.name, config.allocator.gap) == ("equal", compose_config("allocator=equal").allocator.gap)
    assert config.run.name == "it's, a" and config.run.seed == 7


@pytest.mark.parametrize(
    ("named", "chosen"),
    [
        ("task.name=tsv task.train_file=my.csv", "task=tsv task.train_file=my.csv"),
        ("task.class=cola", "task=cola"),
        ("model.name=tiny", "model=tiny"),
        ("strategy.name=ffa_lora", "strategy=ffa_lora"),
        ("allocator.name=equal", "allocator=equal"),
        ("partition.kind=dirichlet", "partition=dirichlet"),
        ("tracking.name=none", "tracking=none"),
    ],
)
def test_a_name_inside_a_group_chooses_the_group_with_its_defaults(tmp_path: Path, named: str, chosen: str) -> None:
    asked = asdict(compose_config(chosen))
    assert asdict(compose_config(named)) == asked
    tree: dict[str, dict[str, str]] = {}
    for group, key, value in (re.split("[.=]", item, maxsplit=2) for item in named.split()):
        tree.setdefault(group, {})[key] = value
    inside = _write(tmp_path / "my.yaml", yaml.safe_dump(tree))
    assert file_overrides(inside) == chosen.split()
    assert asdict(compose_config(join_overrides(file_overrides(inside)))) == asked
    earlier = _write(tmp_path / "earlier.yaml", "allocator: {gap: 1e-3}\ntask: {train_file: other.csv}\n")
    above = with_files([earlier], [*named.split()])
    assert asdict(compose_config(join_overrides(above))) == asdict(
        compose_config(join_overrides(with_files([earlier], chosen.split())))
    )


@pytest.mark.parametrize(
    "overrides",
    ["", "device=phone strategy=hetlora run.seed=3", "task=tsv task.labels=[a,'b, c',1] run.dir=/somewhere"],
)
def test_a_runs_own_configuration_repeats_it(tmp_path: Path, overrides: str) -> None:
    config = compose_config(overrides)
    again = compose_config(join_overrides(file_overrides(_write(tmp_path / "config.yaml", config_yaml(config)))))
    config.run.dir, kept = None, config.run.dir
    assert asdict(again) == asdict(config)
    config.run.dir = kept


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainin:\n  lr: 1\n", "did you mean 'training.lr'"),
        ("task: colla\n", "did you mean 'cola'"),
        ("- a\n", "expected keys and values, found list"),
        ("a: [\n", "expected a readable YAML file"),
    ],
)
def test_what_a_file_gets_wrong_is_one_line_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        file_overrides(_write(tmp_path / "my.yaml", text))
    assert said in str(caught.value) and "my.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_the_editors_schema_knows_what_a_file_may_hold() -> None:
    import jsonschema

    from conf.reference import json_schema

    good = "defaults: [{override /task: calls}]\nmodel: tiny\nexperiment: tight-cell\nrun: {num_rounds: 3}\n"
    jsonschema.validate(yaml.safe_load(good), json_schema())
    for bad in ("model: tinny", "experiment: nowhere", "run: {num_round: 3}"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(bad), json_schema())


@pytest.mark.parametrize("name", choices("experiment"))
def test_a_preset_says_what_it_is(name: str) -> None:
    from conf.compose import about

    assert len(about("experiment", name)) > 20 and compose_config(f"experiment={name}")
