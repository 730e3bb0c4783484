"""RoLoRA's toy: images, the network, and a federation on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.data.batches import tokenise
from tasks.data.load import TaskError, load_task
from tasks.data.partition import partition_examples
from tasks.models.build import build_base, build_model, describe_model
from tasks.models.lora import adapter_spec, get_adapter, trainable_parameters
from tasks.models.tokenizer import load_tokenizer
from tasks.scoring.evaluation import evaluate
from tasks.settings import LoraSettings, ModelError, ModelSettings
from tests.support.runs import rounds, run

MLP = ModelSettings(name="mlp", hidden_size=32, freeze_head=True)
LORA = LoraSettings(r=2)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Ten "digits": a bright column each, on noise."""
    rng = np.random.default_rng(0)
    arrays = {}
    for side, count in (("train", 400), ("test", 100)):
        digits = np.arange(count) % 10
        pixels = rng.integers(0, 60, size=(count, 28, 28))
        pixels[np.arange(count), :, 2 * digits + 4] = 255
        arrays |= {f"x_{side}": pixels.astype(np.uint8), f"y_{side}": digits.astype(np.uint8)}
    np.savez(tmp_path / "digits.npz", **arrays)
    return tmp_path / "digits.npz"


class TestData:
    def test_sets_are_disjoint_and_complete(self, archive: Path):
        task = load_task("mnist", seed=0, train_file=str(archive), holdout=50)
        assert (len(task.train), len(task.validation), len(task.test)) == (350, 50, 100)
        assert not set(task.train.keys()) & set(task.validation.keys())
        assert task.num_outputs == 10 and task.primary_metric == "accuracy"

    @pytest.mark.parametrize(("devices", "digits"), [(5, 2), (10, 1)])
    def test_partition_by_digit_is_that_of_the_toy(self, archive: Path, devices: int, digits: int):
        train = load_task("mnist", seed=0, train_file=str(archive), holdout=50).train
        parts = partition_examples(train, num_devices=devices, kind="group", alpha=1.0, min_size=1, seed=0)
        assert [len(set(train.labels[part])) for part in parts] == [digits] * devices

    def test_a_file_without_a_test_set_is_split(self, archive: Path, tmp_path: Path):
        arrays = np.load(archive)
        np.savez(tmp_path / "train.npz", x_train=arrays["x_train"], y_train=arrays["y_train"])
        task = load_task("mnist", seed=0, train_file=str(tmp_path / "train.npz"), holdout=20)
        assert (len(task.train), len(task.validation), len(task.test)) == (300, 20, 80)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            (None, "task.train_file: expected a .npz archive .*, found null"),
            ({"x_test": np.zeros(1)}, "expected the array x_train, found x_test"),
            ({"x_train": np.zeros((3, 28, 28)), "y_train": np.zeros(3, int)}, "expected uint8 .*, found float64"),
            ({"x_train": np.zeros((3, 8, 8), np.uint8), "y_train": np.zeros(3, int)}, r"found uint8 \(3, 8, 8\)"),
            (
                {"x_train": np.zeros((3, 28, 28), np.uint8), "y_train": np.array([0, 1, 10])},
                "one digit 0 to 9 per image",
            ),
        ],
    )
    def test_errors_are_one_clear_line(self, tmp_path: Path, arrays, message):
        file = None
        if arrays is not None:
            file = str(tmp_path / "bad.npz")
            np.savez(file, **arrays)
        with pytest.raises(TaskError, match=message) as caught:
            load_task("mnist", seed=0, train_file=file)
        assert "\n" not in str(caught.value)

    def test_a_text_file_is_no_archive(self, tmp_path: Path):
        (tmp_path / "no.npz").write_text("hello")
        with pytest.raises(TaskError, match="expected a .npz archive"):
            load_task("mnist", seed=0, train_file=str(tmp_path / "no.npz"))

    def test_the_real_one(self, shared_data: Path):
        task = load_task("mnist", seed=0, train_file=str(shared_data / "mnist.npz"), holdout=1000, train_limit=2000)
        assert (len(task.train), len(task.validation), len(task.test)) == (2000, 1000, 10000)


class TestModel:
    def test_the_network_by_hand(self, archive: Path):
        model = build_model(MLP, LORA, num_outputs=10)
        with torch.no_grad():
            for value in trainable_parameters(model).values():
                value.add_(0.01)
        task = load_task("mnist", seed=0, train_file=str(archive), holdout=50)
        data = tokenise(load_tokenizer(MLP), task.test)
        state, base = get_adapter(model), build_base(MLP, num_outputs=10)
        (name,) = state.lora_A
        x = (task.test.pixels / 255 - 0.1307) / 0.3081
        hidden = (
            x
            @ (base.encoder["layer"][0].dense.weight.numpy() + LORA.scaling * state.lora_B[name] @ state.lora_A[name]).T
        )
        expected = np.maximum(hidden, 0) @ base.head.weight.numpy().T
        np.testing.assert_allclose(evaluate(model, data)[1], expected, atol=1e-4)

    @pytest.mark.parametrize("freeze_head", [True, False])
    def test_the_description_equals_the_built_model(self, freeze_head: bool):
        settings = ModelSettings(name="mlp", hidden_size=32, freeze_head=freeze_head)
        spec = adapter_spec(build_model(settings, LORA, num_outputs=10))
        assert describe_model(settings, LORA, 10).spec == spec
        assert spec.droppable_parameters == 2 * (784 + 32) and spec.head_parameters == (0 if freeze_head else 330)

    def test_operations_by_hand(self):
        frozen, adapter = describe_model(MLP, LORA, 10).flops.training(tokens=7, examples=7)
        assert frozen == 7 * (4 * 784 * 32 + 6 * 330)
        assert adapter == 7 * 6 * 2 * (784 + 32)

    def test_texts_and_images_do_not_mix(self, archive: Path):
        images = load_task("mnist", seed=0, train_file=str(archive), holdout=50).test
        with pytest.raises(ModelError, match="expected model=mlp"):
            tokenise(load_tokenizer(ModelSettings(name="tiny")), images)
        with pytest.raises(ModelError, match="model=mlp reads images"):
            tokenise(
                load_tokenizer(MLP), load_task("intents", seed=0, train_limit=12, validation_limit=12, holdout=1).test
            )


@pytest.mark.parametrize(
    "method",
    [
        ["strategy=fedit"],
        ["strategy.factors=b_only", "allocator=fixed", "allocator.dropout_rate=0"],
        ["allocator=fixed", "allocator.dropout_rate=0.5"],
    ],
)
def test_a_federation_learns_digits(tmp_path: Path, archive: Path, method: list[str]) -> None:
    overrides = [
        "task=mnist",
        f"task.train_file='{archive}'",
        "model=mlp",
        "model.hidden_size=32",
        "lora.r=4",
        "training.lr=1e-2",
        "training.local_steps=20",
        "task.train_limit=300",
        "task.validation_limit=100",
        "network.total_bandwidth_hz=1e7",
    ]
    assert run(tmp_path, *overrides, *method) == 0
    records = rounds(tmp_path)
    assert records[-1]["eval"]["accuracy"] > 0.5
    assert not any(r["failures"] for r in records)
    sent = {d["uplink_adapter_bytes"] for d in records[0]["devices"]}
    whole = 4 * 4 * (784 + 32)
    assert sent == {
        {"strategy=fedit": whole, "strategy.factors=b_only": 4 * 4 * 32, "allocator=fixed": whole // 2}[method[0]]
    }


class TestWithoutFrozenWeight:
    """The toy as published: the hidden layer is the product of the factors."""

    ALONE = ModelSettings(name="mlp", hidden_size=32, freeze_head=True, frozen_weight=False)

    def test_the_hidden_layer_is_the_product_alone(self):
        model = build_model(self.ALONE, LORA, num_outputs=10, seed=1)
        state, pixels = get_adapter(model), torch.randn(5, 784)
        ((name, factor_A),) = state.lora_A.items()
        hidden = np.maximum(LORA.scaling * pixels.numpy() @ factor_A.T @ state.lora_B[name].T, 0)
        head = build_base(self.ALONE, num_outputs=10, seed=1).head.weight.numpy()
        np.testing.assert_allclose(model(pixels=pixels).detach().numpy(), hidden @ head.T, atol=1e-4)
        assert (hidden > 0).any()

    def test_orthogonal_rows(self):
        model = build_model(self.ALONE, LoraSettings(r=4, init="orthogonal"), num_outputs=10)
        (factor_A,) = get_adapter(model).lora_A.values()
        np.testing.assert_allclose(factor_A @ factor_A.T, np.eye(4), atol=1e-5)

    def test_only_for_images(self):
        with pytest.raises(ModelError, match=r"model.frozen_weight: expected true unless model=mlp"):
            ModelSettings(name="tiny", frozen_weight=False)

    def test_a_method_that_adds_to_the_base_is_refused(self, tmp_path: Path, archive: Path):
        data = ["task=mnist", f"task.train_file='{archive}'", "task.train_limit=300", "task.validation_limit=100"]
        assert run(tmp_path, *data, "model=mlp", "model.frozen_weight=false", "strategy=flora") != 0
        assert "frozen_weight must be true with flora" in (tmp_path / "failure.json").read_text()
