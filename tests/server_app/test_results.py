import json
import subprocess
import sys
from pathlib import Path

import pytest

from server_app.results import ResultsFolder, read_rounds, summarize, write_atomic


def _record(number: int, validation: float, test: float, **more: object) -> dict:  # type: ignore[type-arg]
    scores = {"loss": 1.0, "accuracy": test, "num_examples": 10}
    device = {"uplink_bytes": 100, "downlink_bytes": 200, "uplink_adapter_bytes": 80, "scheduled": True}
    return {
        "round": number,
        "wall_s": 1.0,
        "devices": [device, {**device, "scheduled": False}],
        "sim_time_s": 4.0 * number,
        "energy_j": 2.0,
        "failures": [],
        "eval": scores,
        "validation": {**scores, "accuracy": validation},
        "gap": {"loss": 0.1},
        **more,
    }


def test_the_best_round_is_chosen_on_the_validation_set_alone() -> None:
    # Trap 6: the maximum over rounds on the test set is test-set selection.
    summary = summarize([_record(1, 0.5, 0.9), _record(2, 0.8, 0.6), _record(3, 0.8, 0.7)], "accuracy")
    assert summary["best"]["round"] == 2 and summary["best"]["eval"]["accuracy"] == 0.6
    assert summary["final"]["round"] == 3
    assert (
        summary["uplink_bytes"] == 600 and summary["downlink_bytes"] == 1200 and summary["uplink_adapter_bytes"] == 480
    )
    assert summary["sim_time_s"] == 12.0 and summary["energy_j"] == 6.0 and summary["devices_scheduled"] == 3


@pytest.mark.parametrize(
    ("losses", "best"), [((3.0, 2.0, 2.5), 2), ((1.0, 2.0, 3.0), 1), ((2.0, 2.0, 2.0), 1), ((2.0, 1.0, 1.0), 2)]
)
def test_of_rounds_that_score_alike_the_one_with_the_lower_validation_loss_is_best(
    losses: tuple[float, ...], best: int
) -> None:
    records = [_record(number, 0.0, 0.0) for number in (1, 2, 3)]
    for record, loss in zip(records, losses, strict=True):
        record["validation"]["loss"] = loss  # the test loss is the same in all
    assert summarize(records, "accuracy")["best"]["round"] == best


def test_rounds_without_scores_are_summed_and_not_ranked() -> None:
    record = _record(1, 0.5, 0.5)
    del record["eval"]
    assert summarize([record], "accuracy")["best"] is None and summarize([record], "accuracy")["uplink_bytes"] == 200
    assert summarize([], "accuracy")["rounds_done"] == 0


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    results = ResultsFolder(tmp_path)
    results.append_round({"round": 1})
    with (tmp_path / "rounds.jsonl").open("a") as handle:
        handle.write('{"round": 2')
    assert read_rounds(tmp_path) == [{"round": 1}]
    results.start("a: 1\n", {"seed": 0}, rounds_done=1)
    assert (tmp_path / "rounds.jsonl").read_text() == '{"round": 1}\n'


def test_starting_again_drops_rounds_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    results = ResultsFolder(tmp_path)
    for number in (1, 2, 3):
        results.append_round({"round": number})
    results.fail("broken", 1)
    results.start("a: 1\n", {"seed": 0}, rounds_done=2)
    assert [record["round"] for record in read_rounds(tmp_path)] == [1, 2] and not (tmp_path / "failure.json").exists()


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server_app.results.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_not_a_number_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        ResultsFolder(tmp_path).append_round({"round": 1, "train_loss": float("nan")})
    assert read_rounds(tmp_path) == []
    assert json.dumps({"a": None}) == '{"a": null}'


def test_two_processes_do_not_write_the_same_run(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from server_app.results import ResultsFolder\n"
        f"ResultsFolder(Path({str(tmp_path)!r})).start('a: 1', {{}}, rounds_done=0)\n"
    )
    ResultsFolder(tmp_path).start("a: 1", {}, rounds_done=0)
    ours = ResultsFolder(tmp_path)
    ours.start("a: 1", {}, rounds_done=0)  # the same process may go on with its own run
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert theirs.returncode == 1 and "another process is writing" in theirs.stderr
    ours.append_round(_record(1, 0.5, 0.5))
    assert len(read_rounds(tmp_path)) == 1
