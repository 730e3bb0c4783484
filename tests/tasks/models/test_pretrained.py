"""Weights as they lie in a checkpoint: all that are needed are there, and what nobody reads is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tasks.models.build import build_base
from tasks.settings import ModelError, ModelSettings
from tests.support.causal import tiny_causal
from tests.support.encoders import ARCHITECTURES, random_encoder

KINDS = [
    ("bert", "classification"),
    ("distilbert", "classification"),
    ("gpt2", "classification"),
    ("llama", "causal"),
    ("gemma2", "causal"),
    ("qwen3_moe", "causal"),
]


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def saved(architecture: str, kind: str, folder: Path) -> ModelSettings:
    return tiny_causal(architecture, folder) if kind == "causal" else random_encoder(architecture, folder, layers=2)


@pytest.mark.parametrize(("architecture", "kind"), KINDS)
def test_a_missing_layer_is_refused_by_name(architecture: str, kind: Any, tmp_path: Path) -> None:
    settings = saved(architecture, kind, tmp_path)
    rewrite(tmp_path, lambda found: {name: value for name, value in found.items() if ".1." not in name})
    with pytest.raises(
        ModelError, match=r"expected every weight .* missing or of another shape: .*\.1\..* more\)"
    ) as caught:
        build_base(settings, num_outputs=2, kind=kind)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.bias"])
def test_one_missing_tensor_is_enough(name: str, tmp_path: Path) -> None:
    settings = random_encoder("bert", tmp_path)
    rewrite(tmp_path, lambda found: {key: value for key, value in found.items() if key != name})
    with pytest.raises(ModelError, match=f"found 1 missing or of another shape: {name}$"):
        build_base(settings, num_outputs=2)


@pytest.mark.parametrize(("architecture", "kind"), KINDS)
def test_weights_that_nobody_reads_are_said(architecture: str, kind: Any, tmp_path: Path) -> None:
    settings = saved(architecture, kind, tmp_path)
    assert build_base(settings, num_outputs=2, kind=kind).encoder.unused_weights == ()
    rewrite(tmp_path, lambda found: found | {"extra.gate.weight": next(iter(found.values())).clone()})
    assert build_base(settings, num_outputs=2, kind=kind).encoder.unused_weights == ("extra.gate.weight",)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_complete_encoders_pass(architecture: str, tmp_path: Path) -> None:
    assert build_base(random_encoder(architecture, tmp_path), num_outputs=2).encoder.unused_weights == ()


def test_a_pooler_is_neither_missed_nor_said(tmp_path: Path) -> None:
    """Many checkpoints were trained without one, others carry one; it is never computed here."""
    settings = random_encoder("bert", tmp_path)
    assert any("pooler" in name for name in load_file(tmp_path / "model.safetensors"))
    assert build_base(settings, num_outputs=2).encoder.unused_weights == ()
    rewrite(tmp_path, lambda found: {name: value for name, value in found.items() if "pooler" not in name})
    build_base(settings, num_outputs=2)


def test_half_precision_and_another_prefix_load_whole(tmp_path: Path) -> None:
    settings = random_encoder("bert", tmp_path)
    rewrite(tmp_path, lambda found: {f"bert.{name}": value.half() for name, value in found.items()})
    base = build_base(settings, num_outputs=2)
    assert {str(value.dtype) for value in base.parameters()} == {"torch.float32"}
    assert base.encoder.unused_weights == ()


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    settings = random_encoder("bert", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="no weights could be loaded"):
        build_base(settings, num_outputs=2)
