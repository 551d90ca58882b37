"""Requests made up from the OpenAPI document, and what every answer to them has to be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as oa

from dayjob import Dayjob
from dayjob.server import Settings, create_server

DOCUMENT = create_server(Dayjob(worker=False), Settings()).openapi()
CHECKS = [
    checks.not_a_server_error, oa.status_code_conformance, oa.content_type_conformance,
    oa.response_schema_conformance, oa.response_headers_conformance,
]  # fmt: skip


def requests_of_each(most: int) -> settings:
    """So many requests of each operation, always the same ones."""
    return settings(
        max_examples=most, deadline=None, derandomize=True, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def paths_where(wanted: Callable[[str], bool]) -> dict[str, Any]:
    """The part of the document that is about these paths."""
    return {path: each for path, each in DOCUMENT["paths"].items() if wanted(path)}


def operations(paths: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, verbs in paths.items():
        for verb, each in verbs.items():
            yield f"{verb.upper()} {path}", each


@contextmanager
def served_beside(server: Callable[[], AbstractAsyncContextManager[str]]) -> Iterator[str]:
    """A server on a loop of its own, for clients that are not async."""
    loop = asyncio.new_event_loop()
    told: Future[str] = Future()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            async with server() as url:
                told.set_result(url)
                await stop.wait()
        except BaseException as problem:
            if told.done():
                raise
            told.set_exception(problem)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield told.result(60)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
