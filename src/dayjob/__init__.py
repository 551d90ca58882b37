"""Dayjob: an AI agent is a long-running job in which a model decides the next step."""

from dayjob.app import Dayjob, Handle
from dayjob.errors import (
    DayjobError,
    Incomplete,
    InputError,
    NotDone,
    RunCancelled,
    RunExpired,
    RunFailed,
    RunIncomplete,
    StepError,
    Unknown,
)
from dayjob.jobs import job
from dayjob.limits import Limits
from dayjob.retry import Again, Retry
from dayjob.run import Run
from dayjob.runs import Status
from dayjob.tools import Call, Deadline, tool

__all__ = [
    "Again",
    "Call",
    "Dayjob",
    "DayjobError",
    "Deadline",
    "Handle",
    "Incomplete",
    "InputError",
    "Limits",
    "NotDone",
    "Retry",
    "Run",
    "RunCancelled",
    "RunExpired",
    "RunFailed",
    "RunIncomplete",
    "Status",
    "StepError",
    "Unknown",
    "job",
    "tool",
]
