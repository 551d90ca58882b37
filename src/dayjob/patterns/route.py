"""Routing: a classifier with a confidence in front of handlers, like an event router.

await route(run, ticket, to={"billing": "Invoices, refunds", "technical": "Errors, outages"})
await route(run, ticket, to={"billing": ("Invoices, refunds", bill)}, floor=0.7, otherwise="person")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import make_dataclass
from functools import lru_cache, partial
from typing import Any, Literal

from dayjob.delegate import delegate
from dayjob.errors import InputError, StepError
from dayjob.jobs import Job
from dayjob.proposals import (
    DECIDED,
    MOST_PROPOSALS,
    PROPOSED,
    Suggestion,
    accepted,
    check_suggestion,
    rejected,
    route_id,
    router_id,
    waiting,
    with_input,
)
from dayjob.run import Run
from dayjob.values import as_text, checked

Handler = Job | Callable[[Run, Any], Any]

CHOOSE = """Choose the route that fits the input best. Say how sure you are by a confidence between 0.0 (a guess) \
and 1.0 (certain).

Routes:
{routes}

Input:
{input}"""

PROPOSE = """No route fits this input well. Propose one change: a new route, or a better description of a route \
under its own name. A route has a short name, and a sentence that says what belongs to it.

Routes:
{routes}

Proposed before, for other inputs:
{proposed}

Rejected before:
{rejected}

Input:
{input}"""


async def route(
    run: Run,
    input: Any,
    to: Mapping[str, str | tuple[str, Handler]],
    *,
    floor: float = 0.0,
    otherwise: str | Handler | None = None,
    name: str = "route",
    **options: Any,
) -> Any:
    """The name of the route that a model chose; if the route has a handler, what `handler(run, input)` returns.

    Below a confidence of `floor`, and when the model names no route after its corrections, `otherwise` is
    taken: a name, which need not be a route, or a handler. Without it StepError of type NoRoute is raised.
    Below the floor the model also proposes a route, for a person to accept (`dayjob routes`); accepted
    ones are offered from then on, by routers of the same job and `name`. One that the code has no handler for
    goes to `otherwise`, if that is a handler. `options` go to `run.model`.
    """
    to = {str.__str__(route): given for route, given in to.items()}  # of an enum's member, its value
    told = {route: given if isinstance(given, str) else given[0] for route, given in to.items()}
    handlers = {route: given[1] for route, given in to.items() if not isinstance(given, str)}
    if not told:
        raise InputError("route: to= names no route")
    if not 0 <= floor <= 1:
        raise InputError(f"route: floor: expected 0 to 1, got {floor}")
    choose = partial(_choose, told=told, floor=floor, router=router_id(run.job, name), options=options)
    try:
        chosen = await run.step(choose, input, name=name)
    except StepError as error:
        if error.type != "NoRoute" or otherwise is None:
            raise
        chosen = otherwise
    handler = _handler(chosen, told, handlers, otherwise)
    if handler is None:
        return chosen
    return await delegate(run, handler, input, name=chosen if isinstance(chosen, str) else "otherwise")


async def _choose(
    run: Run, input: Any, *, told: dict[str, str], floor: float, router: str, options: dict[str, Any]
) -> str:
    decisions = await run.recall_all(DECIDED + router)
    offered = {**told, **accepted(decisions)}
    prompt = CHOOSE.format(routes=_shown(offered), input=as_text(input))
    try:
        choice = (await run.model(prompt, returns=_choice(tuple(offered)), name="choose", **options)).value
    except StepError as error:
        if error.type != "InvalidAnswer":
            raise
        raise StepError("NoRoute", f"the model named no route: {error.message}") from None
    if choice.confidence >= floor:
        return str(choice.route)
    await _propose(run, input, offered, decisions, router, options)
    raise StepError("NoRoute", f"{choice.route!r} at {choice.confidence:g} is below the floor of {floor:g}")


async def _propose(
    run: Run,
    input: Any,
    offered: dict[str, str],
    decisions: dict[str, str | None],
    router: str,
    options: dict[str, Any],
) -> None:
    """Keeps a proposal with the input that led to it. That none could be made is no reason to stop."""
    before = waiting(await run.recall_all(PROPOSED + router), decisions).values()
    if len(before) >= MOST_PROPOSALS:
        await run.note(f"no route was proposed: {len(before)} proposals wait for a person")
        return
    no = rejected(decisions)
    proposed = {each.name: each.description for each in before}
    prompt = PROPOSE.format(
        routes=_shown(offered), proposed=_shown(proposed), rejected=", ".join(no) or "none", input=as_text(input)
    )  # fmt: skip
    returns = checked(Suggestion, check_suggestion)
    try:
        made = (await run.model(prompt, returns=returns, name="propose", **options)).value
    except StepError as error:
        await run.note(f"no route could be proposed: {error}")
        return
    if made.name not in no and offered.get(made.name) != made.description:
        entry = PROPOSED + route_id(router, made.name)
        await run.remember(entry, with_input(made, await run.recall(entry), as_text(input)))


def _handler(
    chosen: str | Handler, told: dict[str, str], handlers: dict[str, Handler], otherwise: str | Handler | None
) -> Handler | None:
    if not isinstance(chosen, str):
        return chosen
    if chosen in told or isinstance(otherwise, str):
        return handlers.get(chosen)
    return otherwise  # a person has accepted this route, and the code has nothing for it


@lru_cache(maxsize=128)
def _choice(routes: tuple[str, ...]) -> Any:
    """What the model answers: a choice among these, with a confidence."""

    def check(choice: Any) -> None:
        if not 0 <= choice.confidence <= 1:
            raise InputError(f"confidence: expected 0 to 1, got {choice.confidence:g}")

    fields = [("route", Literal[routes]), ("confidence", float)]
    return checked(make_dataclass("Choice", fields), check)


def _shown(routes: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {' '.join(told.split())}" for name, told in routes.items()) or "none"
