"""Nothing deserialises code, no run writes outside the folder the owner allows, no run names a program for a node."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from conf.compose import PACKAGES, ConfigError, compose_config
from server_app.folders import RESULTS_ROOT, results_folder
from server_app.session import open_results

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for name in (*PACKAGES, "fedlodrop", "deploy") for path in sorted((ROOT / name).rglob("*.py"))]
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
# These talk to child processes that they start themselves, over their pipes: nothing from the wire or a checkpoint.
OWN_CHILDREN = {"optimizer/apart.py": ["joblib.externals.loky"], "fedlodrop/study/runner.py": ["joblib.externals.loky"]}
FORBIDDEN_CALLS = {
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pd.read_pickle",
    "pandas.read_pickle",
    "tempfile.mktemp",
}


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _unsafe(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Call):
            found += [_name(node.func)] if _name(node.func) in FORBIDDEN_CALLS else []
            unsafe = {("shell", True), ("allow_pickle", True), ("trust_remote_code", True), ("weights_only", False)}
            found += [
                f"{k.arg}={k.value.value}"
                for k in node.keywords
                if isinstance(k.value, ast.Constant) and (k.arg, k.value.value) in unsafe
            ]
    return [name for name in found if name]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unsafe_deserialisation_and_no_shell(path: Path) -> None:
    found = _unsafe(path.read_text())
    assert found == OWN_CHILDREN.get(path.relative_to(ROOT).as_posix(), [])


def test_the_search_finds_what_it_looks_for() -> None:
    bad = [
        "import pickle",
        "from joblib import load",
        "torch.load(x)",
        "yaml.load(x)",
        "eval(x)",
        "run(x, shell=True)",
        "np.load(x, allow_pickle=True)",
    ]
    assert len(_unsafe("\n".join(bad))) == len(bad)


@pytest.mark.parametrize("where", ["/etc/fedlodrop", "../../elsewhere", "a/../../b"])
def test_runs_write_only_where_the_owner_of_the_server_allows(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = tmp_path / "results"
    monkeypatch.setenv(RESULTS_ROOT, str(allowed))
    stamp = ("2026-01-01", "00-00-00")
    assert results_folder(compose_config("run.dir=first"), Path("/"), stamp) == allowed / "first"
    assert results_folder(compose_config(""), Path("/"), stamp).is_relative_to(allowed)
    with pytest.raises(ConfigError, match="run.dir must lie below"):
        results_folder(compose_config(f"run.dir='{where}'"), Path("/"), stamp)
    with pytest.raises(ConfigError, match="run.resume must lie below"):
        open_results(f"run.resume='{where}'")
    assert not (tmp_path / "elsewhere").exists()


def test_a_name_cannot_be_a_path() -> None:
    for name in ("../x", "a/b", "..", "."):
        with pytest.raises(ConfigError, match="run.name must be a plain folder name"):
            compose_config(f"run.name='{name}'")


def test_no_key_of_a_run_names_a_program() -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        compose_config("radio.command=/bin/true")


def test_what_the_deployment_page_makes_goes_into_no_commit_and_no_image() -> None:
    made = {"secrets", "state", "data"}  # the folders of docs/deployment.md, in the folder in which it was followed
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("/")}
    kept_out = set((ROOT / ".dockerignore").read_text().split())
    assert made <= ignored and made | {".git", ".venv"} <= kept_out
