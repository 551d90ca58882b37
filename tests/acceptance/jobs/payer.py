"""A job that pays twice at a bank behind a real wire, by whichever tool it is told."""

import os
from typing import Any

import httpx2

from dayjob import Call, NotDone, Run, job, tool

BANK = os.environ.get("BANK", "")


def send(method: str, to: str, key: str = "") -> Any:
    reply = httpx2.request(method, f"{BANK}/{to}", headers={"Idempotency-Key": key}, trust_env=False)
    if reply.status_code == 404:
        return {"number": None}
    return reply.raise_for_status().json()


def take_back(call: Call, result: Any) -> None:
    send("DELETE", call.arguments["to"])


def take_step_back(call: Call, result: Any) -> None:
    (to,) = call.arguments["args"]
    send("DELETE", to)


def find(call: Call) -> Any:
    return send("GET", call.arguments["to"])["number"] or NotDone


@tool(key_lifetime=3600, undo=take_back)
def by_key(call: Call, to: str) -> int:
    return send("POST", to, call.key)["number"]


@tool(undo=take_back)
def by_asking(call: Call, to: str) -> int:
    return send("POST", to, call.key)["number"]


@tool(probe=find, timeout=4, undo=take_back)
def by_probe(call: Call, to: str) -> int:
    return send("POST", to, call.key)["number"]


TOOLS = {"key": by_key, "asking": by_asking, "probe": by_probe}


def plainly(to: str) -> int:
    return send("POST", to)["number"]


@job
async def pays(run: Run, how: str) -> list[int]:
    return [await run.tool(TOOLS[how], to=to) for to in ("first", "second")]


def made_here() -> Any:
    """A tool that only a closure knows."""

    def back(call: Call, result: Any) -> None:
        send("DELETE", call.arguments["to"])

    @tool(undo=back)
    def pay(call: Call, to: str) -> int:
        return send("POST", to, call.key)["number"]

    async def waits(run: Run) -> str:
        await run.tool(by_key, to="first")
        await run.tool(pay, to="second")
        await run.step(plainly, "third", undo=take_step_back)
        return await run.ask("Is that right?")

    return waits


waits = job(name="waits")(made_here())
