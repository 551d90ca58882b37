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
CODES = {
    "string_too_long": (
        "string_above_max_length",
        "string too long. Expected a string with maximum length {max_length}, but got a string with length "
        "{given} instead",
    ),
    "string_too_short": ("empty_string", "empty string. Expected a string with minimum length {min_length}"),
    "less_than_equal": (
        "above_max_value",
        "above maximum value. Expected a value <= {le}, but got {given} instead",
    ),
    "greater_than_equal": (
        "below_min_value",
        "below minimum value. Expected a value >= {ge}, but got {given} instead",
    ),
    "too_long": (
        "above_max_length",
        "too many. Expected at most {max_length}, but got {actual_length} instead",
    ),
    "too_short": (
        "below_min_length",
        "too few. Expected at least {min_length}, but got {actual_length} instead",
    ),
    "string_type": ("invalid_type", "expected a string"),
    "int_parsing": ("invalid_type", "expected an integer"),
    "int_type": ("invalid_type", "expected an integer"),
    "list_type": ("invalid_type", "expected an array"),
    "dict_type": ("invalid_type", "expected an object"),
    "bool_type": ("invalid_type", "expected a boolean"),
    "model_attributes_type": ("invalid_type", "expected an object"),
    "model_type": ("invalid_type", "expected an object"),
}
"""By the type of a pydantic error: the code of the answer, and its words."""
UNION_TAGS = ("function", "code_interpreter", "file_search", "text", "image_url", "image_file")
"""What pydantic adds to a place to name the member of a union, and is no field of the client's."""
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
    path = [str(part) for part in first["loc"] if part != "[key]"]
    if first["type"] == "missing":
        return Refused(f"{' -> '.join(path)} field required", param=".".join(path[1:]) or None)
    param = ".".join(part for part in path[1:] if part not in UNION_TAGS) or None
    if first["type"] == "refused":
        return Refused(first["msg"], param=param, code="invalid_value")
    what = f"'{param}'" if param else "body"
    if first["type"] in ("literal_error", "union_tag_invalid"):
        expected = first["ctx"].get("expected") or first["ctx"]["expected_tags"]
        given = first["ctx"].get("tag", first.get("input"))
        return Refused(
            f"Invalid value for {what}: {given!r}. Supported values are: {expected}.",
            param=param,
            code="invalid_value",
        )
    code, words = CODES.get(first["type"], ("invalid_value", "{}"))
    context = {"given": len(first["input"]) if "length" in words else first.get("input")} | first.get(
        "ctx", {}
    )
    return Refused(
        f"Invalid {what}: {words.format(_lower(first['msg']), **context)}.", param=param, code=code
    )


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
