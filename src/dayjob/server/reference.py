"""`/docs`: the OpenAPI document as a page that people read. All of it is here, so that it opens without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse

from dayjob.server.answers import JSON

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent) }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem }
p { margin: .4rem 0 } .lead, .told { opacity: .75 }
details { border-top: 1px solid var(--line) } summary { cursor: pointer; padding: .5rem 0; list-style: none }
summary::-webkit-details-marker { display: none } summary:hover { background: var(--line) }
code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { overflow: auto; padding: .7rem; border: 1px solid var(--line); border-radius: .3rem; max-height: 24rem }
.verb { display: inline-block; width: 4.2rem; font-weight: 700 }
.body { padding: 0 0 1rem 4.2rem } h3 { font-size: .95rem; margin: .9rem 0 .2rem } table { border-collapse: collapse }
td { padding: .15rem 1rem .15rem 0; vertical-align: top } nav a { margin-right: .9rem; white-space: nowrap }
"""


def add_reference(server: FastAPI) -> None:
    """The document and the page of it. Both are made on a thread: the first time takes a second."""
    pages: list[str] = []

    @server.get("/openapi.json", include_in_schema=False)
    async def document() -> JSON:
        return JSON(await run_in_threadpool(server.openapi))

    @server.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        if not pages:
            pages.append(page_of(await run_in_threadpool(server.openapi)))
        return HTMLResponse(pages[0])


def page_of(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document."""
    info, tags = document["info"], document.get("tags", [])
    by_tag: dict[str, list[str]] = {tag["name"]: [] for tag in tags}
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            tag = operation.get("tags", ["Other"])[0]
            by_tag.setdefault(tag, []).append(_operation(verb, path, operation, document))
    told = {tag["name"]: tag.get("description", "") for tag in tags}
    sections = "".join(
        f'<h2 id="{_anchor(name)}">{escape(name)}</h2><p class="told">{escape(told.get(name, ""))}</p>{"".join(made)}'
        for name, made in by_tag.items()
        if made
    )
    contents = " ".join(
        f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name, made in by_tag.items() if made
    )
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><h1>{title}</h1>'
        '<p class="lead">The Assistants API under <code>/v1</code>, Dayjob\'s own under <code>/api</code>. '
        'For programs: <a href="/openapi.json">openapi.json</a>.</p>'
        f"<nav>{contents}</nav>{sections}</html>"
    )


def _operation(verb: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    return (
        f'<details><summary><code><span class="verb">{verb.upper()}</span>{escape(path)}</code> '
        f'<span class="told">{escape(operation.get("summary", ""))}</span></summary><div class="body">'
        f"{''.join(_parts(operation, document))}</div></details>"
    )


def _parts(operation: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    for paragraph in operation.get("description", "").split("\n\n"):
        yield f"<p>{escape(paragraph)}</p>"
    if parameters := operation.get("parameters"):
        rows = "".join(
            f"<tr><td><code>{escape(each['name'])}</code><td>{escape(each['in'])}"
            f"<td>{escape(_kind(each.get('schema', {})))}<td>{escape(each.get('description', ''))}</tr>"
            for each in parameters
        )
        yield f"<h3>Parameters</h3><table>{rows}</table>"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<h3>Request: {escape(kind)}</h3>{_shown(content, document)}"
    for status, answer in operation.get("responses", {}).items():
        for kind, content in answer.get("content", {}).items():
            if not status.startswith(("4", "5")):
                yield f"<h3>Answer {escape(status)}: {escape(kind)}</h3>{_shown(content, document)}"


def _shown(content: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """An example, if there is one, else the fields."""
    schema = _resolved(content.get("schema", {}), document)
    example = content.get("example", next(iter(schema.get("examples", ())), None))
    if example is not None:
        text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
        return f"<pre>{escape(text)}</pre>"
    needed = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'' if name in needed else '?'}<td>{escape(_kind(field))}"
        f"<td>{escape(field.get('description', ''))}</tr>"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<table>{rows}</table>" if rows else f"<p>{escape(_kind(schema))}</p>"


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if len(choices) == 1:
        schema = choices[0]
    if "$ref" in schema:
        found: Mapping[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema


def _kind(schema: Mapping[str, Any]) -> str:
    """A type in a word or two."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_kind, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


def _anchor(name: str) -> str:
    return escape(name.lower().replace(" ", "-"))
