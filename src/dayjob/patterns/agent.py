"""The autonomous agent: a long-running job that plans, acts and observes until a stopping condition.

await agent(run, "You answer billing tickets.", ticket, tools=[find_order, refund])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dayjob.context import Policy, View
from dayjob.conversation import append, aside, fitted, heard_by, opened
from dayjob.errors import InputError, StepError
from dayjob.models import Message, ToolCall
from dayjob.reflection import reflect, time_to_reflect
from dayjob.replies import Reply
from dayjob.run import Run
from dayjob.toolbox import LOOKS_BACK, Made, Observed, Toolbox, is_loop, outcome_of, refused, unforced
from dayjob.tools import Tool

NOT_DONE = "That is not the end yet. Go on."
LOOP = "Not called: the same calls were made again and again. Use what they gave, or try another way."
CUT_SHORT = "Not called: your reply was cut off. Make the calls again, in a shorter reply."

CUT_OFF = ("length", "content_filter")
MAX_INVALID_TURNS = 3


@dataclass(frozen=True)
class Turn:
    """What one turn added to the conversation, what it called, and what came of it.

    `outcome` is "acted", "failed" (no call succeeded), "invalid" (none could be made), "looped",
    "answered" (and more is wanted), or the reason why it is the last: "done", "length", "content_filter".
    """

    said: list[Message]
    view: View
    outcome: str
    calls: list[list[str]]

    @property
    def made(self) -> Made:
        refused = self.outcome == "looped"
        return self.calls, None if refused else [
            each["content"] for each in self.said if each["role"] == "tool"
        ]


async def agent(
    run: Run,
    instructions: str,
    input: str,
    tools: Iterable[Tool[..., Any] | Callable[..., Any]] = (),
    *,
    done: Callable[..., Any] | None = None,
    plan: bool = False,
    reflect_every: int | None = None,
    max_steps: int = 20,
    context: Policy | None = None,
    **options: Any,
) -> str:
    """What the model says once it calls no more tools and `done(answer)`, if given, says True.

    `done` may also return a text that says what is missing. With `plan` it keeps a plan and revises it when
    calls fail or repeat and when messages are left out; every `reflect_every` turns it looks back. `context`
    chooses what fits the window; without one everything is sent. `options` go to `run.model`; those
    that shape the answer, such as `returns`, to no plan, reflection or summary. A text sent to the run as
    "message" is heard at the next turn. On a thread the conversation is gone on with, and appended
    to. Each end leaves a note with its reason; without an answer StepError of type Stopped is raised. What was
    said last is the run's partial output.
    """
    if max_steps < 1 or (reflect_every is not None and reflect_every < 1):
        raise InputError(f"agent: max_steps={max_steps}, reflect_every={reflect_every}: expected 1 or more")
    toolbox, turns = Toolbox(tools), list[Turn]()
    talk = await opened(run, instructions, input)
    task = len(talk) - 1

    async def act(run: Run, call: ToolCall) -> Observed:
        observed = await toolbox.call(run, call)
        await append(run, [observed.message])
        return observed

    async def turn(run: Run) -> Turn:
        heard = await heard_by(run)
        await append(run, heard)
        before = turns[-1].view if turns else View(task=task)
        view = await fitted(run, [*talk, *heard], before, context, aside(options))
        thoughts: list[Message] = []
        outcomes = [turn.outcome for turn in turns]
        if why := time_to_reflect(outcomes, plan, reflect_every, cut=view.start > before.start):
            thoughts = await reflect(run, view.of([*talk, *heard]), why, plan, aside(options))
        sent = view.of([*talk, *heard, *thoughts])
        reply = await run.model(sent, tools=toolbox.tools, **(unforced(options) if turns else options))
        await append(run, [reply.message])
        if reply.text:
            await run.partial(reply.text)
        if context is not None:
            view = view.counted(sent, reply.usage.input_tokens)
        calls = [[call.name, call.arguments] for call in reply.tool_calls]
        if not calls:
            after = await _missing(run, done, reply.text) or await heard_by(run)
            await append(run, after)
            outcome = "answered" if after else reply.finish if reply.finish in CUT_OFF else "done"
        elif why := _why_not(reply, turns, calls):
            after = [refused(call, why).message for call in reply.tool_calls]
            outcome = "looped" if why == LOOP else "invalid"
            await append(run, after)
        else:
            observed = await run.map(act, reply.tool_calls, name="act")
            after, outcome = [each.message for each in observed], outcome_of(observed)
        return Turn([*heard, *thoughts, reply.message, *after], view, outcome, calls)

    while (reason := _end(turns, max_steps)) is None:
        turns.append(await run.step(turn))
        talk += turns[-1].said
    await run.note(f"agent: {reason}", pattern="agent", reason=reason, turns=len(turns))
    if reason != turns[-1].outcome:
        raise StepError("Stopped", f"agent: {reason} after {len(turns)} turns, without an answer")
    return str(talk[-1]["content"])


def _end(turns: Sequence[Turn], max_steps: int) -> str | None:
    """The one reason why there is no further turn, or None."""
    outcomes = [turn.outcome for turn in turns]
    if outcomes and outcomes[-1] in ("done", *CUT_OFF):
        return outcomes[-1]
    if outcomes.count("looped") > 1:
        return "loop"
    if outcomes[-MAX_INVALID_TURNS:] == ["invalid"] * MAX_INVALID_TURNS:
        return "invalid_calls"
    return "max_steps" if len(turns) >= max_steps else None


def _why_not(reply: Reply, turns: Sequence[Turn], calls: list[list[str]]) -> str:
    """Why the calls of a reply are not made; empty if they are."""
    if reply.finish in CUT_OFF:
        return CUT_SHORT
    return LOOP if is_loop([turn.made for turn in turns[-LOOKS_BACK:]], calls) else ""


async def _missing(run: Run, done: Callable[..., Any] | None, answer: str) -> list[Message]:
    verdict = True if done is None else await run.step(done, answer, name="done")
    if verdict is True:
        return []
    return [{"role": "user", "content": verdict if verdict and isinstance(verdict, str) else NOT_DONE}]
