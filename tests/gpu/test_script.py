"""The script for machines with a GPU runs, in small and without one; with one, `python -m tests.gpu` measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.__main__ import main


def test_the_script_writes_its_table(tmp_path: Path) -> None:
    main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "new" / "gpu.md")])
    page = (tmp_path / "new" / "gpu.md").read_text()
    assert page.count("| PEFT |") == page.count("| ours |") == 2
    assert "ours, 4-bit base" in page and "3 rounds" in page
    assert "nan" not in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_ends_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "gpu.md")])
    assert "no GPU" in str(ended.value) and "\n" not in str(ended.value)
    assert not (tmp_path / "gpu.md").exists()
