"""`dayjob tools FILE`: the tools of a file as a model sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.text import Text

from dayjob.catalogue import Entry, catalogue
from dayjob.cli.files import imported
from dayjob.cli.printing import new_table, out, print_table
from dayjob.errors import InputError
from dayjob.mcp import McpServer
from dayjob.tools import Tool

EFFECT_STYLES = {"read": "green", "idempotent": "cyan", "write": "yellow"}


async def catalogue_of(target: str) -> list[Entry]:
    """The tools that FILE names: each by itself, in a list, or those of an MCP server, which is started."""
    path, module = imported(target)
    tools: list[Tool[..., Any]] = []
    for found in _found(vars(module).values()):
        tools += [found] if isinstance(found, Tool) else await _tools_of(found)
    if not tools:
        raise InputError(f"{path}: has no tool; decorate a function with @tool")
    return catalogue(tools)


async def _tools_of(server: McpServer) -> list[Tool[..., Any]]:
    async with server as tools:
        return tools


def _found(values: Iterable[Any]) -> list[Tool[..., Any] | McpServer]:
    return list({id(each): each for each in _flattened(values)}.values())


def _flattened(values: Iterable[Any]) -> Iterator[Tool[..., Any] | McpServer]:
    for value in values:
        if isinstance(value, Tool | McpServer):
            yield value
        elif isinstance(value, list | tuple | set | frozenset | Mapping):
            within = value.values() if isinstance(value, Mapping) else value
            yield from (each for each in within if isinstance(each, Tool | McpServer))


def show_tools(entries: list[Entry]) -> None:
    for number, entry in enumerate(entries):
        if number:
            out.print()
        effect, *contract = entry.contract()
        head = Text.assemble((entry.tool.name, "bold"), "  ", (effect, EFFECT_STYLES[effect]))
        out.print(head.append("".join(f" · {words}" for words in contract), "dim"), soft_wrap=True)
        for line in entry.definition["function"].get("description", "").splitlines():
            out.print(Text("  " + line if line else ""), soft_wrap=True)
        if entry.parameters:
            table = new_table("", "parameter", "type", "default", "")
            for parameter in entry.parameters:
                default = "required" if parameter.required else parameter.default or ""
                row = (parameter.name, parameter.type, default, parameter.description)
                table.add_row("", *map(Text, row))
            print_table(table)
        for warning in entry.warnings:
            out.print(Text.assemble(("  ! ", "yellow"), warning), soft_wrap=True)
