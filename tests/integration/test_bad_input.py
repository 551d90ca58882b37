"""What users, files and endpoints get wrong: each ends in a clear error, and nothing accepted is lost or stuck."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import date, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel

from dayjob import Dayjob, InputError, Run, RunFailed, Status, StepError, job
from dayjob.cli.files import job_named
from dayjob.errors import (
    ForeignStore,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreTooNew,
    StoreUnavailable,
    UnknownAction,
    UnknownJob,
    UnknownRun,
    WrongStatus,
)
from dayjob.jobs import Job
from dayjob.models.openai import OpenAI
from dayjob.models.scripted import Scripted
from dayjob.stores import open_store
from tests.failing_stores import Locked
from tests.until import until
from tests.wire import Wire, fails


async def failure_of(url: str, work: Job, **app: Any) -> str:
    """The reason with which a run of the job fails, as its handle and its record give it."""
    async with Dayjob(url, **app) as opened:
        handle = await opened.submit(work())
        with pytest.raises(RunFailed) as caught:
            await handle.result(20)
        record = await opened.get(handle.id)
        assert record.status == Status.FAILED
        assert record.reason == caught.value.reason
        assert record.reason
        return record.reason


# --- jobs and their input ------------------------------------------------------------------------------


@job
async def greet(run: Run, name: str, times: int = 1) -> str:
    return name * times


async def test_an_unknown_job_is_named_with_those_that_are_known() -> None:
    with pytest.raises(UnknownJob, match=r"jobs\.py: has no job 'gret'; it has greet"):
        job_named({"greet": greet}, "gret", "jobs.py")


async def test_a_run_of_a_job_that_no_worker_has_waits_until_one_comes(url: str) -> None:
    async with Dayjob(url, worker=False) as app:
        handle = await app.submit(greet(name="Ann"))
        async with Dayjob(url) as other:
            other_job = await other.submit(plain())
            assert await other_job.result(20) == "plain"
            assert await handle.status() == Status.QUEUED
        async with app.worker():
            assert await handle.result(20) == "Ann"


@job
async def plain(run: Run) -> str:
    return "plain"


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda app: app.submit(greet), "submit: expected a request, as calling a job gives, got Job"),
        (lambda app: app.submit("greet"), "submit: expected a request, as calling a job gives, got str"),
        (lambda app: app.submit(greet(name="A"), when_busy="perhaps"), "when_busy: expected"),
        (lambda app: app.submit(greet(name="A"), key="\ud800"), "key: "),
        (lambda app: app.submit(greet(name="A"), queue="\ud800"), "queue: "),
        (lambda app: app.submit(greet(name="A"), thread="\ud800"), "thread: "),
        (lambda app: app.submit(greet(name="A"), priority=2**70), "priority: "),
        (lambda app: app.submit(greet(name="A"), priority="5"), "priority: "),
        (lambda app: app.submit(greet(name="A"), priority=float("nan")), "priority: "),
        (lambda app: app.submit(greet(name="A"), queue=None), "queue: expected str, got NoneType"),
        (lambda app: app.submit(greet(name="A"), source="\ud800"), "source: "),
        (lambda app: app.get("\ud800"), "run: "),
        (lambda app: app.get(None), "run: expected str, got NoneType"),
        (lambda app: app.steps("\ud800"), "run: "),
        (lambda app: app.runs(job="\ud800"), "job: "),
        (lambda app: app.actions("\ud800"), "run: "),
        (lambda app: app.answer("\ud800", "ask", 1), "run: "),
        (lambda app: app.answer("run_x", "\ud800", 1), "action: "),
        (lambda app: app.answer("run_x", "ask", 1, by="\ud800"), "by: "),
        (lambda app: app.send("\ud800", "news"), "run: "),
        (lambda app: app.send("run_x", "\ud800"), "name: "),
        (lambda app: app.cancel("\ud800"), "run: "),
        (lambda app: app.resume("\ud800"), "run: "),
        (lambda app: app.handle("\ud800").result(), "run: "),
        (lambda app: app.thread("\ud800").append("x"), "thread: "),
        (lambda app: app.memory.get("\ud800"), "name: "),
        (lambda app: app.memory.set("\ud800", 1), "name: "),
        (lambda app: app.submit(greet(name="A"), delay=float("nan")), "delay: "),
        (lambda app: app.submit(greet(name="A"), delay="5"), "delay: "),
    ],
)
async def test_a_wrong_argument_is_named_and_nothing_is_submitted(
    url: str, give: Callable[[Dayjob], Any], message: str
) -> None:
    async with Dayjob(url, worker=False) as app:
        with pytest.raises(InputError) as caught:
            await give(app)
        assert str(caught.value).startswith(message)
        assert await app.runs() == []


async def test_two_jobs_of_one_name_are_refused_naming_it(url: str) -> None:
    with pytest.raises(InputError, match=r"jobs: two jobs are named 'greet'; give one @job\(name=…\)"):
        Dayjob(url, jobs=[greet, job(greet.fn)])
    with pytest.raises(InputError, match=r"jobs: .* is no job; decorate it with @job"):
        Dayjob(url, jobs=[greet.fn])  # type: ignore[list-item]


async def test_input_that_no_longer_fits_fails_the_run_naming_the_field(url: str) -> None:
    """The run was accepted from older code; the code that comes to work on it wants another field."""

    async def newer(run: Run, name: str, greeting: str) -> str:
        return greeting + name

    async with Dayjob(url, worker=False) as app:
        handle = await app.submit(greet(name="Ann"))
    async with Dayjob(url, jobs=[job(name="greet", version="2")(newer)]) as app:
        with pytest.raises(RunFailed, match=r"times: unknown \(expected name: str, greeting: str\)"):
            await app.handle(handle.id).result(20)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda app: app.get("run_x"), UnknownRun, "run_x: no run of that id is in sqlite:///"),
        (lambda app: app.steps("run_x"), UnknownRun, "run_x"),
        (lambda app: app.handle("run_x").result(5), UnknownRun, "run_x"),
        (lambda app: app.handle("run_x").status(), UnknownRun, "run_x"),
        (lambda app: app.answer("run_x", "ask", 1), UnknownRun, "run_x"),
        (lambda app: app.send("run_x", "news", 1), UnknownRun, "run_x"),
        (lambda app: app.cancel("run_x"), UnknownRun, "run_x"),
        (lambda app: app.resume("run_x"), UnknownRun, "run_x"),
    ],
)
async def test_an_unknown_run_is_named(
    url: str, ask: Callable[[Dayjob], Any], error: type[Exception], message: str
) -> None:
    async with Dayjob(url) as app:
        with pytest.raises(error, match=message):
            await ask(app)


@job
async def asks(run: Run) -> int:
    return int(await run.ask("how many?", returns=int))


async def test_a_wrong_answer_is_refused_naming_the_action_and_the_run_still_waits(url: str) -> None:
    async with Dayjob(url) as app:
        handle = await app.submit(asks())
        (action,) = await until(app.actions)
        with pytest.raises(InputError, match="answer to 'ask': 'many' is not of type 'integer'"):
            await app.answer(handle.id, action.id, "many")
        with pytest.raises(UnknownAction, match="does not wait for 'asked'; it waits for 'ask'"):
            await app.answer(handle.id, "asked", 1)
        with pytest.raises(WrongStatus, match="only a run that is over can be resumed"):
            await app.resume(handle.id)
        await app.answer(handle.id, action.id, 3)
        assert await handle.result(20) == 3
        with pytest.raises(UnknownAction, match="it waits for nothing"):
            await app.answer(handle.id, action.id, 4)
        with pytest.raises(WrongStatus, match="is over"):
            await app.send(handle.id, "news")
        with pytest.raises(WrongStatus, match="is completed; to do some of it again"):
            await app.resume(handle.id)
        with pytest.raises(InputError, match=r"from_step: .* has no finished step 'nowhere'"):
            await app.resume(handle.id, from_step="nowhere")


class Limit(BaseModel, strict=True):
    until: date
    most: int


@pytest.mark.parametrize(
    ("returns", "wrong", "message", "right", "read"),
    [
        (date, "soon", "'soon' is not a 'date'", "2026-11-22", date(2026, 11, 22)),
        (date, "20261122", "is not a 'date'", "2026-11-22", date(2026, 11, 22)),
        (datetime, "today", "is not a 'date-time'", "2026-11-22T08:00", datetime(2026, 11, 22, 8)),  # noqa: DTZ001
        (UUID, "1", "is not a 'uuid'", str(UUID(int=1)), UUID(int=1)),
        (IPv4Address, "1.2.3", "is not a 'ipv4'", "1.2.3.4", IPv4Address("1.2.3.4")),
        (list[timedelta], ["soon"], "0: 'soon' is not a 'duration'", ["PT1S"], [timedelta(seconds=1)]),
        (int, 3.5, "3.5 is not of type 'integer'", 3.0, 3),
        (int, True, "True is not of type 'integer'", 3, 3),
        (Literal[3, 4], 5.0, "5 is not one of [3, 4]", 3.0, 3),
        (
            Limit, {"until": "2026-11-22", "most": 3.0}, "most: 3.0 is not of type 'integer'",
            {"until": "2026-11-22", "most": 3}, Limit(until=date(2026, 11, 22), most=3),
        ),
    ],
)  # fmt: skip
async def test_an_answer_that_is_taken_can_be_read(
    url: str, returns: Any, wrong: Any, message: str, right: Any, read: Any
) -> None:
    given: list[Any] = []

    @job
    async def asking(run: Run) -> None:
        given.append(await run.ask("?", returns=returns))

    async with Dayjob(url) as app:
        handle = await app.submit(asking())
        (action,) = await until(app.actions)
        with pytest.raises(InputError, match=re.escape(message)):
            await app.answer(handle.id, action.id, wrong)
        await app.answer(handle.id, action.id, right)
        await handle.result(20)
    assert [(type(value), value) for value in given] == [(type(read), read)]


@pytest.mark.parametrize(
    ("store", "error", "message"),
    [
        ("dayjob.db", InputError, "store: 'dayjob.db' is no URL"),
        ("postgresql://host/db", InputError, "store: postgresql:// is not supported yet"),
        ("mysql://host/db", InputError, "store: mysql:// is not a kind of store"),
        ("sqlite://", InputError, "names no file"),
        ("sqlite:///:memory:", InputError, "names no file"),
        ("sqlite://host/path", InputError, "names no file"),
        ("sqlite:///x.db?synchronous=never", InputError, "the only option is synchronous"),
        ("sqlite:///runs#1.db", InputError, 'a "#" in a path is written %23'),
        ("sqlite:///x%00.db", InputError, "names no file"),
    ],
)
async def test_a_wrong_store_url_is_shown_with_what_was_expected(
    store: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        async with Dayjob(store):
            pass
    assert message in str(caught.value)


async def test_a_result_that_is_waited_for_when_the_app_closes_is_an_error_and_so_is_all_use_after(
    url: str,
) -> None:
    async with Dayjob(url) as app:
        handle = await app.submit(asks())
        waiting = asyncio.create_task(handle.result())
        await until(app.actions)
    for use in (
        waiting, handle.result(), app.handle(handle.id).result(), handle.status(), handle.cancel(), app.runs(),
        app.submit(asks()), app.memory.get("x"), app.memory.set("x", 1), app.thread("t").append("x"),
        app.answer(handle.id, "ask", 1), anext(handle.events()),
    ):  # fmt: skip
        with pytest.raises(StoreUnavailable, match="closed"):
            async with asyncio.timeout(20):
                await use


async def test_odd_characters_in_the_path_of_a_store_are_written_as_in_any_url(tmp_path: Path) -> None:
    async with Dayjob(f"sqlite:///{tmp_path}/my%20runs%231%3F%25.db") as app:
        assert await (await app.submit(plain())).result(20) == "plain"
    assert (tmp_path / "my runs#1?%.db").exists()


# --- steps and jobs that misbehave ---------------------------------------------------------------------


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "NotJSON: step 'make': set is no JSON"),
        ({"a": [Opaque()]}, "Opaque at a[0] is no JSON"),
        (float("nan"), "nan is no JSON"),
        (2**80, "an int of more than 64 bits cannot be stored"),
        ("\ud800", "a str with half a surrogate pair"),
        ("x" * 50_000_000, "ValueTooLarge: step 'make': 50.0 MB of JSON; the limit of a value is 8 MB"),
    ],
    ids=["set", "object", "nan", "big int", "surrogate", "50 MB"],
)
async def test_a_step_result_that_cannot_be_stored_fails_the_run_naming_step_and_type(
    url: str, value: Any, message: str
) -> None:
    def make() -> Any:
        return value

    @job
    async def making(run: Run) -> Any:
        return await run.step(make)

    reason = await failure_of(url, making)
    assert message in reason
    assert "step 'make'" in reason


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({1}, "step 'take': arguments: set at [0] is no JSON"),
        (float("inf"), "step 'take': arguments: inf at [0] is no JSON"),
        ("x" * 50_000_000, "step 'take': arguments: 50.0 MB of JSON"),
    ],
    ids=["set", "inf", "50 MB"],
)
async def test_a_step_argument_that_cannot_be_stored_fails_the_run_naming_the_step(
    url: str, argument: Any, message: str
) -> None:
    def take(argument: Any) -> None: ...

    @job
    async def taking(run: Run) -> None:
        await run.step(take, argument)

    assert message in await failure_of(url, taking)


async def test_a_step_result_of_the_wrong_type_names_step_and_types(url: str) -> None:
    def count() -> int:
        return "three"  # type: ignore[return-value]

    @job
    async def counting(run: Run) -> int:
        return int(await run.step(count))

    assert "step 'count': expected int, got str 'three'" in await failure_of(url, counting)


async def test_a_job_result_that_cannot_be_stored_fails_the_run(url: str) -> None:
    @job
    async def opaque(run: Run) -> Any:
        return {"found": Opaque()}

    assert "output: Opaque at found is no JSON" in await failure_of(url, opaque)


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ValueError("no such order"), "ValueError: no such order"),
        (ValueError(), "ValueError"),
        (ValueError("half a \ud800 pair"), "ValueError: half a ? pair"),
        (ValueError("with \0 inside"), "ValueError: with \0 inside"),
        (asyncio.CancelledError(), "CancelledError: the job cancelled itself"),
        (TimeoutError(), "TimeoutError"),
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (StopAsyncIteration(), "StopAsyncIteration"),
        (ExceptionGroup("both", [ValueError("a"), KeyError("b")]), "ExceptionGroup: both (2 sub-exceptions)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
async def test_a_job_that_raises_fails_its_run_with_type_and_text(
    url: str, raised: BaseException, reason: str
) -> None:
    @job
    async def broken(run: Run) -> None:
        raise raised

    assert await failure_of(url, broken) == reason


class Mute(Exception):
    """Nothing that it is asked for can it say."""

    def __str__(self) -> str:
        raise Mute

    __repr__ = __str__

    def _of_nothing(self) -> Any:
        raise SystemExit

    retryable = property(_of_nothing)
    retry_after = property(_of_nothing)


class Hollow(StepError):
    def __init__(self) -> None: ...


@pytest.mark.parametrize("error", [Mute, Hollow])
async def test_an_error_that_cannot_say_what_it_is_fails_the_run_in_a_job_and_in_a_step_alike(
    url: str, error: type[Exception]
) -> None:
    def breaking() -> None:
        raise error

    @job
    async def broken(run: Run) -> None:
        raise error

    @job
    async def stepping(run: Run) -> None:
        await run.step(breaking)

    @job
    async def branching(run: Run) -> None:
        async def branch(run: Run) -> None:
            raise error

        await run.gather(branch)

    name = "Mute: (the text of this Mute cannot be made)" if error is Mute else "StepError"
    assert await failure_of(url, broken) == name
    assert await failure_of(url, stepping) == f"step 'breaking': {name}"
    assert await failure_of(url, branching) == f"step 'gather/0': {name}"


async def test_what_a_deferred_function_raises_does_not_keep_the_others_from_being_called(url: str) -> None:
    called: list[str] = []

    def deferred(name: str, error: type[BaseException] | None = None) -> Callable[[], None]:
        def function() -> None:
            called.append(name)
            if error is not None:
                raise error

        return function

    @job
    async def tidy(run: Run) -> str:
        for number, error in enumerate([None, Mute, SystemExit, GeneratorExit, StopIteration, ValueError]):
            await run.defer(deferred(str(number), error))
        return "done"

    warnings: list[str] = []
    async with Dayjob(url) as app:
        app.subscribe(lambda name, fields: name == "run.warning" and warnings.append(fields["message"]))
        assert await (await app.submit(tidy())).result(20) == "done"
    assert called == ["5", "4", "3", "2", "1", "0"]
    assert len([said for said in warnings if said.startswith("deferred function failed: ")]) == 5


async def test_a_timeout_of_a_steps_own_is_not_taken_for_the_one_that_it_was_given(url: str) -> None:
    async def pool() -> None:
        raise TimeoutError("the pool is exhausted")

    async def inside(run: Run) -> None:
        await pool()

    async def slow() -> None:
        await asyncio.sleep(60)

    def refuses(request: Any) -> str:
        raise TimeoutError("the pool is exhausted")

    @job
    async def waiting(run: Run) -> list[str]:
        said = []
        for call in (
            run.step(pool, timeout=600),
            run.step(inside, timeout=600),
            run.model("hi", timeout=600),
            run.step(slow, timeout=0.01),
        ):
            try:
                await call
            except StepError as error:
                said.append(str(error))
        return said

    async with Dayjob(url, Scripted(refuses)) as app:
        said = await (await app.submit(waiting())).result(20)
    assert said == [
        *["TimeoutError: the pool is exhausted"] * 3,
        "Timeout: step 'slow' took longer than 0.01 s",
    ]


async def test_a_retry_policy_that_fails_is_the_error_of_its_step_which_has_a_row(url: str) -> None:
    def broken(attempt: int, error: StepError) -> None:
        raise Mute

    def fails_once() -> None:
        raise ValueError("no")

    @job
    async def trying(run: Run) -> list[str]:
        types = []
        for call in (run.step(fails_once, retry=broken), run.model("hi", retry=broken)):
            try:
                await call
            except StepError as error:
                types.append(error.type)
        return types

    def refuses(request: Any) -> str:
        raise ConnectionError("no")

    async with Dayjob(url, Scripted(refuses)) as app:
        handle = await app.submit(trying())
        assert await handle.result(20) == ["RetryPolicyFailed"] * 2
        assert [(step.key, step.outcome) for step in await app.steps(handle.id)] == [
            ("fails_once", "error"), ("model", "error"),
        ]  # fmt: skip


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, GeneratorExit, SystemExit])
async def test_a_sync_step_that_raises_what_no_future_takes_fails_its_run(
    url: str, error: type[BaseException]
) -> None:
    def odd() -> None:
        raise error

    @job
    async def raising(run: Run) -> None:
        await run.step(odd)

    assert error.__name__ in await failure_of(url, raising)


async def test_secrets_in_an_error_are_redacted_wherever_they_are_kept(
    url: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "tok-hunter2-tok")

    def connect() -> None:
        raise ConnectionError("refused for tok-hunter2-tok")

    @job
    async def connecting(run: Run) -> None:
        await run.step(connect)

    @job
    async def raising(run: Run) -> None:
        await run.verdict(False, reason="because of tok-hunter2-tok")
        raise ValueError("tok-hunter2-tok is wrong")

    assert await failure_of(url, raising) == "ValueError: [redacted] is wrong"
    assert "refused for [redacted]" in await failure_of(url, connecting)
    files = [file for file in path.parent.iterdir() if file.name.startswith(path.name)]
    assert not [file.name for file in files if b"tok-hunter2-tok" in file.read_bytes()]


async def test_odd_names_of_steps_are_stored(url: str) -> None:
    def nothing() -> str:
        return "ok"

    names = ["half a \ud800 pair", "a/b#c", "", "with \0", "ünï", "x" * 10_000]

    @job
    async def odd(run: Run) -> list[str]:
        return [await run.step(nothing, name=name) for name in names]

    async with Dayjob(url) as app:
        handle = await app.submit(odd())
        assert await handle.result(15) == ["ok"] * 6
        assert len(await app.steps(handle.id)) == 6


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (lambda run: run.verdict(True, score=10**30), "verdict: an int of more than 64 bits at score"),
        (
            lambda run: run.verdict(True, reason="\ud800"),
            "verdict: a str with half a surrogate pair at reason",
        ),
        (lambda run: run.note("x", data={1}), "note: set at data.data is no JSON"),
        (lambda run: run.remember("x", {1}), "remember 'x': set is no JSON"),
        (lambda run: run.partial(float("nan")), "partial: nan is no JSON"),
        (lambda run: run.map(len, [1, 1], key=str), "map 'map': key '1' stands for more than one item"),
        (lambda run: run.map(len, [1], limit=0), "map 'map': limit must be at least 1, got 0"),
        (lambda run: run.race(), "race 'race': needs at least one function"),
        (lambda run: run.start(plain), "start: expected a request, as calling a job gives, got Job"),
        (lambda run: run.model([]), "messages: a prompt needs at least one message"),
        (lambda run: run.model(["hi"]), "messages[0]: expected a dict with a role, got str"),
        (lambda run: run.model("\ud800"), "messages[0]: a str with half a surrogate pair"),
        (lambda run: run.ask("\ud800"), "half a surrogate pair"),
        (lambda run: run.ask("?", timeout=float("nan")), "timeout: expected seconds, 0 or more, got nan"),
        (lambda run: run.ask("?", timeout=-1), "timeout: expected seconds, 0 or more, got -1"),
        (lambda run: run.event("x", timeout="5"), "timeout: expected seconds, 0 or more, got '5'"),
        (lambda run: run.step(len, [], timeout=-1), "timeout: expected seconds, 0 or more, got -1"),
        (lambda run: run.model("hi", timeout=-1), "timeout: expected seconds, 0 or more, got -1"),
        (lambda run: run.sleep(float("nan")), "seconds: expected seconds, 0 or more, got nan"),
        (lambda run: run.sleep(float("inf")), "seconds: expected seconds, 0 or more, got inf"),
    ],
)
async def test_a_verb_given_nonsense_fails_the_run_saying_which_and_why(
    url: str, say: Callable[[Run], Any], reason: str
) -> None:
    @job
    async def nonsense(run: Run) -> None:
        await say(run)

    assert reason in await failure_of(url, nonsense, model=Scripted(["hi"]))


async def test_a_verb_that_refuses_its_argument_leaves_the_run_usable(url: str) -> None:
    @job
    async def goes_on(run: Run) -> str:
        for refused in (
            run.continue_as("nonsense"),  # type: ignore[arg-type]
            run.start("nonsense"),  # type: ignore[arg-type]
            run.sleep(float("nan")),
            run.ask("?", timeout=-1),
            run.step(len, [], timeout=-1),
        ):
            with pytest.raises(InputError):
                await refused
        return str(await run.step(lambda: "still here"))

    async with Dayjob(url) as app:
        assert await (await app.submit(goes_on())).result(20) == "still here"


async def test_progress_in_figures_that_no_column_holds_does_not_get_a_run_stuck(url: str) -> None:
    @job
    async def odd(run: Run) -> str:
        run.progress(10**30, 10**31)
        await run.sleep(0)
        return str(await run.step(lambda: "ok"))

    async with Dayjob(url) as app:
        assert await (await app.submit(odd())).result(20) == "ok"


async def test_two_calls_at_once_in_one_scope_fail_the_run_naming_both(url: str) -> None:
    async def slow() -> None:
        await asyncio.sleep(0.05)

    @job
    async def careless(run: Run) -> None:
        await asyncio.gather(run.step(slow, name="one"), run.step(slow, name="two"))

    reason = await failure_of(url, careless)
    assert "two calls at once in one scope: 'two' began while 'one' was in progress" in reason


# --- models --------------------------------------------------------------------------------------------


@job
async def chat(run: Run) -> str:
    return (await run.model("hello")).text


async def test_no_model_configured_names_the_flags_and_the_run_goes_on_with_one(url: str) -> None:
    reason = await failure_of(url, chat)
    assert 'ModelNotConfigured: No model is configured. Pass model="openai:…"' in reason
    assert "--model" in reason
    assert reason.startswith("step 'model'")
    async with Dayjob(url, model=Scripted(["hi there"]), jobs=[chat]) as app:
        (record,) = await app.runs()
        assert await (await app.resume(record.id)).result(20) == "hi there"


async def test_a_model_name_that_is_none_is_shown_with_what_was_expected(url: str) -> None:
    reason = await failure_of(url, chat, model="gpt-5-mini")
    assert "model: 'gpt-5-mini' is not a model's name; expected openai:NAME, anthropic:NAME, local:" in reason


async def test_a_wrong_key_is_said_on_the_run_and_not_tried_again(url: str) -> None:
    refused = {"message": "Incorrect API key provided: sk-wr***ng.", "code": "invalid_api_key"}
    async with Wire(fails(401, refused)) as wire:
        model = OpenAI("gpt-test", base_url=wire.url, api_key="sk-wrong-key")
        reason = await failure_of(url, chat, model=model)
        await model.close()
        assert len(wire.requests) == 1
    assert "ModelRefused" in reason
    assert "401" in reason
    assert "the key in api_key= was refused" in reason
    assert "sk-wrong-key" not in reason


class City(BaseModel):
    name: str
    people: int


@pytest.mark.parametrize(
    ("says", "wrong"),
    [
        ("I would rather not.", "the answer is no JSON"),
        ('{"name": "Lisbon"}', "people: Field required"),
        ('{"name": "Lisbon", "people": "many"}', "people: Input should be a valid integer"),
        ('{"name": "Lis', "the answer is no JSON"),
        ("", "the answer is no JSON"),
        ("[]", "the answer does not fit"),
    ],
)
async def test_a_model_that_answers_nonsense_is_asked_again_and_then_the_run_fails(
    url: str, says: str, wrong: str
) -> None:
    @job
    async def structured(run: Run) -> City:
        return (await run.model("Which city?", returns=City)).value  # type: ignore[no-any-return]

    model = Scripted(lambda request: says)
    reason = await failure_of(url, structured, model=model)
    assert reason.startswith("step 'model': InvalidAnswer: ")
    assert wrong in reason
    assert len(model.requests) == 3  # asked, and corrected twice
    assert wrong in model.requests[1].messages[-1]["content"]


async def test_a_model_that_gets_it_right_when_corrected_is_believed(url: str) -> None:
    @job
    async def structured(run: Run) -> City:
        return (await run.model("Which city?", returns=City)).value  # type: ignore[no-any-return]

    model = Scripted(["nonsense", '```json\n{"name": "Lisbon", "people": 5}\n```'])
    async with Dayjob(url, model=model) as app:
        assert await (await app.submit(structured())).result(20) == City(name="Lisbon", people=5)


# --- stores that cannot be used ------------------------------------------------------------------------


def a_directory(path: Path) -> Path:
    path.mkdir()
    return path


def in_a_missing_folder(path: Path) -> Path:
    return path / "missing" / "dayjob.db"


def below_a_file(path: Path) -> Path:
    path.write_text("a file")
    return path / "dayjob.db"


def where_the_kernel_lets_nobody_write(path: Path) -> Path:
    return Path("/proc/dayjob.db")


@pytest.mark.parametrize(
    "place", [a_directory, in_a_missing_folder, below_a_file, where_the_kernel_lets_nobody_write]
)
async def test_a_path_that_cannot_be_written_is_named(place: Callable[[Path], Path], path: Path) -> None:
    """Also for root, to whom file modes do not apply."""
    wrong = place(path)
    before = threads()
    with pytest.raises(StoreUnavailable) as caught:
        async with Dayjob(f"sqlite:///{wrong}"):
            pass
    assert str(caught.value).startswith(f"{wrong}: ")
    assert threads() == before


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("dayjob")}


@pytest.mark.parametrize("content", [b"some text, " * 500, bytes(range(256)) * 32])
def test_a_file_that_is_no_database_is_left_as_it_is(url: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ForeignStore, match=rf"{path.name}: is no SQLite database\. Choose another path\."):
        open_store(url)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_an_empty_file_is_as_good_as_none(url: str, path: Path) -> None:
    path.touch()  # noqa: ASYNC240
    async with Dayjob(url) as app:
        assert await app.runs() == []


def test_a_database_of_another_program_is_left_as_it_is(url: str, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (title TEXT)")
        connection.execute("INSERT INTO recipes VALUES ('soup')")
        connection.commit()
    content = path.read_bytes()
    with pytest.raises(ForeignStore, match=f"{path.name}: is a database of another program"):
        open_store(url)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_a_store_of_a_newer_dayjob_is_left_as_it_is(url: str, path: Path) -> None:
    async with Dayjob(url) as app:
        handle = await app.submit(greet(name="Ann"))
        await handle.result(20)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreTooNew, match=r"has schema 99; this Dayjob knows up to \d+\. Upgrade Dayjob\."):
        async with Dayjob(url):
            pass
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)


async def test_a_store_locked_by_another_program_keeps_what_it_has_and_goes_on(url: str, path: Path) -> None:
    """Longer than SQLite waits, so that writes and heartbeats really fail; what is asked outside says so."""
    gate = asyncio.Event()
    ledger: list[int] = []

    async def enter(number: int) -> int:
        ledger.append(number)
        return number

    @job
    async def steps(run: Run) -> list[int]:
        first = await run.step(enter, 1)
        await gate.wait()
        return [first, *[await run.step(enter, number) for number in (2, 3)]]

    async with Dayjob(url, worker=False) as app:
        failing: list[str] = []
        app.subscribe(lambda name, f: failing.append(f["error"]) if name == "store.failing" else None)
        async with app.worker(beat_seconds=0.2, lease_seconds=60) as worker:
            handle = await app.submit(steps())
            await until(lambda: ledger == [1])
            await until(lambda: _steps(app, handle.id, 1))
            with Locked(path):
                gate.set()
                started = time.monotonic()
                with pytest.raises(StoreLocked) as caught:
                    await app.submit(greet(name="Ann"))
                assert str(caught.value).startswith(f"{path}: another program holds the database's lock")
                assert time.monotonic() - started < 15
                await until(lambda: failing)
                assert ledger == [1, 2]  # done, not durable, so nothing follows
                assert [run.id for run in await app.runs()] == [handle.id]  # reading goes on
            assert await handle.result(20) == [1, 2, 3]
            assert ledger == [1, 2, 3]
            beat = (await app.store.workers())[0].beat
            await until(lambda: _beaten(app, beat), 20, "the heart beats on")
            assert worker.id == (await app.store.workers())[0].id
            assert await (await app.submit(greet(name="Ann"))).result(20) == "Ann"


async def _steps(app: Dayjob, run: str, count: int) -> bool:
    return len(await app.steps(run)) == count


async def _beaten(app: Dayjob, since: float) -> bool:
    return bool((await app.store.workers())[0].beat > since)


async def test_opening_a_store_that_another_program_holds_says_so(url: str, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:  # not yet a store: even reading it needs the lock
        connection.execute("PRAGMA application_id = 1")
    started = time.monotonic()
    with Locked(path), pytest.raises(StoreLocked, match=f"{path.name}: another program holds"):
        open_store(url)
    assert time.monotonic() - started < 15


# --- a full disk ---------------------------------------------------------------------------------------

FULL = """
import asyncio, os, resource, sys
from pathlib import Path
from dayjob import Dayjob, Run, job
from dayjob.errors import StoreError

path = Path(sys.argv[1])
ledger = []

def enter(number: int) -> str:
    ledger.append(number)
    return f"{number}" + "x" * 20_000

@job
async def filling(run: Run) -> int:
    return len([await run.step(enter, number) for number in range(40)])

async def main() -> None:
    failing = []
    async with Dayjob(f"sqlite:///{path}", worker=False) as app:
        app.subscribe(lambda name, f: failing.append(f["error"]) if name == "store.failing" else None)
        async with app.worker(beat_seconds=0.1, lease_seconds=60):
            largest = max(file.stat().st_size for file in path.parent.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 200_000, resource.RLIM_INFINITY))
            handle = await app.submit(filling())
            while not failing:
                await asyncio.sleep(0.01)
            done = len(ledger)
            assert 0 < done < 40, ledger
            try:
                await app.submit(filling(), key="k")
            except StoreError as problem:
                print(type(problem).__name__, problem)
            assert await handle.status() == "in_progress"
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert await handle.result(30) == 40
            assert ledger == list(range(40)), ledger
            assert len(await app.steps(handle.id)) == 40
            beat = (await app.store.workers())[0].beat
            while (await app.store.workers())[0].beat == beat:
                await asyncio.sleep(0.01)
    print("went on")

asyncio.run(main())
"""


def test_when_files_may_not_grow_the_worker_keeps_what_it_has_and_goes_on_when_they_may(
    path: Path, tmp_path: Path
) -> None:
    """A limit on file size makes writes fail with a real error, for every user and on every machine."""
    script = tmp_path / "full.py"
    script.write_text(FULL)
    folder = tmp_path / "store"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "full.db")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused, went_on = done.stdout.splitlines()
    assert refused.startswith(f"StoreUnavailable {folder / 'full.db'}: the disk failed")
    assert "Check its space" in refused
    assert went_on == "went on"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "dayjob-test", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def may_mount() -> bool:
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return os.geteuid() == 0 and tried.returncode == 0


def fill(file: Path) -> None:
    """Takes all the space that is left."""
    with file.open("wb", buffering=0) as opened, suppress(OSError):
        while opened.write(b"x" * 4096):
            pass


if may_mount():

    async def test_on_a_full_disk_the_worker_keeps_what_it_has_and_goes_on_when_there_is_space(
        small_disk: Path,
    ) -> None:
        ledger: list[int] = []
        gate = asyncio.Event()

        async def enter(number: int) -> str:
            ledger.append(number)
            if number == 2:
                await gate.wait()
            return f"{number}" + "x" * 10_000

        @job
        async def filling(run: Run) -> int:
            return len([await run.step(enter, number) for number in range(12)])

        failing: list[str] = []
        async with Dayjob(f"sqlite:///{small_disk / 'full.db'}", worker=False) as app:
            app.subscribe(lambda name, f: failing.append(f["error"]) if name == "store.failing" else None)
            async with app.worker(beat_seconds=0.1, lease_seconds=60):
                handle = await app.submit(filling())
                await until(lambda: ledger == [0, 1, 2])
                await until(lambda: _steps(app, handle.id, 2))
                filler = small_disk / "filler"
                fill(filler)
                gate.set()
                await until(lambda: failing)
                with pytest.raises(StoreFull, match=r"full\.db: no space is left on the device"):
                    await app.submit(filling())
                assert len(ledger) < 12
                assert await handle.status() == Status.IN_PROGRESS
                filler.unlink()
                assert await handle.result(30) == 12
                assert ledger == list(range(12))


async def test_a_store_that_fails_to_open_can_be_opened_when_it_is_mended(url: str, path: Path) -> None:
    path.mkdir()  # noqa: ASYNC240
    app = Dayjob(url, jobs=[greet])
    with pytest.raises(StoreError):
        async with app:
            pass
    path.rmdir()  # noqa: ASYNC240
    async with app:
        assert await (await app.submit(greet(name="Ann"))).result(20) == "Ann"
