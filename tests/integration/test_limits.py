"""Limits of a run and its children: what is spent never passes them, and what happens when they are reached."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from dayjob import Again, Dayjob, InputError, Limits, Retry, Run, RunFailed, RunIncomplete, StepError, job
from dayjob.errors import ModelRateLimited, ModelRefused, ModelUnavailable
from dayjob.limits import BILLION
from dayjob.models import ModelReply, ModelRequest, Usage
from dayjob.runs import Kind, Outcome, Status
from dayjob.testing import Clock, CrashLab, Death, Delay, Ended, Moment, Scripted
from tests.office import PatientOffice
from tests.until import until

executed: Counter[str] = Counter()
DAY = 86_400.0


@pytest.fixture(autouse=True)
def fresh_ledger() -> None:
    executed.clear()


@pytest.fixture
async def lab() -> AsyncIterator[CrashLab]:
    async with CrashLab(patience_seconds=60) as lab:
        yield lab


class Till:
    """A model that takes its price, in billionths of a dollar, when it is asked, whatever becomes of the answer."""

    name = "till"

    def __init__(self, seed: int, most_words: int = 40, faulty: bool = False) -> None:
        self.taken = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self._chance = random.Random(seed)
        self._most_words = most_words
        self._faulty = faulty

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        fate = self._chance.random() if self._faulty else 1.0
        if fate < 0.1:
            raise ModelRateLimited("slow down", retry_after=0.0)
        said = self._chance.randint(1, self._most_words)
        if request.max_tokens is not None:
            said = min(said, request.max_tokens)
        usage = Usage(len(orjson.dumps(request.messages)) // 4, said)
        price = self.price(request, usage)
        self.taken += round(price * BILLION)
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        await asyncio.sleep(self._chance.choice([0, 0, 0.001, 0.003]))
        if fate < 0.2:
            raise ModelUnavailable("broke off")
        return ModelReply("word " * said, usage=usage, dollars=price)

    def price(self, request: ModelRequest, usage: Usage) -> float:
        return (usage.input_tokens * 2_000 + usage.output_tokens * 110_003) / BILLION

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    async def close(self) -> None:
        pass


def question(number: int) -> str:
    return "Why? " * (1 + number % 7)


async def asks_model(run: Run, number: int) -> int:
    reply = await run.model(question(number), max_tokens=40, retry=at_once)
    return len(reply.text)


def at_once(attempt: int, error: StepError) -> Again | None:
    return Again() if error.retryable and attempt < 20 else None


@job
async def wide(run: Run, branches: int, calls: int) -> int:
    async def branch(inside: Run, number: int) -> int:
        return sum([await asks_model(inside, number + call) for call in range(calls)])

    await run.partial("begun")
    return sum(await run.map(branch, range(branches)))


@job
async def member(run: Run, number: int, calls: int) -> int:
    return sum([await asks_model(run, number + call) for call in range(calls)])


@job
async def family(run: Run, branches: int, calls: int) -> int:
    async def branch(inside: Run, number: int) -> int:
        child = await inside.start(member(number=number, calls=calls))
        first = await asks_model(inside, number)
        try:
            first += await child.result()
        except StepError as error:
            if error.type != "RunIncomplete":
                raise
        return first + await asks_model(inside, number)

    await run.partial("begun")
    return sum(await run.map(branch, range(branches)))


async def budget_of(lab: CrashLab, ended: Ended) -> Any:
    return await lab.store.budget(ended.run.home, ended.run.budget)


# --- never more than the limit -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("job", [wide, family], ids=lambda job: job.name)
async def test_fifty_branches_spend_most_of_a_dollar_and_never_more(
    lab: CrashLab, job: Any, seed: int
) -> None:
    till = Till(seed)
    ended = await lab.run(job(branches=50, calls=20), jobs=[member], model=till, limits=Limits(dollars=1.0))
    budget = await budget_of(lab, ended)
    assert ended.status == Status.INCOMPLETE
    assert ended.output == "begun"
    assert 0.8 * BILLION <= till.taken <= BILLION
    assert budget.spent["dollars"] == till.taken
    assert "limit of $1.00 reached" in (ended.run.reason or "")


@pytest.mark.parametrize("job", [wide, family], ids=lambda job: job.name)
async def test_calls_that_fail_are_counted_if_they_may_be_billed(lab: CrashLab, job: Any) -> None:
    till = Till(7, faulty=True)
    ended = await lab.run(job(branches=50, calls=20), jobs=[member], model=till, limits=Limits(dollars=1.0))
    budget = await budget_of(lab, ended)
    assert ended.status == Status.INCOMPLETE
    assert 0.5 * BILLION <= till.taken <= budget.spent["dollars"] <= BILLION


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("job", [wide, family], ids=lambda job: job.name)
async def test_workers_that_die_again_and_again_never_spend_more(
    lab: CrashLab, job: Any, moment: Moment
) -> None:
    chance = random.Random(moment)
    till = Till(11, faulty=True)
    deaths = [Death(chance.randint(200, 400), moment) for _ in range(5)]
    ended = await lab.run(
        job(branches=50, calls=20), jobs=[member], death=deaths, model=till, limits=Limits(dollars=1.0)
    )
    budget = await budget_of(lab, ended)
    assert ended.status == Status.INCOMPLETE
    assert till.taken <= budget.spent["dollars"] <= BILLION


async def test_a_death_at_any_write_never_spends_more_nor_holds_anything_back(lab: CrashLab) -> None:
    seed = 0
    crashed = 0
    for moment in Moment:
        for write in range(1, 100):
            seed += 1
            till = Till(seed)
            ended = await lab.run(
                family(branches=2, calls=1), jobs=[member], death=Death(write, moment), model=till,
                limits=Limits(dollars=0.02),
            )  # fmt: skip
            budget = await budget_of(lab, ended)
            assert till.taken <= budget.spent["dollars"] <= BILLION * 0.02
            assert ended.status in (Status.INCOMPLETE, Status.COMPLETED)
            if ended.death is None:
                break
            crashed += 1
    assert crashed > 40


@pytest.mark.parametrize("limit", ["tokens", "input_tokens", "output_tokens"])
async def test_tokens_are_limited_in_the_same_way(lab: CrashLab, limit: str) -> None:
    till = Till(5)
    ended = await lab.run(
        family(branches=20, calls=20), jobs=[member], model=till, limits=Limits(**{limit: 5_000})
    )
    budget = await budget_of(lab, ended)
    assert ended.status == Status.INCOMPLETE
    assert 4_000 <= getattr(till, limit) <= 5_000
    assert budget.spent[limit] == getattr(till, limit)
    assert f"limit of 5,000 {limit.replace('_', ' ')} reached" in (ended.run.reason or "")
    assert orjson.loads(ended.run.error or b"{}")["limit"] == limit


@pytest.mark.parametrize("limit", ["input_tokens", "output_tokens"])
async def test_a_death_at_any_write_never_takes_more_tokens(lab: CrashLab, limit: str) -> None:
    most = {"input_tokens": 1_500, "output_tokens": 100}[limit]
    crashed = 0
    for moment in Moment:
        for write in range(1, 100, 3):
            till = Till(write)
            ended = await lab.run(
                family(branches=2, calls=1), jobs=[member], death=Death(write, moment), model=till,
                limits=Limits(**{limit: most}),
            )  # fmt: skip
            budget = await budget_of(lab, ended)
            assert getattr(till, limit) <= budget.spent[limit] <= most
            assert budget.reserved[limit] == 0
            if ended.death is None:
                break
            crashed += 1
    assert crashed > 10


# --- what a call costs ----------------------------------------------------------------------------------


@job
async def one_after_the_other(run: Run, calls: int) -> list:
    finishes = []
    for number in range(calls):
        await run.partial(finishes)
        reply = await run.model(f"Question {number}?")
        finishes.append(reply.finish)
    return finishes


async def result_of(request: Any, model: Any, limits: Limits | None, **submit: Any) -> tuple[Any, dict, Any]:
    """The output or error of a run, its limits at the end, and its steps."""
    async with CrashLab() as lab, Dayjob(lab.store, model=model, **submit) as app:
        handle = await app.submit(request, limits=limits)
        try:
            output: Any = await handle.result(30)
        except (RunIncomplete, RunFailed) as error:
            output = error
        steps = await app.steps(handle.id)
        return (
            output,
            await app.limits(handle.id) or {},
            [(step, await app.request_of(step)) for step in steps],
        )


def by_the_token(usage: Usage) -> float:
    return usage.output_tokens / 1_000


async def test_a_call_without_max_tokens_gets_what_is_left_and_its_stored_request_says_so() -> None:
    model = Scripted(["four" * 100] * 20, price=by_the_token)  # a hundred tokens each
    error, limits, steps = await result_of(one_after_the_other(calls=20), model, Limits(dollars=0.95))
    assert [request.max_tokens for request in model.requests] == [
        950, 850, 750, 650, 550, 450, 350, 250, 150, 50,
    ]  # fmt: skip
    stored = [orjson.loads(request) for step, request in steps if step.kind == Kind.MODEL]
    assert [request["max_tokens"] for request in stored] == [r.max_tokens for r in model.requests]
    assert limits["dollars"] == {"limit": 0.95, "spent": 0.95, "reserved": 0.0}
    assert isinstance(error, RunIncomplete)
    assert error.partial == ["stop"] * 9 + ["length"]


async def test_a_call_without_max_tokens_gets_what_is_left_of_the_output_tokens() -> None:
    model = Scripted(["four" * 100] * 20)  # a hundred tokens each
    error, limits, _ = await result_of(one_after_the_other(calls=20), model, Limits(output_tokens=350))
    assert [request.max_tokens for request in model.requests] == [350, 250, 150, 50]
    assert limits["output_tokens"] == {"limit": 350, "spent": 350, "reserved": 0}
    assert isinstance(error, RunIncomplete)
    assert error.reason.startswith("limit of 350 output tokens reached: 350 spent")


async def test_a_limit_of_input_tokens_changes_no_request() -> None:
    model = Scripted(["Fine."] * 20)
    error, limits, _ = await result_of(one_after_the_other(calls=20), model, Limits(input_tokens=210))
    assert {request.max_tokens for request in model.requests} == {None}
    assert isinstance(error, RunIncomplete)
    assert error.reason.startswith("limit of 210 input tokens reached")
    assert 0 < limits["input_tokens"]["spent"] <= 210


async def test_a_run_without_limits_sends_what_was_written() -> None:
    model = Scripted(["Fine."], price=by_the_token)
    output, limits, _ = await result_of(one_after_the_other(calls=1), model, None)
    assert output == ["stop"]
    assert limits == {}
    assert model.requests[0].max_tokens is None


async def test_calls_without_max_tokens_side_by_side_wait_for_each_other_and_all_get_their_turn() -> None:
    @job
    async def side_by_side(run: Run) -> list:
        async def branch(inside: Run, number: int) -> str:
            return (await inside.model(f"{number}?")).finish

        return await run.map(branch, range(8))

    model = Scripted(["four" * 100] * 8, price=by_the_token)
    output, limits, _ = await result_of(side_by_side(), model, Limits(dollars=0.95))
    assert output == ["stop"] * 8
    assert limits["dollars"]["spent"] == 0.8


async def test_what_was_left_is_no_part_of_what_a_replay_compares(lab: CrashLab) -> None:
    async for ended in lab.at_every_write(
        one_after_the_other(calls=3), model=Scripted(lambda _: "four" * 100, price=by_the_token),
        limits=Limits(dollars=2.0),
    ):  # fmt: skip
        assert ended.status in (Status.COMPLETED, Status.INCOMPLETE)
        assert ended.warnings == []


async def test_an_endpoint_that_takes_fewer_tokens_is_given_fewer() -> None:
    def answer(request: ModelRequest) -> Any:
        assert request.max_tokens is not None
        if request.max_tokens > 16_384:
            raise ModelRefused("max_tokens is too large: this model supports at most 16384 completion tokens")
        return "Fine."

    model = Scripted(answer)
    output, _, _ = await result_of(one_after_the_other(calls=2), model, Limits(tokens=1_000_000))
    assert output == ["stop", "stop"]
    assert [r.max_tokens for r in model.requests] == [131_072, 65_536, 32_768, 16_384, 16_384]


async def test_more_tokens_than_an_endpoint_takes_are_refused_if_the_job_asked_for_them() -> None:
    @job
    async def greedy(run: Run) -> None:
        await run.model("Well?", max_tokens=50_000)

    model = Scripted([ModelRefused("max_tokens is too large")])
    error, _, _ = await result_of(greedy(), model, Limits(tokens=1_000_000))
    assert isinstance(error, RunFailed)
    assert "max_tokens is too large" in error.reason
    assert len(model.requests) == 1


async def test_a_model_of_unknown_price_is_refused_and_not_asked() -> None:
    model = Scripted(["Fine."], price=None)
    error, limits, _ = await result_of(one_after_the_other(calls=1), model, Limits(dollars=1.0))
    assert isinstance(error, RunFailed)
    assert "UnknownPrice: the price of 'scripted' is unknown" in error.reason
    assert model.requests == []
    assert limits["dollars"]["spent"] == 0


async def test_a_model_that_cannot_say_its_price_is_refused_too() -> None:
    class Bare:
        name = "bare"
        reply = close = None

    error, _, _ = await result_of(one_after_the_other(calls=1), Bare(), Limits(dollars=1.0))
    assert isinstance(error, RunFailed)
    assert "the price of 'bare' is unknown" in error.reason


async def test_a_model_that_costs_nothing_is_not_limited_by_dollars() -> None:
    model = Scripted(["Fine."] * 30, price=0.0)
    output, limits, _ = await result_of(one_after_the_other(calls=30), model, Limits(dollars=0.000001))
    assert output == ["stop"] * 30
    assert limits["dollars"]["spent"] == 0
    assert model.requests[0].max_tokens is None


@pytest.mark.parametrize(
    ("error", "spent"),
    [
        (ModelRefused("no such model"), 0.0),
        (ModelRateLimited("slow down"), 0.0),
        (ModelUnavailable("broke off"), 0.25),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_call_that_failed_is_charged_only_if_it_may_be_billed(error: Exception, spent: float) -> None:
    @job
    async def tries_once(run: Run) -> None:
        await run.model("Well?", max_tokens=10, retry=Retry(attempts=1))

    _, limits, _ = await result_of(tries_once(), Scripted([error], price=0.25), Limits(dollars=1.0))
    assert limits["dollars"] == {"limit": 1.0, "spent": spent, "reserved": 0.0}


async def test_the_call_of_a_lost_race_is_charged_in_full() -> None:
    @job
    async def races(run: Run) -> Any:
        async def ask(inside: Run, what: str) -> str:
            return (await inside.model(what, max_tokens=10)).text

        winner = await run.race(lambda r: ask(r, "slow"), lambda r: ask(r, "fast"))
        return [winner, run.limits]

    def answer(request: ModelRequest) -> Any:
        return Delay(600, "late") if request.messages[0]["content"] == "slow" else "first"

    output, limits, _ = await result_of(races(), Scripted(answer, price=0.25), Limits(dollars=1.0))
    assert output[0] == "first"
    assert limits["dollars"] == {"limit": 1.0, "spent": 0.5, "reserved": 0.0}


# --- steps and seconds ----------------------------------------------------------------------------------


async def work(name: str) -> str:
    executed[name] += 1
    return f"{name} done"


async def fails_twice(name: str) -> str:
    executed[name] += 1
    if executed[name] < 3:
        raise ValueError(name)
    return name


@job
async def works(run: Run, steps: int) -> int:
    await run.defer(work, "clean-up")
    for number in range(steps):
        await run.step(work, "step")
        await run.partial(number + 1)
        await run.now()
    return steps


@job
async def works_with_children(run: Run, children: int) -> list:
    ends = []
    for _ in range(children):
        child = await run.start(works(steps=3))
        try:
            ends.append(await child.result())
        except StepError as error:
            ends.append(f"{error.type}: {error.message}")
    await run.partial(ends)
    await run.step(work, "last")
    return ends


async def test_calls_models_and_retries_are_steps_and_nothing_else_is() -> None:
    @job
    async def mixed(run: Run) -> Any:
        await run.step(fails_twice, "flaky", retry=Retry(delay=0.0))
        await run.model("Well?")
        await run.note("a remark")
        await run.now()
        await run.gather(lambda r: r.step(work, "a"), lambda r: r.step(work, "b"))
        return run.limits.steps

    output, limits, _ = await result_of(mixed(), Scripted(["Yes."]), Limits(steps=10))
    assert output == 4
    assert limits["steps"] == {"limit": 10, "spent": 6, "reserved": 0}


async def test_at_the_limit_of_steps_the_run_ends_with_its_partial_output_and_cleans_up() -> None:
    error, _, _ = await result_of(works(steps=9), None, Limits(steps=4))
    assert isinstance(error, RunIncomplete)
    assert error.reason == "limit of 4 steps reached: 4 done"
    assert error.partial == 4
    assert executed == {"step": 4, "clean-up": 1}


async def test_side_by_side_no_more_steps_are_done_than_allowed_and_those_begun_are_finished() -> None:
    @job
    async def many(run: Run) -> None:
        await run.map(lambda r, name: r.step(work, name), [f"{n}" for n in range(30)])

    _, limits, steps = await result_of(many(), None, Limits(steps=20))
    done = [step for step, _ in steps if step.kind == Kind.CALL and step.outcome == Outcome.VALUE]
    assert len(done) == len(executed) == limits["steps"]["spent"] == 20


async def test_children_draw_on_the_budget_of_their_root(lab: CrashLab) -> None:
    ended = await lab.run(works_with_children(children=3), jobs=[works], limits=Limits(steps=7))
    assert ended.status == Status.INCOMPLETE
    assert ended.output[:2] == [3, 3]
    assert ended.output[2].startswith("RunIncomplete: child run_")
    assert ended.output[2].endswith("limit of 7 steps reached: 7 done")
    assert executed["step"] == 7 and "last" not in executed


async def test_the_stored_run_says_which_limit_was_reached_whatever_dies(lab: CrashLab) -> None:
    @job
    async def parent(run: Run) -> Any:
        return await (await run.start(works(steps=3))).result()

    async for ended in lab.at_every_write(works(steps=3), limits=Limits(steps=2)):
        error = orjson.loads(ended.run.error or b"{}")
        assert (error["type"], error["limit"], error["message"]) == (
            "LimitReached",
            "steps",
            ended.run.reason,
        )
    ended = await lab.run(parent(), jobs=[works], limits=Limits(steps=2))
    error = orjson.loads(ended.run.error or b"{}")
    assert (ended.status, error["type"], error["limit"]) == (Status.INCOMPLETE, "RunIncomplete", "steps")


async def test_a_step_done_again_after_a_crash_counts_again(lab: CrashLab) -> None:
    async for ended in lab.at_every_write(works(steps=3), limits=Limits(steps=100)):
        budget = await budget_of(lab, ended)
        assert ended.status == Status.COMPLETED
        assert 3 <= budget.spent["steps"] <= 4
        assert budget.reserved["steps"] == 0


async def test_a_run_whose_time_is_up_ends_in_the_middle_of_a_step() -> None:
    @job
    async def slow(run: Run) -> None:
        await run.partial("begun")
        await run.step(asyncio.sleep, 600)

    error, _, _ = await result_of(slow(), None, Limits(seconds=0.05))
    assert isinstance(error, RunIncomplete)
    assert error.reason.startswith("limit of 0.05 seconds reached")
    assert error.partial == "begun"


async def test_model_calls_are_made_while_there_is_time() -> None:
    output, limits, _ = await result_of(
        one_after_the_other(calls=2), Scripted(["Fine."] * 2), Limits(seconds=DAY)
    )
    assert output == ["stop", "stop"]
    assert limits["seconds"]["limit"] == DAY


@pytest.fixture
async def office(lab: CrashLab) -> AsyncIterator[PatientOffice]:
    clock = Clock()
    async with (
        Dayjob(f"{lab.store.url.partition('?')[0]}.office?synchronous=off", worker=False, clock=clock) as app,
        app.worker(lease_seconds=400 * DAY) as worker,
    ):
        yield PatientOffice(app, worker, clock)


@job
async def waits(run: Run) -> Any:
    await run.defer(work, "clean-up")
    await run.partial("waited")
    await run.ask("Well?")
    await run.step(work, "after")


@job
async def waits_for_child(run: Run) -> Any:
    return await (await run.start(waits())).result()


@pytest.mark.parametrize("job", [waits, waits_for_child], ids=lambda job: job.name)
async def test_waiting_counts_as_time_and_a_parked_run_ends_when_it_is_up(
    office: PatientOffice, job: Any
) -> None:
    await office.app._make_known(waits)
    handle = await office.app.submit(job(), limits=Limits(seconds=DAY))
    await office.parked(handle.id)
    for child in await office.app.runs(parent=handle.id):
        await office.parked(child.id)
    await office.pass_time(DAY - 1)
    await office.parked(handle.id)
    await office.pass_time(2)
    with pytest.raises(RunIncomplete, match="limit of 86400 seconds reached"):
        await handle.result(30)

    async def cleaned_up() -> bool:
        return executed["clean-up"] == 1

    await until(cleaned_up)
    assert executed["after"] == 0


# --- asking for more ------------------------------------------------------------------------------------


def gives(*answers: Any) -> Any:
    """The world around a run: answers each question for a higher limit with the next of these."""
    left = list(answers)

    async def outside(app: Dayjob, run: str) -> bool:
        for id in [run, *(child.id for child in await app.runs(parent=run))]:
            for action in await app.actions(id):
                if left:
                    await app.answer(id, action.id, left.pop(0))
                    return True
        return False

    return outside


ASK = Limits(steps=2, on_limit="ask")


async def test_a_person_gives_more_and_the_run_goes_on(lab: CrashLab) -> None:
    ended = await lab.run(works(steps=6), limits=ASK, outside=gives(4, 99))
    budget = await budget_of(lab, ended)
    assert ended.status == Status.COMPLETED
    assert (budget.most["steps"], budget.spent["steps"]) == (99, 6)
    asked = [step for step in ended.steps if step.kind == Kind.ASK]
    assert [(step.key, step.value) for step in asked] == [("#steps", b"4"), ("#steps#2", b"99")]
    assert orjson.loads(asked[0].input)["question"] == (
        "Limit of 2 steps reached: 2 done. Answer with a higher limit of steps, or stop."
    )


async def test_a_person_says_stop_and_the_run_ends(lab: CrashLab) -> None:
    ended = await lab.run(works(steps=6), limits=ASK, outside=gives(4, "stop"))
    assert ended.status == Status.INCOMPLETE
    assert ended.output == 4


async def test_an_answer_must_be_a_higher_limit_or_stop(office: PatientOffice) -> None:
    handle = await office.app.submit(works(steps=6), limits=ASK)
    await office.parked(handle.id)
    assert await handle.status() == Status.REQUIRES_ACTION
    for answer in (2, 1.5, True, "more", None):
        with pytest.raises(InputError, match="#steps"):
            await office.app.answer(handle.id, "#steps", answer)
    await office.app.answer(handle.id, "#steps", 100)
    assert await handle.result(30) == 6


async def test_more_is_given_once_whatever_dies(lab: CrashLab) -> None:
    def questions() -> Any:
        return gives(*[8] * 9)

    for moment in Moment:
        for write in range(1, 100):
            ended = await lab.run(works(steps=4), limits=ASK, outside=questions(), death=Death(write, moment))
            budget = await budget_of(lab, ended)
            assert ended.status == Status.COMPLETED
            assert (budget.most["steps"], budget.reserved["steps"]) == (8, 0)
            if ended.death is None:
                break
    assert lab.deaths > 20


async def test_branches_ask_once(lab: CrashLab) -> None:
    @job
    async def branches(run: Run) -> list:
        return await run.map(lambda r, name: r.step(work, name), ["a", "b", "c", "d", "e", "f"])

    ended = await lab.run(branches(), limits=ASK, outside=gives(50))
    assert ended.status == Status.COMPLETED
    assert sum(executed.values()) == 6


async def test_one_answer_is_for_the_whole_family(lab: CrashLab) -> None:
    @job
    async def parent(run: Run) -> int:
        children = [await run.start(works(steps=3)) for _ in range(4)]
        return sum([await child.result() for child in children])

    ended = await lab.run(parent(), jobs=[works], limits=ASK, outside=gives(50))
    assert ended.status == Status.COMPLETED
    assert ended.output == 12


async def test_dollars_are_asked_for_and_raised(lab: CrashLab) -> None:
    ended = await lab.run(
        one_after_the_other(calls=4), model=Scripted(["Fine."] * 4, price=0.3),
        limits=Limits(dollars=0.5, on_limit="ask"), outside=gives(1.25),
    )  # fmt: skip
    budget = await budget_of(lab, ended)
    assert ended.status == Status.COMPLETED
    assert budget.spent["dollars"] <= budget.most["dollars"] == 1.25 * BILLION


async def test_output_tokens_are_asked_for_and_raised(lab: CrashLab) -> None:
    ended = await lab.run(
        one_after_the_other(calls=4), model=Scripted(["four" * 100] * 4),
        limits=Limits(output_tokens=200, on_limit="ask"), outside=gives(900),
    )  # fmt: skip
    asked = [step for step in ended.steps if step.kind == Kind.ASK]
    assert ended.status == Status.COMPLETED
    assert [(step.key, step.value) for step in asked] == [("#output_tokens", b"900")]
    assert "a higher limit of output tokens, or stop" in orjson.loads(asked[0].input)["question"]


async def test_time_is_asked_for_at_the_next_step(office: PatientOffice) -> None:
    handle = await office.app.submit(waits(), limits=Limits(seconds=DAY, on_limit="ask"))
    await office.parked(handle.id)
    await office.pass_time(2 * DAY)
    await office.parked(handle.id)
    await office.app.answer(handle.id, "ask", "Go on.")

    async def asked() -> bool:
        return [action.id for action in await office.app.actions(handle.id)] == ["#seconds"]

    await until(asked)
    assert executed["after"] == 0
    await office.app.answer(handle.id, "#seconds", 3 * DAY)
    await handle.result(30)
    assert executed["after"] == 1


# --- the rest -------------------------------------------------------------------------------------------


async def test_a_run_that_goes_on_as_another_goes_on_with_what_is_left(lab: CrashLab) -> None:
    @job
    async def endless(run: Run, n: int) -> None:
        await run.step(work, "turn")
        await run.partial(n)
        await run.continue_as(endless(n=n + 1))

    ended = await lab.run(endless(n=1), limits=Limits(steps=3), thread="thread_1")
    assert ended.status == Status.INCOMPLETE
    assert executed["turn"] == 3


async def test_limits_are_given_as_limits() -> None:
    with pytest.raises(InputError, match="limits: expected Limits"):
        await result_of(works(steps=1), None, {"steps": 3})  # type: ignore[arg-type]


async def test_an_event_says_which_limit_was_reached() -> None:
    seen: list[dict[str, Any]] = []
    async with CrashLab() as lab, Dayjob(lab.store) as app:
        app.subscribe(lambda name, fields: seen.append(fields) if name == "run.limit" else None)
        handle = await app.submit(works(steps=3), limits=Limits(steps=1))
        with pytest.raises(RunIncomplete):
            await handle.result(30)
    assert seen == [{"run": handle.id, "limit": "steps", "allowed": 1, "spent": 1, "on_limit": "stop"}]
