"""Which errors of a write leave open whether it happened, and which do not."""

from __future__ import annotations

import errno
import smtplib
import ssl
import subprocess
import urllib.error
from collections.abc import Callable
from http.client import RemoteDisconnected
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from dayjob import NotDone, Unknown, tool
from dayjob.effects import outcome_is_unknown


class Murky(Exception):
    pass


@tool(unknown=(Murky,))
async def pay() -> None: ...


def http(status: int) -> Exception:
    problem = ValueError("the answer was no 2xx")
    problem.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return problem


def caught(fails: Callable[[], Any]) -> Exception:
    try:
        fails()
    except Exception as problem:
        return problem
    raise AssertionError("nothing was raised")


def fails_with(*problems: Exception, hidden: bool = False) -> Exception:
    """The last of errors that were each raised while the one before was handled."""

    def fails() -> None:
        *earlier, last = problems
        try:
            if earlier:
                raise fails_with(*earlier)
        except Exception:
            if hidden:
                raise last from None
            raise last  # noqa: B904
        raise last

    return caught(fails)


def refused_by_a_client() -> Exception:
    """As clients tell of it: their own class, from the one of Python."""

    def fails() -> None:
        try:
            raise ConnectionRefusedError("nobody there")
        except ConnectionRefusedError as refusal:
            raise httpx2.ConnectError("nobody there") from refusal

    return caught(fails)


def refused_after(first: Exception) -> Exception:
    def fails() -> None:
        try:
            raise first
        except Exception:
            raise refused_by_a_client()  # noqa: B904

    return caught(fails)


@pytest.mark.parametrize(
    "problem",
    [
        TimeoutError(),
        ConnectionResetError(),
        BrokenPipeError(),
        EOFError(),
        OSError(errno.EHOSTUNREACH, "no route to host"),
        RemoteDisconnected("the end came without an answer"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("half an answer"),
        subprocess.TimeoutExpired("curl", 3),
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        ssl.SSLZeroReturnError(6, "closed"),
        smtplib.SMTPServerDisconnected("closed unexpectedly"),
        urllib.error.URLError(TimeoutError()),
        http(503),
        Murky(),
        Unknown("?"),
        ExceptionGroup("several", [ValueError(), ConnectionResetError()]),
        ExceptionGroup("several", [NotDone("not this"), ExceptionGroup("more", [http(502)])]),
        ExceptionGroup("several", [ConnectionRefusedError(), TimeoutError()]),
        fails_with(TimeoutError(), ValueError("the payment failed")),
        fails_with(TimeoutError(), ConnectionRefusedError("the second try")),
        fails_with(http(500), ConnectionRefusedError("the second try"), ValueError("both failed")),
        refused_after(TimeoutError()),
    ],
    ids=repr,
)
def test_it_may_have_happened(problem: Exception) -> None:
    assert outcome_is_unknown(problem, pay)


@pytest.mark.parametrize(
    "problem",
    [
        ValueError("no such account"),
        OSError(errno.ENOSPC, "no space left"),
        ConnectionRefusedError("nobody there"),
        httpx2.ConnectTimeout("nobody there"),
        refused_by_a_client(),
        urllib.error.URLError(ConnectionRefusedError()),
        subprocess.CalledProcessError(1, "curl"),
        smtplib.SMTPRecipientsRefused({}),
        http(404),
        NotDone("looked it up"),
        fails_with(TimeoutError(), NotDone("looked it up after the timeout")),
        fails_with(TimeoutError(), ValueError("that was only the cache"), hidden=True),
        fails_with(ValueError(), refused_by_a_client()),
        ExceptionGroup("several", [ValueError(), ConnectionRefusedError()]),
        ExceptionGroup("several", [ValueError(), NotDone("not this either")]),
    ],
    ids=repr,
)
def test_it_did_not_happen(problem: Exception) -> None:
    assert not outcome_is_unknown(problem, pay)


def test_an_error_that_is_its_own_cause_is_looked_at_once() -> None:
    problem = ConnectionRefusedError("nobody there")
    problem.__cause__ = problem
    assert not outcome_is_unknown(problem, pay)
