"""The built-in job `assistant`: the agent pattern over a thread, with no plan, no reflection and no added prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import orjson

from dayjob.context import Policy, auto
from dayjob.errors import DayjobError, Incomplete, StepError
from dayjob.jobs import Job, job
from dayjob.models import Model, ModelRequest
from dayjob.patterns.agent import agent
from dayjob.run import Run
from dayjob.runs import RunRecord
from dayjob.spending import most_input_tokens
from dayjob.tools import ClientTool, Tool, definition_of
from dayjob.values import convert

JOB = "assistant"
MOST_TURNS = 1_000
MOST_MESSAGES = 2_000
DEFAULT_WINDOW = 128_000
"""Tokens; for a model of which nobody says how much it takes."""


@dataclass(frozen=True)
class AssistantRun:
    """What a run of an assistant was asked for, in the words of the Assistants wire.

    `model` is the name that the client gave, `answers` the model that answers for it; None is the worker's own.
    `tools` are as the client gave them; of the functions among them those that the server has are called
    here, and the others by the client. `temperature` and the like are None unless they were given.
    """

    assistant: str
    model: str
    answers: str | None = None
    instructions: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    temperature: float | None = None
    top_p: float | None = None
    reasoning_effort: str | None = None
    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    truncation_strategy: dict[str, Any] = field(
        default_factory=lambda: {"type": "auto", "last_messages": None}
    )
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    response_format: Any = "auto"

    @property
    def options(self) -> dict[str, Any]:
        """What of it goes to the model as it is."""
        offers = any(
            tool["type"] == "function" for tool in self.tools
        )  # providers refuse a choice among none
        choice = self.tool_choice if offers and self.tool_choice != "auto" else None
        if isinstance(choice, dict) and choice.get("type") != "function":
            choice = None
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "reasoning_effort": self.reasoning_effort,
            "response_format": None if self.response_format == "auto" else self.response_format,
            "tool_choice": choice,
            "parallel_tool_calls": False if offers and not self.parallel_tool_calls else None,
        }
        return {name: value for name, value in given.items() if value is not None}


Seeing = Callable[[Run, Model], Model]
"""Makes a run's model one that is given what the messages only refer to."""


def assistant_job(tools: Iterable[Tool[..., Any]] = (), seeing: Seeing | None = None) -> Job:
    """The job, with the tools that are executed here; all others are the client's."""
    here = {tool.name: tool for tool in tools}

    @job(name=JOB, version="1")
    async def assistant(run: Run, request: AssistantRun) -> str:
        functions = [tool for tool in request.tools if tool["type"] == "function"]
        offered = [here.get(each["function"]["name"]) or ClientTool.of(each) for each in functions]
        try:
            return await agent(
                run, request.instructions, tools=offered, max_steps=MOST_TURNS, max_loops=None,
                context=_context(request, offered), model=_model(run, request, seeing), **request.options,
            )  # fmt: skip
        except StepError as error:
            if error.type == "CutOff":
                raise Incomplete("max_completion_tokens") from None
            if error.type == "WindowTooSmall" and request.max_prompt_tokens is not None:
                raise Incomplete("max_prompt_tokens") from None
            if error.type == "EmptyPrompt":
                why = (
                    "the thread has no message, and the assistant no instructions: there is nothing to answer"
                )
                raise StepError(error.type, why, step=error.step) from None
            raise

    return assistant


def request_of(run: RunRecord) -> AssistantRun:
    """What a run of this job was asked for."""
    return _request(run.input or b"{}")


@lru_cache(1_000)
def _request(input: bytes) -> AssistantRun:
    found: AssistantRun = convert(orjson.loads(input)["request"], AssistantRun)
    return found


def _model(run: Run, request: AssistantRun, seeing: Seeing | None) -> str | Model | None:
    if seeing is None:
        return request.answers
    try:
        return seeing(run, run.keeper.model_named(request.answers))
    except DayjobError:  # there is none: the model's step says so
        return request.answers


def _context(request: AssistantRun, offered: Iterable[Tool[..., Any] | ClientTool]) -> Policy:
    strategy = request.truncation_strategy
    last = strategy.get("last_messages") if strategy.get("type") == "last_messages" else None
    policy = auto(DEFAULT_WINDOW)
    if request.max_prompt_tokens is not None:
        policy = _surely_within(request.max_prompt_tokens, [definition_of(tool) for tool in offered])
    return replace(policy, opens_with=last or MOST_MESSAGES, silent=True)


def _surely_within(tokens: int, tools: Sequence[Mapping[str, Any]]) -> Policy:
    """As many of the last messages as a limit of tokens allows to be sent, which counts what they are at most."""
    most = min(tokens, DEFAULT_WINDOW)
    return Policy(
        lambda messages, view: most_input_tokens(ModelRequest("", view.of(messages), tools)) / most,
    )
