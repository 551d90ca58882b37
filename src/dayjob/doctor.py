"""What is installed, reachable, stuck or wrong; each finding says what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console  # noqa: TID253 - only the command line imports this


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    ok: bool
    found: str
    todo: str = ""

    def fields(self) -> dict[str, Any]:
        return asdict(self)


async def examine(store: str, model: str | None) -> list[Finding]:
    return []


def report(console: Console, findings: list[Finding]) -> None:
    pass
