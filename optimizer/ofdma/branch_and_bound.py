"""OFDMA: branch and bound over who owns which subcarrier and over intervals of the dropout rates.

A node is an `OwnershipBox` with the prices and sets of its parent. Its bound is the larger of two certificates: the
prices per device of `dual_bound` (root only) and the set prices of `columns`. Candidates come from rounding the
continuous mix of sets and from `local_search`. A node is split on the subcarrier whose owner is least decided, or on
the dropout rate of a device whose sets in the mix are far apart, where that lifts the bound more. docs/ofdma.md has the
proofs and figures.

References
----------
[Barnhart1998] Barnhart et al., Branch-and-Price, Operations Research 46(3), 1998.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from optimizer.branch_and_bound import SearchResult, branch_and_bound
from optimizer.certificate import Leaf, can_be_verified
from optimizer.ofdma.completion import on_admitted
from optimizer.ofdma.dual_bound import OwnershipBox, alone_bound, maximise_bound, root_box, start_prices, tighten
from optimizer.ofdma.local_search import local_search, owned_mask, owner_values, restart, round_shares
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.set_bound.columns import make_columns, merge_columns
from optimizer.ofdma.set_bound.master import MasterState, generate, start_master
from optimizer.ofdma.waterfilling import set_values
from optimizer.problem import FloatArray, IntArray, ResourceProblem, Solution
from optimizer.solver_interface import DEFAULTS, Arguments, Decision, Limits
from optimizer.timing import time_is_up

_TOLD = 200  # nodes up to which the tree goes into the certificate
_COARSE = 1e-4  # relative gap that the root is bounded for before a smaller one


@dataclass
class Part:
    """A node's place in the tree that the certificate tells: its own bound, and once it was split, how."""

    leaf: Leaf | None = None
    alone: OwnershipBox | None = None  # where everyone alone with what it may own is the better bound
    impossible: int | None = None
    rule: dict[str, Any] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)

    def told(self, model: OfdmaModel) -> tuple[float, dict[str, Any]]:
        """What this part of the tree proves, and its plain form."""
        if self.impossible is not None:
            floor = np.where(np.arange(model.num_devices) == self.impossible, 1e300, 0.0)  # no set serves it
            return np.inf, dict(Leaf(np.inf, np.zeros(model.num_subcarriers), floor).certificate())
        leaf = self.leaf if self.alone is None else alone_bound(model, self.alone)
        assert leaf is not None
        if not self.parts:
            return leaf.bound, dict(leaf.certificate())
        told = [part.told(model) for part in self.parts]
        return min(bound for bound, _ in told), self.rule | {"parts": [record for _, record in told]}


@dataclass(frozen=True)
class OwnershipNode:
    """A box, and what is known about it: certified bound, sets, and its place in the tree."""

    box: OwnershipBox
    bound: float
    state: MasterState
    part: Part


@dataclass
class _Solver:
    """The three operations of `branch_and_bound` on one model, and what they share."""

    model: OfdmaModel
    limits: Limits
    gap: float = 0.0  # of the search that runs
    iterations: int = 0
    seen: dict[bytes, float] = field(default_factory=dict)

    def root(self, owner: IntArray) -> tuple[OwnershipNode, IntArray]:
        """Bound by prices per device, improve ``owner`` with the soft ownership they leave; returns node and owner."""
        model, device = self.model, np.arange(self.model.num_devices)
        box = root_box(model)
        point, share = maximise_bound(model, box, start_prices(model, box))
        trial, values = local_search(model, round_shares(model, share))
        if values.sum() > owner_values(model, owner).sum():
            trial, _ = local_search(model, owner)
        trivial = float(model.value(box.low, device).sum())  # everyone alone with the whole band
        columns = make_columns(model, device, owned_mask(trial, model.num_devices))
        state = replace(start_master(model, box, columns, point.price, point.bound), leaf=point.leaf())
        part = Part()
        self.tell(part, box, state.leaf)
        return OwnershipNode(box, max(point.bound, trivial), state, part), trial

    def search(
        self, node: OwnershipNode, start: tuple[float, IntArray], gap: float, max_nodes: int | None
    ) -> SearchResult[IntArray]:
        """Search below a node to a relative gap, from a known value and its owners."""
        self.gap = gap
        steps: dict[str, Any] = {"bound": self.bound, "candidate": self.candidate, "split": self.split}
        return branch_and_bound(node, **steps, start=start, gap=gap, max_nodes=max_nodes)

    def tell(self, part: Part, box: OwnershipBox, leaf: Leaf | None) -> None:
        """Keep what bounds a part best: a leaf, or everyone alone with all that the box allows."""
        part.leaf = part.leaf if leaf is None else leaf
        alone = float(self.model.value(box.low, np.arange(self.model.num_devices)).sum())
        part.alone = box if part.leaf is None or alone > part.leaf.bound else None

    def bound(self, node: OwnershipNode, upper: float) -> tuple[float, OwnershipNode]:
        """Lower bound of a node by set prices; certified at whatever prices the work ends."""
        box = tighten(self.model, node.box)
        if box.is_empty:
            node.part.impossible = int(np.flatnonzero(~(box.low <= box.high))[0])
            return np.inf, node
        trivial = float(self.model.value(box.low, np.arange(self.model.num_devices)).sum())
        known = max(node.bound, trivial)
        target = upper * (1 - 0.5 * self.gap) if np.isfinite(upper) and upper > 0 else upper
        if known >= target or time_is_up():
            self.tell(node.part, box, None)
            return known, replace(node, box=box, bound=known)
        tolerance = 0.02 * self.gap * max(abs(upper), 1e-12) + 1e-12
        before = node.state.iterations
        state = generate(self.model, box, node.state, upper=target, tolerance=tolerance, limits=self.limits)
        self.iterations += state.iterations - before
        known = max(known, state.bound)
        node = replace(node, box=box, bound=known, state=state)
        told, found = node.part.leaf, state.leaf
        self.tell(node.part, box, found if told is None or (found and found.bound > told.bound) else None)
        return known, node

    def candidate(self, node: OwnershipNode) -> tuple[float, IntArray] | None:
        """Round the mix of sets, repair and improve; rounded ownerships already tried are not tried again."""
        mixed = len(node.state.weight) > 0
        share = owner_shares(self.model, node.state) if mixed else node.box.allowed.astype(np.float64)
        owner = round_shares(self.model, share, node.box.allowed)
        key = owner.tobytes()
        if key in self.seen:
            return None
        owner, _ = local_search(self.model, owner)
        owned = owned_mask(owner, self.model.num_devices)
        value = float(set_values(self.model, np.arange(self.model.num_devices), owned).sum())
        self.seen[key] = value
        return (value, owner) if np.isfinite(value) else None

    def split(self, node: OwnershipNode) -> list[OwnershipNode]:
        """Parts of a node; the sets of the parent that a part forbids are dropped by `start_master`."""
        rule = split_rule(self.model, node, self.limits.split_rates)
        if rule is None:
            return []
        boxes = apply_rule(rule, node.box)
        node.part.rule, node.part.parts = rule, [Part(node.part.leaf, node.part.alone) for _ in boxes]
        parts = []
        for box, part in zip(boxes, node.part.parts, strict=True):
            state = start_master(self.model, box, node.state.columns, node.state.price, -np.inf)
            state = replace(state, iterations=node.state.iterations)
            parts.append(OwnershipNode(box, node.bound, state, part))
        return parts


def owner_shares(model: OfdmaModel, state: MasterState) -> FloatArray:
    """How much of each subcarrier each device owns in the last linear program, (K, M)."""
    share = np.zeros(model.inv_snr.shape)
    np.add.at(share, state.active.device, state.weight[:, None] * state.active.owned)
    return share


def split_rule(model: OfdmaModel, node: OwnershipNode, rates: bool | None = None) -> dict[str, Any] | None:
    """Choose how to divide a node's box by the last linear program's mix of sets; ``rates`` as in `Limits`.

    As in the certificate: a subcarrier and the groups of its owners, or a device and a dropout rate. None when nothing
    is left to decide and the bound is exact.
    """
    state, box = node.state, node.box
    if len(state.weight) == 0:
        return _undecided(node)
    share = owner_shares(model, state)
    doubt = np.minimum(share, np.abs(1 - share)).max(axis=0)  # (M,)
    by_rate, middle, lift = _rate_split(model, state)
    worthwhile = lift > 0.25 * max(state.relaxed - node.bound, 0.0) + 1e-4 * node.bound
    if by_rate >= 0 and (rates or (rates is None and worthwhile)):
        return {"device": by_rate, "at": middle}
    if doubt.max(initial=0.0) < 1e-6:
        return _undecided(node)  # one assignment, yet the bound is below it: lists were cut short
    return _owner_rule(box, int(np.argmax(doubt)), share)


def apply_rule(rule: dict[str, Any], box: OwnershipBox) -> list[OwnershipBox]:
    """Return the parts of a box."""
    if "device" in rule:
        low, high = box.low.copy(), box.high.copy()
        high[rule["device"]] = low[rule["device"]] = rule["at"]
        return [replace(box, high=high), replace(box, low=low)]
    parts = []
    for group in rule["owners"]:
        allowed = box.allowed.copy()
        allowed[:, rule["subcarrier"]] &= np.isin(np.arange(len(allowed)), group)
        parts.append(replace(box, allowed=allowed))
    return parts


def _owner_rule(box: OwnershipBox, m: int, share: FloatArray) -> dict[str, Any]:
    """One part per device with a stake in subcarrier m, largest first, and one part for everyone else."""
    claimants = np.flatnonzero((share[:, m] > 1e-6) & box.allowed[:, m])
    claimants = claimants[np.argsort(-share[claimants, m], kind="stable")][:3]
    others = np.setdiff1d(np.arange(len(share)), claimants)
    return {"subcarrier": m, "owners": [*([k] for k in claimants.tolist()), others.tolist()]}


def _undecided(node: OwnershipNode) -> dict[str, Any] | None:
    """Split by the owner of the first subcarrier that several devices may own."""
    allowed = node.box.allowed
    open_ones = np.flatnonzero(allowed.sum(axis=0) > 1)
    return _owner_rule(node.box, int(open_ones[0]), allowed.astype(np.float64)) if len(open_ones) else None


def _rate_split(model: OfdmaModel, state: MasterState) -> tuple[int, float, float]:
    """Device and rate whose split costs the mix of sets most, and that cost; device -1 when no mix spans an interval.

    Below the middle the sets that need a higher rate are forbidden; above it every set counts with phi(middle) at
    least.
    """
    best = (-1, 0.0, 0.0)
    for k in range(model.num_devices):
        mine = state.active.device == k
        gamma, weight = state.active.gamma[mine], state.weight[mine]
        if len(gamma) < 2 or gamma.max() - gamma.min() < 1e-9:
            continue
        middle = float(np.clip(gamma @ weight / weight.sum(), gamma.min(), gamma.max()))
        raised = model.value(np.maximum(gamma, middle), np.full(len(gamma), k)) - state.active.value[mine]
        lift = float(weight @ raised)
        if lift > best[2]:
            best = (k, middle, lift)
    return best


def _decide(model: OfdmaModel, owner: IntArray, arguments: Arguments) -> Decision:
    """Search the tree from the best ownership that local search finds around the root's."""
    gap = max(arguments.gap, 1e-12)  # below that, rounding decides
    solver = _Solver(model, arguments.limits)
    node, owner = solver.root(owner)
    target = node.bound / (1 - gap) if 0 < gap < 1 and node.bound > 0 else node.bound
    owner, value = restart(model, owner, arguments.generator, 4, good_enough=target)
    columns = make_columns(model, np.arange(model.num_devices), owned_mask(owner, model.num_devices))
    node = replace(node, state=replace(node.state, columns=merge_columns(node.state.columns, columns)))
    if gap < _COARSE:  # near the value lists are cut short and bounds weaken: what a looser request finds is kept
        first = solver.search(node, (value, owner), _COARSE, 1)
        value, owner = first.value, owner if first.answer is None else first.answer
        node = replace(node, bound=first.lower_bound)
    result = solver.search(node, (value, owner), gap, arguments.limits.max_nodes)
    bound, certificate = result.lower_bound, None
    if can_be_verified(arguments.objective) and result.nodes <= _TOLD:
        proven, certificate = node.part.told(model)
        bound = min(bound, proven)  # what is claimed is what the certificate proves
    best = owner if result.answer is None else result.answer
    return Decision(bound, certificate, owner=best, nodes=result.nodes, iterations=solver.iterations)


def solve_bnb_ofdma(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit devices and find their best ownership, with a certificate; ``iterations`` are linear programs."""
    return on_admitted(problem, arguments, _decide)
