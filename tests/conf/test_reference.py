"""The generated reference and schema are up to date and true."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest

from conf.compose import compose_config, valid_keys
from conf.reference import REFERENCE, SCHEMA, json_schema, reference


def test_both_files_are_up_to_date() -> None:
    assert REFERENCE.read_text() == reference(), "run: python -m conf.reference"
    assert json.loads(SCHEMA.read_text()) == json_schema(), "run: python -m conf.reference"


def test_every_key_is_listed() -> None:
    text = REFERENCE.read_text()
    leaves = [key for key in valid_keys() if key.count(".") == 1]
    assert len(leaves) > 80 and [key for key in leaves if f"`{key}`" not in text] == []


@pytest.mark.parametrize(
    "overrides", ["", "network=ofdma task=cola model=tiny", "lora.layers=2 strategy=rolora device=phone"]
)
def test_configurations_fit_the_schema(overrides: str) -> None:
    jsonschema.validate(dataclasses.asdict(compose_config(overrides)), json_schema())


def test_the_schema_refuses_unknown_keys_and_types() -> None:
    config = dataclasses.asdict(compose_config(""))
    for section, change in (("run", {"sed": 1}), ("training", {"lr": "fast"})):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**config, section: {**config[section], **change}}, json_schema())
