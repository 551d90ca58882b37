"""A job of many small steps, each of which writes its key into a ledger outside of Dayjob as it begins."""

import asyncio
import os
import time

from dayjob import Run, StepError, job

STEP_SECONDS = 0.004


def enter(key: str) -> None:
    """One line, on disk before this returns; several processes may write."""
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{os.getpid()} {key}\n".encode())
        os.fsync(file)
    finally:
        os.close(file)


def chore(key: str) -> str:
    enter(key)
    time.sleep(STEP_SECONDS)
    return key


async def errand(key: str) -> str:
    enter(key)
    await asyncio.sleep(STEP_SECONDS)
    return key


async def room(run: Run, name: str) -> list[str]:
    return [await run.step(chore, f"{name}:{n}") for n in range(4)]


async def two(run: Run, name: str) -> str:
    first = await run.step(errand, f"{name}:first")
    return first + await run.step(chore, f"{name}:second")


def shaky(key: str) -> str:
    enter(key)
    raise ValueError(key)


@job
async def garden(run: Run, name: str) -> list[str]:
    return [await run.step(errand, f"{name}:{n}") for n in range(5)]


@job
async def chores(run: Run, name: str = "chores") -> dict:
    began = [await run.step(chore, f"{name}:begin:{n}") for n in range(6)]
    rooms = await run.map(room, ["hall", "bath", "loft", "cellar"], key=str, limit=3)
    pair = await run.gather(lambda r: two(r, "left"), lambda r: two(r, "right"))
    child = await run.start(garden("garden"))
    nested = await run.step(room, "shed")
    try:
        await run.step(shaky, f"{name}:shaky")
    except StepError as problem:
        caught = str(problem)
    quick = await run.race(lambda r: r.sleep(30), lambda r: two(r, "race"))
    ended = [await run.step(errand, f"{name}:end:{n}") for n in range(6)]
    return {
        "began": began, "rooms": rooms, "pair": pair, "garden": await child.result(), "nested": nested,
        "caught": caught, "quick": quick, "ended": ended,
    }  # fmt: skip


@job
async def long_walk(run: Run, steps: int = 400) -> int:
    for n in range(steps):
        await run.step(errand, f"walk:{n}")
        run.progress(n + 1, steps)
    return steps
