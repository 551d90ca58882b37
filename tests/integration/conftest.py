"""A database in a temporary folder, a lab in which workers die, and a ledger with nothing in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dayjob.testing import CrashLab
from tests.ledger import executed


@pytest.fixture(autouse=True)
def fresh_ledger() -> None:
    executed.clear()


@pytest.fixture
async def lab() -> AsyncIterator[CrashLab]:
    async with CrashLab(patience_seconds=15) as lab:
        yield lab


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"
