"""The transition table is closed, and ids sort by time."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def test_ids_sort_as_they_were_made_and_never_repeat() -> None:
    ids = [new_id("run") for _ in range(5_000)]
    assert all(earlier < later for earlier, later in pairwise(ids))


def test_ids_of_several_processes_sort_by_time_and_never_repeat() -> None:
    code = "from dayjob.runs import new_id; print(*(new_id('run') for _ in range(500)))"
    made = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(2)]
    assert max(made[0]) < min(made[1]) < min(new_id("run") for _ in range(3))
    assert len({*made[0], *made[1]}) == 1000


def test_ids_made_in_many_threads_never_repeat() -> None:
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda _: new_id("run"), range(4_000)))
    assert len(set(ids)) == len(ids)


def test_ids_are_plain_words_of_one_length() -> None:
    assert all(re.fullmatch(r"run_[0-9a-hjkmnp-tv-z]{23}", new_id("run")) for _ in range(100))
