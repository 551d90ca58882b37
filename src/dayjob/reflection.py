"""Stopping to think: a plan that is made, kept and revised, and looks back at what was done.

A plan or a reflection is two messages of the conversation like any other, the prompt and what the model
said to it, so that it is seen from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dayjob.models import Message
from dayjob.run import Run

PLAN = "Before you begin, write a short numbered plan for this task. Do not carry it out yet."
REVISE = (
    "Stop for a moment: {why}. Say in a sentence what you learned; then write the plan of what is left anew."
)
REFLECT = "Stop for a moment: {why}. Say in a few sentences what you learned, and what you will do next."
GO_ON = "Now go on."
WHY = {
    "looped": "the same calls were made again and again",
    "failed": "the last calls failed",
    "invalid": "the last calls could not be made",
}


def time_to_reflect(outcomes: Sequence[str], plan: bool, every: int | None, cut: bool) -> str:
    """Why an agent should stop and think after turns with these outcomes; empty if it should not.

    `cut`: messages have just been left out of what it sees.
    """
    if not plan and every is None:
        return ""
    if not outcomes:
        return PLAN if plan else ""
    if why := WHY.get(outcomes[-1]):
        return why
    if plan and cut:
        return "earlier messages, and maybe the plan, are left out from now on"
    return f"{len(outcomes)} turns are over" if every and len(outcomes) % every == 0 else ""


async def reflect(
    run: Run, sent: list[Message], why: str, plan: bool, options: dict[str, Any]
) -> list[Message]:
    """What the model says to itself, as messages to go on with. No tools are offered meanwhile."""
    prompt = PLAN if why == PLAN else (REVISE if plan else REFLECT).format(why=why)
    asked: Message = {"role": "user", "content": prompt}
    reply = await run.model([*sent, asked], name="plan" if plan else "reflect", **options)
    return [asked, {"role": "assistant", "content": reply.text}, {"role": "user", "content": GO_ON}]
