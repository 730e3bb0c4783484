"""The report: its content without a browser, and once in a real one."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from fedlodrop.report.data import ReportError, cause, command, curve, device_rows, differing_settings, load_runs
from fedlodrop.report.devices import dropout_chart
from fedlodrop.report.html import number, thinned
from fedlodrop.report.page import build_report, write_report
from tests.support import browser
from tests.support import runs as real_runs
from tests.support.cases import first

LIMIT_BYTES = 5_000_000
SECTIONS = ("figures", "learning", "prediction", "solver", "cost", "devices", "waiting", "failures", "reproduce")
BOUND = {
    "empirical_scale": 0.05,
    "loss_bound": 1.0,
    "lipschitz": 1.0,
    "curvature_min": 0.5,
    "sparsity_regularization": 2.0,
    "confidence": 0.1,
}
REASON = "does not fit beside the others: needs 566.4 Hz at dropout 0.7, the scheduled devices leave 66.6 Hz of 2000 Hz"


def scores(value: float) -> dict[str, Any]:
    block = {"loss": 2.0 - value, "accuracy": value, "num_examples": 40}
    gap = {"loss": 0.1, "accuracy": 0.05}
    return {"eval": block, "validation": {**block, "loss": 2.1 - value}, "train_eval": block, "gap": gap}


def device_row(
    k: int, server_round: int, *, sits_out: bool, access: str, reason: str = REASON, name: str = "device"
) -> dict:
    on = not sits_out
    gamma = 0.2 + 0.1 * ((k + server_round) % 5)
    row = {
        "id": f"{name}-{k}",
        "scheduled": on,
        "reason": None if on else reason,
        "dropout_rate": gamma if on else None,
        "tx_power_w": 1e-3 * (k + 1) if on else None,
        "latency_s": 7.0 + 0.01 * k if on else None,
        "energy_j": 0.2 if on else None,
        "deadline_s": 8.0,
        "energy_budget_j": 6.0,
        "uplink_bytes": 5000 if on else 0,
        "downlink_bytes": 5100 if on else 0,
        "uplink_adapter_bytes": 3000 if on else 0,
        "num_examples": 40 + k,
        "train_loss": 1.9 if on else None,
    }
    shared = (
        {"bandwidth_hz": 100.0 * (k + 1) if on else None}
        if access == "fdma"
        else {"subcarriers": [2 * k, 2 * k + 1] if on else []}
    )
    return {**row, **shared}


def make_run(
    folder: Path,
    *,
    num_rounds: int = 4,
    num_devices: int = 5,
    access: str = "fdma",
    waiting: int = 1,
    finished: bool = True,
    eval_every: int = 1,
    name: str = "default",
    failures: tuple = (),
    **device: str,
) -> Path:
    """Write a run folder; in every round ``waiting`` devices sit out."""
    folder.mkdir(parents=True)
    records = []
    for r in range(1, num_rounds + 1):
        rows = [
            device_row(k, r, sits_out=(k + r) % num_devices < waiting, access=access, **device)
            for k in range(num_devices)
        ]
        on = [row for row in rows if row["scheduled"]]
        plan = {
            "solver": "exact",
            "status": "optimal",
            "objective": 0.3,
            "lower_bound": 0.3,
            "gap": 1e-16 if r % 2 else None,
            "solve_time_s": 0.01,
            "notes": [],
        }
        record = {
            "round": r,
            "train_loss": 1.9 if on else None,
            "plan": plan,
            "devices": rows,
            "sim_latency_s": 7.0,
            "energy_j": 0.2 * len(on),
            "failures": list(failures),
            "sim_time_s": 7.0 * r,
            "wall_s": 0.5,
        }
        records.append(record | (scores(0.1 * r / num_rounds) if r % eval_every == 0 else {}))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = (
        f"run: {{name: {json.dumps(name)}, num_rounds: {num_rounds}, dir: somewhere, seed: 0}}\n"
        f"network: {{access: {access}, total_bandwidth_hz: 2000.0, num_subcarriers: {2 * num_devices}}}\n"
        f"budget: {{deadline_s: 8.0, max_dropout_rate: 0.7}}\nallocator: {{name: exact, gap: 0.0001}}\n"
        f"bound: {json.dumps(BOUND)}\n"
    )
    (folder / "config.yaml").write_text(config)
    began = {"commit": "c0ffee", "versions": {"torch": "2"}, "seed": 0}
    began["overrides"] = f"model=tiny run.num_rounds={num_rounds} run.dir='{folder}'"
    (folder / "environment.json").write_text(json.dumps(began))
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "position.json").write_text(json.dumps({"initial": scores(0.05)}))
    if finished:
        summary = {
            **load_runs([folder])[0].summary,
            "task": "intents",
            "strategy": "fedlodrop",
            "allocator": "exact",
            "wall_s": 3.0,
            "peak_rss_mib": 400.0,
            "cpu_s": 2.0,
            "initial": scores(0.05),
            "adapter_parameters": 2000,
            "device_classes": ["watch", "phone"] * num_devices,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def figures(html: str) -> dict[str, dict[str, Any]]:
    """Return the charts that are packed in a page."""
    text = re.search(r'id="figures-gz">([^<]*)<', html)
    assert text is not None
    return {figure["key"]: figure for figure in json.loads(gzip.decompress(base64.b64decode(text[1])))}


def visible(html: str) -> str:
    """Return the page without its packed parts, scripts and style."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


class Outline(HTMLParser):
    """Collects identifiers, references and the balance of tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.attributes.append((tag, named))
        if named.get("id"):
            self.ids.append(str(named["id"]))
        self.references += [
            str(named[key]) for key in ("src", "href", "action", "data", "srcset", "poster") if key in named
        ]
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path: Path) -> str:
    failure = {"device": "device-1", "kind": "timeout", "message": "did not answer in 600 s"}
    return build_report([make_run(tmp_path / "a-run", failures=(failure,))])


def test_all_sections_and_key_figures(page: str) -> None:
    text = unescape(visible(page))
    for key in SECTIONS:
        assert f'<section id="{key}"' in page
        assert f'href="#{key}"' in page
    for words in (
        "test accuracy, last round",
        "0.100",
        "test accuracy, before training",
        "0.050",
        "adapter part of dense fp32",
        "38 %",
        "16 of 20",
        "does not fit beside the others",
        "did not answer in 600 s",
        "git checkout c0ffee",
        "total_bandwidth_hz: 2000.0",
        "device-4",
        "fedlodrop run model=tiny run.num_rounds=4",
    ):
        assert words in text, words
    assert "run.dir=" not in text


def test_the_table_below_the_solver_charts_says_what_was_verified(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert "optimal, verified" not in visible(build_report([folder]))
    for record in records[:3]:
        record["plan"]["verified"] = {"lower_bound": 0.3, "gap": 0.0, "time_s": 0.002}
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    section = re.sub(r"<[^>]*>", " ", build_report([folder]).rsplit("How the plans were found", 1)[1])
    assert re.search(r"optimal, verified\s+3\b", section) and re.search(r"optimal\s+1\b", section)


def test_page_is_well_formed_accessible_and_loads_nothing(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.references and all(ref.startswith("#") and ref[1:] in outline.ids for ref in outline.references)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page
    for tag, attributes in outline.attributes:
        if "plot" in str(attributes.get("class")).split():
            assert attributes["role"] == "img" and len(str(attributes["aria-label"])) > 20
        if tag == "section":
            assert attributes["aria-labelledby"] in outline.ids
        if tag == "pre" or "scroll" in str(attributes.get("class")).split():
            assert attributes["tabindex"] == "0" and attributes["aria-label"]
    levels = [int(tag[1]) for tag, _ in outline.attributes if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_charts_are_valid_and_every_axis_names_its_unit(page: str) -> None:
    drawn = figures(page)
    places = [a["id"] for t, a in Outline(page).attributes if "plot" in str(a.get("class")).split()]
    assert sorted(drawn) == sorted(str(place) for place in places)
    for figure in drawn.values():
        go.Figure(figure["data"], figure["layout"])  # raises on anything that plotly does not know
        for name in ("xaxis", "yaxis"):
            title = figure["layout"][name]["title"]["text"]
            assert title in ("round", "device") or re.search(r"\((s|ms|J|MB|%|nats|1|0 to 1)\)$", title), title
    learning = drawn["learning-0"]
    assert set(learning["axes"]) == {"round", "time", "energy", "upload"}
    assert learning["data"][0]["x"] == [0, 1, 2, 3, 4]
    assert learning["axes"]["time"]["x"][0] == [0, 7, 14, 21, 28]
    assert len(learning["splits"]) == len(learning["data"]) == len(learning["axes"]["upload"]["x"])


def test_map_tells_dropout_from_sitting_out_failing_and_not_asked(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_rounds=3, num_devices=4)
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    del records[0]["devices"][2]
    records[1]["devices"][0] |= {"latency_s": None, "energy_j": None, "uplink_bytes": 0}
    records[1]["failures"] = [{"device": "device-0", "kind": "error", "message": "lost"}]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    chart = dropout_chart(load_runs([folder])[0], "run-0")
    assert chart is not None
    rate, waits, failed = (trace for trace in chart.data if trace["type"] == "heatmap")
    assert rate["z"][2][0] is waits["z"][2][0] is failed["z"][2][0] is None  # not asked
    assert waits["text"][3][0].replace("<br>", " ") == REASON and rate["z"][3][0] is None
    assert failed["text"][0][1] == "error: lost" and rate["z"][0][1] is None
    assert [trace["text"] for trace in chart.data if trace["type"] == "scatter"] == ["×", "!"]
    assert "sat out" in chart.caption


def test_the_colours_of_the_map_span_the_rates_that_occur(tmp_path: Path) -> None:
    runs = load_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", num_devices=1, num_rounds=1, waiting=0)])
    for run, limits in zip(runs, ((0.3, 0.6), (0.25, 0.35)), strict=True):  # one rate alone stands in the middle
        chart = dropout_chart(run, "run-0")
        assert chart is not None
        assert (chart.data[0]["zmin"], chart.data[0]["zmax"]) == pytest.approx(limits)


def test_everything_from_files_is_escaped(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    failure = {"device": evil, "kind": evil, "message": evil}
    folder = make_run(tmp_path / "evil", failures=(failure,), reason=evil)
    with (folder / "config.yaml").open("a") as handle:
        handle.write(f"other: {json.dumps(evil)}\n")
    (folder / "environment.json").write_text(json.dumps({"commit": evil, "versions": {evil: evil}, "started": evil}))
    (folder / "failure.json").write_text(json.dumps({"message": evil}))
    records = (folder / "rounds.jsonl").read_text().replace("device-", json.dumps(evil)[1:-1])
    (folder / "rounds.jsonl").write_text(records.replace('"notes": []', f'"notes": [{json.dumps(evil)}]'))
    html = build_report([folder, make_run(tmp_path / evil.replace("/", "|"))])
    assert "<img" not in html and "alert(1)" in html
    assert Outline(html).open == []
    assert [tag for tag, _ in Outline(html).attributes].count("script") == 3
    for figure in figures(html).values():
        assert "<img" not in json.dumps(figure) and "<script" not in json.dumps(figure)


def test_what_to_know_before_believing_a_score_stands_at_the_top(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    note = "of 200 test examples 31 are longer than model.max_tokens=16 <b>"
    (folder / "summary.json").write_text(json.dumps(summary | {"data_notes": [note]}))
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    records[0]["clipped"] = [{"device": "device-1", "norm": 9.0, "threshold": 1.0}]
    records[1]["capped"] = [{"device": "device-<2>", "num_examples": 10**9, "weight": 80.0}]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    html = build_report([folder])
    header = html[html.index("<header>") : html.index("</header>")]
    assert "31 are longer than model.max_tokens=16 &lt;b&gt;" in header and "5 devices, seed 0" in header
    failures = unescape(html[html.index('id="failures"') : html.index('id="reproduce"')])
    assert "scaled down: 1 (device-1)" in failures and "announced too many examples: 1 (device-<2>)" in failures
    several = build_report([folder, make_run(tmp_path / "other")])
    assert "31 are longer" in several[several.index("<header>") : several.index("</header>")]


def test_several_runs_share_charts_and_name_what_differs(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", access="ofdma", num_rounds=6),
        make_run(tmp_path / "x" / "a"),
    ]
    html = build_report(folders)
    assert [run.name for run in load_runs(folders)] == ["a", "b", "a (2)"]
    assert set(differing_settings(load_runs(folders))) == {"run.num_rounds", "network.access"}
    drawn = figures(html)
    assert re.findall(r'name="Runs" value="(\d)" checked><span class="key" [^>]*>.*?</svg></span>([^<]*)<', html) == [
        ("0", "a"),
        ("1", "b"),
        ("2", "a (2)"),
    ]
    shown = {t["name"] for t in drawn["learning-0"]["data"] if t["visible"]}
    assert shown == {"a · test", "b · test", "a (2) · test"}
    assert {"run-0-dropout", "run-1-dropout", "run-2-dropout"} <= set(drawn)
    assert drawn["run-1-band"]["layout"]["yaxis"]["title"]["text"] == "share of subcarriers (%)"
    assert Outline(html).open == []
    assert len(html.encode()) < LIMIT_BYTES


def test_twelve_runs_have_one_legend_and_look_different(tmp_path: Path) -> None:
    html = build_report([make_run(tmp_path / f"job-{k}", num_rounds=60) for k in range(12)])
    compared = [figure for key, figure in figures(html).items() if not key.startswith("run-")]
    assert len(compared) >= 8 and html.count('" data-runs>') == 1
    for figure in compared:
        assert figure["layout"]["showlegend"] is False, figure["key"]
        looks = {(t["marker"]["color"], t["marker"]["symbol"]) for t in figure["data"] if "markers" in t["mode"]}
        assert len(looks) in (0, 12), figure["key"]
        assert {owner for owner in figure["owners"] if owner is not None} <= set(range(12))


@pytest.mark.parametrize(
    "shape",
    [
        {"num_rounds": 0, "finished": False},
        {"num_rounds": 1},
        {"finished": False},
        {"eval_every": 9},
        {"eval_every": 9, "finished": False},
        {"waiting": 5},
        {"waiting": 5, "access": "ofdma"},
        {"num_devices": 1, "waiting": 0},
        {"waiting": 0},
        {"num_rounds": 400},
    ],
)
def test_degraded_runs_still_make_a_page(tmp_path: Path, shape: dict[str, Any]) -> None:
    html = build_report([make_run(tmp_path / "run", **shape)])
    assert Outline(html).open == []
    for figure in figures(html).values():
        go.Figure(figure["data"], figure["layout"])
    assert ("unfinished" in visible(html)) == (not shape.get("finished", True))
    assert "NaN" not in json.dumps(figures(html))


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "checkpoint", "summary.json"])
def test_missing_or_damaged_files_cost_only_their_part(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run")
    target = folder / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert Outline(build_report([folder])).open == []
    if name != "checkpoint":
        for damaged in ("{ half", "[]"):
            target.write_text(damaged)
            assert Outline(build_report([folder])).open == []


def test_killed_run_and_folders_without_a_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", finished=False)
    with (folder / "rounds.jsonl").open("a") as handle:
        handle.write('{"round": 5, "devi')
    assert "4 of 4 rounds" in build_report([folder])
    (folder / "rounds.jsonl").write_text('{"round": 5, "devi\n')
    with pytest.raises(ReportError, match="damaged"):
        build_report([folder])
    with pytest.raises(ReportError, match="expected config.yaml"):
        build_report([tmp_path])
    with pytest.raises(ReportError, match="at least one"):
        build_report([])


@pytest.mark.parametrize("waiting", first(1, [900, 0]))
def test_thousand_devices_stay_below_the_limit(tmp_path: Path, waiting: int) -> None:
    target = tmp_path / "report.html"
    write_report([make_run(tmp_path / "run", num_devices=1000, num_rounds=150, waiting=waiting)], target)
    assert target.stat().st_size < LIMIT_BYTES
    assert "rounds are drawn" in target.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_report_of_a_real_run(tmp_path: Path) -> None:
    assert real_runs.run(tmp_path / "run", "run.num_rounds=2") == 0
    html = build_report([tmp_path / "run"])
    assert "finished: 2 of 2 rounds" in visible(html)
    assert "fedlodrop run model=tiny" in visible(html)
    assert len(figures(html)["learning-0"]["data"]) == 4


def test_who_gains_and_what_is_taken_for_what(tmp_path: Path) -> None:
    assert real_runs.run(tmp_path / "run", "run.num_rounds=2", "run.client_evaluation=0.5") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    counts = np.array(summary["confusion"])
    assert counts.sum() == 48 and np.trace(counts) / 48 == pytest.approx(summary["final"]["eval"]["accuracy"])
    records = real_runs.rounds(tmp_path / "run")
    scored = {row["id"]: row["held_out"] for row in records[1]["devices"] if "held_out" in row}
    weights = [found["num-examples"] for found in scored.values()]
    mean = np.average([found["accuracy"] for found in scored.values()], weights=weights)
    assert mean == pytest.approx(records[1]["client_eval"]["accuracy"])
    text = unescape(visible(build_report([tmp_path / "run"])))
    first = {row["id"]: row["held_out"] for row in records[0]["devices"]}
    lost = sum(scored[device]["accuracy"] < first[device]["accuracy"] for device in scored)
    assert f"own held-out examples: {lost} of {len(scored)} lost" in text
    assert "rows are the true classes" in text and f">{counts[0, 0]}</td>" in text


def test_shares_of_both_access_schemes(tmp_path: Path) -> None:
    runs = load_runs([make_run(tmp_path / "f", waiting=2), make_run(tmp_path / "o", access="ofdma", waiting=2)])
    for run, shares in zip(runs, ((0.1, 0.15, 0.2), (0.2, 0.2, 0.2)), strict=True):
        first = device_rows(run).query("round == 1").set_index("id")
        band = dict(zip(("device-1", "device-2", "device-3"), shares, strict=True))
        assert first["band"].dropna().to_dict() == pytest.approx(band)
        assert first["power_share"].sum() == pytest.approx(1.0)
        assert first["time_use"].max() == pytest.approx(7.03 / 8) and first["reason"].iloc[0] == REASON


def test_command_and_small_helpers(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert command(load_runs([folder])[0]) == "fedlodrop run model=tiny run.num_rounds=4"
    (folder / "environment.json").unlink()
    assert command(load_runs([folder])[0]) == ""
    assert curve(load_runs([folder])[0])[-1]["upload_bytes"] == 16 * 5000
    assert cause("needs 1e3 Hz of 2.5 Hz at dropout 0.7") == "needs … Hz of … Hz at dropout …"
    assert [number(v) for v in (None, 0.0, 1234.0, 0.1234, 12.34)] == ["–", "0", "1234", "0.123", "12.3"]
    assert thinned(10, 3) == [0, 4, 8, 9] and thinned(0, 3) == []


# Uses the page the way a reader does, then leaves what it saw in the title.
PROBE = """<script>addEventListener("load", () => { const wait = setInterval(async () => {
  if (document.documentElement.dataset.ready !== "yes") return;
  clearInterval(wait);
  const pause = () => new Promise(done => setTimeout(done, 700));  // longer than what plotly takes for a double click
  const plot = document.getElementById("learning-0"), visible = () => plot.data.map(trace => trace.visible ?? true);
  const runs = document.querySelectorAll("fieldset[data-runs] input");
  const legend = async k => { if (runs.length) runs[k].click(); else for (const kind of ["mousedown", "mouseup"])
    plot.querySelectorAll(".legendtoggle")[k].dispatchEvent(new MouseEvent(kind, {bubbles: true})); await pause(); };
  const click = async selector => { document.querySelector(selector).click(); await pause(); };
  const seen = {plots: document.querySelectorAll(".plot").length};
  const empty = () => [...document.querySelectorAll(".plot")].filter(place =>
    !place.closest("details:not([open])") && !place.querySelector(".main-svg")).length;
  seen.empty = empty();
  seen.compared = document.getElementById("devices").getBoundingClientRect().top + scrollY;
  seen.height = document.body.scrollHeight;
  seen.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  seen.ink = getComputedStyle(plot.querySelector(".xtitle")).fill;
  await click('input[value="energy"]'); seen.axis = plot.layout.xaxis.title.text;
  seen.first = visible();
  await click('input[value="validation"]'); seen.switched = visible();
  await legend(0); seen.hidden = visible();
  await click('input[value="validation"]'); seen.kept = visible();  // the boxes leave alone what the legend hides
  await legend(0); seen.again = visible();
  seen.tabs = [];
  for (const link of document.querySelectorAll("nav a")) {
    link.click(); await pause();
    const top = document.querySelector(link.getAttribute("href")).getBoundingClientRect().top;
    seen.tabs.push(location.hash === link.getAttribute("href") && top >= 0 && top < innerHeight);
  }
  for (const part of document.querySelectorAll("details.run")) part.open = true;
  await pause(); seen.unfolded = empty();
  document.title = JSON.stringify(seen);
}, 50); });</script>"""


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
def test_charts_are_there_when_the_page_has_loaded(tmp_path: Path, page: str) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    assert browser.loaded(tmp_path / "report.html").count('class="main-svg"') >= len(figures(page))


def _look(folder: Path, page: str, scheme: str) -> dict[str, Any]:
    target = folder / "report.html"
    target.write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    title, complaints = browser.title_and_complaints(target, scheme)
    assert complaints == []
    return dict(json.loads(title))


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_in_a_real_browser_without_console_errors(tmp_path: Path, page: str, scheme: str) -> None:
    seen = _look(tmp_path, page, scheme)
    assert seen["plots"] == len(figures(page)) and seen["empty"] == 0
    assert (
        seen["dark"] == (scheme == "dark")
        and seen["ink"] == {"light": "rgb(26, 29, 35)", "dark": "rgb(232, 234, 238)"}[scheme]
    )
    assert seen["axis"] == "simulated energy, all devices (J)"
    assert seen["first"] == [True] * 4 and seen["switched"] == [True, False, True, True]
    assert seen["hidden"] == ["legendonly", False, True, True]
    assert seen["kept"] == ["legendonly", True, True, True] and seen["again"] == [True] * 4
    assert seen["tabs"] == [True] * len(SECTIONS)


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
def test_the_legend_of_several_runs_hides_a_whole_run(tmp_path: Path) -> None:
    seen = _look(tmp_path, build_report([make_run(tmp_path / name) for name in ("a", "b", "c")]), "light")
    assert seen["empty"] == 0 and all(seen["tabs"])
    # Four curves per run, of which the test's and, once switched on, the validation's are shown.
    both = [True, True, False, False]
    assert seen["first"] == [True, False, False, False] * 3 and seen["switched"] == both * 3
    assert seen["hidden"] == [False] * 4 + both * 2 and seen["kept"] == [False] * 4 + [True, False, False, False] * 2
    assert seen["again"] == seen["first"] and seen["unfolded"] == 0


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
def test_twelve_runs_are_compared_on_two_screens(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"training.lr=0.00{k},run.seed={k}", num_rounds=20) for k in range(12)]
    seen = _look(tmp_path, build_report(folders), "light")
    assert seen["empty"] == 0 and seen["unfolded"] == 0
    assert seen["compared"] < 2 * 1080 and seen["height"] < 4 * 1080


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
def test_the_picture_of_the_docs_can_be_drawn_again(tmp_path: Path, page: str) -> None:
    from PIL import Image

    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    brightness = {}
    for scheme in ("light", "dark"):
        assert browser.screenshot(tmp_path / "report.html", tmp_path / f"{scheme}.png", scheme) == []
        pixels = np.asarray(Image.open(tmp_path / f"{scheme}.png").convert("RGB"))
        with Image.open(Path(__file__).resolve().parents[2] / "docs" / "images" / "report.png") as shown:
            assert pixels.shape == (shown.height, shown.width, 3)
        brightness[scheme] = pixels.mean()
        assert (abs(pixels.astype(int) - (0, 114, 178)).sum(axis=2) < 30).sum() > 500  # curves were drawn
    assert brightness["light"] > 200 and brightness["dark"] < 60
