"""Answers in JSON, made of what is JSON already: nothing is validated twice on its way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
from fastapi import Response

from dayjob.kept import Found

T = TypeVar("T")


class JSON(Response):
    """An answer in JSON."""

    media_type = "application/json"

    def __init__(
        self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)


def page_body(found: Found[T], make: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    """A page of a list, as the clients' pagers read it."""
    data = [make(row) for row in found.rows]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": found.more,
    }
