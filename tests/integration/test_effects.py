"""Tools under their contract, against a bank behind a real wire: what is sent, how often, and what is taken back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import orjson
import pytest
from pydantic import BaseModel, Field, SecretBytes, SecretStr

from dayjob import (
    Call,
    Dayjob,
    Deadline,
    InputError,
    NotDone,
    Retry,
    Run,
    RunCancelled,
    RunExpired,
    RunFailed,
    StepError,
    Unknown,
    job,
    tool,
)
from dayjob.errors import UnknownAction, WrongStatus
from dayjob.jobs import Job
from dayjob.runs import Kind, Outcome, Status, StepRecord
from dayjob.testing import Clock, CrashLab, Death, Moment
from dayjob.tools import Tool
from tests.bank import Account, Bank, book, closed_port, look, reverse
from tests.office import BEAT_SECONDS, LEASE_SECONDS, Office
from tests.until import until

Body = Callable[[Run], Awaitable[Any]]
SOON = 0.3
CLAIM, INTENT, RESULT = 1, 2, 3
"""The first writes of a run that begins with a write."""


@pytest.fixture(scope="module")
def bank() -> Iterator[Bank]:
    with Bank() as bank:
        yield bank


@pytest.fixture
def account(bank: Bank) -> Account:
    return bank.account()


@pytest.fixture
def keyed(bank: Bank) -> Account:
    return bank.account(honours_keys=True)


@pytest.fixture
async def office(url: str) -> AsyncIterator[Office]:
    clock = Clock()
    async with (
        Dayjob(f"{url}?synchronous=off", worker=False, clock=clock) as app,
        app.worker(lease_seconds=LEASE_SECONDS, beat_seconds=BEAT_SECONDS) as worker,
    ):
        yield Office(app, worker, clock)


def paying(account: Account, **contract: Any) -> Tool[..., Any]:
    """The tool `pay`, a write unless the contract says otherwise."""

    async def pay(call: Call, to: str) -> int:
        return await book(account.url, to, call.key)

    return tool(**contract)(pay)


def taking_back(account: Account) -> Callable[[Call, Any], Awaitable[bool]]:
    async def take_back(call: Call, result: Any) -> bool:
        return await reverse(account.url, call.arguments["to"])

    return take_back


def looking(account: Account) -> Callable[[Call], Awaitable[Any]]:
    async def find(call: Call) -> Any:
        return await look(account.url, call.arguments["to"]) or NotDone

    return find


def versions(*bodies: Body) -> list[Job]:
    return [Job(body, "changing", f"v{number}") for number, body in enumerate(bodies, 1)]


async def rows_of(app: Dayjob, run: str, name: str = "pay") -> list[StepRecord]:
    return [step for step in await app.steps(run) if step.name == name]


def error_of(row: StepRecord) -> dict[str, Any]:
    return orjson.loads(row.error or b"{}")


def keys_sent(account: Account) -> list[str | None]:
    return [asked.key for asked in account.all("asked")]


def says(answer: Any, about: str = "") -> Callable[[Dayjob, str], Awaitable[bool]]:
    """Somebody who gives this answer to whatever is asked, or as a function of the action gives."""

    async def outside(app: Dayjob, run: str) -> bool:
        actions = await app.actions(run)
        for action in actions:
            await app.answer(run, action.id, answer(action) if callable(answer) else answer)
        return bool(actions)

    return outside


# --- keys -------------------------------------------------------------------------------------------------


async def test_equal_calls_have_keys_of_their_own_and_other_runs_others(
    office: Office, keyed: Account
) -> None:
    pay = paying(keyed)

    @job
    async def pays(run: Run) -> list:
        first = [await run.tool(pay, to="a") for _ in range(2)]
        return [*first, *await run.gather(lambda r: r.tool(pay, to="a"), lambda r: r.tool(pay, to="b"))]

    handle = await office.app.submit(pays())
    assert len(set(await handle.result(10))) == 4
    await (await office.app.submit(pays())).result(10)
    assert len(set(keys_sent(keyed))) == 8
    rows = await rows_of(office.app, handle.id)
    assert {row.call_key for row in rows} == {asked.key for asked in keyed.all("asked")[:4]}


async def test_an_equal_call_after_a_failure_has_the_same_key_unless_it_certainly_was_not_done(
    office: Office, keyed: Account
) -> None:
    sent: list[str] = []

    @tool
    async def declines(call: Call, to: str) -> None:
        sent.append(call.key)
        raise ValueError("declined")

    @tool
    async def nothing(call: Call, to: str) -> None:
        sent.append(call.key)
        raise NotDone("no money left")

    @job
    async def tries(run: Run) -> list:
        types = []
        for each in (declines, declines, nothing, nothing):
            try:
                await run.tool(each, to="a")
            except StepError as error:
                types.append(error.type)
        return types

    assert await (await office.app.submit(tries())).result(10) == ["ValueError"] * 2 + ["NotDone"] * 2
    assert sent[0] == sent[1]
    assert len({*sent}) == 3


async def test_a_key_survives_a_crash_after_a_failed_call(lab: CrashLab, keyed: Account) -> None:
    pay = paying(keyed)

    @job
    async def insists(run: Run) -> int:
        try:
            return await run.tool(pay, to="a")
        except StepError:
            return await run.tool(pay, to="a")

    keyed.trouble("a", "refuse")
    ended = await lab.run(insists(), death=Death(4), outside=says(False))
    assert ended.status == Status.COMPLETED
    assert len(keyed.all("asked")) in (2, 3)
    assert len(set(keys_sent(keyed))) == 1


# --- what nobody knows the outcome of ------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["slow", "drop", "500 after", "500 before"])
async def test_a_write_of_unknown_outcome_is_found_out_by_its_probe(
    office: Office, account: Account, trouble: Any
) -> None:
    pay = paying(account, probe=looking(account), timeout=SOON)

    @job
    async def pays(run: Run) -> str:
        try:
            return f"paid {await run.tool(pay, to='a')}"
        except StepError as error:
            return f"{error.type} {error.retryable}"

    account.trouble("a", trouble)
    handle = await office.app.submit(pays())
    assert await office.parked(handle.id) == Status.WAITING
    assert not account.all("looked")
    assert not await office.app.actions(handle.id)
    assert [fields["due"] for fields in office.told("step.opened")] == [
        row.due for row in await rows_of(office.app, handle.id)
    ]
    await office.pass_time(LEASE_SECONDS + 1)
    result = await handle.result(10)
    booked = account.all("booked")
    assert result == (f"paid {booked[0].number}" if booked else "NotDone False")
    assert bool(booked) == (trouble != "500 before")
    assert account.count("asked", "a") == 1


@pytest.mark.parametrize(("answer", "result"), [({"result": 7}, "paid 7"), (False, "NotDone")])
async def test_without_a_probe_a_person_is_asked_whether_it_happened(
    office: Office, account: Account, answer: Any, result: str
) -> None:
    pay = paying(account)

    @job
    async def pays(run: Run) -> str:
        try:
            return f"paid {await run.tool(pay, to='a')}"
        except StepError as error:
            return error.type

    account.trouble("a", "drop")
    handle = await office.app.submit(pays())
    (asked,) = await office.asked(handle.id)
    assert (asked.kind, asked.tool, asked.arguments) == ("happened", "pay", {"to": "a"})
    with pytest.raises(InputError):
        await office.app.answer(handle.id, asked.id, "perhaps")
    await office.app.answer(handle.id, asked.id, answer)
    assert await handle.result(10) == result
    assert account.count("asked", "a") == 1


async def test_a_yes_says_that_it_was_done_though_not_what_it_gave(office: Office, account: Account) -> None:
    @tool
    async def send(call: Call, to: str):  # type: ignore[no-untyped-def]
        await book(account.url, to)

    @job
    async def sends(run: Run) -> Any:
        return await run.tool(send, to="a")

    account.trouble("a", "drop")
    handle = await office.app.submit(sends())
    (asked,) = await office.asked(handle.id)
    await office.app.approve(handle.id, asked.id)
    assert await handle.result(10) is None


class Receipt(BaseModel):
    number: int
    paid: datetime | None = None


@pytest.mark.parametrize(
    ("returns", "refused", "taken", "result"),
    [
        (str, [None, "", {"result": 3}, {"result": None}, {"result": "a", "more": 1}], {"result": "a"}, "a"),
        (Receipt, [{"result": {"number": "x"}}, {}], {"result": {"number": 3}}, Receipt(number=3)),
        (list[Receipt], [{"result": [{}]}], {"result": [{"number": 3}]}, [Receipt(number=3)]),
        (int | None, [{"result": "x"}], True, None),
        (None, [{"result": 3}], True, None),
    ],
)
async def test_a_yes_has_to_give_a_result_that_fits(
    office: Office, account: Account, returns: Any, refused: list[Any], taken: Any, result: Any
) -> None:
    async def send(call: Call, to: str) -> Any:
        await book(account.url, to)

    send.__annotations__["return"] = returns
    sends = tool(send)
    came: list[Any] = []

    @job
    async def waits(run: Run) -> None:
        came.append(await run.tool(sends, to="a"))

    account.trouble("a", "drop")
    handle = await office.app.submit(waits())
    (asked,) = await office.asked(handle.id)
    for answer in refused:
        with pytest.raises(InputError, match="answer to 'send#happened'"):
            await office.app.answer(handle.id, asked.id, answer)
    if taken is not True:
        with pytest.raises(InputError, match=r"a yes alone is not enough, since send gives more than null"):
            await office.app.approve(handle.id, asked.id)
    await office.app.answer(handle.id, asked.id, taken)
    await handle.result(10)
    assert came == [result]


async def test_a_probe_that_does_not_know_leaves_it_to_a_person(office: Office, account: Account) -> None:
    async def find(call: Call) -> None:
        return None

    pay = paying(account, probe=find)

    @job
    async def pays(run: Run) -> int:
        return await run.tool(pay, to="a")

    account.trouble("a", "drop")
    handle = await office.app.submit(pays())
    await office.parked(handle.id)
    await office.pass_time(LEASE_SECONDS + 1)
    (asked,) = await office.asked(handle.id)
    await office.app.answer(handle.id, asked.id, {"result": 3})
    assert await handle.result(10) == 3


async def test_whatever_a_probe_finds_but_none_is_the_result(office: Office, account: Account) -> None:
    @tool(probe=lambda call: False)
    async def send(call: Call, to: str) -> bool:
        await book(account.url, to)
        return True

    @job
    async def sends(run: Run) -> bool:
        return await run.tool(send, to="a")

    account.trouble("a", "drop")
    handle = await office.app.submit(sends())
    await office.parked(handle.id)
    await office.pass_time(LEASE_SECONDS + 1)
    assert await handle.result(10) is False
    assert account.count("asked", "a") == 1


async def test_a_timeout_of_a_write_never_becomes_an_error_that_invites_a_repeat(
    office: Office, account: Account
) -> None:
    pay = paying(account, timeout=SOON, retry=Retry(attempts=5, delay=0))

    @job
    async def pays(run: Run) -> int:
        try:
            return await run.tool(pay, to="a")
        except StepError:
            return -1

    account.trouble("a", "slow")
    handle = await office.app.submit(pays())
    (asked,) = await office.asked(handle.id)
    await office.app.answer(handle.id, asked.id, {"result": 1})
    assert await handle.result(10) == 1
    assert account.count("asked", "a") == 1
    assert account.count("booked", "a") == 1


async def test_what_was_never_sent_is_an_ordinary_error(office: Office) -> None:
    @tool
    async def pay(call: Call, to: str) -> int:
        return await book(f"http://127.0.0.1:{closed_port()}", to)

    @job
    async def pays(run: Run) -> str:
        try:
            return str(await run.tool(pay, to="a"))
        except StepError as error:
            return error.type

    assert await (await office.app.submit(pays())).result(10) == "ConnectError"


async def test_an_error_raised_while_a_connection_was_lost_leaves_the_outcome_unknown(
    office: Office, account: Account
) -> None:
    @tool
    async def pay(call: Call, to: str) -> int:
        try:
            return await book(account.url, to)
        except Exception:
            raise ValueError("the payment failed")  # noqa: B904

    @job
    async def pays(run: Run) -> int:
        return await run.tool(pay, to="a")

    account.trouble("a", "drop")
    handle = await office.app.submit(pays())
    (asked,) = await office.asked(handle.id)
    assert asked.kind == "happened"


async def test_a_tool_may_say_itself_that_it_does_not_know(office: Office) -> None:
    class Murky(Exception):
        pass

    @tool(unknown=(Murky,))
    async def one() -> None:
        raise Murky

    @tool
    async def other() -> None:
        raise Unknown("who knows")

    @job
    async def both(run: Run) -> list:
        types = []
        for each in (one, other):
            try:
                await run.tool(each)
            except StepError as error:
                types.append(error.type)
        return types

    handle = await office.app.submit(both())
    for name in ("one", "other"):
        (asked,) = await office.asked(handle.id)
        assert asked.tool == name
        await office.app.reject(handle.id, asked.id)
        await until(lambda asked=asked: _is_answered(office.app, handle.id, asked.id))
    assert await handle.result(10) == ["NotDone", "NotDone"]


async def _is_answered(app: Dayjob, run: str, action: str) -> bool:
    return all(each.id != action for each in await app.actions(run))


async def test_a_receiver_that_knows_keys_is_asked_again_with_the_same_key(
    office: Office, keyed: Account
) -> None:
    pay = paying(keyed, key_lifetime=3600, timeout=SOON)

    @job
    async def pays(run: Run) -> int:
        return await run.tool(pay, to="a")

    keyed.trouble("a", "drop")
    handle = await office.app.submit(pays())
    assert await handle.result(10) == keyed.all("booked")[0].number
    assert keyed.count("asked", "a") == 2
    assert len(set(keys_sent(keyed))) == 1


async def test_a_receiver_that_keeps_failing_is_not_asked_for_ever_and_its_memory_counts_from_the_first_time(
    office: Office, keyed: Account
) -> None:
    """It is asked again, with pauses; past the lifetime of its keys a person is."""
    pay = paying(keyed, key_lifetime=60)

    @job
    async def pays(run: Run) -> int:
        return await run.tool(pay, to="a")

    keyed.trouble("a", *["500 before"] * 10_000)
    handle = await office.app.submit(pays())
    await until(lambda: keyed.count("asked", "a") >= 3)
    assert keyed.count("asked", "a") < 100
    for _ in range(12):
        if await office.app.actions(handle.id):
            break
        await office.pass_time(10)
        await asyncio.sleep(0.02)
    (asked,) = await office.asked(handle.id)
    assert asked.kind == "happened"
    assert len(set(keys_sent(keyed))) == 1
    assert keyed.count("asked", "a") < 100


async def test_past_the_lifetime_of_its_key_a_write_is_not_sent_again(lab: CrashLab, keyed: Account) -> None:
    pay = paying(keyed, key_lifetime=0.001)

    @job
    async def pays(run: Run) -> int:
        return await run.tool(pay, to="a")

    ended = await lab.run(pays(), death=Death(RESULT), outside=says(lambda action: {"result": 5}))
    assert ended.output == 5
    assert keyed.count("asked", "a") == 1


def pays_and_looks(account: Account) -> Job:
    pay = paying(account, effect="idempotent")

    @tool(effect="read")
    async def peek(to: str) -> int | None:
        return await look(account.url, to)

    async def both(run: Run) -> list:
        return [await run.tool(pay, to="a"), await run.tool(peek, to="a")]

    return Job(both, "both", "v1")


async def test_an_idempotent_call_is_sent_again_with_its_key_and_a_read_is_just_done_again(
    lab: CrashLab, bank: Bank
) -> None:
    for moment in Moment:
        for write in range(1, 6):
            account = bank.account(honours_keys=True)
            ended = await lab.run(pays_and_looks(account)(), death=Death(write, moment))
            (booked,) = account.all("booked")
            assert ended.output == [booked.number] * 2, ended.death
            assert set(keys_sent(account)) == {booked.key}


async def test_what_is_sent_again_after_a_no_and_then_lost_is_asked_about_anew(
    lab: CrashLab, account: Account
) -> None:
    asked: list[str] = []

    def truthfully(action: Any) -> Any:
        asked.append(action.id)
        booked = account.all("booked")
        return {"result": booked[0].number} if booked else False

    account.trouble("a", "drop")
    ended = await lab.run(
        Job(pays_after(paying(account)), "pays")(),
        death=Death(INTENT, Moment.UNHEARD),
        outside=says(truthfully),
    )
    assert asked == ["pay#happened", "pay#happened@2"]
    assert ended.output == account.all("booked")[0].number
    assert account.count("asked", "a") == 1


# --- results ------------------------------------------------------------------------------------------------


async def test_a_result_that_cannot_be_stored_says_that_it_was_done(office: Office, account: Account) -> None:
    @tool(undo=taking_back(account))
    async def odd(call: Call, to: str) -> Any:
        await book(account.url, to)
        return {1, 2}

    @tool(undo=taking_back(account))
    async def untrue(call: Call, to: str) -> int:
        await book(account.url, to)
        return "a number"  # type: ignore[return-value]

    @job
    async def both(run: Run) -> list:
        told = []
        for each, to in ((odd, "a"), (untrue, "b")):
            try:
                await run.tool(each, to=to)
            except StepError as error:
                told.append(str(error))
        await run.ask("done?")
        raise ValueError(orjson.dumps(told).decode())

    handle = await office.app.submit(both())
    await office.asked(handle.id)
    await office.app.answer(handle.id, "ask", "yes")
    with pytest.raises(RunFailed) as failed:
        await handle.result(10)
    assert str(failed.value).count("It was done: do not repeat it") == 2
    assert [h.reference for h in account.all("reversed")] == ["b", "a"]
    assert len(account.all("asked")) == 2


async def test_a_tool_that_ends_its_process_fails_like_any_other(office: Office) -> None:
    @tool
    async def leaves() -> None:
        raise SystemExit(3)

    @job
    async def calls(run: Run) -> str:
        try:
            return await run.tool(leaves)
        except StepError as error:
            return error.type

    assert await (await office.app.submit(calls())).result(10) == "SystemExit"


async def test_arguments_that_do_not_fit_are_an_error_that_says_so_and_nothing_is_sent(
    office: Office, account: Account
) -> None:
    pay = paying(account)

    @job
    async def calls(run: Run) -> list:
        told = []
        for arguments in ({}, {"to": 3}, {"to": "a", "extra": 1}):
            try:
                await run.tool(pay, **arguments)
            except StepError as error:
                told.append(f"{error.type}: {error.message}")
        return told

    missing, wrong, unknown = await (await office.app.submit(calls())).result(10)
    assert missing.startswith("InvalidArguments: pay.to:")
    assert wrong.startswith("InvalidArguments: pay.to:")
    assert unknown.startswith("InvalidArguments: pay.extra:")
    assert not account.history


@pytest.mark.parametrize("fits", [True, False])
async def test_arguments_over_the_limit_are_refused(office: Office, fits: bool) -> None:
    @tool
    async def send(call: Call, text: str) -> None:
        raise AssertionError("it was called")

    @job
    async def sends(run: Run) -> str:
        try:
            return str(await run.tool(send, text="x" * 9_000_000, **({} if fits else {"more": 1})))
        except StepError as error:
            return f"{error.type}: {error.message}"

    told = await (await office.app.submit(sends())).result(10)
    assert told.startswith(
        "ValueTooLarge: send: arguments: 9.0 MB" if fits else "InvalidArguments: send.more"
    )
    (row,) = await rows_of(office.app, office.told("run.settled")[0]["run"], "send")
    assert len(row.input or b"") < 1000


@pytest.mark.parametrize("effect", ["read", "write"])
async def test_arguments_may_have_any_name(office: Office, effect: Any) -> None:
    @tool(effect=effect)
    def add(fn: int, threads: int, tool: int, self: int, run: int, call: int) -> int:
        return fn + threads + tool + self + run + call

    @job
    async def adds(run: Run) -> int:
        return await run.tool(add, fn=1, threads=1, tool=1, self=1, run=1, call=1)

    assert await (await office.app.submit(adds())).result(10) == 6
    assert add(fn=1, threads=1, tool=1, self=1, run=1, call=1) == 6


async def test_sync_tools_run_beside_the_loop(office: Office) -> None:
    threads: list[int] = []

    @tool
    def write(call: Call, n: int) -> str:
        threads.append(threading.get_ident())
        return f"{n} {call.tool}"

    @tool(effect="read")
    def read(n: int) -> int:
        threads.append(threading.get_ident())
        return n

    @job
    async def calls(run: Run) -> list:
        return [await run.tool(write, n=1), await run.tool(read, n=2)]

    assert await (await office.app.submit(calls())).result(10) == ["1 write", 2]
    assert threading.get_ident() not in threads


async def test_no_more_calls_of_a_tool_than_it_allows_are_on_their_way_over_all_runs(office: Office) -> None:
    now: list[int] = []
    most: list[int] = []

    @tool(concurrency=2)
    async def write(n: int) -> int:
        now.append(n)
        most.append(len(now))
        await asyncio.sleep(0.01)
        now.remove(n)
        return n

    @job
    async def calls(run: Run, first: int) -> list:
        return await run.map(lambda r, n: r.tool(write, n=n), range(first, first + 4))

    handles = [await office.app.submit(calls(first=first)) for first in (0, 10)]
    assert [await handle.result(10) for handle in handles] == [[0, 1, 2, 3], [10, 11, 12, 13]]
    assert max(most) == 2


async def test_the_time_of_a_write_counts_from_its_sending_not_from_its_place_in_the_line(
    office: Office, account: Account
) -> None:
    """Else its probe would come too early."""
    held = threading.Event()
    pay = paying(account, concurrency=1, probe=looking(account))

    @job
    async def pays(run: Run) -> list:
        return await run.map(lambda r, to: r.tool(pay, to=to), ["a", "b"])

    account.when("asked", "a", lambda: held.wait(20))
    account.trouble("b", "drop")
    handle = await office.app.submit(pays())
    await until(lambda: account.count("asked", "a"))
    await office.pass_time(2 * LEASE_SECONDS)
    held.set()
    assert await office.parked(handle.id) == Status.WAITING
    assert not account.all("looked")
    await office.pass_time(LEASE_SECONDS + 1)
    assert await handle.result(10) == [h.number for h in account.all("booked")]


# --- approvals ------------------------------------------------------------------------------------------------


async def test_two_approvals_at_once_answered_in_the_other_order_are_not_swapped(
    office: Office, account: Account
) -> None:
    pay = paying(account, approve=True)

    async def one(run: Run, to: str) -> Any:
        try:
            return await run.tool(pay, to=to)
        except StepError as error:
            return str(error)

    @job
    async def pays(run: Run) -> list:
        return await run.map(one, ["a", "b"])

    handle = await office.app.submit(pays())
    actions = {
        action.arguments["to"]: action for action in await office.asked(handle.id, 2) if action.arguments
    }
    assert all(action.kind == "approval" for action in actions.values())
    assert not account.history
    await office.app.reject(handle.id, actions["b"].id, reason="too dear")
    await office.app.approve(handle.id, actions["a"].id)
    paid, refused = await handle.result(10)
    assert paid == account.all("booked")[0].number
    assert refused == "Rejected: pay: a person refused it: too dear"
    assert [h.reference for h in account.all("asked")] == ["a"]


async def test_an_approval_survives_a_crash_at_any_write_and_is_one_execution(
    lab: CrashLab, bank: Bank
) -> None:
    for moment in Moment:
        for write in range(1, 9):
            account = bank.account()

            def happened(action: Any, account: Account = account) -> Any:
                if action.kind == "approval":
                    return True
                booked = account.all("booked")
                return {"result": booked[0].number} if booked else False

            pays = Job(pays_after(paying(account, approve=True)), f"pays-{moment}-{write}")
            ended = await lab.run(pays(), death=Death(write, moment), outside=says(happened))
            assert ended.output == account.all("booked")[0].number, ended.death
            assert account.count("booked", "a") == 1, ended.death
            asked = [step for step in ended.steps if step.key == "pay#approve"]
            assert [step.outcome for step in asked] == ["value"], ended.death


@pytest.mark.parametrize("from_step", [None, "pay"])
async def test_what_is_done_again_on_resume_is_approved_again(
    office: Office, account: Account, from_step: str | None
) -> None:
    pay = paying(account, approve=True)

    @job
    async def pays(run: Run) -> int:
        return await run.tool(pay, to="a")

    account.trouble("a", "refuse")
    handle = await office.app.submit(pays())
    (first,) = await office.asked(handle.id)
    await office.app.approve(handle.id, first.id)
    with pytest.raises(RunFailed):
        await handle.result(10)
    handle = await office.app.resume(handle.id, from_step=from_step)
    (second,) = await office.asked(handle.id)
    assert account.count("asked", "a") == 1
    with pytest.raises(UnknownAction):
        await office.app.approve(handle.id, first.id)
    await office.app.approve(handle.id, second.id)
    assert await handle.result(10) == account.all("booked")[0].number


async def test_what_is_done_again_on_resume_and_lost_again_is_asked_about_again(
    office: Office, account: Account
) -> None:
    pay = paying(account)

    @job
    async def pays(run: Run) -> int:
        return await run.tool(pay, to="a")

    account.trouble("a", "500 before", "500 after")
    handle = await office.app.submit(pays())
    await office.app.answer(handle.id, (await office.asked(handle.id))[0].id, False)
    with pytest.raises(RunFailed):
        await handle.result(10)
    handle = await office.app.resume(handle.id)
    await office.app.answer(handle.id, (await office.asked(handle.id))[0].id, {"result": 7})
    assert await handle.result(10) == 7
    assert account.count("booked", "a") == 1


async def test_the_verdict_whether_to_ask_stands_once_somebody_was_asked(
    office: Office, account: Account
) -> None:
    """The predicate may see another world on replay: what a person refused is not done for that."""
    strict = [True]
    pay = paying(account, approve=lambda to: strict[0])

    @job
    async def pays(run: Run) -> str:
        try:
            return str(await run.tool(pay, to="a"))
        except StepError as error:
            return error.type

    handle = await office.app.submit(pays())
    (asked,) = await office.asked(handle.id)
    await office.parked(handle.id)
    strict[0] = False
    await office.app.reject(handle.id, asked.id)
    assert await handle.result(10) == "Rejected"
    assert not account.history


async def test_the_verdict_of_the_predicate_is_kept_with_the_call(office: Office, account: Account) -> None:
    pay = paying(account, approve=lambda to: to == "b")

    @job
    async def pays(run: Run) -> None:
        await run.tool(pay, to="a")
        await run.tool(pay, to="b")

    handle = await office.app.submit(pays())
    await office.app.approve(handle.id, (await office.asked(handle.id))[0].id, by="Ann")
    await handle.result(10)
    rows = await rows_of(office.app, handle.id)
    assert [orjson.loads(row.input or b"")["approval"] for row in rows] == [False, True]
    (asked,) = await rows_of(office.app, handle.id, "#approve")
    assert asked.answered_by == "Ann"


async def test_an_approval_of_other_arguments_is_asked_again_and_the_old_action_is_refused(
    url: str, account: Account
) -> None:
    pay = paying(account, approve=True)

    async def small(run: Run) -> int:
        return await run.tool(pay, to="small")

    async def large(run: Run) -> int:
        return await run.tool(pay, to="large")

    old, new = versions(small, large)
    async with Dayjob(url) as app:
        handle = await app.submit(old())
        (first,) = await until(lambda: app.actions(handle.id))
    async with Dayjob(url, worker=False) as app:
        await app.approve(handle.id, first.id)
    async with Dayjob(url, jobs=[new]) as app:
        (second,) = await until(lambda: app.actions(handle.id))
        assert second.arguments == {"to": "large"}
        assert second.id != first.id
        with pytest.raises(UnknownAction):
            await app.approve(handle.id, first.id)
        assert not account.history
        await app.approve(handle.id, second.id)
        await app.handle(handle.id).result(10)
    assert [h.reference for h in account.all("booked")] == ["large"]


@pytest.mark.parametrize("then", ["expire", "deny", "default"])
async def test_an_approval_past_its_deadline(office: Office, account: Account, then: Any) -> None:
    pay = paying(account, approve=True, deadline=Deadline(100, then, default=True, warn=30))

    @job
    async def pays(run: Run) -> str:
        await run.partial("begun")
        try:
            return str(await run.tool(pay, to="a"))
        except StepError as error:
            return str(error)

    handle = await office.app.submit(pays())
    await office.parked(handle.id)
    await office.pass_time(60)
    assert not office.told("action.due_soon")
    await office.pass_time(15)
    (due_soon,) = await until(lambda: office.told("action.due_soon"))
    assert (due_soon["run"], due_soon["key"]) == (handle.id, "pay#approve")
    assert await office.parked(handle.id) == Status.REQUIRES_ACTION
    await office.pass_time(30)
    if then == "expire":
        with pytest.raises(RunExpired) as expired:
            await handle.result(10)
        assert expired.value.partial == "begun"
    else:
        result = await handle.result(10)
        assert result == (
            "Rejected: pay: nobody answered in time"
            if then == "deny"
            else str(account.all("booked")[0].number)
        )
    assert len(account.all("asked")) == (then == "default")
    assert len(office.told("action.due_soon")) == 1


async def test_what_the_client_does_is_never_called_here(office: Office) -> None:
    @tool(external=True, deadline=100)
    async def measure(what: str) -> float:
        raise AssertionError("never called")

    @job
    async def measures(run: Run) -> float:
        return 2 * await run.tool(measure, what="length")

    handle = await office.app.submit(measures())
    (asked,) = await office.asked(handle.id)
    assert (asked.kind, asked.tool, asked.arguments) == ("tool", "measure", {"what": "length"})
    with pytest.raises(InputError, match="no yes or no"):
        await office.app.approve(handle.id, asked.id)
    with pytest.raises(InputError, match="is not of type 'number'"):
        await office.app.answer(handle.id, asked.id, "long")
    await office.app.answer(handle.id, asked.id, 21.0)
    assert await handle.result(10) == 42.0


async def test_a_deferred_action_of_an_ended_run_cannot_be_answered(office: Office, account: Account) -> None:
    pay = paying(account, approve=True)

    @job
    async def pays(run: Run) -> int:
        return await run.tool(pay, to="a")

    handle = await office.app.submit(pays())
    (asked,) = await office.asked(handle.id)
    await handle.cancel()
    with pytest.raises(RunCancelled):
        await handle.result(10)
    with pytest.raises(UnknownAction):
        await office.app.approve(handle.id, asked.id)
    assert not account.history


# --- cancel ---------------------------------------------------------------------------------------------------


async def test_cancel_during_a_write_waits_for_it_records_it_and_takes_it_back(
    office: Office, account: Account
) -> None:
    held = threading.Event()
    pay = paying(account, undo=taking_back(account))

    @job
    async def pays(run: Run) -> None:
        await run.partial("begun")
        await run.tool(pay, to="a")
        await run.tool(pay, to="b")

    account.when("asked", "a", lambda: held.wait(20))
    handle = await office.app.submit(pays())
    await until(lambda: account.all("asked"))
    assert await handle.cancel() == Status.CANCELLING
    await until(lambda: handle.id in office.worker.held)
    held.set()
    with pytest.raises(RunCancelled) as cancelled:
        await handle.result(10)
    assert cancelled.value.partial == "begun"
    (row,) = await rows_of(office.app, handle.id)
    assert row.value == b"%d" % account.all("booked")[0].number
    assert [h.reference for h in account.all("reversed")] == ["a"]
    assert (await office.app.get(handle.id)).attention == 0


async def test_cancel_during_an_idempotent_call_takes_back_what_it_did(
    office: Office, keyed: Account
) -> None:
    held = threading.Event()
    pay = paying(keyed, effect="idempotent", undo=taking_back(keyed))

    @job
    async def pays(run: Run) -> None:
        await run.tool(pay, to="a")

    keyed.when("asked", "a", lambda: held.wait(20))
    handle = await office.app.submit(pays())
    await until(lambda: keyed.all("asked"))
    await handle.cancel()
    held.set()
    with pytest.raises(RunCancelled):
        await handle.result(10)
    assert [h.reference for h in keyed.all("reversed")] == ["a"]


async def test_after_a_cancel_by_another_process_an_idempotent_call_is_not_tried_again(url: str) -> None:
    """The worker has not heard of it yet when the policy says that it is time for another try."""
    tries = 0
    tried, cancelled = asyncio.Event(), asyncio.Event()

    @tool(effect="idempotent", retry=Retry(attempts=5, delay=0))
    async def pay(to: str) -> None:
        nonlocal tries
        tries += 1
        tried.set()
        await cancelled.wait()
        raise StepError("Busy", "later", retryable=True)

    @job
    async def pays(run: Run) -> None:
        await run.tool(pay, to="a")

    async with (
        Dayjob(url, worker=False) as app,
        app.worker(beat_seconds=3600),
        Dayjob(url, worker=False) as far,
    ):
        handle = await app.submit(pays())
        await tried.wait()
        await far.cancel(handle.id)
        cancelled.set()
        with pytest.raises(RunCancelled):
            await handle.result(10)
    assert tries == 1


async def test_a_write_that_hangs_when_the_run_is_cancelled_needs_attention(
    office: Office, account: Account
) -> None:
    pay = paying(account, timeout=SOON, undo=taking_back(account))

    @job
    async def pays(run: Run) -> None:
        await run.tool(pay, to="a")

    account.trouble("a", "slow")
    handle = await office.app.submit(pays())
    await until(lambda: account.all("booked"))
    await handle.cancel()
    with pytest.raises(RunCancelled):
        await handle.result(10)
    assert (await office.app.get(handle.id)).attention == 1
    (row,) = await rows_of(office.app, handle.id)
    assert row.outcome is None
    assert office.told("run.warning", lambda fields: "needs attention" in fields["message"])
    assert not account.all("asked back")


async def test_a_run_that_is_cancelled_just_as_it_completes_is_undone(url: str, account: Account) -> None:
    """Whichever comes first, the run never ends cancelled with its effects standing."""
    pay = paying(account, undo=taking_back(account))

    async def pays(run: Run, to: str) -> None:
        await run.tool(pay, to=to)

    pays_job = Job(pays, "pays")
    async with Dayjob(url) as app:
        for n in range(30):
            handle = await app.submit(pays_job(to=f"n{n}"))
            await until(lambda n=n: account.count("booked", f"n{n}"))
            await asyncio.sleep(0.0005 * (n % 10))
            await handle.cancel()
            status = (await app.until_settled(handle.id, 10)).status
            assert (f"n{n}" in account.standing()) == (status == Status.COMPLETED), status


async def test_a_cancellation_that_comes_between_the_end_of_a_job_and_its_settling_undoes_it(
    url: str, account: Account
) -> None:
    from tests.failing_stores import Around

    class Late(Around):
        """A store in which somebody cancels just before the run is settled."""

        async def settle(self, home: str, run: str, *rest: Any) -> Any:
            if not cancelled:
                cancelled.append(await self.store.cancel(run, "changed my mind"))
            return await self.store.settle(home, run, *rest)

    cancelled: list[Status] = []
    pay = paying(account, undo=taking_back(account))

    @job
    async def pays(run: Run) -> str:
        await run.tool(pay, to="a")
        return "paid"

    async with Dayjob(url, worker=False) as outer:
        async with Dayjob(Late(outer.store)) as app:
            handle = await app.submit(pays())
            with pytest.raises(RunCancelled, match="changed my mind"):
                await handle.result(10)
    assert account.standing() == []


async def test_a_cancellation_while_what_was_deferred_is_done_undoes_the_run(
    office: Office, account: Account
) -> None:
    pay = paying(account, undo=taking_back(account))
    cancelled = asyncio.Event()

    async def clean_up() -> None:
        await cancelled.wait()

    @job
    async def pays(run: Run) -> str:
        await run.defer(clean_up)
        await run.tool(pay, to="a")
        return "paid"

    handle = await office.app.submit(pays())
    await until(lambda: office.told("step.started", lambda fields: fields["key"] == "#defer/clean_up"))
    assert await handle.cancel() == Status.CANCELLING
    await until(lambda: not office.worker.held[handle.id].poked)
    cancelled.set()
    with pytest.raises(RunCancelled):
        await handle.result(10)
    assert account.standing() == []


async def test_the_write_of_a_loser_of_a_race_is_let_finish_and_recorded(
    office: Office, account: Account
) -> None:
    held = threading.Event()
    pay = paying(account, undo=taking_back(account))

    async def slow(run: Run) -> int:
        return await run.tool(pay, to="a")

    async def quick(run: Run) -> str:
        await until(lambda: account.all("asked"))
        return await run.step(str, "quick")

    @job
    async def races(run: Run) -> str:
        won = await run.race(slow, quick)
        await run.ask("go on?")
        return won

    account.when("asked", "a", lambda: held.wait(20))
    handle = await office.app.submit(races())
    await office.asked(handle.id)
    held.set()

    async def recorded() -> bool:
        return any(row.value for row in await rows_of(office.app, handle.id))

    await until(recorded)
    await office.app.answer(handle.id, "ask", "yes")
    assert await handle.result(10) == "quick"
    assert (await office.app.get(handle.id)).attention == 0


async def test_a_write_that_the_job_gave_up_waiting_for_is_recorded_with_what_came_of_it(
    office: Office, account: Account
) -> None:
    held = threading.Event()
    pay = paying(account, undo=taking_back(account))

    @job
    async def impatient(run: Run) -> str:
        try:
            async with asyncio.timeout(SOON):
                await run.tool(pay, to="a")
        except TimeoutError:
            await run.ask("now what?")
            raise ValueError("stop") from None
        return "paid"

    account.when("asked", "a", lambda: held.wait(20))
    handle = await office.app.submit(impatient())
    await office.asked(handle.id)
    held.set()

    async def recorded() -> bool:
        return any(row.value for row in await rows_of(office.app, handle.id))

    await until(recorded)
    await office.app.answer(handle.id, "ask", "stop")
    with pytest.raises(RunFailed, match="stop"):
        await handle.result(10)
    assert account.standing() == []


# --- undo ------------------------------------------------------------------------------------------------------


def family_that_fails(pay: Tool[..., Any]) -> tuple[Job, Job]:
    async def inner(run: Run) -> None:
        await run.tool(pay, to="b")
        await run.tool(pay, to="c")

    child = Job(inner, "inner", "v1")

    async def outer(run: Run) -> None:
        await run.tool(pay, to="a")
        await (await run.start(child())).result()
        await run.tool(pay, to="d")
        raise ValueError("no good")

    return Job(outer, "outer", "v1"), child


async def test_effects_are_undone_once_the_latest_first_and_a_childs_within_its_parents(
    lab: CrashLab, bank: Bank
) -> None:
    for moment in Moment:
        for write in range(1, 24, 2):
            account = bank.account(honours_keys=True)
            outer, inner = family_that_fails(paying(account, undo=taking_back(account), key_lifetime=3600))
            ended = await lab.run(outer(), jobs=[inner], death=Death(write, moment))
            assert ended.status == Status.FAILED, ended.death
            undone = [h.reference for h in account.all("asked back")]
            needing = ended.run.attention
            assert undone == [to for to in "dcba" if to in undone], ended.death
            assert len(undone) == len(set(undone)), ended.death
            assert len(account.standing()) <= needing <= 1, ended.death


async def test_a_child_that_completed_unnoticed_is_undone_with_its_parent(
    office: Office, account: Account
) -> None:
    pay = paying(account, undo=taking_back(account))

    @job
    async def inner(run: Run) -> None:
        await run.tool(pay, to="b")

    @job
    async def outer(run: Run) -> None:
        await run.tool(pay, to="a")
        child = await run.start(inner())
        await run.ask("is it done?")
        await run.tool(pay, to="c")
        raise ValueError(child.id)

    handle = await office.app.submit(outer())
    await office.asked(handle.id)
    (child,) = await office.app.runs(parent=handle.id)
    await office.app.until_settled(child.id, 10)
    office.clock.advance(1)
    await office.app.answer(handle.id, "ask", "yes")
    with pytest.raises(RunFailed):
        await handle.result(10)
    assert [h.reference for h in account.all("reversed")] == ["c", "b", "a"]


@pytest.mark.parametrize("how", ["raises", "hangs", "unknown"])
async def test_an_undo_that_does_not_succeed_is_listed_and_the_others_are_done(
    office: Office, account: Account, how: str
) -> None:
    async def undo(call: Call, result: int) -> None:
        if call.arguments["to"] != "b":
            await reverse(account.url, call.arguments["to"])
        elif how == "raises":
            raise ValueError("cannot")
        elif how == "unknown":
            raise Unknown("cannot tell")
        else:
            await asyncio.get_running_loop().create_future()

    pay = paying(account, undo=undo, timeout=2.0 if how == "hangs" else None)

    @job
    async def pays(run: Run) -> None:
        for to in "abc":
            await run.tool(pay, to=to)
        raise ValueError("no good")

    handle = await office.app.submit(pays())
    with pytest.raises(RunFailed, match="no good"):
        await handle.result(20)
    assert [h.reference for h in account.all("reversed")] == ["c", "a"]
    record = await office.app.get(handle.id)
    assert record.attention == 1
    undone = [step for step in await office.app.steps(handle.id) if step.scope == "#undo"]
    assert [step.outcome for step in undone] == ["value", "error", "value"]
    assert [bool(error_of(step).get("unknown")) for step in undone] == [False, how != "raises", False]
    assert office.told("run.warning", lambda fields: "needs attention" in fields["message"])


@pytest.mark.parametrize("how", ["cancelled", "cancels its task", "exits", "exits in a thread"])
async def test_an_undo_that_ends_in_any_way_does_not_keep_the_others_from_being_done(
    office: Office, how: str
) -> None:
    undone: list[str] = []

    async def undo(call: Call, result: str) -> None:
        undone.append(result)
        if result != "b":
            return
        if how == "exits":
            raise SystemExit(3)
        if how == "cancels its task":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        raise asyncio.CancelledError

    def exits(call: Call, result: str) -> None:
        undone.append(result)
        if result == "b":
            raise SystemExit(3)

    @tool(undo=exits if "thread" in how else undo)
    async def sell(what: str) -> str:
        return what

    @job
    async def sells(run: Run) -> None:
        for what in "abc":
            await run.tool(sell, what=what)
        raise ValueError("no good")

    handle = await office.app.submit(sells())
    with pytest.raises(RunFailed, match="no good"):
        await handle.result(10)
    assert undone == ["c", "b", "a"]
    assert (await office.app.get(handle.id)).attention == 1


async def test_what_was_deferred_and_cancels_its_own_task_does_not_keep_the_rest_from_being_done(
    office: Office,
) -> None:
    done: list[str] = []

    async def cancels(name: str) -> None:
        done.append(name)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    @job
    async def defers(run: Run) -> str:
        await run.defer(cancels, "first")
        await run.defer(cancels, "last")
        return "fine"

    assert await (await office.app.submit(defers())).result(10) == "fine"
    assert done == ["last", "first"]


async def test_what_a_probe_finds_that_cannot_be_stored_is_undone_like_the_rest(office: Office) -> None:
    undone: list[Any] = []

    async def undo(call: Call, result: Any) -> None:
        undone.append((call.arguments["what"], result))

    async def find(call: Call) -> object:
        return object()

    @tool(undo=undo, probe=find, timeout=SOON)
    async def sell(what: str) -> str:
        if what == "b":
            raise Unknown("no reply")
        return what

    @job
    async def sells(run: Run) -> None:
        for what in "ab":
            await run.tool(sell, what=what)

    handle = await office.app.submit(sells())
    await office.parked(handle.id)
    await handle.cancel()
    await office.pass_time(LEASE_SECONDS + 10)
    with pytest.raises(RunCancelled):
        await handle.result(10)
    assert undone == [("b", None), ("a", "a")]
    assert (await office.app.get(handle.id)).attention == 0


async def module_undo(call: Call, result: int) -> None:
    await reverse(call.arguments["url"], call.arguments["to"])


@tool(undo=module_undo)
async def module_pay(call: Call, url: str, to: str) -> int:
    return await book(url, to)


async def plain_book(url: str, to: str) -> int:
    return await book(url, to)


async def plain_undo(call: Call, result: int) -> None:
    url, to = call.arguments["args"]
    await reverse(url, to)


@pytest.mark.parametrize("end", ["cancel", "fail"])
async def test_undo_is_found_again_by_a_worker_that_did_not_do_it(
    url: str, account: Account, end: str
) -> None:
    closure = taking_back(account)
    pay = paying(account, undo=closure)

    async def pays(run: Run, url: str) -> None:
        await run.tool(module_pay, url=url, to="a")
        await run.tool(pay, to="b")
        await run.step(plain_book, url, "c", undo=plain_undo)
        await run.ask("go on?")
        raise ValueError("no good")

    for _ in range(2):
        async with Dayjob(url, jobs=[Job(pays, "pays")]) as app:
            if not await app.runs():
                handle = await app.submit(app.jobs["pays"](url=account.url))
                await until(lambda app=app, handle=handle: app.actions(handle.id))
                continue
            (record,) = await app.runs()
            if end == "cancel":
                await app.cancel(record.id)
            else:
                await app.answer(record.id, "ask", "yes")
            record = await app.until_settled(record.id, 10)
            assert record.status == (Status.CANCELLED if end == "cancel" else Status.FAILED)
            assert (await app.get(record.id)).attention == 0
    assert [h.reference for h in account.all("reversed")] == ["c", "b", "a"]


def shop(name: str, sold: list[str]) -> Tool[..., Any]:
    """A tool `sell` whose undo is called like that of every other shop."""

    async def back(call: Call, result: str) -> None:
        sold.append(f"{name} back")

    @tool(undo=back)
    async def sell() -> str:
        sold.append(name)
        return name

    return sell


async def cancelled_elsewhere(url: str, body: Body) -> str:
    """A run that one app brought to its first question, and another cancelled."""
    async with Dayjob(url, jobs=[Job(body, "shops", "v1")]) as app:
        handle = await app.submit(app.jobs["shops"]())
        await until(lambda: app.actions(handle.id))
    async with Dayjob(url, jobs=[Job(body, "shops", "v1")]) as app:
        await app.cancel(handle.id)
        await app.until_settled(handle.id, 10)
        return handle.id


async def test_a_cancelled_run_is_undone_by_what_its_steps_were_given(url: str) -> None:
    sold: list[str] = []
    one, other = shop("one", sold), shop("other", sold)

    async def back(what: str, call: Call, result: str) -> None:
        sold.append(f"{what} back")

    async def sells(run: Run) -> None:
        await run.tool(one)
        await run.tool(other)
        await run.step(str, undo=partial(back, "step"))
        await run.ask("go on?")

    await cancelled_elsewhere(url, sells)
    assert sold == ["one", "other", "step back", "other back", "one back"]


@pytest.mark.parametrize("names", ["alike", "of two modules", "twice the same"])
async def test_an_undo_found_by_name_is_called_only_if_no_other_could_be_meant(url: str, names: str) -> None:
    """What a finished scope did is not walked again, so that its undos are found by name."""
    sold: list[str] = []
    one, other = shop("one", sold), shop("one" if names == "twice the same" else "other", sold)
    if names == "of two modules":
        for each in (other.fn, other.undo):
            each.__module__ = "elsewhere"  # type: ignore[union-attr]

    async def both(run: Run) -> None:
        await run.tool(one)
        await run.tool(other)

    async def sells(run: Run) -> None:
        await run.step(both)
        await run.ask("go on?")

    run = await cancelled_elsewhere(url, sells)
    async with Dayjob(url, worker=False) as app:
        attention = await app.attention(run)
    if names == "alike":
        assert sold == ["one", "other"]
        assert len(attention) == 2
        assert all("more than one function of that name" in why for why in attention.values())
    else:
        assert sold[2:] == [f"{name} back" for name in reversed(sold[:2])]
        assert not attention


async def test_a_run_that_expires_is_undone(office: Office, account: Account) -> None:
    pay = paying(account, undo=taking_back(account))

    @job
    async def waits(run: Run) -> None:
        await run.tool(pay, to="a")
        await run.ask("now?", timeout=20)

    handle = await office.app.submit(waits())
    await office.parked(handle.id)
    await office.pass_time(21)
    with pytest.raises(RunExpired):
        await handle.result(10)
    assert account.standing() == []


async def test_a_run_that_killed_its_workers_is_undone(lab: CrashLab, account: Account) -> None:
    pay = paying(account, undo=taking_back(account))

    async def pays(run: Run) -> None:
        await run.tool(pay, to="a")
        await run.sleep(0.001)
        await asyncio.sleep(0.02)
        await run.step(str, "after")

    deaths = [Death(6), Death(2), Death(2), Death(2)]
    ended = await lab.run(Job(pays, "poisonous")(), death=deaths)
    assert ended.status == Status.FAILED
    assert (ended.run.reason or "").startswith("poison")
    assert account.standing() == []


async def test_a_run_that_was_unwound_is_not_resumed(office: Office, account: Account) -> None:
    pay = paying(account, undo=taking_back(account))

    @job
    async def pays(run: Run) -> None:
        await run.tool(pay, to="a")
        raise ValueError("no good")

    handle = await office.app.submit(pays())
    with pytest.raises(RunFailed):
        await handle.result(10)
    with pytest.raises(WrongStatus, match="undone"):
        await office.app.resume(handle.id)
    assert account.count("asked", "a") == 1


def rolls_back(pay: Tool[..., Any]) -> Job:
    async def rolls(run: Run) -> Any:
        first = await run.tool(pay, to="a")
        await run.tool(pay, to="b")
        await run.tool(pay, to="c")
        try:
            await run.rollback(to="pay")
        except StepError as error:
            return error.type
        return [first, await run.tool(pay, to="c")]

    return Job(rolls, "rolls", "v1")


async def test_a_rollback_undoes_what_came_after_a_step_once_and_equal_calls_are_made_anew(
    lab: CrashLab, bank: Bank
) -> None:
    for moment in Moment:
        for write in range(1, 20):
            account = bank.account(honours_keys=True)
            rolls = rolls_back(paying(account, undo=taking_back(account), key_lifetime=3600))
            ended = await lab.run(rolls(), death=Death(write, moment))
            assert ended.status == Status.COMPLETED, ended.death
            back = [h.reference for h in account.all("asked back")]
            assert back in (["c", "b"], ["c"], ["b"]) and len(back) == len(set(back)), ended.death
            if ended.output == "NotUndone":
                assert back == ["c", "b"] or len(account.standing()) >= 2, ended.death
                continue
            assert account.standing() == ["a", "c"], ended.death
            assert len({h.key for h in account.all("booked", reference="c")}) == 2
            assert ended.run.attention == 0


async def test_a_rollback_to_what_is_no_finished_step_is_refused(office: Office) -> None:
    @job
    async def rolls(run: Run) -> None:
        await run.rollback(to="nowhere")

    with pytest.raises(RunFailed, match="no finished step has that key"):
        await (await office.app.submit(rolls())).result(10)


async def test_what_was_rolled_back_is_not_undone_again_when_the_run_fails(
    office: Office, account: Account
) -> None:
    pay = paying(account, undo=taking_back(account))

    @job
    async def pays(run: Run) -> None:
        for to in "abc":
            await run.tool(pay, to=to)
        await run.rollback(to="pay")
        raise ValueError("no good")

    with pytest.raises(RunFailed, match="no good"):
        await (await office.app.submit(pays())).result(10)
    assert [h.reference for h in account.all("asked back")] == ["c", "b", "a"]


async def test_a_run_that_took_something_back_by_itself_may_be_resumed(
    office: Office, account: Account
) -> None:
    pay = paying(account, undo=taking_back(account))
    ready: list[bool] = []

    def check() -> None:
        if not ready:
            raise ValueError("not yet")

    @job
    async def pays(run: Run) -> str:
        await run.step(str, "begin", name="begin")
        await run.tool(pay, to="a")
        await run.rollback(to="begin")
        await run.step(check)
        return "done"

    handle = await office.app.submit(pays())
    with pytest.raises(RunFailed, match="not yet"):
        await handle.result(10)
    ready.append(True)
    assert await (await office.app.resume(handle.id)).result(10) == "done"
    assert [account.count("asked", "a"), account.count("asked back", "a")] == [1, 1]


@pytest.mark.parametrize("how", ["fine", "fails"])
async def test_what_a_child_took_back_itself_is_not_undone_again_by_its_parent(
    office: Office, account: Account, how: str
) -> None:
    async def take_back(call: Call, result: int) -> None:
        await reverse(account.url, call.arguments["to"])
        if how == "fails":
            raise ValueError("the line is bad")

    pay = paying(account, undo=take_back)

    @job
    async def inner(run: Run) -> None:
        await run.step(str, "begin")
        await run.tool(pay, to="a")
        with contextlib.suppress(StepError):
            await run.rollback(to="str")

    @job
    async def middle(run: Run) -> None:
        await (await run.start(inner())).result()

    @job
    async def outer(run: Run) -> None:
        await (await run.start(middle())).result()
        raise ValueError("no good")

    handle = await office.app.submit(outer())
    with pytest.raises(RunFailed, match="no good"):
        await handle.result(10)
    assert account.count("asked back", "a") == 1
    assert (await office.app.get(handle.id)).attention == (how == "fails")
    assert all("tried to undo it" in why for why in (await office.app.attention(handle.id)).values())


@pytest.mark.parametrize("last", ["completes", "fails"])
async def test_all_that_a_child_did_is_undone_though_it_continued_as_another_run(
    office: Office, account: Account, last: str
) -> None:
    pay = paying(account, undo=taking_back(account))

    @job
    async def endless(run: Run, left: int) -> None:
        await run.tool(pay, to=f"n{left}")
        if left:
            await run.continue_as(endless(left=left - 1))
        if last == "fails":
            raise ValueError("the end")

    @job
    async def outer(run: Run) -> None:
        await run.tool(pay, to="a")
        await (await run.start(endless(left=2))).result()
        raise ValueError("no good")

    with pytest.raises(RunFailed):
        await (await office.app.submit(outer())).result(10)
    assert [h.reference for h in account.all("asked back")] == ["n0", "n1", "n2", "a"]


# --- the code has changed -----------------------------------------------------------------------------------------


def pays_after(pay: Tool[..., Any], *steps: str, fail: bool = False) -> Body:
    """Code that does steps of its own before it pays."""

    async def body(run: Run) -> Any:
        for step in steps:
            await run.step(str, step)
        paid = await run.tool(pay, to="a")
        if fail:
            raise ValueError("no good")
        return paid

    return body


def continues(asked: list[str], happened: Any = None) -> Callable[[Dayjob, str], Awaitable[bool]]:
    """A person who lets changed code go on, and says what happened; notes what is asked."""

    async def outside(app: Dayjob, run: str) -> bool:
        actions = await app.actions(run)
        for action in actions:
            asked.append(action.kind)
            await app.answer(run, action.id, "continue" if action.kind == "change" else happened)
        return bool(actions)

    return outside


@pytest.mark.parametrize("fail", [False, True])
async def test_a_done_write_is_adopted_by_changed_code_with_its_key_result_and_undo(
    lab: CrashLab, account: Account, fail: bool
) -> None:
    pay = paying(account, undo=taking_back(account))
    old, new = versions(pays_after(pay), pays_after(pay, "inserted", fail=fail))
    asked: list[str] = []
    ended = await lab.run(old(), then=[new], death=Death(RESULT + 1), outside=continues(asked))
    assert asked == ["change"]
    assert account.count("asked", "a") == 1
    (booked,) = account.all("booked")
    rows = [step for step in ended.steps if step.name == "pay"]
    assert [row.outcome for row in rows] == [Outcome.SUPERSEDED, Outcome.VALUE]
    assert {row.call_key for row in rows} == {booked.key}
    assert [h.reference for h in account.all("asked back")] == (["a"] if fail else [])
    assert ended.status == (Status.FAILED if fail else Status.COMPLETED)
    if not fail:
        assert ended.output == booked.number


async def test_keeping_the_old_path_leaves_the_write_to_the_old_code(lab: CrashLab, account: Account) -> None:
    pay = paying(account)
    old, new = versions(pays_after(pay), pays_after(pay, "inserted"))
    asked: list[str] = []

    async def outside(app: Dayjob, run: str) -> bool:
        for action in await app.actions(run):
            asked.append(action.kind)
            await app.answer(run, action.id, "keep")
            return True
        return False

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await lab.run(old(), then=[new], death=Death(RESULT + 1), outside=outside)
    assert asked == ["change"]
    assert account.count("asked", "a") == 1


async def test_a_write_of_unknown_outcome_is_adopted_and_then_found_out(
    lab: CrashLab, account: Account
) -> None:
    pay = paying(account)
    old, new = versions(pays_after(pay), pays_after(pay, "inserted"))
    asked: list[str] = []
    ended = await lab.run(old(), then=[new], death=Death(RESULT), outside=continues(asked, {"result": 4}))
    assert asked == ["change", "happened"]
    assert ended.output == 4
    assert account.count("asked", "a") == 1
    assert len({step.call_key for step in ended.steps if step.name == "pay"}) == 1


async def test_a_write_that_was_undone_is_never_adopted(lab: CrashLab, account: Account) -> None:
    pay = paying(account, undo=taking_back(account))

    def rolls(*inserted: str) -> Body:
        async def body(run: Run) -> int:
            await run.step(str, "begin")
            for step in inserted:
                await run.step(str, step)
            await run.tool(pay, to="a")
            await run.rollback(to="str")
            await run.step(str, "after the rollback")
            return await run.tool(pay, to="a") if inserted else 0

        return body

    old, new = versions(rolls(), rolls("inserted"))
    ended = await lab.run(old(), then=[new], death=Death(9), outside=continues([]))
    assert ended.death is not None
    assert ended.status == Status.COMPLETED, ended.run.reason
    keys = keys_sent(account)
    assert len(keys) == len(set(keys)) == 3
    assert account.standing() == ["a"]


# --- secrets ------------------------------------------------------------------------------------------------------


def bytes_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_secrets_reach_the_tool_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("THE_BANKS_TOKEN", "env-secret-4711")
    seen: list[str] = []
    everything: list[str] = []

    @tool(undo=lambda call, result: None)
    async def pay(call: Call, pin: SecretStr, how: str) -> str:
        seen.append(pin.get_secret_value())
        if how == "raise":
            raise ValueError(f"wrong pin {pin.get_secret_value()} and env-secret-4711")
        if how == "unknown":
            raise Unknown(f"lost {pin.get_secret_value()} and env-secret-4711")
        return f"paid with {pin.get_secret_value()} and env-secret-4711"

    @tool(effect="idempotent", retry=Retry(attempts=2, delay=0), undo=lambda call, result: call.no_such)
    async def retries(pin: SecretStr) -> str:
        if len(everything) and not any("step.retrying" in each for each in everything):
            raise ValueError(f"no {pin.get_secret_value()}")
        return "x"

    @job
    async def pays(run: Run) -> None:
        pin = SecretStr("arg-secret-0815")
        for how in ("return", "raise", "unknown"):
            try:
                await run.tool(pay, pin=pin, how=how)
            except StepError as error:
                await run.note(str(error))
        await run.tool(retries, pin=pin)
        raise ValueError(f"ends with {pin.get_secret_value()}")

    caplog.set_level(logging.DEBUG)
    file = tmp_path / "secrets.db"
    async with Dayjob(f"sqlite:///{file}") as app:
        app.subscribe(lambda name, fields: everything.append(f"{name} {fields}"))
        handle = await app.submit(pays())
        (asked,) = await until(lambda: app.actions(handle.id))
        await app.answer(handle.id, asked.id, {"result": "it was env-secret-4711"})
        with pytest.raises(RunFailed) as failed:
            await handle.result(10)
        stored = bytes_in(tmp_path)
    stored += bytes_in(tmp_path)
    assert seen == ["arg-secret-0815"] * 3
    shown = [*everything, caplog.text, str(failed.value), asked.question, repr(asked)]
    for secret in ("arg-secret-0815", "env-secret-4711"):
        assert secret.encode() not in stored
        assert not [line for line in shown if secret in line]


class Login(BaseModel):
    password: SecretStr


async def test_secrets_that_do_not_fit_or_are_nested_are_kept_nowhere(tmp_path: Path) -> None:
    @tool
    async def long(pin: Annotated[SecretStr, Field(min_length=30)]) -> None:
        raise AssertionError("it was called")

    @tool
    async def nested(logins: list[Login]) -> None:
        raise ValueError(f"refused {logins[0].password.get_secret_value()}")

    @tool(effect="read")
    async def binary(pin: SecretBytes) -> None:
        raise ValueError(f"refused {pin.get_secret_value().decode()}")

    @job
    async def tries(run: Run) -> list:
        told = []
        for each, arguments in (
            (long, {"pin": "of-no-fit"}),
            (long, {"pin": "tiny"}),
            (nested, {"logins": [{"password": "of-a-model"}]}),
            (nested, {"logins": [{"password": "of-other-model"}, "of-a-text"]}),
            (binary, {"pin": "of-some-bytes"}),
        ):
            try:
                await run.tool(each, **arguments)
            except StepError as error:
                told.append(str(error))
        return told

    async with Dayjob(f"sqlite:///{tmp_path / 'secrets.db'}") as app:
        told = await (await app.submit(tries())).result(10)
    assert [each.partition(":")[0] for each in told] == [
        "InvalidArguments", "InvalidArguments", "ValueError", "InvalidArguments", "ValueError"
    ]  # fmt: skip
    stored = bytes_in(tmp_path)
    for secret in (b"of-no-fit", b'"tiny"', b"of-a-model", b"of-other-model", b"of-a-text", b"of-some-bytes"):
        assert secret not in stored


async def test_a_secret_in_the_reason_for_an_answer_is_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, account: Account
) -> None:
    monkeypatch.setenv("THE_BANKS_TOKEN", "env-secret-4711")
    pay = paying(account, approve=True)

    @job
    async def pays(run: Run) -> None:
        await run.tool(pay, to="a")

    async with Dayjob(f"sqlite:///{tmp_path / 'secrets.db'}") as app:
        handle = await app.submit(pays())
        (asked,) = await until(lambda: app.actions(handle.id))
        await app.reject(handle.id, asked.id, reason="it leaks env-secret-4711", by="Ann, env-secret-4711")
        with pytest.raises(RunFailed, match=r"refused it: it leaks \[redacted\]"):
            await handle.result(10)
        (row,) = await rows_of(app, handle.id, "#approve")
    assert (row.answer_reason, row.answered_by) == ("it leaks [redacted]", "Ann, [redacted]")
    assert b"env-secret-4711" not in bytes_in(tmp_path)


async def test_the_secret_of_one_run_is_an_ordinary_word_in_another(office: Office) -> None:
    @tool(effect="read")
    async def log_in(pin: SecretStr) -> str:
        return f"{pin.get_secret_value()} is right"

    @job
    async def logs_in(run: Run) -> str:
        return await run.tool(log_in, pin="amount")

    @job
    async def counts(run: Run) -> dict:
        return await run.step(dict, [["amount", "amount"]])

    assert await (await office.app.submit(logs_in())).result(10) == "[redacted] is right"
    assert await (await office.app.submit(counts())).result(10) == {"amount": "amount"}


async def test_time_is_not_spent_waiting_for_a_probe_before_the_undo(
    office: Office, account: Account
) -> None:
    """A run that unwinds asks the probe when the office's clock says so."""
    pay = paying(account, probe=looking(account), undo=taking_back(account), timeout=SOON)

    @job
    async def pays(run: Run) -> None:
        await run.tool(pay, to="a")

    account.trouble("a", "drop")
    handle = await office.app.submit(pays())
    await office.parked(handle.id)
    await handle.cancel()
    began = time.monotonic()

    async def over() -> bool:
        await office.pass_time(1)
        return (await handle.status()).is_terminal

    await until(over)
    assert time.monotonic() - began < LEASE_SECONDS
    assert account.all("looked")
    assert account.standing() == []
    assert (await office.app.get(handle.id)).attention == 0
    assert [step.kind for step in await office.app.steps(handle.id)] == [Kind.TOOL, Kind.TOOL]
