import numpy as np
import pytest

from strategy.round.participants import LONGEST_REASON, FederationError, draw_participants, last_line, wait_for_nodes


class _Nodes:
    def __init__(self, *counts: int) -> None:
        self.counts = list(counts)

    def get_node_ids(self) -> list[int]:
        count = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        return list(range(count))


def test_all_nodes_are_waited_for() -> None:
    # Trap 5: the server starts before the nodes do; 2 of 10 were there in round 1.
    said: list[str] = []
    assert len(wait_for_nodes(_Nodes(0, 2, 2, 10), 10, 5.0, said.append)) == 10  # type: ignore[arg-type]
    assert said == ["waiting for devices: 0 of 10", "waiting for devices: 2 of 10"]


def test_too_few_nodes_say_how_to_start() -> None:
    said = r"expected 10 devices .* found 2 after 0.3 s; start .*min_devices.*num-supernodes=10"
    with pytest.raises(FederationError, match=said):
        wait_for_nodes(_Nodes(2), 10, 0.3, lambda _: None)  # type: ignore[arg-type]


def test_nodes_too_many_are_asked_who_they_are() -> None:
    # Any registered node can be there; those that have no place are turned away one by one, and the run goes on.
    assert len(wait_for_nodes(_Nodes(11), 10, 0.3, lambda _: None)) == 11  # type: ignore[arg-type]


def test_participants_depend_on_seed_and_round_alone() -> None:
    draw = lambda seed, r: draw_participants(10, 0.3, None, seed, r)  # noqa: E731
    np.testing.assert_array_equal(draw(1, 5), draw(1, 5))
    assert draw(1, 5).size == 3 and (np.diff(draw(1, 5)) > 0).all()
    assert len({tuple(draw(1, r)) for r in range(1, 30)}) > 10
    assert set(np.concatenate([draw(1, r) for r in range(1, 60)])) == set(range(10))


def test_a_number_of_devices_wins_over_a_fraction_and_is_capped() -> None:
    assert draw_participants(10, 1.0, 4, 0, 1).size == 4
    assert draw_participants(3, 1.0, 7, 0, 1).size == 3
    assert draw_participants(3, 0.01, None, 0, 1).size == 1


def test_last_line_of_a_remote_traceback() -> None:
    assert last_line("Traceback\\n  File x\\nValueError: no data\\n") == "ValueError: no data"
    assert last_line(None) == "no reason given"
    # What a SuperNode sends, where a simulation sends a traceback.
    remote = "<class 'tasks.data.examples.TaskError'>:<'task file: expected a file at 'a.tsv', found none'>"
    assert last_line(remote) == "TaskError: task file: expected a file at 'a.tsv', found none"
    # A device chooses the length of its reason, and every round's record keeps it.
    assert len(last_line("x" * 10**6)) == LONGEST_REASON and last_line("x" * 10**6).endswith("xx…")
