"""Values as people write them: paths, other scripts, single names where a list is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.compose import ConfigError, compose_config, expand_sweep, join_overrides, quoted, readable
from conf.convert import lora_settings
from server_app.folders import results_folder


@pytest.mark.parametrize(
    "path",
    [
        "/data/my runs/train.tsv",
        "/data/train [1].tsv",
        "~/train.tsv",
        "/data/日本語.tsv",
        "/data/Übung (neu).tsv",
        "/a=b/c.tsv",
        "/it's/#1 & more;!.tsv",
        "C:\\data\\train.tsv",
        "[draft]/train.tsv",
        "/données/<x>^`y`.tsv",
    ],
)
def test_a_path_needs_no_quotes_of_hydra(path: str) -> None:
    assert compose_config(join_overrides([f"task.train_file={path}"])).task.train_file == path
    assert compose_config(join_overrides([f"task.train_file={quoted(Path(path))}"])).task.train_file == path


def test_names_in_other_scripts_work_in_lists_and_sweeps() -> None:
    config = compose_config(join_overrides(["task.text_columns=[文本,'a, b']", "task.labels=[да,нет,1]"]))
    assert config.task.text_columns == ["文本", "a, b"] and config.task.labels == ["да", "нет", 1]
    jobs = expand_sweep([readable("task.label_column=метка,label"), "run.seed=0"])
    assert [compose_config(join_overrides(job)).task.label_column for job in jobs] == ["метка", "label"]


@pytest.mark.parametrize("item", ["training.lr", "task.train_file=a,", "run.name='open", "task.labels=[a,б"])
def test_what_is_no_key_and_value_is_still_refused(item: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        compose_config(join_overrides([item]))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("task.text_columns=text", ["text"]),
        ("lora.target_modules=query", ["query"]),
        ("allocator.fallback=equal", ["equal"]),
        ("task.labels=7", [7]),
        ("task.text_columns=null", None),
    ],
)
def test_a_single_value_stands_for_a_list_of_one(item: str, expected: list[str] | None) -> None:
    group, name = item.split("=")[0].split(".")
    assert getattr(getattr(compose_config(item), group), name) == expected


def test_several_values_say_how_a_list_and_a_comma_are_written() -> None:
    with pytest.raises(ConfigError, match=r"list.*\[query,key\].*comma"):
        compose_config("lora.target_modules=query,key")


@pytest.mark.parametrize("key", ["run.seed", "privacy.noise_seed"])
def test_a_seed_that_no_generator_takes_is_one_line(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*found 12345678901234567890"):
        compose_config(f"{key}=12345678901234567890")
    assert compose_config(f"{key}=9223372036854775807")


def test_the_home_folder_is_not_a_folder_named_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert results_folder(compose_config("run.dir=~/x"), tmp_path, ("d", "t")) == tmp_path / "home" / "x"


def test_the_scale_grows_with_the_root_of_the_devices_asked() -> None:
    found = {
        overrides: lora_settings(
            compose_config(f"lora.scale_by_devices=true lora.r=4 lora.alpha=8 {overrides}")
        ).scaling
        for overrides in ("", "lora.use_rslora=true", "strategy.devices_per_round=4", "strategy.fraction=0.25")
    }
    n, r, alpha = 10, 4, 8
    assert list(found.values()) == pytest.approx(
        [alpha * n**0.5 / r, alpha * (n / r) ** 0.5, alpha * 4**0.5 / r, alpha * 3**0.5 / r]
    )


def test_phases_hold_both_factors_and_begin_with_lora_B() -> None:
    assert compose_config("strategy.phases=[B,B,A]").strategy.phases == ["B", "B", "A"]
    for wrong in ("[A,B]", "[B]", "[]", "[B,C]"):
        with pytest.raises(ConfigError, match="begins with B"):
            compose_config(f"strategy.phases={wrong}")
