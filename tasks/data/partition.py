"""Which training example lies on which device.

[Hsu2019]: Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.
"""

import inspect
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter.plugins import load_plugin
from tasks.data.examples import Examples

IndexArray = npt.NDArray[np.int64]
TRIES = 20  # Dirichlet draws before a too small device is filled up by moving examples
REGRESSION_BINS = 10
_STREAM = 0x70617274  # names the partition's random stream


class PartitionError(ValueError):
    """A partition that cannot exist; the text is one line for the user."""


class PartitionWarning(UserWarning):
    """The partition differs from a pure draw: examples were moved to reach the minimum size."""


def partition(
    labels: npt.NDArray[np.generic],
    groups: npt.NDArray[np.integer] | None = None,
    *,
    num_devices: int,
    kind: str = "iid",
    alpha: float = 0.3,
    min_size: int = 1,
    rng: np.random.Generator,
) -> list[IndexArray]:
    """Spread examples over devices; every example lies on exactly one. Returns every device's sorted indices.

    ``iid``: random, sizes differ by one at most. ``dirichlet``: every class (a tenth of the values of a regression) is
    divided in proportions drawn from Dir(``alpha``) [Hsu2019]; small values make the devices' labels differ more.
    ``group``: whole groups (who wrote an example), the next largest to the smallest device; with more devices than
    groups every device gets examples of one group only. A Dirichlet draw with a device below ``min_size`` is repeated
    up to 20 times; then, as for groups, examples are moved from the largest devices, with a `PartitionWarning`.
    """
    count = len(labels)
    _check(count, num_devices, kind, alpha, min_size)
    if kind == "iid":
        parts = np.array_split(rng.permutation(count), num_devices)
    elif kind == "dirichlet":
        parts = _dirichlet(_classes(labels), num_devices, alpha, min_size, rng)
    elif ":" in kind:
        known = {"alpha": alpha, "min_partition_size": min_size, "seed": int(rng.integers(2**31))}
        parts = _by_class(kind, labels, groups, {"num_partitions": num_devices, "partition_by": "label", **known})
    else:
        if groups is None:
            raise PartitionError("partition.kind=group: expected a task whose examples have groups, found none")
        parts = _by_group(np.asarray(groups), num_devices, rng)
    parts, moved = _repair([np.asarray(part, dtype=np.int64) for part in parts], min_size, rng)
    if moved:
        why = f"were moved so that each of {num_devices} devices has {min_size}"
        warnings.warn(f"partition {kind}: {moved} of {count} examples {why}", PartitionWarning, stacklevel=2)
    return [np.sort(part) for part in parts]


def partition_examples(examples: Examples, *, seed: int, **settings: Any) -> list[IndexArray]:
    """Return `partition` of a task's training examples for a run's seed: the same in every process of the run."""
    return partition(examples.labels, examples.groups, **settings, rng=np.random.default_rng([_STREAM, seed]))


def _check(count: int, num_devices: int, kind: str, alpha: float, min_size: int) -> None:
    if num_devices < 1:
        raise PartitionError(f"network.num_devices: expected at least 1, found {num_devices}")
    if kind not in ("iid", "dirichlet", "group") and ":" not in kind:
        raise PartitionError(f"partition.kind: expected iid, dirichlet or group, found {kind!r}")
    if kind == "dirichlet" and not 0 < alpha < np.inf:
        raise PartitionError(f"partition.alpha: expected a positive number, found {alpha}")
    if min_size < 1:
        raise PartitionError(f"partition.min_size: expected at least 1, found {min_size}")
    if count < num_devices * min_size:
        wanted = f"at least {num_devices} devices × {min_size} = {num_devices * min_size} training examples"
        mend = "use fewer devices, a smaller partition.min_size, or more data"
        raise PartitionError(f"partition: expected {wanted}, found {count}; {mend}")


def _classes(labels: npt.NDArray[np.generic]) -> IndexArray:
    """Class indices; real values become their tenth of the sorted order."""
    values = np.asarray(labels)
    if np.issubdtype(values.dtype, np.floating):
        edges = np.quantile(values, np.linspace(0, 1, REGRESSION_BINS + 1)[1:-1])
        return np.searchsorted(edges, values, side="right").astype(np.int64)
    return values.astype(np.int64)


def _dirichlet(
    classes: IndexArray, num_devices: int, alpha: float, min_size: int, rng: np.random.Generator
) -> list[IndexArray]:
    """Best of at most `TRIES` draws: the first that reaches the minimum size, else the one with the largest minimum."""
    best: list[IndexArray] = []
    for _ in range(TRIES):
        pieces: list[list[IndexArray]] = [[] for _ in range(num_devices)]
        for label in np.unique(classes):
            members = rng.permutation(np.flatnonzero(classes == label))
            shares = rng.dirichlet(np.full(num_devices, alpha))
            if not np.isfinite(shares).all():  # all gamma draws underflow for a tiny alpha: the limit is one device
                shares = np.eye(num_devices)[rng.integers(num_devices)]
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for device, piece in enumerate(np.split(members, cuts)):
                pieces[device].append(piece)
        drawn = [np.concatenate(piece) for piece in pieces]
        if not best or min(map(len, drawn)) > min(map(len, best)):
            best = drawn
        if min(map(len, best)) >= min_size:
            break
    return best


def _by_class(
    path: str, labels: npt.NDArray[np.generic], groups: npt.NDArray[np.integer] | None, known: dict[str, Any]
) -> list[IndexArray]:
    """Let a partitioner of flwr-datasets, or one like it, deal the examples; it is given what it asks for of ``known``.

    It sees a data set with the columns ``label`` (classes), ``group`` and ``index``.
    """
    from datasets import Dataset

    make = load_plugin(path, "partition.class")
    asked = inspect.signature(make).parameters
    every = any(one.kind is one.VAR_KEYWORD for one in asked.values())
    partitioner = make(**{name: value for name, value in known.items() if every or name in asked})
    columns = {"label": _classes(labels), "group": np.zeros(len(labels)) if groups is None else groups}
    partitioner.dataset = Dataset.from_dict({**columns, "index": np.arange(len(labels))})
    parts = [np.asarray(partitioner.load_partition(k)["index"], np.int64) for k in range(known["num_partitions"])]
    if sum(map(len, parts)) > len(np.unique(np.concatenate(parts))):
        raise PartitionError(f"partition.class: expected every example on one device at most, {path} dealt some twice")
    return parts


def _by_group(groups: npt.NDArray[np.integer], num_devices: int, rng: np.random.Generator) -> list[IndexArray]:
    members = [rng.permutation(np.flatnonzero(groups == group)) for group in rng.permutation(np.unique(groups))]
    members.sort(key=len, reverse=True)  # stable: groups of equal size stay in random order
    if len(members) >= num_devices:
        pieces: list[list[IndexArray]] = [[] for _ in range(num_devices)]
        sizes = np.zeros(num_devices, dtype=np.int64)
        for group in members:
            device = int(np.argmin(sizes))
            pieces[device].append(group)
            sizes[device] += len(group)
        return [np.concatenate(piece) for piece in pieces]
    devices = np.ones(len(members), dtype=np.int64)  # how many devices share each group
    for _ in range(num_devices - len(members)):
        devices[np.argmax([len(group) / share for group, share in zip(members, devices, strict=True)])] += 1
    return [part for group, share in zip(members, devices, strict=True) for part in np.array_split(group, share)]


def _repair(parts: list[IndexArray], min_size: int, rng: np.random.Generator) -> tuple[list[IndexArray], int]:
    """Fill small devices with random examples of the largest ones; ends because the total is large enough."""
    moved = 0
    for device in range(len(parts)):
        while len(parts[device]) < min_size:
            donor = int(np.argmax([len(part) for part in parts]))
            spare = min(min_size - len(parts[device]), max(1, (len(parts[donor]) - min_size) // 2))
            order = rng.permutation(len(parts[donor]))
            parts[device] = np.concatenate([parts[device], parts[donor][order[:spare]]])
            parts[donor] = parts[donor][order[spare:]]
            moved += spare
    return parts, moved
