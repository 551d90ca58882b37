"""What a model is told of tools, in words for people, and where that leaves it guessing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from dayjob.catalogue import Entry, Parameter, catalogue
from dayjob.mcp import McpTool
from dayjob.retry import Retry
from dayjob.tools import Call, Tool, as_tool, tool


class Address(BaseModel):
    """Where it goes."""

    street: str
    number: Annotated[int, Field(gt=0)]
    behind: Address | None = None


@tool(
    undo=lambda call, result: None,
    approve=lambda **_: True,
    timeout=30,
    retry=Retry(),
    concurrency=2,
    key_lifetime=86_400,
    examples=[{"order_id": "A-1", "where": {"street": "x", "number": 1}}],
)
def send(
    call: Call,
    order_id: Annotated[str, Field(pattern="^A-", max_length=9)],
    where: Address,
    pieces: Annotated[int, Field(ge=1, le=50)] = 5,
    speed: Literal["slow", "fast"] | None = None,
    tags: list[str] = [],  # noqa: B006
    weights: dict[str, float] = {},  # noqa: B006
) -> None:
    """Send an order.

    Args:
        order_id: The id on the receipt,
            like "A-1".
        pieces: How many.
        speed: How fast.
        tags: For the label.
        weights: By piece.
    """


def warnings(*tools: Tool[..., Any]) -> list[list[str]]:
    return [entry.warnings for entry in catalogue(tools)]


def server_tool(schema: dict[str, Any], description: str = "Look.") -> Tool[..., Any]:
    async def call(**arguments: Any) -> None: ...

    return McpTool(call, "look", "read", description=description, parameters=schema)


def types(schema: dict[str, Any]) -> list[str]:
    return [parameter.type for parameter in catalogue([server_tool(schema)])[0].parameters]


def entry_of(tool: Tool[..., Any]) -> Entry:
    return catalogue([tool])[0]


def test_parameters_are_told_in_words() -> None:
    assert entry_of(send).parameters == [
        Parameter(
            "order_id",
            "string at most 9 characters, like /^A-/",
            True,
            None,
            'The id on the receipt, like "A-1".',
        ),
        Parameter("where", "{street: string, number: integer > 0, behind?: Address | null}", True, None, ""),
        Parameter("pieces", "integer ≥ 1, ≤ 50", False, "5", "How many."),
        Parameter("speed", '"slow" | "fast" | null', False, "null", "How fast."),
        Parameter("tags", "list of string", False, "[]", "For the label."),
        Parameter("weights", "object of number", False, "{}", "By piece."),
    ]


def test_the_contract_is_told_in_words() -> None:
    assert entry_of(send).contract() == [
        "write",
        "may ask a person",
        "undo",
        "tried again",
        "timeout 30 s",
        "2 at a time",
        "keys live 86400 s",
    ]
    asks = tool(effect="idempotent", approve=True, external=True)(print_nothing)
    assert entry_of(asks).contract() == ["idempotent", "asks a person", "done by the client"]


def print_nothing() -> None:
    """Do nothing at all."""


def test_fields_hold_the_definition_as_it_goes_to_the_model() -> None:
    fields = entry_of(send).fields()
    assert fields["definition"] == send.definition
    assert (fields["name"], fields["effect"], fields["approve"], fields["undo"], fields["probe"]) == (
        "send",
        "write",
        "sometimes",
        True,
        False,
    )


def test_a_tool_that_says_all_has_no_weak_spot() -> None:
    assert warnings(send) == [[]]


def test_what_is_missing_is_named() -> None:
    @tool(effect="read")
    def weigh(piece, unit: str) -> None: ...  # type: ignore[no-untyped-def]

    assert warnings(weigh) == [
        [
            "no description: a model has only the name to go by; write a docstring",
            "piece: no type; annotate it",
            "piece: no description; tell of it in the docstring",
            "unit: no description; tell of it in the docstring",
        ]
    ]


@pytest.mark.parametrize("name", ["run", "Process", "tool_2", "do_", "x", "my_tool", "handler"])
def test_a_name_that_says_nothing_is_named(name: str) -> None:
    (found,) = warnings(tool(effect="read", name=name)(print_nothing))
    assert found == ["its name says nothing: name what it does, and to what"]


@pytest.mark.parametrize("name", ["run_report", "process_refund", "handle_return", "toolbox"])
def test_a_name_that_says_something_is_left_alone(name: str) -> None:
    assert warnings(tool(effect="read", name=name)(print_nothing)) == [[]]


def test_two_tools_of_one_name_are_named() -> None:
    twice = [tool(effect="read", name="look")(print_nothing) for _ in range(2)]
    assert warnings(*twice) == [["another tool has the same name: a model cannot be offered both"]] * 2


def test_a_write_that_is_probably_a_read_is_named() -> None:
    (found,) = warnings(tool(name="get_order")(print_nothing))
    assert found == ['a write by its effect, a read by its name: if it changes nothing, say effect="read"']


def test_a_write_that_nobody_could_ask_about_gets_a_hint() -> None:
    (found,) = warnings(as_tool(print_nothing))
    assert [each for each in found if each.startswith("a hint: with probe=")] == found != []
    for contract in ({"probe": lambda call: None}, {"approve": True}, {"external": True}, {"effect": "read"}):
        assert warnings(tool(**contract)(print_nothing)) == [[]]


@pytest.mark.parametrize(
    ("described", "told"),
    [
        (True, "anything"),
        ({}, "anything"),
        ({"type": ["string", "null"]}, "string | null"),
        ({"const": 7}, "7"),
        ({"oneOf": [{"type": "string"}, {"type": "string"}]}, "string"),
        ({"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}, "{of?: a} & object"),
        ({"$ref": "https://example.com/else"}, "else"),
        ({"$ref": "#"}, "#"),
        ({"type": "array"}, "array"),
        ({"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}, "list of {of?: a} at least 1"),
        ({"type": "object", "additionalProperties": False}, "object"),
        ({"type": "string", "format": "date"}, "string as date"),
    ],
)
def test_any_schema_of_a_server_can_be_told(described: Any, told: str) -> None:
    definitions = {"a": {"type": "object", "properties": {"of": {"$ref": "#/$defs/a"}}}}
    assert types({"type": "object", "properties": {"x": described}, "$defs": definitions}) == [told]


def test_a_schema_without_properties_has_no_parameters() -> None:
    assert types({}) == []
