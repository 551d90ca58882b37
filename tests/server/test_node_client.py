"""The official JavaScript client, an old version and the current one, does all that it can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dayjob.models import ModelRequest
from dayjob.models.scripted import Delay
from tests.clients.nodejs import VERSIONS, node
from tests.server.serving import serving
from tests.server.wire_rules import BEGINNING, MESSAGE_EVENTS


def reply(request: ModelRequest) -> Any:
    last = request.messages[-1]
    if last["role"] == "tool":
        return f"It is {last['content']} there."
    match last["content"]:
        case "weather":
            return {"tool": "weather", "arguments": {"city": "Rome"}}
        case "forever":
            return Delay(60, "At last.")
        case "slow":
            return Delay(0.3, "At last.")
        case "fail":
            return ValueError("no luck")
    return f"You said {last['content']}."


CALL_EVENTS = [*MESSAGE_EVENTS[:2], "thread.run.step.delta", "thread.run.requires_action"]
MESSAGE_HANDLERS = [
    *("runStepCreated", "messageCreated", "textCreated", "messageDelta", "textDelta"),
    *("textDone", "messageDone", "runStepDone", "end"),
]
CALL_HANDLERS = [
    *("runStepCreated", "toolCallCreated", "runStepDelta", "toolCallDelta", "runStepDelta"),
    *("toolCallDone", "end"),
]


def refused(status: int, message: str) -> dict[str, Any]:
    kind = {400: "BadRequestError", 404: "NotFoundError"}[status]
    return {"class": kind, "status": status, "message": message}


@pytest.mark.parametrize("version", VERSIONS)
async def test_everything_that_an_app_does(tmp_path: Path, version: str) -> None:
    async with serving(tmp_path, reply) as here:
        told = await node("everything.mjs", version, here.url, here.secret)
    assert told["models"] == {"listed": ["scripted"], "retrieved": "scripted"}
    assert told["files"].pop("after")["status"] == 404
    assert told["files"] == {
        "name": "table.csv", "bytes": 8, "content": "a,b\n1,2\n", "isListed": True, "deleted": True,
    }  # fmt: skip
    assert told["assistants"].pop("unknown")["class"] == "NotFoundError"
    assert told["assistants"] == {
        "changed": {"name": "one", "instructions": "Be kind.", "metadata": {"a": "b"}},
        "deleted": [True, True, True],
        "left": [],
    }
    assert told["threads"].pop("unknown")["class"] == "NotFoundError"
    assert told["threads"] == {
        "metadata": [{"who": "me"}, {"n": "2"}],
        "pages": ["one", "two", "three"],
        "after": ["two", "three"],
        "before": ["one"],
        "gone": True,
        "newest": ["two"],
        "deleted": True,
    }
    assert told["ofRuns"] == {
        "made": "queued",
        "done": "completed",
        "usage": True,
        "metadata": {"n": "2"},
        "steps": [["message_creation", "completed"]],
        "said": ["You said Again."],
        "thread": ["Hello", "You said Hello.", "Again", "You said Again."],
    }
    assert told["ofTools"] == {
        "lock": [
            refused(400, "Can't add messages to thread while a run run is active."),
            refused(400, "Thread thread already has an active run run."),
            refused(400, "Expected tool outputs for call_ids ['call_3_1'], got []"),
        ],
        "call": {"name": "weather", "arguments": '{"city":"Rome"}'},
        "statuses": ["queued", "completed", "requires_action", "completed"],
        "outputs": ["snow"],
        "said": ["It is snow there.", "weather", "It is sunny there.", "weather"],
    }
    assert told["cancelled"] == {
        "done": "cancelled",
        "twice": refused(400, "Cannot cancel run with status 'cancelled'."),
    }
    assert told["streamed"] == {
        "names": MESSAGE_HANDLERS,
        "events": [*BEGINNING, *MESSAGE_EVENTS],
        "said": "You said Hello over there, dear stream.",
        "status": "completed",
        "final": ["You said Hello over there, dear stream."],
    }
    around = {"first": "thread.created", "last": "thread.run.completed"}
    assert told["streamedWithItsThread"] == {**around, "said": ["You said Hello."]}
    assert told["plain"] == around
    assert told["handedInByAHandler"] == {
        "first": {
            "names": CALL_HANDLERS,
            "events": [*BEGINNING, *CALL_EVENTS],
            "args": '{"city":"Rome"}',
            "status": "requires_action",
        },
        "nested": {
            "names": ["runStepDone", *MESSAGE_HANDLERS],
            "events": ["thread.run.step.completed", *BEGINNING[1:], *MESSAGE_EVENTS],
            "status": "completed",
            "final": ["It is fog there."],
        },
    }
    assert told["aborted"] == {"why": "APIUserAbortError", "done": "completed", "said": "At last."}
    assert told["failed"] == {"status": "failed", "code": "server_error"}
