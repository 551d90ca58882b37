"""The error tree drawn in `errors.py` is the real one, and every error says what to do."""

from __future__ import annotations

import inspect
import pickle
import re
from datetime import timedelta

import pytest

from dayjob import errors
from dayjob.errors import (
    DayjobError,
    ModelError,
    ModelRateLimited,
    RunEnded,
    RunFailed,
    StepError,
    step_error_of,
)


def drawn() -> dict[str, str | None]:
    """Each class in the drawing at the top of the module, with its parent."""
    parents: dict[str, str | None] = {"DayjobError": None}
    path = ["DayjobError"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"((?:│   |    )*)[├└]── (\w+)", line):
            depth = len(found[1]) // 4 + 1
            parents[found[2]] = path[depth - 1]
            path[depth:] = [found[2]]
    return parents


def real() -> dict[str, str | None]:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, DayjobError)]
    return {cls.__name__: None if cls is DayjobError else cls.__bases__[0].__name__ for cls in classes}


def all_errors() -> list[type[DayjobError]]:
    return [getattr(errors, name) for name in real()]


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn() == real()


@pytest.mark.parametrize("error", all_errors())
def test_every_error_has_a_sentence_as_its_default_message(error: type[DayjobError]) -> None:
    assert error.__doc__
    assert error.__doc__.strip().endswith(".")
    if issubclass(error, ModelError) or error.__init__ is DayjobError.__init__:
        assert str(error()) == inspect.cleandoc(error.__doc__)


def test_a_step_error_shows_the_original_type_and_text() -> None:
    assert str(StepError("ValueError", "no such order")) == "ValueError: no such order"
    assert str(StepError("KeyboardInterrupt", "")) == "KeyboardInterrupt"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (2, 2.0),
        ("30", 30.0),
        (timedelta(minutes=1), 60.0),
        ("soon", None),
        ("nan", None),
        (-1, None),
        (float("inf"), None),
        (None, None),
        ([], None),
    ],
)
def test_however_an_error_says_when_to_try_again_it_is_seconds_or_nothing(
    given: object, seconds: float | None
) -> None:
    problem = ValueError("slow down")
    problem.retry_after = given  # type: ignore[attr-defined]
    assert step_error_of(problem, "a").retry_after == seconds
    assert step_error_of(StepError("Busy", "", retry_after=given), "a").retry_after == seconds  # type: ignore[arg-type]


def test_model_errors_say_whether_to_try_again() -> None:
    assert {
        error.__name__ for error in all_errors() if issubclass(error, ModelError) and error.retryable
    } == {
        "ModelRateLimited",
        "ModelUnavailable",
        "ModelTimeout",
    }
    assert ModelRateLimited("slow down", retry_after=2.5).retry_after == 2.5


def test_errors_survive_pickling() -> None:
    step = pickle.loads(pickle.dumps(StepError("Busy", "later", True, step="a/b")))
    assert (step.type, step.message, step.retryable, step.step) == ("Busy", "later", True, "a/b")
    ended = pickle.loads(pickle.dumps(RunFailed("run_1", "it broke", {"done": 3})))
    assert (type(ended), ended.run_id, ended.reason, ended.partial) == (
        RunFailed,
        "run_1",
        "it broke",
        {"done": 3},
    )
    assert isinstance(ended, RunEnded)
    assert str(pickle.loads(pickle.dumps(errors.UnknownRun("run_9: not here")))) == "run_9: not here"
