"""OFDMA: branch and bound over who owns which subcarrier and over intervals of the dropout rates.

A node is an `OwnershipBox` with the prices and sets of its parent. Its bound is the larger of two certificates: the
prices per device of `dual_bound` (root only) and the set prices of `pricing`. Candidates come from rounding the
continuous mix of sets and from `local_search`. A node is split on the subcarrier whose owner is least decided, or on
the dropout rate of a device whose sets in the mix are far apart, where that lifts the bound more. Branch and price in
general: [Barnhart1998]; docs/ofdma.md has the proofs, figures and references.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from optimizer.branch_and_bound import branch_and_bound
from optimizer.certificate import Leaf, can_be_verified
from optimizer.ofdma.completion import on_admitted
from optimizer.ofdma.dual_bound import OwnershipBox, alone_bound, maximise_bound, root_box, tighten
from optimizer.ofdma.local_search import local_search, owner_values, restart, round_shares
from optimizer.ofdma.model import OfdmaModel
from optimizer.ofdma.set_bound.master import Mix, SetBound
from optimizer.ofdma.set_bound.pricing import make_columns, merge_columns
from optimizer.ofdma.waterfilling import fleet_rates, owned_mask
from optimizer.problem import BoolArray, FloatArray, IntArray, ResourceProblem, Solution
from optimizer.solver_interface import DEFAULTS, Arguments, Decision, Limits
from optimizer.timing import time_is_up

_TOLD = 200  # nodes up to which the tree goes into the certificate
_COARSE = 1e-4  # relative gap that the root is bounded for before a smaller one


@dataclass
class Part:
    """A node's place in the tree that the certificate tells: its own bound, and once it was split, how."""

    leaf: Leaf
    rule: dict[str, Any] = field(default_factory=dict)
    parts: "list[Part]" = field(default_factory=list)

    def improve(self, *leaves: Leaf) -> None:
        """Keep the best bound."""
        self.leaf = max(self.leaf, *leaves, key=lambda leaf: leaf.bound)

    def told(self) -> tuple[float, dict[str, Any]]:
        """What this part of the tree proves, and its plain form."""
        if not self.parts:
            return self.leaf.bound, dict(self.leaf.certificate())
        told = [part.told() for part in self.parts]
        return min(bound for bound, _ in told), self.rule | {"parts": [record for _, record in told]}


@dataclass(frozen=True)
class OwnershipNode:
    """A box, and what is known about it: certified bound, sets, and its place in the tree."""

    box: OwnershipBox
    bound: float
    sets: SetBound
    part: "Part"


@dataclass
class _Solver:
    model: OfdmaModel
    limits: Limits
    gap: float = 0.0  # of the search that runs
    programs: int = 0
    seen: set[bytes] = field(default_factory=set)  # rounded ownerships

    def bound(self, node: OwnershipNode, upper: float) -> tuple[float, OwnershipNode]:
        """Lower bound of a node by set prices; certified at whatever prices the work ends."""
        box = tighten(self.model, node.box)
        if len(box.unserved):
            floor = np.where(self.model.devices == box.unserved[0], 1e300, 0.0)  # no set serves it
            node.part.leaf = Leaf(np.inf, np.zeros(self.model.num_subcarriers), floor)
            return np.inf, node
        alone = alone_bound(self.model, box)
        known = max(node.bound, alone.bound)
        target = upper * (1 - 0.5 * self.gap) if np.isfinite(upper) and upper > 0 else upper
        if known >= target or time_is_up():
            node.part.improve(alone)
            return known, replace(node, box=box, bound=known)
        sets = replace(node.sets, box=box)
        sets.generate(target, 0.02 * self.gap * max(abs(upper), 1e-12) + 1e-12)
        self.programs += sets.programs
        node.part.improve(sets.leaf, alone)
        known = max(known, sets.leaf.bound)
        return known, replace(node, box=box, bound=known, sets=sets)

    def candidate(self, node: OwnershipNode) -> tuple[float, IntArray] | None:
        """Round the mix of sets, repair and improve; rounded ownerships already tried are not tried again."""
        mix, allowed = node.sets.mix, node.box.allowed
        share = np.ones(allowed.shape) if mix is None else mix.shares(self.model)
        owner = round_shares(np.where(allowed, share, -np.inf))
        if owner.tobytes() in self.seen:
            return None
        self.seen.add(owner.tobytes())
        owner, _ = local_search(self.model, owner)
        value = float(self.model.value(fleet_rates(self.model, owner)).sum())
        return (value, owner) if np.isfinite(value) else None

    def split(self, node: OwnershipNode) -> list[OwnershipNode]:
        """Parts of a node, without the sets of the parent that they forbid."""
        rule = split_rule(node, self.limits.split_rates)
        if rule is None:
            return []
        node.part.rule, known = rule, node.sets.columns
        nodes = []
        for box in apply_rule(rule, node.box):
            inside = ~np.any(known.owned & ~box.allowed[known.device], axis=1) & (known.gamma <= box.high[known.device])
            sets = SetBound(self.model, box, self.limits, known.take(inside), replace(node.sets.leaf, bound=-np.inf))
            nodes.append(OwnershipNode(box, node.bound, sets, Part(node.part.leaf)))
        node.part.parts = [each.part for each in nodes]
        return nodes


def split_rule(node: OwnershipNode, rates: bool | None = None) -> dict[str, Any] | None:
    """Choose how to divide a node's box by the last linear program's mix of sets; ``rates`` as in `Limits`.

    As in the certificate: a subcarrier and the groups of its owners, or a device and a dropout rate. None when nothing
    is left to decide and the bound is exact.
    """
    model, mix, allowed = node.sets.model, node.sets.mix, node.box.allowed
    if mix is not None:
        by_rate, middle, lift = _rate_split(model, mix)
        worthwhile = lift > 0.25 * max(mix.value - node.bound, 0.0) + 1e-4 * node.bound
        if by_rate >= 0 and (rates or (rates is None and worthwhile)):
            return {"device": by_rate, "at": middle}
        share = mix.shares(model)
        doubt = np.minimum(share, np.abs(1 - share)).max(axis=0)  # (M,)
        if doubt.max(initial=0.0) >= 1e-6:
            return _owner_rule(allowed, int(np.argmax(doubt)), share)
    # No mix, or one assignment with a bound below it since lists were cut short: the first subcarrier that is open.
    open_ones = np.flatnonzero(allowed.sum(axis=0) > 1)
    return _owner_rule(allowed, int(open_ones[0]), allowed.astype(np.float64)) if len(open_ones) else None


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


def _owner_rule(allowed: BoolArray, m: int, share: FloatArray) -> dict[str, Any]:
    """One part per device with a stake in subcarrier m, largest first, and one part for everyone else."""
    claimants = np.flatnonzero((share[:, m] > 1e-6) & allowed[:, m])
    claimants = claimants[np.argsort(-share[claimants, m], kind="stable")][:3]
    others = np.setdiff1d(np.arange(len(share)), claimants)
    return {"subcarrier": m, "owners": [*([k] for k in claimants.tolist()), others.tolist()]}


def _rate_split(model: OfdmaModel, mix: Mix) -> tuple[int, float, float]:
    """Device (-1: none) and rate whose split costs the mix most, and that cost: above it phi is at least phi(rate)."""
    best = (-1, 0.0, 0.0)
    for k in range(model.num_devices):
        mine = mix.sets.device == k
        gamma, weight = mix.sets.gamma[mine], mix.weight[mine]
        if len(gamma) < 2 or gamma.max() - gamma.min() < 1e-9:
            continue
        middle = float(np.clip(gamma @ weight / weight.sum(), gamma.min(), gamma.max()))
        raised = model.value(np.maximum(gamma, middle), np.full(len(gamma), k)) - mix.sets.value[mine]
        lift = float(weight @ raised)
        if lift > best[2]:
            best = (k, middle, lift)
    return best


def _decide(model: OfdmaModel, owner: IntArray, arguments: Arguments) -> Decision:
    """Bound by prices per device, and search the tree from the best ownership found around the one that they leave."""
    gap = max(arguments.gap, 1e-12)  # below that, rounding decides
    solver, box = _Solver(model, arguments.limits), root_box(model)
    leaf, _, share = maximise_bound(model, box)
    part = Part(leaf)
    part.improve(alone_bound(model, box))
    least = part.leaf.bound
    first, values = local_search(model, round_shares(share))
    if values.sum() > owner_values(model, owner).sum():
        first, _ = local_search(model, owner)
    target = least / (1 - gap) if gap < 1 and least > 0 else least
    owner, value = restart(model, first, arguments.generator, 4, target)
    columns = merge_columns(*(make_columns(model, owned_mask(each, model.num_devices)) for each in (first, owner)))
    node = OwnershipNode(box, least, SetBound(model, box, arguments.limits, columns, leaf), part)
    searches = [(gap, arguments.limits.max_nodes)]
    if gap < _COARSE:  # near the value lists are cut short and bounds weaken: what a looser request finds is kept
        searches.insert(0, (_COARSE, 1))
    for solver.gap, max_nodes in searches:
        steps: dict[str, Any] = {"bound": solver.bound, "candidate": solver.candidate, "split": solver.split}
        result = branch_and_bound(node, **steps, start=(value, owner), gap=solver.gap, max_nodes=max_nodes)
        value, owner = result.value, owner if result.answer is None else result.answer
        node = replace(node, bound=result.lower_bound)
    bound, certificate = result.lower_bound, None
    if can_be_verified(arguments.objective) and result.nodes <= _TOLD:
        proven, certificate = node.part.told()
        bound = min(bound, proven)  # what is claimed is what the certificate proves
    return Decision(bound, certificate, owner=owner, nodes=result.nodes, iterations=solver.programs)


def solve_bnb_ofdma(problem: ResourceProblem, arguments: Arguments = DEFAULTS) -> Solution:
    """Admit devices and find their best ownership, with a certificate; ``iterations`` are linear programs."""
    return on_admitted(problem, arguments, _decide)
