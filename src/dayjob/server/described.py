"""The answers of the Assistants wire in the OpenAPI document: as the types of its own clients describe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

SCHEMAS = "#/components/schemas/"
Responses = dict[int | str, dict[str, Any]]
TAGS = {
    "Assistants": "What an agent is told and may use, kept under an id.",
    "Threads": "Conversations that outlive a run.",
    "Messages": "What is said in a thread.",
    "Assistant runs": "Runs of an assistant on a thread.",
    "Run steps": "What a run said, and which tools it called.",
    "Files": "Uploaded files.",
    "Models": "The names that a client may give a model here.",
    "Jobs": "What runs can be made of.",
    "Runs": "Runs of any job.",
    "Steps": "The journal of a run: read, and followed.",
    "Actions": "What runs wait for from people and other systems.",
    "Administration": "Keys, and who did what. For keys whose role is admin.",
    "Health": "Whether this server can do its work.",
}
"""The parts of the document, in their order: the Assistants wire, then Dayjob's own API, then the server's."""
STREAM_EVENT = {
    "type": "object",
    "description": "One event of the stream; `data` is JSON.",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
WIRE_STREAM_EXAMPLE = (
    'id: -1\nevent: thread.run.created\ndata: {"id":"run_06bq…","object":"thread.run","status":"queued"}\n\n'
    "id: 0.in_progress~5\nevent: thread.message.delta\n"
    'data: {"id":"msg_71c0…","object":"thread.message.delta","delta":{"content":[{"index":0,"type":"text",'
    '"text":{"value":"It is","annotations":[]}}]}}\n\n'
    "event: done\ndata: [DONE]\n\n"
)


def answers(name: str) -> Responses:
    """That an endpoint answers with an object of this name."""
    return _answer(name, {"$ref": SCHEMAS + name})


def streams(example: str = WIRE_STREAM_EXAMPLE) -> Responses:
    """That an endpoint answers with server-sent events."""
    content = {"text/event-stream": {"schema": STREAM_EVENT, "example": example}}
    return {200: {"description": "Server-sent events", "content": content}}


def answers_or_streams(name: str) -> Responses:
    """That an endpoint answers with an object, or, asked with `stream: true`, with server-sent events."""
    content = {**answers(name)[200]["content"], **streams()[200]["content"]}
    return {200: {"description": f"{name}, or with `stream: true` server-sent events", "content": content}}


def answers_pages_of(name: str) -> Responses:
    """That an endpoint answers with a page of such objects."""
    id = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    return _list(name, {"first_id": id, "last_id": id, "has_more": {"type": "boolean"}})


def answers_all(name: str) -> Responses:
    """That an endpoint answers with all such objects."""
    return _list(name, {})


def gives(model: Any, example: Any, status: int = 200) -> Responses:
    """How an answer of Dayjob's own API is documented; it is not checked against that."""
    return {status: {"model": model, "content": {"application/json": {"example": example}}}}


def _list(name: str, more: dict[str, Any]) -> Responses:
    data = {"type": "array", "items": {"$ref": SCHEMAS + name}}
    properties = {"object": {"const": "list"}, "data": data, **more}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return _answer(f"A page of {name}" if more else f"All {name}", schema)


def _answer(description: str, schema: dict[str, Any]) -> Responses:
    return {200: {"description": description, "content": {"application/json": {"schema": schema}}}}


def describe(server: FastAPI) -> None:
    """Adds those types to the document. They take a second to import: it is done when somebody asks for it."""
    plain: Callable[[], dict[str, Any]] = server.openapi

    def openapi() -> dict[str, Any]:
        if server.openapi_schema is None:
            document = plain()
            known = document["components"]["schemas"]
            document["components"]["schemas"] = {**_types(set(known)), **known}
        return plain()

    server.openapi = openapi  # type: ignore[method-assign]


def _types(taken: Set[str]) -> dict[str, Any]:
    """By name: what the clients' own types are, under names that are not taken."""
    from openai import types  # noqa: PLC0415
    from openai.types import beta  # noqa: PLC0415
    from openai.types.beta import threads  # noqa: PLC0415
    from openai.types.beta.threads import runs  # noqa: PLC0415

    models = (
        *(beta.Assistant, beta.AssistantDeleted, beta.Thread, beta.ThreadDeleted),
        *(threads.Message, threads.MessageDeleted, threads.Run, runs.RunStep),
        *(types.FileObject, types.FileDeleted, types.Model),
    )
    _, found = models_json_schema(
        [(model, "serialization") for model in models], ref_template=SCHEMAS + "{model}"
    )
    defined: dict[str, Any] = found["$defs"]
    names = {name: _plain(name, taken) for name in defined}
    assert len(set(names.values())) == len(names)
    return {names[name]: _renamed(schema, names) for name, schema in defined.items()}


def _plain(name: str, taken: Set[str]) -> str:
    """A type's name, without the path that parts it from its namesakes: `…__run__Usage` is `RunUsage`."""
    *path, own = name.split("__")
    if path:
        module = "".join(part.capitalize() for part in path[-1].split("_"))
        own = module if module.endswith(own) and module != own else module + own
    return f"{own}Object" if own in taken else own


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """A schema, with what it refers to under other names."""
    if isinstance(schema, list):
        return [_renamed(each, names) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _renamed(value, names) for key, value in schema.items()}
    refers = made.get("$ref")
    if isinstance(refers, str) and refers.startswith(SCHEMAS):
        made["$ref"] = SCHEMAS + names[refers.removeprefix(SCHEMAS)]
    if isinstance(mapping := made.get("mapping"), dict):
        made["mapping"] = {
            tag: SCHEMAS + names[each.removeprefix(SCHEMAS)]
            for tag, each in mapping.items()
            if isinstance(each, str)
        }
    return made
