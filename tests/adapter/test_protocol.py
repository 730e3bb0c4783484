from dataclasses import replace

import pytest

from adapter import ProtocolError, RoundInstruction, RoundReport

INSTRUCTION = RoundInstruction(3, 0.5, 2**63 - 1, 1e5, 0.2, 4.0, 1.7e9, "AB", b"12345678")
REPORT = RoundReport(3, 7, 160, 0.5, 1.25)


def test_records_round_trip() -> None:
    assert RoundInstruction.from_record(INSTRUCTION.to_record()) == INSTRUCTION
    assert RoundReport.from_record(REPORT.to_record()) == REPORT


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server-round", 0),
        ("server-round", 1.0),
        ("dropout-rate", 1.0),
        ("mask-seed", 2**63),
        ("bandwidth-hz", float("nan")),
        ("factors", "BA"),
        ("code", "text"),
        ("deadline-s", -1.0),
        ("cpu-hz", -1.0),
    ],
)
def test_a_bad_instruction_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=key):
        RoundInstruction.from_record({**INSTRUCTION.to_record(), key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num-examples", 0),
        ("num-examples", -5),
        ("num-examples", True),
        ("train-loss", float("inf")),
        ("train-s", "1"),
        ("server-round", 2**63),
    ],
)
def test_a_bad_report_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=key):
        RoundReport.from_record({**REPORT.to_record(), key: value})


def test_missing_and_unknown_keys_are_refused() -> None:
    record = REPORT.to_record()
    with pytest.raises(ProtocolError, match="unknown key 'extra'"):
        RoundReport.from_record({**record, "extra": 1})
    del record["train-loss"]
    with pytest.raises(ProtocolError, match="train-loss"):
        RoundReport.from_record(record)


def test_a_loss_that_is_kept_back_is_said_to_be() -> None:
    kept_back = replace(REPORT, train_loss=None)
    assert RoundReport.from_record(kept_back.to_record()) == kept_back
    with pytest.raises(ProtocolError, match="train-loss"):
        RoundReport.from_record({**REPORT.to_record(), "train-loss": -2.0})
