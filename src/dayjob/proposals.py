"""What a router has learnt: proposed routes with the inputs that led to them, and what people said to them.

In memory each proposal is an entry of its own, and each decision another. Runs write only proposals, and people
only decisions: nobody overwrites what is not theirs. Of two inputs that lead to the same proposal at the same
moment, one may be missing among its examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unicodedata import category
from urllib.parse import unquote

from dayjob.errors import InputError

PROPOSED, DECIDED = "routes/proposed/", "routes/decided/"
"""What their names in memory begin with; the id of the route follows. A decision is the description that was
accepted, or None: rejected."""
MOST_PROPOSALS = 20
"""When so many of one router wait for a person, no more are made."""
MOST_INPUTS = 5
"""Of one proposal; the latest are kept."""
INPUT_CHARACTERS = 500
NAME_CHARACTERS = 60
DESCRIPTION_CHARACTERS = 500
BREAKS = ("Cc", "Zl", "Zp")
"""The Unicode categories of control characters and line ends."""


@dataclass(frozen=True)
class Suggestion:
    """A new route, or a better description of the route of that name."""

    name: str
    description: str


@dataclass(frozen=True)
class Proposal(Suggestion):
    """A suggestion, with the inputs that led to it."""

    inputs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listed:
    """A proposal as `dayjob routes` shows it; `id` is what it is accepted by."""

    id: str
    state: str
    proposal: Proposal


def router_id(job: str, router: str) -> str:
    """What the ids of all routes of a router of a job begin with."""
    return f"{_escaped(job)}/{_escaped(router)}/"


def route_id(router: str, name: str) -> str:
    return router + _escaped(name)


def accepted(decisions: Mapping[str, str | None]) -> dict[str, str]:
    """The descriptions of the routes that people accepted, by route."""
    return {_route(name): said for name, said in decisions.items() if said is not None}


def rejected(decisions: Mapping[str, str | None]) -> list[str]:
    return [_route(name) for name, said in decisions.items() if said is None]


def waiting(
    proposed: Mapping[str, Mapping[str, Any]], decisions: Mapping[str, str | None]
) -> dict[str, Proposal]:
    """The proposals that no person has said anything to, by id."""
    found = {name.removeprefix(PROPOSED): Proposal(**each) for name, each in proposed.items()}
    said = {name.removeprefix(DECIDED): said for name, said in decisions.items()}
    return {
        id: proposal
        for id, proposal in found.items()
        if id not in said or said[id] not in (None, proposal.description)
    }


def check_suggestion(suggestion: Suggestion) -> None:
    """Raises InputError for what is too long, or would be no line of its own in a prompt."""
    for what, text, most in (
        ("name", suggestion.name, NAME_CHARACTERS),
        ("description", suggestion.description, DESCRIPTION_CHARACTERS),
    ):
        is_line = text == text.strip() and not any(category(character) in BREAKS for character in text)
        if not 0 < len(text) <= most or not is_line:
            raise InputError(f"{what}: expected one line of up to {most} characters, got {text[:80]!r}")


def with_input(made: Suggestion, before: Mapping[str, Any] | None, text: str) -> Proposal:
    """A proposal with one more input, beside those that led to the one before of that name."""
    text = text[:INPUT_CHARACTERS]
    others = [each for each in Proposal(**before).inputs if each != text] if before else []
    return Proposal(made.name, made.description, [*others, text][-MOST_INPUTS:])


def listed(memory: Mapping[str, Any]) -> list[Listed]:
    """Every proposal that waits for a person, and every one that was accepted, by id."""
    decisions = _under(DECIDED, memory)
    found = [
        Listed(name.removeprefix(DECIDED), "accepted", Proposal(_route(name), said))
        for name, said in decisions.items()
        if said is not None
    ]
    proposals = waiting(_under(PROPOSED, memory), decisions)
    found += [Listed(id, "proposed", proposal) for id, proposal in proposals.items()]
    return sorted(found, key=lambda each: each.id)


def decision(memory: Mapping[str, Any], id: str, accept: bool) -> tuple[str, str | None]:
    """The entry of memory by which a person accepts or rejects; rejecting an accepted route withdraws it."""
    states = ("proposed",) if accept else ("proposed", "accepted")
    for each in listed(memory):
        if each.id == id and each.state in states:
            return DECIDED + id, each.proposal.description if accept else None
    raise InputError(f"{id}: no such proposal; list them with `dayjob routes`")


def _under(prefix: str, memory: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in memory.items() if name.startswith(prefix)}


def _route(name: str) -> str:
    return unquote(name.rpartition("/")[2])


def _escaped(part: str) -> str:
    return part.replace("%", "%25").replace("/", "%2F")
