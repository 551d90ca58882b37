"""What is said in a run: its thread, its input, what is sent to it meanwhile, and how much of it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dayjob.context import Policy, View
from dayjob.models import Message
from dayjob.run import Run
from dayjob.values import encode

MESSAGE = "message"
"""The name under which a text is sent to a run that listens: `app.send(run_id, "message", text)`."""

SUMMARISE = (
    "Sum up this part of a conversation in a few sentences: the facts, the decisions, what is still open."
)

ABOUT_THE_ANSWER = ("returns", "response_format", "tool_choice", "parallel_tool_calls", "name")


def aside(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call that is not to give the answer, and is offered no tools: a plan, a summary."""
    return {name: value for name, value in options.items() if name not in ABOUT_THE_ANSWER}


async def opened(run: Run, instructions: str, input: str) -> list[Message]:
    """The conversation at its beginning: instructions, what the thread holds, and the input."""
    earlier = await run.thread.messages() if run.thread else []
    opening: list[Message] = [{"role": "user", "content": input}]
    if earlier[-1:] == opening:  # it stands in the thread already
        earlier.pop()
    else:
        await append(run, opening)
    return [{"role": "system", "content": instructions}, *earlier, *opening]


async def append(run: Run, messages: Iterable[Message]) -> None:
    """Adds messages to the run's thread, if it has one."""
    if run.thread:
        for message in messages:
            await run.thread.append(message)


async def heard_by(run: Run) -> list[Message]:
    """What was sent to the run since it last listened; what is no text is heard as JSON."""
    heard: list[Message] = []
    while (said := await run.event(MESSAGE, timeout=0, default=None)) is not None:
        heard.append({"role": "user", "content": said if isinstance(said, str) else encode(said).decode()})
    return heard


async def fitted(
    run: Run, messages: list[Message], view: View, context: Policy | None, options: dict[str, Any]
) -> View:
    """The view that fits. What it leaves out is summed up if the policy says so, and named in a note."""
    before = view
    while context is not None and (moved := context.fit(messages, view)).start > view.start:
        summary = view.summary
        for part in context.parts(messages, view, moved):
            reply = await run.model(f"{SUMMARISE}\n\n{summary}\n\n{part}", name="summarise", **options)
            summary = context.shortened(reply.text, moved) or summary
        view = replace(moved, summary=summary)
    if view.start > before.start:
        first, last = view.named(messages)
        await run.note(f"context: messages {first} to {last} are left out", first=first, last=last)
    return view
