"""`dayjob routes`: proposals are listed, accepted, rejected and withdrawn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dayjob import Dayjob
from tests.acceptance.command_line import CommandLine, text_of

LEGAL = {"name": "legal", "description": "Contracts", "inputs": ["Who  signs\nthis?", "A contract"]}
BILLING = {"name": "billing", "description": "Invoices, refunds and dunning", "inputs": []}
ID = "support/front door/legal"


@pytest.fixture
async def dayjob(tmp_path: Path) -> CommandLine:
    async with Dayjob(f"sqlite:///{tmp_path}/dayjob.db", worker=False) as app:
        for route in (LEGAL, BILLING):
            await app.memory.set(f"routes/proposed/support/front door/{route['name']}", route)
        await app.memory.set("something/else", 1)
    return CommandLine(tmp_path)


def states(dayjob: CommandLine) -> dict[str, Any]:
    return {route["id"]: route["state"] for route in dayjob.json("routes")["data"]}


def test_proposals_are_shown_with_inputs_and_the_line_to_type(dayjob: CommandLine) -> None:
    told = dayjob("routes").stdout
    assert "legal  proposed  support/front door/legal" in told
    assert "  Contracts\n  - Who signs this?\n  - A contract\n" in told
    assert "dayjob routes --accept 'support/front door/legal'" in told
    assert dayjob.json("routes")["data"][1] == {"id": ID, "state": "proposed", **LEGAL}


def test_an_accepted_route_may_be_withdrawn(dayjob: CommandLine) -> None:
    assert dayjob("routes", "--accept", ID).returncode == 0
    assert states(dayjob) == {ID: "accepted", "support/front door/billing": "proposed"}
    assert dayjob("routes", "--reject", ID).returncode == 0
    assert states(dayjob) == {"support/front door/billing": "proposed"}


def test_a_rejected_proposal_is_gone(dayjob: CommandLine) -> None:
    dayjob("routes", "--reject", "support/front door/billing")
    dayjob("routes", "--reject", ID)
    assert states(dayjob) == {}
    assert "no route is proposed" in dayjob("routes").stderr


def test_routes_accepted_at_the_same_moment_are_all_accepted(dayjob: CommandLine) -> None:
    ids = [ID, "support/front door/billing"]
    with ThreadPoolExecutor() as people:
        done = people.map(lambda id: dayjob("routes", "--accept", id), ids)
        assert [each.returncode for each in done] == [0, 0]
    assert states(dayjob) == dict.fromkeys(ids, "accepted")


def test_an_unknown_id_is_refused(dayjob: CommandLine) -> None:
    done = dayjob("routes", "--accept", "support/legal")
    assert done.returncode == 2, text_of(done)
    assert "support/legal: no such proposal" in done.stderr
