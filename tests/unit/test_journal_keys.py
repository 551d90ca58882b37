"""Keys: path, name and an ordinal among equal names; nothing in a name can pass for another key."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dayjob.errors import StepError
from dayjob.journal import Journal, Scope, error_bytes, escape, stored_error
from dayjob.runs import Kind, Outcome, StepRecord
from dayjob.stores import Loaded
from dayjob.values import Redactor


class Nowhere:
    """A store that keeps the entries that it is given."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def put(self, entry: Any) -> None:
        self.entries.append(entry)


class Held:
    home, id, epoch, changed = "run_1", "run_1", 1, 0


def journal(version: str = "v1") -> Journal:
    return Journal(Held, version, Nowhere(), lambda: 100.0, Redactor(), lambda: None)  # type: ignore[arg-type]


def test_equal_names_in_a_scope_are_numbered() -> None:
    scope = Scope(journal(), "", None)
    assert [scope.next_key(name) for name in ("outline", "draft", "draft", "outline")] == [
        "outline",
        "draft",
        "draft#2",
        "outline#2",
    ]


def test_scopes_number_apart_and_keys_begin_with_their_path() -> None:
    inner = Scope(journal(), "sections/intro", None)
    other = Scope(journal(), "sections/end", None)
    assert [inner.next_key("draft"), inner.next_key("draft"), other.next_key("draft")] == [
        "sections/intro/draft",
        "sections/intro/draft#2",
        "sections/end/draft",
    ]


def test_what_separates_keys_is_escaped_in_names() -> None:
    assert escape("plain") == "plain"
    assert escape("a/b#2%") == "a%2Fb%232%25"
    assert escape("two words, ünïcode") == "two words, ünïcode"


def test_a_name_with_half_a_surrogate_pair_can_be_a_key() -> None:
    assert escape("x\ud800").encode().decode() == escape("x\ud800")


@given(st.text(), st.text())
def test_different_names_never_share_a_key(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)
    assert not re.search("[/#]", escape(one))


@given(st.lists(st.sampled_from(["a", "a#2", "a/b", "b", "%23"]), max_size=12))
def test_no_two_steps_of_a_scope_share_a_key(names: list[str]) -> None:
    scope = Scope(journal(), "", None)
    keys = [scope.next_key(name) for name in names]
    assert len(set(keys)) == len(keys)


def test_rows_are_numbered_as_they_finish_and_attempts_as_they_are_made() -> None:
    made = journal()
    first = made.row("", "a", "a", Kind.CALL, Outcome.VALUE, 99.0)
    waiting = made.row("", "b", "b", Kind.ASK, None, 99.0)
    again = made.row("", "a", "a", Kind.CALL, Outcome.ERROR, 99.0)
    assert [(row.attempt, row.seq) for row in (first, waiting, again)] == [(1, 1), (1, None), (2, 2)]
    made.finish(waiting, Outcome.VALUE, b"1")
    assert (waiting.seq, waiting.ended, waiting.value) == (3, 100.0, b"1")
    made.finish(waiting, Outcome.CANCELLED)
    assert (waiting.seq, waiting.outcome, waiting.value) == (3, Outcome.CANCELLED, None)
    assert len({row.nonce for row in (first, waiting, again)}) == 3


def recorded(key: str, version: str, fingerprint: bytes, seq: int, kind: Kind = Kind.CALL) -> StepRecord:
    scope, _, name = key.rpartition("/")
    return StepRecord(
        "run_1", "run_1", key, 1, scope, name.split("#")[0], kind, Outcome.VALUE, seq, version, 1, seq,
        fingerprint, None, 1.0, 2.0,
    )  # fmt: skip


def loaded(rows: list[StepRecord], version: str = "v1") -> Journal:
    made = journal(version)
    made.load(Loaded("in_progress", None, None, 0, [], [], rows, {}, {}, len(rows)))  # type: ignore[arg-type]
    return made


def test_a_row_of_this_version_wins_by_key_whatever_went_in() -> None:
    made = loaded([recorded("a", "v1", b"then", 1)])
    row = made.find(Scope(made, "", None), "a", "a", Kind.CALL, b"now")
    assert row is not None
    assert row.seq == 1


def test_a_row_of_another_version_must_fit_what_goes_in() -> None:
    made = loaded([recorded("a", "v0", b"then", 1)])
    assert made.find(Scope(made, "", None), "a", "a", Kind.CALL, b"now") is None
    assert made.find(Scope(made, "", None), "a", "a", Kind.CALL, b"then") is not None


def test_an_unused_row_of_another_version_is_found_when_the_ordinals_have_shifted() -> None:
    made = loaded([recorded("a", "v0", b"1", 1), recorded("a#2", "v0", b"2", 2)])
    scope = Scope(made, "", None)
    shifted = made.find(scope, scope.next_key("a"), "a", Kind.CALL, b"2")
    assert shifted is not None
    assert shifted.key == "a#2"
    assert made.find(scope, scope.next_key("a"), "a", Kind.CALL, b"2") is None  # used once


def test_attempts_go_on_after_those_that_were_superseded() -> None:
    made = journal()
    errors = [error_bytes(StepError("Busy", str(number)), retried=True) for number in (1, 2)]
    made.load(Loaded("in_progress", None, None, 0, [], [], [], {"a": 3}, {"a": errors}, 7))  # type: ignore[arg-type]
    row = made.row("", "a", "a", Kind.CALL, Outcome.VALUE, 99.0)
    assert (row.attempt, row.seq) == (4, 8)
    assert [(error.message, error.step) for error in made.retries_of("a")] == [("1", "a"), ("2", "a")]
    assert made.retries_of("b") == []


def test_an_error_reads_back_as_the_job_saw_it() -> None:
    error = StepError("Busy", "later \ud800", True, step="a/b", retry_after=3, traceback="…")
    back = stored_error(error_bytes(error, retried=True), "elsewhere")
    assert (back.type, back.message, back.retryable, back.step) == ("Busy", "later ?", True, "a/b")
    assert stored_error(error_bytes(StepError("E", "m")), "its/key").step == "its/key"


def test_a_closed_scope_closes_what_is_below_it() -> None:
    made = journal()
    root = Scope(made, "", None)
    inner = Scope(made, "a", root)
    innermost = Scope(made, "a/b", inner)
    root.close()
    assert inner.closed
    assert innermost.closed
    assert Scope(made, "c", root).closed
