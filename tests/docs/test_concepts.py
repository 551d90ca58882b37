"""The tables of `docs/concepts.md` equal the code."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import dayjob
from dayjob.events import EVENTS
from dayjob.runs import TRANSITIONS, Kind, Outcome
from tests.docs.pages import DOCS, PAGES, rows, section

CONCEPTS = DOCS / "concepts.md"
SOURCES = sorted(Path(dayjob.__file__).parent.rglob("*.py"))


def test_the_state_table_is_the_transition_table() -> None:
    told = {row[0]: set(row[1].split(", ")) for row in rows(section(CONCEPTS, "## The life of a run"))}
    assert told == {status.value: {str(other) for other in after} for status, after in TRANSITIONS.items()}


def test_every_kind_is_told() -> None:
    assert [row[0] for row in rows(section(CONCEPTS, "### Kinds"))] == [kind.value for kind in Kind]


def test_every_outcome_is_told() -> None:
    assert [row[0] for row in rows(section(CONCEPTS, "### Outcomes"))] == [
        outcome.value for outcome in Outcome
    ]


def test_the_events_table_is_that_of_the_code() -> None:
    told = {row[0].strip("`"): row[1] for row in rows(section(CONCEPTS, "## Events"))}
    assert told == EVENTS


def test_the_limits_are_those_of_the_code() -> None:
    for what, value, place in rows(section(CONCEPTS, "## Times and limits")):
        module, _, name = place.strip("`").rpartition(".")
        assert float(value) == getattr(importlib.import_module(module), name), what


def variables_read() -> Iterator[str]:
    """The environment variables that the code reads by name, directly or as the default of an option."""
    trees = [ast.parse(file.read_text()) for file in SOURCES]
    constants = {
        target.id: node.value.value
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for tree in trees:
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.keyword)
                and node.arg == "envvar"
                and isinstance(node.value, ast.Constant)
            ):
                yield node.value.value
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "os.environ.get",
                "os.getenv",
                "environ.get",
            ):
                name = node.args[0]
                yield name.value if isinstance(name, ast.Constant) else constants[ast.unparse(name)]
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                name = node.slice
                yield name.value if isinstance(name, ast.Constant) else constants[ast.unparse(name)]


def test_the_settings_are_those_that_the_code_reads() -> None:
    told = {name for row in rows(section(CONCEPTS, "## Settings")) for name in re.findall(r"`(\w+)`", row[0])}
    assert told == set(variables_read())


def test_no_page_names_a_variable_that_nothing_reads() -> None:
    named = {
        name for page in PAGES for name in re.findall(r"\b(?:DAYJOB|OPENAI)_[A-Z_]+\b", page.read_text())
    }
    elsewhere = {"DAYJOB_SEARCH"}  # of the tests: CONTRIBUTING.md
    assert named - elsewhere <= set(variables_read())
