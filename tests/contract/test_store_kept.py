"""What every store promises of what is kept beside runs: threads, messages, objects, keys, and their pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dayjob import Run, job
from dayjob.errors import ThreadBusy, UnknownCursor, UnknownThread
from dayjob.kept import (
    Arrival,
    AuditRecord,
    Came,
    KeyRecord,
    MessageRecord,
    ObjectRecord,
    Page,
    ThreadRecord,
    step_kind,
)
from dayjob.run import new_run
from dayjob.runs import RunRecord, Status
from dayjob.stores import Answer, Store, Submitted, open_store
from dayjob.testing import Clock


@job
async def work(run: Run) -> str: ...


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000.0)


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    store = open_store(f"sqlite:///{tmp_path / 'kept.db'}", clock=clock)
    yield store
    await store.close()


def message(number: int, said: bool = True, run: str | None = None) -> MessageRecord:
    return MessageRecord(f"msg_{number}", b'{"n":%d}' % number, 5.0, run=run, said=said)


async def talk(store: Store, *messages: MessageRecord, thread: str = "t") -> None:
    await store.create_thread("p", thread, messages=messages)


async def ids(store: Store, page: Page, run: str | None = None) -> tuple[list[str], bool]:
    found = await store.messages_page("t", page, run)
    return [each.id for each in found.rows], found.more


async def test_a_page_goes_on_after_and_before_a_cursor_in_both_directions(store: Store) -> None:
    await talk(store, *map(message, range(1, 8)))
    assert await ids(store, Page(3)) == (["msg_7", "msg_6", "msg_5"], True)
    assert await ids(store, Page(3, after="msg_5")) == (["msg_4", "msg_3", "msg_2"], True)
    assert await ids(store, Page(3, after="msg_2")) == (["msg_1"], False)
    assert await ids(store, Page(3, before="msg_3")) == (["msg_6", "msg_5", "msg_4"], True)
    assert await ids(store, Page(9, before="msg_3")) == (["msg_7", "msg_6", "msg_5", "msg_4"], False)
    assert await ids(store, Page(2, ascending=True)) == (["msg_1", "msg_2"], True)
    assert await ids(store, Page(2, ascending=True, after="msg_2")) == (["msg_3", "msg_4"], True)
    assert await ids(store, Page(2, ascending=True, before="msg_7")) == (["msg_5", "msg_6"], True)
    assert await ids(store, Page(9, after="msg_6", before="msg_2")) == (["msg_5", "msg_4", "msg_3"], False)
    for page in (Page(9, after="msg_of_another"), Page(9, after="msg_2", before="msg_of_another")):
        with pytest.raises(UnknownCursor, match="'msg_of_another' is not in this list"):
            await ids(store, page)


async def test_a_page_goes_on_from_where_its_cursor_was_before_it_was_deleted(store: Store) -> None:
    await talk(store, *map(message, range(1, 8)))
    for number in (5, 6, 7):
        await store.delete_message("t", f"msg_{number}")
    assert await ids(store, Page(3, after="msg_5")) == (["msg_4", "msg_3", "msg_2"], True)
    assert await ids(store, Page(3, after="msg_5"), run="r") == ([], False)
    assert await ids(store, Page(3, ascending=True, before="msg_6")) == (["msg_2", "msg_3", "msg_4"], True)
    await store.append_message("t", message(8))  # it takes a place that was given before
    assert await ids(store, Page(3, ascending=True, after="msg_5")) == (["msg_8"], False)
    assert await ids(store, Page(3, before="msg_5")) == (["msg_8"], False)
    assert await ids(store, Page(2, after="msg_5")) == (["msg_4", "msg_3"], True)
    await store.append_message("t", message(6))
    assert await ids(store, Page(1, after="msg_6")) == (["msg_8"], True)
    await store.delete_thread("t")
    await talk(store, message(1))
    with pytest.raises(UnknownCursor):
        await ids(store, Page(3, after="msg_5"))


async def test_threads_and_objects_leave_a_gap_in_their_own_list_for_a_day(
    store: Store, clock: Clock
) -> None:
    for name, made, project in (("a", 1.0, "p"), ("b", 2.0, "p"), ("c", 2.0, "p"), ("x", 1.5, "q")):
        await store.create_thread(project, name, created=made)
        await store.create_object(project, ObjectRecord("file", name, made, b"{}"))
    await store.create_object("p", ObjectRecord("assistant", "a", 1.0, b"{}"))
    assert await store.delete_thread("b") and await store.delete_object("p", "file", "b")
    listed: list[Callable[..., Any]] = [
        store.threads,
        lambda project, page: store.objects(project, "file", page),
    ]
    for ask in listed:
        assert [each.id for each in (await ask("p", Page(5, after="b"))).rows] == ["a"]
        assert [each.id for each in (await ask("p", Page(5, before="b"))).rows] == ["c"]
        with pytest.raises(UnknownCursor):
            await ask("q", Page(5, after="b"))
    with pytest.raises(UnknownCursor):
        await store.objects("p", "assistant", Page(5, after="b"))
    clock.advance(86_300)
    await store.sweep(5)
    assert len((await listed[0]("p", Page(5, after="b"))).rows) == 1
    clock.advance(200)
    await store.sweep(5)
    for ask in listed:
        with pytest.raises(UnknownCursor):
            await ask("p", Page(5, after="b"))


async def test_what_people_do_not_read_is_on_no_page_but_told_to_the_model(store: Store) -> None:
    await talk(store, message(1), message(2, said=False), message(3, run="r"))
    assert await ids(store, Page()) == (["msg_3", "msg_1"], False)
    assert await ids(store, Page(), run="r") == (["msg_3"], False)
    assert len(await store.thread_messages("t")) == 3


async def test_a_message_of_the_same_id_changes_nothing(store: Store) -> None:
    await talk(store, message(1))
    await talk(store, message(1), message(2))
    again = await store.append_message("t", MessageRecord("msg_1", b'"other"', 9.0))
    assert (again.message, again.n) == (b'{"n":1}', 1)
    assert await ids(store, Page()) == (["msg_2", "msg_1"], False)


async def test_a_busy_thread_takes_no_message_and_loses_none(store: Store) -> None:
    await talk(store, message(1))
    run = await store.submit(new_run(work(), b"{}", 1.0, home="t", thread="t"), "refuse", [message(2)])
    with pytest.raises(ThreadBusy) as refused:
        await store.append_message("t", message(3), "refuse")
    assert refused.value.run == run.id
    with pytest.raises(ThreadBusy):
        await store.delete_message("t", "msg_1")
    with pytest.raises(ThreadBusy):
        await store.submit(new_run(work(), b"{}", 1.0, home="t", thread="t"), "refuse", [message(4)])
    assert await ids(store, Page()) == (["msg_2", "msg_1"], False)
    await store.append_message("t", message(5), "enqueue")
    await store.cancel(run.id, "enough")
    assert await store.delete_message("t", "msg_5")
    assert not await store.delete_message("t", "msg_5")


async def test_few_messages_that_are_long_do_not_hold_the_event_loop(store: Store) -> None:
    await talk(store, *(MessageRecord(f"msg_{n}", b'"%b"' % (b"x" * 1_000_000), 5.0) for n in range(10)))
    reading, turns = asyncio.create_task(store.thread_messages("t")), 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert len(await reading) == 10
    assert turns > 5


async def test_a_thread_that_is_not_there_takes_no_message(store: Store) -> None:
    assert await store.append_message("t", message(1)) is None
    await talk(store)
    assert await store.append_message("t", message(1)) == await store.message("t", "msg_1")
    await store.delete_thread("t")
    assert await store.append_message("t", message(2)) is None
    assert await ids(store, Page()) == ([], False)


async def test_a_run_makes_its_thread_or_finds_it_as_it_was_asked(store: Store) -> None:
    def run(project: str) -> RunRecord:
        return new_run(work(), b"{}", 1.0, home="t", thread="t", project=project)

    async def submit(project: str, make_thread: bool) -> Submitted:
        return await store.submit_and_claim(run(project), "enqueue", [message(1)], None, make_thread)

    with pytest.raises(UnknownThread, match="No thread found with id 't'"):
        await submit("p", make_thread=False)
    assert (await store.thread("t"), await store.active_runs("t"), await store.thread_messages("t")) == (
        None,
        [],
        [],
    )
    await submit("p", make_thread=True)
    await submit("p", make_thread=False)
    with pytest.raises(UnknownThread):
        await submit("q", make_thread=False)
    assert len(await store.active_runs("t")) == 2


async def test_details_of_threads_messages_and_runs_are_changed_and_nothing_else(store: Store) -> None:
    await store.create_thread("p", "t", b'{"a":1}', [message(1)], created=7.0)
    await store.create_thread("p", "t", b'{"b":1}')
    run = await store.submit(new_run(work(), b"{}", 1.0, home="t", thread="t", details=b"1"), "refuse")
    changed = await store.change_thread("t", b'{"b":2}')
    assert changed == await store.thread("t")
    assert await store.change_thread("u", b"{}") is None
    await store.change_message("t", "msg_1", b'{"c":3}')
    await store.change_run(run.id, b"2")
    thread, said, found = await store.thread("t"), await store.message("t", "msg_1"), await store.get(run.id)
    assert thread is not None and (thread.details, thread.created, thread.project) == (
        b'{"a":1,"b":2}',
        7.0,
        "p",
    )
    assert said is not None and (said.details, said.message) == (b'{"c":3}', b'{"n":1}')
    assert found is not None and (found.details, found.status) == (b"2", Status.QUEUED)


async def test_a_deleted_thread_takes_what_is_over_along_and_leaves_what_is_at_work(store: Store) -> None:
    await talk(store, message(1))
    run = await store.submit(new_run(work(), b"{}", 1.0, home="t", thread="t"), "refuse")
    with pytest.raises(ThreadBusy):
        await store.delete_thread("t", when_busy="refuse")
    assert await store.delete_thread("t")
    assert (await store.thread("t"), await store.message("t", "msg_1")) == (None, None)
    assert await store.get(run.id) is not None
    await store.cancel(run.id, "enough")
    assert not await store.delete_thread("t")
    assert await store.get(run.id) is None


async def test_threads_and_runs_of_a_thread_are_listed_by_their_making(store: Store) -> None:
    for name, made, project in (("b", 1.0, "p"), ("a", 2.0, "p"), ("c", 2.0, "p"), ("x", 9.0, "other")):
        await store.create_thread(project, name, created=made)
    assert [each.id for each in (await store.threads("p", Page(2))).rows] == ["c", "a"]
    assert [each.id for each in (await store.threads("p", Page(2, after="a"))).rows] == ["b"]
    first, second = [
        await store.submit(new_run(work(), b'{"n":%d}' % n, float(n), home="a", thread="a"), "enqueue")
        for n in (1, 2)
    ]
    page = await store.thread_runs("a", Page(1))
    assert ([run.id for run in page.rows], page.more, page.rows[0].input) == ([second.id], True, b'{"n":2}')
    page = await store.thread_runs("a", Page(5, after=second.id))
    assert ([run.id for run in page.rows], page.more) == ([first.id], False)


async def test_objects_of_one_project_and_kind_never_meet_others(store: Store) -> None:
    for project, kind in (("p", "assistant"), ("p", "file"), ("q", "assistant")):
        await store.create_object(
            project, ObjectRecord(kind, "x", 1.0, f'{{"of":"{project} {kind}"}}'.encode())
        )
    again = await store.create_object("p", ObjectRecord("file", "x", 2.0, b'"other"'))
    assert again.body == b'{"of":"p file"}'
    changed = await store.change_object("p", "file", "x", b'{"n":1}')
    assert changed == ObjectRecord("file", "x", 1.0, b'{"of":"p file","n":1}')
    assert (await store.objects("p", "file", Page())).rows == [changed]
    assert await store.delete_object("p", "file", "x")
    assert not await store.delete_object("p", "file", "x")
    assert await store.change_object("p", "file", "x", b"{}") is None
    left = [await store.object("p", "assistant", "x"), await store.object("q", "assistant", "x")]
    assert [each and each.body for each in left] == [b'{"of":"p assistant"}', b'{"of":"q assistant"}']


async def test_a_key_is_revoked_once_and_the_log_is_read_newest_first(store: Store) -> None:
    await store.add_key(KeyRecord("key_1", b"hash", "dj_abc", "p", "admin", "mine", 1.0))
    assert await store.revoke_key("key_1")
    assert not await store.revoke_key("key_1")
    assert [(key.id, key.revoked) for key in await store.api_keys()] == [("key_1", 1_000.0)]
    await store.record("p", [AuditRecord(float(n), "key_1", f"POST /{n}", 200, f"req_{n}") for n in (1, 2)])
    await store.record("q", [AuditRecord(3.0, "key_1", "POST /3", 200, "req_3")])
    assert [entry.action for entry in await store.audit("p")] == ["POST /2", "POST /1"]


async def test_answers_together_are_all_recorded_or_none(store: Store) -> None:
    run = await store.submit(new_run(work(), b"{}", 1.0), "refuse")
    assert not await store.answer_all(run.id, [Answer("a", None, b"1"), Answer("b", 1, b"2")])
    found = await store.get(run.id)
    assert found is not None and found.wakes == 0


# --- what was made elsewhere -----------------------------------------------------------------------

DETAILS = b'{"imported":{},"metadata":{}}'


def was_said(id: str, at: float) -> Arrival:
    return Arrival(MessageRecord(id, b'{"role":"user","content":"Hi"}', at, details=DETAILS), "t")


def was_done(id: str, thread: str = "t", project: str = "p") -> Arrival:
    run = new_run(work(), b"{}", 7.5, id=id, home=thread, thread=thread, project=project, details=DETAILS)
    run.status, run.started, run.ended, run.reason, run.input_tokens = Status.FAILED, 8.0, 9.0, "so", 3
    return Arrival(run, thread)


def was_a_step(id: str, at: float, run: str = "run_1") -> Arrival:
    return Arrival(ObjectRecord(step_kind(run), id, at, b"{}"), "t", run)


THREAD = Arrival(ThreadRecord("t", "p", 2.0, b"{}"))
ASSISTANT = Arrival(ObjectRecord("assistant", "asst_1", 1.0, b"{}"))


async def came(store: Store, *arrivals: Arrival, project: str = "p") -> list[Came]:
    return [each.came for each in await store.receive(project, arrivals)]


async def test_what_was_made_elsewhere_is_there_as_it_came_and_once(store: Store) -> None:
    arrivals = [ASSISTANT, THREAD, was_said("msg_1", 3.0), was_done("run_1"), was_a_step("step_1", 8.0)]
    assert await came(store, *arrivals) == [Came.TAKEN] * 5
    assert await store.object("p", "assistant", "asst_1") == ASSISTANT.record
    assert await store.thread("t") == THREAD.record
    assert await store.get("run_1") == arrivals[3].record
    assert (await store.objects("t", step_kind("run_1"), Page())).rows == [arrivals[4].record]
    again = await store.receive("p", arrivals)
    assert [each.came for each in again] == [Came.THERE] * 5
    assert [each.found for each in again[:2]] == [ASSISTANT.record, THREAD.record]
    assert again[3].found == arrivals[3].record
    assert (await store.sweep(3)).woken == 0
    assert await store.get("run_1") == arrivals[3].record


async def test_messages_from_elsewhere_stand_by_their_times_and_before_those_of_here(store: Store) -> None:
    await came(store, THREAD, was_said("msg_2", 20.0), was_said("msg_4", 40.0))
    await came(store, was_said("msg_1", 10.0), was_said("msg_3", 40.0), was_said("msg_4", 40.0))
    assert await ids(store, Page(9, ascending=True)) == (["msg_1", "msg_2", "msg_3", "msg_4"], False)
    await store.append_message("t", message(5))
    assert await came(store, was_said("msg_4", 40.0), was_said("msg_6", 99.0)) == [Came.THERE, Came.WENT_ON]
    assert (await ids(store, Page(2)))[0] == ["msg_5", "msg_4"]


async def test_a_thread_whose_run_is_active_or_has_begun_here_takes_no_message_from_elsewhere(
    store: Store,
) -> None:
    await came(store, THREAD, was_said("msg_1", 1.0))
    run = await store.submit(new_run(work(), b"{}", 1.0, home="t", thread="t", project="p"), "refuse")
    assert await came(store, was_said("msg_2", 2.0)) == [Came.WENT_ON]
    await store.cancel(run.id, "stop")
    assert await came(store, was_said("msg_2", 2.0), was_done("run_1")) == [Came.TAKEN] * 2


async def test_what_belongs_to_another_project_or_to_nothing_is_not_taken(store: Store) -> None:
    await came(store, THREAD, was_done("run_1"))
    own = Arrival(ThreadRecord("mine", "q", 2.0, b"{}"))
    clashing = Arrival(ThreadRecord("t", "q", 2.0, b"{}"))
    assert await came(
        store, own, clashing, was_said("msg_1", 1.0), was_done("run_1", "mine", "q"), was_done("run_2", "none", "q"),
        was_a_step("step_1", 1.0), project="q",
    ) == [Came.TAKEN, Came.CLASH, Came.NO_THREAD, Came.CLASH, Came.NO_THREAD, Came.NO_THREAD]  # fmt: skip
    assert await came(store, was_a_step("step_1", 1.0, "run_none")) == [Came.NO_RUN]
    made_here = await store.submit(new_run(work(), b"{}", 1.0, home="t", thread="t", project="p"), "refuse")
    assert await came(store, was_a_step("step_1", 1.0, made_here.id)) == [Came.NO_RUN]


async def test_a_thread_from_elsewhere_may_not_be_the_home_of_a_run_without_thread(store: Store) -> None:
    run = await store.submit(new_run(work(), b"{}", 1.0, project="p"), "refuse")
    assert await came(store, Arrival(ThreadRecord(run.id, "p", 1.0, b"{}"))) == [Came.CLASH]


async def test_a_deleted_thread_takes_the_steps_of_its_runs_along_and_nothing_of_a_project(
    store: Store,
) -> None:
    await came(store, THREAD, was_done("run_1"), was_a_step("step_1", 1.0))
    await store.create_object("t", ObjectRecord("assistant", "asst_1", 1.0, b"{}"))
    assert await store.delete_thread("t")
    assert (await store.objects("t", step_kind("run_1"), Page())).rows == []
    assert await store.object("t", "assistant", "asst_1") is not None


async def test_the_runs_of_a_thread_are_found_by_job_by_being_active_and_by_status(store: Store) -> None:
    runs = [
        await store.submit(new_run(work(), b"{}", float(n), home="t", thread="t"), "enqueue")
        for n in range(3)
    ]
    ids = [run.id for run in runs]
    assert await store.active_runs("t") == ids
    assert [run.id for run in (await store.thread_runs("t", Page(), "work")).rows] == ids[::-1]
    assert (await store.thread_runs("t", Page(), "other")).rows == []
    await store.cancel(ids[0], "enough")
    assert await store.active_runs("t") == ids[1:]
    assert await store.statuses([ids[0], ids[1], "run_of_nobody"]) == {
        ids[0]: Status.CANCELLED,
        ids[1]: Status.QUEUED,
    }
