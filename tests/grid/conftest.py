"""Which cases: every pair of values; `DAYJOB_GRID=whole` (`make grid`) takes every case."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dayjob.testing import Clock, CrashLab
from tests.bank import Bank
from tests.grid.cases import name_of, pairs, whole
from tests.office import BEAT_SECONDS, LEASE_SECONDS


class Stage:
    """A lab whose clock is set and a bank, open over all cases, and the loop that they live on."""

    def __init__(self, runner: asyncio.Runner, bank: Bank, lab: CrashLab, url: str, clock: Clock) -> None:
        self.run = runner.run
        self.bank = bank
        self.lab = lab
        self.url = url
        self.clock = clock


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    url = f"sqlite:///{tmp_path_factory.mktemp('grid') / Path('grid.db')}?synchronous=off"
    clock = Clock()
    lab = CrashLab(
        url, clock=clock, patience_seconds=30, lease_seconds=LEASE_SECONDS, beat_seconds=BEAT_SECONDS
    )
    with asyncio.Runner() as runner, Bank() as bank:
        runner.run(lab.__aenter__())
        yield Stage(runner, bank, lab, url, clock)
        runner.run(lab.__aexit__())


def pytest_generate_tests(metafunc: Any) -> None:
    if "case" in metafunc.fixturenames:
        cases = list(whole() if os.environ.get("DAYJOB_GRID") == "whole" else pairs())
        metafunc.parametrize("case", cases, ids=map(name_of, cases))
