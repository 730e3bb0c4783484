"""A task as a device needs it, kept on disk between processes.

In a deployment Flower starts a process for every message. Reading a table and tokenising all of it takes longer there than
training a few steps on it, and its result is the same every time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as arrays_of
from safetensors.numpy import save as bytes_of

from tasks.batch import Encoded
from tasks.batching import Tokenised, tokenise
from tasks.block_store import BlockStore
from tasks.data import TaskData, load_task
from tasks.examples import IntArray
from tasks.settings import Kind, ModelSettings
from tasks.tokenizer import load_tokenizer, tokenizer_digest

_FILES = ("train_file", "validation_file")
_LIBRARIES = ("numpy", "tokenizers", "transformers")  # their versions may change what becomes of a text


@dataclass(frozen=True)
class PreparedTask:
    """Training examples ready to be batched, and what a model's outputs mean.

    Parameters
    ----------
    train : Encoded
        All training examples of the task, of which a device takes its share.
    groups : array or None
        Shape (examples,): who wrote each example.
    num_outputs : int
        Outputs of the model.
    kind : str
        ``classification``, ``regression`` or ``causal``.
    metrics : tuple of str
        What is computed; the first is the primary metric.
    """

    train: Encoded
    groups: IntArray | None
    num_outputs: int
    kind: Kind
    metrics: tuple[str, ...]

    @property
    def labels(self) -> npt.NDArray[np.generic]:
        """Shape (examples,)."""
        return self.train.labels


def prepare_task(
    settings: Mapping[str, Any],
    model: ModelSettings,
    *,
    load: Callable[..., TaskData] = load_task,
    code: bytes = b"",
    store: BlockStore | None = None,
) -> PreparedTask:
    """Load and tokenise a task's training examples, or take them from the store; equal arguments give equal examples.

    Parameters
    ----------
    settings : mapping
        Arguments of ``load``; ``train_file`` and ``validation_file`` count by their content.
    model : ModelSettings
        Whose tokenizer.
    load : callable
        Returns the task.
    code : bytes
        Stands for the source code that computes all this.
    store : BlockStore or None
        Where token ids are kept. Images, downloaded tables and tokenizers that are not on this disk are not kept.

    Raises
    ------
    TaskError, ModelError
        As `tasks.data.load_task` and `tasks.models.load_tokenizer`.
    """
    key = None if store is None else _key(settings, model, load.__name__, code)
    if store is not None and key is not None:
        found = store.get(key, np.dtype(np.uint8), None)
        if found is not None:
            return _unpacked(found)
    task = load(**settings)
    train = tokenise(load_tokenizer(model), task.train)
    prepared = PreparedTask(train, task.train.groups, task.num_outputs, task.kind, task.metrics)
    if store is not None and key is not None and isinstance(train, Tokenised) and len(train):
        store.put(key, _packed(prepared, train))
    return prepared


def _key(settings: Mapping[str, Any], model: ModelSettings, loader: str, code: bytes) -> str | None:
    """Name what the examples depend on; None where that cannot be told without loading them."""
    tokenizer = tokenizer_digest(model)
    generated = settings["name"] in ("intents", "instruct") and settings.get("train_file") is None
    if tokenizer is None or (settings.get("train_file") is None and not generated):
        return None
    facts: dict[str, Any] = {**settings, "loader": loader, "model": repr(model), "tokenizer": tokenizer, "code": code.hex()}
    for name in _FILES:
        if settings.get(name) is not None:
            path = Path(str(settings[name])).expanduser()
            if not path.is_file():
                return None  # loading says what is missing
            with path.open("rb") as file:
                facts[name] = [path.name, hashlib.file_digest(file, "blake2b").hexdigest()]  # the format follows from the name
    facts["libraries"] = [version(name) for name in _LIBRARIES]
    return "task-" + hashlib.blake2b(json.dumps(facts, sort_keys=True, default=repr).encode(), digest_size=24).hexdigest()


def _packed(task: PreparedTask, train: Tokenised) -> npt.NDArray[np.uint8]:
    arrays: dict[str, npt.NDArray[Any]] = {
        "ids": np.concatenate(train.input_ids), "lengths": train.lengths, "labels": train.labels,
        "facts": np.frombuffer(
            json.dumps([train.pad_token_id, task.num_outputs, task.kind, task.metrics]).encode(), dtype=np.uint8
        ),
    }  # fmt: skip
    if train.token_types is not None:
        arrays["types"] = np.concatenate(train.token_types)
    if train.response_start is not None:
        arrays["starts"] = train.response_start
    if task.groups is not None:
        arrays["groups"] = task.groups
    return np.frombuffer(bytes_of(arrays), dtype=np.uint8)


def _unpacked(data: npt.NDArray[np.generic]) -> PreparedTask:
    arrays = arrays_of(data.tobytes())
    pad_token_id, num_outputs, kind, metrics = json.loads(arrays["facts"].tobytes())
    cuts = np.cumsum(arrays["lengths"])[:-1]
    types = tuple(np.split(arrays["types"], cuts)) if "types" in arrays else None
    train = Tokenised(tuple(np.split(arrays["ids"], cuts)), types, arrays["labels"], pad_token_id, arrays.get("starts"))
    return PreparedTask(train, arrays.get("groups"), int(num_outputs), cast(Kind, kind), tuple(metrics))
