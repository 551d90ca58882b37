"""How long the property tests search: `DAYJOB_SEARCH=long make test ARGS=tests/property` looks further."""

import asyncio
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from dayjob.testing import CrashLab

_everywhere = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}
settings.register_profile("ci", derandomize=True, max_examples=50, **_everywhere)
settings.register_profile("long", max_examples=1_000, **_everywhere)
settings.load_profile(os.environ.get("DAYJOB_SEARCH", "ci"))


class Bench:
    """A lab that stays open over all examples, and the loop that it lives on."""

    def __init__(self, runner: asyncio.Runner, lab: CrashLab) -> None:
        self.run = runner.run
        self.lab = lab


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with asyncio.Runner() as runner:
        lab = runner.run(CrashLab(patience_seconds=10).__aenter__())
        yield Bench(runner, lab)
        runner.run(lab.__aexit__())
