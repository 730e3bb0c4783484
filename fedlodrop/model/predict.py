"""Questions by hand to the model of a run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from conf.compose import ConfigError
from fedlodrop.model.chat import readable_tokenizer, system_prompt
from fedlodrop.model.load import TrainedModel
from tasks.data.batches import tokenise
from tasks.data.examples import PromptExamples, TextExamples
from tasks.data.glue import GLUE
from tasks.data.tables import read_table
from tasks.scoring.generation import generate

_AT_ONCE = 256  # texts in a forward pass


def predict(
    trained: TrainedModel, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> list[list[tuple[str, float]]]:
    """Ask a trained model about texts; ``pairs`` holds the second text of each for tasks that compare two.

    Returns per text the outputs from the likeliest down: (label, probability); of a regression ("value", value); of a
    causal model (its answer, the probability of all its tokens). Raises ConfigError if the model reads images, or its
    tokens cannot be read back.
    """
    if trained.config.model.name == "mlp":
        raise ConfigError("predict takes texts, and this run's model reads images")
    if trained.kind == "causal":
        return [[answer] for answer in _answers(trained, texts)]
    examples = TextExamples(tuple(texts), np.zeros(len(texts), dtype=np.int64), None if pairs is None else tuple(pairs))
    data, found = tokenise(trained.tokenizer, examples), []
    with torch.inference_mode():
        for start in range(0, len(texts), _AT_ONCE):
            batch = data.batch(np.arange(start, min(start + _AT_ONCE, len(texts))))
            found.append(trained.model(**batch.inputs).float())
    logits = torch.cat(found)
    if trained.kind == "regression":
        return [[("value", float(row[0]))] for row in logits]
    order = torch.softmax(logits, dim=-1).numpy()
    return [[(trained.label_names[k], float(row[k])) for k in np.argsort(-row, kind="stable")] for row in order]


def predict_file(trained: TrainedModel, path: Path) -> pd.DataFrame:
    """Ask a trained model about every row of a table; return it with columns ``prediction`` and ``probability``.

    The texts stand in the columns that the run was trained on or, where these have no name, in ``sentence``,
    ``text`` or ``prompt``. Raises ConfigError if there is none, TaskError if the file cannot be read.
    """
    table, task = read_table(path), trained.config.task
    own = task.text_columns or (GLUE[task.name].text_columns if task.name in GLUE else ())
    columns = list(own) or [name for name in ("sentence", "text", "prompt") if name in table][:1]
    missing = [name for name in columns if name not in table]
    if missing or not columns:
        wanted = ", ".join(columns) or "sentence, text or prompt"
        raise ConfigError(f"--file {path}: expected the column {wanted}, found {', '.join(table)}")
    texts = [[str(value or "") for value in table[name]] for name in columns]
    best = [outputs[0] for outputs in predict(trained, texts[0], texts[1] if len(texts) > 1 else None)]
    values = [value for _, value in best]
    if trained.kind == "regression":
        return pd.DataFrame(table).assign(prediction=values)
    return pd.DataFrame(table).assign(prediction=[name for name, _ in best], probability=values)


def _answers(trained: TrainedModel, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Return the greedy answer to each text, as in training after the run's system prompt, and its probability."""
    tokenizer = readable_tokenizer(trained)
    labels = np.zeros(len(texts), dtype=np.int64)
    asked = PromptExamples(tuple(texts), labels, ("",) * len(texts), system=system_prompt(trained))
    prompts: Any = tokenise(tokenizer, asked)
    answers = generate(trained.model, tokenizer, prompts)
    written = tokenise(tokenizer, replace(asked, text_pairs=tuple(answers)))
    found = []
    for k, answer in enumerate(answers):
        batch = written.batch([k])
        with torch.inference_mode():
            likelihood = torch.log_softmax(trained.model(**batch.inputs), dim=-1)
        found.append((answer, float(likelihood.gather(1, batch.labels[:, None]).sum().exp())))
    return found
