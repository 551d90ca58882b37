"""The page of what happens when: each line names a test that exists."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "what-happens-when.md").read_text()
LINES = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| when")]


@pytest.mark.parametrize("line", LINES)
def test_each_line_names_a_test(line: str) -> None:
    (shown_by,) = re.findall(r"`(tests/[^`]+)`", line)
    file, *names = shown_by.split("::")
    code = (ROOT / file).read_text()
    for name in names:
        assert re.search(rf"^\s*(class|def|async def) {name}\b", code, re.MULTILINE), f"{file} has no {name}"
