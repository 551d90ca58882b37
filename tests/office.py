"""An app with one worker and a clock that is set: what waits for time or for people, without waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dayjob import Dayjob
from dayjob.runs import Action, Status
from dayjob.testing import Clock
from dayjob.worker import MAX_ATTEMPTS, Worker
from tests.until import until

LEASE_SECONDS = 15.0
BEAT_SECONDS = 0.02


class Office:
    """Passes time in strides that its worker's lease survives."""

    def __init__(self, app: Dayjob, worker: Worker, clock: Clock) -> None:
        self.app = app
        self.worker = worker
        self.clock = clock
        self.events: list[tuple[str, dict[str, Any]]] = []
        app.subscribe(lambda name, fields: self.events.append((name, fields)))

    async def pass_time(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.advance(min(end - self.clock.now, LEASE_SECONDS / 4))
            await until(lambda: self.worker.services.valid_until > self.clock.now)
        self.worker.services.timer(float("-inf"))  # it sweeps now

    async def parked(self, run: str) -> Status:
        async def status() -> Status | None:
            found = (await self.app.get(run)).status
            return found if found.is_parked and run not in self.worker.held else None

        return await until(status)

    async def asked(self, run: str, count: int = 1) -> list[Action]:
        """What a run waits for from people, once it waits for so many answers."""

        async def enough() -> list[Action] | None:
            actions = await self.app.actions(run)
            return actions if len(actions) == count else None

        return await until(enough, what=f"{count} actions")

    def told(
        self, name: str, about: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name and about(fields)]


class PatientOffice(Office):
    """Passes time at once: its worker's lease outlives every jump of the clock."""

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.app.store.sweep(MAX_ATTEMPTS)
        self.worker.poke()
