"""What a model is called with, and what a set of examples must offer to be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Keyword arguments of the model, and the labels its outputs are compared with."""

    inputs: dict[str, Any]
    labels: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.inputs.items()}
        return Batch(moved, self.labels.to(device))


class Encoded(Protocol):
    """Examples ready to be batched: texts (`Tokenised`) or images (`tasks.data.mnist.ImageExamples`)."""

    @property
    def labels(self) -> npt.NDArray[np.generic]:
        """Shape (examples,)."""

    @property
    def lengths(self) -> IndexArray:
        """Tokens of each example, shape (examples,)."""

    def __len__(self) -> int:
        """Number of examples."""

    def subset(self, indices: npt.ArrayLike) -> Encoded:
        """Return the examples at ``indices``, in that order."""

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return the examples at ``indices`` as tensors."""
