"""Lines of text about a finished round, for a log or a terminal."""

from collections.abc import Iterator
from typing import Any

_FAR = 2.0  # times the threshold: an honest change is seldom so long


def round_lines(record: dict[str, Any], num_rounds: int, metric: str, *, begins: bool) -> Iterator[str]:
    """Yield a finished round, its failures, and what was not averaged as it came, one line each."""
    yield round_line(record, num_rounds, metric)
    for failure in record["failures"]:
        yield f"  {failure_text(failure)}"
    for line in guard_lines(record, begins=begins):
        yield f"  {line}"


def failure_text(failure: dict[str, Any]) -> str:
    """Return one failure of a device as text."""
    return f"{failure['device'] or 'unknown device'}: {failure['kind']}: {failure['message']}"


def guard_lines(record: dict[str, Any], *, begins: bool) -> list[str]:
    """Return what a person must know of answers that were not averaged as they came.

    Half of the honest changes are a little longer than the median one: named are those of twice its length and more.
    What stays the same from round to round is said when a run begins and when somebody joins.
    """
    lines = []
    if begins or record.get("joined"):
        for row in record.get("capped", ()):
            announced = f"{row['device']}: announces {row['num_examples']} examples"
            lines.append(f"{announced} and weighs {row['weight']:g} (strategy.max_weight)")
        if robust := record.get("robust"):
            lines.append(
                f"{robust['kind']} stands {robust['stands']} hostile of {record['answers']['asked']} devices "
                f"(strategy.trim); entries with fewer than {robust['needs']} votes do not move: "
                f"{robust['unmoved']:.0%} of this round's"
            )
    for row in record.get("clipped", ()):
        if (norm := row["norm"]) >= _FAR * (limit := row["threshold"]):
            lines.append(f"{row['device']}: its change of norm {norm:.3g} was scaled down to {limit:.3g}")
    return lines


def round_line(record: dict[str, Any], num_rounds: int, metric: str) -> str:
    """Return one finished round as a line of text."""
    rates = [device["dropout_rate"] for device in record["devices"] if device["scheduled"]]
    asked = len(record["devices"])
    parts = [f"round {record['round']}/{num_rounds}"]
    if record["train_loss"] is not None:
        parts.append(f"train loss {record['train_loss']:.3f}")
    if "eval" in record:
        parts.append(f"test loss {record['eval']['loss']:.3f}")
        parts.append(f"{metric} {record['eval'][metric]:.3f}")
    elif record.get("personalised") and metric in record.get("client_eval", {}):
        parts.append(f"{metric} {record['client_eval'][metric]:.3f} (devices' own models, held-out)")
    if rates:
        parts.append(f"dropout {min(rates):.2f}-{max(rates):.2f}")
    uplink = sum(device["uplink_bytes"] for device in record["devices"])
    odd = ", round skipped" if not rates else "" if uplink else ", no answer used"
    parts.append(f"devices {len(rates)}/{asked}{odd}")
    parts.append(f"up {uplink / 1e3:.0f} kB")
    parts.append(f"simulated {record['sim_time_s']:.1f} s, {record['energy_j']:.2f} J")
    return " · ".join(parts)
