"""When a step that failed is tried again. Pure: (attempt, error) → a delay, another way, or stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dayjob.errors import InputError, StepError, text_of


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after `delay` seconds, by calling `instead` if given: another function, same arguments."""

    delay: float = 0.0
    instead: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        delay: Any = self.delay
        if not isinstance(delay, int | float) or not math.isfinite(delay):
            raise InputError(f"delay: expected seconds, got {delay!r}")
        if self.instead is not None and not callable(self.instead):
            raise InputError(f"instead: expected a function, got {type(self.instead).__name__}")


RetryPolicy = Callable[[int, StepError], Again | None]
"""Given the number of the attempt that failed (from 1) and its error: what to do, or None to stop."""


def decide(policy: RetryPolicy, attempt: int, error: StepError) -> tuple[Again | None, StepError]:
    """What a policy says to a failed attempt, and the step's error: the policy's own, if it raises one."""
    try:
        again = policy(attempt, error)
        if again is not None and not isinstance(again, Again):
            raise InputError(f"expected Again or None, got {type(again).__name__}")
    except Exception as problem:
        told = f"{type(problem).__name__}: {text_of(problem)} (while it was asked about {error})"
        return None, StepError("RetryPolicyFailed", f"its retry policy: {told}", step=error.step)
    return again, error


@dataclass(frozen=True, slots=True)
class Retry:
    """The usual policy: up to `attempts` in all, waiting `delay`, then `backoff` times as long each time.

    Waits at least as long as the error asks (`retry_after`), at most `max_delay` otherwise. Only
    errors that call themselves retryable are tried again, unless `all_errors`.
    """

    attempts: int = 3
    delay: float = 1.0
    backoff: float = 2.0
    max_delay: float = 60.0
    all_errors: bool = True

    def __call__(self, attempt: int, error: StepError) -> Again | None:
        if attempt >= self.attempts or not (self.all_errors or error.retryable):
            return None
        try:
            wait = min(self.delay * self.backoff ** (attempt - 1), self.max_delay)
        except OverflowError:
            wait = self.max_delay
        return Again(max(wait, error.retry_after or 0.0))


NO_RETRY = Retry(attempts=1)
MODEL_RETRY = Retry(attempts=4, delay=0.5, all_errors=False)
"""For model calls: a rate limit, a failing endpoint or a lost connection, and nothing else."""
