"""The answers of the Assistants wire in the OpenAPI document: as the types of its own clients describe them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

SCHEMAS = "#/components/schemas/"
Responses = dict[int | str, dict[str, Any]]


def answers(name: str) -> Responses:
    """That an endpoint answers with an object of this name."""
    return _answer(name, {"$ref": SCHEMAS + name})


def answers_pages_of(name: str) -> Responses:
    """That an endpoint answers with a page of such objects."""
    id = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    properties = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"$ref": SCHEMAS + name}},
        "first_id": id,
        "last_id": id,
        "has_more": {"type": "boolean"},
    }
    return _answer(
        f"A page of {name}", {"type": "object", "properties": properties, "required": list(properties)}
    )


def _answer(description: str, schema: dict[str, Any]) -> Responses:
    return {200: {"description": description, "content": {"application/json": {"schema": schema}}}}


def describe(server: FastAPI) -> None:
    """Adds those types to the document. They take a second to import: it is done when somebody asks for it."""
    plain: Callable[[], dict[str, Any]] = server.openapi

    def openapi() -> dict[str, Any]:
        if server.openapi_schema is None:
            document = plain()
            document["components"]["schemas"] = {**_types(), **document["components"]["schemas"]}
        return plain()

    server.openapi = openapi  # type: ignore[method-assign]


def _types() -> dict[str, Any]:
    from openai.types import beta  # noqa: PLC0415
    from openai.types.beta import threads  # noqa: PLC0415
    from openai.types.beta.threads import runs  # noqa: PLC0415

    models = (
        *(beta.Assistant, beta.AssistantDeleted, beta.Thread, beta.ThreadDeleted),
        *(threads.Message, threads.MessageDeleted, threads.Run, runs.RunStep),
    )
    _, found = models_json_schema(
        [(model, "serialization") for model in models], ref_template=SCHEMAS + "{model}"
    )
    types: dict[str, Any] = found["$defs"]
    return types
