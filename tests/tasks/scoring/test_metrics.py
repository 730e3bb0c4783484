from __future__ import annotations

import numpy as np
import pytest

from tasks.scoring.evaluation import compute_metrics

LOGITS = np.array([[2, 1], [0, 1], [0, 3], [1, 0], [0, 1]], dtype=np.float32)  # classes 0 1 1 0 1
LABELS = np.array([0, 1, 0, 0, 1])


def test_by_hand():
    """One false positive among five: tp 2, fp 1, fn 0, tn 2."""
    found = compute_metrics(["accuracy", "f1", "mcc"], LOGITS, LABELS)
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert found["mcc"] == pytest.approx((2 * 2 - 1 * 0) / np.sqrt((2 + 1) * (2 + 0) * (2 + 1) * (2 + 0)))


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_correlations(shape):
    values = np.array([1, 2, 3, 10], dtype=np.float32)
    found = compute_metrics(["pearson", "spearman"], values.reshape(shape), np.array([0, 1, 2, 3], dtype=np.float32))
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(np.corrcoef(values, [0, 1, 2, 3])[0, 1])


def test_one_class_only_is_zero_not_nan():
    constant = np.array([[0, 1]] * 5, dtype=np.float32)
    assert compute_metrics(["mcc"], constant, LABELS) == {"mcc": 0.0}
    assert compute_metrics(["pearson", "spearman"], np.ones((5, 1)), LABELS.astype(float)) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }


def test_errors():
    with pytest.raises(ValueError, match="found 'auc'"):
        compute_metrics(["auc"], LOGITS, LABELS)
    with pytest.raises(ValueError, match="at least one example"):
        compute_metrics(["accuracy"], LOGITS[:0], LABELS[:0])


def test_the_worst_class():
    logits = np.eye(3)[[0, 0, 1, 2, 2, 0]]
    assert compute_metrics(["worst_class"], logits, np.array([0, 0, 1, 2, 2, 2])) == {
        "worst_class": pytest.approx(2 / 3)
    }
    assert compute_metrics(["worst_class"], logits, np.array([0, 1, 1, 1, 1, 1]))["worst_class"] == pytest.approx(0.2)
