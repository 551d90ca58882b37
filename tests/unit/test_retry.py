"""Retry policies: (attempt, error) → a delay, another way, or stop."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import takewhile

import pytest

from dayjob.errors import StepError
from dayjob.retry import MODEL_RETRY, NO_RETRY, Again, Retry, RetryPolicy, decide

LATER = StepError("Busy", "try again", retryable=True)
NEVER = StepError("Wrong", "no use", retryable=False)


def delays(policy: RetryPolicy, error: StepError = LATER) -> list[float]:
    tries = (policy(attempt, error) for attempt in range(1, 100))
    return [again.delay for again in takewhile(lambda again: again is not None, tries) if again]


def test_the_delay_doubles_until_the_attempts_are_used_up() -> None:
    assert delays(Retry(attempts=5, delay=1, backoff=2)) == [1, 2, 4, 8]


def test_the_delay_never_exceeds_its_maximum() -> None:
    assert delays(Retry(attempts=6, delay=10, backoff=3, max_delay=25)) == [10, 25, 25, 25, 25]


def test_a_backoff_of_one_waits_the_same_each_time() -> None:
    assert delays(Retry(attempts=4, delay=0.5, backoff=1)) == [0.5] * 3


def test_an_error_that_asks_for_longer_gets_it_even_past_the_maximum() -> None:
    busy = StepError("RateLimited", "", retryable=True, retry_after=90)
    assert delays(Retry(attempts=3, delay=1, max_delay=60), busy) == [90, 90]


def test_an_error_that_asks_for_less_waits_the_delay() -> None:
    busy = StepError("RateLimited", "", retryable=True, retry_after=0.1)
    assert delays(Retry(attempts=2, delay=3), busy) == [3]


def test_only_retryable_errors_are_tried_again_unless_all_are() -> None:
    assert Retry(all_errors=False)(1, NEVER) is None
    assert Retry(all_errors=False)(1, LATER) == Again(1.0)
    assert Retry()(1, NEVER) == Again(1.0)


def test_many_attempts_do_not_overflow() -> None:
    assert Retry(attempts=10**9, max_delay=60)(10**6, LATER) == Again(60.0)


def test_no_retry_stops_at_once() -> None:
    assert NO_RETRY(1, LATER) is None


def test_models_are_tried_again_only_when_it_may_help() -> None:
    assert delays(MODEL_RETRY, LATER) == [0.5, 1, 2]
    assert delays(MODEL_RETRY, NEVER) == []


def test_any_function_is_a_policy_and_may_go_another_way() -> None:
    def other(x: int) -> int:
        return x

    policy: RetryPolicy = lambda attempt, error: Again(instead=other) if attempt == 1 else None  # noqa: E731
    again = policy(1, NEVER)
    assert again is not None
    assert (again.delay, again.instead) == (0.0, other)
    assert policy(2, NEVER) is None


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (lambda attempt, error: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda attempt, error: True, "InputError: expected Again or None, got bool"),
        (lambda attempt, error: Again("5"), "InputError: delay: expected seconds, got '5'"),
        (lambda attempt, error: Again(float("nan")), "InputError: delay: expected seconds, got nan"),
        (lambda attempt, error: Again(instead=3), "InputError: instead: expected a function, got int"),
        (Retry(attempts="3"), "TypeError: "),  # type: ignore[arg-type]
    ],
)
def test_a_policy_that_is_wrong_is_the_error_of_its_step_and_stops_it(policy: RetryPolicy, said: str) -> None:
    again, error = decide(policy, 1, StepError("Busy", "later", step="a/b"))
    assert (again, error.type, error.step) == (None, "RetryPolicyFailed", "a/b")
    assert error.message.startswith(f"its retry policy: {said}")
    assert error.message.endswith("(while it was asked about Busy: later)")


def test_a_policy_that_decides_leaves_the_error_as_it_is() -> None:
    assert decide(Retry(delay=2), 1, LATER) == (Again(2), LATER)
    assert decide(NO_RETRY, 1, LATER) == (None, LATER)


def test_policies_are_values() -> None:
    assert Retry(attempts=2) == Retry(attempts=2)
    with pytest.raises(FrozenInstanceError):
        Retry().attempts = 4  # type: ignore[misc]
