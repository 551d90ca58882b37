from __future__ import annotations

import dataclasses
import enum
import json
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretBytes, SecretStr

import dayjob
from dayjob.errors import InputError, NotDone
from dayjob.retry import Retry
from dayjob.tools import Call, Tool, as_tool, definition_of, tool
from dayjob.tools import Call as Telephoned

if TYPE_CHECKING:
    from nowhere import OnlyForTypeCheckers


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    number: int = Field(gt=0)


class Branch(BaseModel):
    weight: int
    children: list[Branch] = []


class Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


CALL = Call("key-1", "run_1", "refund", 1, "refund", {"order_id": "A", "amount": 3.0})


def take_back(call: Call, result: str) -> None: ...
async def look_up(call: Call) -> type[NotDone]:
    return NotDone


@tool(
    undo=take_back,
    probe=look_up,
    approve=lambda amount, limit, **_: amount > limit,
    timeout=30,
    retry=Retry(attempts=2),
    concurrency=2,
    examples=[{"order_id": "Ä-1", "amount": 3}],
    unknown=(ConnectionError,),
    key_lifetime=86_400,
)
async def refund(
    call: Call, order_id: str, amount: Annotated[float, Field(gt=0)], limit: float = 100.0
) -> str:
    """Give the money back."""
    return f"{call.key} {order_id} {amount}"


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


class TestContract:
    def test_options_stand_on_the_tool(self) -> None:
        assert (refund.undo, refund.probe, refund.timeout, refund.concurrency, refund.key_lifetime) == (
            take_back,
            look_up,
            30,
            2,
            86_400,
        )
        assert (refund.unknown, refund.external) == ((ConnectionError,), False)
        assert refund.retry == Retry(attempts=2)
        assert (find_order.undo, find_order.approve, find_order.unknown, find_order.examples) == (
            None,
            False,
            (),
            (),
        )

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"undo": lambda call: None}, "undo=.*: expected a function undo\\(call, result\\)"),
            ({"probe": 7}, "probe=7: expected a function probe\\(call\\)"),
            ({"approve": "yes"}, "approve='yes': expected True, False, or a function"),
            ({"approve": look_up}, "approve=.*: expected .*not async"),
            ({"timeout": -1}, "timeout=-1: expected seconds above 0"),
            ({"timeout": float("inf")}, "timeout=inf: expected seconds above 0"),
            ({"timeout": True}, "timeout=True: expected seconds above 0"),
            ({"retry": 3}, "retry=3: expected a policy such as Retry"),
            ({"concurrency": 0}, "concurrency=0: expected a whole number from 1"),
            ({"concurrency": 1.5}, "concurrency=1.5: expected a whole number from 1"),
            ({"examples": {"a": 1}}, "examples=.*: expected a list of dicts"),
            ({"unknown": OSError}, "unknown=.*: expected a tuple of exception classes"),
            ({"unknown": (7,)}, "unknown=.*: expected a tuple of exception classes"),
            ({"key_lifetime": 0}, "key_lifetime=0: expected seconds above 0"),
            ({"external": "yes"}, "external='yes': expected True or False"),
            ({"effect": "read", "undo": take_back}, "undo= is for a tool that changes something"),
            ({"effect": "read", "probe": look_up}, "probe= is for a tool that changes something"),
            ({"effect": "read", "unknown": (OSError,)}, "unknown= is for a tool that changes something"),
            ({"effect": "read", "key_lifetime": 60}, "key_lifetime= is for a tool that changes something"),
        ],
    )
    def test_an_option_that_does_not_fit_is_named(self, options: dict[str, Any], complaint: str) -> None:
        with pytest.raises(InputError, match=f"^print_nothing: {complaint}"):
            tool(**options)(print_nothing)

    def test_approval_may_depend_on_the_arguments_and_defaults(self) -> None:
        assert not refund.needs_approval({"order_id": "A", "amount": 100.0})
        assert refund.needs_approval({"order_id": "A", "amount": 101.0})
        assert not refund.needs_approval({"order_id": "A", "amount": 101.0, "limit": 200.0})
        assert not find_order.needs_approval({"order_id": "A"})
        assert tool(approve=True)(print_nothing).needs_approval({})

    def test_examples_are_shown_to_the_model(self) -> None:
        assert refund.definition["function"]["description"] == (
            'Give the money back.\n\nExample: {"order_id": "Ä-1", "amount": 3}'
        )
        assert refund.description == "Give the money back."

    def test_an_example_may_hold_the_functions_own_types(self) -> None:
        example = {"colour": Colour.RED, "where": Address(street="x", number=1)}
        painted = dataclasses.replace(paint, examples=[example])
        assert painted.definition["function"]["description"].endswith(
            'Example: {"colour": "red", "where": {"street": "x", "number": 1}}'
        )

    def test_an_example_that_does_not_fit_is_named(self) -> None:
        wrong = dataclasses.replace(refund, examples=[{"order_id": "A", "amount": -3}])
        complaint = "^refund: examples: refund.amount: should be greater than 0; got -3$"
        with pytest.raises(InputError, match=complaint):
            _ = wrong.definition


class TestCall:
    def test_call_comes_first_and_the_model_does_not_see_it(self) -> None:
        assert refund.wants_call
        assert list(properties(refund)) == ["order_id", "amount", "limit"]
        with pytest.raises(InputError, match=r"refund\.call: is unknown; expected order_id, amount, limit"):
            refund.validate('{"order_id": "A", "amount": 3, "call": {"key": "forged"}}')

    async def test_called_directly_the_call_is_given_by_hand(self) -> None:
        assert await refund(CALL, **refund.validate(CALL.arguments)) == "key-1 A 3.0"

    def test_it_is_found_under_any_name_it_was_imported_by(self) -> None:
        def qualified(call: dayjob.Call) -> None: ...
        def renamed(call: Telephoned) -> None: ...

        assert as_tool(qualified).wants_call
        assert as_tool(renamed).wants_call
        assert as_tool(renamed).parameters["properties"] == {}

    def test_it_is_found_when_only_a_type_checker_imports_it(self) -> None:
        module: dict[str, Any] = {}
        exec("def f(call: 'Call', n: int): ...\ndef g(call: 'dayjob.Call'): ...", module)
        assert as_tool(module["f"]).wants_call
        assert as_tool(module["g"]).wants_call
        assert list(properties(as_tool(module["f"]))) == ["n"]

    def test_a_class_of_the_users_own_called_call_is_an_argument(self) -> None:
        module: dict[str, Any] = {"BaseModel": BaseModel}
        exec("class Call(BaseModel):\n    number: str\ndef ring(call: 'Call'): ...", module)
        assert not as_tool(module["ring"]).wants_call
        assert list(properties(as_tool(module["ring"]))) == ["call"]

    def test_a_tool_without_one_says_so(self) -> None:
        assert not find_order.wants_call
        assert not as_tool(print_nothing).wants_call

    def test_anywhere_else_it_is_refused_since_a_model_could_forge_it(self) -> None:
        def late(order_id: str, call: Call) -> None: ...
        def optional(call: Call | None = None) -> None: ...

        for fn in (late, optional):
            with pytest.raises(InputError, match=rf"^{fn.__name__}\.call: a Call comes first"):
                _ = as_tool(fn).parameters


class TestSchema:
    def test_schema_is_well_formed_and_its_references_resolve(self) -> None:
        @tool
        def grow(branch: Branch, point: Point, exact: Exact, by_name: dict[str, Branch]) -> None: ...

        jsonschema.Draft202012Validator.check_schema(grow.parameters)
        given = {
            "branch": {"weight": 1, "children": [{"weight": 2}]},
            "point": {"x": 1},
            "exact": {"size": 1},
            "by_name": {"a": {"weight": 3}},
        }
        assert list(jsonschema.Draft202012Validator(grow.parameters).iter_errors(given)) == []
        given["by_name"] = {"a": {"weight": "x"}}
        assert len(list(jsonschema.Draft202012Validator(grow.parameters).iter_errors(given))) == 1

    def test_restructured_text_describes_arguments(self) -> None:
        @tool
        def look(place: str) -> None:
            """Look there.

            :param place: Where to look.
            """

        assert look.description == "Look there."
        assert properties(look)["place"]["description"] == "Where to look."

    def test_a_field_as_a_default_is_refused(self) -> None:
        def look(places: int = Field(5, ge=1)) -> None: ...

        with pytest.raises(InputError, match=r"^look\.places: its default is a Field, .*Annotated"):
            _ = as_tool(look).parameters


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

    @pytest.mark.parametrize(
        ("given", "complaint"),
        [
            ({"colour": "pink"}, "paint.colour: should be 'red' or 'blue'; got 'pink'"),
            ({"mode": "wet"}, "paint.mode: should be 'thin' or 'thick'; got 'wet'"),
            ({"times": -3}, "paint.times: should be greater than or equal to 1; got -3"),
            ({"where": 7}, "paint.where: should be an object; got 7"),
            ({"where": {"street": "x"}}, "paint.where.number: is missing"),
        ],
    )
    def test_choices_and_bounds_are_told(self, given: dict[str, Any], complaint: str) -> None:
        arguments = {"colour": "red", "where": {"street": "x", "number": 1}, **given}
        for written in (arguments, json.dumps(arguments)):
            with pytest.raises(InputError) as caught:
                paint.validate(written)
            assert str(caught.value) == complaint

    def test_of_a_union_the_place_is_told_once(self) -> None:
        @tool
        def pick(by: int | Literal["all"] | Exact) -> None: ...

        with pytest.raises(InputError) as caught:
            pick.validate('{"by": [1]}')
        assert str(caught.value) == (
            "pick.by: should be a valid integer, or should be 'all', or should be an object; got [1]"
        )

    def test_nested_keys_are_refused_where_the_type_says_so(self) -> None:
        @tool
        def pick(exact: Exact, loose: Branch) -> None: ...

        loose = {"weight": 1, "colour": "red"}
        assert pick.validate({"exact": {"size": 1}, "loose": loose})["loose"] == Branch(weight=1)
        with pytest.raises(InputError, match=r"^pick\.exact\.colour: is unknown$"):
            pick.validate({"exact": {"size": 1, "colour": "red"}, "loose": loose})

    @pytest.mark.parametrize(
        "arguments",
        [
            "[" * 100_000,
            '{"order_id": ' + "[" * 5_000 + "]" * 5_000 + "}",
            '{"order_id": "A", "limit": ' + "9" * 5_000 + "}",
            '{"order_id": "\\ud800"}',
            b"\xff\xfe",
            '```json\n{"order_id": "A"}\n```',
            '{"order_id": "A"} {"order_id": "B"}',
            "null",
            '"order_id"',
            ["A"],
            [1],
            None,
            7,
            {7: "A"},
            {"order_id": "A", "x" * 100_000: 1},
            {f"name_{n}": n for n in range(10_000)},
        ],
    )
    def test_hostile_arguments_get_a_short_complaint(self, arguments: Any) -> None:
        with pytest.raises(InputError, match=r"^find_order") as caught:
            find_order.validate(arguments)
        assert len(str(caught.value)) < 1_000

    def test_of_a_name_that_is_written_twice_the_last_counts(self) -> None:
        assert find_order.validate('{"order_id": "A", "order_id": "B"}') == {"order_id": "B"}

    def test_large_arguments_are_read(self) -> None:
        big = {"order_id": "x" * 5_000_000}
        assert find_order.validate(json.dumps(big)) == big

    def test_arguments_that_hold_themselves_are_refused(self) -> None:
        @tool
        def grow(branch: Branch) -> None: ...

        ring: dict[str, Any] = {"weight": 1}
        ring["children"] = [ring]
        with pytest.raises(InputError, match=r"^grow\.branch\.children\.0: Recursion error"):
            grow.validate({"branch": ring})

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
    def test_a_number_that_is_no_json_is_refused(self, number: str) -> None:
        with pytest.raises(InputError, match=r"^refund\.amount: should be a finite number"):
            refund.validate(f'{{"order_id": "A", "amount": {number}}}')

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


class Login(BaseModel):
    user: str
    password: SecretStr
    others: list[Login] = []


@tool(effect="read")
async def log_in(
    pin: Annotated[SecretStr, Field(min_length=30)],
    login: Login | None = None,
    more: list[SecretBytes] = [],  # noqa: B006
    times: int = 1,
) -> None: ...


def test_arguments_that_are_secret_or_hold_one_are_known() -> None:
    assert log_in.secret_arguments == {"pin", "login", "more"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pin": "hunter22"}, "log_in.pin: Value should have at least 30 items"),
        ({"pin": ["hunter22"]}, "log_in.pin: should be a valid string"),
        ({"login": "hunter22"}, "log_in.login: should be an object"),
        ({"login": {"user": 1, "password": "hunter22"}}, "log_in.login.user: should be a valid string"),
        (
            {"login": {"user": "a", "password": {"it": "hunter22"}}},
            "log_in.login.password: should be a valid",
        ),
        ({"login": {"user": "a", "password": "x", "others": ["hunter22"]}}, "log_in.login.others.0: should"),
        ({"more": "hunter22"}, "log_in.more: should be a valid list"),
        ('{"pin": "hunter22"', "log_in: Invalid JSON"),
        ('["hunter22"]', "log_in: should be"),
        ({"times": "often"}, "log_in.times: should be a valid integer"),
    ],
)
def test_what_is_given_for_a_secret_is_not_told_when_it_does_not_fit(given: Any, told: str) -> None:
    if isinstance(given, dict):
        given = {"pin": "x" * 30, **given}
    with pytest.raises(InputError) as caught:
        log_in.validate(given)
    assert str(caught.value).startswith(told)
    assert "hunter22" not in str(caught.value)
    assert ("often" in str(caught.value)) == ("times" in told)
