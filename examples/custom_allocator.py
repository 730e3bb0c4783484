"""An allocator of your own: bandwidth in proportion to the number of training examples, then a federation with it.

Run: python examples/custom_allocator.py
Or:  fedlodrop run allocator.class=examples.custom_allocator:by_examples
"""

import tempfile

import fedlodrop
from optimizer import ResourceProblem, Solution
from optimizer.fdma.admission import Admission, individual_reasons
from optimizer.fdma.bandwidth_curve import BandwidthCurve
from optimizer.fdma.schemes import best_dropout_rate, by_rule, fit_shares
from optimizer.problem import FloatArray
from optimizer.solver_interface import Arguments


def by_examples(problem: ResourceProblem, arguments: Arguments) -> Solution:
    """Give every device bandwidth in proportion to its data, and the best dropout rate that this allows it."""
    need_hz = BandwidthCurve(problem).bandwidth_hz(problem.highest_rates)
    on = fit_shares(need_hz, problem.num_examples, problem.total_bandwidth_hz)
    known = zip(individual_reasons(problem, problem.highest_rates), on, strict=True)  # no band at all would do, or ...
    admission = Admission(
        on, tuple(why or ("" if fits else "its share is too small") for why, fits in known), exact=False
    )
    band_hz = problem.total_bandwidth_hz * problem.num_examples[on] / problem.num_examples[on].sum()

    def best(part: ResourceProblem) -> FloatArray:
        return best_dropout_rate(part, arguments.objective, BandwidthCurve(part).smallest_dropout_rate(band_hz))

    return by_rule(problem, admission, best, arguments, band_hz)


def main() -> None:
    """Run a short federation with the allocator, print what it decided."""
    allocator = ("allocator.class=examples.custom_allocator:by_examples", "model=tiny", "run.engine=local")
    short = ("partition=dirichlet", "run.num_rounds=2", "network.num_devices=5", "training.local_steps=2")
    with tempfile.TemporaryDirectory() as folder:
        done = fedlodrop.run(*allocator, *short, f"run.dir='{folder}/run'")
    for _, plan in done.rounds.iterrows():
        print(f"round {plan['round']}: {plan['plan.solver']}, notes {plan['plan.notes']}")
        for _, device in done.devices[done.devices["round"] == plan["round"]].iterrows():
            print(f"  {device['id']}: {device['num_examples']} examples, {device['bandwidth_hz'] / 1e3:.1f} kHz")


if __name__ == "__main__":
    main()
