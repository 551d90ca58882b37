"""The openai adapter against a server that speaks the wire, misspeaks it, and hangs up."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from dayjob.errors import (
    ModelError,
    ModelNotConfigured,
    ModelRateLimited,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
)
from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage, open_model
from dayjob.models.openai import OpenAI
from tests.until import until
from tests.wire import (
    Answer,
    Wire,
    calls,
    chunk,
    event,
    fails,
    garbage,
    hangs,
    says,
    stream,
)

KEY = "sk-test-0123456789"
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Hello?"}]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("API_KEY", "BASE_URL", "ORG_ID", "PROJECT_ID", "CUSTOM_HEADERS")
    for name in (*(f"OPENAI_{name}" for name in names), "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def ask(**more: Any) -> ModelRequest:
    return ModelRequest("openai:gpt-test", QUESTION, **more)


async def reply_to(
    answer: Answer, request: ModelRequest | None = None, **options: Any
) -> tuple[ModelReply, dict[str, Any]]:
    """The reply, and the body that went over the wire."""
    async with Wire(answer) as wire:
        model = OpenAI("gpt-test", **{"base_url": wire.url, "api_key": KEY, **options})
        try:
            reply = await model.reply(request or ask(), lambda _: None)
        finally:
            await model.close()
        return reply, wire.requests[0].body


async def error_of(answer: Answer, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await reply_to(answer, **options)
    assert KEY not in str(caught.value)
    return caught.value


class TestRequest:
    async def test_body_is_what_was_asked_and_a_stream_with_usage(self) -> None:
        request = ask(
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
            options={"temperature": 0.5, "top_k": 3, "stream": False},
        )
        _, body = await reply_to(says("Hi"), request)
        assert body == {
            "model": "gpt-test",
            "messages": QUESTION,
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": request.tools,
            "temperature": 0.5,
            "top_k": 3,
        }

    async def test_image_as_data_is_sent_as_it_is(self) -> None:
        image = {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}
        messages = [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]
        _, body = await reply_to(says("A dot."), ModelRequest("openai:gpt-test", messages))
        assert body["messages"] == messages

    async def test_key_and_address_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Wire(says("Hi")) as wire:
            monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
            monkeypatch.setenv("OPENAI_BASE_URL", wire.url)
            model = open_model("openai:gpt-test")
            await model.reply(ask(), lambda _: None)
            await model.close()
        assert model.name == "openai:gpt-test"
        assert wire.requests[0].path == "/v1/chat/completions"
        assert wire.requests[0].headers["authorization"] == f"Bearer {KEY}"

    async def test_organization_project_and_further_headers_come_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: yes\nOpenAI-Project: proj-2")
        async with Wire(says("Hi")) as wire:
            model = OpenAI("gpt-test", base_url=wire.url, api_key=KEY)
            await model.reply(ask(), lambda _: None)
            await model.close()
        headers = wire.requests[0].headers
        assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "proj-2")
        assert headers["x-gateway"] == "yes"
        assert headers["authorization"] == f"Bearer {KEY}"
        assert headers["content-type"] == "application/json"
        assert headers["user-agent"].startswith("dayjob/")

    async def test_redirect_is_followed_with_the_body_and_the_key(self) -> None:
        moved = Answer(status=307, headers={"location": "/v2/chat/completions"})
        async with Wire(moved, says("Hi")) as wire:
            model = OpenAI("gpt-test", base_url=wire.url, api_key=KEY)
            assert (await model.reply(ask(), lambda _: None)).text == "Hi"
            await model.close()
        first, second = wire.requests
        assert (second.path, second.body) == ("/v2/chat/completions", first.body)
        assert second.headers["authorization"] == f"Bearer {KEY}"

    async def test_request_without_a_json_is_refused_before_it_is_sent(self) -> None:
        async with Wire(says("Hi")) as wire:
            model = OpenAI("gpt-test", base_url=wire.url)
            with pytest.raises(ModelRefused, match="cannot be written as JSON"):
                await model.reply(ask(options={"temperature": float("nan")}), lambda _: None)
            await model.close()
            assert wire.requests == []

    async def test_compatible_endpoint_needs_no_key(self) -> None:
        async with Wire(says("Hi")) as wire:
            model = OpenAI("gpt-test", base_url=wire.url)
            await model.reply(ask(), lambda _: None)
            await model.close()
        assert "authorization" not in wire.requests[0].headers

    async def test_compatible_endpoint_is_told_max_tokens_and_a_schema_that_is_not_strict(
        self,
    ) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "string"}}, "title": "An answer!"}
        _, body = await reply_to(says("{}"), ask(max_tokens=7, schema=schema))
        assert body["max_tokens"] == 7
        assert "max_completion_tokens" not in body
        assert body["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "An_answer_", "schema": schema, "strict": False},
        }

    async def test_name_and_password_in_the_address_go_in_the_place_of_the_key(self) -> None:
        async with Wire(says("Hi")) as wire:
            model = OpenAI("gpt-test", base_url=wire.url.replace("//", "//me:secret@"), api_key=KEY)
            await model.reply(ask(), lambda _: None)
            await model.close()
        assert wire.requests[0].headers["authorization"] == "Basic bWU6c2VjcmV0"

    async def test_connections_are_kept_for_the_next_request(self) -> None:
        async with Wire(says("Hi")) as wire:
            model = OpenAI("gpt-test", base_url=wire.url)
            for _ in range(3):
                await model.reply(ask(), lambda _: None)
            assert (len(wire.requests), wire.connections) == (3, 1)
            await model.close()

    def test_model_can_be_used_in_one_event_loop_after_another(self) -> None:
        model = OpenAI("gpt-test", base_url="http://127.0.0.1:9")

        async def converse() -> str:
            async with Wire(says("Hi")) as wire:
                model._endpoint.base_url = wire.url
                reply = await model.reply(ask(), lambda _: None)
                await model.close()
                return reply.text

        assert [asyncio.run(converse()), asyncio.run(converse())] == ["Hi", "Hi"]

    def test_model_that_nobody_closes_leaves_nothing_to_complain_of(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        models = [OpenAI("gpt-test", base_url="http://127.0.0.1:9")]

        async def converse() -> None:
            async with Wire(says("Hi")) as wire:
                models[0]._endpoint.base_url = wire.url
                await models[0].reply(ask(), lambda _: None)

        asyncio.run(converse())
        asyncio.run(converse())
        models.clear()
        gc.collect()
        assert "Unclosed" not in caplog.text


class Person(BaseModel):
    name: str = Field(description="In full.")
    nickname: str | None = None
    friends: list[Person] = []


class TestOpenAIItself:
    """Azure's endpoint counts as OpenAI's own, and can be reached through a proxy: here the wire."""

    @pytest.fixture(autouse=True)
    def take_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.environment = monkeypatch

    async def reply(
        self, answer: Answer, name: str = "gpt-5-mini", **more: Any
    ) -> tuple[ModelReply, dict[str, Any]]:
        async with Wire(answer) as wire:
            self.environment.setenv("HTTP_PROXY", wire.url.removesuffix("/v1"))
            model = OpenAI(name, base_url="http://us.openai.azure.com/openai/v1", api_key=KEY)
            reply = await model.reply(ask(**more), lambda _: None)
            await model.close()
            assert wire.requests[0].path.startswith("http://us.openai.azure.com/")
            return reply, wire.requests[0].body

    async def test_reply_has_its_price_with_cached_tokens_at_their_own(self) -> None:
        usage = {
            "prompt_tokens": 1_000_000,
            "completion_tokens": 100_000,
            "prompt_tokens_details": {"cached_tokens": 400_000},
        }
        reply, _ = await self.reply(says("Hi", usage=usage, model="gpt-5-mini-2025-08-07"))
        assert reply.usage == Usage(1_000_000, 100_000, 400_000)
        assert reply.dollars == pytest.approx(0.6 * 0.25 + 0.4 * 0.025 + 0.1 * 2.0)
        assert reply.model == "gpt-5-mini-2025-08-07"

    async def test_price_of_a_model_that_is_not_listed_is_unknown(self) -> None:
        reply, _ = await self.reply(says("Hi", model="never-heard-of"), name="never-heard-of")
        assert reply.dollars is None

    async def test_limit_is_max_completion_tokens(self) -> None:
        _, body = await self.reply(says("Hi"), max_tokens=7)
        assert body["max_completion_tokens"] == 7
        assert "max_tokens" not in body

    async def test_schema_that_fits_strict_mode_is_closed_and_strict(self) -> None:
        class City(BaseModel):
            name: str
            mayor: Person = Field(description="At present.")
            size: Literal["small", "large"] = "small"

        _, body = await self.reply(says("{}"), schema=City.model_json_schema())
        sent = body["response_format"]["json_schema"]
        assert sent["strict"] is True
        assert sent["name"] == "City"
        assert sent["schema"]["required"] == ["name", "mayor", "size"]
        assert sent["schema"]["additionalProperties"] is False
        assert sent["schema"]["properties"]["mayor"] == {
            "description": "At present.",
            "anyOf": [{"$ref": "#/$defs/Person"}],
        }
        person = sent["schema"]["$defs"]["Person"]
        assert person["required"] == ["name", "nickname", "friends"]
        assert person["additionalProperties"] is False
        assert '"default"' not in json.dumps(sent)

    @pytest.mark.parametrize(
        "open_property",
        [
            {"type": "object"},
            {"type": "object", "additionalProperties": {"type": "integer"}},
            {"type": "string", "minLength": 1},
            {"type": "string", "format": "uri"},
            {"oneOf": [{"type": "string"}, {"type": "null"}]},
            {"type": "array"},
            {},
        ],
    )
    async def test_schema_outside_strict_mode_is_sent_as_it_is(self, open_property: dict[str, Any]) -> None:
        schema = {"type": "object", "properties": {"a": open_property}}
        _, body = await self.reply(says("{}"), schema=schema)
        assert body["response_format"]["json_schema"]["strict"] is False
        assert body["response_format"]["json_schema"]["schema"] == schema

    async def test_root_that_is_no_object_travels_inside_one(self) -> None:
        schema = {"type": "array", "items": {"$ref": "#/$defs/N"}, "$defs": {"N": {"type": "integer"}}}
        reply, body = await self.reply(says('{"answer"', ": [1, 2]}"), schema=schema)
        sent = body["response_format"]["json_schema"]
        assert reply.text == "[1, 2]"
        assert sent["strict"] is True
        assert sent["schema"]["properties"]["answer"]["type"] == "array"
        assert sent["schema"]["$defs"] == {"N": {"type": "integer"}}

    async def test_answer_cut_inside_its_wrapping_is_given_as_it_came(self) -> None:
        reply, _ = await self.reply(
            says('{"answer": [1', finish="length"), schema={"type": "array", "items": {"type": "integer"}}
        )
        assert (reply.text, reply.finish) == ('{"answer": [1', "length")


class TestReply:
    async def test_stream_may_be_compressed(self) -> None:
        compressor = zlib.compressobj(wbits=31)
        pieces = [
            compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
            for piece in says("Hi ", "there").pieces
        ]
        answer = Answer((*pieces, compressor.flush()), headers={"content-encoding": "gzip"})
        reply, _ = await reply_to(answer)
        assert reply.text == "Hi there"

    async def test_characters_and_line_ends_may_be_cut_in_two(self) -> None:
        body = b"".join(says("grüß dich ✓").pieces).replace(b"\n", b"\r\n")
        reply, _ = await reply_to(Answer(tuple(body[index : index + 1] for index in range(len(body)))))
        assert reply.text == "grüß dich ✓"

    async def test_stream_ends_where_it_says_so_and_not_where_the_connection_does(self) -> None:
        reply, _ = await reply_to(Answer((*says("Hi").pieces, event("[DONE]")), end="hang"))
        assert reply.text == "Hi"

    async def test_usage_that_is_not_told_is_no_price_of_nothing(self) -> None:
        reply, _ = await reply_to(says("Hi", usage=None))
        assert (reply.usage, reply.dollars) == (Usage(), None)

    async def test_price_at_an_unknown_address_is_unknown(self) -> None:
        reply, _ = await reply_to(says("Hi", model="gpt-5-mini"))
        assert reply.dollars is None

    async def test_several_tool_calls_come_together_from_their_pieces(self) -> None:
        def piece(index: int | None, call_id: str | None, name: str | None, arguments: str) -> Any:
            function = {"name": name, "arguments": arguments}
            return {"index": index, "id": call_id, "function": function}

        reply, _ = await reply_to(
            stream(
                chunk({"content": "Let me see."}),
                chunk({"tool_calls": [piece(0, "a", "find", '{"x"'), piece(1, "b", "get", "")]}),
                chunk({"tool_calls": [piece(1, None, None, "{}")]}),
                chunk({"tool_calls": [piece(0, None, None, ": 1}")]}, "tool_calls"),
            )
        )
        assert reply.text == "Let me see."
        assert reply.tool_calls == (ToolCall("a", "find", '{"x": 1}'), ToolCall("b", "get", "{}"))
        assert reply.finish == "tool_calls"

    async def test_calls_that_share_an_index_are_told_apart_by_their_ids(self) -> None:
        def whole(call_id: str, name: str) -> Any:
            return {"index": 0, "id": call_id, "function": {"name": name, "arguments": "{}"}}

        reply, _ = await reply_to(
            stream(
                chunk({"tool_calls": [whole("a", "find")]}),
                chunk({"tool_calls": [whole("b", "get")]}, "stop"),
            )
        )
        assert [call.name for call in reply.tool_calls] == ["find", "get"]
        assert reply.finish == "tool_calls"

    async def test_arguments_sent_as_an_object_become_their_text(self) -> None:
        call = {"index": 0, "id": "a", "function": {"name": "find", "arguments": {"x": 1}}}
        reply, _ = await reply_to(stream(chunk({"tool_calls": [call]}, "tool_calls")))
        assert reply.tool_calls == (ToolCall("a", "find", '{"x": 1}'),)

    async def test_call_without_an_id_is_given_one(self) -> None:
        reply, _ = await reply_to(calls("find", '{"x":', " 1}", call_id=None))
        (call,) = reply.tool_calls
        assert call.id
        assert call.arguments == '{"x": 1}'

    async def test_refusal_is_the_text_and_finishes_as_filtered(self) -> None:
        reply, _ = await reply_to(
            stream(chunk({"refusal": "I will not "}), chunk({"refusal": "do that."}, "stop"))
        )
        assert (reply.text, reply.finish) == ("I will not do that.", "content_filter")

    async def test_chunks_of_other_choices_and_without_any_are_passed_over(self) -> None:
        other = {"index": 1, "delta": {"content": "no"}, "finish_reason": None}
        reply, _ = await reply_to(
            stream(chunk(), chunk({"content": "yes"}), chunk(choices=[other]), chunk({}, "stop"))
        )
        assert reply.text == "yes"


class TestRefusals:
    @pytest.mark.parametrize(
        ("answer", "error", "words"),
        [
            (fails(400, {"message": "no such option"}), ModelRefused, ["(400)", "no such option"]),
            (fails(401, {"message": f"bad {KEY}"}), ModelRefused, ["the key in api_key=", "http://"]),
            (fails(403, {"message": "not yours"}), ModelRefused, ["gpt-test", "not yours"]),
            (fails(404, {"message": "gone"}), ModelRefused, ["no model 'gpt-test'", "/v1", "gone"]),
            (fails(404, "<html>Not found</html>"), ModelRefused, ["no model 'gpt-test'", "/v1"]),
            (fails(413, "x" * 9999), ModelRefused, ["(413)", "…"]),
            (fails(408), ModelTimeout, ["408"]),
            (fails(429, {"message": "slow down"}), ModelRateLimited, ["429", "slow down"]),
            (fails(429, {"code": "insufficient_quota"}), ModelRefused, ["no credit is left"]),
            (fails(500, "<html>"), ModelUnavailable, ["failed (500)"]),
            (fails(503, {"message": "overloaded"}), ModelUnavailable, ["503", "overloaded"]),
        ],
    )
    async def test_status_becomes_an_error_that_says_what_to_do(
        self, answer: Answer, error: type[ModelError], words: list[str]
    ) -> None:
        caught = await error_of(answer)
        assert type(caught) is error
        for word in words:
            assert word in str(caught)
        assert "<html>" not in str(caught)

    async def test_refused_key_is_named_by_where_it_came_from(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        caught = await error_of(fails(401, {"message": "bad"}), api_key=None)
        assert "the key in OPENAI_API_KEY was refused by http://127.0.0.1" in str(caught)

    async def test_endpoint_that_wants_a_key_is_told_apart(self) -> None:
        caught = await error_of(fails(401, {"message": "who are you?"}), api_key="")
        assert "set OPENAI_API_KEY" in str(caught)

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry_after": "2.5"}, 2.5),
            ({"retry_after": "9", "retry_after_ms": "1500"}, 1.5),
            ({"retry_after": "soon"}, None),
            ({"retry_after": "inf"}, None),
            ({"retry_after": "-3"}, 0.0),
            ({}, None),
        ],
    )
    @pytest.mark.parametrize("status", [429, 503])
    async def test_retry_after_is_in_seconds(
        self, status: int, headers: dict[str, str], seconds: float | None
    ) -> None:
        assert (await error_of(fails(status, **headers))).retry_after == seconds

    async def test_retry_after_may_be_a_date(self) -> None:
        then = format_datetime(datetime.now(UTC) + timedelta(minutes=2), usegmt=True)
        assert (await error_of(fails(429, retry_after=then))).retry_after == pytest.approx(120, abs=10)

    @pytest.mark.parametrize(
        ("inside", "error"),
        [
            ({"message": "overloaded", "code": 503}, ModelUnavailable),
            ({"message": "too long", "code": 400}, ModelRefused),
            ({"message": "slow down", "code": "rate_limit_exceeded"}, ModelRateLimited),
            ({"message": "no credit", "code": "insufficient_quota"}, ModelRefused),
            ({"message": "oops"}, ModelUnavailable),
            ("oops", ModelUnavailable),
        ],
    )
    async def test_error_inside_the_stream_is_an_error(self, inside: Any, error: type[ModelError]) -> None:
        caught = await error_of(stream(chunk({"content": "Hel"}), event({"error": inside})))
        assert type(caught) is error
        assert (inside if isinstance(inside, str) else inside["message"]) in str(caught)


class TestBrokenWire:
    async def test_error_whose_body_breaks_off_is_known_by_its_status(self) -> None:
        whole = fails(400, {"message": "no such option"})
        caught = await error_of(replace(whole, end="cut"))
        assert type(caught) is ModelRefused
        assert "(400)" in str(caught)

    @pytest.mark.parametrize(
        ("pieces", "end"), [([b"[" * 100_000], "close"), ([b"x" * 100_000] * 11, "hang")]
    )
    async def test_error_with_a_monstrous_body_is_known_by_its_status(self, pieces: Any, end: Any) -> None:
        caught = await error_of(Answer(tuple(pieces), status=400, end=end), timeout=5)
        assert type(caught) is ModelRefused
        assert len(str(caught)) < 10_000

    @pytest.mark.parametrize("end", ["cut", "close"])
    async def test_stream_that_breaks_off_is_no_reply(self, end: Any) -> None:
        caught = await error_of(stream(chunk({"content": "Hel"}), chunk({"content": "lo"}), end=end))
        assert type(caught) is ModelUnavailable
        assert "broke off after 5 characters" in str(caught)

    @pytest.mark.parametrize(
        "body",
        [
            "data: {nonsense\n\n",
            'data: "chunk"\n\n',
            "data: [1]\n\n",
            "data: null\n\n",
            'data: {"choices": "nonsense"}\n\n',
            'data: {"choices": [1]}\n\n',
            'data: {"choices": [{"delta": 7, "finish_reason": "stop"}]}\n\n',
            'data: {"choices": [{"delta": {"content": {"a": 1}}, "finish_reason": "stop"}]}\n\n',
            'data: {"choices": [{"delta": {"tool_calls": 5}, "finish_reason": "stop"}]}\n\n',
            'data: {"choices": [], "usage": 3}\n\n',
            f"data: {'[' * 100_000}\n\n",
        ],
    )
    async def test_garbage_in_the_stream_is_named_as_such(self, body: str) -> None:
        caught = await error_of(garbage(body))
        assert type(caught) is ModelUnavailable
        assert "no chat completion chunk" in str(caught) or "broke off" in str(caught)

    @pytest.mark.parametrize("kind", ["text/html", "application/json"])
    async def test_answer_that_is_no_stream_hints_at_the_address(self, kind: str) -> None:
        caught = await error_of(garbage("<html>Welcome!</html>", kind))
        assert type(caught) is ModelUnavailable
        assert kind in str(caught)
        assert "/v1" in str(caught)

    async def test_silence_before_the_first_word_times_out(self) -> None:
        caught = await error_of(hangs(), timeout=0.2)
        assert type(caught) is ModelTimeout
        assert "0.2 seconds" in str(caught)

    async def test_endpoint_that_does_not_even_take_the_request_times_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dayjob.models.http.CONNECT_SECONDS", 0.1)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            model = OpenAI("gpt-test", base_url=f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=0.2)
            long = [{"role": "user", "content": "x" * 20_000_000}]
            async with asyncio.timeout(10):
                with pytest.raises(ModelTimeout, match=r"sent nothing for 0\.2 seconds"):
                    await model.reply(ModelRequest("openai:gpt-test", long), lambda _: None)
            await model.close()

    async def test_silence_in_the_middle_times_out(self) -> None:
        caught = await error_of(stream(chunk({"content": "Hel"}), end="hang"), timeout=0.2)
        assert type(caught) is ModelTimeout
        assert "after 3 characters" in str(caught)

    async def test_stream_may_last_longer_than_the_timeout(self) -> None:
        reply, _ = await reply_to(says(*"abcdefgh", seconds_between=0.15), timeout=1.0)
        assert reply.text == "abcdefgh"

    async def test_refused_connection_names_the_address(self) -> None:
        async with Wire(says()) as wire:
            address = wire.url
        model = OpenAI("gpt-test", base_url=address.replace("http://", "http://me:secret@"))
        with pytest.raises(ModelUnavailable, match="cannot be reached") as caught:
            await model.reply(ask(), lambda _: None)
        await model.close()
        assert address in str(caught.value)
        assert "secret" not in str(caught.value)

    async def test_cancel_before_the_answer_closes_the_connection(self) -> None:
        async with Wire(hangs()) as wire:
            model = OpenAI("gpt-test", base_url=wire.url)
            task = asyncio.create_task(model.reply(ask(), lambda _: None))
            await wire.request_arrived()
            task.cancel()
            await wire.client_hung_up()
            with pytest.raises(asyncio.CancelledError):
                await task
            await model.close()

    async def test_cancel_in_mid_stream_closes_the_connection(self) -> None:
        heard = asyncio.Event()
        async with Wire(says(*["word "] * 1000, seconds_between=0.05)) as wire:
            model = OpenAI("gpt-test", base_url=wire.url)
            task = asyncio.create_task(model.reply(ask(), lambda _: heard.set()))
            await heard.wait()
            task.cancel()
            await wire.client_hung_up()
            with pytest.raises(asyncio.CancelledError):
                await task
            await model.close()


class TestConnections:
    async def test_a_model_that_nobody_closes_lets_them_go_without_a_word(self) -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with Wire(says("Hello")) as wire:
            await OpenAI("gpt-test", base_url=wire.url).reply(ask(), lambda _: None)
            gc.collect()
            await until(lambda: not wire.open)
        assert told == []

    def test_a_process_that_ends_says_nothing_of_them(self) -> None:
        program = """
import asyncio
from dayjob.models import ModelRequest
from dayjob.models.openai import OpenAI
from tests.wire import Wire, says

async def main(model):
    async with Wire(says("Hello")) as wire:
        model._endpoint.base_url = wire.url
        await model.reply(ModelRequest("openai:x", [{"role": "user", "content": "Hi."}]), lambda _: None)

model = OpenAI("x", base_url="http://127.0.0.1:1/v1")
asyncio.run(main(model))
asyncio.run(main(model))
"""
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", program],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")


class TestConfiguration:
    async def test_openai_itself_needs_a_key(self) -> None:
        with pytest.raises(ModelNotConfigured, match="OPENAI_API_KEY"):
            await OpenAI("gpt-test").reply(ask(), lambda _: None)

    @pytest.mark.parametrize("key", ["two words", "schlüssel", "“quoted”"])
    async def test_key_that_cannot_be_one_is_not_shown(self, key: str) -> None:
        with pytest.raises(ModelNotConfigured) as caught:
            await OpenAI("gpt-test", api_key=key).reply(ask(), lambda _: None)
        assert key not in str(caught.value)

    @pytest.mark.parametrize("address", ["localhost:8000/v1", "http://", "http://a:b/v1", "http://[::1"])
    async def test_address_that_cannot_be_one_is_shown(self, address: str) -> None:
        with pytest.raises(ModelNotConfigured) as caught:
            await OpenAI("gpt-test", base_url=address).reply(ask(), lambda _: None)
        assert repr(address) in str(caught.value)

    def test_importing_the_models_imports_no_library(self) -> None:
        program = (
            "import sys, dayjob.models, dayjob.models.openai, dayjob.models.local, dayjob.tools\n"
            "slow = {'openai', 'pydantic', 'genai_prices', 'xllamacpp', 'docstring_parser', 'aiohttp'}\n"
            "print(sorted(slow & sys.modules.keys()))"
        )
        shown = subprocess.check_output([sys.executable, "-c", program], text=True)
        assert shown == "[]\n"
