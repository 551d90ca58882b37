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
    UnknownCursor,
    UnknownJob,
    UnknownRun,
    UnknownThread,
    ValueTooLarge,
    WrongStatus,
)
from dayjob.server.answers import JSON

INVALID = "invalid_request_error"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {
    "string_too_long": (
        "string_above_max_length",
        "expected at most {max_length} characters, but got {length}",
    ),
    "string_too_short": ("empty_string", "expected a string that is not empty"),
    "too_long": ("above_max_length", "expected at most {max_length}, but got more"),
    "too_short": ("below_min_length", "expected at least {min_length}"),
    "less_than_equal": ("above_max_value", "expected a value <= {le}, but got {input}"),
    "greater_than_equal": ("below_min_value", "expected a value >= {ge}, but got {input}"),
    "string_type": ("invalid_type", "expected a string"),
    "int_type": ("invalid_type", "expected an integer"),
    "int_parsing": ("invalid_type", "expected an integer"),
    "float_type": ("invalid_type", "expected a number"),
    "bool_type": ("invalid_type", "expected a boolean"),
    "list_type": ("invalid_type", "expected an array"),
    "dict_type": ("invalid_type", "expected an object"),
    "model_type": ("invalid_type", "expected an object"),
    "model_attributes_type": ("invalid_type", "expected an object"),
}
"""By the type of a pydantic error: the code of the answer, and its words."""
UNION_TAGS = ("function", "code_interpreter", "file_search", "text", "image_url", "image_file")
"""How pydantic names the members of the unions of `bodies`."""
AS_IT_IS = "refused"
"""The type of a pydantic error whose message is told as it is."""
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


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": ErrorBody,
        "description": "Not done; the message says why, and `param` names the field.",
    },
    "5XX": {"model": ErrorBody, "description": "Failed on this side; what was done before is kept."},
}
"""What every endpoint may answer besides."""


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
        case UnknownRun() | UnknownJob() | UnknownAction() | UnknownThread():
            return Refused(problem.message, 404)
        case UnknownCursor():
            return Refused(problem.message, param=problem.field, code="invalid_value")
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
    place = _place(first["loc"])
    param = ".".join(place[1:]) or None
    kind, told = first["type"], first.get("ctx", {})
    if kind == "missing":
        return Refused(f"{' -> '.join(place)} field required", param=param)
    if kind == AS_IT_IS:
        return Refused(first["msg"], param=param, code="invalid_value")
    if kind in ("literal_error", "union_tag_invalid"):
        given, expected = told.get("tag", first["input"]), told.get("expected") or told["expected_tags"]
        return Refused(
            f"Invalid value: {given!r}. Supported values are: {expected}.", param=param, code="invalid_value"
        )
    code, words = CODES.get(kind, ("invalid_value", ""))
    if words:
        given = first["input"]
        words = words.format(
            **{"input": given, "length": len(given) if isinstance(given, str) else 0, **told}
        )
    words = words or first["msg"][:1].lower() + first["msg"][1:]
    return Refused(f"Invalid {repr(param) if param else 'body'}: {words}.", param=param, code=code)


def _place(path: Sequence[Any]) -> list[str]:
    """Where it is, without what pydantic adds: the member of a union, after a number, and "[key]"."""
    return [
        str(part)
        for part, before in zip(path, (None, *path), strict=False)
        if part != "[key]" and not (part in UNION_TAGS and isinstance(before, int))
    ]
