"""What Anthropic's Messages API sends over a `Wire`: streams of named events.

async with Wire(says("Hello there")) as wire:
    model = Anthropic("claude-test", base_url=wire.url, api_key="sk-test")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from tests.wire import Answer

USAGE = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 5,
    "cache_read_input_tokens": 4,
    "output_tokens": 1,
}
End = Literal["close", "hang", "cut"]


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def starts(usage: Mapping[str, Any] | None = USAGE, model: str = "claude-test-1") -> bytes:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": model}
    return event("message_start", message={**message, "stop_reason": None, "usage": usage})


def ends(reason: str = "end_turn", output_tokens: int = 5, **delta: Any) -> tuple[bytes, bytes]:
    usage = {"output_tokens": output_tokens}
    stopped = {"stop_reason": reason, "stop_sequence": None, **delta}
    return event("message_delta", delta=stopped, usage=usage), event("message_stop")


def block(index: int, opening: Mapping[str, Any], *deltas: Mapping[str, Any]) -> tuple[bytes, ...]:
    return (
        event("content_block_start", index=index, content_block=opening),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    )


def text(*pieces: str, index: int = 0) -> tuple[bytes, ...]:
    deltas = ({"type": "text_delta", "text": piece} for piece in pieces)
    return block(index, {"type": "text", "text": ""}, *deltas)


def call(name: str, *pieces: str, index: int = 0, call_id: str = "toolu_1") -> tuple[bytes, ...]:
    opening = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
    return block(index, opening, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


def thought(index: int = 0) -> tuple[bytes, ...]:
    return block(
        index,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Let me see."},
        {"type": "signature_delta", "signature": "EqQBCg=="},
    )


def stream(*events: bytes, end: End = "close", seconds_between: float = 0.0) -> Answer:
    return Answer(events, end=end, seconds_between=seconds_between)


def says(
    *pieces: str,
    reason: str = "end_turn",
    usage: Mapping[str, Any] | None = USAGE,
    model: str = "claude-test-1",
    end: End = "close",
    seconds_between: float = 0.0,
) -> Answer:
    """A complete stream that says the pieces, with a ping as the API sends them."""
    events = (starts(usage, model), event("ping"), *text(*pieces), *ends(reason))
    return stream(*events, end=end, seconds_between=seconds_between)


def calls(name: str, *pieces: str) -> Answer:
    return stream(starts(), *call(name, "", *pieces), *ends("tool_use"))
