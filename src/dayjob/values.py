"""Values to JSON bytes and back to their declared types; what must not be stored is taken out on the way.

A value reaches a job only as `decode(encode(value))`, live and on replay alike: nothing works live
that breaks on replay. NaN, infinities, sets and other things that are no JSON are refused.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, get_type_hints

import orjson

from dayjob.errors import DayjobError, InputError, NotJSON, ValueTooLarge, text_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_VALUE_BYTES = 8 * 1024 * 1024
REDACTED = "[redacted]"
_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (float, int),
    bool: (bool,),
    dict: (dict,),
    list: (list,),
    None: (type(None),),
    type(None): (type(None),),
}
_SCALARS = frozenset({str, int, float, bool, type(None)})
_ANYTHING = (Any, object, inspect.Parameter.empty)
_MANY_DIGITS = re.compile(rb"\d{19}")


class Redactor:
    """Replaces secrets in JSON bytes, and in text: those of this process, and those that a run was given.

    What a run was given may be any word: as a key of a dict, where it would be part of another's structure,
    it stays.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._of_process = _longest_first(secrets)
        self._take(self._of_process)

    def _take(self, secrets: list[str]) -> None:
        self._secrets = secrets
        self._encoded = [orjson.dumps(secret)[1:-1] for secret in secrets]

    @classmethod
    def from_environment(cls) -> Redactor:
        """Secrets are what variables named *_KEY, *_TOKEN, *_SECRET, *_PASSWORD hold, or those in DAYJOB_REDACT.

        Values of fewer than six characters are left alone: replacing them would garble ordinary text.
        """
        named = {name.strip() for name in os.environ.get("DAYJOB_REDACT", "").split(",")}
        endings = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
        return cls(
            value for name, value in os.environ.items() if name in named or name.upper().endswith(endings)
        )

    def for_run(self) -> Redactor:
        """One that knows what this one was made with, and keeps what it learns to itself."""
        return Redactor(self._of_process)

    def learn(self, secrets: Iterable[str]) -> None:
        """Replaces these too from now on: what a run was given as a SecretStr."""
        if fresh := set(secrets).difference(self._secrets):
            self._take(_longest_first([*self._secrets, *fresh]))

    def __call__(self, data: bytes) -> bytes:
        for secret in self._encoded:
            if secret in data:  # perhaps only in a number, or across an escape: those stay as they are
                return orjson.dumps(self._without(orjson.loads(data)))
        return data

    def text(self, text: str) -> str:
        """Text that may be stored: without secrets, and with "?" for half a surrogate pair."""
        return _without(self._secrets, text)

    def _without(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {_without(self._of_process, key): self._without(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._without(item) for item in value]
        return value


def _longest_first(secrets: Iterable[str]) -> list[str]:
    """Those that are replaced: a short one would garble ordinary text."""
    kept = {secret for secret in secrets if len(secret) >= 6 and _is_unicode(secret)}
    return sorted(kept, key=len, reverse=True)


def _without(secrets: list[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text if _is_unicode(text) else text.encode("utf-8", "replace").decode()


def encode(value: Any, declared: Any = Any) -> bytes:
    """JSON bytes of a value.

    Raises NotJSON, saying where and of what type the culprit is, and ValueTooLarge over 8 MB.
    """
    if not (type(value) in _SCALARS or declared in _ANYTHING or _plain(declared) is not None):
        try:
            data = _adapter(declared).dump_json(value, warnings="error")
        except Exception as problem:
            raise NotJSON(
                f"{type(value).__name__} does not fit {_type_name(declared)}: {text_of(problem)}"
            ) from None
        if _MANY_DIGITS.search(data) and (too_long := _culprit(json.loads(data))):
            raise NotJSON(too_long)
    else:
        try:
            data = orjson.dumps(value, default=_to_jsonable)
        except TypeError as problem:
            raise NotJSON(_why_not(value, problem)) from None
    within_limit(data)
    if b"null" in data and (problem_at := _not_finite(value)):
        raise NotJSON(problem_at)
    return data


def within_limit(data: bytes) -> bytes:
    """The data itself. Raises ValueTooLarge over 8 MB."""
    if len(data) > MAX_VALUE_BYTES:
        raise ValueTooLarge(
            f"{len(data) / 1e6:.1f} MB of JSON; the limit of a value is 8 MB. "
            "Keep it in a file or a bucket, and return where it is."
        )
    return data


def json_of(document: Any, default: Callable[[Any], Any] | None = None, *, indented: bool = False) -> bytes:
    """JSON bytes of a document to be shown; in it what is stored may lie deeper than `encode` goes."""
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if indented else 0)
    try:
        return orjson.dumps(document, default, option)
    except orjson.JSONEncodeError:
        separators, indent = ((",", ": "), 2) if indented else ((",", ":"), None)
        text = json.dumps(document, default=default, ensure_ascii=False, separators=separators, indent=indent)
        return text.encode()


def decode(data: bytes, declared: Any = Any) -> Any:
    """The value of its declared type. Raises InputError, saying what was expected where."""
    value = orjson.loads(data)
    if type(value) is declared or declared in _ANYTHING:
        return value
    return _typed(value, declared, data)


def convert(value: Any, declared: Any) -> Any:
    """A JSON value as its declared type. Raises InputError, saying what was expected where."""
    return value if declared in _ANYTHING else _typed(value, declared, None)


def _typed(value: Any, declared: Any, data: bytes | None) -> Any:
    expected = _plain(declared)
    if expected is None:
        return _validated(_adapter(declared), data or orjson.dumps(value), value)
    if isinstance(value, expected) and (type(value) is not bool or declared is bool):
        return value
    raise InputError(f"expected {_type_name(declared)}, got {_shown(value)}")


def checked(
    declared: Any, check: Callable[[Any], object], least: int | None = None, most: int | None = None
) -> Any:
    """A type for `returns=`: a value that `check` refuses, by an InputError, does not fit it.

    Nor does a list of fewer than `least` or more than `most` items: that stands in its schema too.
    """
    from pydantic import AfterValidator, Field

    def refused(value: Any) -> Any:
        try:
            check(value)
        except InputError as problem:
            raise ValueError(problem.message) from None
        return value

    return Annotated[declared, Field(min_length=least, max_length=most), AfterValidator(refused)]


def as_text(value: Any) -> str:
    """A value in a prompt: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else encode(value).decode()


def timeout_of(given: Any) -> float | None:
    """A `timeout=` in seconds; None, or infinity, is none. Raises InputError."""
    if given is None or given == math.inf:
        return None
    return seconds_of("timeout", given)


def seconds_of(name: str, given: Any, or_past: bool = False) -> float:
    """An argument in seconds, 0 or more; with `or_past` less is 0. Raises InputError naming it."""
    if or_past and isinstance(given, int | float) and given < 0:
        return 0
    if not isinstance(given, int | float) or not 0 <= given < math.inf:
        raise InputError(f"{name}: expected seconds, 0 or more, got {given!r}")
    return given


def canonical(value: Any) -> bytes:
    """JSON bytes with sorted keys: equal values give equal bytes. Raises NotJSON, as `encode` does."""
    try:
        data = orjson.dumps(value, default=_to_jsonable, option=orjson.OPT_SORT_KEYS)
    except TypeError as problem:
        raise NotJSON(_why_not(value, problem)) from None
    if b"null" in data and (problem_at := _not_finite(value)):
        raise NotJSON(problem_at)
    return data


def secrets_in(value: Any) -> list[str]:
    """What the SecretStr and their like in a value hold, in whatever they are nested."""
    found: list[str] = []
    waiting = [value]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if type(each) in _SCALARS or isinstance(each, type) or id(each) in seen:
            continue
        seen.add(id(each))
        reveal = getattr(each, "get_secret_value", None)
        if callable(reveal):
            secret = reveal()
            found.append(secret.decode("utf-8", "replace") if isinstance(secret, bytes) else str(secret))
        elif isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, list | tuple | set | frozenset):
            waiting += each
        elif hasattr(each, "model_dump"):
            waiting += [*vars(each).values(), getattr(each, "__pydantic_extra__", None)]
        elif hasattr(each, "__dataclass_fields__"):
            waiting += [getattr(each, name, None) for name in each.__dataclass_fields__]
    return found


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def schema_of(declared: Any) -> dict[str, Any]:
    """The JSON schema of a type."""
    return _adapter(declared).json_schema()


class Signature:
    """The typed parameters and result of a function."""

    def __init__(self, fn: Callable[..., Any], skip_first: bool = False) -> None:
        self._signature = inspect.signature(fn)
        hints = _hints(fn)
        parameters = list(self._signature.parameters.values())[1 if skip_first else 0 :]
        self._bare = self._signature.replace(parameters=parameters)
        self.types = {p.name: hints.get(p.name, Any) for p in parameters}
        self.required = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.returns = hints.get("return", Any)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, defaults filled in. Raises InputError naming what is missing or unknown."""
        problems = [f"{name}: unknown" for name in kwargs if name not in self.types]
        given = set(kwargs) | set(list(self.types)[: len(args)])
        problems += [f"{name}: missing" for name in self.required if name not in given]
        if problems:
            raise InputError(f"{'; '.join(problems)} (expected {self.described()})")
        try:
            bound = self._bare.bind(*args, **kwargs)
        except TypeError as problem:
            raise InputError(f"{problem} (expected {self.described()})") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def encode(self, arguments: dict[str, Any]) -> bytes:
        """One JSON object. Raises InputError naming the field that does not fit its type."""
        fields = []
        for name, value in arguments.items():
            try:
                data = encode(value, self.types[name])
                decode(data, self.types[name])
            except (NotJSON, ValueTooLarge, InputError) as problem:
                raise InputError(f"{name}: {problem}") from None
            fields.append(orjson.dumps(name) + b":" + data)
        data = b"{" + b",".join(fields) + b"}"
        if len(data) > MAX_VALUE_BYTES:
            raise InputError(f"{', '.join(arguments)}: {len(data) / 1e6:.1f} MB in all; the limit is 8 MB")
        return data

    def decode(self, data: bytes) -> dict[str, Any]:
        """The arguments, each of its declared type. Raises InputError naming the field."""
        try:
            fields = orjson.loads(data)
        except orjson.JSONDecodeError as problem:
            raise InputError(
                f"expected a JSON object of {self.described()}; this is no JSON: {problem}"
            ) from None
        if not isinstance(fields, dict):
            raise InputError(f"expected a JSON object of {self.described()}, got {_shown(fields)}")
        arguments = {}
        for name, value in fields.items():
            if name not in self.types:
                raise InputError(f"{name}: unknown (expected {self.described()})")
            try:
                arguments[name] = convert(value, self.types[name])
            except InputError as problem:
                raise InputError(f"{name}: {problem}") from None
        if missing := [name for name in self.required if name not in arguments]:
            raise InputError(f"{', '.join(missing)}: missing (expected {self.described()})")
        return arguments

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the parameters, as an object that takes no others."""
        # Before Python 3.12 pydantic knows only this TypedDict; a model would not take any name of a field.
        import typing_extensions  # noqa: PLC0415

        make: Any = typing_extensions.TypedDict
        fields = {n: kind if n in self.required else NotRequired[kind] for n, kind in self.types.items()}
        arguments = make("input", fields)
        arguments.__pydantic_config__ = {"extra": "forbid"}
        schema = schema_of(arguments)
        for name, default in self.defaults.items():
            with contextlib.suppress(DayjobError):  # a default that is no JSON has no place in a schema
                schema["properties"][name]["default"] = orjson.loads(encode(default, self.types[name]))
        return {name: value for name, value in schema.items() if name != "title"}

    def described(self) -> str:
        return ", ".join(f"{name}: {_type_name(kind)}" for name, kind in self.types.items()) or "nothing"


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(fn, include_extras=True)
    except (
        NameError,
        TypeError,
        AttributeError,
    ):  # a builtin, a partial, or a name only type checkers see
        return {}


@lru_cache(maxsize=1024)
def _cached_adapter(declared: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(declared)


def _adapter(declared: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(declared)
    except TypeError:  # unhashable
        return _cached_adapter.__wrapped__(declared)


def _validated(adapter: TypeAdapter[Any], data: bytes, value: Any) -> Any:
    from pydantic import ValidationError

    try:
        return adapter.validate_json(data)
    except ValidationError as problem:
        details = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" if e["loc"] else e["msg"] for e in problem.errors()
        )
        raise InputError(f"{details} (got {_shown(value)})") from None


def _plain(declared: Any) -> tuple[type, ...] | None:
    """The Python types of JSON's own kinds; None for a type that pydantic must check."""
    try:
        return _PLAIN.get(declared)
    except TypeError:  # unhashable: an Annotated with a list in it, say
        return None


def _to_jsonable(value: Any) -> Any:
    if hasattr(value, "get_secret_value"):
        return REDACTED
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError


def _why_not(value: Any, problem: TypeError) -> str:
    try:
        return _culprit(value) or str(problem)
    except RecursionError:
        return f"{type(value).__name__} is nested too deeply, or holds itself"


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _culprit(value: Any, path: str = "") -> str | None:
    """Where in a value the first thing that is no JSON stands, and of what type it is."""
    where = f" at {path}" if path else ""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"a dict key of type {type(key).__name__}{where} is no JSON; keys must be str"
            if found := _culprit(item, f"{path}.{key}" if path else key):
                return found
        return None
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if found := _culprit(item, f"{path}[{index}]"):
                return found
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return f"an int of more than 64 bits{where} cannot be stored; make it a str"
    try:
        orjson.dumps(value, default=_to_jsonable)
    except TypeError:
        if isinstance(value, str):
            return f"a str with half a surrogate pair{where} is no valid UTF-8"
        return f"{type(value).__name__}{where} is no JSON"
    return None


def _not_finite(value: Any, path: str = "") -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}{' at ' + path if path else ''} is no JSON"
    if isinstance(value, dict):
        pairs: Iterable[tuple[str, Any]] = ((f"{path}.{k}" if path else str(k), v) for k, v in value.items())
    elif isinstance(value, (list, tuple)):
        pairs = ((f"{path}[{i}]", v) for i, v in enumerate(value))
    elif hasattr(value, "model_dump"):
        return _not_finite(value.model_dump(), path)
    elif hasattr(value, "__dataclass_fields__"):
        return _not_finite({name: getattr(value, name) for name in value.__dataclass_fields__}, path)
    else:
        return None
    return next((found for place, item in pairs if (found := _not_finite(item, place))), None)


def _type_name(declared: Any) -> str:
    if declared in _ANYTHING:
        return "anything"
    return declared.__name__ if isinstance(declared, type) else str(declared).replace("typing.", "")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
