"""What every store promises to those who follow runs, and to those who turn pages of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dayjob import Dayjob, Run, job
from dayjob.kept import Page
from dayjob.runs import Status
from dayjob.stores import Store
from tests.until import until


@job
async def work(run: Run) -> str:
    for number in range(3):
        await run.step(lambda number=number: number, name="one")
    return await run.ask("Well?", returns=str)


@job
async def short(run: Run) -> int:
    return 1


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Dayjob]:
    async with Dayjob(f"sqlite:///{tmp_path / 'followed.db'}") as app:
        yield app


async def parked(app: Dayjob) -> str:
    handle = await app.submit(work())

    async def is_parked() -> bool:
        return await handle.status() == Status.REQUIRES_ACTION

    await until(is_parked)
    return handle.id


async def ids(store: Store, page: Page, **filters: str) -> tuple[list[str], bool]:
    found = await store.runs_page("default", page, **filters)  # type: ignore[arg-type]
    return [run.id for run in found.rows], found.more


async def test_what_came_since_a_seq_comes_in_parts_with_the_run_and_its_actions(app: Dayjob) -> None:
    run = await parked(app)
    first = await app.store.since(run, 0, 2)
    assert [row.seq for row in first.steps] == [1, 2]
    assert first.more
    rest = await app.store.since(run, 2, 2)
    assert [row.seq for row in rest.steps] == [3]
    assert not rest.more
    assert [row.key for row in rest.actions] == ["ask"]
    assert rest.run.status == Status.REQUIRES_ACTION
    assert await app.store.since("run_none", 0) is None


async def test_a_mark_changes_with_what_happens_and_with_nothing_else(app: Dayjob) -> None:
    run = await parked(app)
    mark = (await app.store.since(run, 0)).mark
    assert await app.store.marks([run, "run_none"]) == {run: mark}
    await (await app.submit(short())).result(20)
    assert await app.store.marks([run]) == {run: mark}
    await app.answer(run, "ask", "yes")
    assert await app.store.marks([run]) != {run: mark}


async def test_steps_come_in_pages_and_open_ones_with_the_last(app: Dayjob) -> None:
    run = await parked(app)
    first = await app.store.steps_page(run, 0, 2)
    assert ([row.seq for row in first.rows], first.more) == ([1, 2], True)
    last = await app.store.steps_page(run, 2, 1)
    assert ([row.seq for row in last.rows], last.more) == ([3, None], False)


async def test_runs_come_in_pages_and_a_cursor_outlives_the_status_that_it_was_found_by(app: Dayjob) -> None:
    store, waiting = app.store, [await parked(app) for _ in range(3)]
    await (await app.submit(short(), tags=["x"], project="others")).result(20)
    tagged = await app.submit(short(), tags=["x", "ü"])
    await tagged.result(20)
    assert await ids(store, Page(2)) == ([tagged.id, waiting[2]], True)
    open = {"status": Status.REQUIRES_ACTION}
    assert await ids(store, Page(1), **open) == ([waiting[2]], True)
    await app.answer(waiting[2], "ask", "yes")
    await app.handle(waiting[2]).result(20)
    assert await ids(store, Page(9, after=waiting[2]), **open) == (waiting[1::-1], False)
    assert await ids(store, Page(9, before=waiting[0]), **open) == ([waiting[1]], False)
    assert await ids(store, Page(), tag="ü") == ([tagged.id], False)
    assert await ids(store, Page(), tag="y") == ([], False)
    assert await ids(store, Page(), job="short") == ([tagged.id], False)


async def test_actions_are_those_of_a_project(app: Dayjob) -> None:
    run = await parked(app)
    assert [action.run for action in await app.actions(project="default")] == [run]
    assert await app.actions(project="others") == []
    assert await app.actions(run, project="others") == []
