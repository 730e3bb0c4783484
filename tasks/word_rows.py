"""The word table of a text encoder, read row by row.

A table of 30,000 words is half of a small encoder's file, and a device's texts use a few thousand of them. Mapped into memory,
as weights are when they are loaded, every row that is used brings its neighbours along (Linux maps 64 KiB around it): in the
end nearly the whole table is resident in every process, and on a device that has just started it is read from flash. Here the
rows that are used are read from the file, once, into a table of their own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_SMALLEST_TABLE = 2**20  # bytes; below, there is nothing to save


class WordRows(nn.Embedding):
    """A frozen embedding whose look-up keeps the rows it has seen; ``weight`` stays what it was, for whoever needs all of it.

    Parameters
    ----------
    table : nn.Embedding
        The loaded one, float32.
    path : Path
        File with the same numbers.
    offset : int
        Where they begin [bytes].
    """

    def __init__(self, table: nn.Embedding, path: Path, offset: int) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, table.padding_idx, _weight=table.weight, _freeze=True)
        self._file, self._offset = path.open("rb", buffering=0), offset
        self._place = np.full(table.num_embeddings, -1, dtype=np.int64)  # word -> row of _rows
        self._rows = torch.empty(0, table.embedding_dim)
        self._used = 0

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of word ids, ``(...)`` -> ``(..., hidden)``."""
        if input.device.type != "cpu" or self.weight.dtype != torch.float32:  # moved or converted since
            return super().forward(input)
        ids = input.numpy()
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_embeddings):
            raise IndexError(f"word ids must be 0 to {self.num_embeddings - 1}, found {ids.min()} to {ids.max()}")
        place = self._place[ids]
        if (place < 0).any():
            self._read(np.unique(ids[place < 0]))
            place = self._place[ids]
        return functional.embedding(torch.from_numpy(place), self._rows)

    def _read(self, words: np.ndarray) -> None:
        needed = self._used + len(words)
        if needed > len(self._rows):
            grown = torch.empty(min(max(needed, len(self._rows) * 5 // 4), self.num_embeddings), self.embedding_dim)
            grown[: self._used] = self._rows[: self._used]
            self._rows = grown
        size = 4 * self.embedding_dim
        for row, word in enumerate(words.tolist(), self._used):
            found = os.pread(self._file.fileno(), size, self._offset + size * word)
            self._rows[row] = torch.frombuffer(bytearray(found), dtype=torch.float32)
            self._place[word] = row
        self._used = needed


def read_rows(encoder: Any, path: Path | None) -> bool:
    """Let an encoder read its words from its own file, and say whether it will; its results stay the same to the bit.

    Parameters
    ----------
    encoder : nn.Module
        A Hugging Face encoder on the CPU, changed in place.
    path : Path or None
        The safetensors file that it was loaded from.
    """
    table = encoder.get_input_embeddings()
    if path is None or not path.is_file() or not _suits(table):
        return False
    names = [name for name, module in encoder.named_modules() if module is table]
    offset = _find(path, f"{names[0]}.weight", table) if names else None
    if offset is None:
        return False
    rows = WordRows(table, path, offset)
    probe = torch.tensor([0, table.num_embeddings // 2, table.num_embeddings - 1])
    if not torch.equal(rows(probe), table.weight[probe]):
        return False  # another file than the one it was loaded from
    encoder.set_input_embeddings(rows)
    return True


def _suits(table: Any) -> bool:
    """Whether a plain look-up in a large float32 table on the CPU is all that it does."""
    return (
        type(table) is nn.Embedding
        and hasattr(os, "pread")
        and table.weight.device.type == "cpu"
        and table.weight.dtype == torch.float32
        and table.max_norm is None
        and table.weight.numel() * 4 >= _SMALLEST_TABLE
    )


def _find(path: Path, name: str, table: nn.Embedding) -> int | None:
    """Return where the table begins in a safetensors file: the one entry of its shape and name, behind any prefix."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    found = [
        entry
        for key, entry in header.items()
        if (key == name or key.endswith(f".{name}"))
        and entry.get("dtype") == "F32"
        and entry.get("shape") == [table.num_embeddings, table.embedding_dim]
    ]
    return 8 + length + int(found[0]["data_offsets"][0]) if len(found) == 1 else None
