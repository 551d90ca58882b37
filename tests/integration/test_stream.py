"""What a follower of a run is given: everything once, in order, however he comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from dayjob import Dayjob, InputError, Run, job
from dayjob.errors import UnknownRun
from dayjob.runs import Status
from dayjob.stream import ActionRequired, Finished, Happening, Started, StatusChanged, Text
from tests.dictated import Dictated
from tests.until import until


@job
async def talk(run: Run) -> str:
    await run.step(lambda: 1, name="before")
    return (await run.model("hello")).text


@job
async def work(run: Run, steps: int) -> int:
    for _ in range(steps):
        await run.step(lambda: 1, name="one")
        await run.now()
    return steps


@job
async def asks(run: Run) -> str:
    return await run.ask("May I?", returns=str)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture
def model() -> Dictated:
    return Dictated()


@pytest.fixture
async def app(url: str, model: Dictated) -> AsyncIterator[Dayjob]:
    async with Dayjob(url, model=model) as app:
        yield app


async def take(app: Dayjob, run: str, count: int = -1, after: str | int = 0) -> list[Happening]:
    """The first happenings after a position, or all until the end."""
    found: list[Happening] = []
    async with aclosing(app.streams.follow(run, after)) as happenings, asyncio.timeout(20):
        async for happening in happenings:
            found.append(happening)
            if len(found) == count:
                break
    return found


def seqs(happenings: list[Happening]) -> list[int | None]:
    return [each.step.seq for each in happenings if isinstance(each, Finished)]


def said(happenings: list[Happening]) -> str:
    return "".join(each.text for each in happenings if isinstance(each, Text))


async def speaking(app: Dayjob, run: str, pieces: int = 0) -> None:
    await until(lambda: [s for s in app.events.speeches.get(run, {}).values() if len(s.pieces) >= pieces])


def durable(happenings: list[Happening]) -> list[Happening]:
    return [each for each in happenings if isinstance(each, Finished | ActionRequired | StatusChanged)]


async def test_a_follower_is_given_each_step_once_in_order_and_the_end(app: Dayjob) -> None:
    handle = await app.submit(work(steps=30))
    happenings = await take(app, handle.id)
    assert seqs(happenings) == list(range(1, 61))
    assert isinstance(happenings[-1], StatusChanged)
    assert happenings[-1].run.status == Status.COMPLETED


async def test_text_is_passed_on_as_it_is_said_without_a_read_of_the_store(
    app: Dayjob, model: Dictated
) -> None:
    handle = await app.submit(talk())
    await speaking(app, handle.id)
    async with aclosing(app.streams.follow(handle.id)) as happenings, asyncio.timeout(20):
        async for happening in happenings:
            if isinstance(happening, Started):
                break
        reads = 0
        since = app.store.since

        async def counted(*args: Any) -> Any:
            nonlocal reads
            reads += 1
            return await since(*args)

        app.store.since = counted
        for word in ("Hel", "lo", " you"):
            model.say(word)
            given = await anext(happenings)
            assert isinstance(given, Text)
            assert given.text == word
        assert reads == 0
        assert given.offset == 5
        model.say(None)
        step = await anext(happenings)
        assert isinstance(step, Finished)
        assert step.said == 9


async def test_who_comes_in_the_middle_is_given_what_was_said_so_far(app: Dayjob, model: Dictated) -> None:
    handle = await app.submit(talk())
    model.say("one ", "two ")
    await speaking(app, handle.id, pieces=2)
    happenings = await take(app, handle.id, 4)
    assert [type(each) for each in happenings] == [Finished, StatusChanged, Started, Text]
    assert said(happenings) == "one two "
    model.say("three", None)
    assert said(await take(app, handle.id, after=happenings[-1].position)) == "three"


@pytest.mark.parametrize("stop", range(1, 9))
async def test_who_comes_back_anywhere_misses_nothing_and_is_given_nothing_twice(
    app: Dayjob, model: Dictated, stop: int
) -> None:
    handle = await app.submit(talk())
    model.say("one ", "two ")
    await speaking(app, handle.id, pieces=2)
    first = await take(app, handle.id, 4) if stop >= 4 else await take(app, handle.id, stop)
    if stop > 4:
        model.say("three ")
        first += await take(app, handle.id, 1, first[-1].position)
    model.say(*["four"] * (stop > 5), None)
    second = await take(app, handle.id, after=first[-1].position)
    assert seqs([*first, *second]) == [1, 2]
    whole = "one two " + "three " * (stop > 4) + "four" * (stop > 5)
    final = next(each for each in second if isinstance(each, Finished) and each.step.kind == "model")
    if final.said is None:
        assert stop < 3  # the whole text stands in the row, and nothing of it was given
        assert said([*first, *second]) == ""
    else:
        assert said([*first, *second]) == whole
        assert final.said == len(whole)


async def test_what_is_said_again_by_another_claim_is_given_from_its_beginning(
    app: Dayjob, model: Dictated
) -> None:
    handle = await app.submit(talk())
    model.say("one ", "two ")
    await speaking(app, handle.id, pieces=2)
    last = (await take(app, handle.id, 4))[-1].position
    place, claim, length = last.rsplit("-", 2)
    other = f"{place}-{int(claim) + 1}-{length}"
    again, text = await take(app, handle.id, 2, other)
    assert isinstance(again, Started)
    assert again.again
    assert isinstance(text, Text)
    assert (text.text, text.offset) == ("one two ", 0)


async def test_an_action_and_a_status_are_told_once_to_who_comes_back(app: Dayjob) -> None:
    handle = await app.submit(asks())
    await until(app.actions)
    await until(lambda: _is(app, handle.id, Status.REQUIRES_ACTION))
    first = await take(app, handle.id, 2)
    assert [type(each) for each in first] == [ActionRequired, StatusChanged]
    following = asyncio.create_task(take(app, handle.id, after=first[-1].position))
    await until(lambda: len(app.streams))
    await app.answer(handle.id, "ask", "yes")
    second = durable(await following)
    assert ActionRequired not in map(type, second)
    assert seqs(second) == [1]
    assert durable(await take(app, handle.id, after=second[-1].position)) == []


async def _is(app: Dayjob, run: str, status: Status) -> bool:
    return (await app.get(run)).status == status


async def test_what_another_process_works_on_is_seen_too(url: str) -> None:
    async with Dayjob(url, worker=False) as reader, Dayjob(url) as worker:
        following = []
        for steps in (1, 40):
            handle = await worker.submit(work(steps=steps))
            following.append(asyncio.create_task(take(reader, handle.id)))
        short, long = await asyncio.gather(*following)
        assert seqs(short) == [1, 2]
        assert seqs(long) == list(range(1, 81))


async def test_many_followers_lose_nothing_and_leave_nothing_behind(app: Dayjob) -> None:
    handles = [await app.submit(work(steps=5)) for _ in range(20)]
    found = await asyncio.gather(*(take(app, handle.id) for handle in handles for _ in range(10)))
    assert all(seqs(happenings) == list(range(1, 11)) for happenings in found)
    assert len(app.streams) == 0
    assert not app.events.active
    assert app.events.speeches == {}


async def test_a_follower_that_goes_leaves_nothing_behind(app: Dayjob, model: Dictated) -> None:
    handle = await app.submit(talk())
    await speaking(app, handle.id)
    following = asyncio.create_task(take(app, handle.id))
    await until(lambda: len(app.streams))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert len(app.streams) == 0
    assert not app.events.active
    model.say(None)
    await handle.result(20)
    assert app.events.speeches == {}


@pytest.mark.parametrize("after", ["x", "-1", "1.nonsense", "1.queued.", "9" * 30, "1.queued.tzz-1-1", "٣"])
async def test_a_position_that_is_none_is_an_error(app: Dayjob, after: str) -> None:
    with pytest.raises(InputError, match="position"):
        await take(app, "run_x", after=after)


async def test_an_unknown_run_cannot_be_followed(app: Dayjob) -> None:
    with pytest.raises(UnknownRun):
        await take(app, "run_x")
    assert len(app.streams) == 0
