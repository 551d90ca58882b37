"""What a router has learnt: proposed routes with the inputs that led to them, and what people said to them.

In memory a router has three entries. Runs write only what they propose, and people only what they accept
or reject, so that neither overwrites the other; of two runs that propose at the same moment, one proposal
may be lost, and is made again by the next such input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dayjob.errors import InputError

PREFIX = "routes"
PROPOSED, ACCEPTED, REJECTED = "proposed", "accepted", "rejected"
MOST_PROPOSALS = 20
"""Of one router; the oldest goes first."""
MOST_INPUTS = 5
"""Of one proposal; the latest are kept."""
INPUT_CHARACTERS = 500
NAME_CHARACTERS = 60


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


def entry(job: str, router: str, what: str) -> str:
    """The name in memory of what a router of a job has `proposed`, or of what was `accepted` or `rejected`."""
    return "/".join([PREFIX, _escaped(job), _escaped(router), what])


def check_suggestion(suggestion: Suggestion) -> None:
    if not suggestion.name.strip() or len(suggestion.name) > NAME_CHARACTERS:
        raise InputError(f"name: a route needs a name of up to {NAME_CHARACTERS} characters")
    if not suggestion.description.strip():
        raise InputError("description: say in one sentence what belongs to the route")


def with_suggestion(
    proposed: Iterable[Mapping[str, Any]], made: Suggestion, text: str
) -> list[dict[str, Any]]:
    """What is proposed, with one more proposal, or one more input that led to the same."""
    known = [Proposal(**each) for each in proposed]
    inputs = next((each.inputs for each in known if each.name == made.name), [])
    text = text[:INPUT_CHARACTERS]
    inputs = [*(each for each in inputs if each != text), text][-MOST_INPUTS:]
    others = [each for each in known if each.name != made.name]
    return [
        asdict(each) for each in [*others, Proposal(made.name, made.description, inputs)][-MOST_PROPOSALS:]
    ]


def listed(memory: Mapping[str, Any]) -> list[Listed]:
    """Every proposal that waits for a person, and every one that was accepted, by router."""
    found: list[Listed] = []
    for name in sorted(memory):
        router, what = _router_of(name)
        if what == ACCEPTED:
            found += [
                Listed(_id(router, route), what, Proposal(route, text))
                for route, text in memory[name].items()
            ]
        elif what == PROPOSED:
            accepted, rejected = (
                memory.get(f"{router}/{ACCEPTED}", {}),
                memory.get(f"{router}/{REJECTED}", []),
            )
            found += [
                Listed(_id(router, proposal.name), what, proposal)
                for proposal in (Proposal(**each) for each in memory[name])
                if proposal.name not in rejected and accepted.get(proposal.name) != proposal.description
            ]
    return found


def decided(memory: Mapping[str, Any], id: str, accept: bool) -> dict[str, Any]:
    """What memory is to hold once a person has accepted or rejected; rejecting an accepted route withdraws it."""
    states = (PROPOSED,) if accept else (PROPOSED, ACCEPTED)
    wanted = [each for each in listed(memory) if each.id == id and each.state in states]
    if not wanted:
        raise InputError(f"{id}: no such proposal; list them with `dayjob routes`")
    proposal = wanted[0].proposal
    router = f"{PREFIX}/{id.rpartition('/')[0]}"
    accepted = dict(memory.get(f"{router}/{ACCEPTED}", {}))
    rejected = [name for name in memory.get(f"{router}/{REJECTED}", []) if name != proposal.name]
    if accept:
        accepted[proposal.name] = proposal.description
    else:
        accepted.pop(proposal.name, None)
        rejected.append(proposal.name)
    return {f"{router}/{ACCEPTED}": accepted, f"{router}/{REJECTED}": rejected}


def _id(router: str, route: str) -> str:
    return f"{router.removeprefix(PREFIX + '/')}/{_escaped(route)}"


def _router_of(name: str) -> tuple[str, str]:
    router, _, what = name.rpartition("/")
    return (router, what) if name.startswith(f"{PREFIX}/") and name.count("/") == 3 else ("", "")


def _escaped(part: str) -> str:
    return part.replace("%", "%25").replace("/", "%2F")
