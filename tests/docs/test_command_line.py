"""Every command, option and exit code of the command line stands in `docs/command-line.md`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer

from dayjob import cli
from tests.docs.pages import DOCS, rows, section

PAGE = DOCS / "command-line.md"
GROUP: Any = typer.main.get_command(cli.app)
EVERYWHERE = {"--help", "-h"}


def commands() -> dict[str, Any]:
    """By name; those of a group are named with it."""
    found = {}
    for name, command in GROUP.commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {each}": inner[each] for each in inner}
    return found


COMMANDS = commands()


def told(name: str) -> str:
    return section(PAGE, f"## {name}")


def option_names(command: Any) -> set[str]:
    return {
        name
        for parameter in command.params
        if parameter.param_type_name == "option"
        for name in (*parameter.opts, *parameter.secondary_opts)
    } - EVERYWHERE


def test_the_commands_are_those_of_the_program() -> None:
    headings = re.findall(r"^## ([a-z]+(?: [a-z]+)?)$", PAGE.read_text(), re.MULTILINE)
    assert headings == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_are_those_of_the_command(name: str) -> None:
    options = {option for row in rows(told(name)) for option in re.findall(r"`(--?[\w-]+)", row[0])}
    assert options == option_names(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_usage_shows_the_arguments(name: str) -> None:
    usage = re.search(rf"^dayjob {name}\b.*$", told(name), re.MULTILINE)
    assert usage, f"{name}: no usage line"
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "argument":
            shown = (parameter.metavar or parameter.name.upper()).strip("[]")
            assert shown in usage[0]


def test_the_options_of_the_program_itself_are_told() -> None:
    introduction = PAGE.read_text().partition("\n## ")[0]
    assert [name for name in option_names(GROUP) if f"`{name}`" not in introduction] == []


def test_the_exit_codes_are_those_of_the_program() -> None:
    codes = {name: code for name, code in vars(cli.Exit).items() if name.isupper()}
    assert {int(row[0]) for row in rows(section(PAGE, "## Exit codes"))} == set(codes.values())
