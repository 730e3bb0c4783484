from __future__ import annotations

from importlib.metadata import version

import pytest
from flwr.app import Message, RecordDict

from strategy.flower_internals import FlowerVersionError, check_version, identify_process, set_metadata


@pytest.mark.parametrize("found", ["1.41.0", "1.42.0", "1.42.1", version("flwr")])
def test_the_versions_that_were_checked_pass(found: str) -> None:
    check_version(found)


@pytest.mark.parametrize("found", ["1.40.0", "1.43.0", "1.4", "2.41.0"])
def test_another_version_is_named_with_those_expected(found: str) -> None:
    with pytest.raises(FlowerVersionError, match=rf"expected flwr 1.41 or 1.42, .* found {found}; .*pip install"):
        check_version(found)


def test_metadata_that_flower_does_not_know_are_refused() -> None:
    identify_process(1)
    message = Message(RecordDict(), 5, "train")
    set_metadata(message, message_id="x", src_node_id=7)
    assert (message.metadata.message_id, message.metadata.src_node_id) == ("x", 7)
    with pytest.raises(AttributeError, match="no field 'sender'"):
        set_metadata(message, sender=1)
