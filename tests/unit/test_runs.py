"""The transition table is closed, and ids sort by time."""

from __future__ import annotations

import re
import time
from itertools import pairwise

from dayjob.runs import HELD, PARKED, TERMINAL, TRANSITIONS, Kind, Outcome, Status, new_id


def test_every_status_has_an_entry_and_leads_only_to_statuses() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert all(after <= set(Status) for after in TRANSITIONS.values())


def test_a_terminal_run_leaves_its_status_only_by_resume() -> None:
    assert all(TRANSITIONS[status] == {Status.QUEUED} for status in TERMINAL)
    assert {status for status in Status if status.is_terminal} == TERMINAL


def test_every_status_can_be_reached_and_left() -> None:
    reached = {Status.QUEUED}
    while (more := reached.union(*(TRANSITIONS[status] for status in reached))) != reached:
        reached = more
    assert reached == set(Status)
    assert all(TRANSITIONS.values())
    assert all(status not in after for status, after in TRANSITIONS.items())


def test_from_every_status_a_run_can_still_end() -> None:
    for start in Status:
        seen = {start}
        while (more := seen.union(*(TRANSITIONS[status] for status in seen - TERMINAL))) != seen:
            seen = more
        assert seen & TERMINAL, start


def test_cancel_is_possible_from_every_status_that_is_not_an_ending() -> None:
    for status in set(Status) - TERMINAL - {Status.CANCELLING, Status.UNWINDING}:
        assert Status.CANCELLING in TRANSITIONS[status]


def test_parked_held_and_terminal_are_apart() -> None:
    assert not PARKED & TERMINAL
    assert not PARKED & HELD
    assert not HELD & TERMINAL
    assert {status for status in Status if status.is_parked} == PARKED
    assert set(Status) == PARKED | HELD | TERMINAL | {Status.QUEUED}


def test_words_are_stored_as_they_are_shown() -> None:
    for enum in (Status, Kind, Outcome):
        assert all(re.fullmatch("[a-z_]+", str(word)) and word == word.value for word in enum)


def test_ids_sort_by_time_and_never_repeat() -> None:
    ids = []
    for _ in range(5):
        ids += [{new_id("run") for _ in range(200)}]
        last = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == last:
            pass
    assert all(max(earlier) < min(later) for earlier, later in pairwise(ids))
    assert len(set().union(*ids)) == 1000


def test_ids_are_plain_words_of_one_length() -> None:
    assert all(re.fullmatch(r"run_[0-9a-hjkmnp-tv-z]{23}", new_id("run")) for _ in range(100))
