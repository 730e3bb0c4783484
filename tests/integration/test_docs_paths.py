"""Every file, folder and page that the documentation names is in the checkout."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_readme import ROOT, TEXTS

PAGES = [*TEXTS, ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]
NAMES = re.compile(r"`([\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|md|yaml|json|jsonl|sh|toml|txt|csv|png|cff)))(?:::\w+)?`")
PACKAGES = "adapter|client_app|conf|fedlodrop|optimizer|server_app|strategy|tasks|wireless"
MODULES = re.compile(rf"`((?:{PACKAGES})(?:\.\w+)+)(?:\(.*?\))?`")
LINKS = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
# What a run, a sweep or a user makes, a name of its own kind, or a build output: not files of the checkout.
MADE = re.compile(
    r"(?:rounds\.jsonl|(?:summary|environment|failure)\.json|bench\.md|config\.yaml|jobs\.(?:csv|png)|bandwidth\.png|problem\.json"
    r"|solution\.json|(?:checkpoint|tensorboard|docs/api|secrets|state|results)/.*|numpy\.py)"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    names = {name for name in NAMES.findall(text) if not MADE.fullmatch(name)}
    missing = {name for name in names if not any((base / name).exists() for base in (ROOT, page.parent))}
    assert not missing


def _is_there(name: str, keys: str) -> bool:
    """Return whether a dotted name is a module, something in a module, or a configuration key."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:end])
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            found: Any = importlib.import_module(".".join(parts[:end]))
            for part in parts[end:]:
                found = getattr(found, part, None)
            return found is not None or f"`{name}`" in keys
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_their_contents_exist(page: Path) -> None:
    keys = (ROOT / "docs" / "configuration.md").read_text()
    assert not [name for name in MODULES.findall(page.read_text()) if not _is_there(name, keys)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not [link for link in LINKS.findall(page.read_text()) if not (page.parent / link).exists()]


def test_the_index_lists_every_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(LINKS.findall((ROOT / "docs" / "README.md").read_text())) == pages
