"""Tools: a typed function, what it does to the world, and how a model is told of it.

    @tool(effect="read")
    async def find_order(order_id: str) -> dict:
        '''Look an order up.

        Args:
            order_id: The id on the receipt, like "A-1042".
        '''

The signature gives the JSON schema of the arguments, the docstring (Google, NumPy or reST) the
words. Both are worked out on first use, so that decorating costs nothing.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

if TYPE_CHECKING:
    from docstring_parser import Docstring
    from pydantic import TypeAdapter

P = ParamSpec("P")
R = TypeVar("R")

Effect = Literal["read", "idempotent", "write"]
"""What a tool does to the world: nothing, what may be done twice, what must not be."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, eq=False)
class Tool(Generic[P, R]):
    """A function that a model may call. Called directly, it is the function itself."""

    fn: Callable[P, R]
    name: str
    effect: Effect = "write"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"tool: {self.name!r} cannot be a tool's name: expected 1 to 64 ASCII letters, "
                "digits, _ or -; give another with @tool(name=…)"
            )
        if self.effect not in get_args(Effect):
            raise InputError(f"{self.name}: effect={self.effect!r}: expected 'read', 'idempotent' or 'write'")
        for parameter in inspect.signature(self.fn).parameters.values():
            if parameter.kind not in _BY_NAME:
                raise InputError(
                    f"{self.name}: {parameter} cannot be an argument of a tool: "
                    "a model passes arguments by name"
                )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    @cached_property
    def description(self) -> str:
        """What the docstring says before its sections: what the model reads."""
        return (self._docstring.description or "").strip()

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments: an object that takes no others."""
        with _schema_errors_named(self.name):
            schema = self._arguments.json_schema(schema_generator=_schema_generator())
        schema.pop("title", None)
        documented = {each.arg_name: each.description for each in self._docstring.params}
        for name, parameter in inspect.signature(self.fn).parameters.items():
            described = schema["properties"][name]
            if documented.get(name):
                described.setdefault("description", documented[name])
            if parameter.default is not parameter.empty:
                described.update(_default(parameter.default))
        return schema

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The tool in the Chat Completions format."""
        function: dict[str, Any] = {"name": self.name, "parameters": self.parameters}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": function}

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
            return self._arguments.validate_python(dict(arguments))
        except ValidationError as error:
            raise InputError(self._complaint(error)) from None

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
            return TypeAdapter(_typed_dict(self.name, _arguments_of(self.fn, self.name)))

    def _complaint(self, error: Any) -> str:
        return "; ".join(
            _complaint(self.name, self.parameters["properties"], each)
            for each in error.errors(include_url=False, include_context=False)
        )


@overload
def tool(fn: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(*, effect: Effect = ..., name: str | None = ...) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(fn: Any = None, /, *, effect: Effect = "write", name: str | None = None) -> Any:
    """Make a typed function a tool: a write, the safe guess, unless `effect` says otherwise."""

    def decorate(fn: Callable[P, R]) -> Tool[P, R]:
        return Tool(fn, name or str(getattr(fn, "__name__", "")), effect)

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
            f'{{"name": …, "parameters": …}}}}; got {_shorten(given)}'
        )
    return dict(given)


def _arguments_of(fn: Callable[..., Any], tool_name: str) -> list[tuple[str, Any, bool]]:
    parameters = inspect.signature(fn).parameters
    # Only the parameters: a return type imported for type checkers alone need not resolve.
    unresolved = SimpleNamespace(
        __annotations__={
            name: Any if parameter.annotation is parameter.empty else parameter.annotation
            for name, parameter in parameters.items()
        }
    )
    module = getattr(inspect.unwrap(fn), "__globals__", {})
    try:
        hints = typing.get_type_hints(unresolved, globalns=module, include_extras=True)
    except NameError as error:
        raise InputError(
            f"{tool_name}: an annotation cannot be resolved: {error}; "
            "define or import it at the top of the module"
        ) from None
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
    arguments.__pydantic_config__ = {"extra": "forbid"}
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
    from pydantic import TypeAdapter

    try:
        return {"default": TypeAdapter(object).dump_python(value, mode="json")}
    except ValueError:
        return {}


def _complaint(tool_name: str, properties: Mapping[str, Any], error: Mapping[str, Any]) -> str:
    where = ".".join([tool_name, *map(str, error["loc"])])
    if error["type"] == "missing":
        return f"{where}: is missing{_expected(properties.get(error['loc'][0]))}"
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
        return f"{where}: is unknown; expected {', '.join(properties) or 'no arguments'}"
    return f"{where}: {error['msg'].removeprefix('Input ')}; got {_shorten(error['input'])}"


def _expected(schema: Mapping[str, Any] | None) -> str:
    if schema is None or "type" not in schema:
        return ""
    described = f" ({schema['description']})" if schema.get("description") else ""
    return f"; expected {schema['type']}{described}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
