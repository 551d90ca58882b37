"""Orchestrator and workers: master–worker, with a model that writes the plan, and edits it as results come in.

await orchestrate(run, "Compare the two licences", {
    "reader": ("Reads one licence and lists its conditions", read), "writer": ("Writes", write)}, approve=True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from dayjob import plans
from dayjob.collection import Err, Ok
from dayjob.delegate import delegate
from dayjob.errors import StepError
from dayjob.jobs import Job
from dayjob.plans import STALLED, Assignment, Board, Edit, Task
from dayjob.run import Run
from dayjob.values import as_text, checked

Worker = Job | Callable[[Run, Assignment], Any]

PLAN = """Make a plan for this goal: up to {most} tasks, each for one worker. `goal` says in a sentence what it is to \
do. `needs` holds the ids of the tasks whose results it needs; tasks that need nothing of each other are done side by \
side. `done_when` says how to tell that it is done.

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
    team = "\n".join(f"- {name}: {_description(worker)}" for name, worker in workers.items())
    ask = partial(_valid, goal=goal, workers=team, most=max_tasks, options=options)
    wanted = checked(
        plans.plan_for(tuple(workers)), lambda tasks: plans.check(tasks, workers, max_tasks), 1, max_tasks
    )
    plan: list[Task] = await ask(run, PLAN, wanted, name="plan")
    board = Board(plan, workers, max_tasks)
    await run.note(str(board), plan=[asdict(task) for task in plan])
    if await run.step(approve, plan, name="needs approval") if callable(approve) else approve:
        await _be_approved(run, APPROVE.format(goal=goal, plan=board))

    async def work(run: Run, task: Assignment) -> Any:
        worker = workers[task.worker]
        return await delegate(run, worker[1] if isinstance(worker, tuple) else worker, task, name=task.worker)

    async def after(run: Run, outcome: Ok | Err) -> None:
        if isinstance(outcome, Ok):
            board.results[outcome.item.id] = outcome.value
        else:
            board.failed[outcome.item.id] = str(outcome.error)
        await run.partial(board.told())
        if replan or board.is_stalled:
            news = f"Task {outcome.item.id!r} is over. {_told(outcome)}"
            await edit(run, f"{news}\n{STALLED}" if board.is_stalled else news)
        for task in board.hand_out():
            await run.more(task)

    async def edit(run: Run, news: str) -> None:
        wanted = checked(list[Edit], board.edited, most=max_tasks)
        edits = await ask(run, EDIT, wanted, name="edit plan", news=news, plan=board)
        before, board.tasks = board.tasks, board.edited(edits)
        if edits:
            await run.note(plans.diff(before, board.tasks), edits=[asdict(edit) for edit in edits])

    ended = await run.collect(
        work, board.hand_out(), key=lambda each: each.id, limit=limit, after=after, name="tasks"
    )
    results = "\n\n".join(f"{outcome.item.id}: {_told(outcome)}" for outcome in ended)
    if not any(isinstance(outcome, Ok) for outcome in ended):
        raise StepError("NothingDone", results)
    prompt = SYNTHESIS.format(goal=goal, results=results)
    return (await run.model(prompt, name="synthesis", **options)).text


async def _valid(
    run: Run, prompt: str, wanted: Any, *, name: str, options: dict[str, Any], **told: Any
) -> Any:
    """What the model answers; what is not valid goes back to it, up to the usual number of corrections."""
    try:
        return (await run.model(prompt.format(**told), returns=wanted, name=name, **options)).value
    except StepError as error:
        if error.type != "InvalidAnswer":
            raise
        raise StepError("InvalidPlan", error.message, step=error.step) from None


async def _be_approved(run: Run, question: str) -> None:
    if not await run.ask(question, returns=bool, name="approve plan"):
        raise StepError("Rejected", "a person rejected the plan")


def _description(worker: Worker | tuple[str, Worker]) -> str:
    return worker[0] if isinstance(worker, tuple) else (worker.__doc__ or "").strip().partition("\n")[0]


def _told(outcome: Ok | Err) -> str:
    return as_text(outcome.value) if isinstance(outcome, Ok) else f"It failed: {outcome.error}"
