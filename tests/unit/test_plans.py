"""A plan as data: what makes it valid, what edits make of it, and how they are shown."""

from __future__ import annotations

import pytest

from dayjob.errors import InputError
from dayjob.plans import Add, Drop, Edit, Reassign, Reorder, Split, Task, check, diff, edited, plan_for, ready
from dayjob.values import convert

WORKERS = ["reader", "writer"]
A = Task("a", "read", "reader")
B = Task("b", "read more", "reader", ["a"])
C = Task("c", "write", "writer", ["a", "b"], "it is short")
PLAN = [A, B, C]


def made(*edits: Edit, begun: tuple[str, ...] = ()) -> list[Task]:
    return edited(PLAN, edits, begun, WORKERS, 4)


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ([], "no task"),
        ([A, A], "'a': each task needs an id of its own"),
        ([Task("", "x", "reader")], "id of its own"),
        ([Task("a", "x", "cook")], "there is no worker 'cook'; there are reader, writer"),
        ([B], "'b' needs 'a', which is not in the plan"),
        ([Task("a", "x", "reader", ["a"])], "cycle: a → a"),
        ([Task("a", "x", "reader", ["c"]), B, Task("c", "x", "reader", ["b"])], "cycle: "),
        ([Task(str(n), "x", "reader") for n in range(5)], "5 tasks; the limit is 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plan_that_cannot_be_worked_through_is_refused(tasks: list[Task], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check(tasks, WORKERS, 4)


def test_a_plan_needs_somebody_to_do_it() -> None:
    with pytest.raises(InputError, match="workers: there is nobody"):
        plan_for(())


def test_edits_make_a_new_plan() -> None:
    d = Task("d", "check", "reader", ["c"])
    assert made(Add(d)) == [A, B, C, d]
    assert made(Drop("c")) == [A, B]
    assert made(Reassign("b", "writer"))[1].worker == "writer"
    assert made(Reorder("b", []))[1].needs == []
    assert made() == PLAN


def test_what_needed_a_split_task_needs_all_its_parts() -> None:
    parts = [Task("b1", "half", "reader", ["a"]), Task("b2", "half", "reader", ["b1"])]
    plan = made(Split("b", parts))
    assert [task.id for task in plan] == ["a", "b1", "b2", "c"]
    assert plan[3].needs == ["a", "b1", "b2"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (Drop("a"), "drop 'a': the task has begun or is finished"),
        (Split("a", []), "split 'a': the task has begun"),
        (Split("b", []), "split 'b': into no task"),
        (Drop("x"), "drop 'x': no such task"),
        (Drop("b"), "'c' needs 'b', which is not in the plan"),
        (Reorder("b", ["c"]), "cycle: "),
        (Reassign("b", "cook"), "no worker 'cook'"),
        (Add(B), "'b': each task needs an id of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_edit_that_is_not_valid_is_refused(edit: Edit, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        made(edit, begun=("a",))


def test_tasks_are_ready_when_all_that_they_need_is_done() -> None:
    assert ready(PLAN, (), ()) == [A]
    assert ready(PLAN, ("a",), ()) == []
    assert ready(PLAN, ("a",), ("a",)) == [B]
    assert ready(PLAN, ("a", "b"), ("a", "b")) == [C]


def test_a_change_is_printed_as_a_diff() -> None:
    after = made(Drop("c"), Reassign("b", "writer"), Add(Task("d", "check", "reader")))
    assert diff(PLAN, after).splitlines() == [
        "- c [writer, needs a, b]: write (done when it is short)",
        "~ b [reader, needs a]: read more  →  b [writer, needs a]: read more",
        "+ d [reader]: check",
    ]
    assert diff(PLAN, PLAN) == ""


@pytest.mark.parametrize(
    "edit",
    [Add(A), Drop("a"), Reassign("a", "w"), Reorder("a", ["b"]), Split("a", [B])],
    ids=lambda e: e.edit,
)
def test_an_edit_is_read_back_from_what_a_model_says(edit: Edit) -> None:
    said = {name: getattr(edit, name) for name in edit.__dataclass_fields__}
    assert convert([said], list[Edit]) == [edit]
    del said["edit"]
    assert convert([said], list[Edit]) == [edit]


def test_an_edit_that_is_not_understood_drops_no_task() -> None:
    with pytest.raises(InputError, match="goal: Unexpected"):
        convert([{"id": "a", "goal": "something else"}], list[Edit])
