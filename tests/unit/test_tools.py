from __future__ import annotations

import enum
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from dayjob.errors import InputError
from dayjob.tools import Tool, as_tool, definition_of, tool

if TYPE_CHECKING:
    from nowhere import OnlyForTypeCheckers


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    number: int = Field(gt=0)


@tool(effect="read")
async def find_order(order_id: str, limit: int = 5) -> dict[str, Any]:
    """Look an order up.

    At once, and nowhere else.

    Args:
        order_id: The id on the receipt,
            like "A-1042".
        limit: How many at most.

    Returns:
        Everything about it.
    """
    return {"order_id": order_id, "limit": limit}


@tool
def paint(
    colour: Colour,
    where: Address,
    mode: Literal["thin", "thick"] = "thin",
    times: Annotated[int, Field(ge=1, description="How often.")] = 1,
    note: str | None = None,
) -> str:
    """Paint something."""
    return f"{colour.value} {where.street} {mode} {times} {note}"


def properties(of: Tool[..., Any]) -> dict[str, Any]:
    return dict(of.parameters["properties"])


def test_definition_comes_from_signature_and_docstring() -> None:
    assert find_order.definition == {
        "type": "function",
        "function": {
            "name": "find_order",
            "description": "Look an order up.\n\nAt once, and nowhere else.",
            "parameters": {
                "type": "object",
                "properties": {
                    "order_id": {
                        "type": "string",
                        "description": 'The id on the receipt,\nlike "A-1042".',
                    },
                    "limit": {"type": "integer", "description": "How many at most.", "default": 5},
                },
                "required": ["order_id"],
                "additionalProperties": False,
            },
        },
    }


def test_enums_literals_models_and_fields_are_described() -> None:
    assert paint.parameters["$defs"]["Colour"]["enum"] == ["red", "blue"]
    assert paint.parameters["$defs"]["Address"]["properties"]["number"]["exclusiveMinimum"] == 0
    assert properties(paint)["mode"] == {
        "type": "string",
        "enum": ["thin", "thick"],
        "default": "thin",
    }
    assert properties(paint)["times"] == {
        "type": "integer",
        "minimum": 1,
        "description": "How often.",
        "default": 1,
    }
    assert properties(paint)["note"]["default"] is None
    assert paint.parameters["required"] == ["colour", "where"]


def test_numpy_docstring_describes_arguments() -> None:
    @tool
    def look(place: str) -> None:
        """Look there.

        Parameters
        ----------
        place : str
            Where to look.
        """

    assert look.description == "Look there."
    assert properties(look)["place"]["description"] == "Where to look."


def test_field_description_wins_over_the_docstring() -> None:
    @tool
    def look(place: Annotated[str, Field(description="From the field.")]) -> None:
        """Look.

        Args:
            place: From the docstring.
        """

    assert properties(look)["place"]["description"] == "From the field."


def test_function_without_docstring_or_annotations_is_a_tool_too() -> None:
    def anything(what, how=1):  # type: ignore[no-untyped-def]
        return what, how

    made = as_tool(anything)
    assert made.definition["function"] == {"name": "anything", "parameters": made.parameters}
    assert properties(made) == {"what": {}, "how": {"default": 1}}
    assert made.validate('{"what": [1, {"a": null}]}') == {"what": [1, {"a": None}]}


def test_argument_may_have_a_name_that_pydantic_keeps_for_itself() -> None:
    @tool
    def odd(schema: str, model_config: int, _hidden: bool = False, json: str = "") -> None: ...

    assert odd.validate({"schema": "a", "model_config": 1, "_hidden": True}) == {
        "schema": "a",
        "model_config": 1,
        "_hidden": True,
    }


def test_default_that_is_no_json_is_left_out_of_the_schema() -> None:
    @tool
    def odd(marker: Any = object()) -> None: ...  # noqa: B008

    assert properties(odd) == {"marker": {}}


def test_return_type_need_not_resolve() -> None:
    @tool
    def fetch(name: str) -> OnlyForTypeCheckers: ...

    assert properties(fetch) == {"name": {"type": "string"}}


def test_argument_type_that_does_not_resolve_is_named() -> None:
    @tool
    def fetch(name: OnlyForTypeCheckers) -> None: ...

    with pytest.raises(InputError, match=r"fetch: .*OnlyForTypeCheckers.*top of the module"):
        _ = fetch.parameters


def test_argument_type_without_a_schema_is_named() -> None:
    @tool
    def call_back(later: Tool[..., Any]) -> None: ...

    @tool
    def read(file: IO[str]) -> None: ...

    for each in (call_back, read):
        with pytest.raises(InputError, match=f"^{each.name}: an argument has no JSON schema"):
            _ = each.parameters


async def test_called_directly_it_is_the_function() -> None:
    assert await find_order("A-1") == {"order_id": "A-1", "limit": 5}
    assert paint(Colour.RED, Address(street="x", number=1)) == "red x thin 1 None"


def test_bound_method_is_a_tool_without_self() -> None:
    class Shop:
        def close(self, hour: int) -> int:
            return hour

    assert as_tool(Shop().close).validate('{"hour": 7}') == {"hour": 7}


def test_effect_is_a_write_unless_it_says_otherwise() -> None:
    assert (paint.effect, find_order.effect, as_tool(print_nothing).effect) == (
        "write",
        "read",
        "write",
    )


def print_nothing() -> None: ...


def test_name_can_be_given() -> None:
    assert tool(name="other-name")(print_nothing).definition["function"]["name"] == "other-name"


@pytest.mark.parametrize("name", ["two words", "é", "a" * 65, "dots.dots"])
def test_name_that_endpoints_refuse_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="tool's name"):
        tool(name=name)(print_nothing)


def test_lambda_needs_a_name() -> None:
    with pytest.raises(InputError, match="name=…"):
        as_tool(lambda: None)


def test_unknown_effect_is_refused() -> None:
    with pytest.raises(InputError, match="expected 'read', 'idempotent' or 'write'"):
        tool(effect="maybe")(print_nothing)  # type: ignore[call-overload]


def test_arguments_that_have_no_name_are_refused() -> None:
    def many(*values: int) -> None: ...
    def named(**values: int) -> None: ...
    def placed(value: int, /) -> None: ...

    for fn in (many, named, placed):
        with pytest.raises(InputError, match=f"{fn.__name__}: .*by name"):
            as_tool(fn)


class TestValidate:
    def test_arguments_become_the_types_of_the_function(self) -> None:
        given = '{"colour": "red", "where": {"street": "Main", "number": "7"}, "times": 2}'
        assert paint.validate(given) == {
            "colour": Colour.RED,
            "where": Address(street="Main", number=7),
            "times": 2,
        }

    def test_mapping_and_bytes_are_taken_as_well(self) -> None:
        assert find_order.validate({"order_id": "A"}) == {"order_id": "A"}
        assert find_order.validate(b'{"order_id": "A"}') == {"order_id": "A"}

    def test_empty_text_means_no_arguments(self) -> None:
        assert as_tool(print_nothing).validate("") == {}
        assert as_tool(print_nothing).validate(" {} ") == {}

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ("{}", "find_order.order_id: is missing; expected string (The id on the receipt"),
            ('{"order_id": 7}', "find_order.order_id: should be a valid string; got 7"),
            (
                '{"order_id": "A", "lim": 1}',
                "find_order.lim: is unknown; expected order_id, limit",
            ),
            ('{"order_id": "A"', "find_order: Invalid JSON"),
            ('["A"]', "find_order: should be an object"),
        ],
    )
    def test_complaint_names_the_argument_and_what_was_expected(self, arguments: str, complaint: str) -> None:
        with pytest.raises(InputError) as caught:
            find_order.validate(arguments)
        assert str(caught.value).startswith(complaint)

    def test_complaint_names_every_argument_down_to_its_field(self) -> None:
        with pytest.raises(InputError) as caught:
            paint.validate('{"colour": "pink", "where": {"street": "x", "number": 0}, "times": 0}')
        for place in ("paint.colour:", "paint.where.number:", "paint.times:"):
            assert place in str(caught.value)

    def test_long_values_are_shortened_in_the_complaint(self) -> None:
        with pytest.raises(InputError) as caught:
            find_order.validate({"order_id": ["x" * 10_000]})
        assert len(str(caught.value)) < 200


class TestDefinitionOf:
    def test_tool_function_and_dict_are_all_taken(self) -> None:
        given = {"type": "function", "function": {"name": "f", "strict": True}}
        assert definition_of(find_order) == find_order.definition
        assert definition_of(print_nothing)["function"]["name"] == "print_nothing"
        assert definition_of(given) == given

    @pytest.mark.parametrize(
        "given", [{}, {"name": "f"}, {"type": "function", "function": {}}, {"type": "web_search"}]
    )
    def test_dict_of_another_shape_is_shown(self, given: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="looks like"):
            definition_of(given)

    @pytest.mark.parametrize("given", [7, "find_order", None])
    def test_what_is_no_tool_is_shown(self, given: Any) -> None:
        with pytest.raises(InputError, match=f"{given!r} is no tool"):
            definition_of(given)


def test_decorating_imports_no_library() -> None:
    program = (
        "import sys\n"
        "from dayjob.tools import tool\n"
        "@tool(effect='read')\n"
        "def f(a: int): ...\n"
        "print({'pydantic', 'docstring_parser', 'typing_extensions'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"
