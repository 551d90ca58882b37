"""Whether an answer fits what was asked for: what is taken here, the run must be able to read."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from functools import cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any
from uuid import UUID

from dayjob.errors import InputError
from dayjob.runs import Action
from dayjob.values import convert

FORMATS: dict[str, Any] = {
    "date": date,
    "date-time": datetime,
    "time": time,
    "duration": timedelta,
    "uuid": UUID,
    "ipv4": IPv4Address,
    "ipv4interface": IPv4Interface,
    "ipv4network": IPv4Network,
    "ipv6": IPv6Address,
    "ipv6interface": IPv6Interface,
    "ipv6network": IPv6Network,
}
"""The formats of a JSON schema that pydantic writes, with the type that reads them."""

PYDANTIC_FORMATS = {
    "base64": "Base64Bytes",
    "base64url": "Base64UrlBytes",
    "ipvanyaddress": "IPvAnyAddress",
    "ipvanyinterface": "IPvAnyInterface",
    "ipvanynetwork": "IPvAnyNetwork",
    "uri": "AnyUrl",
    "uuid1": "UUID1",
    "uuid3": "UUID3",
    "uuid4": "UUID4",
    "uuid5": "UUID5",
}
"""The same, of types that are pydantic's own."""


def fitting(action: Action, value: Any) -> Any:
    """The answer as the run can read it. Raises InputError naming the place that does not fit."""
    schema = action.schema or {}
    if schema.get("type") == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON knows no difference between 3.0 and 3
    problem = next(_checker()(schema).iter_errors(value), None)
    if problem is not None and action.kind == "happened":
        raise InputError(f"answer to {action.id!r}: {_of_what_happened(action, value)}")
    if problem is not None:
        place = f"{'.'.join(map(str, problem.path))}: " if problem.path else ""
        raise InputError(f"answer to {action.id!r}: {place}{problem.message}")
    return value


def _of_what_happened(action: Action, value: Any) -> str:
    """What is wrong with an answer that is neither a no nor a yes with its result."""
    schema = action.schema or {}
    wanted = 'expected false, or {"result": …} with what it gave'
    yes = next((each for each in schema.get("anyOf", ()) if "properties" in each), None)
    if value is True:
        return f"a yes alone is not enough, since {action.tool} gives more than null: {wanted}"
    if yes is None or not isinstance(value, dict):
        return f"{wanted}, got {value!r}"
    problem = next(_checker()({**yes, "$defs": schema.get("$defs", {})}).iter_errors(value))
    return f"{'.'.join(map(str, [*problem.path]))}: {problem.message}".removeprefix(": ")


@cache
def _checker() -> Any:
    """A validator's class that knows an int from a float, as types do, and reads formats as pydantic does."""
    import jsonschema
    import pydantic

    formats = jsonschema.FormatChecker(formats=())
    own = {format: getattr(pydantic, name) for format, name in PYDANTIC_FORMATS.items()}
    for format, declared in {**FORMATS, **own}.items():
        formats.checks(format, raises=InputError)(_reads(declared))
    base = jsonschema.Draft202012Validator
    types = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    extend: Any = jsonschema.validators.extend
    strict = extend(base, type_checker=types)
    return lambda schema: strict(schema, format_checker=formats)


def _reads(declared: Any) -> Any:
    def reads(value: object) -> bool:
        if isinstance(value, str):
            convert(value, declared)
        return True

    return reads
