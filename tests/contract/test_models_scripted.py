"""The model that tests are written with."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from dayjob.errors import InputError, ModelRateLimited, ModelRefused
from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage
from dayjob.models.scripted import Delay, Scripted


class City(BaseModel):
    name: str
    large: bool = True


def ask(text: str = "Hello?", **more: Any) -> ModelRequest:
    return ModelRequest("scripted", [{"role": "user", "content": text}], **more)


async def reply_to(model: Scripted, request: ModelRequest | None = None) -> ModelReply:
    return await model.reply(request or ask(), lambda _: None)


async def test_list_is_said_in_order_and_its_end_is_an_error() -> None:
    model = Scripted(["one", "two"])
    assert [(await reply_to(model)).text for _ in range(2)] == ["one", "two"]
    with pytest.raises(ModelRefused, match="this is call 3, but the script has only 2 replies"):
        await reply_to(model)


async def test_list_is_dealt_out_in_the_order_in_which_calls_begin() -> None:
    model = Scripted([Delay(0.01, "slow"), "fast"])
    replies = await asyncio.gather(reply_to(model), reply_to(model))
    assert [reply.text for reply in replies] == ["slow", "fast"]


async def test_function_sees_the_request() -> None:
    model = Scripted(lambda request: request.messages[-1]["content"].upper())
    assert (await reply_to(model, ask("loud"))).text == "LOUD"


async def test_function_may_be_async_and_may_give_a_delay() -> None:
    async def answer(request: ModelRequest) -> Any:
        await asyncio.sleep(0)
        return Delay(0.0, Delay(0.0, "at last"))

    assert (await reply_to(Scripted(answer))).text == "at last"


async def test_long_text_comes_in_a_few_pieces_cut_at_spaces() -> None:
    text = "Some words that are said again and again. " * 50
    pieces: list[str] = []
    await Scripted([text]).reply(ask(), pieces.append)
    assert "".join(pieces) == text
    assert 2 < len(pieces) <= 9
    assert all(piece.endswith(" ") for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"name": "Rome"}, '{"name":"Rome"}'),
        ([1, "two", None], '[1,"two",null]'),
        ([], "[]"),
        (7, "7"),
        (True, "true"),
        (City(name="Rome"), '{"name":"Rome","large":true}'),
    ],
)
async def test_json_value_is_said_as_json(said: Any, text: str) -> None:
    reply = await reply_to(Scripted([said]))
    assert (reply.text, reply.finish, reply.tool_calls) == (text, "stop", ())


@pytest.mark.parametrize(
    "said",
    [
        ToolCall("call_1_1", "find", '{"id":7}'),
        [ToolCall("call_1_1", "find", '{"id":7}')],
        {"tool": "find", "arguments": {"id": 7}},
        [{"tool": "find", "arguments": {"id": 7}}],
    ],
)
async def test_tool_calls_have_many_spellings(said: Any) -> None:
    reply = await reply_to(Scripted([said]))
    assert reply.tool_calls == (ToolCall("call_1_1", "find", '{"id":7}'),)
    assert (reply.text, reply.finish) == ("", "tool_calls")


async def test_tool_calls_of_dicts_have_ids_of_their_own() -> None:
    model = Scripted(lambda _: [{"tool": "a"}, {"tool": "b"}])
    calls = [*(await reply_to(model)).tool_calls, *(await reply_to(model)).tool_calls]
    assert len({call.id for call in calls}) == 4


@pytest.mark.parametrize("said", [ModelRateLimited(retry_after=2), ModelRateLimited])
async def test_error_is_raised(said: Any) -> None:
    with pytest.raises(ModelRateLimited):
        await reply_to(Scripted([said]))


async def test_whole_reply_is_given_as_it_is() -> None:
    whole = ModelReply("cut", (), Usage(1, 2, 3), 0.5, "length", "other")
    assert await reply_to(Scripted([whole])) is whole


@pytest.mark.parametrize("said", [None, {1, 2}, object()])
async def test_what_cannot_be_said_is_an_error(said: Any) -> None:
    with pytest.raises(InputError, match="the script gave"):
        await reply_to(Scripted([said]))


@pytest.mark.parametrize("reply", ["just a text", 7, None])
def test_script_that_is_neither_list_nor_function_is_refused(reply: Any) -> None:
    with pytest.raises(InputError, match="expected a list, or a function"):
        Scripted(reply)


async def test_price_is_nothing_a_number_a_function_or_unknown() -> None:
    async def dollars(**price: Any) -> float | None:
        return (await reply_to(Scripted(["four words of text"], **price))).dollars

    assert await dollars() == 0.0
    assert await dollars(price=0.25) == 0.25
    assert await dollars(price=lambda usage: usage.output_tokens / 10) == 0.5
    assert await dollars(price=None) is None


async def test_usage_is_a_quarter_of_the_characters_of_what_is_new() -> None:
    messages = [{"role": "user", "content": "x" * 4000}, {"role": "user", "content": "y" * 40}]
    reply = await reply_to(Scripted(["z" * 20]), ModelRequest("scripted", messages))
    assert reply.usage == Usage(10, 5)


async def test_text_is_cut_at_max_tokens() -> None:
    reply = await reply_to(Scripted(["x" * 100]), ask(max_tokens=5))
    assert (reply.text, reply.finish, reply.usage.output_tokens) == ("x" * 20, "length", 5)


async def test_requests_are_kept_unless_told_otherwise() -> None:
    keeping = Scripted(lambda _: "yes")
    forgetting = Scripted(lambda _: "yes", keep_requests=False)
    request = ask("Remember me.")
    for model in (keeping, forgetting):
        await reply_to(model, request)
    assert keeping.requests == [request]
    assert forgetting.requests == []


async def test_name_is_what_it_was_given() -> None:
    model = Scripted(["yes"], name="clever")
    assert model.name == "clever"
    assert (await reply_to(model)).model == "clever"
