"""What a request goes through before an endpoint sees it, and what every answer has."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, StreamingResponse

from dayjob.errors import InputError
from dayjob.server.listening import Listening, bound, listening, url_of
from dayjob.server.middleware import Streams
from tests.server.raw import Raw
from tests.until import until


def echoing(server: FastAPI) -> None:
    @server.post("/v1/echo")
    async def echo(request: Request) -> JSONResponse:
        return JSONResponse({"bytes": len(await request.body()), "who": request.state.caller.who})

    @server.get("/v1/defect")
    async def defect() -> None:
        raise RuntimeError("the secret is 42")

    @server.get("/v1/half")
    async def half() -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            yield "one"
            raise RuntimeError("the secret is 42")

        return StreamingResponse(pieces(), media_type="text/plain")


def error_of(answer: Any) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    return error


# --- who may come in -------------------------------------------------------------------------------


async def test_an_open_server_takes_any_key_or_none_until_a_key_exists(serving: Any) -> None:
    served = await serving()
    http = await served.http()
    assert (await http.get("/v1/models")).status_code == 200
    assert (await http.get("/v1/models", headers={"authorization": "Bearer x"})).status_code == 200
    key = await served.key()
    refused = await http.get("/v1/models")
    assert refused.status_code == 401
    assert error_of(refused)["type"] == "authentication_error"
    wrong = await http.get("/v1/models", headers={"authorization": "Bearer dj_wrong-wrong-wrong"})
    assert wrong.status_code == 401
    assert error_of(wrong)["code"] == "invalid_api_key"
    assert "dj_wrong-wrong" not in wrong.text
    assert (await (await served.http(key)).get("/v1/models")).status_code == 200


async def test_a_revoked_key_opens_nothing_and_leaves_the_door_shut(serving: Any) -> None:
    served = await serving()
    key = await served.key()
    http = await served.http(key)
    [made] = (await http.get("/api/keys")).json()["data"]
    assert (await http.delete(f"/api/keys/{made['id']}")).json() == {"id": made["id"], "revoked": True}
    assert (await http.get("/v1/models")).status_code == 401
    assert (await (await served.http()).get("/v1/models")).status_code == 401


async def test_a_key_revoked_by_another_process_is_refused_soon(serving: Any) -> None:
    served = await serving()
    http = await served.http(await served.key())
    assert (await http.get("/v1/models")).status_code == 200
    [key] = await served.app.store.api_keys()
    await served.app.store.revoke_key(key.id)

    async def refused() -> bool:
        return (await http.get("/v1/models")).status_code == 401

    await until(refused, what="the key to be refused")


@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/docs", "/"])
async def test_what_is_open_needs_no_key(serving: Any, path: str) -> None:
    served = await serving()
    await served.key()
    assert (await (await served.http()).get(path)).status_code < 400


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/api/keys", "/v1/vector_stores", "/docs/x", "//", "/health/"]
)
async def test_everything_else_needs_one(serving: Any, path: str) -> None:
    served = await serving()
    await served.key()
    async with Raw(served.url) as raw:
        await raw.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        assert " 401 " in await raw.head()


async def test_a_body_is_not_read_before_the_key_is_known(serving: Any) -> None:
    served = await serving()
    await served.key()
    async with Raw(served.url) as raw:
        await raw.send(
            b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n"
            b"expect: 100-continue\r\n\r\n"
        )
        head = await raw.head()
    assert " 401 " in head.splitlines()[0]
    assert "connection: close" in head


async def test_an_open_server_answers_no_page_of_another_site(serving: Any) -> None:
    served = await serving(origins=("https://app.example.com",))
    http = await served.http()
    for origin, status in (
        ("https://evil.example.com", 403), ("null", 403), ("https://app.example.com", 200), (served.url, 200),
    ):  # fmt: skip
        assert (await http.get("/v1/models", headers={"origin": origin})).status_code == status, origin
    for host, status in (
        ("rebound.example.com", 403), ("10.0.0.1:8000", 403), ("localhost:1", 200), ("[::1]:1", 200),
    ):  # fmt: skip
        assert (await http.get("/v1/models", headers={"host": host})).status_code == status, host
    key = await served.key()
    known = await served.http(key)
    assert (await known.get("/v1/models", headers={"host": "api.example.com"})).status_code == 200


# --- bodies ----------------------------------------------------------------------------------------


async def test_a_declared_body_over_the_limit_is_refused_at_once(serving: Any) -> None:
    served = await serving(routes=echoing, max_body_bytes=1_000)
    http = await served.http()
    kind = {"content-type": "application/json"}
    assert (await http.post("/v1/echo", content=b"1" * 1_000, headers=kind)).json()["bytes"] == 1_000
    refused = await http.post("/v1/echo", content=b"1" * 1_001, headers=kind)
    assert refused.status_code == 413
    assert "1,000 bytes" in error_of(refused)["message"]
    assert refused.headers["connection"] == "close"


async def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(serving: Any) -> None:
    served = await serving(routes=echoing, max_body_bytes=1_000)
    async with Raw(served.url) as raw:
        await raw.send(
            b"POST /v1/echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            await raw.send(b"190\r\n" + b"1" * 400 + b"\r\n")
        assert " 413 " in await raw.head()


async def test_a_client_that_sends_on_still_reads_its_refusal(serving: Any) -> None:
    served = await serving(routes=echoing, max_body_bytes=1_000)
    http = await served.http()
    refused = await http.post(
        "/v1/echo", content=b"1" * 5_000_000, headers={"content-type": "application/json"}
    )
    assert refused.status_code == 413


async def test_a_body_that_trickles_in_is_dropped(serving: Any) -> None:
    served = await serving(routes=echoing, body_seconds=0.3)
    begun = time.monotonic()
    async with Raw(served.url) as raw:
        await raw.send(
            b"POST /v1/echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 1000\r\n\r\n"
        )
        trickle = asyncio.create_task(_trickle(raw))
        head = await raw.head()
        trickle.cancel()
        await asyncio.gather(trickle, return_exceptions=True)
        assert " 408 " in head
        assert "connection: close" in head
        await raw.rest()
    assert time.monotonic() - begun < 10


async def _trickle(raw: Raw) -> None:
    while True:
        await raw.send(b"1")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
async def test_a_body_that_is_not_called_json_is_refused(serving: Any, kind: str) -> None:
    served = await serving(routes=echoing)
    headers = {"content-type": kind} if kind else {}
    refused = await (await served.http()).post("/v1/echo", content=b"{}", headers=headers)
    assert refused.status_code == 415
    assert "application/json" in error_of(refused)["message"]


@pytest.mark.parametrize("path", ["/v1/echo", "/v1/files"])
async def test_a_compressed_body_is_refused_and_not_inflated(serving: Any, path: str) -> None:
    served = await serving(routes=echoing)
    http = await served.http()
    small = gzip.compress(b'{"model":"' + b"m" * 1_000_000 + b'"}')
    for encoding in ("gzip", "GZIP", "deflate", "br", "gzip, identity"):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        refused = await http.post(path, content=small, headers=headers)
        assert refused.status_code == 415
        assert error_of(refused)["message"].startswith("Content-Encoding: send the body as it is, not as")
    plain = {"content-type": "application/json", "content-encoding": "identity"}
    assert (await http.post("/v1/echo", content=b"{}", headers=plain)).json()["bytes"] == 2


async def test_a_request_without_a_body_needs_no_type(serving: Any) -> None:
    served = await serving(routes=echoing)
    assert (await (await served.http()).post("/v1/echo")).json()["bytes"] == 0


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe{}", b"[" * 100_000, b"", b"null", b'"text"'])
async def test_json_that_is_none_is_a_400_in_the_one_form(serving: Any, body: bytes) -> None:
    served = await serving()
    kind = {"content-type": "application/json"}
    refused = await (await served.http()).post("/api/keys", content=body, headers=kind)
    assert refused.status_code == 400
    assert error_of(refused)["type"] == "invalid_request_error"


# --- answers ---------------------------------------------------------------------------------------


async def test_every_answer_has_an_id_and_no_server_name(serving: Any) -> None:
    served = await serving(routes=echoing)
    http = await served.http()
    ids = set()
    for path in ("/health", "/v1/models", "/v1/nothing", "/v1/defect", "/docs"):
        answer = await http.get(path)
        ids.add(answer.headers["x-request-id"])
        assert "server" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert len(ids) == 5


async def test_a_defect_is_logged_and_answered_without_a_trace(
    serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serving(routes=echoing)
    answer = await (await served.http()).get("/v1/defect")
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert "42" not in answer.text
    assert answer.headers["x-request-id"] in answer.text
    assert "the secret is 42" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text


async def test_a_defect_in_the_middle_of_an_answer_breaks_the_connection(serving: Any) -> None:
    served = await serving(routes=echoing)
    async with Raw(served.url) as raw:
        await raw.send(b"GET /v1/half HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert " 200 " in await raw.head()
        assert not (await raw.rest()).endswith(b"0\r\n\r\n")


async def test_pages_of_the_origins_may_read_errors_too(serving: Any) -> None:
    served = await serving(origins=("https://app.example.com",))
    key = await served.key()
    http = await served.http()
    origin = {"origin": "https://app.example.com"}
    asked = await http.options(
        "/v1/models", headers={**origin, "access-control-request-method": "GET",
                               "access-control-request-headers": "authorization"},
    )  # fmt: skip
    assert asked.status_code == 200
    for headers in ({}, {"authorization": f"Bearer {key}"}):
        answer = await http.get("/v1/models", headers={**origin, **headers})
        assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    other = await http.get("/v1/models", headers={"origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in other.headers


async def test_a_head_that_is_too_large_or_broken_is_refused(serving: Any) -> None:
    served = await serving()
    for head in (b"x: " + b"a" * 200_000, b"no colon at all"):
        async with Raw(served.url) as raw:
            await raw.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n\r\n")
            assert " 400 " in await raw.head()
    assert (await (await served.http()).get("/health")).json() == {"status": "ok"}


async def test_a_head_that_comes_while_another_request_is_answered_has_its_limit_too(serving: Any) -> None:
    served = await serving(routes=waiting)
    stream = b"GET /v1/stream HTTP/1.1\r\nhost: localhost\r\n"
    trailer = b"transfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\n2\r\n{}\r\n0\r\n"
    for begun in (stream + b"\r\n" + b"GET /health HTTP/1.1\r\nx: ", stream + trailer + b"x: "):
        async with Raw(served.url) as raw:
            await raw.send(begun)
            with pytest.raises(ConnectionError):
                await _send_on(raw)


async def _send_on(raw: Raw) -> None:
    for _ in range(100):
        await raw.send(b"a" * 10_000)
        await asyncio.sleep(0.001)


async def test_what_stands_behind_a_body_is_no_header(serving: Any) -> None:
    served = await serving(routes=echoing)
    async with Raw(served.url) as raw:
        await raw.send(
            b"POST /v1/echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\ncontent-encoding: gzip\r\n\r\n"
        )
        assert " 200 " in await raw.head()


async def test_an_answer_ends_when_its_client_goes_though_a_next_request_came(serving: Any) -> None:
    served = await serving(routes=waiting)
    with bound("127.0.0.1", 0) as listener:
        async with listening(served.server, listener) as opened, Raw(url_of(listener)) as raw:
            await raw.send(b"GET /v1/ticking HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert " 200 " in await raw.head()
            await raw.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await asyncio.sleep(0.05)
            raw.writer.transport.abort()
            tasks = opened._uvicorn.server_state.tasks
            await until(lambda: not tasks, 5)


async def test_a_client_that_leaves_little_lying_is_let_go_of_too(serving: Any) -> None:
    served = await serving(routes=waiting)
    served.server.state.stalled_seconds = 0.3
    with bound("127.0.0.1", 0) as listener, socket.socket() as client:
        async with listening(served.server, listener) as opened:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            client.connect(listener.getsockname())
            open_now = opened._uvicorn.server_state.connections
            await until(lambda: len(open_now) == 1)
            (protocol,) = open_now
            for _ in range(10_000):  # until no more than a little goes into the system's own buffers
                client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
                await asyncio.sleep(0.001)
                if protocol.transport.get_write_buffer_size():
                    break
            client.sendall(b"no request\r\n\r\n")
            await until(lambda: not open_now, 5)


async def test_a_connection_that_does_not_say_what_it_wants_is_closed(serving: Any) -> None:
    served = await serving()
    with bound("127.0.0.1", 0) as listener:
        async with listening(served.server, listener, head_seconds=0.2) as opened:
            for begun in (b"", b"GET /health HTTP/1.1\r\nx: "):
                async with Raw(url_of(listener)) as raw:
                    await raw.send(begun)
                    assert await raw.rest() == b""
            async with Raw(url_of(listener)) as raw:  # kept alive for longer than a head may take
                await raw.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert " 200 " in await raw.head()
                await asyncio.sleep(0.4)
                await raw.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert await raw.reader.readuntil(b" 200 ")
            await opened.stop()


def test_of_two_that_take_an_address_at_once_one_is_told() -> None:
    server = FastAPI()
    server.state.streams, server.state.stalled_seconds = Streams(), 1.0
    with bound("127.0.0.1", 0) as first, bound("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        with pytest.raises(InputError, match=r"--port: .* in use"):
            asyncio.run(Listening(server, second, 1.0).start())


# --- stopping --------------------------------------------------------------------------------------


def waiting(server: FastAPI) -> None:
    @server.get("/v1/stream")
    async def stream() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            yield "event: one\ndata: {}\n\n"
            await asyncio.Event().wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    @server.get("/v1/ticking")
    async def ticking() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            while True:
                yield ": still here\n\n"
                await asyncio.sleep(0.02)

        return StreamingResponse(events(), media_type="text/event-stream")

    @server.get("/v1/forever")
    async def forever() -> None:
        await asyncio.Event().wait()


async def test_open_streams_end_cleanly_when_the_server_stops(serving: Any) -> None:
    served = await serving(routes=waiting)
    with bound("127.0.0.1", 0) as listener:
        async with listening(served.server, listener) as opened, Raw(url_of(listener)) as raw:
            await raw.send(b"GET /v1/stream HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert "text/event-stream" in await raw.head()
            assert await raw.reader.readuntil(b"\n\n\r\n")
            await opened.stop()
            assert await raw.rest() == b"0\r\n\r\n"


async def test_a_request_that_waits_is_told_to_come_again_when_the_server_stops(serving: Any) -> None:
    served = await serving(routes=waiting)
    with bound("127.0.0.1", 0) as listener:
        async with listening(served.server, listener) as opened, Raw(url_of(listener)) as raw:
            await raw.send(b"GET /v1/forever HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await asyncio.sleep(0.1)
            await opened.stop()
            head = await raw.head()
    assert " 503 " in head
    assert "retry-after" in head
