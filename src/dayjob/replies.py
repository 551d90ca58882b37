"""One model call as a step: the request, its tries and corrections, and the reply."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from dayjob.errors import (
    DayjobError,
    EmptyPrompt,
    InputError,
    InvalidAnswer,
    NotJSON,
    StepError,
    ValueTooLarge,
)
from dayjob.events import Speech
from dayjob.journal import error_bytes
from dayjob.kept import MessageRecord
from dayjob.keys import message_id
from dayjob.models import Message, Model, ModelReply, ModelRequest, ToolCall, Usage
from dayjob.prompts import Prompt
from dayjob.retry import Again, RetryPolicy, decide
from dayjob.runs import Kind, Outcome, Status, StepRecord
from dayjob.spending import Hold, accept_less_output, hold_model
from dayjob.steps import Steps, cancellings
from dayjob.tools import definition_of
from dayjob.values import convert, schema_of

FENCE = "```"
CUT_OFF: dict[str, str] = {
    "length": "max_tokens",
    "content_filter": "content_filter",
    Status.CANCELLED: "run_cancelled",
    Status.EXPIRED: "run_expired",
}
"""Why an answer is not whole, by how it finished, or how the run ended."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer.

    `value` is the answer as `returns=` asked for it, else None. `dollars` is None when the price is
    unknown. `finish` is "stop", "length", "tool_calls" or "content_filter". `message` is the answer as
    a chat-style message, ready to be appended to the conversation.
    """

    text: str
    value: Any
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    dollars: float | None
    finish: str

    @property
    def message(self) -> Message:
        return message_of(self)


def message_of(reply: Reply | ModelReply) -> Message:
    """A reply as a chat-style message."""
    message: Message = {
        "role": "assistant",
        "content": reply.text or None if reply.tool_calls else reply.text,
    }
    if reply.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.tool_calls
        ]
    return message


class ModelCall:
    """What `run.model` was given."""

    def __init__(
        self,
        prompt: str | Sequence[Message],
        model: str | Model | None,
        instructions: str | None,
        tools: Iterable[Any],
        returns: Any,
        max_tokens: int | None,
        options: dict[str, Any],
        append: bool = False,
    ) -> None:
        messages: list[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        )
        if not messages:
            raise EmptyPrompt
        if instructions is not None:
            messages.insert(0, {"role": "system", "content": instructions})
        self.messages = messages
        self.model = model
        self.tools = [definition_of(tool) for tool in tools]
        names = [tool["function"]["name"] for tool in self.tools]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"tools: {twice!r} stands for more than one tool")
        self.returns = returns
        self.schema = None if returns is None else schema_of(returns)
        self.max_tokens = max_tokens
        self.options = options
        self.append = append

    async def perform(
        self,
        run: Steps,
        key: str,
        name: str,
        retry: RetryPolicy,
        timeout: float | None,
        corrections: int,
    ) -> Reply:
        """Replays the recorded reply, or asks the model until there is a good one or no reason to go on."""
        model, missing = self._model(run)
        prompt = self._prompt(run, model, self.messages)
        row = await run.find(key, name, Kind.MODEL, prompt.fingerprint)
        if row is not None:
            run.scope.prompt = prompt
            prompt.stored_by = f"{row.attempt}:{row.key}"
            return self._reply_of(row, await run.replay(row, Any))
        await run.live()
        try:
            return await self._live(run, key, name, model, missing, prompt, retry, timeout, corrections)
        finally:
            run.keeper.events.end(run.id, key, run.journal.epoch)

    async def _live(
        self, run: Steps, key: str, name: str, model: Model | None, missing: StepError | None, prompt: Prompt,
        retry: RetryPolicy, timeout: float | None, corrections: int,
    ) -> Reply:  # fmt: skip
        fingerprint = prompt.fingerprint
        failed = len(run.journal.retries_of(key))
        while True:
            failed += 1
            started = run.journal.clock()
            reply, error, again = None, missing, None
            pieces: list[str] = []
            held, billed = None, True
            before = cancellings()
            limit = asyncio.timeout(timeout)
            try:
                if error is None:
                    if run.keeper.budget is not None:
                        held = await self._hold(run, model, key, prompt)
                        started = run.journal.clock()
                    reply = await self._ask(run, model, key, name, prompt, limit, held, started, pieces)
                    self._value(reply)
            except asyncio.CancelledError:
                if run.scope.closed or cancellings() > before:
                    if held is not None:
                        held.spend_all()
                    self._break_off(run, key, name, started, fingerprint, "".join(pieces))
                    raise
                error = StepError("CancelledError", f"model step {name!r} cancelled itself", step=key)
            except InvalidAnswer as problem:
                error = StepError("InvalidAnswer", str(problem), step=key)
                if corrections > 0:
                    corrections -= 1
                    again = Again()
            except Exception as problem:
                error = run.step_error(key, name, problem, timeout if limit.expired() else None)
                billed = getattr(problem, "may_be_billed", True)
                again, error = decide(retry, failed, error)
                if held is not None and model is not None and accept_less_output(run, model, held, error):
                    failed, again = failed - 1, Again()
            row = self._row(
                run, key, name, started, fingerprint, model, prompt, reply, error, again is not None
            )
            if reply is None and pieces:  # who heard a part of it, at whatever server, is owed the rest
                row.value = run.encode(
                    f"model step {name!r}", {"text": "".join(pieces), "tool_calls": [], "finish": ""}
                )
            run.scope.prompt = prompt
            prompt.stored_by = f"{row.attempt}:{row.key}"
            more: dict[str, Any] = {"messages": prompt.new}
            if again is None and self.append:
                more["append"] = self._message(run, row, reply, "".join(pieces))
            if held is None:
                await run.commit(row, **more)
            else:
                await held.commit(row, reply, billed, **more)
            run.keeper.events.end(run.id, key, run.journal.epoch)
            if error is None and reply is not None:
                return self._reply_of(row, orjson.loads(row.value or b"{}"))
            assert error is not None
            if again is None:
                raise error
            if reply is not None:
                prompt = self._prompt(run, model, self._corrected(prompt, reply, error))
            await run.pause(key, failed, again.delay, error)

    def _model(self, run: Steps) -> tuple[Model | None, StepError | None]:
        try:
            return run.keeper.model_named(self.model), None
        except DayjobError as problem:  # none is configured, or its name is wrong: the step's error
            return None, StepError(type(problem).__name__, problem.message, step=run.scope.current)

    async def _hold(self, run: Steps, model: Model | None, key: str, prompt: Prompt) -> Hold | None:
        """Reserves what the call may cost. What the limits make of `max_tokens` stands in the stored request."""
        assert model is not None
        held = await hold_model(run, key, model, self._request(model, prompt, None))
        if held is not None and held.max_tokens not in (None, self.max_tokens):
            prompt.send_with(self._head(model, held.max_tokens), run.journal.redact)
        return held

    def _head(self, model: Model | None, max_tokens: int | None) -> dict[str, Any]:
        return {
            "model": model.name if model else None,
            "tools": self.tools,
            "schema": self.schema,
            "max_tokens": max_tokens,
            "options": self.options,
        }

    def _request(self, model: Model, prompt: Prompt, held: Hold | None) -> ModelRequest:
        max_tokens = self.max_tokens if held is None or held.max_tokens is None else held.max_tokens
        return ModelRequest(model.name, prompt.messages, self.tools, self.schema, max_tokens, self.options)

    def _prompt(self, run: Steps, model: Model | None, messages: Sequence[Message]) -> Prompt:
        head = self._head(model, self.max_tokens)
        try:
            return Prompt(head, messages, run.scope.last_prompt(), run.journal.redact)
        except (NotJSON, ValueTooLarge, InputError) as problem:
            raise StepError(type(problem).__name__, f"model: {problem}", step=run.scope.current) from None

    async def _ask(
        self,
        run: Steps,
        model: Model | None,
        key: str,
        name: str,
        prompt: Prompt,
        limit: asyncio.Timeout,
        held: Hold | None,
        started: float,
        pieces: list[str],
    ) -> ModelReply:
        assert model is not None
        events, attempt = run.keeper.events, run.journal.attempts_of(key) + 1
        events.begin(run.id, Speech(key, name, attempt, run.journal.epoch, started, pieces))
        if events.active:
            events.emit("step.started", run=run.id, key=key, name=name, kind=Kind.MODEL, attempt=attempt)

        def on_text(text: str) -> None:
            if run.scope.closed:
                return
            pieces.append(text)
            if events.active:
                events.emit("step.text", run=run.id, key=key, attempt=attempt, text=text)

        request = self._request(model, prompt, held)
        run.keeper.busy += 1
        try:
            async with limit:
                return await model.reply(request, on_text)
        finally:
            run.keeper.busy -= 1

    def _message(
        self, run: Steps, row: StepRecord, reply: ModelReply | None, pieces: str
    ) -> tuple[str, MessageRecord] | None:
        """What was said, for the run's thread: the reply, or what came of it before it broke off."""
        if reply is None:
            return self._said(run, row, {"content": pieces}, "run_failed")
        return self._said(run, row, message_of(reply), CUT_OFF.get(reply.finish))

    def _break_off(
        self, run: Steps, key: str, name: str, started: float, fingerprint: bytes, text: str
    ) -> None:
        """The call was cancelled; if that is because its run ends, what it had said stays on the thread.

        Its row stands for nothing then: a run that is resumed asks anew.
        """
        end = run.keeper.end
        if end is None or not run.scope.closed:
            run.record_cancelled(key, name, Kind.MODEL, started, fingerprint, None)
        elif self.append and text:
            row = run.journal.row(
                run.scope.path, key, name, Kind.MODEL, Outcome.SUPERSEDED, started, fingerprint
            )
            row.value = run.encode(name, {"text": text, "tool_calls": [], "finish": end.status})
            row.dollars = 0.0
            why = CUT_OFF.get(end.status, "run_failed")
            run.journal.put((row,), append=self._said(run, row, {"content": text}, why))

    def _said(
        self, run: Steps, row: StepRecord, message: Message, why: str | None
    ) -> tuple[str, MessageRecord] | None:
        thread, said = run.keeper.record.thread, bool(message.get("content"))
        if not self.append or thread is None or not (said or message.get("tool_calls")):
            return None
        id = message_id(run.id, row.key, row.attempt)
        details = None if why is None else orjson.dumps({"incomplete": why})
        data = run.encode("append", {"role": "assistant", **message})
        return thread, MessageRecord(id, data, row.started, run=run.id, said=said, details=details)

    def _value(self, reply: ModelReply) -> Any:
        """The answer as `returns=` asks for it. Raises InvalidAnswer, with words for the model."""
        if self.returns is None or (reply.tool_calls and self.tools):
            return None
        text = reply.text.strip()
        if text.startswith(FENCE) and text.endswith(FENCE):
            text = text[len(FENCE) : -len(FENCE)].removeprefix("json").strip()
        try:
            return convert(orjson.loads(text), self.returns)
        except orjson.JSONDecodeError as problem:
            cut = " (it was cut off at max_tokens)" if reply.finish == "length" else ""
            raise InvalidAnswer(f"the answer is no JSON{cut}: {problem}") from None
        except InputError as problem:
            raise InvalidAnswer(f"the answer does not fit: {problem}") from None

    def _corrected(self, prompt: Prompt, reply: ModelReply, error: StepError) -> list[Message]:
        return [
            *prompt.messages,
            {"role": "assistant", "content": reply.text},
            {
                "role": "user",
                "content": f"{error.message}. Answer again, with nothing but JSON that fits the schema.",
            },
        ]

    def _row(
        self, run: Steps, key: str, name: str, started: float, fingerprint: bytes, model: Model | None, prompt: Prompt,
        reply: ModelReply | None, error: StepError | None, again: bool,
    ) -> StepRecord:  # fmt: skip
        outcome = Outcome.VALUE if error is None else Outcome.SUPERSEDED if again else Outcome.ERROR
        row = run.journal.row(run.scope.path, key, name, Kind.MODEL, outcome, started, fingerprint)
        row.base_step, row.keep_n, row.hashes = prompt.base, prompt.keep, prompt.stored_hashes
        row.model = (reply.model if reply else "") or (model.name if model else None)
        row.dollars = 0.0
        if error is not None:
            row.error = run.journal.redact(error_bytes(error, retried=again))
        if reply is not None:
            row.dollars = reply.dollars
            row.input_tokens = reply.usage.input_tokens
            row.output_tokens = reply.usage.output_tokens
            row.cached_tokens = reply.usage.cached_tokens
            calls = [[call.id, call.name, call.arguments] for call in reply.tool_calls]
            row.value = run.encode(
                f"model step {name!r}",
                {"text": reply.text, "tool_calls": calls, "finish": reply.finish},
            )
        return row

    def _reply_of(self, row: StepRecord, stored: dict[str, Any]) -> Reply:
        calls = tuple(ToolCall(*call) for call in stored["tool_calls"])
        usage = Usage(row.input_tokens or 0, row.output_tokens or 0, row.cached_tokens or 0)
        reply = ModelReply(stored["text"], calls, usage, row.dollars, stored["finish"])
        return Reply(reply.text, self._value(reply), calls, usage, row.dollars, reply.finish)
