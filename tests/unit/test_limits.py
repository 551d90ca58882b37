"""Limits say what is wrong with them; what a request may cost at most is never less than what it does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dayjob import InputError, Limits, StepError
from dayjob.errors import ModelUnavailable
from dayjob.limits import to_billionths
from dayjob.models import ModelRequest, Priced, Usage
from dayjob.models.anthropic import Anthropic
from dayjob.models.local import Local
from dayjob.models.openai import OpenAI
from dayjob.models.scripted import Scripted
from dayjob.spending import IMAGE_TOKENS, most_input_tokens
from dayjob.stores.sqlite_budgets import billionths


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "at least one"),
        ({"on_limit": "ask"}, "at least one"),
        ({"dollars": 0}, "dollars: expected a number above 0"),
        ({"dollars": -1.0}, "dollars"),
        ({"dollars": "1"}, "dollars"),
        ({"dollars": float("nan")}, "dollars"),
        ({"dollars": float("inf")}, "dollars"),
        ({"tokens": 1.5}, "tokens: expected an int above 0"),
        ({"tokens": 10**12}, "tokens"),
        ({"input_tokens": 0}, "input_tokens: expected an int above 0"),
        ({"output_tokens": 2.0}, "output_tokens: expected an int above 0"),
        ({"steps": True}, "steps"),
        ({"steps": 0}, "steps"),
        ({"seconds": -0.1}, "seconds"),
        ({"steps": 1, "on_limit": "wait"}, 'on_limit: expected "stop" or "ask"'),
    ],
)
def test_bad_limits_are_refused_naming_the_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"limits: .*{named}|limits: {named}"):
        Limits(**fields)


def test_good_limits_are_what_was_given() -> None:
    limits = Limits(dollars=1, seconds=0.5)
    assert (limits.dollars, limits.tokens, limits.steps, limits.seconds) == (1, None, None, 0.5)
    assert limits.on_limit == "stop"


@pytest.mark.parametrize("dollars", [0.1, 0.3, 0.7, 1.1, 2.675, 1e-9, 123_456.789])
def test_a_limit_is_never_rounded_up_and_a_price_never_down(dollars: float) -> None:
    assert billionths(dollars) == to_billionths(dollars) == round(dollars * 1e9)
    assert billionths(dollars + 4e-10) <= to_billionths(dollars + 4e-10)


def request(*messages: dict[str, Any], **more: Any) -> ModelRequest:
    return ModelRequest("openai:gpt-5-mini", messages, **more)


def test_input_is_bounded_by_its_bytes() -> None:
    text = "Grüße, 世界! \x00 🙂" * 50
    bound = most_input_tokens(request({"role": "user", "content": text}))
    assert len(text.encode()) < bound < len(text.encode()) * 2
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert most_input_tokens(request({"role": "user", "content": text}, tools=[tool])) > bound + 512
    assert most_input_tokens(request({"role": "user", "content": text}, schema={"type": "object"})) > bound


def test_an_image_counts_as_many_tokens_and_what_nobody_can_tell_is_refused() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    assert most_input_tokens(request({"role": "user", "content": [image]})) > IMAGE_TOKENS
    for part in ({"type": "file", "file": {"file_id": "f1"}}, {"type": "video"}):
        with pytest.raises(StepError, match=repr(part["type"])):
            most_input_tokens(request({"role": "user", "content": [part]}))


def test_models_say_their_price_beforehand() -> None:
    asked = request({"role": "user", "content": "Hi"})
    openai = OpenAI("gpt-5-mini", api_key="sk", base_url="https://api.openai.com/v1")
    some, more = (openai.price(asked, Usage(1_000, count)) for count in (10, 1_000))
    assert some is not None and more is not None and 0 < some < more
    assert OpenAI("no-such-model", api_key="sk").price(asked, Usage(1, 1)) is None
    assert Local().price(asked, Usage(1_000, 1_000)) == 0.0
    assert Scripted([], price=lambda usage: usage.output_tokens).price(asked, Usage(0, 7)) == 7
    assert Scripted([], price=None).price(asked, Usage(0, 7)) is None
    assert all(isinstance(model, Priced) for model in (openai, Anthropic("any"), Local(), Scripted([])))


async def test_a_call_that_never_reached_its_endpoint_is_not_billed() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    model = OpenAI("any", api_key="", base_url=f"http://127.0.0.1:{port}/v1")
    asked = request({"role": "user", "content": "Hi"})
    with pytest.raises(ModelUnavailable) as broken:
        await model.reply(asked, lambda text: None)
    server.close()
    await server.wait_closed()
    with pytest.raises(ModelUnavailable) as refused:
        await model.reply(asked, lambda text: None)
    await model.close()
    assert broken.value.may_be_billed
    assert not refused.value.may_be_billed
