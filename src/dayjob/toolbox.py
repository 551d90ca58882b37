"""The tools that a model was offered: finds the one that it calls, calls it, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from dayjob.errors import InputError, StepError
from dayjob.models import Message, ToolCall
from dayjob.run import Run
from dayjob.shapes import shape_of
from dayjob.tools import Tool, as_tool, shorten
from dayjob.values import encode

LOOP_TIMES = 3
LONGEST_LOOP = 3
LOOKS_BACK = LOOP_TIMES * LONGEST_LOOP - 1

Made = tuple[list[list[str]], list[Any] | None]
"""The calls of a turn, a tool and its arguments each, and what they gave; None if they were refused."""


@dataclass(frozen=True)
class Observed:
    """What came of one call, as the message that tells the model.

    `outcome` is "done", "failed" (the tool's error), or "invalid": no such tool, or arguments that do not
    fit it, so that nothing was done.
    """

    message: Message
    outcome: Literal["done", "failed", "invalid"]


class Toolbox:
    """Tools by name; a plain function is one, as `as_tool` makes it."""

    def __init__(self, tools: Iterable[Tool[..., Any] | Callable[..., Any]]) -> None:
        self.tools = [as_tool(tool) for tool in tools]
        self._named = {tool.name: tool for tool in self.tools}
        if len(self._named) < len(self.tools):
            names = [tool.name for tool in self.tools]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"tools: {twice!r} stands for more than one tool")

    async def call(self, run: Run, call: ToolCall) -> Observed:
        """One call of a model, as a step. What goes wrong is told to the model, and not raised."""
        tool = self._named.get(call.name)
        if tool is None:
            names = ", ".join(self._named) or "none"
            return observed(
                call, f"UnknownTool: there is no tool {call.name!r}; there are: {names}", "invalid"
            )
        try:
            arguments = orjson.loads(call.arguments.strip() or "{}")
        except orjson.JSONDecodeError as problem:
            return observed(call, f"InvalidArguments: {call.name}: this is no JSON: {problem}", "invalid")
        if not isinstance(arguments, dict):
            told = f"InvalidArguments: {call.name}: expected an object, got {shorten(arguments)}"
            return observed(call, told, "invalid")
        try:
            value = await run.tool(tool, **arguments)
        except StepError as problem:
            invalid = problem.type == "InvalidArguments"
            return observed(call, str(problem), "invalid" if invalid else "failed")
        told = value if isinstance(value, str) else encode(value, shape_of(tool.fn).returns).decode()
        return observed(call, told, "done")


def unforced(options: dict[str, Any]) -> dict[str, Any]:
    """Without a choice of tool that forces a call: where each reply has to be a call, none is an answer."""
    choice = options.get("tool_choice")
    forces = choice == "required" or (isinstance(choice, dict) and choice.get("type") == "function")
    return {name: value for name, value in options.items() if not (forces and name == "tool_choice")}


def refused(call: ToolCall, why: str) -> Observed:
    """The answer to a call that is not made."""
    return observed(call, why, "invalid")


def observed(call: ToolCall, content: str, outcome: Literal["done", "failed", "invalid"]) -> Observed:
    return Observed({"role": "tool", "tool_call_id": call.id, "content": content}, outcome)


def outcome_of(observed: Sequence[Observed]) -> str:
    """What came of the calls of a turn: "acted" if one succeeded, else "failed", or "invalid" if none was made."""
    outcomes = {each.outcome for each in observed}
    return "acted" if "done" in outcomes else "failed" if "failed" in outcomes else "invalid"


def is_loop(earlier: Sequence[Made], calls: list[list[str]]) -> bool:
    """Whether these calls would make the last turns the same three times over: the same calls, that gave the same.

    What is repeated is one turn, or up to three in the same order: a test that is run after each of many
    different edits is no loop, and neither is asking for news as long as there are some.
    """
    for length in range(1, LONGEST_LOOP + 1):
        recent = earlier[1 - LOOP_TIMES * length :]
        repeated = len(recent) == LOOP_TIMES * length - 1 and calls == recent[-length][0]
        if repeated and all(map(_is_same, recent, recent[length:])):
            return True
    return False


def _is_same(one: Made, other: Made) -> bool:
    return one[0] == other[0] and (None in (one[1], other[1]) or one[1] == other[1])
