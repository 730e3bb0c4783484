from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.partition import PartitionError, PartitionWarning, partition

LABELS = np.arange(600) % 6


def skew(parts, labels) -> float:
    """Mean distance of the devices' label shares from the common ones."""
    classes = np.unique(labels)
    shares = np.array([[np.mean(labels[part] == label) for label in classes] for part in parts])
    return float(np.abs(shares - 1 / len(classes)).sum(axis=1).mean())


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["iid", "dirichlet", "group"]),
    num_devices=st.integers(1, 12),
    min_size=st.integers(1, 4),
    extra=st.integers(0, 80),
    classes=st.integers(1, 8),
    num_groups=st.integers(1, 15),
    alpha=st.sampled_from([1e-4, 0.05, 0.3, 1.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_example_lies_on_exactly_one_device(kind, num_devices, min_size, extra, classes, num_groups, alpha, seed):
    rng = np.random.default_rng(seed)
    count = num_devices * min_size + extra
    labels, groups = rng.integers(classes, size=count), rng.integers(num_groups, size=count)
    arguments = {"num_devices": num_devices, "kind": kind, "alpha": alpha, "min_size": min_size}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartitionWarning)
        parts = partition(labels, groups, **arguments, rng=np.random.default_rng(seed))
        again = partition(labels, groups, **arguments, rng=np.random.default_rng(seed))
    assert len(parts) == num_devices
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert min(map(len, parts)) >= min_size
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))


def test_iid_sizes_and_shares(rng):
    parts = partition(LABELS, num_devices=7, kind="iid", rng=rng)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert skew(parts, LABELS) < 0.35


def test_smaller_alpha_is_more_skewed():
    found = [
        np.mean(
            [
                skew(
                    partition(LABELS, num_devices=6, kind="dirichlet", alpha=alpha, rng=np.random.default_rng(s)),
                    LABELS,
                )
                for s in range(5)
            ]
        )
        for alpha in (0.1, 1.0, 100.0)
    ]
    assert found[0] > 1.5 * found[1] > 3 * found[2]


def test_dirichlet_shares_have_the_right_mean_and_variance():
    """Against the distribution itself: Var of a share of Dir(alpha 1_K) is (K - 1) / (K² (K alpha + 1))."""
    labels, devices, alpha = np.zeros(2000, dtype=int), 4, 0.7
    draws = []
    for seed in range(300):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartitionWarning)
            parts = partition(
                labels, num_devices=devices, kind="dirichlet", alpha=alpha, rng=np.random.default_rng(seed)
            )
        draws.append([len(part) / len(labels) for part in parts])
    assert np.mean(draws) == pytest.approx(0.25)
    expected = (devices - 1) / (devices**2 * (devices * alpha + 1))
    assert np.var(draws) == pytest.approx(expected, rel=0.15)


def test_regression_values_are_skewed_by_size(rng):
    values = rng.random(500).astype(np.float32)
    parts = partition(values, num_devices=5, kind="dirichlet", alpha=0.1, rng=rng)
    assert np.std([values[part].mean() for part in parts]) > 0.1


def test_unreachable_minimum_ends_with_a_warning(rng):
    labels = np.repeat([0, 1], 50)
    with pytest.warns(PartitionWarning, match="examples were moved so that each of 10 devices has 9"):
        parts = partition(labels, num_devices=10, kind="dirichlet", alpha=0.01, min_size=9, rng=rng)
    assert min(map(len, parts)) >= 9


def test_groups_stay_whole_while_there_are_enough(rng):
    groups = rng.integers(20, size=400)
    parts = partition(np.zeros(400, int), groups, num_devices=8, kind="group", rng=rng)
    owners = [set(groups[part]) for part in parts]
    assert sum(map(len, owners)) == len(set(groups))
    assert max(map(len, parts)) < 2 * min(map(len, parts))


def test_more_devices_than_groups_share_a_group_each(rng):
    groups = np.repeat([4, 7], [90, 30])
    parts = partition(np.zeros(120, int), groups, num_devices=4, kind="group", rng=rng)
    assert sorted(len(part) for part in parts) == [30, 30, 30, 30]
    assert all(len(set(groups[part])) == 1 for part in parts)


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (10, {"num_devices": 0}, "num_devices: expected at least 1, found 0"),
        (10, {"num_devices": 11}, "expected at least 11 devices × 1 = 11 training examples, found 10"),
        (10, {"num_devices": 4, "min_size": 3}, "4 devices × 3 = 12 training examples, found 10; use fewer devices"),
        (10, {"num_devices": 2, "min_size": 0}, "min_size: expected at least 1"),
        (10, {"num_devices": 2, "kind": "random"}, "expected iid, dirichlet or group, found 'random'"),
        (10, {"num_devices": 2, "kind": "dirichlet", "alpha": 0}, "alpha: expected a positive number"),
        (10, {"num_devices": 2, "kind": "group"}, "expected a task whose examples have groups"),
        (0, {"num_devices": 1}, "found 0"),
    ],
)
def test_errors(count, arguments, message, rng):
    with pytest.raises(PartitionError, match=message):
        partition(np.zeros(count, int), **arguments, rng=rng)


class Halves:
    """A partitioner as flwr-datasets has them: the first half of the data to the first device, the rest in turn."""

    def __init__(self, num_partitions: int, seed: int) -> None:
        self.count, self.seed = num_partitions, seed

    def load_partition(self, partition_id: int):
        rows = len(self.dataset)  # type: ignore[attr-defined]
        rest = range(rows // 2 + partition_id - 1, rows, self.count - 1)
        return self.dataset.select(range(rows // 2) if partition_id == 0 else rest)  # type: ignore[attr-defined]


def greedy(**known):
    made = Halves(known["num_partitions"], known["seed"])
    made.load_partition = lambda partition_id: made.dataset  # type: ignore[method-assign,attr-defined]
    return made


def test_a_partitioner_by_its_path() -> None:
    labels = np.arange(40) % 4
    parts = partition(labels, num_devices=3, kind=f"{__name__}:Halves", rng=np.random.default_rng(0))
    assert [len(part) for part in parts] == [20, 10, 10] and sorted(np.concatenate(parts)) == list(range(40))
    with pytest.raises(PartitionError, match="dealt some twice"):
        partition(labels, num_devices=3, kind=f"{__name__}:greedy", rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="partition.class: cannot import"):
        partition(labels, num_devices=3, kind="no.such:Thing", rng=np.random.default_rng(0))


@pytest.mark.parametrize("name", ["IidPartitioner", "DirichletPartitioner", "LinearPartitioner"])
def test_partitioners_of_flwr_datasets(name: str) -> None:
    pytest.importorskip("flwr_datasets")
    path, labels = f"flwr_datasets.partitioner:{name}", np.arange(300) % 4
    parts = [partition(labels, num_devices=5, kind=path, rng=np.random.default_rng(seed)) for seed in (0, 0)]
    assert sorted(np.concatenate(parts[0])) == list(range(300))
    assert all((a == b).all() for a, b in zip(*parts, strict=True))
