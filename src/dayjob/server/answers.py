"""Answers in JSON, made of what is JSON already: nothing is validated twice on its way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Query, Response

from dayjob.errors import UnknownCursor
from dayjob.kept import Found, Page
from dayjob.values import json_of

T = TypeVar("T")


class JSON(Response):
    """An answer in JSON."""

    media_type = "application/json"

    def __init__(
        self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: Any) -> bytes:
        return json_of(content)


async def _page(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    before: str | None = None,
) -> Page:
    return Page(limit, order == "asc", after or None, before or None)


PageAsked = Annotated[Page, Depends(_page)]


def page_body(found: Found[T], make: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    """A page of a list, as the clients' pagers read it."""
    return listed([make(row) for row in found.rows], found.more)


def page_of(objects: Sequence[dict[str, Any]], page: Page) -> dict[str, Any]:
    """A page of a list that is here as a whole, oldest first. Raises UnknownCursor."""
    ordered = list(objects if page.ascending else reversed(objects))
    places = {each["id"]: place for place, each in enumerate(ordered)}
    for field, cursor in (("after", page.after), ("before", page.before)):
        if cursor is not None and cursor not in places:
            raise UnknownCursor(field, cursor)
    start = 0 if page.after is None else places[page.after] + 1
    end = len(ordered) if page.before is None else places[page.before]
    if page.before is not None and page.after is None:
        start = max(start, end - page.limit)
        return listed(ordered[start:end], start > 0)
    found = ordered[start:end]
    return listed(found[: page.limit], len(found) > page.limit)


def listed(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }
