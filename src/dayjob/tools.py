"""Tools: a typed function, what it does to the world, and how a model is told of it.

    @tool(effect="read")
    async def find_order(order_id: str) -> dict:
        '''Look an order up.

        Args:
            order_id: The id on the receipt, like "A-1042".
        '''

    @tool(undo=cancel_refund, approve=lambda amount, **_: amount > 100)
    async def refund(call: Call, order_id: str, amount: float) -> str:
        ...

The signature gives the JSON schema of the arguments, the docstring (Google, NumPy or reST) the
words. Both are worked out on first use, so that decorating costs nothing. The other options are the
tool's contract: what may be done when a call of it failed, or nobody knows whether it did.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import reprlib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NotRequired,
    ParamSpec,
    TypeVar,
    get_args,
    overload,
)

from dayjob.errors import InputError
from dayjob.retry import RetryPolicy

if TYPE_CHECKING:
    from docstring_parser import Docstring
    from pydantic import TypeAdapter

P = ParamSpec("P")
R = TypeVar("R")

Effect = Literal["read", "idempotent", "write"]
"""What a tool does to the world: nothing, what may be done twice, what must not be."""

Undo = Callable[["Call", Any], Any]
Probe = Callable[["Call"], Any]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_COMPLAINTS = 10
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Deadline:
    """How long an action waits, and what happens then.

    seconds   from when it is asked
    then      "expire": the run ends, expired; "deny": the answer is no; "default": it is `default`
    default   the answer, with then="default"
    warn      how many seconds before the deadline people are warned, by an event; a fifth of the time
              by default, an hour at most
    """

    seconds: float
    then: Literal["expire", "deny", "default"] = "expire"
    default: Any = None
    warn: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < float("inf"):
            raise InputError(f"deadline: seconds={self.seconds!r}: expected seconds, 0 or more")
        if self.then not in ("expire", "deny", "default"):
            raise InputError(f'deadline: then={self.then!r}: expected "expire", "deny" or "default"')

    @property
    def warn_seconds(self) -> float:
        return self.warn if self.warn is not None else min(self.seconds / 5, 3600.0)


@dataclass(frozen=True)
class Call:
    """One call of a tool, as the tool's function sees it when its first parameter is annotated `Call`.

    `key` is the idempotency key: the same whenever this call is made again, in this process or after a
    crash in another, so that a receiver can tell a repetition from a second wish.
    """

    key: str
    run_id: str
    step: str
    attempt: int
    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Tool(Generic[P, R]):
    """A function that a model may call, and its contract. Called directly, it is the function itself.

    effect        what it does to the world
    undo          `undo(call, result)`: takes a finished call back
    probe         `probe(call)`: what became of a call whose outcome is unknown: its result, `NotDone`
                  (returned or raised), or None while that is still unknown; False, like any other value,
                  is a result, and means that it was done
    approve       whether a person is asked first: True, or a function of the arguments that says so
    timeout       seconds
    retry         a policy such as `Retry`, for reads and idempotent calls
    concurrency   how many calls at a time
    examples      dicts of arguments, shown to the model
    unknown       exceptions that mean: it may have happened
    key_lifetime  for how many seconds the receiver remembers `call.key`
    external      the client does it: the function is never called
    deadline      of an approval, or of what the client hands in: seconds, or a `Deadline`
    """

    fn: Callable[P, R]
    name: str
    effect: Effect = "write"
    undo: Undo | None = None
    probe: Probe | None = None
    approve: bool | Callable[..., bool] = False
    timeout: float | None = None
    retry: RetryPolicy | None = None
    concurrency: int | None = None
    examples: Sequence[Mapping[str, Any]] = ()
    unknown: tuple[type[Exception], ...] = ()
    key_lifetime: float | None = None
    external: bool = False
    deadline: Deadline | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"tool: {self.name!r} cannot be a tool's name: expected 1 to 64 ASCII letters, "
                "digits, _ or -; give another with @tool(name=…)"
            )
        if self.effect not in get_args(Effect):
            raise InputError(f"{self.name}: effect={self.effect!r}: expected 'read', 'idempotent' or 'write'")
        for option, fits, expected in self._expectations():
            if not fits:
                raise InputError(f"{self.name}: {option}={getattr(self, option)!r}: expected {expected}")
        for option in ("undo", "probe", "unknown", "key_lifetime"):
            if self.effect == "read" and getattr(self, option):
                raise InputError(
                    f"{self.name}: {option}= is for a tool that changes something; this one is a 'read'"
                )
        if self.external and self.undo is not None:
            raise InputError(
                f"{self.name}: undo= is for what is done here; with external=True the client does it, and takes it back"
            )
        self._check_signature()

    def _expectations(self) -> Iterator[tuple[str, bool, str]]:
        yield "undo", self.undo is None or _takes(self.undo, 2), "a function undo(call, result)"
        yield "probe", self.probe is None or _takes(self.probe, 1), "a function probe(call)"
        plain = callable(self.approve) and not inspect.iscoroutinefunction(self.approve)
        yield (
            "approve",
            isinstance(self.approve, bool) or plain,
            "True, False, or a function of the arguments that is not async and returns one of them",
        )
        yield "timeout", _is_seconds(self.timeout), "seconds above 0"
        yield "retry", self.retry is None or callable(self.retry), "a policy such as Retry(attempts=3)"
        yield "concurrency", _is_count(self.concurrency), "a whole number from 1"
        yield "examples", _are_mappings(self.examples), "a list of dicts of arguments"
        yield "unknown", _are_exceptions(self.unknown), "a tuple of exception classes"
        yield "key_lifetime", _is_seconds(self.key_lifetime), "seconds above 0"
        yield "external", isinstance(self.external, bool), "True or False"
        yield "deadline", isinstance(self.deadline, Deadline | None), "seconds, or a Deadline"

    def _check_signature(self) -> None:
        for parameter in inspect.signature(self.fn).parameters.values():
            if parameter.kind not in _BY_NAME:
                raise InputError(
                    f"{self.name}: {parameter} cannot be an argument of a tool: "
                    "a model passes arguments by name"
                )

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    @cached_property
    def wants_call(self) -> bool:
        """Whether the function takes the `Call` before its arguments."""
        first = next(iter(inspect.signature(self.fn).parameters.values()), None)
        return first is not None and _is_call(first.annotation, _globals_of(self.fn))

    def needs_approval(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a person is asked before a call with these arguments; the function's defaults count."""
        if not callable(self.approve):
            return self.approve
        defaults = {
            name: parameter.default
            for name, parameter in self._parameters.items()
            if parameter.default is not parameter.empty
        }
        return bool(self.approve(**{**defaults, **arguments}))

    @cached_property
    def description(self) -> str:
        """What the docstring says before its sections."""
        return (self._docstring.description or "").strip()

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments: an object that takes no others."""
        with _schema_errors_named(self.name):
            schema = self._arguments.json_schema(schema_generator=_schema_generator())
        schema.pop("title", None)
        documented = {each.arg_name: each.description for each in self._docstring.params}
        for name, parameter in self._parameters.items():
            described = schema["properties"][name]
            if documented.get(name):
                described.setdefault("description", documented[name])
            if parameter.default is not parameter.empty:
                described.update(_default(parameter.default))
        return schema

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The tool in the Chat Completions format: all that a model is told of it.

        The examples stand in the description, since few models are shown a schema's own.
        """
        told = "\n\n".join(filter(None, [self.description, *map(self._example, self.examples)]))
        function: dict[str, Any] = {"name": self.name, "parameters": self.parameters}
        if told:
            function["description"] = told
        return {"type": "function", "function": function}

    @cached_property
    def secret_arguments(self) -> frozenset[str]:
        """The arguments that are a SecretStr, or may hold one: what is given for them is not shown."""
        definitions, arguments = self.parameters.get("$defs"), self.parameters.get("properties")
        if not isinstance(arguments, Mapping):
            return frozenset()
        return frozenset(name for name in arguments if _holds_secret(arguments[name], definitions, set()))

    def validate(self, arguments: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function's own types, ready for `tool(**arguments)`.

        Takes a mapping, or the model's JSON text (empty text means no arguments). Arguments that
        were left out stay out: the function's defaults apply. Raises `InputError` naming each
        argument that does not fit, and what was expected.
        """
        from pydantic import ValidationError

        try:
            if isinstance(arguments, str | bytes):
                return self._arguments.validate_json(arguments.strip() or "{}")
            return self._arguments.validate_python(arguments)
        except ValidationError as error:
            raise InputError(self._complaint(error, arguments)) from None

    @cached_property
    def _docstring(self) -> Docstring:
        import docstring_parser

        text = inspect.getdoc(self.fn) or ""
        try:
            return docstring_parser.parse(text)
        except docstring_parser.ParseError:
            plain = docstring_parser.Docstring()
            plain.short_description = text
            return plain

    @cached_property
    def _arguments(self) -> TypeAdapter[dict[str, Any]]:
        from pydantic import TypeAdapter

        with _schema_errors_named(self.name):
            return TypeAdapter(_typed_dict(self.name, _arguments_of(self.name, self.fn, self._parameters)))

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        """Those that are arguments: all but the `Call`."""
        parameters = list(inspect.signature(self.fn).parameters.items())
        return dict(parameters[1:] if self.wants_call else parameters)

    def _example(self, example: Mapping[str, Any]) -> str:
        try:
            self.validate(example)
        except InputError as problem:
            raise InputError(f"{self.name}: examples: {problem}") from None
        return f"Example: {json.dumps(_jsonable(dict(example)), ensure_ascii=False)}"

    def _complaint(self, error: Any, arguments: Any) -> str:
        """Says once of each place what would have fitted there."""
        properties = self.parameters["properties"]
        given = _parsed(arguments)
        expected: dict[str, dict[str, str]] = {}
        for each in error.errors(include_url=False, include_context=False):
            place = shorten_text(".".join([self.name, *map(str, _place(each, given))]), 160)
            secret = not self.secret_arguments.isdisjoint(each["loc"][:1] or properties)
            untold = secret or each["type"] in ("missing", "extra_forbidden")
            got = "" if untold else f"; got {shorten(each['input'])}"
            expected.setdefault(place, {}).setdefault(_expectation(each, properties), got)
        complaints = [
            f"{place}: {', or '.join(told)}{[*told.values()][-1]}" for place, told in expected.items()
        ]
        more = len(complaints) - _COMPLAINTS
        return "; ".join(complaints[:_COMPLAINTS] + ([f"and {more} more"] if more > 0 else []))


@dataclass(frozen=True, eq=False)
class ClientTool(Tool[..., Any]):
    """A function that a client described and executes: its words and JSON schema go to the model as they came.

    Its arguments are not checked here but to be an object: the client knows what it meant.
    """

    definition: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, definition: Mapping[str, Any]) -> ClientTool:
        """The tool that a definition in the Chat Completions format describes. Raises InputError for a bad name."""
        given = definition_of(definition)
        return cls(_not_here, str(given["function"]["name"]), external=True, definition=given)

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.definition["function"].get("parameters") or {"type": "object", "properties": {}})

    def validate(self, arguments: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
        given = _parsed(arguments)
        if not isinstance(given, Mapping):
            raise InputError(f"{self.name}: should be an object; got {shorten(given)}")
        return dict(given)

    def _check_signature(self) -> None:
        """Its arguments are in the schema."""


def _not_here(**arguments: Any) -> Any:
    raise NotImplementedError("the client executes this tool")


@overload
def tool(fn: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *,
    effect: Effect = ...,
    name: str | None = ...,
    undo: Undo | None = ...,
    probe: Probe | None = ...,
    approve: bool | Callable[..., bool] = ...,
    timeout: float | None = ...,
    retry: RetryPolicy | None = ...,
    concurrency: int | None = ...,
    examples: Sequence[Mapping[str, Any]] = ...,
    unknown: tuple[type[Exception], ...] = ...,
    key_lifetime: float | None = ...,
    external: bool = ...,
    deadline: Deadline | float | None = ...,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(
    fn: Any = None, /, *, name: str | None = None, deadline: Deadline | float | None = None, **options: Any
) -> Any:
    """Make a typed function a tool: a write, the safe guess, unless `effect` says otherwise.

    The options are told at `Tool`. Raises InputError naming the tool and the option that is wrong.
    """

    if isinstance(deadline, int | float):
        deadline = Deadline(deadline)
    until = deadline

    def decorate(fn: Callable[P, R]) -> Tool[P, R]:
        return Tool(fn, name or str(getattr(fn, "__name__", "")), deadline=until, **options)

    return decorate if fn is None else decorate(fn)


def as_tool(fn: Tool[P, R] | Callable[P, R]) -> Tool[P, R]:
    """The tool itself, or one made of a plain function (a write, since nothing says otherwise)."""
    if isinstance(fn, Tool):
        return fn
    if not callable(fn):
        raise InputError(f"tools: {fn!r} is no tool: expected a function or what @tool made of one")
    return tool(fn)


def definition_of(given: Tool[..., Any] | Callable[..., Any] | Mapping[str, Any]) -> dict[str, Any]:
    """A tool in the Chat Completions format; a mapping already in it passes through."""
    if not isinstance(given, Mapping):
        return as_tool(given).definition
    function = given.get("function")
    if given.get("type") != "function" or not isinstance(function, Mapping) or "name" not in function:
        raise InputError(
            'tools: a tool given as a dict looks like {"type": "function", "function": '
            f'{{"name": …, "parameters": …}}}}; got {shorten(given)}'
        )
    return dict(given)


def _is_seconds(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 < value < math.inf)


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and _is_number(value) and value >= 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value)


def _are_exceptions(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(each, type) and issubclass(each, Exception) for each in value
    )


def _takes(fn: Any, arguments: int) -> bool:
    try:
        inspect.signature(fn).bind(*[None] * arguments)
    except (TypeError, ValueError):
        return False
    return True


def _globals_of(fn: Callable[..., Any]) -> dict[str, Any]:
    return getattr(inspect.unwrap(fn), "__globals__", {})


def _is_call(annotation: Any, module: dict[str, Any]) -> bool:
    if not isinstance(annotation, str):
        return annotation is Call
    try:
        return _resolved({"call": annotation}, module)["call"] is Call
    except (NameError, AttributeError, SyntaxError, TypeError):  # imported for type checkers only
        return annotation.strip("'\"") in ("Call", "dayjob.Call")


def _resolved(annotations: dict[str, Any], module: dict[str, Any]) -> dict[str, Any]:
    holder = SimpleNamespace(__annotations__=annotations)
    return typing.get_type_hints(holder, globalns=module, include_extras=True)


def _arguments_of(
    tool_name: str, fn: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> list[tuple[str, Any, bool]]:
    # Only the parameters: a return type imported for type checkers alone need not resolve.
    unresolved = {
        name: Any if parameter.annotation is parameter.empty else parameter.annotation
        for name, parameter in parameters.items()
    }
    try:
        hints = _resolved(unresolved, _globals_of(fn))
    except NameError as error:
        raise InputError(
            f"{tool_name}: an annotation cannot be resolved: {error}; "
            "define or import it at the top of the module"
        ) from None
    for name, hint in hints.items():
        if hint is Call or Call in get_args(hint):
            raise InputError(
                f"{tool_name}.{name}: a Call comes first, as `call: Call`, and cannot be left out"
            )
        if type(parameters[name].default).__name__ == "FieldInfo":
            raise InputError(
                f"{tool_name}.{name}: its default is a Field, which is no value; "
                f"write `{name}: Annotated[type, Field(…)] = value`"
            )
    return [
        (name, hints[name], parameter.default is parameter.empty) for name, parameter in parameters.items()
    ]


def _typed_dict(name: str, fields: list[tuple[str, Any, bool]]) -> Any:
    """A type for the arguments that takes any argument name (`schema`, `_id`, `model_x`) and leaves
    out what the caller left out; a pydantic model would do neither."""
    # Before Python 3.12 pydantic knows only this TypedDict.
    import typing_extensions  # noqa: PLC0415

    make: Any = typing_extensions.TypedDict
    arguments = make(
        name,
        {field: hint if required else NotRequired[hint] for field, hint, required in fields},
    )
    arguments.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}
    return arguments


@contextmanager
def _schema_errors_named(tool_name: str) -> Iterator[None]:
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

    try:
        yield
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{tool_name}: an argument has no JSON schema: {reason}") from None


def _schema_generator() -> Any:
    from pydantic.json_schema import GenerateJsonSchema

    class WithoutTitles(GenerateJsonSchema):
        """ "order_id" as a title too is tokens that tell a model nothing."""

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    return WithoutTitles


def _default(value: object) -> dict[str, Any]:
    try:
        return {"default": _jsonable(value)}
    except ValueError:
        return {}


def _jsonable(value: object) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(object).dump_python(value, mode="json")


def _parsed(arguments: Any) -> Any:
    from pydantic_core import from_json

    try:
        return from_json(arguments) if isinstance(arguments, str | bytes) else arguments
    except ValueError:
        return None


def _place(error: Mapping[str, Any], given: Any) -> list[Any]:
    """Where it does not fit. Of a union pydantic also names the member, which is no place in what was given."""
    place = []
    for part in error["loc"]:
        try:
            given = given[part]
        except (KeyError, IndexError, TypeError):
            continue
        place.append(part)
    return [*place, error["loc"][-1]] if error["type"] == "missing" else place


def _expectation(error: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    at_the_top = len(error["loc"]) == 1
    if error["type"] == "missing":
        return f"is missing{_expected(properties.get(error['loc'][0]) if at_the_top else None)}"
    if error["type"] == "extra_forbidden":
        return "is unknown" + (f"; expected {', '.join(properties) or 'no arguments'}" if at_the_top else "")
    if error["type"] in ("dict_type", "model_type", "model_attributes_type", "dataclass_type"):
        return "should be an object"
    return str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")


def _holds_secret(schema: Any, definitions: Any, seen: set[str]) -> bool:
    if isinstance(schema, list):
        return any(_holds_secret(each, definitions, seen) for each in schema)
    if not isinstance(schema, Mapping):
        return False
    if schema.get("format") == "password" or schema.get("writeOnly") is True:
        return True
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen and isinstance(definitions, Mapping):
        seen.add(reference)
        if _holds_secret(definitions.get(reference.rpartition("/")[2]), definitions, seen):
            return True
    return any(_holds_secret(each, definitions, seen) for each in schema.values())


def _expected(schema: Mapping[str, Any] | None) -> str:
    if schema is None or "type" not in schema:
        return ""
    described = f" ({schema['description']})" if schema.get("description") else ""
    return f"; expected {schema['type']}{described}"


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother, _brief.maxlong = 4, 80, 80, 80


def shorten(value: object) -> str:
    return shorten_text(_brief.repr(value))


def shorten_text(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
