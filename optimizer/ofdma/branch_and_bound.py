"""OFDMA: branch and bound over who owns which subcarrier and over intervals of the dropout rates.

A node is an `OwnershipBox` with the prices and sets of its parent. Its bound is the larger of two certificates: the prices per
device of `ofdma_dual` (root only) and the set prices of `ofdma_columns`. Candidates come from rounding the continuous mix of
sets and from `local_search`. A node is split on the subcarrier whose owner is least decided, or on the dropout rate of a
device whose sets in the mix are far apart, where that lifts the bound more. docs/ofdma.md has the proofs and figures.

References
----------
[Xie2026] FedLoDrop, arXiv 2510.12078 (the problem in words).
[Barnhart1998] Barnhart et al., Branch-and-Price, Operations Research 46(3), 1998.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from optimizer.branch_and_bound import branch_and_bound
from optimizer.checker import nobody_scheduled
from optimizer.objective import SeparableObjective
from optimizer.ofdma.admission import admit_ofdma
from optimizer.ofdma.completion import finish
from optimizer.ofdma.dual_bound import OwnershipBox, maximise_bound, root_box, start_prices, tighten
from optimizer.ofdma.local_search import local_search, owned_mask, owner_values, restart, round_shares
from optimizer.ofdma.model import OfdmaModel, build_model
from optimizer.ofdma.set_bound.columns import Cuts, make_columns, make_cuts, merge_columns
from optimizer.ofdma.set_bound.listing import Limits
from optimizer.ofdma.set_bound.master import MasterState, generate, start_master
from optimizer.ofdma.waterfilling import set_values
from optimizer.problem import BoolArray, FloatArray, IntArray, ResourceProblem, Solution, SolverStatus


@dataclass(frozen=True)
class OwnershipNode:
    """A box, and what is known about it: certified bound, prices, sets (None before the first linear program)."""

    box: OwnershipBox
    bound: float
    cuts: Cuts
    state: MasterState


@dataclass
class _Solver:
    """The three operations of `branch_and_bound` on one model, and what they share."""

    model: OfdmaModel
    gap: float
    stop_at: float
    split_rates: bool | None = None
    limits: Limits = field(default_factory=Limits)
    iterations: int = 0
    seen: dict[bytes, float] = field(default_factory=dict)

    def root(self, owner: IntArray) -> tuple[OwnershipNode, IntArray]:
        """Bound by prices per device, improve ``owner`` with the soft ownership they leave; returns the node and the owner."""
        model, device = self.model, np.arange(self.model.num_devices)
        box = root_box(model)
        point, share = maximise_bound(model, box, start_prices(model, box), stop_at=self.stop_at)
        trial, values = local_search(model, round_shares(model, share), stop_at=self.stop_at)
        if values.sum() > owner_values(model, owner).sum():
            trial, _ = local_search(model, owner, stop_at=self.stop_at)
        trivial = float(model.value(box.low, device).sum())  # everyone alone with the whole band
        cuts = make_cuts(model, box, point.rate_price, point.power_price)
        columns = make_columns(model, device, owned_mask(trial, model.num_devices))
        state = start_master(model, box, columns, point.price, point.bound)
        return OwnershipNode(box, max(point.bound, trivial), cuts, state), trial

    def bound(self, node: OwnershipNode, upper: float) -> tuple[float, OwnershipNode]:
        """Lower bound of a node by set prices; certified at whatever prices the work ends."""
        box = tighten(self.model, node.box)
        if box.is_empty:
            return np.inf, node
        trivial = float(self.model.value(box.low, np.arange(self.model.num_devices)).sum())
        known = max(node.bound, trivial)
        target = upper * (1 - 0.5 * self.gap) if np.isfinite(upper) and upper > 0 else upper
        if known >= target:
            return known, replace(node, box=box, bound=known)
        limits = replace(self.limits, stop_at=self.stop_at)
        tolerance = 0.02 * self.gap * max(abs(upper), 1e-12) + 1e-12
        before = node.state.iterations
        state = generate(self.model, box, node.cuts, node.state, upper=target, tolerance=tolerance, limits=limits)
        self.iterations += state.iterations - before
        known = max(known, state.bound)
        node = OwnershipNode(box, known, node.cuts, state)
        return known, replace(node, box=fix_owners(self.model, node, upper))

    def candidate(self, node: OwnershipNode) -> tuple[float, IntArray] | None:
        """Round the mix of sets, repair and improve; rounded ownerships already tried are not tried again."""
        mixed = len(node.state.weight) > 0
        share = owner_shares(self.model, node.state) if mixed else node.box.allowed.astype(np.float64)
        owner = round_shares(self.model, share, node.box.allowed)
        key = owner.tobytes()
        if key in self.seen:
            return None
        owner, _ = local_search(self.model, owner, stop_at=self.stop_at)
        owned = owned_mask(owner, self.model.num_devices)
        value = float(set_values(self.model, np.arange(self.model.num_devices), owned).sum())
        self.seen[key] = value
        return (value, owner) if np.isfinite(value) else None

    def split(self, node: OwnershipNode) -> list[OwnershipNode]:
        """Parts of a node; the sets of the parent that a part forbids are dropped by `start_master`."""
        boxes = split_box(self.model, node, self.split_rates)
        parts = []
        for box in boxes:
            state = start_master(self.model, box, node.state.columns, node.state.price, -np.inf)
            parts.append(OwnershipNode(box, node.bound, node.cuts, replace(state, iterations=node.state.iterations)))
        return parts


def owner_shares(model: OfdmaModel, state: MasterState) -> FloatArray:
    """How much of each subcarrier each device owns in the last linear program, (K, M)."""
    share = np.zeros(model.inv_snr.shape)
    np.add.at(share, state.active.device, state.weight[:, None] * state.active.owned)
    return share


def fix_owners(model: OfdmaModel, node: OwnershipNode, upper: float) -> OwnershipBox:
    """Forbid ownerships that no assignment better than ``upper`` can contain (reduced-cost fixing).

    Forcing subcarrier m on device k lifts the device's part of the bound to at least psi_k - sum [D - mu]^+ + [mu_m - D_km]^+;
    when that exceeds L_k by more than the whole gap, k cannot own m. Likewise k must own m when leaving it out exceeds the gap.
    """
    state, box = node.state, node.box
    if not np.all(np.isfinite(state.least)) or not np.isfinite(upper):
        return box
    cuts = make_cuts(model, box, node.cuts.rate_price, node.cuts.power_price)
    reduced = cuts.worth - state.price  # (C, K, M)
    base = cuts.minima - np.where(box.allowed, np.maximum(reduced, 0.0), 0.0).sum(axis=2)
    ceiling = state.least + (upper - state.bound) * (1 + 1e-6) + 1e-12
    out = np.any(base[:, :, None] + np.maximum(-reduced, 0.0) > ceiling[:, None], axis=0)
    must = box.allowed & np.any(base[:, :, None] + np.maximum(reduced, 0.0) > ceiling[:, None], axis=0)
    taken = must.any(axis=0) & ~must
    return replace(box, allowed=box.allowed & ~out & ~taken)


def split_box(model: OfdmaModel, node: OwnershipNode, rates: bool | None = None) -> list[OwnershipBox]:
    """Divide a node's box.

    Parameters
    ----------
    model : OfdmaModel
        The problem.
    node : OwnershipNode
        With the last linear program's mix of sets.
    rates : bool, optional
        True: split dropout rates wherever the mix allows, False: only subcarriers; left out: whichever lifts the bound more.

    Returns
    -------
    list of OwnershipBox
        Empty when nothing is left to decide and the bound is exact.
    """
    state, box = node.state, node.box
    if len(state.weight) == 0:
        return _split_undecided(model, node)
    share = owner_shares(model, state)
    doubt = np.minimum(share, np.abs(1 - share)).max(axis=0)  # (M,)
    by_rate, middle, lift = _rate_split(model, state)
    if by_rate >= 0 and (rates or (rates is None and lift > 0.25 * max(state.relaxed - node.bound, 0.0) + 1e-4 * node.bound)):
        low, high = box.low.copy(), box.high.copy()
        high[by_rate] = low[by_rate] = middle
        return [replace(box, high=high), replace(box, low=low)]
    if doubt.max(initial=0.0) < 1e-6:
        return _split_undecided(model, node)  # one assignment, yet the bound is below it: lists were cut short
    return _owner_split(box, int(np.argmax(doubt)), share)


def _owner_split(box: OwnershipBox, m: int, share: FloatArray) -> list[OwnershipBox]:
    """One part per device with a stake in subcarrier m, largest first, and one part for everyone else."""
    claimants = np.flatnonzero((share[:, m] > 1e-6) & box.allowed[:, m])
    claimants = claimants[np.argsort(-share[claimants, m], kind="stable")][:3]
    parts = []
    for k in claimants:
        allowed = box.allowed.copy()
        allowed[:, m] = False
        allowed[k, m] = True
        parts.append(replace(box, allowed=allowed))
    others = box.allowed.copy()
    others[claimants, m] = False
    return [*parts, replace(box, allowed=others)]


def _split_undecided(model: OfdmaModel, node: OwnershipNode) -> list[OwnershipBox]:
    """Parts by the owner of the first subcarrier that several devices may own.

    Where nothing is left to decide, the box itself comes back as long as its exact value is above the node's bound: owners may
    have been fixed after the node was bounded.
    """
    box = node.box
    open_ones = np.flatnonzero(box.allowed.sum(axis=0) > 1)
    if len(open_ones):
        return _owner_split(box, int(open_ones[0]), box.allowed.astype(np.float64))
    exact = tighten(model, box)
    value = np.inf if exact.is_empty else float(model.value(exact.low, np.arange(model.num_devices)).sum())
    return [box] if value > node.bound + 1e-12 * abs(node.bound) else []


def _rate_split(model: OfdmaModel, state: MasterState) -> tuple[int, float, float]:
    """Device and rate whose split costs the mix of sets most, and that cost; device -1 when no mix spans an interval.

    Below the middle the sets that need a higher rate are forbidden; above it every set counts with phi(middle) at least.
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


def solve_bnb_ofdma(
    problem: ResourceProblem,
    objective: SeparableObjective | None = None,
    *,
    time_limit_s: float = 10.0,
    gap: float = 1e-4,
    rng: np.random.Generator | None = None,
    warm_start: Solution | None = None,
    scheduled: BoolArray | None = None,
    max_nodes: int | None = None,
    split_rates: bool | None = None,
    limits: Limits | None = None,
) -> Solution:
    """Admit devices and find their best ownership, with a certificate.

    Parameters
    ----------
    problem : ResourceProblem
        OFDMA.
    objective : SeparableObjective, optional
        Any phi with a curvature floor; the generalization bound when left out.
    time_limit_s : float
        Wall time [s] after which the best ownership so far is returned with its certificate.
    gap : float
        Relative gap at which to stop.
    rng : Generator, optional
        Used for perturbed restarts of the local search; seed 0 when left out.
    warm_start : Solution, optional
        An earlier answer; its ownership is a first candidate.
    scheduled : ndarray, optional
        (K,) bool, who may take part.
    max_nodes : int, optional
        Nodes to bound at most.
    split_rates : bool, optional
        As in `split_box`.
    limits : Limits, optional
        Effort per node; with fewer rounds bounds are weaker and the tree is larger.

    Returns
    -------
    Solution
        ``nodes`` bounded, ``iterations`` linear programs.
    """
    begin = time.perf_counter()
    full = build_model(problem, objective)
    fit = admit_ofdma(full, scheduled, previous_owner(problem, warm_start))
    if not fit.admission.scheduled.any():
        return nobody_scheduled(problem, "bnb", fit.admission.reasons, time.perf_counter() - begin)
    gap = max(gap, 1e-12)  # below that, rounding decides
    generator = rng or np.random.default_rng(0)
    solver = _Solver(fit.model, gap, begin + time_limit_s, split_rates, limits or Limits())
    node, owner = solver.root(fit.owner)
    target = node.bound / (1 - gap) if 0 < gap < 1 and node.bound > 0 else node.bound
    owner, value = restart(fit.model, owner, generator, 4, good_enough=target, stop_at=solver.stop_at)
    columns = make_columns(fit.model, np.arange(fit.model.num_devices), owned_mask(owner, fit.model.num_devices))
    state = replace(node.state, columns=merge_columns(node.state.columns, columns))
    result = branch_and_bound(
        replace(node, state=state), bound=solver.bound, candidate=solver.candidate, split=solver.split, start=(value, owner),
        gap=gap, max_nodes=max_nodes, stop_at=solver.stop_at,
    )  # fmt: skip
    best = owner if result.answer is None else result.answer
    done = result.value - result.lower_bound <= gap * max(abs(result.value), 1e-12)
    status = SolverStatus.OPTIMAL if done else SolverStatus.TIME_LIMIT
    solution = finish(
        fit.model, best, method="bnb", status=status, lower_bound=result.lower_bound, reasons=fit.admission.reasons,
        nodes=result.nodes, iterations=solver.iterations, stop_at=solver.stop_at,
    )  # fmt: skip
    if fit.model.rising is not None and solution.gap > gap:  # the stand-in's own error, 1e-8, is above what was asked for
        solution = replace(solution, status=SolverStatus.TIME_LIMIT if not done else SolverStatus.FEASIBLE)
    return replace(solution, solve_time_s=time.perf_counter() - begin)


def previous_owner(problem: ResourceProblem, warm_start: Solution | None) -> IntArray | None:
    """Ownership of an earlier answer, None where it does not fit this problem's shape."""
    if warm_start is None or warm_start.subcarrier_owner is None:
        return None
    owner = np.asarray(warm_start.subcarrier_owner, dtype=np.int64)
    if owner.shape != (problem.num_subcarriers,) or owner.max(initial=-1) >= problem.num_devices:
        return None
    return owner
