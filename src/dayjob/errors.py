"""Every error that Dayjob raises.

DayjobError
├── InputError            an argument is missing, unknown or of the wrong type
├── UnknownJob            no job of that name here
├── UnknownRun            no run of that id in this store
├── UnknownThread         no thread of that id in this store
├── UnknownAction         the run does not wait for that action
├── UnknownCursor         the page of a list is to go on from what is not in it
├── SubmitConflict        the same key was submitted before, with other input
├── ThreadBusy            the thread already has an active run
├── WrongStatus           the run's status does not allow that
├── NotJSON               a value cannot be stored as JSON
├── ValueTooLarge         a value is over the limit
├── EmptyPrompt           a model is to be asked without a message
├── WindowTooSmall        not even the last message fits the model's window
├── StepError             a step failed; what a job catches
├── Incomplete            a job says: I end here, with what I have
├── NotDone               a tool says: it certainly did not happen
├── Unknown               a tool says: it may have happened
├── IntentRefused         the run was cancelled before a write was sent
├── RunEnded              the run has no result to give
│   ├── RunFailed
│   ├── RunCancelled
│   ├── RunExpired
│   └── RunIncomplete
├── ModelError            a model gave no usable answer
│   ├── ModelNotConfigured
│   ├── ModelRefused      the endpoint refused the request (4xx)
│   ├── ModelRateLimited  429
│   ├── ModelUnavailable  5xx, or no connection
│   ├── ModelTimeout      no answer in time
│   └── InvalidAnswer     the answer does not fit `returns=`
└── StoreError            the database
    ├── StoreUnavailable  its path cannot be opened or written
    ├── StoreLocked       another program holds it
    ├── StoreFull         no space left
    ├── ForeignStore      the file belongs to another program
    └── StoreTooNew       written by a newer Dayjob
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")


class DayjobError(Exception):
    """Something went wrong in Dayjob."""

    message = ""

    def __init__(self, message: str | None = None) -> None:
        taught = inspect.cleandoc(type(self).__doc__ or type(self).__name__)
        self.message = taught if message is None else message
        super().__init__(self.message)


class InputError(DayjobError):
    """An argument is missing, unknown or of the wrong type."""


class UnknownJob(DayjobError):
    """No job of that name is registered here. Pass it in Dayjob(jobs=[…]), or name its FILE."""


class UnknownRun(DayjobError):
    """No run of that id is in this store. List them with `dayjob runs`."""


class UnknownThread(DayjobError):
    """No thread of that id is in this store."""


class UnknownAction(DayjobError):
    """The run does not wait for that action. List what it waits for with `dayjob actions`."""


class UnknownCursor(DayjobError):
    """A page is to go on from what is not in the list, and was not lately. Begin the list anew.

    `field` is the one that names it: "after" or "before".
    """

    def __init__(self, field: str, cursor: str) -> None:
        self.field = field
        super().__init__(f"{field}: {cursor!r} is not in this list, and was not lately. Begin the list anew.")


class SubmitConflict(DayjobError):
    """A run with this key was submitted before with other input. Use another key, or the same input."""


class ThreadBusy(DayjobError):
    """The thread already has an active run. Wait for it, cancel it, or submit with when_busy="enqueue".

    `run` is the id of that run.
    """

    def __init__(self, message: str | None = None, run: str = "") -> None:
        self.run = run
        super().__init__(message)


class WrongStatus(DayjobError):
    """The status of the run does not allow that."""


class NotJSON(DayjobError):
    """A value cannot be stored as JSON."""


class ValueTooLarge(DayjobError):
    """A value is over the limit of 8 MB. Keep it in a file or a bucket, and return where it is."""


class EmptyPrompt(DayjobError):
    """messages: a prompt needs at least one message."""


class WindowTooSmall(DayjobError):
    """Not even the last message fits the model's window. Use a larger one, or shorter tool results."""


class StepError(DayjobError):
    """A step failed. It is the one error that steps raise, live and on replay alike.

    `type` is the class name of the original error, `message` its text; `retryable` tells whether
    trying again may help; `step` is the key of the step that failed first, when it came from a step;
    `limit` is the one of `Limits` that was reached, if that is what it came from.
    """

    type = "StepError"
    retryable = False
    step: str | None = None
    retry_after: float | None = None
    traceback: str | None = None
    limit: str | None = None

    def __init__(
        self,
        type: str,
        message: str,
        retryable: bool = False,
        *,
        step: str | None = None,
        retry_after: float | None = None,
        traceback: str | None = None,
        limit: str | None = None,
    ) -> None:
        self.type = type
        self.retryable = retryable
        self.step = step
        self.retry_after = retry_after
        self.traceback = traceback
        self.limit = limit
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_step_error, (self.type, self.message, self.retryable, self.step, self.limit)


def step_error_of(problem: BaseException, step: str | None) -> StepError:
    """Any exception as a StepError. Never raises, whatever the exception's own methods do."""
    limit = None
    if isinstance(problem, StepError):
        limit = problem.limit
        kind, message, told = text_of(problem.type), text_of(problem.message), problem.traceback
        step = problem.step or step
    else:
        kind, message = type(problem).__name__, text_of(problem)
        told = _attempted(lambda: "".join(traceback.format_exception(problem)))
    retryable = _attempted(lambda: bool(getattr(problem, "retryable", False)))
    retry_after = _attempted(lambda: _seconds(getattr(problem, "retry_after", None)))
    return StepError(
        kind, message, retryable or False, step=step, retry_after=retry_after, traceback=told, limit=limit
    )


def text_of(problem: object) -> str:
    """What an error, or a part of one, says. Never raises: one that cannot say it is named."""
    text = _attempted(lambda: str(problem))
    return f"(the text of this {type(problem).__name__} cannot be made)" if text is None else text


def _seconds(given: object) -> float | None:
    seconds = given.total_seconds() if isinstance(given, timedelta) else float(given)  # type: ignore[arg-type]
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _attempted(make: Callable[[], T]) -> T | None:
    try:
        return make()
    except BaseException:  # an exception's own methods are the user's code, and fail in any way
        return None


def _rebuild_step_error(
    type: str, message: str, retryable: bool, step: str | None, limit: str | None
) -> StepError:
    return StepError(type, message, retryable, step=step, limit=limit)


class Incomplete(DayjobError):
    """The job stops early: its run ends incomplete, with what is said here as its reason.

    Raised by a job, or by a step of it that nobody catches. The run keeps what `run.partial` was given last;
    what it did is not undone.
    """


class NotDone(DayjobError):
    """It certainly did not happen: nothing was sent, or the receiver said no before doing anything.

    Raised by a tool that writes, or returned or raised by its `probe`. The model is told, and an equal
    call may be made afresh, under a new key. An ordinary error leaves that open: then an equal call
    keeps its key, so that a receiver can recognise it.
    """


class Unknown(DayjobError):
    """It may have happened: the request was sent, and the answer got lost.

    Raised by a tool that writes. The call keeps its key and is not made again before its outcome is
    known: by the tool's `probe`, else a person is asked.
    """


class IntentRefused(DayjobError):
    """The run was cancelled: nothing more is sent for it."""


class RunEnded(DayjobError):
    """The run ended without a result."""

    def __init__(self, run_id: str, reason: str, partial: object = None) -> None:
        self.run_id = run_id
        self.reason = reason
        self.partial = partial
        super().__init__(f"{run_id}: {reason}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.run_id, self.reason, self.partial)


class RunFailed(RunEnded):
    """The run failed."""


class RunCancelled(RunEnded):
    """The run was cancelled."""


class RunExpired(RunEnded):
    """The run was not over at its deadline, or waited past that of a question."""


class RunIncomplete(RunEnded):
    """The run reached a limit, or its job stopped early; its partial output is kept."""


class ModelError(DayjobError):
    """A model gave no usable answer."""

    retryable = False
    may_be_billed = True
    """Whether the provider may charge for the call: it had begun to work on it."""

    def __init__(self, message: str | None = None, *, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class ModelNotConfigured(ModelError):
    """No model is configured. Pass model="openai:…", "anthropic:…" or "local:", --model, or set DAYJOB_MODEL."""

    may_be_billed = False


class ModelRefused(ModelError):
    """The model's endpoint refused the request."""

    may_be_billed = False


class ModelRateLimited(ModelError):
    """The model's endpoint asks to slow down (429)."""

    retryable = True
    may_be_billed = False


class ModelUnavailable(ModelError):
    """The model's endpoint cannot be reached, or failed (5xx)."""

    retryable = True


class ModelTimeout(ModelError):
    """The model gave no answer in time."""

    retryable = True


class InvalidAnswer(ModelError):
    """The model's answer does not fit what `returns=` asks for."""


class StoreError(DayjobError):
    """The store failed."""


class StoreUnavailable(StoreError):
    """The store's path cannot be opened or written."""


class StoreLocked(StoreError):
    """Another program holds the store's lock. Close it, or wait."""


class StoreFull(StoreError):
    """No space is left for the store. Free some; nothing that was accepted is lost."""


class ForeignStore(StoreError):
    """The file is a database of another program. Choose another path."""


class StoreTooNew(StoreError):
    """The store was written by a newer Dayjob. Upgrade this one."""
