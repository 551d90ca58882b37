"""When a step that failed is tried again. Pure: (attempt, error) → a delay, another way, or stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dayjob.errors import StepError


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after `delay` seconds, by calling `instead` if given: another function, same arguments."""

    delay: float = 0.0
    instead: Callable[..., Any] | None = None


RetryPolicy = Callable[[int, StepError], Again | None]
"""Given the number of the attempt that failed (from 1) and its error: what to do, or None to stop."""


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
