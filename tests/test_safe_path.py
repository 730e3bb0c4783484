"""A file that lies where the user stands is never imported by a process that a command starts."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.files import write_problem
from optimizer.instances import sample_problem

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "adapter",
    "benchmarks",
    "client_app",
    "conf",
    "deploy",
    "examples",
    "optimizer",
    "server_app",
    "strategy",
    "tasks",
)
TRAP = "import pathlib; pathlib.Path(__file__).with_suffix('.caught').touch()\nraise SystemExit('imported from here')\n"


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """Return a folder full of modules that must not be imported, named as what children import first."""
    for name in (
        "pyomo",
        "pyscipopt",
        "numpy",
        "pickle",
        "socket",
        "joblib",
        "optimizer",
        "server_app",
        "benchmarks",
        "torch",
    ):
        (tmp_path / f"{name}.py").write_text(TRAP)
    return tmp_path


def _run(folder: Path, *command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {
        "PYTHONPATH": str(ROOT)
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not sorted(folder.glob("*.caught"))


def _script(folder: Path, text: str) -> str:
    """Return a program in a folder of its own, which is what stands first on its path."""
    home = folder / "home"
    home.mkdir()
    (home / "program.py").write_text(text)
    return str(home / "program.py")


PROGRAMS = {
    "scip": (
        "import sys\nfrom optimizer.__main__ import main\n"
        "sys.exit(main(['solve', 'problem.json', '--method', 'scip', '--out', 'solution.json']))\n"
    ),
    "bench": (
        "import sys\nfrom optimizer.bench import table\nfrom optimizer.instances import sample_problem\n"
        "row = table({'one': sample_problem(2, 0)}, ('exact',), repeats=1, time_limit_s=1.0, gap=1e-4)[0]\n"
        "sys.exit(row.get('note', 0))\n"
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_children_of_the_optimizer(trapped: Path, name: str) -> None:
    pytest.importorskip("pyscipopt")
    write_problem(trapped / "problem.json", sample_problem(1, 0))
    _run(trapped, sys.executable, _script(trapped, PROGRAMS[name]))


def test_pools_of_the_command_line(trapped: Path) -> None:
    text = (
        "import multiprocessing, os\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "from tasks.process import prepare_process\n"
        "if __name__ == '__main__':\n"
        "    prepare_process()\n"
        "    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:\n"
        "        assert pool.submit(os.getpid).result() != os.getpid()\n"
    )
    _run(trapped, sys.executable, _script(trapped, text))


def _starts_python(node: ast.List) -> bool:
    first = node.elts[0] if node.elts else None
    return isinstance(first, ast.Attribute) and ast.unparse(first) == "sys.executable"


def test_every_python_child_is_started_in_safe_path_mode() -> None:
    found = []
    for path in (path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List) and _starts_python(node):
                safe = len(node.elts) > 1 and ast.unparse(node.elts[1]) == "'-P'"
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", safe))
    assert found and [place for place, safe in found if not safe] == []
