"""The whole-run benchmark of the language model: what it takes where nothing is asked for."""

import pytest

from benchmarks.decoder_runs import number_type
from tasks.models import placement


@pytest.mark.parametrize(("multiplies", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_both_sides_keep_the_numbers_that_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, expected: str
) -> None:
    monkeypatch.setattr(placement, "multiplies_bfloat16", lambda: multiplies)
    assert number_type("auto") == expected
    assert number_type("float32") == "float32"
