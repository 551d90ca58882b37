"""Newer code takes over a run: what it may reuse, what it does for real, and when a person is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from dayjob import Dayjob, Run, StepError, tool
from dayjob.errors import UnknownAction
from dayjob.jobs import Job
from dayjob.runs import Kind, Outcome, Status
from dayjob.testing import CrashLab, Death, Ended, Moment
from tests.ledger import after_death, executed, fail, work
from tests.until import until

Body = Callable[[Run], Awaitable[Any]]


def versions(*bodies: Body) -> list[Job]:
    """The same job, one version after the other."""
    return [Job(body, "changing", f"v{number}") for number, body in enumerate(bodies, 1)]


async def changed_at(
    lab: CrashLab, write: int, old: Body, new: Body, **how: Any
) -> tuple[Ended, Counter[str]]:
    """A run of the old code that dies at a write and goes on with the new: how it ended, what was then done."""
    first, second = versions(old, new)
    ended, again = await after_death(lab, first(), Death(write), then=[second], **how)
    assert ended.death is not None
    return ended, again


def steps_in(*names: str) -> Body:
    async def body(run: Run) -> list:
        return [await run.step(work, name) for name in names]

    return body


CLAIM = 1


async def test_steps_before_an_inserted_one_are_reused_and_the_rest_of_the_scope_is_done_again(
    lab: CrashLab,
) -> None:
    ended, again = await changed_at(lab, CLAIM + 4, steps_in("a", "b", "c"), steps_in("a", "x", "b", "c"))
    assert ended.output == ["a done", "x done", "b done", "c done"]
    assert again == {"x": 1, "b": 1, "c": 1}
    superseded = [step.key for step in ended.steps if step.outcome == Outcome.SUPERSEDED]
    assert superseded == ["work#2", "work#3"]


async def test_what_the_new_code_remembers_under_an_old_name_is_kept(lab: CrashLab) -> None:
    def remembering(value: str) -> Body:
        async def body(run: Run) -> Any:
            await run.remember("colour", value)
            await run.step(work, value)
            return await run.recall("colour")

        return body

    ended, _ = await changed_at(lab, CLAIM + 2, remembering("red"), remembering("blue"))
    assert ended.output == "blue"


async def test_an_edited_step_is_done_and_what_follows_it_again(lab: CrashLab) -> None:
    ended, again = await changed_at(lab, CLAIM + 4, steps_in("a", "b", "c"), steps_in("a", "B", "c"))
    assert ended.output == ["a done", "B done", "c done"]
    assert again == {"B": 1, "c": 1}


async def test_a_removed_step_leaves_the_others_reused_though_their_ordinals_shift(lab: CrashLab) -> None:
    ended, again = await changed_at(lab, CLAIM + 4, steps_in("a", "b", "c"), steps_in("a", "c"))
    assert ended.output == ["a done", "c done"]
    assert not again
    assert [step.outcome for step in ended.steps if b'"b"' in (step.input or b"")] == ["superseded"]


async def test_an_unchanged_path_is_wholly_reused_by_a_newer_version(lab: CrashLab) -> None:
    ended, again = await changed_at(lab, CLAIM + 4, steps_in("a", "b", "c"), steps_in("a", "b", "c"))
    assert ended.output == ["a done", "b done", "c done"]
    assert not again
    assert ended.run.version == "v2"


async def test_the_same_step_twice_is_matched_once_each(lab: CrashLab) -> None:
    ended, again = await changed_at(lab, CLAIM + 3, steps_in("a", "a"), steps_in("a", "a", "a"))
    assert ended.output == ["a done"] * 3
    assert again == {"a": 1}


# --- scopes and joins -----------------------------------------------------------------------------------


def in_scope(*names: str) -> Body:
    async def part(run: Run) -> list:
        return await steps_in(*names)(run)

    async def body(run: Run) -> list:
        return [await run.step(part, name="part"), await run.step(work, "after")]

    return body


async def test_a_done_scope_is_walked_again_and_kept(lab: CrashLab) -> None:
    ended, again = await changed_at(lab, CLAIM + 4, in_scope("a", "b"), in_scope("a", "b"))
    assert ended.output == [["a done", "b done"], "after done"]
    assert again == {"after": 1}
    scope = next(step for step in ended.steps if step.key == "part")
    assert (scope.outcome, scope.version) == ("value", "v1")


@pytest.mark.parametrize(
    ("new", "redone"),
    [(("a", "x", "b"), {"x", "b"}), (("a", "b", "x"), {"x"}), (("a",), set()), (("x",), {"x"})],
)
@pytest.mark.parametrize("second_death", [None, 2, 3, 4])
async def test_a_done_scope_that_takes_another_path_is_done_anew_and_so_is_what_follows(
    lab: CrashLab, new: tuple[str, ...], redone: set[str], second_death: int | None
) -> None:
    """Even if the new code's worker dies on the way: what it then finds is its own, and the scope's old row is not."""
    old, changed = versions(in_scope("a", "b"), in_scope(*new))
    again: Counter[str] = Counter()
    deaths = [Death(CLAIM + 5), *([Death(second_death)] if second_death else [])]
    ended = await lab.run(old(), then=[changed], death=deaths, on_death=lambda: again.subtract(executed))
    assert ended.output == [[f"{name} done" for name in new], "after done"]
    if second_death is None:
        again.update(executed)
        assert {name for name, times in again.items() if times} == redone | {"after"}


async def test_sibling_branches_replay_when_one_takes_another_path(lab: CrashLab) -> None:
    def gathers(*names: str) -> Body:
        async def body(run: Run) -> list:
            both = await run.gather(steps_in("left", "left 2"), steps_in(*names))
            return [both, await run.step(work, "after")]

        return body

    def is_over(key: str, ended: Ended) -> bool:
        return any(step.key == key and step.outcome for step in ended.durable)

    whole = 0
    for write in range(2, 10):
        ended, again = await changed_at(lab, write, gathers("right", "r2"), gathers("right", "x", "r2"))
        assert ended.output == [
            [["left done", "left 2 done"], ["right done", "x done", "r2 done"]],
            "after done",
        ]
        if ended.run.version == "v2" and is_over("gather", ended):
            whole += 1
            assert set(again) == {"x", "r2", "after"}
        if is_over("gather/0", ended):
            assert not again["left"] + again["left 2"]
    assert whole


async def test_branches_kept_from_an_older_version_still_count_when_the_run_is_replayed_later(
    lab: CrashLab,
) -> None:
    """The join's row is the new version's, its branches' rows are the old one's."""

    def gathers(sleep: bool) -> Body:
        async def body(run: Run) -> list:
            both = await run.gather(steps_in("left"), steps_in("right"))
            if sleep:
                await run.sleep(0.001)  # leaves memory, and is replayed
            return both

        return body

    ended, again = await changed_at(lab, CLAIM + 5, gathers(False), gathers(True))
    assert [step.key for step in ended.durable][-2:] == ["gather/0", "gather/1"]
    assert ended.output == [["left done"], ["right done"]]
    assert not again


async def test_of_a_race_only_the_winner_is_walked_again(lab: CrashLab) -> None:
    def races(*losers: str) -> Body:
        async def loser(run: Run) -> list:
            await run.sleep(100)
            return await steps_in(*losers)(run)

        async def body(run: Run) -> list:
            return [await run.race(loser, steps_in("winner")), await run.step(work, "after")]

        return body

    ended, again = await changed_at(lab, CLAIM + 5, races("l"), races("other"))
    assert any(step.key == "race" for step in ended.durable)
    assert ended.output == [["winner done"], "after done"]
    assert set(again) == {"after"}
    assert sum(step.kind == Kind.SLEEP for step in ended.steps) == 1


# --- what was deferred ------------------------------------------------------------------------------------


async def test_what_was_deferred_is_done_once_though_the_path_changes_after_it(lab: CrashLab) -> None:
    def defers(*names: str) -> Body:
        async def body(run: Run) -> list:
            await run.defer(work, "deferred")
            return await steps_in(*names)(run)

        return body

    ended, again = await changed_at(lab, CLAIM + 4, defers("a"), defers("x"))
    assert any(step.key == "#defer/work" for step in ended.durable)
    assert ended.output == ["x done"]
    assert again == {"x": 1}


# --- when a person is asked -----------------------------------------------------------------------------------


def asks_first(*names: str) -> Body:
    async def body(run: Run) -> list:
        if "first" in names:
            await run.step(work, "first")
        answer = await run.ask("who?")
        return [answer, *(await steps_in(*names)(run))]

    return body


async def test_code_that_would_write_off_an_answer_parks_and_asks(lab: CrashLab) -> None:
    questions: list[str] = []

    async def outside(app: Dayjob, run: str) -> bool:
        acted = False
        for action in await app.actions(run):
            if action.id == "#changed":
                questions.append(action.question)
            await app.answer(run, action.id, "continue" if action.id == "#changed" else "Ann")
            acted = True
        return acted

    ended, again = await changed_at(
        lab, await _write_of(lab, "work", asks_first("a"), outside), asks_first("a"), asks_first("first", "a"),
        outside=outside,
    )  # fmt: skip
    assert ended.output == ["Ann", "first done", "a done"]
    assert len(questions) == 1
    assert "write off ask" in questions[0]
    assert again["first"] >= 1
    outcomes = Counter((step.key, step.outcome) for step in ended.steps if step.kind == Kind.ASK)
    assert outcomes == {("ask", "superseded"): 1, ("ask", "value"): 1, ("#changed", "value"): 1}


async def _write_of(lab: CrashLab, key: str, body: Body, outside: Any) -> int:
    """The write after the one that ends a step."""
    for write in range(2, 20):
        ended = await lab.run(versions(body)[0](), death=Death(write), outside=outside)
        if any(step.key == key and step.outcome for step in ended.durable):
            return write
    raise AssertionError(key)


async def _is(app: Dayjob, run: str, status: Status) -> bool:
    return (await app.get(run)).status == status


async def test_keeping_the_old_path_leaves_the_run_to_workers_with_the_old_code(url: str) -> None:
    old, new = versions(asks_first("a", "b"), asks_first("first", "a"))
    async with Dayjob(url, worker=False) as app:
        handle = await app.submit(old())
        async with app.worker():
            await until(lambda: app.actions(handle.id))
            await app.answer(handle.id, "ask", "Ann")
            await handle.result(10)
        await app.resume(handle.id, from_step="work#2")
    async with Dayjob(url, jobs=[new], worker=False) as app:
        async with app.worker():
            actions = await until(lambda: app.actions(handle.id))
            assert [action.id for action in actions] == ["#changed"]
            await until(lambda: _is(app, handle.id, Status.REQUIRES_ACTION))
            await app.answer(handle.id, "#changed", "keep")

            async def pinned() -> bool:
                record = await app.get(handle.id)
                return bool(record.pinned) and record.status == Status.QUEUED

            await until(pinned)
    async with Dayjob(url, jobs=[old], worker=False) as app:
        async with app.worker():
            assert await app.handle(handle.id).result(10) == ["Ann", "a done", "b done"]
    assert (executed["first"], executed["a"], executed["b"]) == (0, 1, 2)


async def test_a_running_child_is_not_written_off_without_asking(lab: CrashLab) -> None:
    async def waits(run: Run) -> str:
        return await run.ask("child?")

    child = Job(waits, "child", "v1")

    def starts(*names: str) -> Body:
        async def body(run: Run) -> list:
            done = await steps_in(*names)(run)
            return [*done, await (await run.start(child())).result()]

        return body

    questions = []

    async def outside(app: Dayjob, run: str) -> bool:
        acted = False
        for action in await app.actions():
            if action.id == "#changed":
                questions.append(action.question)
                await app.answer(action.run, action.id, "continue")
                acted = True
            elif questions:
                await app.answer(action.run, action.id, "hello")
                acted = True
        return acted

    first, second = versions(starts("a"), starts("x"))
    ended = await lab.run(
        first(), jobs=[child], then=[second, child], death=Death(3, Moment.UNHEARD), outside=outside
    )
    assert [step.key for step in ended.durable] == ["work", "child"]
    assert ended.output == ["x done", "hello"]
    assert len(questions) == 1


async def test_what_a_client_handed_in_is_not_written_off_without_asking_but_a_read_is(lab: CrashLab) -> None:
    @tool(effect="read")
    async def look(place: str) -> str:
        return "a key"

    @tool(external=True)
    async def sign(name: str) -> str:
        raise AssertionError

    def looks_and_signs(name: str) -> Body:
        async def body(run: Run) -> list:
            return [
                await run.step(work, name),
                await run.tool(look, place="hall"),
                await run.tool(sign, name="Kim"),
            ]

        return body

    questions = []

    async def outside(app: Dayjob, run: str) -> bool:
        actions = await app.actions(run)
        for action in actions:
            questions.append(action.question)
            with suppress(UnknownAction):  # the worker died after it was answered
                await app.answer(run, action.id, "continue" if action.id == "#changed" else "signed")
        return bool(actions)

    asked = []
    for write in (CLAIM + 2, CLAIM + 5):
        questions.clear()
        first, second = versions(looks_and_signs("a"), looks_and_signs("x"))
        ended = await lab.run(first(), then=[second], death=Death(write, Moment.UNHEARD), outside=outside)
        assert ended.output == ["x done", "a key", "signed"]
        assert "look" in [row.key for row in ended.durable]
        asked.append([question for question in questions if "write off sign." in question])
        assert not [question for question in questions if "write off look" in question]
    assert list(map(len, asked)) == [0, 1]


# --- which worker -----------------------------------------------------------------------------------------------


async def test_a_run_never_goes_back_to_an_older_version(url: str) -> None:
    old, new = versions(steps_in("a"), steps_in("a"))
    async with Dayjob(url, jobs=[old], worker=False) as app:
        async with app.worker():
            pass  # the old version is known first
    async with Dayjob(url, jobs=[new], worker=False) as app:
        handle = await app.submit(new())
        async with app.worker():
            await handle.result(10)
        await app.resume(handle.id, from_step="work")
    async with Dayjob(url, jobs=[old], worker=False) as app:
        other = await app.submit(Job(steps_in("z"), "marker", "v1")())
        async with app.worker():
            await other.result(10)
            assert (await app.get(handle.id)).status == Status.QUEUED


async def test_newer_code_takes_what_is_queued_once_the_last_worker_with_the_old_is_gone(url: str) -> None:
    old, new = versions(asks_first("a"), asks_first("a"))
    async with (
        Dayjob(url, jobs=[new], worker=False) as app,
        Dayjob(url, jobs=[old], worker=False) as before,
        AsyncExitStack() as last,
    ):
        queued = await before.submit(old())
        async with before.worker():
            await until(lambda: app.actions(queued.id))
        await last.enter_async_context(before.worker(queues=("elsewhere",)))
        await app.answer(queued.id, "ask", "Ann")
        async with app.worker():
            other = await app.submit(Job(steps_in("z"), "marker", "v1")())
            await other.result(10)
            assert (await app.get(queued.id)).status == Status.QUEUED
            await last.aclose()
            assert await app.handle(queued.id).result(10) == ["Ann", "a done"]


async def test_a_step_error_that_was_caught_is_reused_by_newer_code(lab: CrashLab) -> None:
    def catches(*names: str) -> Body:
        async def body(run: Run) -> list:
            try:
                await run.step(fail, "bad")
            except StepError as error:
                return [error.type, *(await steps_in(*names)(run))]
            return []

        return body

    ended, again = await changed_at(lab, CLAIM + 3, catches("a"), catches("a", "x"))
    assert ended.output == ["ValueError", "a done", "x done"]
    assert set(again) == {"x"}


async def test_an_answer_to_the_old_question_is_never_given_to_the_new_one(url: str) -> None:
    async def small(run: Run) -> str:
        return f"refund: {await run.ask('Approve a refund of 1 dollar?', bool)}"

    async def large(run: Run) -> str:
        return f"deleted: {await run.ask('Delete the account?', bool)}"

    old, new = versions(small, large)
    async with Dayjob(url) as app:
        handle = await app.submit(old())
        await until(lambda: app.actions(handle.id))
    async with Dayjob(url, worker=False) as app:
        await app.answer(handle.id, "ask", True)
    async with Dayjob(url, jobs=[new]) as app:
        (asked,) = await until(lambda: app.actions(handle.id))
        assert asked.id == "#changed"
        await app.answer(handle.id, "#changed", "continue")
        (asked,) = await until(lambda: app.actions(handle.id))
        assert asked.question == "Delete the account?"
        with pytest.raises(UnknownAction):
            await app.answer(handle.id, "ask", True)
        await app.answer(handle.id, asked.id, False)
        assert await app.handle(handle.id).result(20) == "deleted: False"
