"""The resource optimizer without a federation: eight devices, one round, four ways to share the bandwidth.

Run: python examples/optimizer_alone.py
"""

import numpy as np

from optimizer import BoundConstants, ResourceProblem, check_solution, make_allocator


def eight_devices() -> ResourceProblem:
    """Return one round: watches and phones at 50 m to 400 m from the base station, 200 kHz in all."""
    distance_m = np.linspace(50.0, 400.0, 8)
    return ResourceProblem(
        access="fdma",
        deadline_s=4.0,
        max_dropout_rate=0.9,
        total_bandwidth_hz=200e3,
        noise_psd_w_per_hz=4e-21 * 10**0.5,  # thermal noise and a noise figure of 5 dB
        bound=BoundConstants(0.05, 1.0, 1.0, 0.5, 2.0, 0.1),
        device_ids=tuple(f"{d:.0f} m" for d in distance_m),
        num_examples=np.array([80, 120, 160, 200, 80, 120, 160, 200.0]),
        channel_gain=10 ** (-(128.1 + 37.6 * np.log10(distance_m / 1000)) / 10),
        downlink_rate_bps=1e7,  # one number for all
        cpu_hz=2e9,
        capacitance=2e-28,
        fixed_cycles=1e9,
        adapter_cycles=5e8,
        max_tx_power_w=0.1,
        energy_budget_j=2.0,
        droppable_bits=2e6,
        fixed_bits=1e5,
    )


def main() -> None:
    """Solve the round with four methods and print who gets what."""
    problem = eight_devices()
    for method in ("exact", "psca", "equal", "none"):
        solution = make_allocator(method).allocate(problem, rng=np.random.default_rng(0))
        assert not check_solution(problem, solution)
        value, bound, served = solution.objective, solution.lower_bound, int(solution.scheduled.sum())
        print(f"{method:6} objective {value:.5f}, at least {bound:.5f}; {served} of 8 devices")
        if method == "exact":
            assert solution.bandwidth_hz is not None
            for name, rate, hz in zip(problem.device_ids, solution.dropout_rate, solution.bandwidth_hz, strict=True):
                print(f"       {name:>6}: dropout {rate:.3f}, {hz / 1e3:5.1f} kHz")


if __name__ == "__main__":
    main()
