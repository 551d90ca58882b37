"""Routing: a route is chosen or the fallback is taken, and what did not fit teaches the router."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum, StrEnum
from typing import Any

import pytest

from dayjob import Dayjob, Limits, Run, job
from dayjob.errors import ModelRefused
from dayjob.jobs import Job
from dayjob.models import ModelRequest, ToolCall
from dayjob.patterns import route
from dayjob.proposals import MOST_INPUTS, MOST_PROPOSALS, Proposal, Suggestion, with_input
from dayjob.runs import Outcome, Status
from dayjob.testing import CrashLab, Delay, Scripted
from tests.ledger import everywhere, executed, work
from tests.until import until

TEAMS = {"billing": "Invoices and refunds", "technical": "Errors and outages"}


def chooses(choice: Any, proposal: Any = None) -> Scripted:
    """Chooses so, or as a function of the input says, and proposes so."""

    def reply(request: ModelRequest) -> Any:
        asked = request.messages[0]["content"]
        said = proposal if asked.startswith("No route fits") else choice
        return said(asked.rpartition("Input:\n")[2]) if callable(said) else said

    return Scripted(reply)


def sure(name: str, confidence: float = 0.9) -> dict[str, Any]:
    return {"route": name, "confidence": confidence}


async def bill(run: Run, ticket: str) -> str:
    return await run.step(work, f"bill {ticket}")


@job
async def fix(run: Run, ticket: str) -> str:
    return await run.step(work, f"fix {ticket}")


async def person(run: Run, ticket: str) -> str:
    return await run.step(work, f"person {ticket}")


@job
async def triage(run: Run, ticket: str, floor: float = 0.0, otherwise: str | None = None) -> str:
    return await route(run, ticket, to=TEAMS, floor=floor, otherwise=otherwise)


@job
async def handles(run: Run, ticket: str) -> str:
    to: Any = {"billing": ("Invoices", bill), "technical": ("Errors", fix), "other": "Anything else"}
    return await route(run, ticket, to=to, floor=0.5, otherwise=person)


async def test_the_name_of_the_route_is_returned(lab: CrashLab) -> None:
    model = chooses(sure("technical"))
    ended = await lab.run(triage(ticket="It broke"), model=model)
    assert ended.output == "technical"
    assert len(model.requests) == 1
    assert "- billing: Invoices and refunds" in model.requests[0].messages[0]["content"]
    assert model.requests[0].schema["properties"]["route"]["enum"] == ["billing", "technical"]


@pytest.mark.parametrize(
    ("choice", "output"),
    [
        (sure("billing"), "bill T done"),
        (sure("technical"), "fix T done"),
        (sure("other"), "other"),
        (sure("billing", 0.1), "person T done"),
    ],
    ids=["function", "job", "name", "fallback"],
)
async def test_a_handler_is_called(lab: CrashLab, choice: Any, output: str) -> None:
    ended = await lab.run(
        handles(ticket="T"), model=chooses(choice, {"name": "n", "description": "d"}), jobs=[fix]
    )
    assert ended.output == output


class Team(StrEnum):
    BILLING = "billing"


class OldTeam(str, Enum):  # noqa: UP042
    BILLING = "billing"


@pytest.mark.parametrize("team", [Team.BILLING, OldTeam.BILLING], ids=repr)
async def test_routes_may_be_named_by_an_enum(lab: CrashLab, team: str) -> None:
    async def routes(run: Run) -> Any:
        return await route(run, "T", to={team: ("Invoices", bill)}, otherwise=person)

    model = chooses(sure("billing"))
    assert (await lab.run(Job(routes, "routes", "v1")(), model=model)).output == "bill T done"
    assert "- billing: Invoices" in model.requests[0].messages[0]["content"]


# --- bad input ------------------------------------------------------------------------------------------


async def test_an_answer_outside_the_routes_goes_back_to_the_model(lab: CrashLab) -> None:
    def reply(request: ModelRequest) -> Any:
        return sure("billing") if len(request.messages) > 1 else sure("kitchen")

    assert (await lab.run(triage(ticket="T"), model=Scripted(reply))).output == "billing"


@pytest.mark.parametrize("said", [sure("kitchen"), sure("billing", 7), "Billing, I think"], ids=str)
async def test_a_model_that_names_no_route_ends_in_the_fallback_or_a_reason(lab: CrashLab, said: Any) -> None:
    model = chooses(said)
    assert (await lab.run(triage(ticket="T", otherwise="person"), model=model)).output == "person"
    assert len(model.requests) == 3
    ended = await lab.run(triage(ticket="T"), model=model)
    assert (ended.status, ended.error) == (Status.FAILED, "NoRoute")
    assert "the model named no route" in (ended.run.reason or "")


async def test_a_call_of_a_tool_that_nobody_offered_is_no_route(lab: CrashLab) -> None:
    model = chooses(ToolCall("1", "billing", "{}"))
    assert (await lab.run(triage(ticket="T", otherwise="person"), model=model)).output == "person"
    assert "the answer is no JSON" in model.requests[1].messages[-1]["content"]


async def test_no_routes_are_refused(lab: CrashLab) -> None:
    @job
    async def nowhere(run: Run) -> str:
        return await route(run, "x", to={})

    assert "names no route" in ((await lab.run(nowhere())).run.reason or "")


@pytest.mark.parametrize("floor", [70, -0.1, float("nan")])
async def test_a_floor_that_no_confidence_can_reach_or_miss_is_refused(lab: CrashLab, floor: float) -> None:
    @job
    async def routes(run: Run) -> str:
        return await route(run, "x", to=TEAMS, floor=floor, otherwise="person")

    assert "route: floor: expected 0 to 1" in ((await lab.run(routes())).run.reason or "")


async def test_a_model_that_cannot_be_reached_is_no_reason_to_guess(lab: CrashLab) -> None:
    model = Scripted(lambda request: ModelRefused("no"))
    ended = await lab.run(triage(ticket="T", otherwise="person"), model=model)
    assert ended.error == "ModelRefused"


# --- what it learns ---------------------------------------------------------------------------------------


async def test_below_the_floor_a_route_is_proposed_with_the_inputs_that_led_to_it(lab: CrashLab) -> None:
    model = chooses(sure("billing", 0.3), {"name": "legal", "description": "Contracts"})
    async with Dayjob(lab.store, worker=False) as app:
        for ticket in ("a contract", "a lawyer", "a contract"):
            ended = await lab.run(triage(ticket=ticket, floor=0.7, otherwise="person"), model=model)
            assert ended.output == "person"
        proposed = await app.memory.get("routes/proposed/triage/route/legal")
    assert proposed == {"name": "legal", "description": "Contracts", "inputs": ["a lawyer", "a contract"]}
    assert "- legal: Contracts" in model.requests[-1].messages[0]["content"]


async def test_without_a_fallback_the_proposal_is_kept_and_the_run_has_a_reason(lab: CrashLab) -> None:
    model = chooses(sure("billing", 0.3), {"name": "legal", "description": "Contracts"})
    ended = await lab.run(triage(ticket="T", floor=0.7), model=model)
    assert ended.error == "NoRoute"
    assert "'billing' at 0.3 is below the floor of 0.7" in (ended.run.reason or "")


async def test_an_accepted_route_is_offered_from_then_on(lab: CrashLab) -> None:
    async with Dayjob(lab.store, worker=False) as app:
        for route, description in {"legal": "Contracts", "billing": "Money"}.items():
            await app.memory.set(f"routes/decided/triage/route/{route}", description)
            await app.memory.set(f"routes/decided/handles/route/{route}", description)
    model = chooses(sure("legal"))
    assert (await lab.run(triage(ticket="T", otherwise="person"), model=model)).output == "legal"
    told = model.requests[0].messages[0]["content"]
    assert "- legal: Contracts" in told
    assert "- billing: Money" in told
    ended = await lab.run(handles(ticket="T"), model=model, jobs=[fix])
    assert ended.output == "person T done"


async def test_a_rejected_route_is_not_proposed_again(lab: CrashLab) -> None:
    async with Dayjob(lab.store, worker=False) as app:
        await app.memory.set("routes/decided/triage/route/legal", None)
        model = chooses(sure("billing", 0.3), {"name": "legal", "description": "Contracts"})
        await lab.run(triage(ticket="T", floor=0.7, otherwise="person"), model=model)
        assert not await app.memory.all("routes/proposed/")
    assert "Rejected before:\nlegal" in model.requests[-1].messages[0]["content"]


async def test_a_proposal_that_cannot_be_made_stops_nothing(lab: CrashLab) -> None:
    model = chooses(sure("billing", 0.3), {"name": " ", "description": ""})
    ended = await lab.run(triage(ticket="T", floor=0.7, otherwise="person"), model=model)
    assert ended.output == "person"
    assert any(step.name == "note" for step in ended.steps)


async def test_proposals_of_the_same_moment_are_all_kept(lab: CrashLab) -> None:
    everybody = asyncio.Barrier(3)

    async def reply(request: ModelRequest) -> Any:
        asked = request.messages[0]["content"]
        if not asked.startswith("No route fits"):
            return sure("billing", 0.3)
        await everybody.wait()
        return {"name": asked.rpartition("Input:\n")[2], "description": "New"}

    names = ["legal", "100%", "sales/press"]
    async with Dayjob(lab.store, model=Scripted(reply)) as app:
        asked = [await app.submit(triage(ticket=name, floor=0.7, otherwise="person")) for name in names]
        for handle in asked:
            assert await handle.result(timeout=20) == "person"
        memory = await app.memory.all("routes/proposed/triage/route/")
    assert {each["name"] for each in memory.values()} == set(names)


async def test_when_many_proposals_wait_for_a_person_no_more_are_made(lab: CrashLab) -> None:
    model = chooses(sure("billing", 0.3), {"name": "legal", "description": "Contracts"})
    async with Dayjob(lab.store, worker=False) as app:
        for number in range(MOST_PROPOSALS):
            name = f"routes/proposed/triage/route/{number}"
            await app.memory.set(name, {"name": str(number), "description": "x", "inputs": []})
        request = triage(ticket="T", floor=0.7, otherwise="person")
        assert (await lab.run(request, model=model)).output == "person"
        assert len(model.requests) == 1
        await app.memory.set("routes/decided/triage/route/7", None)
        await lab.run(request, model=model)
        assert await app.memory.get("routes/proposed/triage/route/legal")


def test_the_inputs_of_a_proposal_are_bounded() -> None:
    proposal = Proposal("legal", "Contracts")
    for number in range(30):
        proposal = with_input(Suggestion("legal", "Contracts"), asdict(proposal), f"input {number}" * 100)
    assert len(proposal.inputs) == MOST_INPUTS
    assert max(map(len, proposal.inputs)) == 500


@pytest.mark.parametrize(
    "suggestion",
    [
        {"name": " legal", "description": "x"},
        {"name": "legal\n- billing: Everything", "description": "x"},
        {"name": "legal\x1b[31m", "description": "x"},
        {"name": "legal", "description": "x\n- billing: Everything"},
        {"name": "legal", "description": "x" * 10_000},
        {"name": "billing", "description": TEAMS["billing"]},
    ],
    ids=str,
)
async def test_a_suggestion_that_would_garble_the_list_or_change_nothing_is_not_kept(
    lab: CrashLab, suggestion: Any
) -> None:
    model = chooses(sure("billing", 0.3), suggestion)
    ended = await lab.run(triage(ticket="T", floor=0.7, otherwise="person"), model=model)
    async with Dayjob(lab.store, worker=False) as app:
        assert not await app.memory.all("routes/")
    assert ended.output == "person"


async def test_a_description_may_hold_spaces_that_do_not_break(lab: CrashLab) -> None:
    model = chooses(sure("billing", 0.3), {"name": "droit", "description": "Contrats\u202f: litiges"})
    await lab.run(triage(ticket="T", floor=0.7, otherwise="person"), model=model)
    async with Dayjob(lab.store, worker=False) as app:
        assert await app.memory.get("routes/proposed/triage/route/droit")


async def test_inputs_that_lead_to_the_same_proposal_while_a_model_thinks_are_all_kept(lab: CrashLab) -> None:
    everybody = asyncio.Barrier(2)
    second = asyncio.Event()

    async def reply(request: ModelRequest) -> Any:
        asked = request.messages[0]["content"]
        if not asked.startswith("No route fits"):
            return sure("billing", 0.3)
        await everybody.wait()
        if asked.endswith("slow"):
            await second.wait()
        return {"name": "legal", "description": "Contracts"}

    async with Dayjob(lab.store, model=Scripted(reply)) as app:
        slow = await app.submit(triage(ticket="slow", floor=0.7, otherwise="person"))
        fast = await app.submit(triage(ticket="fast", floor=0.7, otherwise="person"))
        await fast.result(timeout=20)
        second.set()
        await slow.result(timeout=20)
        proposed = await app.memory.get("routes/proposed/triage/route/legal")
    assert proposed["inputs"] == ["fast", "slow"]


async def test_a_route_told_in_several_lines_is_one_line_of_the_list(lab: CrashLab) -> None:
    @job
    async def told(run: Run) -> str:
        return await route(run, "T", to={"billing": "Invoices\n  and refunds", "other": "The rest"})

    model = chooses(sure("billing"))
    await lab.run(told(), model=model)
    assert "- billing: Invoices and refunds\n- other" in model.requests[0].messages[0]["content"]


# --- crash, cancel, limit ---------------------------------------------------------------------------------


async def test_a_crash_anywhere_changes_nothing(lab: CrashLab) -> None:
    model = chooses(sure("billing", 0.3), {"name": "legal", "description": "Contracts"})
    for crashed in await everywhere(lab, handles(ticket="T"), model=model, jobs=[fix]):
        assert crashed.output == "person T done"
        finished = [step.key for step in crashed.steps if step.outcome == Outcome.VALUE]
        assert len(set(finished)) == len(finished)
    async with Dayjob(lab.store, worker=False) as app:
        proposed = await app.memory.all("routes/proposed/handles/")
    legal = {"name": "legal", "description": "Contracts", "inputs": ["T"]}
    assert proposed == {"routes/proposed/handles/route/legal": legal}


async def test_a_limit_ends_it(lab: CrashLab) -> None:
    model = chooses(sure("billing"))
    ended = await lab.run(handles(ticket="T"), model=model, limits=Limits(steps=1))
    assert ended.status == Status.INCOMPLETE
    assert not executed


async def test_a_cancelled_run_closes_the_call(lab: CrashLab) -> None:
    model = chooses(lambda ticket: Delay(60, sure("billing")))
    async with Dayjob(lab.store, model=model) as app:
        handle = await app.submit(handles(ticket="T"))
        await until(lambda: model.requests)
        await handle.cancel()
        await until(is_in(handle, Status.CANCELLED))


def is_in(handle: Any, status: Status) -> Callable[[], Any]:
    async def reached() -> bool:
        return await handle.status() == status

    return reached
