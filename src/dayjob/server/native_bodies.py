"""What the native API takes and gives, as its clients are told of it. What is given is not checked against this."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dayjob.limits import Limits
from dayjob.runs import Kind, Outcome, Status

T = TypeVar("T")
LARGEST = 2**53
PRIORITY = 2**31 - 1

RUN = "run_06bq3x0k8d4m2r7v9tza1ce"
RUN_EXAMPLE: dict[str, Any] = {
    "id": RUN, "job": "support", "status": "requires_action", "reason": None, "created": 1767225600.0,
    "started": 1767225600.1, "ended": None, "attempts": 0, "queue": "default", "priority": 0, "source": None,
    "version": "3f9c2e1a7b6d5048", "thread": None, "parent": None, "next_run": None, "dollars": 0.0021, "expires": None,
    "tags": ["vip"], "progress": {"done": 1, "total": 3}, "verdict": None,
    "usage": {"input_tokens": 812, "output_tokens": 64},
}  # fmt: skip
ACTION_EXAMPLE: dict[str, Any] = {
    "id": "refund#approve", "run": RUN, "kind": "approval", "question": "May refund be called?",
    "schema": {"type": "boolean"}, "due": None, "opened": 1767225601.0, "tool": "refund",
    "arguments": {"order_id": "A-1042", "amount": 500}, "key": "refund#approve", "attempt": 1,
}  # fmt: skip
WHOLE_RUN_EXAMPLE: dict[str, Any] = {
    **RUN_EXAMPLE, "input": {"ticket": "Where is A-1042?"}, "output": None, "error": None, "attention": {},
    "usage": {"input_tokens": 812, "output_tokens": 64, "cached_tokens": 0}, "limits": None,
    "actions": [ACTION_EXAMPLE],
}  # fmt: skip
STEP_EXAMPLE: dict[str, Any] = {
    "key": "model", "name": "model", "kind": "model", "outcome": "value", "attempt": 1, "seq": 1,
    "started": 1767225600.2, "ended": 1767225601.0, "due": None, "child": None, "model": "gpt-5-mini",
    "input_tokens": 812, "output_tokens": 64, "cached_tokens": 0, "dollars": 0.0021, "answered_by": None,
    "input": None, "value": {"text": "It is on its way.", "tool_calls": [], "finish": "stop"}, "error": None,
}  # fmt: skip
STEP_WITH_REQUEST_EXAMPLE: dict[str, Any] = {
    **STEP_EXAMPLE,
    "request": {"messages": [{"role": "user", "content": "Where is A-1042?"}], "model": "gpt-5-mini"},
}
JOB_EXAMPLE: dict[str, Any] = {
    "name": "support", "version": "3f9c2e1a7b6d5048", "description": "Answers a ticket.",
    "input": {"type": "object", "properties": {"ticket": {"type": "string"}}, "required": ["ticket"]},
}  # fmt: skip
SUMMARY_EXAMPLE: dict[str, Any] = {
    "job": "support", "runs": 12, "active": 1, "completed": 10, "failed": 1, "cancelled": 0, "expired": 0,
    "incomplete": 0, "succeeded": 9, "judged": 10, "dollars": 0.031, "input_tokens": 9120,
    "output_tokens": 800, "seconds": 4.2,
}  # fmt: skip


class Body(BaseModel):
    """What a client sends: no other fields than these."""

    model_config = ConfigDict(extra="forbid")


class LimitsBody(Body):
    """What the run and all its children may spend: at least one of the four."""

    dollars: Annotated[float, Field(gt=0, le=1e9)] | None = None
    tokens: Annotated[int, Field(gt=0, le=LARGEST)] | None = None
    steps: Annotated[int, Field(gt=0, le=LARGEST)] | None = None
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    on_limit: Literal["stop", "ask"] = "stop"

    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class RunRequest(Body):
    """A run to be made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"job": "support", "input": {"ticket": "Where is A-1042?"}, "key": "ticket-17"}]
        }
    )

    job: str
    input: dict[str, Any] = {}
    key: (
        Annotated[str, Field(description="Your own name for the run: sent again, it gives that run.")] | None
    ) = None
    thread: str | None = None
    queue: str = "default"
    priority: Annotated[int, Field(ge=-PRIORITY, le=PRIORITY)] = 0
    delay: Annotated[float, Field(ge=0, le=1e9, description="Seconds.")] = 0.0
    limits: LimitsBody | None = None
    tags: list[str] = []
    when_busy: Annotated[
        Literal["refuse", "enqueue"], Field(description="If another run of the thread is active.")
    ] = "refuse"


class NewAnswer(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"action": "ask", "value": "yes"}]})

    action: str
    value: Any


class Approval(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"action": "refund#approve"}]})

    action: str


class Rejection(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"action": "refund#approve", "reason": "Too much."}]}
    )

    action: str
    reason: str = ""


class Cancellation(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "No longer needed."}]})

    reason: str = "cancelled by request"


class Resumption(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"from_step": "draft"}]})

    changed: Annotated[bool, Field(description="Also steps whose code has changed are done again.")] = False
    from_step: Annotated[str, Field(description="That step, and all that finished after it.")] | None = None


class NewEvent(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "paid", "value": {"amount": 20}}]})

    name: str
    value: Any = None


class Given(BaseModel):
    """An object that is given; more fields may come with later versions."""


class JobBody(Given):
    """A job. `input` is the JSON schema of what it takes."""

    name: str
    version: str
    description: str | None
    input: dict[str, Any]


class RunBody(Given):
    """A run. Times are seconds since the epoch."""

    id: str
    job: str
    status: Status
    reason: str | None
    created: float
    started: float | None
    ended: float | None
    attempts: int
    queue: str
    priority: int
    source: str | None
    version: str | None
    thread: str | None
    parent: str | None
    next_run: str | None
    dollars: float | None
    expires: float | None
    tags: list[str]
    progress: dict[str, float | None] | None
    verdict: dict[str, Any] | None
    usage: dict[str, int | None]


class ActionBody(Given):
    """Something that a run waits for from outside. `schema` says what fits."""

    id: str
    run: str
    kind: str
    question: str
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")]
    due: float | None
    opened: float
    tool: str | None
    arguments: dict[str, Any] | None
    key: str
    attempt: int


class WholeRunBody(RunBody):
    """A run, with what it was given, what it gave, what it spent and what it waits for.

    `attention` says by step what a person has to look into. `limits` says by limit what is spent.
    """

    input: dict[str, Any] | None
    output: Any
    error: dict[str, Any] | None
    attention: dict[str, str]
    limits: dict[str, Any] | None
    actions: list[ActionBody]


class StepBody(Given):
    """A step: one row of the journal. `seq` numbers the finished ones; one without outcome is open."""

    key: str
    name: str
    kind: Kind
    outcome: Outcome | None
    attempt: int
    seq: int | None
    started: float
    ended: float | None
    due: float | None
    child: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    dollars: float | None
    answered_by: str | None
    input: Any
    value: Any
    error: dict[str, Any] | None


class WholeStepBody(StepBody):
    """A step; of a model's, the exact request that it was sent."""

    request: dict[str, Any] | None


class SummaryBody(Given):
    """The runs of a job. `seconds` is the mean; of `judged` ones so many `succeeded`."""

    job: str
    runs: int
    active: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    incomplete: int
    succeeded: int
    judged: int
    dollars: float | None
    input_tokens: int
    output_tokens: int
    seconds: float | None


class Everything(Given, Generic[T]):
    """A list that is given as a whole."""

    data: list[T]


class RunsPage(Given):
    """Go on with `after` = `last_id` while `has_more`."""

    object: Literal["list"]
    data: list[RunBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class StepsPage(Given):
    """Go on with `after` = `last_seq` while `has_more`."""

    data: list[StepBody]
    last_seq: int
    has_more: bool
