"""Loss of a batch, loss and predictions of a model on a set of examples, and the scores of predictions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tasks.data.batches import Encoded
from tasks.data.examples import Batch
from tasks.models.transformer import evaluating
from tasks.settings import Kind

Array = npt.NDArray[Any]


def task_loss(logits: Tensor, labels: Tensor, kind: Kind, reduction: str = "mean") -> Tensor:
    """Cross entropy of class indices or tokens, or squared error of values; ``labels`` has shape (batch,).

    ``logits`` (batch, outputs); of a causal model, batch counts the tokens of the responses and outputs the vocabulary.
    The loss is taken in float32, or in float64 where the logits are.
    """
    logits = _wide(logits)
    if kind == "regression":
        return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction=reduction)
    return functional.cross_entropy(logits, labels, reduction=reduction)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def batch_loss(model: Any, batch: Batch) -> Tensor:
    """Return the loss of a batch to train with; a causal model need not make all of its logits for it."""
    if model.kind == "causal":
        loss: Tensor = model(**batch.inputs, labels=batch.labels)
        return loss
    return task_loss(model(**batch.inputs), batch.labels, model.kind)


@torch.no_grad()
def evaluate(model: Any, data: Encoded, batch_size: int = 64) -> tuple[float, npt.NDArray[np.float32]]:
    """Return the mean loss of a model over examples, of a causal one over the responses' tokens, and its predictions.

    Predictions are logits (examples, outputs), for a causal model what `response_scores` returns. Examples are computed
    by length, so that little is padded.
    """
    if len(data) == 0:
        raise ValueError("evaluate needs at least one example, found none")
    device = next(model.parameters()).device
    order = np.argsort(data.lengths, kind="stable")
    losses, parts = [], []
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = data.batch(order[start : start + batch_size]).to(device)
            logits = _wide(model(**batch.inputs))
            loss = task_loss(logits, batch.labels, model.kind, "none")
            parts.append((response_scores(logits, loss, batch) if model.kind == "causal" else logits).float().cpu())
            losses.append(loss.double().cpu())
    stacked = torch.cat(parts).numpy()  # (examples, outputs), by length
    predictions = np.empty_like(stacked)
    predictions[order] = stacked
    if (cut := getattr(data, "response_cut", None)) is not None:
        predictions[cut, 2] = 0.0  # what is left of an answer is not the answer
    return float(torch.cat(losses).mean()), predictions


def response_scores(logits: Tensor, loss: Tensor, batch: Batch) -> Tensor:
    """Return sum of the token losses, number of tokens, and 1 or 0 for an exact match, per response: (batch, 3).

    A response is exact when the likeliest token is right at every position, the end included: then, and only then,
    greedy decoding of the prompt writes exactly these tokens, so nothing needs to be generated. ``logits`` (tokens,
    vocabulary) and ``loss`` (tokens,) are over all responses of the batch.
    """
    predict = batch.inputs["predict"]
    row = predict.nonzero()[:, 0]  # (tokens,): whose response a token belongs to
    wrong = (logits.argmax(dim=1) != batch.labels).float()  # (tokens,)
    sums = [torch.zeros(len(predict), device=loss.device).index_add_(0, row, value) for value in (loss, wrong)]
    return torch.stack([sums[0], predict.sum(dim=1).float(), (sums[1] == 0).float()], dim=1)


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
