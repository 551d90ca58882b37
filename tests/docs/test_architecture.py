"""`ARCHITECTURE.md` names every module, in import order, and what it forbids is held by something."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import dayjob
from tests.docs.pages import DOCS, ROOT, rows, section

PACKAGE = Path(dayjob.__file__).parent
ARCHITECTURE = ROOT / "ARCHITECTURE.md"


def told() -> list[str]:
    table = section(ARCHITECTURE, "## The modules")
    return [name for row in rows(table) for name in re.findall(r"`([\w/]+\.\w+)`", row[0])]


def test_every_module_is_told_and_no_other() -> None:
    files = {f.relative_to(PACKAGE).as_posix() for f in PACKAGE.rglob("*") if f.suffix in (".py", ".sql")}
    assert sorted(told()) == sorted(files)


def test_modules_stand_in_the_order_in_which_they_import() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0][
        "layers"
    ]
    order = {name: rank for rank, layer in enumerate(layers) for name in re.findall(r"\w+", layer)}
    ranks = [order[name.split("/")[0].split(".")[0]] for name in told() if name != "__init__.py"]
    assert ranks == sorted(ranks)


def test_only_stores_know_a_database() -> None:
    others = [file for file in PACKAGE.rglob("*.py") if "stores" not in file.parts]
    imports = re.compile(r"^\s*(?:import|from) sqlite3", re.MULTILINE)
    assert [file.name for file in others if imports.search(file.read_text())] == []
    assert [file.name for file in others if "stores.sqlite" in file.read_text()] == []


def test_make_targets_are_told() -> None:
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert targets
    assert [target for target in targets if f"`make {target}`" not in contributing] == []


def test_every_decision_is_listed() -> None:
    folder = DOCS / "decisions"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(page.name for page in folder.glob("0*.md"))


def test_what_holds_a_never_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+(?:\.py)?)`", section(ARCHITECTURE, "## What must never be"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
