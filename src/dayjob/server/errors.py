"""What a client is told when something is wrong: one form for all of it, as the OpenAI clients expect it.

{"error": {"message": …, "type": …, "param": …, "code": …}}
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from dayjob.errors import (
    DayjobError,
    InputError,
    NotJSON,
    StoreError,
    SubmitConflict,
    ThreadBusy,
    UnknownAction,
    UnknownJob,
    UnknownRun,
    ValueTooLarge,
    WrongStatus,
)
from dayjob.server.answers import JSON

INVALID = "invalid_request_error"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
logger = logging.getLogger("dayjob.server")


class ErrorDetail(BaseModel):
    """What is wrong; `param` names the field."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class Refused(Exception):
    """A request that is not done, and why."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = {
            "message": message,
            "type": type or TYPES.get(status, INVALID if status < 500 else "server_error"),
            "param": param,
            "code": code,
        }

    def answer(self) -> JSON:
        return JSON({"error": self.detail}, self.status)


def not_found(what: str, id: str) -> Refused:
    """The 404 for an id that does not exist, or is another project's: which of the two is not told."""
    return Refused(f"No {what} found with id '{id}'.", 404)


def answer_errors(server: FastAPI) -> None:
    """Whatever goes wrong in this server is answered in its one form, and never with a stack trace."""

    @server.exception_handler(Refused)
    async def refused(request: Request, problem: Refused) -> JSON:
        return problem.answer()

    @server.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSON:
        return _invalid(problem.errors()).answer()

    @server.exception_handler(HTTPException)
    async def http(request: Request, problem: HTTPException) -> JSON:
        message = f"{problem.detail}: {request.method} {request.url.path}"
        answer = Refused(message, problem.status_code).answer()
        answer.headers.update(problem.headers or {})
        return answer

    @server.exception_handler(DayjobError)
    async def known(request: Request, problem: DayjobError) -> JSON:
        return refused_of(problem).answer()


def unexpected(request: str) -> Refused:
    """What is said of a defect of ours. `request` is the id by which the log is searched for it."""
    return Refused(f"The server had an error while processing your request {request}.", 500)


def refused_of(problem: DayjobError) -> Refused:
    match problem:
        case UnknownRun() | UnknownJob() | UnknownAction():
            return Refused(problem.message, 404)
        case SubmitConflict() | ThreadBusy() | WrongStatus() | InputError() | NotJSON():
            return Refused(problem.message)
        case ValueTooLarge():
            return Refused(problem.message, 413)
        case StoreError():
            return Refused(problem.message, 503)
    logger.error("unexpected: %s", problem, exc_info=problem)
    return Refused("The server had an error while processing your request.", 500)


def _invalid(errors: Sequence[Any]) -> Refused:
    """The first thing that is wrong with a request, named by its place."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return Refused(
            "We could not parse the JSON body of your request. "
            f"(HINT: This likely means you aren't using your HTTP library correctly: {first['ctx']['error']}.)"
        )
    place = [str(part) for part in first["loc"]]
    param = ".".join(place[1:]) or None
    return Refused(f"{' -> '.join(place)} {_words(first['msg'])}", param=param)


def _words(message: str) -> str:
    return "field required" if message == "Field required" else message[:1].lower() + message[1:]
