"""The configuration groups of this package: same keys everywhere, every file usable as it is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tasks.data.glue import GLUE
from tasks.data.load import TASKS
from tasks.settings import LoraSettings, ModelSettings

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = {group: sorted((CONF / group).rglob("*.yaml")) for group in ("task", "model", "partition", "lora")}


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path", [path for files in FILES.values() for path in files], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_same_keys_no_targets_and_a_header_with_a_command(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "#   fedlodrop run " in text
    assert "_target_" not in text
    assert set(read(path)) == set(read(FILES[path.parent.name][0]))


def test_every_task_has_a_file_that_names_it():
    assert {path.stem for path in FILES["task"]} == set(TASKS)
    for path in FILES["task"]:
        values = read(path)
        assert values["name"] == path.stem
        if path.stem in GLUE:
            assert tuple(values["text_columns"]) == GLUE[path.stem].text_columns
            assert values["kind"] == GLUE[path.stem].kind


def test_models_and_lora_are_accepted():
    for path in FILES["model"]:
        values = read(path) | ({"path": "some/model"} if path.stem == "hub" else {})
        assert ModelSettings(**values).name == path.stem
    values = read(CONF / "lora" / "default.yaml")
    assert values.pop("scale_by_devices") is False  # becomes part of lora_alpha on the server
    assert LoraSettings(lora_alpha=values.pop("alpha"), **values) == LoraSettings()
