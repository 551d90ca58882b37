"""Small jobs, one for each way that a run can end, and for each mistake that a job can make."""

import asyncio
from contextlib import suppress
from datetime import date

from pydantic import BaseModel

from dayjob import Call, Run, job


class Person(BaseModel):
    name: str
    age: int = 3


class Color(BaseModel):
    red: int
    green: int


def double(x: int) -> int:
    return 2 * x


def no_luck() -> int:
    raise ValueError("no luck today")


def forget(call: Call, result: int) -> None: ...


@job
async def echo(
    run: Run, n: int, person: Person | None = None, tags: list[str] | None = None, day: date | None = None,
    text: str = "a", anything: object = None,
) -> dict:  # fmt: skip
    twice = await run.step(double, n)
    return {
        "twice": twice, "person": person and person.name, "tags": tags, "day": day and day.isoformat(),
        "text": text, "anything": anything,
    }  # fmt: skip


@job
async def fails(run: Run) -> int:
    await run.step(double, 3)
    return await run.step(no_luck)


@job
async def regrets(run: Run) -> int:
    await run.step(double, 3, undo=forget)
    return await run.step(no_luck)


@job
async def interview(run: Run) -> str:
    name = await run.ask("What is your name?", name="name")
    age = await run.ask("How old are you?", returns=int, name="age")
    hired = await run.ask("Hire?", returns=bool, name="hire")
    return f"{name}, {age}, {'hired' if hired else 'not hired'}"


@job
async def hurried(run: Run) -> str:
    return await run.ask("Quick?", timeout=0.01)


@job
async def listens(run: Run) -> str:
    return await run.event("go", returns=str)


@job
async def parent(run: Run) -> str:
    child = await run.start(interview())
    return await child.result()


@job
async def slow(run: Run) -> int:
    for n in range(600):
        await run.step(tick, n)
    return 600


async def tick(n: int) -> int:
    await asyncio.sleep(0.1)
    return n


@job
async def stubborn(run: Run) -> int:
    await run.step(double, 3)
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(100)


@job
async def says(run: Run) -> str:
    return (await run.model("Say hello.")).text


@job
async def paints(run: Run) -> int:
    return (await run.model("Name a color.", returns=Color)).value.red


@job
async def no_json(run: Run) -> int:
    return await run.step(lambda: {1, 2}, name="pair")


@job
async def too_large(run: Run) -> int:
    return await run.step(lambda: "word " * 10_000_000, name="novel")
