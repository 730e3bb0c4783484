"""Studies from the file to the page: every shipped file, the runs, resuming, failures, tuning, calibration."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from conf.compose import ConfigError, compose_config, join_overrides
from fedlodrop.cli import cli
from fedlodrop.console.dry_run import plan_federation
from fedlodrop.study.figures import draw_curves
from fedlodrop.study.page import write_page
from fedlodrop.study.plan import Job, Study, last_of_each, read_study
from fedlodrop.study.run_study import choose, run_study, write_results
from fedlodrop.study.tables import ROUND_COLUMNS, read_rounds_table, write_tables
from optimizer.allocator import make_allocator
from tests.support.study import TINY, write

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_can_be_planned(path: Path) -> None:
    """As it is; the test of the quick form runs it."""
    study = read_study(path)
    if not isinstance(study, Study):
        return
    jobs = [*study.tuning_jobs(), *study.final_jobs({(s, m): () for s in study.settings for m in study.methods})]
    assert len({job.folder for job in jobs}) == len(jobs) and len(study.seeds) >= 3
    assert path.read_text().startswith("# ") and "#   fedlodrop compare studies/" in path.read_text()
    # A row is known by its overrides: of a preset, whose values change, it would not say what was run.
    assert not any(item.startswith("experiment=") for job in jobs for item in job.overrides)


def test_the_study_of_the_language_model_preset_runs_the_preset() -> None:
    """Spelt out; whoever changes the preset is told here to measure it again."""
    study = read_study(ROOT / "studies/llm.yaml")
    assert isinstance(study, Study)
    job = next(job for job in study.final_jobs({}) if job.method == "optimized" and job.seed == 3)
    expected = compose_config("experiment=llm tracking=none run.seed=3 run.name=default")
    assert compose_config(join_overrides(list(job.overrides))) == expected


@pytest.mark.skipif(not (ROOT.parent / "shared/data/mnist.npz").exists(), reason="needs ../shared/data/mnist.npz")
def test_branch_and_bound_and_psca_plan_as_exact_does_where_optimizing_is_studied() -> None:
    """Why studies/edge.yaml trains with one of the three."""
    study = read_study(ROOT / "studies/edge.yaml", data_dir=ROOT.parent / "shared/data")
    jobs = study.final_jobs({(setting, method): () for setting in study.settings for method in study.methods})
    job = next(job for job in jobs if job.method == "exact")
    strategy = plan_federation(compose_config(join_overrides(list(job.overrides)))).strategy
    for server_round in (1, 7, 20):
        problem, rng = strategy.problem_of(server_round, strategy.directory.present), np.random.default_rng(0)
        exact, *others = (make_allocator(name).allocate(problem, rng=rng) for name in ("exact", "bnb", "psca"))
        for other in others:
            np.testing.assert_array_equal(other.scheduled, exact.scheduled)
            np.testing.assert_allclose(other.dropout_rate, exact.dropout_rate, atol=1e-3)
            assert other.objective == pytest.approx(exact.objective, rel=1e-6)


def test_the_quick_form_of_all_studies(tmp_path: Path) -> None:
    """In less than three minutes, says a benchmark; here the rounds are counted."""
    shared = (ROOT.parent / "shared/data/mnist.npz").exists()
    files = [path for path in STUDIES if shared or "mnist.npz" not in path.read_text()]
    page = tmp_path / "page.md"
    data = ["--data", str(ROOT.parent / "shared/data")]
    words = ["compare", *map(str, files), "--quick", "--jobs", "0", *data, "--out", str(tmp_path), "--page", str(page)]
    found = CliRunner().invoke(cli, words)
    assert found.exit_code == 0, found.output
    for path in files:
        assert f"## {yaml.safe_load(path.read_text())['title']}" in page.read_text()
    assert "## Claims" in page.read_text() and "Not run yet" not in page.read_text()
    tables = [pd.read_csv(path) for path in tmp_path.glob("*-quick/runs.csv")]
    assert len(tables) >= 11 and all(table["rounds"].sum() <= 30 for table in tables)


@pytest.mark.benchmark
def test_the_quick_form_of_all_studies_takes_less_than_three_minutes(tmp_path: Path) -> None:
    began = time.process_time()  # one core; the clock on the wall depends on who else works
    test_the_quick_form_of_all_studies(tmp_path)
    assert time.process_time() - began < 180


def test_from_the_file_to_the_page(tmp_path: Path) -> None:
    """Two phases, a resumed study that runs nothing again, tables that agree with the runs, a page that holds their numbers."""
    target = {
        "text": "half the bytes",
        "view": "fixed",
        "column": "uplink_adapter_bytes",
        "method": "half",
        "kind": "ratio",
        "at_most": 0.51,
    }
    tuning = {"grid": {"training.lr": [1e-3, 1e-2]}, "seeds": [9]}
    study = read_study(write(tmp_path, tuning=tuning, targets=[target], target_metric=0.0, figures=["rounds", "time"]))
    said: list[str] = []
    assert run_study(study, tmp_path / "out", 0, said.append) == (6, 0)
    assert run_study(study, tmp_path / "out", 0, said.append) == (6, 0)
    assert said[-2:] == ["4 of 4 runs are there already", "2 of 2 runs are there already"]
    rounds, runs = read_rounds_table(tmp_path / "out/rounds.csv"), pd.read_csv(tmp_path / "out/runs.csv")
    assert list(rounds.columns) == ROUND_COLUMNS and len(rounds) == 2 * 3
    last = rounds[(rounds["method"] == "half") & (rounds["round"] == 2)].iloc[0]
    (folder,) = (tmp_path / "out/runs/small/half").glob("final-*")
    summary = json.loads((folder / "summary.json").read_text())
    assert last["test_loss"] == pytest.approx(summary["final"]["eval"]["loss"], rel=1e-5)
    assert last["uplink_bytes"] == summary["uplink_bytes"] and last["dropout_rate"] == 0.5
    trials = runs[(runs["phase"] == "tuning") & (runs["method"] == "half")].sort_values(
        ["best_validation_metric", "best_validation_loss"], ascending=[False, True]
    )
    assert (runs[(runs["phase"] == "final") & (runs["method"] == "half")]["choice"] == trials["choice"].iloc[0]).all()
    write_page(tmp_path / "page.md", [(study, tmp_path / "out", "fedlodrop compare tiny.yaml")])
    page = (tmp_path / "page.md").read_text()
    assert f"{last['test_loss']:.3f} (one seed)" in page
    assert re.search(
        r"half the bytes \| small \| 0\.5\d+ \(one seed\) \| at most 0.51 \| met, one seed: no evidence", page
    )
    assert "(out/rounds.png)" in page and (tmp_path / "out/time.png").stat().st_size > 1000
    assert str(tmp_path) not in page


def test_counts_keep_their_digits_beside_runs_that_have_none_yet(tmp_path: Path) -> None:
    """A table that an interrupted study wrote is what the finished one goes on from."""
    runs = pd.DataFrame({"status": ["finished", None], "uplink_bytes": [13606057, None], "cpu_s": [1.5, None]})
    write_tables(tmp_path, pd.DataFrame(), runs)
    assert (tmp_path / "runs.csv").read_text() == "status,uplink_bytes,cpu_s\nfinished,13606057,1.5\n,,\n"


def test_what_the_tables_hold_is_not_run_again(tmp_path: Path) -> None:
    """Without the folders of the runs, from another place; a changed setting is another run."""
    tuning = {"grid": {"training.lr": [1e-3, 1e-2]}, "seeds": [9]}
    out, said = tmp_path / "out", list[str]()
    data = tmp_path / "here/data.tsv"
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.tsv").write_text(
            "sentence\tlabel\n" + "".join(f"{'good' if i % 2 else 'bad'} {i}\t{i % 2}\n" for i in range(80))
        )
    base = [
        *(item for item in TINY["base"] if not item.startswith("task=")),
        "task=tsv",
        "task.train_file={data}/data.tsv",
    ]
    study = read_study(write(tmp_path, base=base, tuning=tuning), data_dir=data.parent)
    assert run_study(study, out, 0, said.append) == (6, 0)
    tables = [(out / name).read_text() for name in ("runs.csv", "rounds.csv")]
    shutil.rmtree(out / "runs")
    study = read_study(write(tmp_path, base=base, tuning=tuning), data_dir=tmp_path / "there")
    assert run_study(study, out, 0, said.append) == (6, 0)
    assert said[-2:] == ["4 of 4 runs are in the tables already", "2 of 2 runs are in the tables already"]
    assert [(out / name).read_text() for name in ("runs.csv", "rounds.csv")] == tables
    study = read_study(write(tmp_path, base=base, tuning=tuning, seeds=[0, 1]), data_dir=data.parent)
    assert run_study(study, out, 0, said.append) == (8, 0)
    assert "2 of 4 runs are in the tables already" in said and sum(line.startswith("run ") for line in said) == 8
    assert len(read_rounds_table(out / "rounds.csv")) == 4 * 3
    changed = [*base, "lora.r=1"]
    study = read_study(write(tmp_path, base=changed, tuning=tuning, seeds=[0, 1]), data_dir=data.parent)
    assert write_results(study, out) == (0, 4)


def test_written_answers_are_scored_beside_their_costs(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, seeds=[0, 1, 2]))
    run_study(study, tmp_path / "out", 0, lambda line: None)
    for k, path in enumerate(sorted((tmp_path / "out/runs").glob("small/*/final-*/summary.json"))):
        summary = json.loads(path.read_text())
        summary |= {
            "answers": {"scores": {"exact_call": 0.1 * k, "valid_json": 1.0}},
            "energy_j": 7.0,
            "sim_time_s": 9.0,
        }
        path.write_text(json.dumps(summary))
    write_results(study, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out/runs.csv")["written_exact_call"].round(3).tolist() == [
        0,
        0.3,
        0.1,
        0.4,
        0.2,
        0.5,
    ]
    write_page(tmp_path / "page.md", [(study, tmp_path / "out", "c")])
    _, table = (tmp_path / "page.md").read_text().split("answers as they were written, after the last round\n")
    assert "| setting | method | exact call | valid json | exact call − fedit | simulated time, s |" in table
    assert re.search(
        r"small \| fedit \| 0\.100 \[-0\.148, 0\.348\] \| 1\.000 \[1\.000, 1\.000\] \| – \| 9 \[9, 9\]", table
    )
    assert re.search(r"small \| half \| 0\.400 .* \| 0\.300 \[0\.300, 0\.300\] \| 9 \[9, 9\] \| 7 \[7, 7\]", table)


def test_a_failing_run_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    methods = {"fedit": ["strategy=fedit"], "nobody": ["budget.energy_j=0"]}
    study = read_study(write(tmp_path, methods=methods))
    said: list[str] = []
    assert run_study(study, tmp_path / "out", 0, said.append) == (1, 1)
    runs = pd.read_csv(tmp_path / "out/runs.csv").set_index("method")
    assert runs["status"].to_dict() == {"fedit": "finished", "nobody": "failed"}
    assert "no device could be served" in runs["message"]["nobody"]
    (folder,) = (tmp_path / "out/runs/small/nobody").iterdir()
    record = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(record | {"message": f"go on with fedlodrop resume {folder} a=b"}))
    write_results(study, tmp_path / "out")
    assert "go on with fedlodrop resume RUN a=b" in (tmp_path / "out/runs.csv").read_text()
    write_page(tmp_path / "page.md", [(study, tmp_path / "out", "c")])
    assert "1 of 2 planned runs are finished, 1 failed" in (tmp_path / "page.md").read_text()


def test_a_calibrating_study_leaves_constants_to_use(tmp_path: Path) -> None:
    methods = {f"g{rate}": ["allocator=fixed", f"allocator.dropout_rate={rate}"] for rate in (0.0, 0.3, 0.6)}
    reference_lines = {"ceiling": ["strategy=centralized"], "alone": ["strategy=local"]}  # another number of examples
    study = read_study(write(tmp_path, methods=methods | reference_lines, seeds=[0], calibrate=True))
    run_study(study, tmp_path / "out", 0, lambda line: None)
    (record,) = json.loads((tmp_path / "out/calibration.json").read_text())
    assert len(pd.read_csv(tmp_path / "out/calibration.csv")) == 3
    assert record["rates"] == [0.0, 0.3, 0.6] and record["seeds"] == 1 and record["num_examples"] == 24
    from optimizer.problem import BoundConstants

    assert BoundConstants(**yaml.safe_load((tmp_path / "out/bound-small.yaml").read_text())).confidence == 0.1
    write_page(tmp_path / "page.md", [(study, tmp_path / "out", "c")])
    assert "### Calibrated bound" in (tmp_path / "page.md").read_text()


def finish_trials(study: Study, monkeypatch: pytest.MonkeyPatch, told: Callable[[Job], dict[str, Any]]) -> None:
    """Let all trials of a study have finished; ``told`` is what their tables say of the score."""
    none = {"best_validation_metric": None, "best_validation_loss": 1.0, "personalised_metric": None}
    rows = [
        {"setting": job.setting, "method": job.method, "choice": job.choice, "status": "finished"} | none | told(job)
        for job in study.tuning_jobs()
    ]
    monkeypatch.setattr("fedlodrop.study.run_study.collect", lambda jobs, folder: (None, pd.DataFrame(rows)))


def test_a_personalised_method_is_tuned_by_the_devices_own_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"fedit": ["strategy=fedit"], "alone": ["strategy=local"]}
    study = read_study(write(tmp_path, methods=methods, tuning={"grid": {"training.lr": [1e-3, 1e-2]}, "seeds": [9]}))
    scores = {"fedit": (0.9, 0.1), "alone": (0.2, 0.3)}

    def told(job: Job) -> dict[str, Any]:
        score = scores[job.method][job.choice == "training.lr=0.01"]
        alone = {"personalised_metric": score, "best_validation_loss": None}
        return alone if job.method == "alone" else {"best_validation_metric": score}

    finish_trials(study, monkeypatch, told)
    chosen = {method: choice for (_, method), choice in choose(study, tmp_path).items()}
    assert chosen == {"fedit": ("training.lr=0.001",), "alone": ("training.lr=0.01",)}


@pytest.mark.parametrize(
    ("told", "chosen"),
    [
        ({"frozen": ["n3-frozen"], "trained": ["n3-trained"]}, {"n9-frozen": "0.01", "n9-trained": "0.001"}),
        (["n3-frozen", "n3-trained"], {"n9-frozen": "0.001", "n9-trained": "0.001"}),
    ],
)
def test_settings_of_a_part_share_a_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any, chosen: dict[str, str]
) -> None:
    heads = {"frozen": ["model.freeze_head=true"], "trained": ["model.freeze_head=false"]}
    sizes = {name: [f"network.num_devices={name[1:]}"] for name in ("n3", "n9")}
    tuning = {"grid": {"training.lr": [1e-3, 1e-2]}, "seeds": [9], "settings": told}
    study = read_study(write(tmp_path, settings=[sizes, heads], tuning=tuning))
    scores = {("n3-frozen", "0.01"): 0.6, ("n3-frozen", "0.001"): 0.5, ("n3-trained", "0.001"): 0.9}
    metric = "best_validation_metric"
    finish_trials(
        study, monkeypatch, lambda job: {metric: scores.get((job.setting, job.choice.partition("=")[2]), 0.1)}
    )
    found = choose(study, tmp_path)
    assert len(study.tuning_jobs()) == 8 and len(found) == 8
    assert {name: found[name, "half"] for name in chosen} == {k: (f"training.lr={v}",) for k, v in chosen.items()}


def test_costs_are_drawn_without_reference_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {"fedit": ["strategy=fedit"], "ceiling": ["strategy=centralized"]}
    study = read_study(write(tmp_path, methods=methods, figures=["rounds", "time"]))
    rounds = pd.DataFrame([{"setting": "small", "method": name, "dropout_rate": 0.0} for name in methods])
    drawn: dict[str, set[str]] = {}
    runs = "fedlodrop.study.run_study"
    monkeypatch.setattr(f"{runs}.collect", lambda jobs, folder: (rounds, pd.DataFrame()))
    monkeypatch.setattr(f"{runs}.write_tables", lambda *_: None)
    monkeypatch.setattr(f"{runs}.draw_curves", lambda shown, name, *_: drawn.update({name: set(shown["method"])}))
    write_results(study, tmp_path / "out")
    assert drawn == {"rounds": {"fedit", "ceiling"}, "time": {"fedit"}}


def test_many_settings_are_drawn_below_each_other(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(6)]
    rows = [
        {"setting": name, "method": "fedit", "round": at, "test_metric": number / 10, "gap_loss": 0.1 * at}
        for number, name in enumerate(names)
        for at in (0, 1)
    ]
    kept: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlodrop.study.figures.save", lambda figure, path: kept.append(figure))
        draw_curves(pd.DataFrame(rows), "rounds", tmp_path / "rounds.png", "a study")
    panels = [axis for axis in kept[0].axes if axis.get_visible()]
    scores = {axis.get_title(): axis.lines[0].get_ydata()[0] for axis in panels if axis.get_ylabel() == "test score"}
    assert scores == {name: number / 10 for number, name in enumerate(names)}
    assert len(panels) == 12 and kept[0].get_figwidth() < kept[0].get_figheight() * 2


def test_tables_that_came_without_runs_are_drawn_and_stay_as_they_are(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "studies/tables/options", tmp_path / "options")
    (tmp_path / "options/rounds.png").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "options").glob("*.csv")}
    words = ["compare", str(ROOT / "studies/options.yaml"), "--out", str(tmp_path), "--no-run"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert (tmp_path / "options/rounds.png").stat().st_size > 10_000
    assert {path.name: path.read_bytes() for path in (tmp_path / "options").glob("*.csv")} == before


def test_partial_results_are_readable(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, tuning={"grid": {"training.lr": [1e-3]}, "seeds": [9]}))
    assert choose(study, tmp_path / "out/runs") == {}
    assert write_results(study, tmp_path / "out") == (0, 2)
    write_page(tmp_path / "page.md", [(study, tmp_path / "out", "c"), (study, tmp_path / "nowhere", "c")])
    assert "0 of 2 planned runs are finished" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metod": {}}, "expected some of .*, found 'metod'"),
        ({"seeds": []}, "expected the key 'seeds', found none"),
        ({"reference": "none"}, "reference must be one of fedit, half, found 'none'"),
        ({"methods": {"bad": ["strategy=fedot"]}}, "setting small, method bad: strategy has no choice 'fedot'"),
        ({"base": ["training.lrr=1"]}, "did you mean 'training.lr'"),
        ({"tuning": {"grid": {"training.lr": [1]}, "seeds": [0]}}, "must not be seeds of the study"),
        ({"tuning": {"grid": {"training.lr": [1]}, "seeds": [9], "settings": ["big"]}}, "found 'big'"),
        ({"tuning": {"grid": {"training.lr": [1]}, "seeds": [9], "settings": {"a": ["small"]}}}, "expected a settings"),
        ({"tuning": {"grid": {"training.lr": [1]}, "seeds": [9], "settings": {"a": []}}}, "found none for 'small'"),
    ],
)
def test_unusable_files_are_refused_before_anything_runs(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_study(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_later_overrides_win_and_groups_come_first() -> None:
    assert last_of_each(("task.holdout=5", "task=sst2", "task.holdout=7")) == ("task=sst2", "task.holdout=7")


def test_the_data_folder_is_filled_in(tmp_path: Path) -> None:
    path = write(tmp_path, base=["task.train_file={data}/a b.tsv"])
    assert read_study(path, data_dir=tmp_path).base == (f"task.train_file='{tmp_path}/a b.tsv'",)


def test_a_personalised_method_is_reported_apart(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, methods={"fedit": ["strategy=fedit"], "own": ["strategy=fedsa_lora"]}))
    assert run_study(study, tmp_path, 0, lambda line: None) == (2, 0)
    runs = pd.read_csv(tmp_path / "runs.csv").set_index("method")
    assert 0 <= runs.loc["own", "personalised_metric"] <= 1 and runs.loc["own", "uplink_bytes"] > 0
    assert set(read_rounds_table(tmp_path / "rounds.csv")["method"]) == {"fedit"}
    write_page(tmp_path / "page.md", [(study, tmp_path, "command")])
    before, apart = (tmp_path / "page.md").read_text().split("personalised, not to be ranked")
    assert "| own |" not in before and "| small | own |" in apart
