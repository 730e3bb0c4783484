from pathlib import Path

import numpy as np
import pytest

from conf.compose import ConfigError
from server_app.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from server_app.folders import saved_overrides
from tests.support.adapters import random_state, small_spec

SPEC = small_spec()


def _save(folder: Path, number: int) -> None:
    save_checkpoint(folder, Checkpoint(number, 4.0 * number, random_state(SPEC, number), {"eval": {}}))


def test_the_position_and_every_bit_come_back(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    back = load_checkpoint(tmp_path, SPEC)
    assert back.server_round == 3 and back.sim_time_s == 12.0 and back.initial == {"eval": {}}
    np.testing.assert_array_equal(back.state.lora_A["q"], random_state(SPEC, 3).lora_A["q"])


@pytest.mark.parametrize("damage", ["truncate", "flip", "no position", "empty position"])
def test_damage_is_noticed_and_the_previous_round_used(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    tensors, position = tmp_path / "checkpoint" / "adapter.safetensors", tmp_path / "checkpoint" / "position.json"
    content = bytearray(tensors.read_bytes())
    if damage == "truncate":
        tensors.write_bytes(content[:-8])
    elif damage == "flip":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "no position":
        position.unlink()
    else:
        position.write_text("")
    assert load_checkpoint(tmp_path, SPEC).server_round == 1


def test_a_kill_between_the_two_renames_leaves_a_checkpoint(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    (tmp_path / "checkpoint").replace(tmp_path / "checkpoint.previous")
    assert load_checkpoint(tmp_path, SPEC).server_round == 1


def test_no_checkpoint_and_another_shape_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no usable checkpoint in .*start a new run"):
        load_checkpoint(tmp_path, SPEC)
    with pytest.raises(ConfigError, match="no run has begun"):
        saved_overrides(tmp_path)
    _save(tmp_path, 1)
    other = type(SPEC)(SPEC.modules[:1], SPEC.head)
    with pytest.raises(CheckpointError, match="lora_A/v: expected shape none, found"):
        load_checkpoint(tmp_path, other)
