"""Orchestrator and workers: master–worker, with a model that writes the plan, and edits it as results come in.

await orchestrate(run, "Compare the two licences", {
    "reader": ("Reads one licence and lists its conditions", read), "writer": ("Writes", write)}, approve=True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dayjob import plans
from dayjob.collection import Err, Ok
from dayjob.delegate import delegate
from dayjob.errors import InputError, StepError
from dayjob.jobs import Job
from dayjob.plans import Assignment, Edit, Task
from dayjob.run import Run
from dayjob.values import as_text, checked

Worker = Job | Callable[[Run, Assignment], Any]

PLAN = """Make a plan for this goal: tasks, each for one worker. `needs` names the tasks whose results a task \
needs; tasks that need nothing of each other are done side by side. `done_when` says how to tell that it is done.

Goal: {goal}

Workers:
{workers}"""

EDIT = """{news}

Goal: {goal}

Workers:
{workers}

Plan:
{plan}

If the plan still fits, answer with no edits. Otherwise edit tasks that have not begun: add, drop, reassign (another \
worker), reorder (other needs), split (several tasks in the place of one)."""

STALLED = "No task can begin: each of those left needs one that failed."

APPROVE = "Goal: {goal}\n\nPlan:\n{plan}\n\nShall the work begin?"

SYNTHESIS = """Write the answer to this goal from the results.

Goal: {goal}

Results:
{results}"""


async def orchestrate(
    run: Run,
    goal: str,
    workers: Mapping[str, Worker | tuple[str, Worker]],
    *,
    approve: bool | Callable[[Sequence[Task]], bool] = False,
    replan: bool = True,
    limit: int | None = None,
    max_tasks: int = 20,
    **options: Any,
) -> str:
    """The answer to a goal: a model plans, workers do the tasks as they become ready, a model sums up.

    A worker is a function `(run, assignment)` or a job that takes an assignment, perhaps with a description.
    After each result, and when no task can begin, the model may edit what has not begun (`plans.Edit`); with
    `replan=False` only then. Each change is a note with its diff. With `approve`, a person sees the plan first.
    A plan or an edit that is not valid goes back to the model; if that does not help, StepError of type
    InvalidPlan is raised, or Rejected by the person, or NothingDone when all tasks failed. The results so far
    are the run's partial output. `options` go to `run.model`.
    """
    described = "\n".join(f"- {name}: {_description(worker)}" for name, worker in workers.items())
    plan: list[Task] = await _planned(
        run, PLAN.format(goal=goal, workers=described), list[Task],
        lambda tasks: plans.check(tasks, workers, max_tasks), "plan", options,
    )  # fmt: skip
    await run.note(_shown(plan), plan=[asdict(task) for task in plan])
    asked = approve(plan) if callable(approve) else approve
    question = APPROVE.format(goal=goal, plan=_shown(plan))
    if asked and not await run.ask(question, returns=bool, name="approve plan"):
        raise StepError("Rejected", "a person rejected the plan")

    outcomes: dict[str, Ok | Err] = {}
    begun: set[str] = set()

    def assigned() -> list[Assignment]:
        """The tasks that can begin, now that these are done."""
        results = {id: done.value for id, done in outcomes.items() if isinstance(done, Ok)}
        able = plans.ready(plan, begun, results)
        begun.update(task.id for task in able)
        return [
            Assignment(**vars(task), inputs={need: results[need] for need in task.needs}) for task in able
        ]

    async def work(run: Run, task: Assignment) -> Any:
        worker = workers[task.worker]
        return await delegate(run, worker[1] if isinstance(worker, tuple) else worker, task, name=task.worker)

    async def after(run: Run, outcome: Ok | Err) -> None:
        outcomes[outcome.item.id] = outcome
        await run.partial({id: _told(done) for id, done in outcomes.items()})
        if replan:
            await edit(run, f"Task {outcome.item.id!r} is over. {_told(outcome)}")
        if len(begun) == len(outcomes) < len(plan) and not plans.ready(plan, begun, _succeeded(outcomes)):
            await edit(run, STALLED)
        for task in assigned():
            await run.more(task)

    async def edit(run: Run, news: str) -> None:
        def changed(edits: list[Edit]) -> list[Task]:
            tasks = plans.edited(plan, edits, begun, workers, max_tasks)
            able = plans.ready(tasks, begun, _succeeded(outcomes))
            if news == STALLED and len(tasks) > len(begun) and not able:
                raise InputError(STALLED)
            return tasks

        prompt = EDIT.format(news=news, goal=goal, workers=described, plan=_shown(plan, begun, outcomes))
        edits = await _planned(run, prompt, list[Edit], changed, "edit plan", options)
        before, plan[:] = list(plan), changed(edits)
        if edits:
            await run.note(plans.diff(before, plan), edits=[asdict(edit) for edit in edits])

    ended = await run.collect(
        work, assigned(), key=lambda task: task.id, limit=limit, after=after, name="tasks"
    )
    results = "\n\n".join(f"{outcome.item.id}: {_told(outcome)}" for outcome in ended)
    if not any(isinstance(outcome, Ok) for outcome in ended):
        raise StepError("NothingDone", results)
    prompt = SYNTHESIS.format(goal=goal, results=results)
    return (await run.model(prompt, name="synthesis", **options)).text


async def _planned(
    run: Run, prompt: str, wanted: Any, check: Callable[[Any], object], name: str, options: dict[str, Any]
) -> Any:
    try:
        return (await run.model(prompt, returns=checked(wanted, check), name=name, **options)).value
    except StepError as error:
        if error.type != "InvalidAnswer":
            raise
        raise StepError("InvalidPlan", error.message, step=error.step) from None


def _description(worker: Worker | tuple[str, Worker]) -> str:
    return worker[0] if isinstance(worker, tuple) else (worker.__doc__ or "").strip().partition("\n")[0]


def _succeeded(outcomes: Mapping[str, Ok | Err]) -> set[str]:
    return {id for id, outcome in outcomes.items() if isinstance(outcome, Ok)}


def _told(outcome: Ok | Err) -> str:
    return as_text(outcome.value) if isinstance(outcome, Ok) else f"It failed: {outcome.error}"


def _shown(
    plan: Sequence[Task], begun: set[str] | None = None, outcomes: Mapping[str, Ok | Err] | None = None
) -> str:
    def state(id: str) -> str:
        if id in (outcomes or {}):
            return "done" if isinstance((outcomes or {})[id], Ok) else "failed"
        return "begun" if id in (begun or ()) else "waiting"

    return "\n".join(f"- {plans.shown(task)} – {state(task.id)}" for task in plan)
