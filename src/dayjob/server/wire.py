"""What is stored, as the objects of the Assistants wire. Pure: records in, JSON out.

Each object has every key that the published schema names, also those that are null, and no others: typed
clients fail on a missing key. A run's steps are its journal: a model's row is a message that it said and the tool calls
it asked for; what came of those stands in the rows below them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from dayjob.assistant import JOB, request_of
from dayjob.kept import MessageRecord, ObjectRecord, ThreadRecord
from dayjob.keys import message_id
from dayjob.runs import Kind, Outcome, RunRecord, Status, StepRecord, is_action
from dayjob.values import canonical, digest

RATE_LIMITED, REFUSED = "ModelRateLimited", "ModelRefused"
BAD_REQUEST = "(400)"
"""A refused key or an unknown model are refusals too: only this one is the prompt's fault."""
INVALID_PROMPT = ("WindowTooSmall", "ValueTooLarge", "EmptyPrompt")
UNMADE = ("length", "content_filter")
"""The replies that were cut off, by how they finished."""
ENDED_STEP = {
    Status.CANCELLED: "cancelled",
    Status.EXPIRED: "expired",
    Status.FAILED: "failed",
    Status.INCOMPLETE: "failed",
}


def not_offered(tools: Iterable[Mapping[str, Any]] = (), attached: bool = False) -> dict[str, str]:
    """The header that names what is kept and echoed, but not offered to the model."""
    types = {tool["type"] for tool in tools} - {"function"}
    named = sorted(types | {"attachments"} if attached else types)
    return {"dayjob-not-offered": ", ".join(named)} if named else {}


def details_of(record: RunRecord | ThreadRecord | MessageRecord) -> dict[str, Any]:
    """What a client keeps with it."""
    return orjson.loads(record.details) if record.details else {}


# --- assistants, threads, messages -----------------------------------------------------------------


def assistant_object(record: ObjectRecord) -> dict[str, Any]:
    kept: dict[str, Any] = orjson.loads(record.body)
    return {
        "id": record.id,
        "object": "assistant",
        "created_at": int(record.created),
        "name": kept.get("name"),
        "description": kept.get("description"),
        "model": kept["model"],
        "instructions": kept.get("instructions"),
        "tools": kept.get("tools") or [],
        "tool_resources": kept.get("tool_resources") or {},
        "metadata": kept.get("metadata") or {},
        "temperature": _default(kept.get("temperature"), 1.0),
        "top_p": _default(kept.get("top_p"), 1.0),
        "response_format": kept.get("response_format") or "auto",
    }


def _default(given: float | None, default: float) -> float:
    return default if given is None else given


def thread_object(record: ThreadRecord) -> dict[str, Any]:
    kept = details_of(record)
    return {
        "id": record.id,
        "object": "thread",
        "created_at": int(record.created),
        "tool_resources": kept.get("tool_resources") or {},
        "metadata": kept.get("metadata") or {},
    }


def message_object(record: MessageRecord, thread: str, assistant: str | None) -> dict[str, Any]:
    """`assistant` is the one whose run said it."""
    kept, message = details_of(record), orjson.loads(record.message)
    why = kept.get("incomplete")
    at = int(record.created)
    return {
        "id": record.id,
        "object": "thread.message",
        "created_at": at,
        "thread_id": thread,
        "status": "incomplete" if why else "completed",
        "incomplete_details": {"reason": why} if why else None,
        "completed_at": None if why else kept.get("completed_at", at),
        "incomplete_at": kept.get("incomplete_at", at) if why else None,
        "role": message["role"],
        "content": kept["content"] if "content" in kept else content_of(message.get("content")),
        "assistant_id": kept.get("assistant_id", assistant),
        "run_id": kept.get("run_id", record.run),
        "attachments": kept.get("attachments") or [],
        "metadata": kept.get("metadata") or {},
    }


def content_of(content: Any) -> list[dict[str, Any]]:
    """A chat-style content, as the parts of a message."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    return [_text(part["text"]) if part.get("type") == "text" else part for part in parts]


def _text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": {"value": value, "annotations": []}}


def said_now(
    id: str,
    thread: str,
    run: RunRecord,
    started: float,
    text: str = "",
    why: str | None = None,
    over: bool = False,
) -> dict[str, Any]:
    """A message that is being said, or is `over`: whole, or not, and `why` not."""
    message = {"role": "assistant", "content": text}
    details = orjson.dumps({"incomplete": why}) if why else None
    record = MessageRecord(id, orjson.dumps(message), started, run=run.id, details=details)
    made = message_object(record, thread, request_of(run).assistant)
    if not over:
        made.update(status="in_progress", completed_at=None)
    return made


# --- runs ------------------------------------------------------------------------------------------


def is_assistants(run: RunRecord) -> bool:
    """Whether a run is one of this wire."""
    return run.job == JOB and run.thread is not None and run.parent is None


def run_object(run: RunRecord, steps: Sequence[StepRecord] = ()) -> dict[str, Any]:
    """`steps` are needed only while the run waits for something outside."""
    kept, asked = details_of(run), request_of(run)
    metadata = kept.get("metadata") or {}
    if "imported" in kept:
        return {**kept["imported"], "metadata": metadata}
    required = calls_required(run, steps)
    status = status_of(run, bool(required))
    ended = _at(run.ended)
    return {
        "id": run.id,
        "object": "thread.run",
        "created_at": int(run.created),
        "thread_id": run.thread,
        "assistant_id": asked.assistant,
        "status": status,
        "required_action": _required_action(required) if required else None,
        "last_error": _last_error(run) if status == "failed" else None,
        "expires_at": _expires_at(run) if status != "completed" else None,
        "started_at": _at(run.started),
        "cancelled_at": ended if status == "cancelled" else None,
        "failed_at": ended if status == "failed" else None,
        "completed_at": ended if status == "completed" else None,
        "incomplete_details": {"reason": incomplete_reason(run)} if status == "incomplete" else None,
        "model": asked.model,
        "instructions": asked.instructions,
        "tools": asked.tools,
        "metadata": metadata,
        "temperature": _default(asked.temperature, 1.0),
        "top_p": _default(asked.top_p, 1.0),
        "usage": _usage(run.input_tokens, run.output_tokens) if run.status.is_terminal else None,
        "max_prompt_tokens": asked.max_prompt_tokens,
        "max_completion_tokens": asked.max_completion_tokens,
        "truncation_strategy": asked.truncation_strategy,
        "tool_choice": asked.tool_choice,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "response_format": asked.response_format,
    }


def _expires_at(run: RunRecord) -> int | None:
    return None if run.expires_seconds is None else int(run.expires or run.created + run.expires_seconds)


def _at(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def status_of(run: RunRecord, needs_client: bool) -> str:
    """The status as this wire knows it: it has no word for other waits, nor for unwinding."""
    match run.status:
        case Status.REQUIRES_ACTION:
            return "requires_action" if needs_client else "in_progress"
        case Status.WAITING:
            return "in_progress"
        case Status.CANCELLING | Status.UNWINDING:
            return "cancelling" if run.outcome in (None, Status.CANCELLED) else "in_progress"
    return str(run.status)


@dataclass(frozen=True, slots=True)
class ClientCall:
    """A tool call that the client is to execute: as the model made it, and the row that waits for its output."""

    id: str
    name: str
    arguments: str
    row: StepRecord

    @property
    def action(self) -> str:
        """The id of the action that its output answers."""
        return self.row.key if self.row.attempt == 1 else f"{self.row.key}@{self.row.attempt}"

    @property
    def given(self) -> bytes | None:
        """What was handed in for it, as it is stored."""
        return self.row.answer or self.row.value

    def answer(self, output: str) -> Any:
        """An output, which is always a text on this wire, as the tool's declared type takes it."""
        schema = orjson.loads(self.row.input or b"{}").get("schema") or {"type": "string"}
        if schema.get("type") == "string":
            return output
        try:
            return orjson.loads(output)
        except orjson.JSONDecodeError:
            return output


def client_calls(steps: Sequence[StepRecord]) -> list[list[ClientCall]]:
    """The calls that the client was, or is, to execute: those of each turn in which there are any."""
    rows = {row.scope: row for row in steps if row.kind == Kind.TOOL and is_action(row)}
    turns = [
        [
            ClientCall(id, name, arguments, rows[scope])
            for number, (id, name, arguments) in enumerate(_value(row)["tool_calls"])
            if (scope := scope_of_call(row, number)) in rows
        ]
        for row in steps
        if row.kind == Kind.MODEL and row.outcome == Outcome.VALUE
    ]
    return [calls for calls in turns if calls]


def calls_required(run: RunRecord, steps: Sequence[StepRecord]) -> list[ClientCall]:
    """What the client has to do before the run goes on; nothing while somebody else has to do something."""
    if run.status != Status.REQUIRES_ACTION:
        return []
    if any(_waits(row) and is_action(row) and row.kind != Kind.TOOL for row in steps):
        return []
    return [call for calls in client_calls(steps) for call in calls if _waits(call.row)]


def _waits(row: StepRecord) -> bool:
    return row.outcome is None and row.answer is None


def _required_action(required: Iterable[ClientCall]) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in required
    ]
    return {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": calls}}


def incomplete_reason(run: RunRecord) -> str:
    error = orjson.loads(run.error) if run.error else {}
    named = {"input_tokens": "max_prompt_tokens", "output_tokens": "max_completion_tokens"}
    return named.get(error.get("limit", ""), error.get("message") or "max_completion_tokens")


def _last_error(run: RunRecord) -> dict[str, Any]:
    error = orjson.loads(run.error) if run.error else {}
    return {"code": _error_code(error), "message": run.reason or "The run failed."}


def _error_code(error: Mapping[str, Any]) -> str:
    if error.get("type") == RATE_LIMITED:
        return "rate_limit_exceeded"
    bad = error.get("type") == REFUSED and BAD_REQUEST in error.get("message", "")
    return "invalid_prompt" if bad or error.get("type") in INVALID_PROMPT else "server_error"


def _usage(input_tokens: int | None, output_tokens: int | None) -> dict[str, Any]:
    prompt, completion = input_tokens or 0, output_tokens or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


# --- run steps -------------------------------------------------------------------------------------


def step_objects(run: RunRecord, steps: Sequence[StepRecord]) -> list[dict[str, Any]]:
    """The steps of a run, oldest first: messages said, and tools called."""
    ends = {row.key: row for row in steps if row.outcome is not None}
    made: list[dict[str, Any]] = []
    for row in steps:
        if row.kind != Kind.MODEL or (row.outcome == Outcome.SUPERSEDED and row.error is not None):
            continue  # a try that failed, and was made again
        value = _value(row)
        if value["text"]:
            made.append(message_step(run, row))
        if calls_of(row):
            made.append(calls_step(run, row, ends))
    return made


def step_id(run: str, key: str, attempt: int, type: str) -> str:
    return f"step_{digest(canonical([run, key, attempt, type])).hex()}"


def message_step(run: RunRecord, row: StepRecord) -> dict[str, Any]:
    """The step in which a message was said, by a model's row that is finished."""
    broken = "failed" if row.outcome == Outcome.ERROR else "cancelled"
    status = "completed" if row.outcome == Outcome.VALUE else ENDED_STEP.get(run.status, broken)
    details = {"message_id": message_id(run.id, row.key, row.attempt)}
    usage = None if _value(row)["tool_calls"] else _usage(row.input_tokens, row.output_tokens)
    return _step(run, row, "message_creation", details, status, row.started, row.ended, usage)


def message_step_begun(run: RunRecord, key: str, attempt: int, started: float) -> dict[str, Any]:
    """The same step while the message is being said."""
    details = {"message_id": message_id(run.id, key, attempt)}
    id = step_id(run.id, key, attempt, "message_creation")
    return _made_step(run, id, "message_creation", details, "in_progress", started, None, None, None)


def calls_step(run: RunRecord, row: StepRecord, ends: Mapping[str, StepRecord]) -> dict[str, Any]:
    """The step in which tools were called; `ends` are the rows of the run by key."""
    calls, outputs = _value(row)["tool_calls"], _outputs(row, ends)
    details = [
        {
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": arguments, "output": outputs[number]},
        }
        for number, (id, name, arguments) in enumerate(calls)
    ]
    done = [ends.get(scope_of_call(row, number)) for number in range(len(calls))]
    complete = all(output is not None for output in outputs)
    status = "completed" if complete else _ended_step(run)
    ended = (
        max((each.ended or 0.0 for each in done if each is not None), default=None) if complete else run.ended
    )
    usage = _usage(row.input_tokens, row.output_tokens)
    return _step(run, row, "tool_calls", details, status, row.ended or row.started, ended, usage)


def calls_begun(run: RunRecord, row: StepRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events with which tool calls begin."""
    calls = calls_of(row)
    step = _step(run, row, "tool_calls", [], "in_progress", row.ended or row.started, None, None)
    yield "thread.run.step.created", step
    yield "thread.run.step.in_progress", step
    for index, (id, name, arguments) in enumerate(calls):
        for function in ({"name": name, "arguments": "", "output": None}, {"arguments": arguments}):
            call = {"index": index, "type": "function", "function": function}
            said = {"id": id, **call} if "name" in function else call
            details = {"type": "tool_calls", "tool_calls": [said]}
            delta = {"id": step["id"], "object": "thread.run.step.delta", "delta": {"step_details": details}}
            yield "thread.run.step.delta", delta


def calls_of(row: StepRecord) -> list[Any]:
    """The calls that a model's row asks for: (id, name, arguments). Of a reply that was cut off none is made."""
    value = _value(row)
    calls: list[Any] = [] if value.get("finish") in UNMADE else value["tool_calls"]
    return calls


def _outputs(row: StepRecord, rows: Mapping[str, StepRecord]) -> list[str | None]:
    """What the model is told of each of its calls; None of those that are not over, or were not made."""
    handed_in = {each.scope: each.answer for each in rows.values() if each.kind == Kind.TOOL and each.answer}
    found: list[str | None] = []
    for number in range(len(calls_of(row))):
        scope = scope_of_call(row, number)
        end = rows.get(scope)
        told = orjson.loads(end.value) if end is not None and end.value else None
        if isinstance(told, dict) and "message" in told:
            found.append(told["message"]["content"])
        else:  # what the client gave, and the run has not taken yet
            answer = orjson.loads(handed_in.get(scope, b"null"))
            found.append(answer if isinstance(answer, str | None) else orjson.dumps(answer).decode())
    return found


def scopes_of(row: StepRecord) -> list[str]:
    """The scopes in which the calls of a model's row are made, in their order."""
    return [scope_of_call(row, number) for number in range(len(calls_of(row)))]


def scope_of_call(row: StepRecord, number: int) -> str:
    """The scope in which the agent makes a call: a branch of `act`, beside the model's row."""
    return f"{row.scope}/act/{number}" if row.scope else f"act/{number}"


def _step(
    run: RunRecord, row: StepRecord, type: str, details: Any, status: str, started: float, ended: float | None,
    usage: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    error = orjson.loads(row.error) if row.error and status == "failed" else None
    told = None if error is None else {"code": _step_error_code(error), "message": error.get("message", "")}
    id = step_id(run.id, row.key, row.attempt, type)
    return _made_step(run, id, type, details, status, started, ended, usage, told)


def _made_step(
    run: RunRecord, id: str, type: str, details: Any, status: str, started: float, ended: float | None,
    usage: dict[str, Any] | None, error: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    at = _at(ended)
    return {
        "id": id,
        "object": "thread.run.step",
        "created_at": int(started),
        "assistant_id": request_of(run).assistant,
        "thread_id": run.thread,
        "run_id": run.id,
        "type": type,
        "status": status,
        "step_details": {"type": type, type: details},
        "last_error": error,
        "expired_at": at if status == "expired" else None,
        "cancelled_at": at if status == "cancelled" else None,
        "failed_at": at if status == "failed" else None,
        "completed_at": at if status == "completed" else None,
        "metadata": {},
        "usage": usage,
    }


def _step_error_code(error: Mapping[str, Any]) -> str:
    return "rate_limit_exceeded" if error.get("type") == RATE_LIMITED else "server_error"


def _ended_step(run: RunRecord) -> str:
    """How a step stands that did not come to its end."""
    return ENDED_STEP.get(run.status, "in_progress")


def _value(row: StepRecord) -> dict[str, Any]:
    return orjson.loads(row.value) if row.value else {"text": "", "tool_calls": []}
