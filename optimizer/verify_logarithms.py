"""Bound a plan by the Lagrangian in logarithms, for `optimizer.verify_extended`: free clocks, and goals with a price.

Every row of the problem is convex in the logarithms of its variables (docs/multi_round.md), so the Lagrangian lies
above its tangent at any point, whatever the prices, and the least value of the tangent over a box that holds all plans
is a bound.
"""

from typing import Any

from flint import arb

from optimizer.verify import LN2, ONE, ZERO, bisect, exact, number


def earliest(part: Any) -> arb:
    """A time within which no plan for the devices that take part ends."""
    rates = [device.total * (1 + device.power * device.snr[0] / device.total).log() / LN2 for device in part.served]
    ends = []
    for device, rate in zip(part.served, rates, strict=True):
        bits, tau, _ = device.at(arb(device.top))
        ends.append((device.deadline - tau + (bits / rate if bits > 0 else ZERO)).lower())
    return max(ends)


def log_bound(part: Any, record: Any, joule: arb = ZERO, second: arb = ZERO) -> arb:
    """Least value of the tangent of a Lagrangian, which is convex in the logarithms of all variables, over a box.

    Below sum phi + ``joule`` per joule + ``second`` per second of a deadline at most that of ``part``, for any point
    and any prices >= 0 in the record; without a price of a second the deadline is that of ``part``.
    """
    deadline, (price,) = part.served[0].deadline, exact(record, "price_per_hz")
    free = second > 0 or joule > 0
    start = arb(number(record, "log_deadline")) if free else deadline.log()
    slope = second * start.exp()
    bound = slope - price * arb(part.total_hz)
    for i, device in enumerate(part.served):
        row, prices = [arb(number(record["point"][i], j)) for j in range(5)], exact(record["price"][i], range(4))
        bound += _device_tangent(device, row, prices, (price, joule, start))
        slope -= prices[0]
    if free:
        ends = earliest(part).log().lower(), deadline.log().upper()
        bound += (slope * (ends[0] - start)).min(slope * (ends[1] - start))
    return bound


def _device_tangent(device: Any, row: list[arb], prices: list[arb], common: tuple[arb, arb, arb]) -> arb:
    """A device's part of the tangent's least value; ``row``: logarithms of kept share, band, rate, power, clock."""
    (price, joule, start), (late, costly, short, loud) = common, prices
    kept, band, rate, power, clock = (each.exp() for each in row)
    (work, extra), bits = device.cycles, (device.fixed / rate, device.s1 * kept / rate)
    seconds = [device.down[0], device.down[1] * kept, work / clock, extra * kept / clock, *bits]
    heat = device.capacitance * clock * clock
    joules = [heat * work, heat * extra * kept, power * bits[0], power * bits[1]]
    used, spent = sum(seconds), sum(joules)
    snr = power * device.snr[0] / band
    soft = (1 + snr).log()
    tilt, (value, steep) = snr / (1 + snr) / soft, device.phi(ONE - kept)
    value += joule * spent + late * (used.log() - start) + short * (row[2] - row[1] - (soft / LN2).log()) + price * band
    per_joule = joule + costly / spent
    value += costly * (spent / (device.budget - device.circuit)).log() if costly > 0 else ZERO
    slopes = [
        late * (seconds[1] + seconds[3] + seconds[5]) / used + per_joule * (joules[1] + joules[3]) - kept * steep,
        price * band + short * (tilt - 1),
        short - late * sum(bits) / used - per_joule * (joules[2] + joules[3]),
        per_joule * (joules[2] + joules[3]) - short * tilt,
        2 * per_joule * (joules[0] + joules[1]) - late * (seconds[2] + seconds[3]) / used,
    ]
    if device.full > 0:  # in turns a device radiates P b/W at most
        value += loud * (row[3] - row[1] - (device.power / device.total).log())
        slopes[1], slopes[3] = slopes[1] - loud, slopes[3] + loud
    for slope, at, (left, right) in zip(slopes, row, _box(device), strict=True):
        value += (slope * (left - at)).min(slope * (right - at))
    return value.lower()


def _box(device: Any) -> list[tuple[arb, arb]]:
    """Least and largest logarithm of kept share, band, rate, average power and clock of any plan in time."""
    snr, total, power = device.snr[0], device.total, device.power
    rate = device.at(arb(device.top))[0] / device.deadline
    least = (rate * LN2) ** 2 / (power * snr)  # R ln2 = b ln(1 + q) <= b sqrt(q), and the band that serves is larger
    carries_less = lambda log_hz: log_hz.exp() * (1 + power * snr / log_hz.exp()).log() < rate * LN2  # noqa: E731
    band = bisect(carries_less, (least.log().lower(), total.log().upper()), 40)[0]
    pairs = (
        (ONE - arb(device.top), ONE),
        (band.exp(), total),
        (rate, total * (1 + power * snr / total).log() / LN2),
        (((rate * LN2 / total).exp() - 1) * total / snr, power),
        (device.clocks[0], device.clocks[1]),
    )
    return [(left.log().lower(), right.log().upper()) for left, right in pairs]
