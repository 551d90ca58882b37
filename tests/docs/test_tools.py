"""The tables of `docs/tools.md` equal the code."""

from __future__ import annotations

import dataclasses
import inspect

from dayjob.mcp import McpServer
from dayjob.tools import Tool
from tests.docs.pages import DOCS, rows, section

PAGE = DOCS / "tools.md"


def options(heading: str) -> set[str]:
    return {row[0].strip("`") for row in rows(section(PAGE, heading))}


def test_the_options_are_those_of_a_tool() -> None:
    assert options("## Options") == {field.name for field in dataclasses.fields(Tool)} - {"fn"}


def test_the_options_are_those_of_an_mcp_server() -> None:
    taken = set(inspect.signature(McpServer).parameters) - {"command", "args"}
    assert options("## Tools of MCP servers") == taken
