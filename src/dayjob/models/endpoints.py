"""What the adapters to HTTP endpoints have in common: addresses, errors, answers inside an object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from dayjob.errors import ModelError, ModelRateLimited, ModelTimeout, ModelUnavailable

# --- addresses -----------------------------------------------------------------------------------


def is_http(address: str) -> bool:
    try:
        url = urlsplit(address)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, a bracket left open
        return False


def shown(address: str) -> str:
    """The endpoint, without a password that its address may hold."""
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}"


# --- errors --------------------------------------------------------------------------------------


def passing_error(status: int, where: str, detail: str, headers: Mapping[str, str]) -> ModelError | None:
    """The error that a status stands for if the same request may succeed later, else None."""
    seconds = retry_after(headers)
    if status == 429:
        return ModelRateLimited(f"{where} asks to slow down (429){detail}", retry_after=seconds)
    if status == 408:
        return ModelTimeout(f"{where} gave up waiting (408){detail}", retry_after=seconds)
    if status in (409, 425) or status >= 500:
        return ModelUnavailable(f"{where} failed ({status}){detail}", retry_after=seconds)
    return None


def detail_of(said: str, key: str) -> str:
    """What an endpoint says of its error, shortened, and without the key: some quote it."""
    said = said.strip()
    if len(key) > 3:
        said = said.replace(key, "[the key]")
    if not said or said.startswith("<"):  # a page for people
        return ""
    return f": {said if len(said) <= 500 else said[:499] + '…'}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` (OpenAI's) or `Retry-After`: a number or an HTTP date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        given = headers.get(name)
        seconds = None if given is None else _number(given, unit)
        if seconds is not None:
            return max(0.0, seconds)
    return None


def _number(given: str, unit: float) -> float | None:
    try:
        value = float(given) * unit
        return value if math.isfinite(value) else None
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(given)
    except ValueError:
        return None
    return (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


# --- answers inside an object --------------------------------------------------------------------


def needs_wrapping(schema: Mapping[str, Any] | None) -> bool:
    """Only an object may be the root: a list, a number or a union is asked for inside one."""
    return schema is not None and schema.get("type") != "object"


def wrapped(schema: Mapping[str, Any]) -> dict[str, Any]:
    answer = {key: value for key, value in schema.items() if key != "$defs"}
    return {
        "type": "object",
        "properties": {"answer": answer},
        "required": ["answer"],
        "additionalProperties": False,
        "$defs": schema.get("$defs", {}),
    }


def unwrapped(text: str) -> str:
    try:
        return json.dumps(json.loads(text)["answer"], ensure_ascii=False)
    except (ValueError, TypeError, LookupError):  # cut short, a refusal, or no heed paid
        return text
