"""A request as Anthropic's Messages API has it.

Conversations and options come in the form of Chat Completions. Where the two differ:

- System messages, wherever they stand, come first. Results of tools that stand together become one
  message, with what the user says after them.
- `max_tokens` must be sent; without one it is `MOST_TOKENS`, or what an old model takes.
- A schema, by `returns=` or `response_format`, goes as `output_config.format`, which knows a part of
  JSON Schema: a bound outside it (`minLength`, `maximum`, …) is told in the description. What it
  cannot express (an open object, a schema that contains itself, too many optional properties) and
  `{"type": "json_object"}` are asked for in words. A forced tool would do it too, but hides the other
  tools, and the newest models refuse one.
- `temperature` is cut to 1. It is left out at 1, as is `top_p`: models since Opus 4.7 take no other value.
- `tool_choice`, `parallel_tool_calls` and `stop` are translated. `reasoning_effort` is the effort;
  "minimal" is "low", "none" turns thinking off. All other options are passed on as they are.
- Models since Claude 5 think unless told not to, and are billed for it as output. Thoughts are no
  part of a reply and are not sent back, which `thinking={"type": "adaptive"}` allows. "enabled", the
  way of old models, does not between a call of a tool and the answer: it is left out there.
- What stays the same from call to call is marked for the cache: the tools and system messages, and,
  in a conversation that goes on or has tools, its end now and the one before.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from dayjob.errors import ModelRefused
from dayjob.models import Message, ModelRequest
from dayjob.models.endpoints import needs_wrapping, wrapped

Json = dict[str, Any]

MOST_TOKENS = 32_000
MOST_TOKENS_OF_OLD = {"claude-3-5-": 8_192, "claude-3-haiku": 4_096, "claude-3-opus": 4_096}

EFFORTS = {"minimal": "low"}


def body_of(request: ModelRequest, model: str) -> tuple[Json, bool]:
    """The body to send, and whether the answer to it comes inside an object. Raises ModelRefused."""
    try:
        return _body(request, model)
    except (LookupError, TypeError, AttributeError) as problem:
        raise ModelRefused(
            "a message, tool or option does not have the form that Chat Completions gives it "
            f"({type(problem).__name__}: {problem})"
        ) from None


def _body(request: ModelRequest, model: str) -> tuple[Json, bool]:
    shape = _shape(request)
    system, messages = _conversation(request.messages)
    if shape.words:
        system.append({"type": "text", "text": shape.words})
    tools = [_tool(tool) for tool in request.tools]
    body = _options(request.options, bool(tools))
    if _is_amid_calls(messages) and body.get("thinking", {}).get("type") == "enabled":
        del body["thinking"]
    if shape.format is not None:
        body["output_config"] = {**body.get("output_config", {}), "format": shape.format}
    if tools:
        body["tools"] = tools
    if system:
        body["system"] = system
    old = (most for name, most in MOST_TOKENS_OF_OLD.items() if model.startswith(name))
    most = request.max_tokens or body.get("max_tokens") or next(old, MOST_TOKENS)
    _mark_for_cache(system or tools, messages, goes_on=bool(tools))
    return {**body, "model": model, "messages": messages, "max_tokens": most, "stream": True}, shape.wrapped


# --- the conversation ------------------------------------------------------------------------------


def _conversation(messages: Sequence[Message]) -> tuple[list[Json], list[Json]]:
    """The system's blocks, and the messages, of which no two from the same side follow each other."""
    system: list[Json] = []
    turns: list[Json] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            system += _blocks(message.get("content"))
            continue
        role, blocks = ("user", _said_to(message)) if message["role"] != "assistant" else _said_by(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    for turn in turns:  # results of tools must come first
        turn["content"].sort(key=lambda block: turn["role"] == "user" and block["type"] != "tool_result")
    return system, turns


def _said_to(message: Message) -> list[Json]:
    blocks = _blocks(message.get("content"))
    if message["role"] != "tool":
        return blocks
    result = {"type": "tool_result", "tool_use_id": _id(message["tool_call_id"])}
    return [{**result, "content": blocks} if blocks else result]


def _said_by(message: Message) -> tuple[str, list[Json]]:
    calls = [
        {
            "type": "tool_use",
            "id": _id(call["id"]),
            "name": call["function"]["name"],
            "input": _input(call["function"].get("arguments")),
        }
        for call in message.get("tool_calls") or ()
    ]
    return "assistant", [*_blocks(message.get("content")), *calls]


def _blocks(content: Any) -> list[Json]:
    """The parts of a message; a text of nothing but white space, which the API refuses, is none."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    blocks = [_block(part) for part in parts]
    return [block for block in blocks if block["type"] != "text" or block["text"].strip()]


def _block(part: Mapping[str, Any]) -> Json:
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)}} if url[:5].lower() == "data:":
            return {"type": "image", "source": _data(url)}
        case {"type": "image_url", "image_url": {"url": url}}:
            return {"type": "image", "source": {"type": "url", "url": url}}
        case {"type": "refusal", "refusal": text}:
            return {"type": "text", "text": text}
    return dict(part)


def _data(url: str) -> Json:
    """The image in a `data:` URL (RFC 2397)."""
    head, _, data = url[5:].partition(",")
    kind, *parameters = head.split(";")
    if "base64" in parameters:
        encoded = re.sub(r"\s", "", unquote_to_bytes(data).decode("ascii", "replace"))
    else:
        encoded = base64.b64encode(unquote_to_bytes(data)).decode()
    return {"type": "base64", "media_type": kind.strip().lower(), "data": encoded}


def _input(arguments: str | None) -> Json:
    """The arguments of a call as the object they must be here, though a model may have said anything."""
    try:
        given = json.loads(arguments or "{}")
    except ValueError:
        given = arguments
    return given if isinstance(given, dict) else {"arguments": given}


def _id(call_id: str) -> str:
    """An id made by another provider, in the characters that ids have here."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", call_id) or "_"


def _is_amid_calls(messages: Sequence[Json]) -> bool:
    return bool(messages) and any(block["type"] == "tool_result" for block in messages[-1]["content"])


def _mark_for_cache(first: list[Json], messages: list[Json], *, goes_on: bool) -> None:
    """Marks the end of what comes first, and of the last two things said to the model.

    The earlier of those is where the previous call ended: what is cached is looked for only some
    blocks back from a mark. A single question is not marked, since writing it to the cache costs more.
    """
    said = [turn["content"] for turn in messages if turn["role"] == "user"]
    for blocks in (first, *(said[-2:] if goes_on or len(messages) > 1 else ())):
        if blocks:
            blocks[-1] = {**blocks[-1], "cache_control": {"type": "ephemeral"}}


def _tool(tool: Mapping[str, Any]) -> Json:
    function = tool.get("function")
    if function is None:  # one of the API's own
        return dict(tool)
    given = {"description": function["description"]} if function.get("description") else {}
    schema = {"type": "object", "properties": {}, **function.get("parameters", {})}
    return {"name": function["name"], **given, "input_schema": schema}


# --- the options -----------------------------------------------------------------------------------


def _options(options: Mapping[str, Any], has_tools: bool) -> Json:
    given = {name: value for name, value in options.items() if value is not None}
    stop = given.pop("stop", None)
    effort = given.pop("reasoning_effort", None)
    temperature = given.pop("temperature", 1)
    top_p = given.pop("top_p", 1)
    most = given.pop("max_completion_tokens", None)
    choice = _tool_choice(given.pop("tool_choice", None), given.pop("parallel_tool_calls", True))
    given.pop("response_format", None)
    body: Json = {}
    if stop:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    if effort == "none":
        body["thinking"] = {"type": "disabled"}
    elif effort is not None:
        body["output_config"] = {"effort": EFFORTS.get(effort, effort)}
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if value < 1:
            body[name] = max(value, 0)
    if most is not None:
        body["max_tokens"] = most
    if choice is not None and has_tools:
        body["tool_choice"] = choice
    output = {**body.get("output_config", {}), **given.get("output_config", {})}
    return {**body, **given, **({"output_config": output} if output else {})}


def _tool_choice(choice: Any, parallel: bool) -> Json | None:
    match choice:
        case None | "auto":
            chosen = {"type": "auto"}
        case "required":
            chosen = {"type": "any"}
        case {"type": "function", "function": {"name": name}}:
            chosen = {"type": "tool", "name": name}
        case Mapping():
            chosen = dict(choice)
        case _:
            chosen = {"type": choice}
    if not parallel and chosen["type"] != "none":
        return {**chosen, "disable_parallel_tool_use": True}
    return None if choice is None else chosen


# --- the shape of the answer -----------------------------------------------------------------------

TOLD = {
    *("type", "enum", "const", "anyOf", "oneOf", "$ref", "$defs"),
    *("title", "description", "properties", "required", "additionalProperties", "items"),
}
HINTS = {
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems", "default"),
    *("examples", "deprecated"),
}
FORMATS = {
    *("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"),
}
MOST_OPTIONAL = 24
MOST_UNIONS = 16


@dataclass(frozen=True, slots=True)
class _Shape:
    """What form the answer is to have: told by a `format`, or in `words` where that cannot say it."""

    format: Json | None = None
    words: str = ""
    wrapped: bool = False


def _shape(request: ModelRequest) -> _Shape:
    schema = request.schema
    if schema is None:
        match request.options.get("response_format"):
            case {"type": "json_schema", "json_schema": {"schema": asked}}:
                schema = asked
            case {"type": "json_object"}:
                return _Shape(words="Answer with nothing but one JSON object, without a code fence.")
    if schema is None:
        return _Shape()
    inside = needs_wrapping(schema)
    try:
        told = _told(wrapped(schema) if inside else schema)
        _check(told)
    except ValueError:
        asked = json.dumps(schema, ensure_ascii=False)
        return _Shape(
            words=f"Answer with nothing but JSON, without a code fence, that fits this schema: {asked}"
        )
    return _Shape({"type": "json_schema", "schema": told}, wrapped=inside)


def _told(node: Any) -> Json:
    """The schema in the part of JSON Schema that answers can be held to. Raises ValueError outside it.

    https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations
    """
    if not isinstance(node, Mapping) or not node.keys() <= TOLD | HINTS | {"discriminator"}:
        raise ValueError("a keyword that cannot be told")
    if isinstance(node.get("type"), list):
        each = [{**node, "type": kind} for kind in node["type"]]
        return {"anyOf": [_told(one) for one in each]}
    told: Json = {key: node[key] for key in ("title", "type") if key in node}
    hints = {key: node[key] for key in sorted(HINTS & node.keys())}
    if node.get("$defs"):
        told["$defs"] = {name: _told(each) for name, each in node["$defs"].items()}
    if "$ref" in node:
        told["anyOf"] = [{"$ref": _own(node["$ref"])}]  # a reference must stand alone
    for key in ("anyOf", "oneOf"):
        if key in node:
            told["anyOf"] = [_told(each) for each in node[key]]
    for key in ("enum", "const"):
        if key in node:
            told[key] = _plain(node[key])
    if node.get("type") == "object":
        if node.get("additionalProperties", "properties" not in node) is not False:
            raise ValueError("an open object")
        told["properties"] = {name: _told(each) for name, each in node.get("properties", {}).items()}
        told["required"] = list(node.get("required", ()))
        told["additionalProperties"] = False
    elif node.get("type") == "array":
        told["items"] = _told(node.get("items"))
        if hints.get("minItems") in (0, 1):
            told["minItems"] = hints.pop("minItems")
    elif node.get("type") == "string" and hints.get("format") in FORMATS:
        told["format"] = hints.pop("format")
    if not told.keys() & {"type", "anyOf", "enum", "const"}:
        raise ValueError("a value of any type")
    said = [node["description"]] if node.get("description") else []
    said += [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in hints.items()]
    return {**told, "description": "; ".join(said)} if said else told


def _own(reference: str) -> str:
    if not reference.startswith("#/$defs/"):
        raise ValueError("a reference to elsewhere")
    return reference


def _plain(values: Any) -> Any:
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, (list, dict)):
            raise ValueError("a choice among values that are not plain")
    return values


def _check(told: Json) -> None:
    """Raises ValueError for what is too much, or contains itself."""
    objects = [node for node in _nodes(told) if "properties" in node]
    values = [value for node in objects for value in node["properties"].values()]
    if sum(len(node["properties"].keys() - set(node["required"])) for node in objects) > MOST_OPTIONAL:
        raise ValueError("too many optional properties")
    if sum(len(value.get("anyOf", ())) > 1 for value in values) > MOST_UNIONS:
        raise ValueError("too many unions")
    definitions = told.get("$defs", {})
    inside = {name: {*_references(each)} for name, each in definitions.items()}
    while leaves := [name for name, others in inside.items() if not others & inside.keys()]:
        for name in leaves:
            del inside[name]
    if inside or any(other not in definitions for other in _references(told)):
        raise ValueError("a schema that contains itself, or what is not defined")


def _references(told: Json) -> Iterator[str]:
    for node in _nodes(told):
        if "$ref" in node:
            yield node["$ref"].removeprefix("#/$defs/")


def _nodes(told: Json) -> Iterator[Json]:
    yield told
    inner: Iterable[Json] = (
        *told.get("properties", {}).values(),
        *told.get("$defs", {}).values(),
        *told.get("anyOf", ()),
        *((told["items"],) if "items" in told else ()),
    )
    for each in inner:
        yield from _nodes(each)
