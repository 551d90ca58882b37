"""What the Assistants API held comes into a store, and is read back over its wire as it was."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai.types.beta import Assistant, Thread
from openai.types.beta import threads as wire_types
from openai.types.beta.threads.runs import RunStep
from pydantic import TypeAdapter

from dayjob import Dayjob
from dayjob.assistant import AssistantRun, assistant_job
from dayjob.errors import WrongStatus
from dayjob.importing import BATCH, MOST_ID, MOST_LINE_BYTES, Report, Sorter, import_lines
from dayjob.kept import MessageRecord, Page
from dayjob.models.scripted import Scripted
from dayjob.runs import Status
from dayjob.server.imported import steps_of
from dayjob.server.wire import assistant_object, is_assistants, message_object, run_object, thread_object
from tests.acceptance.command_line import DAYJOB, CommandLine, text_of

AT = 1_699_012_949
EVERYTHING = Page(1_000, ascending=True)


def assistant(id: str = "asst_abc123", **more: Any) -> dict[str, Any]:
    return {
        "id": id, "object": "assistant", "created_at": AT, "name": "Math Tutor", "description": None,
        "model": "gpt-4o", "instructions": "You are a personal math tutor.",
        "tools": [
            {"type": "code_interpreter"},
            {"type": "file_search"},
            {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},
        ],
        "tool_resources": {"file_search": {"vector_store_ids": ["vs_123"]}}, "metadata": {"team": "math"},
        "top_p": 1.0, "temperature": 0.5, "response_format": {"type": "json_object"}, **more,
    }  # fmt: skip


def thread(id: str = "thread_abc123", **more: Any) -> dict[str, Any]:
    return {"id": id, "object": "thread", "created_at": AT + 5, "metadata": {"user": "u1"},
            "tool_resources": {"code_interpreter": {"file_ids": ["file-1"]}}, **more}  # fmt: skip


def said(value: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": {"value": value, "annotations": list(annotations)}}


def message(
    id: str = "msg_abc123", at: int = AT + 10, *content: dict[str, Any], **more: Any
) -> dict[str, Any]:
    return {
        "id": id, "object": "thread.message", "created_at": at, "thread_id": "thread_abc123", "status": "completed",
        "incomplete_details": None, "completed_at": at, "incomplete_at": None, "role": "user",
        "content": list(content) or [said(f"I say {id}")], "assistant_id": None, "run_id": None,
        "attachments": [], "metadata": {}, **more,
    }  # fmt: skip


def run(id: str = "run_abc123", at: int = AT + 20, **more: Any) -> dict[str, Any]:
    return {
        "id": id, "object": "thread.run", "created_at": at, "thread_id": "thread_abc123",
        "assistant_id": "asst_abc123", "status": "completed", "required_action": None, "last_error": None,
        "expires_at": None, "started_at": at + 1, "cancelled_at": None, "failed_at": None, "completed_at": at + 4,
        "incomplete_details": None, "model": "gpt-4o", "instructions": "You are a personal math tutor.",
        "tools": [{"type": "code_interpreter"}], "tool_resources": {}, "metadata": {"kind": "first"},
        "usage": {"prompt_tokens": 123, "completion_tokens": 456, "total_tokens": 579}, "temperature": 1.0,
        "top_p": 1.0, "max_prompt_tokens": 1000, "max_completion_tokens": 1000,
        "truncation_strategy": {"type": "auto", "last_messages": None}, "tool_choice": "auto",
        "parallel_tool_calls": True, "response_format": "auto", **more,
    }  # fmt: skip


def step(id: str = "step_abc123", at: int = AT + 21, **more: Any) -> dict[str, Any]:
    return {
        "id": id, "object": "thread.run.step", "created_at": at, "run_id": "run_abc123",
        "assistant_id": "asst_abc123", "thread_id": "thread_abc123", "type": "message_creation",
        "status": "completed", "cancelled_at": None, "completed_at": at + 1, "expired_at": None,
        "failed_at": None, "last_error": None, "metadata": {},
        "step_details": {"type": "message_creation", "message_creation": {"message_id": "msg_abc123"}},
        "usage": {"prompt_tokens": 123, "completion_tokens": 456, "total_tokens": 579}, **more,
    }  # fmt: skip


def called(id: str, at: int) -> dict[str, Any]:
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}", "output": "4"}},
        {
            "id": "call_2",
            "type": "code_interpreter",
            "code_interpreter": {"input": "2+2", "outputs": [{"type": "logs", "logs": "4"}]},
        },
        {"id": "call_3", "type": "file_search", "file_search": {}},
    ]
    return step(id, at, type="tool_calls", step_details={"type": "tool_calls", "tool_calls": calls})


CITED = {
    "type": "file_citation", "text": "[0]", "start_index": 4, "end_index": 7,
    "file_citation": {"file_id": "file-1"},
}  # fmt: skip
IMAGE_URL = {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "high"}}
IMAGE_FILE = {"type": "image_file", "image_file": {"file_id": "file-2", "detail": "auto"}}


@pytest.fixture
async def app(url: str) -> AsyncIterator[Dayjob]:
    async with Dayjob(url, Scripted(["Hello"]), [assistant_job()], worker=False) as app:
        yield app


async def take(app: Dayjob, *lines: Any, project: str = "default") -> Report:
    text = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
    return await import_lines(app.store, io.BytesIO(text), project)


async def messages_of(app: Dayjob, thread: str = "thread_abc123") -> list[dict[str, Any]]:
    found = await app.store.messages_page(thread, EVERYTHING)
    return [message_object(each, thread, None) for each in found.rows]


async def ids_of(app: Dayjob) -> list[str]:
    return [each["id"] for each in await messages_of(app)]


def refusals(report: Report) -> list[tuple[int, str | None, str | None]]:
    return [(told.line, told.id, told.field) for told in report.refusals]


# --- as it was -------------------------------------------------------------------------------------


async def test_everything_is_read_back_as_it_was_whatever_the_order_of_the_lines(app: Dayjob) -> None:
    objects: list[dict[str, Any]] = [
        called("step_calls", AT + 21),
        step("step_said", AT + 21),
        message("msg_2", AT + 30, said("See [0]", CITED), assistant_id="asst_abc123", run_id="run_abc123",
                role="assistant", metadata={"seen": "yes"}),
        message("msg_1", AT + 10, said("Look:"), IMAGE_URL, IMAGE_FILE, completed_at=None,
                attachments=[{"file_id": "file-1", "tools": [{"type": "file_search"}]}]),
        message("msg_3", AT + 40, {"type": "refusal", "refusal": "No."}, role="assistant", status="incomplete",
                completed_at=None, incomplete_at=AT + 41, incomplete_details={"reason": "content_filter"}),
        message("msg_4", AT + 50, said("one"), said("two")),
        run(),
        run("run_failed", AT + 60, status="failed", completed_at=None, failed_at=AT + 62,
            last_error={"code": "rate_limit_exceeded", "message": "Too many."}),
        thread(),
        assistant(),
    ]  # fmt: skip
    report = await take(app, *objects)
    assert report.refusals == report.remarks == []
    assert dict(report.taken) == {
        "assistant": 1, "thread": 1, "thread.message": 4, "thread.run": 2, "thread.run.step": 2,
    }  # fmt: skip

    kept = await app.store.object("default", "assistant", "asst_abc123")
    found_thread = await app.store.thread("thread_abc123")
    assert kept is not None and found_thread is not None
    runs = (await app.store.thread_runs("thread_abc123", EVERYTHING)).rows
    read: list[tuple[Any, list[dict[str, Any]]]] = [
        (Assistant, [assistant_object(kept)]),
        (Thread, [thread_object(found_thread)]),
        (wire_types.Message, await messages_of(app)),
        (wire_types.Run, [run_object(each) for each in runs]),
        (RunStep, await steps_of(app.store, runs[0])),
    ]
    given = {each["id"]: each for each in objects}
    for type, made in read:
        for each in made:
            TypeAdapter(type).validate_python(each, strict=True)
            assert each == given.pop(each["id"])
    assert given == {}
    assert [each["id"] for each in read[2][1]] == ["msg_1", "msg_2", "msg_3", "msg_4"]
    assert [each["id"] for each in read[4][1]] == ["step_calls", "step_said"]
    assert await steps_of(app.store, runs[1]) == []


async def test_what_the_published_examples_leave_out_is_filled_in(app: Dayjob) -> None:
    published = [
        {"id": "asst_1", "object": "assistant", "created_at": AT, "model": "gpt-4", "tools": []},
        {"id": "thread_abc123", "object": "thread", "created_at": AT, "metadata": None},
        {"id": "msg_1", "object": "thread.message", "created_at": AT, "assistant_id": None, "role": "user",
         "thread_id": "thread_abc123", "run_id": None, "content": [said("Hi")], "attachments": None, "metadata": None},
        {"id": "run_1", "object": "thread.run", "created_at": AT, "assistant_id": "asst_1", "status": "completed",
         "thread_id": "thread_abc123", "model": "gpt-4", "instructions": None, "tools": None, "metadata": {}},
    ]  # fmt: skip
    report = await take(app, *published)
    assert report.refusals == []
    TypeAdapter(wire_types.Message).validate_python((await messages_of(app))[0], strict=True)
    made = run_object(await app.get("run_1"))
    TypeAdapter(wire_types.Run).validate_python(made, strict=True)
    assert made["usage"] is None and made["last_error"] is None and made["instructions"] == ""


async def test_steps_are_paged_both_ways_in_their_order(app: Dayjob) -> None:
    await take(app, thread(), run(), *(step(f"step_{n}") for n in (3, 1, 2)), step("step_0", AT + 20))

    async def ids(page: Page) -> tuple[list[str], bool]:
        found = await app.store.objects("thread_abc123", "step/run_abc123", page)
        return [each.id for each in found.rows], found.more

    assert await ids(Page(2)) == (["step_2", "step_1"], True)
    assert await ids(Page(2, after="step_1")) == (["step_3", "step_0"], False)
    assert await ids(Page(2, ascending=True, after="step_0")) == (["step_3", "step_1"], True)
    assert await ids(Page(2, before="step_0")) == (["step_1", "step_3"], True)


# --- what a model is told --------------------------------------------------------------------------


async def test_a_run_in_an_imported_thread_is_told_what_was_said_there(app: Dayjob) -> None:
    await take(
        app, thread(), run(),
        message("msg_1", AT + 10, said("Look:"), IMAGE_URL),
        message("msg_2", AT + 11, said("one"), said("two")),
        message("msg_3", AT + 30, said("See [0]", CITED), role="assistant"),
    )  # fmt: skip
    model = Scripted(["Hello"])
    async with Dayjob(app.store.url, model, [assistant_job()]) as working:
        request = working.jobs["assistant"](AssistantRun("asst_abc123", "gpt-4o"))
        handle = await working.submit(request, thread="thread_abc123", messages=[_own("And now?")])
        assert await handle.result() == "Hello"
        assert (await working.get("run_abc123")).status == Status.COMPLETED
    told = orjson.loads(await _prompt(app, handle.id))["messages"]
    assert [each["content"] for each in told] == [
        [{"type": "text", "text": "Look:"}, IMAGE_URL], "one\n\ntwo", "See [0]", "And now?",
    ]  # fmt: skip
    assert [each["content"][0]["text"]["value"] for each in (await messages_of(app))[-2:]] == [
        "And now?",
        "Hello",
    ]


def _own(text: str) -> MessageRecord:
    return MessageRecord("msg_own", orjson.dumps({"role": "user", "content": text}), 1.0)


async def _prompt(app: Dayjob, run: str) -> bytes:
    row = next(each for each in await app.steps(run) if each.kind == "model")
    request = await app.request_of(row)
    assert request is not None
    return request


# --- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["queued", "in_progress", "requires_action", "cancelling"])
async def test_a_run_that_was_not_over_is_over_and_locks_nothing(app: Dayjob, status: str) -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    required = {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": calls}}
    open_run = run(status=status, required_action=required, completed_at=None, expires_at=AT + 600)
    open_step = step(status="in_progress", completed_at=None)
    lines = thread(), open_run, open_step, message()
    report = await take(app, *lines)
    became = "cancelled" if status == "cancelling" else "expired"
    assert [(told.line, told.field) for told in report.remarks] == [(2, "status"), (3, "status")]
    assert f'was "{status}", and is taken as "{became}"' in report.remarks[0].reason
    record = await app.get("run_abc123")
    made = run_object(record)
    assert (record.status, made["status"], made["required_action"]) == (became, became, None)
    assert (await steps_of(app.store, record))[0]["status"] == "expired"
    TypeAdapter(wire_types.Run).validate_python(made, strict=True)
    again = await take(app, *lines)
    assert (again.taken.total(), again.refused.total(), again.there.total()) == (0, 0, 4)

    async with app.worker():
        handle = await app.submit(app.jobs["assistant"](AssistantRun("a", "m")), thread="thread_abc123")
        assert await handle.result() == "Hello"
    assert await app.get("run_abc123") == record


async def test_an_imported_run_cannot_be_resumed(app: Dayjob) -> None:
    await take(app, thread(), run(status="failed", completed_at=None, failed_at=AT + 22))
    with pytest.raises(WrongStatus, match="was imported"):
        await app.resume("run_abc123")


async def test_the_metadata_of_an_imported_run_can_be_changed(app: Dayjob) -> None:
    await take(app, thread(), run())
    record = await app.get("run_abc123")
    assert is_assistants(record)
    details = {**orjson.loads(record.details or b""), "metadata": {"kind": "changed"}}
    await app.store.change_run(record.id, orjson.dumps(details))
    assert run_object(await app.get(record.id)) == run(metadata={"kind": "changed"})
    again = await take(app, thread(), run())
    assert refusals(again) == [(2, "run_abc123", "metadata")]


async def test_a_deleted_thread_takes_what_was_imported_with_it(app: Dayjob) -> None:
    await take(app, thread(), run(), step(), message(), assistant())
    assert await app.store.delete_thread("thread_abc123")
    assert (await app.store.objects("thread_abc123", "step/run_abc123", Page())).rows == []
    assert await app.store.get("run_abc123") is None
    assert await app.store.object("default", "assistant", "asst_abc123") is not None
    again = await take(app, thread(), run(), step(), message(), assistant())
    assert (again.taken.total(), again.there.total()) == (4, 1)


async def test_runs_are_listed_by_when_they_were_made_and_not_by_their_ids(app: Dayjob) -> None:
    await take(app, thread(), run("run_zzz"), run("run_aaa", AT + 50))
    new = await app.submit(app.jobs["assistant"](AssistantRun("a", "m")))
    assert [each.id for each in await app.runs()] == [new.id, "run_aaa", "run_zzz"]
    page = await app.store.runs_page("default", Page(2))
    assert [each.id for each in page.rows] == [new.id, "run_aaa"] and page.more
    assert [each.id for each in await app.runs(before="run_aaa")] == ["run_zzz"]


# --- order -----------------------------------------------------------------------------------------


async def test_messages_of_one_second_keep_the_order_of_the_file(app: Dayjob) -> None:
    await take(app, *(message(f"msg_{n}") for n in (3, 1, 2)), message("msg_0", AT), thread())
    assert await ids_of(app) == ["msg_0", "msg_3", "msg_1", "msg_2"]


async def test_a_line_that_was_mended_comes_to_its_place(app: Dayjob) -> None:
    lines = [thread(), *(message(f"msg_{n}", AT + 10 + n // 3) for n in range(6))]
    broken = [*lines[:3], {**lines[3], "role": "tool"}, *lines[4:]]
    assert refusals(await take(app, *broken)) == [(4, "msg_2", "role")]
    assert await ids_of(app) == ["msg_0", "msg_1", "msg_3", "msg_4", "msg_5"]
    report = await take(app, *lines)
    assert (report.taken.total(), report.there.total()) == (1, 6)
    assert await ids_of(app) == [f"msg_{n}" for n in range(6)]


async def test_a_second_file_brings_earlier_and_later_messages(app: Dayjob) -> None:
    await take(app, thread(), message("msg_2", AT + 20), message("msg_4", AT + 40))
    await take(app, message("msg_5", AT + 50), message("msg_3", AT + 30), message("msg_1", AT + 10))
    assert await ids_of(app) == [f"msg_{n}" for n in range(1, 6)]


async def test_a_thread_that_went_on_here_takes_no_more_messages(app: Dayjob) -> None:
    await take(app, thread(), message("msg_1"))
    await app.store.append_message("thread_abc123", _own("And now?"), "enqueue")
    report = await take(app, thread(), message("msg_1"), message("msg_2", AT + 90), run())
    assert refusals(report) == [(3, "msg_2", "thread_id")]
    assert "went on here" in report.refusals[0].reason
    assert (report.taken.total(), report.there.total()) == (1, 2)
    assert await ids_of(app) == ["msg_1", "msg_own"]


# --- again -----------------------------------------------------------------------------------------


async def test_the_same_file_again_changes_nothing(app: Dayjob, path: Path) -> None:
    lines = [assistant(), thread(), message(), run(), run("run_2"), step(), step("step_2")]
    await take(app, *lines)
    before = await app.store.threads("default", Page()), await messages_of(app), await app.runs()
    report = await take(app, *reversed(lines))
    assert (report.taken.total(), report.there.total(), report.refused.total()) == (0, 7, 0)
    assert before == (await app.store.threads("default", Page()), await messages_of(app), await app.runs())


async def test_what_differs_from_what_is_there_is_refused_and_changes_nothing(app: Dayjob) -> None:
    await take(app, assistant(), thread(), message(), run(), step())
    report = await take(
        app,
        assistant(name="Other"),
        thread(metadata={}),
        message("msg_abc123", AT + 10, said("Other")),
        run(status="failed", failed_at=AT),
        step(completed_at=AT),
        message("msg_new", AT + 90),
    )
    assert refusals(report) == [
        (1, "asst_abc123", "name"),
        (2, "thread_abc123", "metadata"),
        (3, "msg_abc123", "content"),
        (4, "run_abc123", "failed_at, status"),
        (5, "step_abc123", "completed_at"),
    ]
    assert all("differs" in told.reason for told in report.refusals)
    assert report.taken.total() == 1
    assert run_object(await app.get("run_abc123")) == run()


async def test_twice_in_a_file_is_once_and_two_that_differ_are_told_apart(app: Dayjob) -> None:
    report = await take(
        app,
        thread(),
        thread(),
        message(),
        message(),
        message(at=AT + 11),
        assistant(),
        assistant(name="Other"),
    )
    assert (report.taken.total(), report.there.total()) == (3, 2)
    assert refusals(report) == [
        (5, "msg_abc123", "completed_at, created_at"), (7, "asst_abc123", "name"),
    ]  # fmt: skip
    assert report.refusals[0].reason == "differs from line 3, which has the same id"


# --- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "id", "field", "reason"),
    [
        (b'{"object": "thread", "id":', None, None, "is not JSON"),
        (b"[]", None, None, "is no JSON object"),
        (b'"text"', None, None, "is no JSON object"),
        (b"\xff\xfe", None, None, "is not JSON"),
        ({"id": "x"}, "x", "object", "is missing"),
        ({"id": "x", "object": "file"}, "x", "object", "is 'file'; expected one of assistant"),
        ({"id": "x", "object": ["thread"]}, "x", "object", "expected one of"),
        ({"object": "thread", "created_at": 1}, None, "id", "is missing"),
        (thread(""), "", "id", "is empty"),
        (thread(7), None, "id", "should be a valid string"),  # type: ignore[arg-type]
        (thread("a\nb"), "a\nb", "id", "cannot be shown"),
        (thread("a\u202eb"), "a\u202eb", "id", "cannot be shown"),
        (thread("a/b"), "a/b", "id", "no URL"),
        (thread("x" * (MOST_ID + 1)), "x" * MOST_ID, "id", "the most are 256"),
        (message(thread_id="a\0b"), "msg_abc123", "thread_id", "cannot be shown"),
        (message(run_id=""), "msg_abc123", "run_id", "is empty"),
        (b'{"object": "thread", "id": "a\\ud800", "created_at": 1}', None, "id", "half a surrogate pair"),
        (thread(created_at="1"), "thread_abc123", "created_at", "should be a valid integer"),
        (thread(created_at=True), "thread_abc123", "created_at", "should be a valid integer"),
        (thread(created_at=-1), "thread_abc123", "created_at", "expected seconds"),
        (run(started_at=10**15), "run_abc123", "started_at", "expected seconds"),
        (thread(metadata={"a": 1}), "thread_abc123", "metadata.a", "should be a valid string"),
        (thread(metadata={"a": "x" * 513}), "thread_abc123", "metadata.a", "the most are 512"),
        (thread(metadata={"a" * 65: ""}), "thread_abc123", "metadata", "the most are 64"),
        (thread(metadata={str(n): "" for n in range(17)}), "thread_abc123", "metadata", "the most are 16"),
        (message(role="tool"), "msg_abc123", "role", "should be 'user' or 'assistant'"),
        (message("m", AT, {"type": "text", "text": {"value": 3, "annotations": []}}), "m", "content.0.text.value",
         "should be a valid string"),
        (message("m", AT, {"type": "sound"}), "m", "content.0.type", "not one of those"),
        (run(status="done"), "run_abc123", "status", "should be"),
        (run(usage={"prompt_tokens": 1}), "run_abc123", "usage.completion_tokens", "is missing"),
        (step(run_id=None), "step_abc123", "run_id", "should be a valid string"),
        (assistant(tools=[{"type": "function"}]), "asst_abc123", "tools.0.function", "is missing"),
        (orjson.dumps(assistant(x=["X"])).replace(b'"X"', b"[" * 300 + b"]" * 300), "asst_abc123", None,
         "is nested too deeply"),
    ],
)  # fmt: skip
async def test_a_line_that_is_wrong_is_named_and_costs_no_other(
    app: Dayjob, line: Any, id: str | None, field: str | None, reason: str
) -> None:
    report = await take(app, thread("thread_before"), b"", line, thread("thread_after"))
    assert refusals(report) == [(3, id, field)]
    assert reason in report.refusals[0].reason
    assert report.taken == {"thread": 2}


async def test_a_line_that_is_too_long_is_passed_over(app: Dayjob) -> None:
    report = await take(app, message("msg_1", AT, said("x" * (MOST_LINE_BYTES + 1))), thread())
    assert refusals(report) == [(1, None, None)]
    assert report.taken == {"thread": 1}


async def test_what_belongs_to_nothing_is_refused(app: Dayjob) -> None:
    report = await take(
        app,
        thread(),
        message("msg_1", thread_id="thread_none"),
        run("run_1", thread_id="thread_none"),
        step("step_1", run_id="run_none"),
        step("step_2", thread_id="thread_none"),
        thread("thread_refused", metadata={"a": 1}),
        message("msg_2", thread_id="thread_refused"),
    )
    assert refusals(report) == [
        (2, "msg_1", "thread_id"),
        (3, "run_1", "thread_id"),
        (4, "step_1", "run_id"),
        (5, "step_2", "thread_id"),
        (6, "thread_refused", "metadata.a"),
        (7, "msg_2", "thread_id"),
    ]
    assert report.taken == {"thread": 1}


async def test_what_is_made_here_takes_no_steps_and_is_not_overwritten(app: Dayjob) -> None:
    handle = await app.submit(app.jobs["assistant"](AssistantRun("a", "m")), thread="thread_here")
    report = await take(
        app,
        run(handle.id, thread_id="thread_here"),
        step(run_id=handle.id, thread_id="thread_here"),
        message(thread_id="thread_here"),
    )
    assert refusals(report) == [
        (1, handle.id, "id"), (2, "step_abc123", "run_id"), (3, "msg_abc123", "thread_id"),
    ]  # fmt: skip


async def test_another_project_s_ids_are_a_clash_and_nothing_of_it_is_told(app: Dayjob) -> None:
    await take(app, thread(), run(), message(), project="theirs")
    report = await take(
        app, thread(), message("msg_2"), run(), thread("thread_mine"), run(thread_id="thread_mine")
    )
    assert refusals(report) == [
        (1, "thread_abc123", "id"), (2, "msg_2", "thread_id"), (3, "run_abc123", "thread_id"),
        (5, "run_abc123", "id"),
    ]  # fmt: skip
    assert "theirs" not in str(report)
    assert await ids_of(app) == ["msg_abc123"]
    both = await take(app, assistant(name="Mine")), await take(app, assistant(), project="theirs")
    assert [each.taken.total() for each in both] == [1, 1]


async def test_a_thread_may_not_lie_where_a_run_without_thread_does(app: Dayjob) -> None:
    handle = await app.submit(app.jobs["assistant"](AssistantRun("a", "m")))
    assert refusals(await take(app, thread(handle.id))) == [(1, handle.id, "id")]


# --- many ------------------------------------------------------------------------------------------


async def test_more_than_one_transaction_takes_keeps_its_order(app: Dayjob) -> None:
    lines: list[dict[str, Any]] = [message(f"msg_{n:04}", AT + n // 5) for n in range(BATCH + 100)]
    lines.sort(key=lambda each: (each["id"][-1], each["id"]))
    steps = [step(f"step_{n:03}") for n in range(30)]
    report = await take(app, *lines, *steps, run(), thread())
    assert (report.taken.total(), report.refusals) == (BATCH + 132, [])
    found = await app.store.messages_page("thread_abc123", Page(10_000, ascending=True))
    in_order = sorted(lines, key=lambda each: each["created_at"])
    assert [each.id for each in found.rows] == [each["id"] for each in in_order]
    assert await steps_of(app.store, await app.get("run_abc123")) == steps
    again = await take(app, *lines, *steps, run(), thread())
    assert (again.taken.total(), again.there.total()) == (0, BATCH + 132)


def test_what_does_not_fit_in_memory_is_sorted_all_the_same() -> None:
    rows = [((1, f"thread_{n % 7}", 1, "", n % 3, n), "thread", f"id_{n}", (b"x" * n,)) for n in range(1_000)]
    with Sorter(most_bytes=20_000) as few, Sorter() as all_at_once:
        for row in rows:
            few.add(row)
            all_at_once.add(row)
        assert list(few) == list(all_at_once) == sorted(rows)


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def dayjob(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def written(file: Path, *lines: Any) -> Path:
    text = b"\n".join(map(orjson.dumps, lines))
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return file


def test_the_command_tells_what_came_of_a_file(dayjob: CommandLine, tmp_path: Path) -> None:
    lines = [assistant(), thread(), message(), run(status="queued", completed_at=None)]
    done = dayjob("import", written(tmp_path / "a.jsonl", *lines))
    assert done.returncode == 0, text_of(done)
    assert "4 taken in" in done.stdout
    assert 'line 4: thread.run run_abc123: status was "queued"' in done.stderr
    done = dayjob("import", written(tmp_path / "b.jsonl.gz", *lines))
    assert done.returncode == 0, text_of(done)
    assert "nothing was changed" in done.stdout
    done = dayjob("import", written(tmp_path / "c.jsonl", thread("thread_2"), message("msg_9", role="tool")))
    assert done.returncode == 1
    assert "refused  line 2: thread.message msg_9: role should be 'user' or 'assistant'" in done.stderr
    assert "1 taken in" in done.stdout

    assert dayjob("runs").stdout.splitlines()[1].split()[:3] == ["run_abc123", "assistant", "expired"]
    assert "gpt-4o" in dayjob("show", "run_abc123").stdout
    assert dayjob.json("show", "run_abc123")["status"] == "expired"
    assert dayjob("runs", "--by-job").returncode == 0
    assert dayjob("resume", "run_abc123").returncode == 2


def test_standard_input_is_read_and_the_report_is_one_document(dayjob: CommandLine) -> None:
    text = "\n".join(map(json.dumps, [thread(), {"object": "wat"}]))
    done = subprocess.run(
        [DAYJOB, "import", "-", "--project", "mine", "--json"],
        cwd=dayjob.folder, env=dayjob.environment, input=text, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["taken"], told["there"], told["refused"]) == ({"thread": 1}, {}, {"line": 1})
    assert told["refusals"][0]["line"] == 2
    assert dayjob.query("SELECT project FROM threads") == [("mine",)]


def test_a_file_that_breaks_off_gives_what_it_has(dayjob: CommandLine, tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl.gz", *(thread(f"thread_{n}") for n in range(500)))
    file.write_bytes(file.read_bytes()[:-20])
    done = dayjob("import", file)
    assert done.returncode == 1
    assert "cannot be read any further" in done.stderr
    assert dayjob.query("SELECT count(*) > 100 FROM threads") == [(1,)]


def test_a_file_that_is_not_there_is_a_usage_error(dayjob: CommandLine) -> None:
    done = dayjob("import", "nowhere.jsonl")
    assert (done.returncode, "nowhere.jsonl: cannot be read" in done.stderr) == (2, True)
    assert not dayjob.database.exists()
