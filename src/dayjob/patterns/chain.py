"""Prompt chaining: a pipeline in which each step feeds the next, and a gate may stand behind each.

await chain(run, report, ["List the claims in this.", "Put the list into one paragraph."],
            gates=[None, lambda text: len(text) < 500 or "it is too long"],
            otherwise=[again(), rephrase(), ask_person()])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dayjob.errors import InputError, StepError
from dayjob.ladder import Rung, Step, Tried, Trouble
from dayjob.run import Run
from dayjob.verdicts import objection

Gate = Callable[..., Any]
FIRST = Rung("first", lambda run, trouble: trouble.attempt(run))


async def chain(
    run: Run,
    input: Any,
    steps: Sequence[Step] | Mapping[str, Step],
    gates: Sequence[Gate | None] | Mapping[str, Gate] = (),
    otherwise: Iterable[Rung] = (),
    **options: Any,
) -> Any:
    """The output of the last step.

    A step is a prompt or a function; the steps are a list, or a dict that names them, and so are the gates.
    A gate passes its step's output by True, and refuses it by False, by a text that says why, or by an error. When
    a step fails or is refused, the rungs of `otherwise` are tried in order, each leaving a note; when none helps,
    StepError of type Refused is raised, or the step's own. `options` go to `run.model`. After each step its
    output is the run's partial output.
    """
    named, checks, ladder = _named(steps), _named(gates), [FIRST, *otherwise]
    if strangers := checks.keys() - named.keys():
        raise InputError(f"gates: {min(strangers)!r} is none of the steps: {', '.join(named)}")
    if more := {"returns", "tools"} & options.keys():
        raise InputError(
            f"{min(more)}: a prompt of a chain gives a text; for more, let a function be the step"
        )
    value = input
    for name, step in named.items():
        value = await _climb(run, Trouble(name, step, value, options=options), checks.get(name), ladder)
        await run.partial(value)
    return value


async def _climb(run: Run, trouble: Trouble, gate: Gate | None, ladder: list[Rung]) -> Any:
    problem: StepError | None = None
    for rung in ladder:
        tried = Tried(None)
        try:
            tried, problem = await rung.climb(run, trouble), None
            if gate is not None and rung.is_checked:
                problem = await _refusal(run, trouble.name, gate, tried.value)
        except StepError as error:
            problem = error
        if rung is not FIRST:
            passed, cost = problem is None, tried.dollars
            told = {"rung": rung.name, "passed": passed, "reason": trouble.reason, "dollars": cost}
            await run.note(f"{trouble.name}: {rung.name}", pattern="chain", step=trouble.name, **told)
        if problem is None:
            return tried.value
        trouble = replace(trouble, reason=str(problem))
    assert problem is not None
    raise problem


async def _refusal(run: Run, name: str, gate: Gate, value: Any) -> StepError | None:
    why = objection(await run.step(gate, value, name=f"{name} gate"), f"{name} gate")
    return None if why is None else StepError("Refused", f"{name}: {why or 'its gate said no'}")


def _named(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str):
        raise InputError(f"steps: expected a list, or a dict that names them, got the text {given[:40]!r}")
    return {f"step {number}": each for number, each in enumerate(given, 1)}
