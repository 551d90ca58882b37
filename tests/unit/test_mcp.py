"""What a server says of its tools is taken as it is, and does no harm when it is nonsense."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from dayjob.errors import InputError
from dayjob.mcp import McpTool


async def answer(**arguments: Any) -> str:
    return json.dumps(arguments)


def look(**properties: Any) -> McpTool:
    schema = {"type": "object", "properties": properties, "required": ["place"]}
    return McpTool(answer, "look", "read", description="Look there.", parameters=schema)


async def test_it_is_a_tool_with_its_servers_words() -> None:
    tool = look(place={"type": "string"})
    assert tool.definition == {
        "type": "function",
        "function": {"name": "look", "description": "Look there.", "parameters": tool.parameters},
    }
    assert not tool.wants_call
    assert await tool(place="here") == '{"place": "here"}'


def test_another_contract_can_be_given_to_it() -> None:
    asks = dataclasses.replace(
        look(place={"type": "string"}), effect="write", approve=lambda place: place == "x"
    )
    assert asks.definition == look(place={"type": "string"}).definition
    assert (asks.needs_approval({"place": "x"}), asks.needs_approval({"place": "y"})) == (True, False)


@pytest.mark.parametrize(
    ("described", "given", "complaint"),
    [
        ({"type": "integer"}, "x", "look.place: 'x' is not of type 'integer'"),
        ({"enum": ["a", "b"]}, "c", "look.place: 'c' is not one of ['a', 'b']"),
        ({"items": {"properties": {"x": {"minimum": 1}}}}, [{"x": 0}], "look.place.0.x: 0 is less than the"),
        ({"type": "integer"}, "x" * 5_000, "look.place: does not fit type: 'integer'; got 'xxx"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(described: Any, given: Any, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        look(place=described).validate(json.dumps({"place": given}))
    assert str(caught.value).startswith(complaint)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "described",
    [
        {"$ref": "http://localhost:1/schema.json"},
        {"$ref": "#/properties/place"},
        {"$ref": "#/nowhere"},
        {"type": "elephant"},
        {"minimum": "much"},
        7,
    ],
)
def test_a_schema_that_cannot_be_applied_is_left_to_the_server(described: Any) -> None:
    assert look(place=described).validate('{"place": 3}') == {"place": 3}


@pytest.mark.parametrize("arguments", ["[" * 100_000, "{", "null", b"\xff", [1], None, '{"place": Infinity}'])
def test_what_is_no_object_of_json_is_refused_shortly(arguments: Any) -> None:
    with pytest.raises(InputError, match=r"^look: (Invalid JSON|should be an object)") as caught:
        look(place={}).validate(arguments)
    assert len(str(caught.value)) < 400


def test_what_is_given_for_a_password_is_not_told_when_it_does_not_fit() -> None:
    tool = look(place={"type": "string", "format": "password", "minLength": 30})
    for given in ({"place": "hunter22"}, {"place": ["hunter22"]}, {"plaice": "hunter22"}):
        with pytest.raises(InputError) as caught:
            tool.validate(given)
        assert str(caught.value).startswith("look")
        assert "hunter22" not in str(caught.value)


def test_a_schema_that_is_nonsense_holds_no_secrets() -> None:
    for nonsense in ({"properties": 3}, {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": []}):
        assert McpTool(answer, "look", "read", parameters=nonsense).secret_arguments == frozenset()
