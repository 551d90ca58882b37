"""A plan as data: tasks that need each other, the edits that a model may make to it, and what makes it valid.

Everything here is pure: a plan that is edited is a new plan, or an InputError that says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from dayjob.errors import InputError

STALLED = "No task can begin: each of those left needs one that failed."


@dataclass(frozen=True)
class Task:
    """One piece of the work: who does it, which tasks have to be done before, and when it is done."""

    id: str
    goal: str
    worker: str
    needs: list[str] = field(default_factory=list)
    done_when: str = ""


@lru_cache(maxsize=128)
def plan_for(workers: tuple[str, ...]) -> Any:
    """Tasks whose worker is one of these: what a planning model is asked for. Raises InputError if there is none."""
    if not workers:
        raise InputError("workers: there is nobody to do a task")
    fields, told = [("worker", Literal[workers])], {"__doc__": Task.__doc__}
    task: Any = make_dataclass("Task", fields, bases=(Task,), namespace=told, frozen=True)
    return list[task]


@dataclass(frozen=True)
class Assignment(Task):
    """A task in the hands of its worker, with the results of the tasks that it needs."""

    inputs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Add:
    """A further task."""

    task: Task
    edit: Literal["add"] = "add"


@dataclass(frozen=True)
class Drop:
    """A task less."""

    id: str
    edit: Literal["drop"] = "drop"

    # what says more than an id is some other edit that went wrong: it must not cost the task
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


@dataclass(frozen=True)
class Reassign:
    """Another worker for a task."""

    id: str
    worker: str
    edit: Literal["reassign"] = "reassign"


@dataclass(frozen=True)
class Reorder:
    """Other tasks to be done before a task."""

    id: str
    needs: list[str]
    edit: Literal["reorder"] = "reorder"


@dataclass(frozen=True)
class Split:
    """Several tasks in the place of one; whatever needed that one needs all of them."""

    id: str
    into: list[Task]
    edit: Literal["split"] = "split"


Edit = Add | Drop | Reassign | Reorder | Split


class Board:
    """A plan that is being worked through: what has begun, what came of it, and how it changes meanwhile."""

    def __init__(self, tasks: Sequence[Task], workers: Collection[str], most: int) -> None:
        self.tasks = list(tasks)
        self.workers = workers
        self.most = most
        self.begun: set[str] = set()
        self.results: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def hand_out(self) -> list[Assignment]:
        """The tasks that can begin by now; from here on they have begun."""
        able = ready(self.tasks, self.begun, self.results)
        self.begun.update(task.id for task in able)
        return [
            Assignment(**vars(task), inputs={need: self.results[need] for need in task.needs})
            for task in able
        ]

    @property
    def is_stalled(self) -> bool:
        """Whether nothing is under way, and nothing of what is left can begin."""
        return self._stalls(self.tasks)

    def edited(self, edits: Iterable[Edit]) -> list[Task]:
        """The plan with these edits. Raises InputError if it is not valid, or stalled."""
        tasks = edited(self.tasks, edits, self.begun, self.workers, self.most)
        if self._stalls(tasks):
            raise InputError(STALLED)
        return tasks

    def told(self) -> dict[str, Any]:
        """What came of the tasks so far, by id."""
        return {**self.results, **{id: f"It failed: {reason}" for id, reason in self.failed.items()}}

    def __str__(self) -> str:
        return "\n".join(f"- {shown(task)} – {self._state(task.id)}" for task in self.tasks)

    def _stalls(self, tasks: Sequence[Task]) -> bool:
        over = len(self.results) + len(self.failed)
        return len(self.begun) == over < len(tasks) and not ready(tasks, self.begun, self.results)

    def _state(self, id: str) -> str:
        states = {"done": self.results, "failed": self.failed, "begun": self.begun}
        return next((state for state, ids in states.items() if id in ids), "waiting")


def check(tasks: Sequence[Task], workers: Collection[str], most: int) -> None:
    """Raises InputError for a plan that cannot be worked through: one with a cycle, say."""
    ids = [task.id for task in tasks]
    if not tasks:
        raise InputError("the plan has no task")
    if len(tasks) > most:
        raise InputError(f"the plan has {len(tasks)} tasks; the limit is {most}")
    for task in tasks:
        if ids.count(task.id) > 1 or not task.id:
            raise InputError(f"task {task.id!r}: each task needs an id of its own")
        if task.worker not in workers:
            raise InputError(
                f"task {task.id!r}: there is no worker {task.worker!r}; there are {', '.join(workers)}"
            )
        if missing := [need for need in task.needs if need not in ids]:
            raise InputError(f"task {task.id!r} needs {missing[0]!r}, which is not in the plan")
    try:
        TopologicalSorter({task.id: task.needs for task in tasks}).prepare()
    except CycleError as problem:
        raise InputError(f"the plan has a cycle: {' → '.join(reversed(problem.args[1]))}") from None


def edited(
    tasks: Sequence[Task], edits: Iterable[Edit], begun: Collection[str], workers: Collection[str], most: int
) -> list[Task]:
    """The plan with these edits. Raises InputError: for a task that has begun, or a plan that is not valid."""
    plan = list(tasks)
    for edit in edits:
        if isinstance(edit, Add):
            plan.append(edit.task)
            continue
        task = next((task for task in plan if task.id == edit.id), None)
        if task is None:
            raise InputError(f"{edit.edit} {edit.id!r}: no such task is in the plan")
        if task.id in begun:
            raise InputError(
                f"{edit.edit} {edit.id!r}: the task has begun or is finished, and stays as it is"
            )
        at = plan.index(task)
        match edit:
            case Drop():
                del plan[at]
            case Reassign():
                plan[at] = replace(task, worker=edit.worker)
            case Reorder():
                plan[at] = replace(task, needs=edit.needs)
            case Split(into=[]):
                raise InputError(f"split {edit.id!r}: into no task; if it is not needed, drop it")
            case Split():
                plan[at : at + 1] = edit.into
                plan = [_needing(other, task.id, edit.into) for other in plan]
    check(plan, workers, most)
    return plan


def ready(tasks: Iterable[Task], begun: Collection[str], done: Collection[str]) -> list[Task]:
    """The tasks that can begin: all that they need is done."""
    return [task for task in tasks if task.id not in begun and all(need in done for need in task.needs)]


def diff(before: Sequence[Task], after: Sequence[Task]) -> str:
    """What changed, a line for each task: `+` added, `-` dropped, `~` changed."""
    old, new = {task.id: task for task in before}, {task.id: task for task in after}
    lines = [f"- {shown(task)}" for task in before if task.id not in new]
    for task in after:
        if task.id not in old:
            lines.append(f"+ {shown(task)}")
        elif task != old[task.id]:
            lines.append(f"~ {shown(old[task.id])}  →  {shown(task)}")
    return "\n".join(lines)


def shown(task: Task) -> str:
    needs = f", needs {', '.join(task.needs)}" if task.needs else ""
    done = f" (done when {task.done_when})" if task.done_when else ""
    return f"{task.id} [{task.worker}{needs}]: {task.goal}{done}"


def _needing(task: Task, split: str, into: Sequence[Task]) -> Task:
    if split not in task.needs or task in into:
        return task
    parts = [part.id for part in into]
    return replace(task, needs=[each for need in task.needs for each in (parts if need == split else [need])])
