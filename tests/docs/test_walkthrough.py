"""`docs/walkthrough.md` shows the rows that its script makes, and names functions that are there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.docs.pages import DOCS, ROOT

PAGE = DOCS / "walkthrough.md"
BLOCK = re.compile(r"<!-- rows: (\w+) -->\n```text\n(.*?)```", re.DOTALL)
NAMED = re.compile(r"\[`([\w/]+\.py)`\]\((\S+?)\) ([^\n]*)")


def test_the_rows_are_those_that_the_script_prints() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "walkthrough.py"], capture_output=True, text=True, check=True, timeout=100
    )
    printed = {
        stage.partition("\n")[0]: stage.partition("\n")[2].strip("\n")
        for stage in done.stdout.split("--- ")
        if stage
    }
    assert {name: rows.strip("\n") for name, rows in BLOCK.findall(PAGE.read_text())} == printed


def functions_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "src/dayjob" / file).read_text())
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return found


STOPS = [(file, words) for file, _, words in NAMED.findall(PAGE.read_text())]


@pytest.mark.parametrize(("file", "words"), STOPS)
def test_each_stop_names_functions_of_its_file(file: str, words: str) -> None:
    called = re.findall(r"`([\w.]+)`", words)
    names = [name for name in called if "." in name or name in functions_in(file)]
    assert names, f"{file}: {words!r} names no function"
    assert set(names) <= functions_in(file)
