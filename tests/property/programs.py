"""Random jobs as data, the one job that plays them, and a ledger that stands outside.

A program is a list of operations, plain tuples. Each has a label of its own, which is the name of its
step, so that the ledger, the journal and the program speak of the same thing. What a program returns
is certain: whatever time, chance and order decide is kept out of it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import orjson
from hypothesis import strategies as st

from dayjob import Dayjob, Run, StepError
from dayjob.collection import Err, Ok
from dayjob.errors import WrongStatus
from dayjob.jobs import Job, Request
from dayjob.models.scripted import Scripted
from dayjob.retry import Retry
from dayjob.runs import Kind, Outcome, StepRecord
from dayjob.testing import CrashLab, Death, Ended

Op = tuple[Any, ...]
SOON = 0.002
LATE = 10_000.0
LARGEST = 15
_jobs = itertools.count(1)


class Boom(Exception):
    pass


class World:
    """What stands outside of a run, and outlives its workers: the ledger, and who answers and sends."""

    def __init__(self, program: Sequence[Op], then: Sequence[Op] | None = None, failures: int = 0) -> None:
        self.name = f"program{next(_jobs)}"
        self.executed: list[str] = []
        self.before_death: Counter[str] = Counter()
        self.sent: set[tuple[str, str, int]] = set()
        self.jobs = self._jobs_of(program, "v1")
        self.then = self._jobs_of(then, "v2") if then is not None else []
        self.model = Scripted(self._reply, keep_requests=False)
        asking = any(op[0] in ("ask", "event") for op in walk([*program, *(then or ())]))
        self.needs_outside = asking or then is not None

    def _jobs_of(self, program: Sequence[Op], version: str) -> list[Job]:
        children = {op[1]: op[2] for op in walk(program) if op[0] == "child"}

        async def main(run: Run) -> list:
            return await Player(self, child).play(run, program)

        async def child_job(run: Run, label: str) -> list:
            return await Player(self, child).play(run, children[label])

        child = Job(child_job, f"{self.name}-child", version)
        return [Job(main, self.name, version), child]

    @property
    def request(self) -> Request:
        return self.jobs[0]()

    def die(self) -> None:
        self.before_death = Counter(self.executed)

    @property
    def after_death(self) -> Counter[str]:
        return Counter(self.executed) - self.before_death

    def _reply(self, request: Any) -> str:
        label = request.messages[-1]["content"]
        self.executed.append(label)
        return f"reply to {label}"

    # --- the bodies of steps ---------------------------------------------------------------------

    async def work(self, label: str, seen: Any = None) -> str:
        self.executed.append(label)
        for _ in range(len(label) % 3):
            await asyncio.sleep(0)
        return f"{label} done"

    def work_in_thread(self, label: str) -> str:
        self.executed.append(label)
        return f"{label} done"

    async def fail(self, label: str) -> str:
        self.executed.append(label)
        raise Boom(label)

    async def fail_at_first(self, label: str, failures: int) -> str:
        self.executed.append(label)
        if self.executed.count(label) <= failures:
            raise Boom(label)
        return f"{label} done"

    async def block(self, label: str) -> str:
        self.executed.append(label)
        await asyncio.get_running_loop().create_future()
        return "never"

    # --- who answers -----------------------------------------------------------------------------

    async def outside(self, app: Dayjob, run: str) -> bool:
        """Answers what the run and its children wait for, unless it is never to be answered."""
        acted = False
        family = [run, *(child.id for child in await app.runs(parent=run))]
        for id in family:
            for step in await app.store.open_steps(id, [Kind.ASK, Kind.EVENT]):
                if "never" in step.name:
                    continue
                if step.kind == Kind.EVENT and (id, step.key, step.attempt) not in self.sent:
                    self.sent.add((id, step.key, step.attempt))
                    with suppress(WrongStatus):  # newer code may have ended without it
                        await app.send(id, step.name, f"{step.name} sent")
                    acted = True
                elif step.kind == Kind.ASK:
                    value = "continue" if step.name == "#changed" else f"{step.name} answered"
                    acted |= await app.store.answer(id, step.key, orjson.dumps(value), None)
        return acted


async def played(lab: CrashLab, world: World, death: Death | tuple[Death, ...] = ()) -> Ended:
    outside = world.outside if world.needs_outside else None
    return await lab.run(
        world.request, jobs=world.jobs[1:], then=world.then, model=world.model, outside=outside, death=death,
        on_death=world.die,
    )  # fmt: skip


class Player:
    """The one job: plays a program in a scope."""

    def __init__(self, world: World, child: Job) -> None:
        self.world = world
        self.child = child

    async def play(self, run: Run, program: Iterable[Op]) -> list[Any]:
        return [await getattr(self, f"_{op[0]}")(run, *op[1:]) for op in program]

    def inside(self, program: Sequence[Op]) -> Any:
        async def branch(run: Run) -> list:
            return await self.play(run, program)

        return branch

    async def _step(self, run: Run, label: str) -> Any:
        return await run.step(self.world.work, label, name=label)

    async def _same_name(self, run: Run, label: str) -> Any:
        return await run.step(self.world.work, label)

    async def _thread(self, run: Run, label: str) -> Any:
        return await run.step(self.world.work_in_thread, label, name=label)

    async def _model(self, run: Run, label: str) -> Any:
        return (await run.model(label, name=label)).text

    async def _retry(self, run: Run, label: str, failures: int) -> Any:
        return await run.step(
            self.world.fail_at_first, label, failures, name=label, retry=Retry(attempts=failures + 1, delay=0)
        )

    async def _give_up(self, run: Run, label: str) -> Any:
        try:
            return await run.step(self.world.fail, label, name=label, retry=Retry(attempts=2, delay=0))
        except StepError as error:
            return error.type

    async def _raise(self, run: Run, label: str) -> Any:
        return await run.step(self.world.fail, label, name=label)

    async def _catch(self, run: Run, label: str, program: Sequence[Op]) -> Any:
        try:
            return await self.play(run, program)
        except StepError as error:
            return f"caught {error.type}"

    async def _scope(self, run: Run, label: str, program: Sequence[Op]) -> Any:
        return await run.step(self.inside(program), name=label)

    async def _gather(self, run: Run, label: str, programs: Sequence[Sequence[Op]]) -> Any:
        return await run.gather(*map(self.inside, programs), name=label)

    async def _map(
        self, run: Run, label: str, programs: Sequence[Sequence[Op]], named: bool, limit: int | None
    ) -> Any:
        async def one(inside: Run, index: int) -> list:
            return await self.play(inside, programs[index])

        key = (lambda index: f"item {index}/#") if named else None
        return await run.map(one, range(len(programs)), key=key, limit=limit, name=label)

    async def _collect(
        self,
        run: Run,
        label: str,
        programs: Sequence[Sequence[Op]],
        given: int,
        limit: int | None,
        heard: bool,
    ) -> Any:
        """Each branch adds two more while there are programs: one before its own, one behind it or once it is heard."""

        async def add(inside: Run, index: int) -> None:
            if index < len(programs):
                await inside.more(index)

        async def one(inside: Run, index: int) -> list:
            await add(inside, given + 2 * index)
            values = await self.play(inside, programs[index])
            if not heard:
                await add(inside, given + 2 * index + 1)
            return values

        async def after(inside: Run, outcome: Ok | Err) -> None:
            after = f"{label} after {outcome.item}"
            await inside.step(self.world.work, after, name=after)
            await add(inside, given + 2 * outcome.item + 1)

        items = range(min(given, len(programs)))
        how: Any = {"key": lambda index: f"item {index}/#", "after": after} if heard else {}
        outcomes = await run.collect(one, items, limit=limit, name=label, **how)
        told = [[one.item, one.value if isinstance(one, Ok) else one.error.type] for one in outcomes]
        return sorted(told, key=lambda one: one[0]) if heard else told

    async def _vote(
        self,
        run: Run,
        label: str,
        winners: Sequence[Sequence[Op]],
        losers: Sequence[Sequence[Op]],
        limit: int | None,
    ) -> Any:
        """The losers never end; the first of them is given, the others are added by the first winner."""
        programs = [*winners, *losers]

        async def one(inside: Run, index: int) -> list:
            for more in range(len(winners) + 1, len(programs)) if index == 0 else ():
                await inside.more(more)
            return await self.play(inside, programs[index])

        items = range(len(winners) + bool(losers))
        outcomes = await run.collect(one, items, limit=limit, quorum=len(winners), name=label)
        return [one.value if isinstance(one, Ok) else one.error.type for one in outcomes]

    async def _race(self, run: Run, label: str, winner: Sequence[Op], losers: Sequence[Sequence[Op]]) -> Any:
        return await run.race(*map(self.inside, (*losers, winner)), name=label)

    async def _all_fail(self, run: Run, label: str, programs: Sequence[Sequence[Op]]) -> Any:
        try:
            return await run.race(*map(self.inside, programs), name=label)
        except StepError as error:
            return f"all failed: {error.type}"

    async def _in_time(self, run: Run, label: str, program: Sequence[Op]) -> Any:
        async with asyncio.timeout(LATE):
            return await self.play(run, program)

    async def _too_late(self, run: Run, label: str, program: Sequence[Op]) -> Any:
        """The program ends in something that never comes."""
        try:
            async with asyncio.timeout(0.02):
                return await self.play(run, program)
        except TimeoutError:
            return "timed out"

    async def _durable_timeout(self, run: Run, label: str) -> Any:
        try:
            return await run.step(self.world.block, label, name=label, timeout=SOON)
        except StepError as error:
            return error.type

    async def _block(self, run: Run, label: str) -> Any:
        return await run.step(self.world.block, label, name=label)

    async def _sleep(self, run: Run, label: str, seconds: float) -> Any:
        return await run.sleep(seconds, name=label)

    async def _ask(self, run: Run, label: str) -> Any:
        return await run.ask(f"{label}?", name=label)

    async def _default(self, run: Run, label: str) -> Any:
        return await run.ask(f"{label}?", name=f"{label} never", timeout=SOON, default="default")

    async def _event(self, run: Run, label: str) -> Any:
        return await run.event(label)

    async def _child(self, run: Run, label: str, program: Sequence[Op]) -> Any:
        child = await run.start(self.child(label), name=label)
        try:
            return await child.result()
        except StepError as error:
            return error.type

    async def _values(self, run: Run, label: str) -> Any:
        """Their use in a step's input would be warned of, if they were others after a crash."""
        values = [await run.now(), await run.random(), await run.uuid()]
        return await run.step(self.world.work, label, values, name=label)

    async def _memory(self, run: Run, label: str) -> Any:
        await run.recall(f"{self.world.name} {label}", "nothing")
        await run.remember(f"{self.world.name} {label}", label)
        return await run.recall(f"{self.world.name} {label}")

    async def _note(self, run: Run, label: str) -> Any:
        await run.note(label)
        await run.partial(label)
        await run.verdict(True, 0.5, label)
        run.progress(1, 2)

    async def _defer(self, run: Run, label: str) -> Any:
        await run.defer(self.world.work, label)


# --- programs ---------------------------------------------------------------------------------------


def labelled(program: Sequence[Any], numbers: Iterator[int]) -> tuple[Op, ...]:
    """The program with a number in each label, so that each stands once."""
    return tuple(_labelled(op, numbers) for op in program)


def _labelled(op: Any, numbers: Iterator[int]) -> Any:
    kind, _, *rest = op
    label = f"{kind}{next(numbers)}"
    if kind in ("gather", "map", "collect", "all_fail"):
        return (kind, label, tuple(labelled(part, numbers) for part in rest[0]), *rest[1:])
    if kind == "vote":
        winners, losers = (tuple(labelled(part, numbers) for part in parts) for parts in rest[:2])
        return (kind, label, winners, losers, *rest[2:])
    if kind == "race":
        return (kind, label, labelled(rest[0], numbers), tuple(labelled(part, numbers) for part in rest[1]))
    if kind in ("catch", "scope", "in_time", "too_late", "child"):
        return (kind, label, labelled(rest[0], numbers))
    if kind == "sleep" and rest[0] == LATE:
        label += " never"
    return (kind, label, *rest)


def walk(program: Iterable[Op]) -> Iterator[Op]:
    """Every operation of a program."""
    for op in program:
        yield op
        for part in parts_of(op):
            yield from walk(part)


def parts_of(op: Op) -> list[Sequence[Op]]:
    kind, _, *rest = op
    if kind in ("gather", "map", "collect", "all_fail"):
        return list(rest[0])
    if kind == "vote":
        return [*rest[0], *rest[1]]
    if kind == "race":
        return [rest[0], *rest[1]]
    if kind in ("catch", "scope", "in_time", "too_late", "child"):
        return [rest[0]]
    return []


SIMPLE: list[Op] = [
    ("step", ""), ("step", ""), ("same_name", ""), ("thread", ""), ("model", ""), ("retry", "", 1),
    ("retry", "", 2), ("give_up", ""), ("values", ""), ("memory", ""), ("note", ""), ("defer", ""),
    ("sleep", "", 0.0), ("sleep", "", SOON), ("ask", ""), ("default", ""), ("event", ""), ("durable_timeout", ""),
]  # fmt: skip
NEVER: list[Op] = [("block", ""), ("sleep", "", LATE)]
RAISE: Op = ("raise", "")
QUICK = [op for op in SIMPLE if op[0] in ("step", "same_name", "model", "retry", "note", "values")]


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(st.lists(inner, max_size=2), min_size=1, max_size=3)
    short = st.lists(inner, max_size=3)
    quick = st.lists(st.sampled_from(QUICK), max_size=2)
    failing = quick.map(lambda ops: [*ops, RAISE])
    never = st.tuples(quick, st.sampled_from(NEVER)).map(lambda pair: [*pair[0], pair[1]])
    nevers = st.lists(never, min_size=1, max_size=2)
    growing = st.lists(st.one_of(st.lists(inner, max_size=2), failing), max_size=5)

    def op(kind: str, *parts: Any) -> st.SearchStrategy[Any]:
        return st.tuples(st.just(kind), st.just(""), *parts)

    return st.one_of(
        op("scope", short),
        op("gather", several),
        op("map", several, st.booleans(), st.sampled_from([None, 1, 2])),
        op("collect", growing, st.integers(1, 2), st.sampled_from([None, 1, 2]), st.booleans()),
        op("vote", several, st.lists(never, max_size=2), st.sampled_from([None, 1, 2])),
        op("race", short, st.lists(never, max_size=2)),
        op("race", short, st.just([[RAISE]])),
        op("all_fail", st.lists(failing, min_size=1, max_size=3)),
        op("catch", short.map(lambda ops: [*ops, RAISE])),
        op("catch", _cut_off(never, quick)),
        op("in_time", short),
        op("too_late", never),
        op("too_late", nevers.map(lambda parts: [("gather", "", parts)])),
        op("too_late", nevers.map(lambda parts: [("collect", "", parts, 1, None, True)])),
        op("too_late", never.map(lambda ops: [("scope", "", ops)])),
        op("child", short),
        op("child", failing),
    )


def _cut_off(never: st.SearchStrategy[Any], quick: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A gather of which one branch fails, while others go on for ever."""
    failing = quick.map(lambda ops: [*ops, RAISE])
    return st.tuples(failing, st.lists(never, max_size=2)).map(
        lambda parts: [("gather", "", [*parts[1], parts[0]])]
    )


operations = st.recursive(st.sampled_from(SIMPLE), _nested, max_leaves=4)
programs = (
    st.lists(operations, min_size=1, max_size=4)
    .map(lambda ops: labelled(ops, itertools.count(1)))
    .filter(lambda program: len(list(walk(program))) <= LARGEST)
)


# --- what the journal holds ---------------------------------------------------------------------------


def label_of(row: StepRecord) -> str | None:
    """The label of a step whose body the ledger counts."""
    if row.kind == Kind.MODEL:
        return row.name
    if row.kind == Kind.CALL:
        return str(orjson.loads(row.input or b"[]")[0])
    return None


def settled(rows: Sequence[StepRecord]) -> set[str]:
    """Labels of the steps that are over, so that their bodies must not run again."""
    over = (Outcome.VALUE, Outcome.ERROR, Outcome.CANCELLED)
    return {label for row in rows if row.outcome in over and (label := label_of(row))}


def tries(rows: Sequence[StepRecord]) -> Counter[str]:
    return Counter(label for row in rows if row.outcome is not None and (label := label_of(row)))
