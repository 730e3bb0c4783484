"""The house rules that can be counted: sizes, the layout, no import cycles, one door to the internals of Flower."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "adapter",
    "benchmarks",
    "client_app",
    "conf",
    "deploy",
    "examples",
    "fedlodrop",
    "optimizer",
    "server_app",
    "strategy",
    "studies",
    "tasks",
    "wireless",
)
FILES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MODULES = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
MAX_FILE, MAX_FUNCTION, MAX_LINE = 400, 50, 120
MAX_TOTAL = 28_800  # all rooms but the examples; who adds a feature makes room for it
STILL_TOO_LONG: dict[str, int] = {}  # lines; they may shrink, not grow
TABLES: set[str] = set()  # files with a table of numbers that is read as one
PUBLIC_FLOWER = re.compile(r"flwr\.(app|clientapp|serverapp(\.strategy)?|common\.logger)")
INTERNALS = "strategy/flower_internals.py"


@cache
def _lines(file: Path) -> list[str]:
    return (ROOT / file).read_text(encoding="utf-8").splitlines()


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse("\n".join(_lines(file)))


def _functions(file: Path) -> Iterator[tuple[str, int]]:
    """Yield every function of a file with its lines, docstring not counted."""
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            said = node.body[0] if ast.get_docstring(node) is not None else None
            docstring = (said.end_lineno or 0) - said.lineno + 1 if said else 0
            yield f"{file}::{node.name}", (node.end_lineno or 0) - node.lineno + 1 - docstring


def _modules(file: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, at any depth, by statement or by name."""
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (_owner(node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(part.value) for part in node.args if isinstance(part, ast.Constant))


def _owner(module: str, name: str) -> str:
    """Return where a name is defined: in the module of this name, or in the package that it is imported from."""
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


def _offenders(measure: Callable[[Path], object]) -> dict[str, object]:
    """Return what is found in the files that break a rule."""
    found = {str(file): measure(file) for file in FILES}
    return {file: what for file, what in found.items() if what}


def test_a_file_has_400_lines_at_most() -> None:
    sizes = {str(file): len(_lines(file)) for file in FILES}
    assert not {file: size for file, size in sizes.items() if size > STILL_TOO_LONG.get(file, MAX_FILE)}


def test_a_function_has_50_lines_at_most() -> None:
    sizes = [pair for file in FILES for pair in _functions(file)]
    assert not {name: size for name, size in sizes if size > STILL_TOO_LONG.get(name, MAX_FUNCTION)}


def test_a_line_has_120_columns_at_most() -> None:
    wide = lambda file: [number for number, line in enumerate(_lines(file), 1) if len(line) > MAX_LINE]  # noqa: E731
    assert not _offenders(wide)


def test_the_formatter_lays_out_all_but_tables_of_numbers() -> None:
    skips = lambda file: [line for line in _lines(file) if re.search(r"#\s*fmt:", line)]  # noqa: E731
    assert not _offenders(lambda file: file.as_posix() not in TABLES and skips(file))


def test_no_files_import_each_other() -> None:
    graph = {name: {part for part in _modules(file) if part in MODULES} for name, file in MODULES.items()}
    assert {"server_app.exchange", "strategy"} <= graph["server_app.rounds"]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the ring


def test_one_file_touches_the_internals_of_flower() -> None:
    def touched(file: Path) -> list[str]:
        flower = [name for name in _modules(file) if name.startswith("flwr.") and not PUBLIC_FLOWER.fullmatch(name)]
        return flower + re.findall(r"metadata\.__dict__|TaskIdentity", "\n".join(_lines(file)))

    assert list(_offenders(touched)) == [INTERNALS]


def test_the_house_grows_no_further() -> None:
    assert sum(len(_lines(file)) for file in FILES if file.parts[0] != "examples") <= MAX_TOTAL


def test_what_makes_training_faster_has_one_door() -> None:
    def beside_the_door(file: Path) -> list[str]:
        inside = file.parts[:2] == ("tasks", "speed") or file == Path("tasks/models/placement.py")
        return [] if inside else [name for name in _modules(file) if name.startswith("tasks.speed")]

    assert not _offenders(beside_the_door)
