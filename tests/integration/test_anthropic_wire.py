"""The anthropic adapter against a server that speaks the Messages API, misspeaks it, and hangs up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from dayjob import Dayjob, Run, job, tool
from dayjob.errors import (
    ModelError,
    ModelNotConfigured,
    ModelRateLimited,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
)
from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage, open_model
from dayjob.models.anthropic import Anthropic, _Answer
from dayjob.patterns import agent
from dayjob.values import schema_of
from tests.messages_wire import (
    block,
    call,
    ends,
    event,
    says,
    starts,
    stream,
    text,
    thought,
)
from tests.wire import Answer, Wire, fails, garbage, hangs

KEY = "sk-ant-test-0123456789"
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Hello?"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "Does.", "parameters": {}}}
CACHED = {"cache_control": {"type": "ephemeral"}}
DOT = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("API_KEY", "BASE_URL", "AUTH_TOKEN", "CUSTOM_HEADERS", "PROFILE")
    for name in (*(f"ANTHROPIC_{name}" for name in names), "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def ask(messages: Any = QUESTION, **more: Any) -> ModelRequest:
    return ModelRequest("anthropic:claude-test", messages, **more)


async def reply_to(
    answer: Answer, request: ModelRequest | None = None, *, name: str = "claude-test", **options: Any
) -> tuple[ModelReply, dict[str, Any]]:
    """The reply, and the body that went over the wire."""
    said: list[str] = []
    async with Wire(answer) as wire:
        model = Anthropic(name, **{"base_url": wire.url, "api_key": KEY, **options})
        try:
            reply = await model.reply(request or ask(), said.append)
        finally:
            await model.close()
        assert "".join(said) == reply.text
        return reply, wire.requests[0].body


async def sent(request: ModelRequest, **more: Any) -> dict[str, Any]:
    _, body = await reply_to(says("Hi"), request, **more)
    return body


async def error_of(answer: Answer, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await reply_to(answer, **options)
    assert KEY not in str(caught.value)
    return caught.value


def called(*ids: str, arguments: str = '{"x": 1}') -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": each, "type": "function", "function": function} for each in ids],
    }


def result(call_id: str, content: Any = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def of_kind(body: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [part for turn in body["messages"] for part in turn["content"] if part["type"] == kind]


class TestRequest:
    async def test_body_is_what_was_asked_in_the_words_of_this_api(self) -> None:
        messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
        body = await sent(ask(messages, tools=[TOOL], options={"top_k": 3, "stream": False, "seed": None}))
        assert body == {
            "model": "claude-test",
            "system": [{"type": "text", "text": "Be brief.", **CACHED}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello?", **CACHED}]}],
            "tools": [
                {
                    "name": "f",
                    "description": "Does.",
                    "input_schema": {"type": "object", "properties": {}},
                }
            ],
            "max_tokens": 32_000,
            "top_k": 3,
            "stream": True,
        }

    @pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
    async def test_key_and_address_come_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, end: str
    ) -> None:
        async with Wire(says("Hi")) as wire:
            monkeypatch.setenv("ANTHROPIC_API_KEY", f"{KEY}\n")
            monkeypatch.setenv("ANTHROPIC_BASE_URL", wire.url.removesuffix("/v1") + end)
            model = open_model("anthropic:claude-test")
            await model.reply(ask(), lambda _: None)
            await model.close()
        assert model.name == "anthropic:claude-test"
        assert wire.requests[0].path == "/v1/messages"
        assert wire.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert wire.requests[0].headers["anthropic-version"] == "2023-06-01"

    async def test_further_headers_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Gateway: yes\nanthropic-version: 1")
        async with Wire(says("Hi")) as wire:
            model = Anthropic("claude-test", base_url=wire.url, api_key=KEY)
            await model.reply(ask(), lambda _: None)
            await model.close()
        headers = wire.requests[0].headers
        assert (headers["x-gateway"], headers["anthropic-version"]) == ("yes", "2023-06-01")
        assert headers["user-agent"].startswith("dayjob/")

    async def test_event_without_a_name_is_passed_over(self) -> None:
        reply, _ = await reply_to(stream(b"data: nonsense\n\n", *says("Hi").pieces))
        assert reply.text == "Hi"

    async def test_compatible_endpoint_needs_no_key(self) -> None:
        async with Wire(says("Hi")) as wire:
            model = Anthropic("claude-test", base_url=wire.url)
            await model.reply(ask(), lambda _: None)
            await model.close()
        assert not {"authorization", "x-api-key"} & wire.requests[0].headers.keys()

    @pytest.mark.parametrize(
        ("name", "more", "most"),
        [
            ("claude-sonnet-5-5", {}, 32_000),
            ("claude-3-5-haiku-latest", {}, 8_192),
            ("claude-3-haiku-20240307", {}, 4_096),
            ("claude-sonnet-5-5", {"max_tokens": 7, "options": {"max_completion_tokens": 9}}, 7),
            ("claude-sonnet-5-5", {"options": {"max_completion_tokens": 9}}, 9),
        ],
    )
    async def test_limit_is_always_sent(self, name: str, more: dict[str, Any], most: int) -> None:
        body = await sent(ask(**more), name=name)
        assert body["max_tokens"] == most
        assert "max_completion_tokens" not in body

    @pytest.mark.parametrize(
        ("options", "on_the_wire"),
        [
            ({"temperature": 0.5}, {"temperature": 0.5}),
            ({"temperature": 0}, {"temperature": 0}),
            ({"temperature": 1}, {}),
            ({"temperature": 1.7, "top_p": 1}, {}),
            ({"top_p": 0.9}, {"top_p": 0.9}),
            ({"stop": "END"}, {"stop_sequences": ["END"]}),
            ({"stop": ["A", "B"]}, {"stop_sequences": ["A", "B"]}),
            ({"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
            ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
            ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
            ({"reasoning_effort": "low", "output_config": {"x": 1}}, {"output_config": {"effort": "low", "x": 1}}),
            ({"response_format": {"type": "text"}}, {}),
            ({"tool_choice": "auto", "parallel_tool_calls": False}, {}),
            ({"metadata": {"user_id": "u"}}, {"metadata": {"user_id": "u"}}),
        ],
    )  # fmt: skip
    async def test_options_are_translated_or_passed_on(
        self, options: dict[str, Any], on_the_wire: dict[str, Any]
    ) -> None:
        body = await sent(ask(options=options))
        plain = {"model", "messages", "max_tokens", "stream"}
        assert {name: value for name, value in body.items() if name not in plain} == on_the_wire

    @pytest.mark.parametrize(
        ("options", "choice"),
        [
            ({}, None),
            ({"tool_choice": "none"}, {"type": "none"}),
            ({"tool_choice": "auto"}, {"type": "auto"}),
            ({"tool_choice": "required"}, {"type": "any"}),
            ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
            ({"tool_choice": {"type": "any"}}, {"type": "any"}),
            ({"parallel_tool_calls": True}, None),
            ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
            (
                {"tool_choice": "required", "parallel_tool_calls": False},
                {"type": "any", "disable_parallel_tool_use": True},
            ),
            ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ],
    )
    async def test_choice_among_tools(self, options: dict[str, Any], choice: dict[str, Any] | None) -> None:
        body = await sent(ask(tools=[TOOL], options=options))
        assert body.get("tool_choice") == choice
        assert "parallel_tool_calls" not in body

    @pytest.mark.parametrize(
        "request_",
        [
            ask([{"content": "who says this?"}]),
            ask([{"role": "user", "content": [{"text": "no type"}]}]),
            ask([{"role": "assistant", "tool_calls": [{"id": "a"}]}]),
            ask([{"role": "tool", "content": "of which call?"}]),
            ask([{"role": "user", "content": 5}]),
            ask(options={"temperature": "hot"}),
        ],
    )
    async def test_what_cannot_be_translated_is_refused_before_it_is_sent(
        self, request_: ModelRequest
    ) -> None:
        async with Wire(says("Hi")) as wire:
            model = Anthropic("claude-test", base_url=wire.url)
            with pytest.raises(ModelRefused, match="does not have the form"):
                await model.reply(request_, lambda _: None)
            await model.close()
            assert wire.requests == []

    async def test_connections_are_kept_for_the_next_request(self) -> None:
        async with Wire(says("Hi")) as wire:
            model = Anthropic("claude-test", base_url=wire.url)
            for _ in range(3):
                await model.reply(ask(), lambda _: None)
            assert (len(wire.requests), wire.connections) == (3, 1)
            await model.close()

    def test_model_can_be_used_in_one_event_loop_after_another(self) -> None:
        model = Anthropic("claude-test", base_url="http://127.0.0.1:9")

        async def converse() -> str:
            async with Wire(says("Hi")) as wire:
                model._endpoint.base_url = wire.url.removesuffix("/v1")
                reply = await model.reply(ask(), lambda _: None)
                await model.close()
                return reply.text

        assert [asyncio.run(converse()), asyncio.run(converse())] == ["Hi", "Hi"]


class TestConversation:
    async def test_results_of_tools_become_one_message_with_what_is_said_after_them(self) -> None:
        body = await sent(
            ask(
                [
                    *QUESTION,
                    called("a", "b"),
                    result("a"),
                    result("b", ""),
                    {"role": "user", "content": "So?"},
                ]
            )
        )
        assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
        assert body["messages"][1]["content"] == [
            {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
            {"type": "tool_use", "id": "b", "name": "f", "input": {"x": 1}},
        ]
        assert body["messages"][2]["content"] == [
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "done"}]},
            {"type": "tool_result", "tool_use_id": "b"},
            {"type": "text", "text": "So?", **CACHED},
        ]

    async def test_results_stand_before_what_was_said_meanwhile(self) -> None:
        said = {"role": "user", "content": "Hurry!"}
        body = await sent(ask([*QUESTION, called("a"), said, result("a")]))
        assert [part["type"] for part in body["messages"][2]["content"]] == ["tool_result", "text"]

    async def test_system_messages_come_first_wherever_they_stand(self) -> None:
        late = {"role": "developer", "content": [{"type": "text", "text": "Late."}]}
        body = await sent(ask([{"role": "system", "content": "Early."}, *QUESTION, late]))
        assert [part["text"] for part in body["system"]] == ["Early.", "Late."]
        assert len(body["messages"]) == 1

    async def test_images_go_as_data_or_by_their_address(self) -> None:
        urls = [DOT, "https://example.com/cat.png", "data:image/svg+xml,%3Csvg%2F%3E"]
        parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
        body = await sent(ask([{"role": "user", "content": [{"type": "text", "text": "See:"}, *parts]}]))
        assert [part["source"] for part in of_kind(body, "image")] == [
            {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
            {"type": "url", "url": "https://example.com/cat.png"},
            {"type": "base64", "media_type": "image/svg+xml", "data": "PHN2Zy8+"},
        ]

    async def test_image_may_be_the_result_of_a_tool(self) -> None:
        shot = [{"type": "image_url", "image_url": {"url": DOT}}]
        body = await sent(ask([*QUESTION, called("a"), result("a", shot)]))
        assert of_kind(body, "tool_result")[0]["content"][0]["type"] == "image"

    async def test_parts_of_the_api_itself_are_passed_on(self) -> None:
        document = {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}}
        body = await sent(ask([{"role": "user", "content": [document]}]))
        assert of_kind(body, "document") == [document]

    async def test_text_of_nothing_is_left_out(self) -> None:
        nothing = {"role": "assistant", "content": ""}
        body = await sent(ask([*QUESTION, nothing, {"role": "user", "content": " \n"}]))
        assert [turn["role"] for turn in body["messages"]] == ["user"]
        assert len(body["messages"][0]["content"]) == 1

    @pytest.mark.parametrize(
        ("arguments", "given"),
        [
            ("", {}),
            ("{}", {}),
            ('{"x": ', {"arguments": '{"x": '}),
            ("[1]", {"arguments": [1]}),
        ],
    )
    async def test_arguments_are_always_an_object(self, arguments: str, given: Any) -> None:
        body = await sent(ask([*QUESTION, called("a", arguments=arguments), result("a")]))
        assert of_kind(body, "tool_use")[0]["input"] == given

    async def test_ids_of_other_providers_are_put_in_characters_that_ids_have_here(self) -> None:
        body = await sent(ask([*QUESTION, called("functions.f:0"), result("functions.f:0")]))
        assert of_kind(body, "tool_use")[0]["id"] == "functions_f_0"
        assert of_kind(body, "tool_result")[0]["tool_use_id"] == "functions_f_0"

    async def test_reply_with_thoughts_and_a_call_can_be_answered(self) -> None:
        """What the reply gave is sent back without its thoughts, and thinking in the old way waits."""
        options = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
        reply, first = await reply_to(
            stream(starts(), *thought(), *call("f", "{}", index=1), *ends("tool_use")),
            ask(tools=[TOOL], options=options),
        )
        assert (reply.text, reply.tool_calls) == ("", (ToolCall("toolu_1", "f", "{}"),))
        assert first["thinking"] == options["thinking"]
        body = await sent(
            ask([*QUESTION, called("toolu_1"), result("toolu_1")], tools=[TOOL], options=options)
        )
        assert "thinking" not in body
        assert of_kind(body, "thinking") == []

    async def test_adaptive_thinking_goes_on_amid_calls(self) -> None:
        options = {"thinking": {"type": "adaptive"}}
        body = await sent(ask([*QUESTION, called("a"), result("a")], tools=[TOOL], options=options))
        assert body["thinking"] == {"type": "adaptive"}


class TestCache:
    @staticmethod
    def marks(body: dict[str, Any]) -> list[Any]:
        said = [part for turn in body["messages"] for part in turn["content"]]
        parts = [*body.get("tools", ()), *body.get("system", ()), *said]
        return [part.get("text") or part.get("name") for part in parts if "cache_control" in part]

    async def test_single_question_is_not_marked_but_its_instructions_are(self) -> None:
        assert self.marks(await sent(ask())) == []
        body = await sent(ask([{"role": "system", "content": "Be brief."}, *QUESTION]))
        assert self.marks(body) == ["Be brief."]

    async def test_tools_are_marked_where_there_are_no_instructions(self) -> None:
        assert self.marks(await sent(ask(tools=[TOOL]))) == ["f", "Hello?"]

    async def test_conversation_is_marked_at_its_end_and_where_it_ended_before(self) -> None:
        turns = [*QUESTION, {"role": "assistant", "content": "Yes?"}]
        turns += [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]
        body = await sent(ask([*turns, {"role": "user", "content": "Three."}]))
        assert self.marks(body) == ["One.", "Three."]

    async def test_messages_of_the_caller_stay_as_they_are(self) -> None:
        part = {"type": "text", "text": "Hello?"}
        await sent(ask([{"role": "user", "content": [part]}], tools=[TOOL]))
        assert part == {"type": "text", "text": "Hello?"}
        assert "cache_control" not in TOOL


@tool(effect="read")
async def look(place: str) -> str:
    """Looks somewhere."""
    return f"in {place}: a key"


@job
async def seek(run: Run) -> str:
    return await agent(run, "You find things.", "Find the key.", tools=[look])


class TestAgent:
    async def test_agent_calls_tools_and_answers(self, url: str) -> None:
        places = (
            *call("look", '{"place": "attic"}', index=1, call_id="toolu_1"),
            *call("look", '{"place": "cellar"}', index=2, call_id="toolu_2"),
        )
        turn = stream(starts(), *thought(), *places, *ends("tool_use"))
        async with Wire(turn, says("In the attic.")) as wire:
            model = Anthropic("claude-test", base_url=wire.url, api_key=KEY)
            async with Dayjob(url, model=model) as app:
                assert await (await app.submit(seek())).result(20) == "In the attic."
            await model.close()
        (_, answered, *_) = (request.body for request in wire.requests)
        results = of_kind(answered, "tool_result")
        assert [each["tool_use_id"] for each in results] == ["toolu_1", "toolu_2"]
        assert "in cellar: a key" in results[1]["content"][0]["text"]
        assert [turn["role"] for turn in answered["messages"]] == ["user", "assistant", "user"]


class Person(BaseModel):
    name: str = Field(description="In full.", min_length=1)
    nickname: str | None = None


class Family(BaseModel):
    parents: list[Person] = Field(min_length=1, max_length=2)
    home: Literal["house", "flat"] = "flat"


class Tree(BaseModel):
    children: list[Tree] = []


class TestShape:
    async def test_schema_goes_as_the_format_with_its_bounds_in_words(self) -> None:
        reply, body = await reply_to(says('{"parents":', " []}"), ask(schema=Family.model_json_schema()))
        assert reply.text == '{"parents": []}'
        told = body["output_config"]["format"]
        assert told["type"] == "json_schema"
        family, person = told["schema"], told["schema"]["$defs"]["Person"]
        assert family["additionalProperties"] is person["additionalProperties"] is False
        assert family["required"] == ["parents"]
        assert family["properties"]["parents"] == {
            "title": "Parents",
            "type": "array",
            "items": {"anyOf": [{"$ref": "#/$defs/Person"}]},
            "minItems": 1,
            "description": "maxItems: 2",
        }
        assert person["properties"]["name"]["description"] == "In full.; minLength: 1"
        assert [each["type"] for each in person["properties"]["nickname"]["anyOf"]] == ["string", "null"]
        assert "system" not in body

    async def test_root_that_is_no_object_travels_inside_one(self) -> None:
        reply, body = await reply_to(says('{"answer"', ": [1, 2]}"), ask(schema=schema_of(list[int])))
        assert reply.text == "[1, 2]"
        assert body["output_config"]["format"]["schema"]["properties"]["answer"]["type"] == "array"

    async def test_answer_cut_inside_its_wrapping_is_given_as_it_came(self) -> None:
        reply, _ = await reply_to(
            says('{"answer": [1', reason="max_tokens"), ask(schema=schema_of(list[int]))
        )
        assert (reply.text, reply.finish) == ('{"answer": [1', "length")

    @pytest.mark.parametrize(
        "schema",
        [
            schema_of(dict[str, int]),
            schema_of(list[Any]),
            schema_of(tuple[int, str]),
            Tree.model_json_schema(),
            {"type": "object"},
            {"type": "object", "properties": {"a": {}}},
            {"type": "object", "properties": {"a": True}},
            {"type": "object", "properties": {"a": {"not": {"type": "null"}}}},
            {"type": "object", "properties": {"a": {"enum": [[1], [2]]}}},
            {"type": "object", "properties": {"a": {"$ref": "https://example.com/a.json"}}},
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/Missing"}}},
            {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(25)}},
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
        ],
    )
    async def test_schema_that_the_format_cannot_say_is_asked_for_in_words(self, schema: Any) -> None:
        reply, body = await reply_to(says("[1]"), ask(schema=schema))
        assert "output_config" not in body
        assert "fits this schema: {" in body["system"][-1]["text"]
        assert reply.text == "[1]"

    async def test_types_side_by_side_become_ways(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": ["string", "null"], "title": "A"}}}
        body = await sent(ask(schema=schema))
        ways = body["output_config"]["format"]["schema"]["properties"]["a"]["anyOf"]
        assert [way["type"] for way in ways] == ["string", "null"]

    async def test_response_format_is_a_schema_too_or_words(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = await sent(ask(options={"response_format": asked, "reasoning_effort": "low"}))
        assert body["output_config"]["effort"] == "low"
        assert body["output_config"]["format"]["schema"]["additionalProperties"] is False
        body = await sent(ask(options={"response_format": {"type": "json_object"}}))
        assert "JSON object" in body["system"][0]["text"]
        assert "response_format" not in body


class TestReply:
    async def test_input_is_all_of_it_and_what_was_read_from_the_cache_is_told(self) -> None:
        reply, _ = await reply_to(says("Hi"))
        assert reply.usage == Usage(input_tokens=12, output_tokens=5, cached_tokens=4)
        assert (reply.model, reply.finish) == ("claude-test-1", "stop")

    async def test_counts_at_the_end_replace_those_at_the_start(self) -> None:
        usage = {"input_tokens": 30, "output_tokens": 7, "cache_read_input_tokens": None}
        last = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        reply, _ = await reply_to(stream(starts(), *text("Hi"), last, event("message_stop")))
        assert reply.usage == Usage(30 + 5 + 4, 7, 4)

    async def test_usage_that_is_not_told_is_no_price_of_nothing(self) -> None:
        last = event("message_delta", delta={"stop_reason": "end_turn"})
        reply, _ = await reply_to(stream(starts(usage=None), *text("Hi"), last))
        assert (reply.usage, reply.dollars) == (Usage(), None)

    @pytest.mark.parametrize(
        ("reason", "finish"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("pause_turn", "length"),
            ("refusal", "content_filter"),
            ("tool_use", "tool_calls"),
            ("something new", "stop"),
        ],
    )
    async def test_reason_to_stop_is_one_of_ours(self, reason: str, finish: str) -> None:
        reply, _ = await reply_to(says("Hi", reason=reason))
        assert reply.finish == finish

    async def test_refusal_without_a_word_says_why(self) -> None:
        why = {"type": "refusal", "category": "bio", "explanation": "I will not do that."}
        reply, _ = await reply_to(stream(starts(), *ends("refusal", stop_details=why)))
        assert (reply.text, reply.finish) == ("I will not do that.", "content_filter")

    async def test_several_tool_calls_come_together_from_their_pieces(self) -> None:
        reply, _ = await reply_to(
            stream(
                starts(),
                *text("Let me ", "see."),
                *call("find", "", '{"x"', ": 1}", index=1, call_id="a"),
                *call("get", index=2, call_id="b"),
                *ends("tool_use"),
            )
        )
        assert reply.text == "Let me see."
        assert reply.tool_calls == (ToolCall("a", "find", '{"x": 1}'), ToolCall("b", "get", "{}"))
        assert reply.finish == "tool_calls"

    async def test_pieces_of_two_calls_may_alternate(self) -> None:
        a, b = call("f", '{"a"', ":1}", call_id="a"), call("f", '{"b"', ":2}", index=1, call_id="b")
        mixed = [each for pair in zip(a, b, strict=True) for each in pair]
        reply, _ = await reply_to(stream(starts(), *mixed, *ends("tool_use")))
        assert [each.arguments for each in reply.tool_calls] == ['{"a":1}', '{"b":2}']

    async def test_arguments_sent_whole_at_the_start_are_taken(self) -> None:
        opening = {"type": "tool_use", "id": "a", "name": "f", "input": {"city": "Zürich"}}
        reply, _ = await reply_to(stream(starts(), *block(0, opening), *ends("end_turn")))
        assert reply.tool_calls == (ToolCall("a", "f", '{"city": "Zürich"}'),)
        assert reply.finish == "tool_calls"

    async def test_call_cut_short_is_given_as_it_came(self) -> None:
        reply, _ = await reply_to(stream(starts(), *call("f", '{"x": '), *ends("max_tokens")))
        assert (reply.tool_calls[0].arguments, reply.finish) == ('{"x": ', "length")

    async def test_events_and_blocks_nobody_knows_are_passed_over(self) -> None:
        search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
        reply, _ = await reply_to(
            stream(
                starts(),
                event("ping"),
                event("weather_report", sky="blue"),
                b": a comment\n\n",
                *thought(),
                *block(1, {"type": "redacted_thinking", "data": "x"}),
                *block(2, search, {"type": "input_json_delta", "partial_json": '{"q": 1}'}),
                *text("Hi", index=3),
                event("content_block_delta", index=3, delta={"type": "citations_delta", "citation": {}}),
                *ends(),
            )
        )
        assert (reply.text, reply.tool_calls) == ("Hi", ())


class TestPrice:
    """Prices are those of Anthropic's own address, which no test may call."""

    @staticmethod
    def cost(**usage: Any) -> float | None:
        answer = _Answer(wrapped=False)
        for kind, fields in (
            ("message_start", {"message": {"model": "claude-sonnet-5-5", "usage": usage}}),
            ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 100_000}}),
        ):
            list(answer.take({"type": kind, **fields}))
        return Anthropic("claude-sonnet-5-5", api_key=KEY)._dollars(answer)

    def test_reading_and_writing_the_cache_have_prices_of_their_own(self) -> None:
        tokens = {
            "input_tokens": 100_000,
            "cache_read_input_tokens": 400_000,
            "cache_creation_input_tokens": 500_000,
        }
        fresh, read, written = 0.1 * 2.0, 0.4 * 0.1, 0.5 * 2.5
        assert self.cost(**tokens) == pytest.approx(fresh + read + written + 1.0)
        hours = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 500_000}
        assert self.cost(**tokens, cache_creation=hours) == pytest.approx(fresh + read + 0.5 * 4.0 + 1.0)

    @pytest.mark.parametrize(
        ("told", "known"),
        [
            ({"service_tier": "standard", "inference_geo": "global", "speed": "standard"}, True),
            ({"server_tool_use": {"web_search_requests": 0}}, True),
            ({"server_tool_use": {"web_search_requests": 2}}, False),
            ({"inference_geo": "us"}, False),
            ({"speed": "fast"}, False),
            ({"service_tier": "priority"}, False),
        ],
    )
    def test_what_costs_more_than_the_list_says_has_no_price(self, told: dict[str, Any], known: bool) -> None:
        assert (self.cost(input_tokens=10, **told) is not None) is known

    def price(self, name: str, usage: Usage, **options: Any) -> float | None:
        return Anthropic(name, api_key=KEY).price(ask(options=options), usage)

    async def test_price_before_a_call_is_the_most_it_may_cost(self) -> None:
        usage = Usage(1_000_000, 100_000)
        assert self.price("claude-sonnet-5-5", usage) == pytest.approx(2.5 + 1.0)
        hour = {"type": "ephemeral", "ttl": "1h"}
        assert self.price("claude-sonnet-5-5", usage, cache_control=hour) == pytest.approx(4.0 + 1.0)
        assert self.price("never-heard-of", usage) is None
        assert self.price("claude-sonnet-5-5", usage, inference_geo="us") is None
        assert self.price("claude-sonnet-5-5", usage, service_tier="standard_only") is not None

    async def test_price_at_an_unknown_address_is_unknown(self) -> None:
        reply, _ = await reply_to(says("Hi", model="claude-sonnet-5-5"))
        assert reply.dollars is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("answer", "error", "words"),
        [
            (fails(400, {"message": "no such option"}), ModelRefused, ["(400)", "no such option"]),
            (fails(401, {"message": f"bad {KEY}"}), ModelRefused, ["the key in api_key=", "http://"]),
            (fails(402, {"message": "pay"}), ModelRefused, ["no credit is left", "pay"]),
            (fails(403, {"message": "not yours"}), ModelRefused, ["claude-test", "not yours"]),
            (fails(404, {"message": "model: claude-test"}), ModelRefused, ["no model 'claude-test'"]),
            (fails(404, "<html>Not found</html>"), ModelRefused, ["no model 'claude-test'"]),
            (fails(413, "x" * 9999), ModelRefused, ["too large", "(413)", "…"]),
            (fails(408), ModelTimeout, ["408"]),
            (fails(429, {"message": "slow down"}), ModelRateLimited, ["429", "slow down"]),
            (fails(500, "<html>"), ModelUnavailable, ["failed (500)"]),
            (fails(529, {"message": "Overloaded"}), ModelUnavailable, ["529", "Overloaded"]),
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
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        caught = await error_of(fails(401, {"message": "invalid x-api-key"}), api_key=None)
        assert "the key in ANTHROPIC_API_KEY was refused by http://127.0.0.1" in str(caught)

    async def test_endpoint_that_wants_a_key_is_told_apart(self) -> None:
        caught = await error_of(fails(401, {"message": "who are you?"}), api_key="")
        assert "set ANTHROPIC_API_KEY" in str(caught)

    @pytest.mark.parametrize("status", [429, 529])
    async def test_retry_after_is_in_seconds(self, status: int) -> None:
        assert (await error_of(fails(status, retry_after="2.5"))).retry_after == 2.5
        assert (await error_of(fails(status))).retry_after is None

    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            ("overloaded_error", ModelUnavailable),
            ("api_error", ModelUnavailable),
            ("timeout_error", ModelUnavailable),
            ("rate_limit_error", ModelRateLimited),
            ("invalid_request_error", ModelRefused),
            ("authentication_error", ModelRefused),
            ("a_new_error", ModelUnavailable),
        ],
    )
    async def test_error_inside_the_stream_is_an_error_that_may_be_billed(
        self, kind: str, error: type[ModelError]
    ) -> None:
        inside = event("error", error={"type": kind, "message": f"Sorry, {KEY}"})
        caught = await error_of(stream(starts(), *text("Hel"), inside, end="hang"))
        assert type(caught) is error
        assert "Sorry" in str(caught)
        assert caught.may_be_billed

    @pytest.mark.parametrize("data", ["oops", "", "[1]", '{"type": "error"}', '{"error": "oops"}'])
    async def test_error_inside_the_stream_may_have_any_form(self, data: str) -> None:
        caught = await error_of(stream(starts(), f"event: error\ndata: {data}\n\n".encode()))
        assert type(caught) is ModelUnavailable

    async def test_request_that_is_refused_is_not_billed(self) -> None:
        assert not (await error_of(fails(400))).may_be_billed
        assert not (await error_of(fails(429))).may_be_billed


class TestBrokenWire:
    @pytest.mark.parametrize("end", ["cut", "close"])
    async def test_stream_that_breaks_off_is_no_reply_and_may_be_billed(self, end: Any) -> None:
        caught = await error_of(stream(starts(), *text("Hel", "lo"), end=end))
        assert type(caught) is ModelUnavailable
        assert "broke off after 5 characters" in str(caught)
        assert caught.may_be_billed

    async def test_stream_that_breaks_off_in_a_call_is_no_reply(self) -> None:
        caught = await error_of(stream(starts(), *call("f", '{"x":')[:-1]))
        assert type(caught) is ModelUnavailable

    @pytest.mark.parametrize(
        "data",
        [
            "{nonsense",
            '"event"',
            "[1]",
            "null",
            "7",
            "{}",
            '{"type": "message_start"}',
            '{"type": "message_start", "message": 5}',
            '{"type": "message_start", "message": {"usage": 3}}',
            '{"type": "content_block_start", "index": 0}',
            '{"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}',
            '{"type": "content_block_delta", "index": 0, "delta": null}',
            '{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": {"a": 1}}}',
            '{"type": "message_delta", "delta": "stop"}',
            '{"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": [1]}',
        ],
    )
    async def test_garbage_in_the_stream_is_named_as_such(self, data: str) -> None:
        caught = await error_of(garbage(f"event: message_start\ndata: {data}\n\n"))
        assert type(caught) is ModelUnavailable
        assert "no event of a message" in str(caught)

    @pytest.mark.parametrize(
        "extra",
        [
            {"usage": {"output_tokens": "many"}},
            {"usage": {"output_tokens": 5, "input_tokens": [1]}},
        ],
    )
    async def test_counts_that_are_none_are_named_as_such(self, extra: dict[str, Any]) -> None:
        last = event("message_delta", delta={"stop_reason": "end_turn"}, **extra)
        caught = await error_of(stream(starts(), *text("Hi"), last))
        assert type(caught) is ModelUnavailable

    async def test_arguments_that_are_no_text_are_named_as_such(self) -> None:
        opening = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        odd = block(0, opening, {"type": "input_json_delta", "partial_json": {"x": 1}})
        caught = await error_of(stream(starts(), *odd, *ends("tool_use")))
        assert type(caught) is ModelUnavailable

    @pytest.mark.parametrize("kind", ["text/html", "application/json"])
    async def test_answer_that_is_no_stream_hints_at_the_address(self, kind: str) -> None:
        caught = await error_of(garbage('{"type": "message", "content": []}', kind))
        assert type(caught) is ModelUnavailable
        assert kind in str(caught)
        assert "is the address right?" in str(caught)

    async def test_silence_before_the_first_word_times_out(self) -> None:
        caught = await error_of(hangs(), timeout=0.2)
        assert type(caught) is ModelTimeout
        assert "0.2 seconds" in str(caught)

    async def test_silence_in_the_middle_times_out(self) -> None:
        caught = await error_of(stream(starts(), *text("Hel"), end="hang"), timeout=0.2)
        assert type(caught) is ModelTimeout
        assert "after 3 characters" in str(caught)

    async def test_stream_may_last_longer_than_the_timeout(self) -> None:
        reply, _ = await reply_to(says(*"abcdefgh", seconds_between=0.15), timeout=1.0)
        assert reply.text == "abcdefgh"

    async def test_refused_connection_names_the_address_and_was_not_sent(self) -> None:
        async with Wire(says()) as wire:
            address = wire.url.removesuffix("/v1")
        model = Anthropic("claude-test", base_url=address.replace("http://", "http://me:secret@"))
        with pytest.raises(ModelUnavailable, match="cannot be reached") as caught:
            await model.reply(ask(), lambda _: None)
        await model.close()
        assert address in str(caught.value)
        assert "secret" not in str(caught.value)
        assert not caught.value.may_be_billed

    async def test_cancel_before_the_answer_closes_the_connection(self) -> None:
        async with Wire(hangs()) as wire:
            model = Anthropic("claude-test", base_url=wire.url)
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
            model = Anthropic("claude-test", base_url=wire.url)
            task = asyncio.create_task(model.reply(ask(), lambda _: heard.set()))
            await heard.wait()
            task.cancel()
            await wire.client_hung_up()
            with pytest.raises(asyncio.CancelledError):
                await task
            await model.close()


class TestConfiguration:
    async def test_anthropic_itself_needs_a_key(self) -> None:
        with pytest.raises(ModelNotConfigured, match="ANTHROPIC_API_KEY"):
            await Anthropic("claude-test").reply(ask(), lambda _: None)

    @pytest.mark.parametrize("key", ["two words", "schlüssel", "“quoted”"])
    async def test_key_that_cannot_be_one_is_not_shown(self, key: str) -> None:
        with pytest.raises(ModelNotConfigured) as caught:
            await Anthropic("claude-test", api_key=key).reply(ask(), lambda _: None)
        assert key not in str(caught.value)

    @pytest.mark.parametrize("address", ["localhost:8000", "http://a:b", "http://[::1"])
    async def test_address_that_cannot_be_one_is_shown(self, address: str) -> None:
        with pytest.raises(ModelNotConfigured) as caught:
            await Anthropic("claude-test", base_url=address).reply(ask(), lambda _: None)
        assert repr(address) in str(caught.value)

    def test_importing_the_adapter_imports_no_library(self) -> None:
        program = (
            "import sys, dayjob.models.anthropic\n"
            "print(sorted({'anthropic', 'pydantic', 'genai_prices', 'httpx2'} & sys.modules.keys()))"
        )
        assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"
