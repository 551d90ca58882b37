"""The table of events equals what the code emits."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import dayjob
from dayjob.events import EVENTS, Events

SOURCES = sorted(Path(dayjob.__file__).parent.rglob("*.py"))


@cache
def emitted() -> dict[str, list[tuple[str, frozenset[str]]]]:
    """By event name: where it is emitted, and with which fields."""
    found = defaultdict(list)
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "emit"
            ):
                where = f"{file.name}:{node.lineno}"
                assert node.args, f"{where}: emits no name"
                name = node.args[0]
                assert isinstance(name, ast.Constant), f"{where}: an event's name must be written out"
                assert all(keyword.arg for keyword in node.keywords), f"{where}: write the fields out"
                found[name.value].append((where, frozenset(str(k.arg) for k in node.keywords)))
    return dict(found)


def declared(name: str) -> frozenset[str]:
    """The fields in an event's line: the words before the colon."""
    return frozenset(re.split(r",\s*", EVENTS[name].split(":")[0].strip()))


def test_every_event_in_the_table_is_emitted_and_no_other() -> None:
    assert set(emitted()) == set(EVENTS)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_place_emits_exactly_the_fields_of_the_table(name: str) -> None:
    places = emitted()[name]
    assert {fields for _, fields in places} == {declared(name)}, places


def test_the_search_for_emits_finds_them() -> None:
    assert sum(len(places) for places in emitted().values()) >= len(EVENTS)


def test_subscribers_are_told_in_order_until_they_leave() -> None:
    events = Events()
    heard: list[str] = []
    assert not events.active
    leave = events.subscribe(lambda name, fields: heard.append(f"one {name} {fields['worker']}"))
    events.subscribe(lambda name, fields: heard.append("two"))
    events.emit("worker.stopped", worker="w")
    leave()
    leave()
    events.emit("worker.stopped", worker="w")
    assert heard == ["one worker.stopped w", "two", "two"]
    assert events.active


def test_a_subscriber_may_leave_while_it_is_told() -> None:
    events = Events()
    heard: list[str] = []

    def once(name: str, fields: dict[str, object]) -> None:
        heard.append(name)
        leave()

    leave = events.subscribe(once)
    events.emit("worker.stopped", worker="w")
    events.emit("worker.stopped", worker="w")
    assert heard == ["worker.stopped"]
    assert not events.active


def test_a_subscriber_that_raises_breaks_neither_the_work_nor_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = Events()
    heard: list[str] = []
    events.subscribe(lambda name, fields: fields["no such field"])
    events.subscribe(lambda name, fields: heard.append(name))
    events.emit("worker.stopped", worker="w")
    assert heard == ["worker.stopped"]
    assert "worker.stopped" in caplog.text
