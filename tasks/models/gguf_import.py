"""Models from GGUF files: de-quantised once into this user's cache, loaded from there by every process."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.models.files import INSTALL_SMOLLM2, cache_folder, find_smollm2, sha256_of
from tasks.settings import ModelError, ModelSettings, told_as

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = 2  # part of a folder's name: whoever writes other files writes another folder
_RECORD = "unpacked.json"
_BFLOAT16 = "bfloat16.safetensors"
# Vocabularies whose digits stand alone, under llama.cpp's names; transformers reads GPT-2's pattern for all of them.
_LONE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


@functools.lru_cache(maxsize=8)
def model_source(model: ModelSettings) -> str:
    """Return the hub id or folder that transformers loads `hub` or `smollm2` from; unpacks a GGUF file if needed."""
    file = gguf_source(model)
    return str(model.path) if file is None else str(unpacked(file))


def gguf_source(model: ModelSettings) -> Path | None:
    """Return the GGUF file that a model comes from, None where it comes from a hub or a folder."""
    if model.name == "smollm2":
        return find_smollm2()
    return Path(model.gguf_file).expanduser() if model.gguf_file else None


def bfloat16_weights(model: ModelSettings) -> dict[str, Tensor]:
    """Return the weights of a model from a GGUF file in bfloat16, mapped and so shared by processes, else {}."""
    from safetensors.torch import load_file

    return {} if gguf_source(model) is None else load_file(Path(model_source(model)) / _BFLOAT16)


def vocabulary_kind(file: Path) -> str:
    """Return llama.cpp's name of how a GGUF file's tokenizer cuts texts into words; its usual one if it is silent."""
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get("tokenizer.ggml.pre")
    return "default" if field is None else str(field.contents())


def unpacked(file: Path) -> Path:
    """Return the folder with a GGUF file's model in float32 and bfloat16, its configuration and its tokenizer.

    The folder's name holds the file's digest, and it appears whole or not at all. One whose files are not what was
    written is made again.
    """
    if not file.is_file():
        raise ModelError(f"model.gguf_file: expected a GGUF file, found none at {str(file)!r}")
    with file.open("rb") as head:
        if head.read(4) != b"GGUF":
            raise ModelError(f"model.gguf_file: expected a GGUF file, found another format in {str(file)!r}")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"model.gguf_file: expected the package gguf, found none; install it: {INSTALL_SMOLLM2}")
    folder = cache_folder(None) / "models" / f"{file.stem}-{sha256_of(file)[:16]}-{_FORMAT}"
    if _is_whole(folder):
        return folder
    started = time.monotonic()
    print(f"unpacking {file.name} into {folder} (once, about half a minute) ...", file=sys.stderr, flush=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent, ignore_cleanup_errors=True) as work:
            _unpack(file, Path(work))
            _publish(Path(work), folder)
    except OSError as error:
        raise ModelError(f"{file.name} cannot be unpacked into {folder.parent}: {error.strerror or error}") from error
    print(f"unpacked in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return folder


def _is_whole(folder: Path) -> bool:
    """Say whether a folder holds what was written; anything else that stands there is ours and goes."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if all(sha256_of(folder / name) == digest for name, digest in record["files"].items()):
            return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _publish(work: Path, folder: Path) -> None:
    """Give a finished folder its name; where another process was faster, its copy is as good."""
    files = {path.name: sha256_of(path) for path in sorted(work.iterdir())}
    (work / _RECORD).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    try:
        work.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


def _unpack(file: Path, work: Path) -> None:
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with told_as(ModelError, f"{file.name}: expected a causal language model that transformers can read"):
        model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(**where)
    model.hf_quantizer = None  # or save_pretrained refuses: the weights are de-quantised by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(work)
    save_file({name: value.bfloat16() for name, value in model.named_parameters()}, work / _BFLOAT16)
    if vocabulary_kind(file) in _LONE_DIGITS:
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.save_pretrained(work)
