import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conf.compose import (
    CONF_DIR,
    DEVICE_PACKAGES,
    PACKAGES,
    ConfigError,
    _compose,
    choices,
    compose_config,
    config_yaml,
    groups,
    join_overrides,
    source_digest,
    split_overrides,
    valid_keys,
)
from conf.schema import Config


def test_every_choice_of_every_group_composes() -> None:
    """Groups that go with one another side by side: one composition for the first choice of each, one for the second."""
    alone = ("experiment", "model")
    apart = [f"{group}={choice}" for group in alone for choice in choices(group)]
    beside = [[f"{group}={choice}" for choice in choices(group)] for group in groups() if group not in alone]
    for items in [*([item] for item in apart), *itertools.zip_longest(*beside)]:
        words = [item for item in items if item]
        compose_config(" ".join([*words, *(["model.path=x"] if {"model=hub", "task=hub"} & set(words) else [])]))


@pytest.mark.parametrize(
    "items",
    [
        ["experiment=llm", "run.seed=3", "training.lr=1e-3"],
        ["training.lr=0.1", "task=tsv", "task.train_file='a b.tsv'", "task.text_columns=[a,b]"],
        ["strategy.phases=[B,B,A]", "strategy=rolora", "lora.target_modules=null", "training.lr=${training.head_lr}"],
        ["device=laptop", "run.num_rounds=2", "run.num_rounds=3", "device.classes.laptop={cpu_hz: 1e9}"],
        ["network=ofdma", "network.num_subcarriers=16", "budget.battery_j=null"],
        ["budget.battery_j={watch: 20.0}", "strategy.ranks={watch: 2}", "device=watch"],
    ],
    ids=lambda items: items[0],
)
def test_what_is_set_on_a_remembered_composition_is_what_hydra_composes(items: list[str]) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        expected = OmegaConf.merge(OmegaConf.structured(Config), compose("config", overrides=items))
    for _ in range(2):  # the first must leave no trace
        assert _compose(items) == expected


def test_every_example_in_a_yaml_header_composes() -> None:
    # The launch commands in the comments are what people copy.
    commands = []
    for path in CONF_DIR.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            if line.startswith("#") and "fedlodrop run" in line:
                text = line.split("fedlodrop run", 1)[1].split("  ")[0].strip()
                commands.append((path.name, text))
    assert len(commands) > 10
    for name, text in commands:
        try:
            compose_config(text)
        except ConfigError as error:
            pytest.fail(f"{name}: fedlodrop run {text}: {error}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.lrr=1", "training.lr"),
        ("device.classes.watch.cpu=1", "did you mean 'device.classes.watch.cpu_hz'"),
        ("device.classes.mine.cpu_hz=1", "unknown key"),
        ("run.lr=1", "training.lr"),
        ("stratgy=fedit", "strategy"),
        ("strategy=fedlodrp", "fedlodrop"),
        ("allocator=bbn", "bnb"),
        ("+training.new=1", "neither added nor removed"),
        ("~task", "neither added nor removed"),
        ("run.num_rounds", "key=value"),
        ("allocator=exact,equal", "one value per key"),
        ("run.num_rounds=ten", "run.num_rounds"),
        ("training.lr=fast", "training.lr"),
        ("network.num_devices=0", "network.num_devices must be at least 1, found 0"),
        ("budget.max_dropout_rate=1.0", "budget.max_dropout_rate must be in [0, 1)"),
        ("wire.dtype=fp64", "fp32, fp16"),
        ("training.device=cuda:x", "auto, cpu, cuda or cuda:N, found 'cuda:x'"),
        ("run.name=../x", "plain folder name"),
        ("lora.layers=some", "lora.layers"),
        ("training.local_steps=null", "training.local_steps"),
        ("'run.name=\"a", "quot"),
        ("privacy.clip_norm=inf", "privacy.clip_norm must be a finite number, found inf"),
        (
            "privacy.clip_norm=1 privacy.noise_multiplier=inf",
            "privacy.noise_multiplier must be a finite number, found inf",
        ),
        ("training.lr=inf", "training.lr must be a finite number, found inf"),
        ("budget.deadline_s=inf", "budget.deadline_s must be a finite number, found inf"),
        ("device.classes.watch.cpu_hz=inf", "device.classes.watch.cpu_hz must be a finite number"),
        ("allocator.cpu_range=[0.5,inf]", "allocator.cpu_range must be a finite number"),
        ("task.holdout=0", "task.holdout must be at least 1 or null (they choose the best round), found 0"),
    ],
)
def test_a_wrong_override_is_one_line_with_a_remedy(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(override)
    message = str(caught.value)
    assert expected in message and "\n" not in message


def test_values_with_brackets_quotes_and_dots_pass_through() -> None:
    items = [
        "task=tsv",
        "task.text_columns=[sentence1,sentence2]",
        "task.train_file='/tmp/a b/x=1,2.tsv'",
        "run.name='a.b'",
    ]
    config = compose_config(join_overrides(items))
    assert config.task.text_columns == ["sentence1", "sentence2"] and config.task.train_file == "/tmp/a b/x=1,2.tsv"
    assert split_overrides(join_overrides(items)) == items


def test_epochs_take_the_place_of_steps() -> None:
    config = compose_config("training.local_epochs=2")
    assert config.training.local_epochs == 2 and config.training.local_steps is None


def test_the_resolved_configuration_is_yaml_with_every_key() -> None:
    tree = OmegaConf.create(config_yaml(compose_config("run.seed=5")))
    assert tree.run.seed == 5
    for key in valid_keys():
        if not key.startswith("device.classes."):
            assert OmegaConf.select(tree, key, throw_on_missing=True) is not ... and key.split(".")[0] in tree


def test_the_digest_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source_digest()
    assert len(first) == 8 and first == source_digest()
    monkeypatch.setattr("conf.compose.ROOT", tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "x.py").write_text("a = 1")
    source_digest.cache_clear()
    other = source_digest()
    (tmp_path / "tasks" / "x.py").write_text("a = 2")
    source_digest.cache_clear()
    assert len({first, other, source_digest()}) == 3
    source_digest.cache_clear()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_device_is_asked_for_the_code_that_it_runs_and_for_no_other(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conf.compose.ROOT", tmp_path)
    digests = []
    for content in ("a = 1", "a = 2"):
        (tmp_path / package / "inner").mkdir(parents=True, exist_ok=True)
        (tmp_path / package / "inner" / "x.py").write_text(content)
        source_digest.cache_clear()
        digests.append((source_digest(), source_digest(DEVICE_PACKAGES)))
    source_digest.cache_clear()
    (every, device), (every_after, device_after) = digests
    assert every != every_after  # what a run's records name is the whole source
    assert (device != device_after) == (package in ("adapter", "client_app", "conf", "tasks"))


def test_server_and_device_compare_what_a_device_runs() -> None:
    from client_app.app import _require_same_code

    context = SimpleNamespace(run_config={"overrides": ""})
    _require_same_code(source_digest(DEVICE_PACKAGES), context)
    with pytest.raises(RuntimeError, match="other code than the server"):
        _require_same_code(source_digest(), context)
    newer = SimpleNamespace(run_config={"overrides": "run.key_of_a_newer_server=1"})
    with pytest.raises(RuntimeError, match="other code than the server"):  # not the server's settings are at fault
        _require_same_code(source_digest(), newer)
