"""Small models and texts shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.models.build import build_model
from tasks.models.files import find_minilm
from tasks.settings import LoraSettings, ModelError, ModelSettings

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def tiny() -> ModelSettings:
    return ModelSettings(name="tiny", max_tokens=32)


@pytest.fixture
def tiny_model(tiny: ModelSettings) -> Callable[..., Any]:
    def build(seed: int = 0, num_outputs: int = 3, kind: str = "classification", **lora: Any) -> Any:
        settings = LoraSettings(**({"r": 4} | lora))
        return build_model(tiny, settings, num_outputs=num_outputs, kind=kind, seed=seed)  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared/data beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def minilm() -> ModelSettings:
    try:
        find_minilm()
    except ModelError as error:
        pytest.skip(str(error))
    return ModelSettings()
