"""Evaluator and optimiser: a quality loop in which one makes, another judges, until it is good enough.

await refine(run, write, review, max_rounds=4, checks={"short": lambda text: len(text) < 600})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from dayjob.delegate import delegate
from dayjob.errors import InputError, StepError
from dayjob.jobs import Job
from dayjob.run import Run
from dayjob.values import convert
from dayjob.verdicts import Brief, Constraint, Refined, Verdict, objection

PATIENCE = 2
"""So many rounds in a row without a better score end it."""


Maker = Job | Callable[[Run, Brief], Any]
Judge = Job | Callable[[Run, Any], Any]
Check = Callable[[Any], Any]


async def refine(
    run: Run,
    make: Maker,
    judge: Judge,
    *,
    max_rounds: int = 5,
    passing: float = 0.8,
    constraints: Iterable[Constraint] = (),
    checks: Mapping[str, Check] | None = None,
    name: str = "refine",
) -> Refined:
    """The best of up to `max_rounds` attempts: `make(run, brief)` makes one, `judge(run, attempt)` gives its Verdict.

    It stops when nothing failed and the score is at least `passing`, after two rounds without a better score,
    or when a maker or judge fails after the first round; `reason` says which. `constraints` hold from the
    beginning, those of a verdict from the next round on. One that names one of `checks` is checked by that
    function, which gives True, or False, or a text that says why not: an attempt that does not pass is not
    shown to the judge, and scores 0. The best so far is the run's partial output.
    """
    if max_rounds < 1:
        raise InputError(f"max_rounds: expected 1 or more, got {max_rounds}")
    if not 0 <= passing <= 1:
        raise InputError(f"passing: expected 0 to 1, got {passing}")
    checks = checks or {}
    brief = Brief(1, constraints=[replace(each, origin=each.origin or "given") for each in constraints])
    if strangers := {each.check for each in brief.constraints if each.check} - checks.keys():
        raise InputError(f"constraints: {min(strangers)!r} is none of the checks: {', '.join(checks)}")
    best: Refined | None = None
    gained = 1
    while True:
        try:
            made = await delegate(run, make, brief, name=f"{name} make")
            if best is None:
                await run.partial(made)
            verdict = await _checked(run, made, brief, checks)
            verdict = verdict or await _judged(run, judge, made, f"{name} judge")
        except StepError as error:
            if best is None:
                raise
            return replace(best, reason=f"round {brief.round}: {error}")
        brief = brief.after(made, verdict)
        if best is None or verdict.score > best.score:
            best, gained = Refined(made, verdict.score, "", brief.round - 1, brief.constraints), brief.round
            brief = replace(brief, best=made)
            await run.partial(made)
        best = replace(best, rounds=brief.round - 1, constraints=brief.constraints)
        if verdict.passes(passing):
            return replace(best, value=made, score=verdict.score, reason="passed")
        if brief.round - gained >= PATIENCE:
            return replace(best, reason=f"no gain in {PATIENCE} rounds")
        if brief.round > max_rounds:
            return replace(best, reason=f"max_rounds of {max_rounds} reached")


async def _checked(run: Run, made: Any, brief: Brief, checks: Mapping[str, Check]) -> Verdict | None:
    """The verdict of code: None if the attempt holds to all that code can check."""
    failed = []
    for constraint in brief.constraints:
        if constraint.check is None or constraint.check not in checks:
            continue
        name = f"check {constraint.check}"
        why = objection(await run.step(checks[constraint.check], made, name=name), name)
        if why is not None:
            failed.append(f"{constraint.text} ({why})" if why else constraint.text)
    return Verdict(0.0, failed) if failed else None


async def _judged(run: Run, judge: Judge, made: Any, name: str) -> Verdict:
    try:
        verdict: Verdict = convert(await delegate(run, judge, made, name=name), Verdict)
    except InputError as problem:
        raise StepError("InvalidVerdict", problem.message) from None
    return verdict
