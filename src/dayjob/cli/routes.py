"""`dayjob routes`: what routers propose, and a person's yes or no."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from dayjob import proposals
from dayjob.app import Dayjob
from dayjob.cli.printing import line_to_type, out
from dayjob.proposals import Listed

STATE_STYLES = {"proposed": "yellow", "accepted": "green"}


async def routes_of(app: Dayjob) -> list[Listed]:
    """Every proposal that waits for a person, and every route that was accepted."""
    return proposals.listed(await app.memory.all("routes/"))


async def decide(app: Dayjob, id: str, accept: bool) -> None:
    """Accepts a proposal, or rejects one, or withdraws an accepted route. Raises InputError for an unknown id."""
    await app.memory.set(*proposals.decision(await app.memory.all("routes/"), id, accept))


def route_fields(route: Listed) -> dict[str, Any]:
    proposal = route.proposal
    return {
        "id": route.id,
        "state": route.state,
        "name": proposal.name,
        "description": proposal.description,
        "inputs": proposal.inputs,
    }


def show_routes(found: Sequence[Listed], store: str) -> None:
    for route in found:
        for line in _lines(route, store):
            out.print(line, soft_wrap=True)


def _lines(route: Listed, store: str) -> Iterator[Text]:
    state = (route.state, STATE_STYLES[route.state])
    yield Text.assemble((route.proposal.name, "bold"), "  ", state, "  ", (route.id, "dim"))
    yield Text(f"  {route.proposal.description}")
    for input in route.proposal.inputs:
        yield Text(f"  - {' '.join(input.split())}", "dim")
    if route.state == "proposed":
        yield Text("  " + line_to_type("routes", "--accept", route.id, store=store))
    yield Text("  " + line_to_type("routes", "--reject", route.id, store=store))
