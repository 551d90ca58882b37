"""The catalogue of tools: what a model is told of each, and where that leaves it guessing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dayjob.tools import Tool

_EMPTY_NAMES = frozenset({
    "action", "call", "command", "do", "exec", "execute", "fn", "func", "function", "go", "handle", "handler",
    "helper", "main", "method", "my_function", "my_tool", "perform", "process", "run", "task", "test", "thing",
    "tool", "util", "work",
})  # fmt: skip
_NAMES_OF_READS = (
    "count_", "describe_", "fetch_", "find_", "get_", "list_", "look_", "lookup_", "query_", "read_", "search_",
    "show_",
)  # fmt: skip
_SAYS_A_TYPE = ("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")
_CONSTRAINTS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "pattern": "like /{}/",
    "format": "as {}",
}


@dataclass(frozen=True)
class Parameter:
    """One argument as it stands in a tool's JSON schema; `default` is JSON text."""

    name: str
    type: str
    required: bool
    default: str | None
    description: str


@dataclass(frozen=True)
class Entry:
    """A tool, what a model is told of it, and its weak spots. Raises InputError if it has no schema."""

    tool: Tool[..., Any]
    definition: dict[str, Any]
    parameters: list[Parameter]
    warnings: list[str]

    def fields(self) -> dict[str, Any]:
        tool = self.tool
        return {
            "name": tool.name,
            "effect": tool.effect,
            "definition": self.definition,
            "approve": "sometimes" if callable(tool.approve) else tool.approve,
            "undo": tool.undo is not None,
            "probe": tool.probe is not None,
            "external": tool.external,
            "retry": tool.retry is not None,
            "timeout": tool.timeout,
            "concurrency": tool.concurrency,
            "key_lifetime": tool.key_lifetime,
            "warnings": self.warnings,
        }

    def contract(self) -> list[str]:
        """What is promised of a call, in words."""
        tool = self.tool
        said = {
            "asks a person": tool.approve is True,
            "may ask a person": callable(tool.approve),
            "undo": tool.undo,
            "probe": tool.probe,
            "done by the client": tool.external,
            "tried again": tool.retry,
        }
        numbers = {
            "timeout {:g} s": tool.timeout,
            "{:g} at a time": tool.concurrency,
            "keys live {:g} s": tool.key_lifetime,
        }
        return [
            tool.effect,
            *(words for words, holds in said.items() if holds),
            *(words.format(number) for words, number in numbers.items() if number is not None),
        ]


def catalogue(tools: Sequence[Tool[..., Any]]) -> list[Entry]:
    names = [tool.name for tool in tools]
    return [
        Entry(tool, tool.definition, _parameters(tool), list(_weak_spots(tool, names.count(tool.name))))
        for tool in tools
    ]


def _parameters(tool: Tool[..., Any]) -> list[Parameter]:
    schema = tool.parameters
    definitions = schema.get("$defs", {})
    required = schema.get("required", ())
    return [
        Parameter(
            name,
            _type(described, definitions),
            name in required,
            json.dumps(described["default"], ensure_ascii=False) if "default" in described else None,
            " ".join(str(described.get("description", "")).split()),
        )
        for name, described in _properties(schema).items()
    ]


def _weak_spots(tool: Tool[..., Any], namesakes: int) -> Iterator[str]:
    if namesakes > 1:
        yield "another tool has the same name: a model cannot be offered both"
    if tool.name.lower().strip("_0123456789") in _EMPTY_NAMES or len(tool.name) == 1:
        yield "its name says nothing: name what it does, and to what"
    if not tool.description:
        yield "no description: a model has only the name to go by; write a docstring"
    definitions = tool.parameters.get("$defs", {})
    for name, described in _properties(tool.parameters).items():
        if not any(word in described for word in _SAYS_A_TYPE):
            yield f"{name}: no type; annotate it"
        if not (described.get("description") or _referred(described, definitions).get("description")):
            yield f"{name}: no description; tell of it in the docstring"
    if tool.effect == "write" and tool.name.startswith(_NAMES_OF_READS):
        yield 'a write by its effect, a read by its name: if it changes nothing, say effect="read"'
    elif tool.effect == "write" and not (tool.approve or tool.undo or tool.probe or tool.external):
        yield "a hint: with probe= its outcome can be found out after a crash; now a person will be asked"


def _properties(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A server may say `true` of a property: anything goes."""
    found = schema.get("properties", {})
    return {name: each if isinstance(each, Mapping) else {} for name, each in found.items()}


def _referred(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    found = definitions.get(str(schema.get("$ref")).rpartition("/")[2], {})
    return found if isinstance(found, Mapping) else {}


def _type(schema: Any, definitions: Mapping[str, Any], within: tuple[str, ...] = ()) -> str:
    """A JSON schema in a few words: `integer ≥ 1`, `"thin" | "thick"`, `list of {x: number}`."""
    if not isinstance(schema, Mapping):
        return "anything"
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        if name in within or not _referred(schema, definitions):
            return name or "itself"
        return _type(_referred(schema, definitions), definitions, (*within, name))
    if "enum" in schema or "const" in schema:
        choices = schema["enum"] if "enum" in schema else [schema["const"]]
        return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            members = dict.fromkeys(_type(member, definitions, within) for member in schema[union])
            return (" & " if union == "allOf" else " | ").join(members)
    named = schema.get("type", "anything")
    words = " | ".join(named) if isinstance(named, list) else str(named)
    if words == "array" and "items" in schema:
        words = f"list of {_type(schema['items'], definitions, within)}"
    elif words == "object":
        words = _object(schema, definitions, within)
    bounds = [told.format(schema[name]) for name, told in _CONSTRAINTS.items() if name in schema]
    return f"{words} {', '.join(bounds)}" if bounds else words


def _object(schema: Mapping[str, Any], definitions: Mapping[str, Any], within: tuple[str, ...]) -> str:
    required = schema.get("required", ())
    members = [
        f"{name}{'' if name in required else '?'}: {_type(each, definitions, within)}"
        for name, each in _properties(schema).items()
    ]
    if members:
        return "{" + ", ".join(members) + "}"
    others = schema.get("additionalProperties")
    return f"object of {_type(others, definitions, within)}" if isinstance(others, Mapping) else "object"
