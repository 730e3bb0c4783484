from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.models.tokenizer import HashTokenizer, load_tokenizer
from tasks.settings import ModelError, ModelSettings


def test_same_word_same_id_without_regard_to_case():
    encoded = HashTokenizer().encode(["Play jazz", "jazz, PLAY"])
    first, second = encoded.input_ids
    assert first[1:3] == [second[3], second[1]]


def test_pairs_are_marked():
    encoded = HashTokenizer().encode(["a b"], ["c"])
    assert encoded.token_types == [[0, 0, 0, 0, 1, 1]]


@given(st.text(max_size=80), st.none() | st.text(max_size=80), st.integers(4, 20))
def test_ids_are_in_range_and_cut(text, pair, limit):
    tokenizer = HashTokenizer(max_tokens=limit)
    encoded = tokenizer.encode([text], None if pair is None else [pair])
    assert len(encoded.input_ids[0]) == len(encoded.token_types[0]) <= limit
    assert all(0 <= token < tokenizer.vocabulary for token in encoded.input_ids[0])


def test_missing_hub_tokenizer_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer could be loaded") as caught:
        load_tokenizer(ModelSettings(name="hub", path=str(tmp_path)))
    assert "\n" not in str(caught.value)
