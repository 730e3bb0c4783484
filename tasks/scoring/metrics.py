"""Scores of predictions: scikit-learn's and SciPy's definitions under the names that results use."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def compute_metrics(names: Sequence[str], predictions: Array, labels: Array) -> dict[str, float]:
    """Score predictions: logits (examples, classes), values (examples, 1), or `response_scores` (examples, 3).

    ``f1`` is that of class 1, ``worst_class`` the smallest accuracy of a class. All scores are finite: a correlation
    with a constant side is undefined and counts as 0, since nothing was learned.
    """
    unknown = [name for name in names if name not in _METRICS]
    if unknown:
        raise ValueError(f"metric: expected some of {sorted(_METRICS)}, found {unknown[0]!r}")
    if len(labels) == 0:
        raise ValueError("metrics need at least one example, found none")
    return {name: float(_METRICS[name](predictions, labels)) for name in names}


def _accuracy(predictions: Array, labels: Array) -> float:
    return float(np.mean(predictions.argmax(axis=1) == labels))


def _worst_class(predictions: Array, labels: Array) -> float:
    right = predictions.argmax(axis=1) == labels
    return float(min(right[labels == name].mean() for name in np.unique(labels)))


def _of_classes(name: str, predictions: Array, labels: Array, **options: Any) -> float:
    import sklearn.metrics

    return float(getattr(sklearn.metrics, name)(labels, predictions.argmax(axis=1), **options))


def _correlation(name: str, predictions: Array, labels: Array) -> float:
    values = predictions.reshape(len(predictions))  # (examples, 1) or (examples,) -> (examples,)
    if len(labels) < 2 or np.ptp(values) == 0 or np.ptp(labels) == 0:
        return 0.0
    from scipy import stats

    result: Any = getattr(stats, name)(values, labels)
    return float(result.statistic)


def _perplexity(predictions: Array, labels: Array) -> float:
    """Exponential of the mean loss per token; a diverged model's is cut at e^700, so that it stays finite."""
    return float(np.exp(min(700.0, predictions[:, 0].sum(dtype=np.float64) / predictions[:, 1].sum(dtype=np.float64))))


_METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "worst_class": _worst_class,
    "f1": partial(_of_classes, "f1_score", zero_division=0.0),
    "mcc": partial(_of_classes, "matthews_corrcoef"),
    "pearson": partial(_correlation, "pearsonr"),
    "spearman": partial(_correlation, "spearmanr"),
    "teacher_forced_match": lambda predictions, _: float(np.mean(predictions[:, 2])),
    "perplexity": _perplexity,
}
