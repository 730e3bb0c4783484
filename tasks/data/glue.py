"""The tasks of the GLUE collection: columns, labels, official metrics, and how to download them.

References
----------
.. [Wang2019] Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR
2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.data.examples import TaskError
from tasks.data.labels import label_values
from tasks.data.tables import Table, plain_table
from tasks.settings import Kind, one_line


@dataclass(frozen=True)
class GlueTask:
    """Columns, labels and official metrics of one GLUE task; the first metric is the primary one."""

    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    kind: Kind = "classification"


GLUE = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("mcc", "accuracy")),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "rte": GlueTask(("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",)),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",)),
    "stsb": GlueTask(("sentence1", "sentence2"), (), ("pearson", "spearman"), "regression"),
}


def glue_labels(name: str, column: Sequence[Any], labels: Sequence[Any] | None) -> tuple[Sequence[Any], str]:
    """Return the labels of a GLUE classification in the order that its metrics count on, and what to do about others.

    ``labels`` is the user's own order, kept where it does not turn GLUE's round.

    Raises `TaskError` if there are not as many labels as GLUE's, or the same ones in another order.
    """
    names = GLUE[name].label_names
    orders: list[tuple[Any, ...]] = [names, tuple(range(len(names)))]
    hint = f" or use the names {', '.join(names)}; task=tsv takes other classes"
    if labels is None:
        found = set(label_values(column))
        return next((order for order in orders if found <= set(order)), orders[1]), hint
    given = tuple(label_values(labels))
    if len(given) != len(names):
        raise TaskError(f"task {name}: expected {len(names)} classes, found {len(given)} in task.labels; use task=tsv")
    for order in orders:
        if set(given) == set(order) and given != order:
            right = ",".join(map(str, order))
            raise TaskError(f"task {name}: expected task.labels=[{right}] in this order, which its metrics count on")
    return given, hint


def load_glue(name: str) -> tuple[Table, Table]:
    """Return GLUE's training and validation tables, through the ``datasets`` library.

    Raises `TaskError` if the collection is neither cached nor reachable.
    """
    import datasets

    try:
        loaded: Any = datasets.load_dataset("nyu-mll/glue", name)
    except Exception as error:  # datasets and its HTTP client raise many types; the user needs one line
        raise TaskError(
            f"task {name}: GLUE is neither cached nor reachable ({one_line(error)}); "
            "give task.train_file and task.validation_file instead"
        ) from error
    return plain_table(loaded["train"].to_pandas()), plain_table(loaded["validation"].to_pandas())
