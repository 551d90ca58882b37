"""Orchestrator and workers: the plan is data, and changes while it is worked through only by valid edits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import orjson
import pytest

from dayjob import Dayjob, Limits, Run, StepError, job
from dayjob.jobs import Job
from dayjob.models import ModelRequest
from dayjob.patterns import Assignment, orchestrate
from dayjob.plans import Task
from dayjob.runs import Kind, Outcome, Status
from dayjob.testing import CrashLab, Death, Moment, Scripted
from tests.ledger import after_death, everywhere, executed, work
from tests.until import until


def task(id: str, *needs: str, worker: str = "read") -> dict[str, Any]:
    return {"id": id, "goal": f"do {id}", "worker": worker, "needs": list(needs)}


def planner(plan: list[Any], edits: dict[str, list[Any]] | None = None, stalled: Any = ()) -> Scripted:
    """Plans so, edits so after the task of that name, and when it is stalled, and sums up by listing the results."""

    def reply(request: ModelRequest) -> Any:
        asked = next(m["content"] for m in request.messages if m["role"] == "user")
        corrected = len(request.messages) > 1
        if asked.startswith("Make a plan"):
            return plan[1 if corrected else 0] if isinstance(plan[0], list) else plan
        if asked.startswith("Write the answer"):
            return asked.partition("Results:\n")[2]
        if "No task can begin" in asked:
            return list(stalled)
        over = re.match(r"Task '(\w+)' is over", asked)
        return (edits or {}).get(over[1], []) if over else "?"

    return Scripted(reply)


async def read(run: Run, assignment: Assignment) -> str:
    """Reads."""
    seen = ", ".join(f"{name}={value}" for name, value in sorted(assignment.inputs.items()))
    return await run.step(work, f"{assignment.id}({seen})")


async def breaks(run: Run, assignment: Assignment) -> str:
    raise ValueError(f"no {assignment.id}")


@job
async def reading(run: Run, assignment: Assignment) -> str:
    return await run.step(work, f"child {assignment.id}")


@job
async def answers(run: Run, approve: bool = False, replan: bool = True, max_tasks: int = 6) -> str:
    workers: Any = {"read": read, "break": ("Breaks", breaks), "child": ("A job", reading)}
    return await orchestrate(
        run, "a good answer", workers, approve=approve, replan=replan, max_tasks=max_tasks
    )


PLAN = [task("a"), task("b"), task("c", "a", "b")]
ANSWER = "a: a() done\n\nb: b() done\n\nc: c(a=a() done, b=b() done) done"


def keys(ended: Any, name: str) -> list[str]:
    return [step.key for step in ended.steps if step.name == name]


def notes(ended: Any) -> list[dict[str, Any]]:
    return [orjson.loads(step.value) for step in ended.steps if step.name == "note"]


async def test_ready_tasks_run_and_their_results_reach_those_that_need_them(lab: CrashLab) -> None:
    model = planner(PLAN)
    ended = await lab.run(answers(), model=model)
    assert ended.output == ANSWER
    assert len(keys(ended, "edit plan")) == 3
    assert "- read: Reads." in model.requests[0].messages[0]["content"]
    assert notes(ended)[0]["data"]["plan"][2]["needs"] == ["a", "b"]


async def test_without_replanning_it_costs_two_calls(lab: CrashLab) -> None:
    model = planner(PLAN)
    assert (await lab.run(answers(replan=False), model=model)).output == ANSWER
    assert len(model.requests) == 2


EDITS = {
    "a": [
        {"edit": "add", "task": task("d", "a")},
        {"edit": "split", "id": "c", "into": [task("c1", "a"), task("c2", "c1", worker="child")]},
    ],
    "d": [{"edit": "add", "task": task("e")}, {"edit": "drop", "id": "e"}],
}


async def test_the_model_edits_the_plan_while_it_runs(lab: CrashLab) -> None:
    ended = await lab.run(answers(), model=planner(PLAN, EDITS), jobs=[reading])
    assert ended.status == Status.COMPLETED, ended.run.reason
    assert "c2: child c2 done" in ended.output
    assert "d: d(a=a() done) done" in ended.output
    assert "c(" not in ended.output
    change = next(note for note in notes(ended) if "edits" in note["data"])
    assert change["text"].splitlines() == [
        "- c [read, needs a, b]: do c",
        "+ c1 [read, needs a]: do c1",
        "+ c2 [child, needs c1]: do c2",
        "+ d [read, needs a]: do d",
    ]
    assert [edit["edit"] for edit in change["data"]["edits"]] == ["add", "split"]


async def test_what_is_ready_begins_while_others_still_run(lab: CrashLab) -> None:
    @job
    async def slow_and_fast(run: Run) -> str:
        async def waits(run: Run, assignment: Assignment) -> str:
            return await run.event("go")

        return await orchestrate(run, "x", {"read": read, "wait": waits}, replan=False)

    plan = [task("slow", worker="wait"), task("fast"), task("next", "fast")]
    async with Dayjob(lab.store, model=planner(plan)) as app:
        handle = await app.submit(slow_and_fast())
        await until(lambda: executed["next(fast=fast() done)"])
        await app.send(handle.id, "go", "went")
        assert "slow: went" in await handle.result(15)


async def test_a_stalled_plan_is_edited_or_else_has_a_reason(lab: CrashLab) -> None:
    plan = [task("a", worker="break"), task("b"), task("c", "a")]
    replace = [{"edit": "add", "task": task("a2")}, {"edit": "reorder", "id": "c", "needs": ["a2"]}]
    for replan in (True, False):
        ended = await lab.run(answers(replan=replan), model=planner(plan, stalled=replace))
        assert "a: It failed: ValueError: no a" in ended.output
        assert "c: c(a2=a2() done) done" in ended.output
    stuck = await lab.run(answers(replan=False), model=planner(plan))
    assert stuck.error == "InvalidPlan"
    assert "No task can begin" in (stuck.run.reason or "")
    assert stuck.output == {"a": "It failed: ValueError: no a", "b": "b() done"}


async def test_an_edit_that_stalls_the_plan_goes_back_to_the_model(lab: CrashLab) -> None:
    plan = [task("a", worker="break"), task("b"), task("c", "b"), task("d", "c")]
    model = planner(plan, {"c": [{"edit": "reorder", "id": "d", "needs": ["a"]}]})
    ended = await lab.run(answers(), model=model)
    assert ended.error == "InvalidPlan", ended.output
    assert "No task can begin" in (ended.run.reason or "")


async def test_when_all_tasks_fail_it_says_so(lab: CrashLab) -> None:
    ended = await lab.run(answers(), model=planner([task("a", worker="break")]))
    assert ended.error == "NothingDone"
    assert ended.output == {"a": "It failed: ValueError: no a"}


# --- bad input ------------------------------------------------------------------------------------------

CYCLE = [task("a", "b"), task("b", "a")]


async def test_a_plan_with_a_cycle_goes_back_to_the_model(lab: CrashLab) -> None:
    model = planner([CYCLE, PLAN])
    ended = await lab.run(answers(replan=False), model=model)
    assert ended.output == ANSWER
    assert "the plan has a cycle: a → b → a" in model.requests[1].messages[-1]["content"]


async def test_a_plan_that_stays_wrong_has_a_reason(lab: CrashLab) -> None:
    model = planner([CYCLE, CYCLE])
    ended = await lab.run(answers(), model=model)
    assert ended.error == "InvalidPlan"
    assert "cycle" in (ended.run.reason or "")
    assert len(model.requests) == 3


@pytest.mark.parametrize(
    "edit",
    [
        {"edit": "drop", "id": "a"},
        {"edit": "reorder", "id": "c", "needs": ["c"]},
        {"edit": "explode", "id": "c"},
        {"edit": "split", "id": "c", "into": [task(f"c{n}") for n in range(9)]},
    ],
    ids=lambda edit: edit["edit"],
)
async def test_an_invalid_edit_ends_it_with_a_reason_and_the_results_so_far(
    lab: CrashLab, edit: dict[str, Any]
) -> None:
    model = planner(PLAN, {"a": [edit]})
    ended = await lab.run(answers(), model=model)
    assert ended.status == Status.FAILED
    assert ended.error == "InvalidPlan"
    assert ended.output["a"] == "a() done"
    tries = [step for step in ended.steps if step.key == "tasks/#after/edit plan"]
    assert len(tries) == 3
    assert [step.outcome for step in tries][:2] == [Outcome.SUPERSEDED] * 2


# --- crash, approval, cancel, limit -----------------------------------------------------------------------


def says(answer: bool) -> Callable[..., Any]:
    async def outside(app: Dayjob, run: str) -> bool:
        actions = await app.actions(run)
        for action in actions:
            await app.answer(run, action.id, answer)
        return bool(actions)

    return outside


async def test_a_person_sees_the_plan_before_any_work(lab: CrashLab) -> None:
    refused = await lab.run(answers(approve=True), model=planner(PLAN), outside=says(False))
    assert refused.error == "Rejected"
    assert not executed
    asked = next(step for step in refused.steps if step.kind == Kind.ASK)
    assert "- c [read, needs a, b]: do c – waiting" in orjson.loads(asked.input)["question"]
    granted = await lab.run(answers(approve=True), model=planner(PLAN), outside=says(True))
    assert granted.output == ANSWER


async def test_a_crash_anywhere_changes_nothing(lab: CrashLab) -> None:
    model, jobs = planner(PLAN, EDITS), [reading]
    calm = await lab.run(answers(approve=True), model=model, jobs=jobs, outside=says(True))
    for crashed in await everywhere(
        lab, answers(approve=True), model=model, jobs=jobs, outside=says(True), moments=[Moment.LOST]
    ):
        assert crashed.status == Status.COMPLETED, (crashed.death, crashed.run.reason)
        assert sorted(crashed.output.split("\n\n")) == sorted(calm.output.split("\n\n"))
        assert not crashed.warnings, (crashed.death, crashed.warnings)


async def test_whether_a_plan_needs_approval_is_found_out_once(lab: CrashLab) -> None:
    seen: list[list[str]] = []

    def is_long(plan: Sequence[Task]) -> bool:
        seen.append([task.id for task in plan])
        return len(seen) > 1  # as by a setting that is changed meanwhile

    @job
    async def asks_if_long(run: Run) -> str:
        return await orchestrate(run, "x", {"read": read}, approve=is_long, replan=False)

    ended = await lab.run(asks_if_long(), model=planner([task("a")]), death=Death(8))
    assert ended.death is not None
    assert ended.output == "a: a() done"
    assert seen == [["a"]]


HARD = [task("a", worker="break"), task("b"), task("c", "a"), task("d", "b")]
HARD_EDITS = {
    "b": [{"edit": "split", "id": "d", "into": [task("d1", "b"), task("d2", "d1", worker="child")]}],
    "d1": [{"edit": "add", "task": task("e", "d1", worker="break")}],
}
AFTER_STALL = [{"edit": "add", "task": task("a2")}, {"edit": "reorder", "id": "c", "needs": ["a2", "b"]}]
HARD_ANSWER = [
    "a2: a2() done", "a: It failed: ValueError: no a", "b: b() done", "c: c(a2=a2() done, b=b() done) done",
    "d1: d1(b=b() done) done", "d2: child d2 done", "e: It failed: ValueError: no e",
]  # fmt: skip


def hard() -> Scripted:
    """Answers to a plan of which tasks fail, are split and added, and which is stalled in the end."""
    return planner(HARD, HARD_EDITS, AFTER_STALL)


async def test_edits_failures_and_a_stall_stand_whatever_dies(lab: CrashLab) -> None:
    request, jobs = answers(max_tasks=8), [reading]
    calm = await lab.run(request, model=hard(), jobs=jobs)
    assert sorted(calm.output.split("\n\n")) == HARD_ANSWER
    for write, moment in zip(range(1, calm.writes + 1), cycle(Moment)):
        crashed, again = await after_death(lab, request, Death(write, moment), model=hard(), jobs=jobs)
        assert crashed.status == Status.COMPLETED, (write, crashed.run.reason)
        assert sorted(crashed.output.split("\n\n")) == HARD_ANSWER, write
        assert not crashed.warnings, (write, crashed.warnings)
        done = {orjson.loads(step.input)[0] for step in crashed.durable if step.kind == Kind.CALL}
        assert not done & set(again), write
        rows = [step.key for step in crashed.steps if step.outcome != Outcome.SUPERSEDED]
        assert sorted(rows) == sorted(step.key for step in calm.steps), write


async def test_newer_code_keeps_what_was_planned_edited_and_done(lab: CrashLab) -> None:
    old, new = (Job(answers.fn, "answers", version) for version in ("1", "2"))
    writes = (await lab.run(old(max_tasks=8), model=hard(), jobs=[reading])).writes
    for write in range(3, writes, 3):
        crashed, again = await after_death(
            lab, old(max_tasks=8), Death(write), model=hard(), jobs=[reading], then=[new, reading]
        )
        assert crashed.status == Status.COMPLETED, (write, crashed.run.reason)
        assert sorted(crashed.output.split("\n\n")) == HARD_ANSWER, write
        done = {orjson.loads(step.input)[0] for step in crashed.durable if step.kind == Kind.CALL}
        assert not done & set(again), write
        known = {(step.key, step.attempt) for step in crashed.durable if step.kind == Kind.MODEL}
        kept = {(step.key, step.attempt) for step in crashed.steps if step.outcome == Outcome.VALUE}
        assert known <= kept, write


async def test_no_finished_task_or_edit_is_done_again(lab: CrashLab) -> None:
    for write in range(8, 30, 3):
        executed.clear()
        model = planner(PLAN, EDITS)
        crashed = await lab.run(answers(), model=model, jobs=[reading], death=Death(write))
        lost = len(model.requests) - len([s for s in crashed.steps if s.kind == Kind.MODEL])
        assert 0 <= lost <= 2, crashed.death


async def test_a_limit_keeps_the_results_so_far(lab: CrashLab) -> None:
    ended = await lab.run(answers(replan=False), model=planner(PLAN), limits=Limits(steps=3))
    assert ended.status == Status.INCOMPLETE
    assert ended.output == {"a": "a() done", "b": "b() done"}


async def test_a_cancelled_run_stops_its_workers(lab: CrashLab) -> None:
    @job
    async def waits_long(run: Run) -> str:
        return await orchestrate(run, "x", {"read": lambda run, assignment: run.ask("Well?")})

    async with Dayjob(lab.store, model=planner([task("a"), task("b")])) as app:
        handle = await app.submit(waits_long())

        async def both_wait() -> bool:
            return len(await app.actions(handle.id)) == 2

        await until(both_wait)
        await handle.cancel()

        async def is_over() -> bool:
            return await handle.status() == Status.CANCELLED

        await until(is_over)


async def test_the_job_may_catch_what_went_wrong(lab: CrashLab) -> None:
    @job
    async def catches(run: Run) -> str:
        try:
            return await orchestrate(run, "x", {"read": read})
        except StepError as error:
            return error.type

    assert (await lab.run(catches(), model=planner([CYCLE, CYCLE]))).output == "InvalidPlan"
