"""`kill -9` at random points of its progress, fifty times: what the journal held is never done again."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.acceptance.command_line import JOBS, CommandLine, until

LIVES = 5
KILLS = 10
MOST_AT_ONCE = 4
"""So many chores can have begun without one being done: one more, and the run has made progress."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, list[str]]:
    """The result of the job when nobody kills it, and the chores that it does."""
    calm = CommandLine(tmp_path_factory.mktemp("calm"))
    result = calm("run", f"{JOBS / 'chores.py'}:chores")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), sorted(line.split()[1] for line in calm.lines())


@pytest.mark.parametrize("seed", range(LIVES))
def test_what_was_done_before_a_kill_is_never_done_after_it(
    seed: int, tmp_path: Path, undisturbed: tuple[object, list[str]]
) -> None:
    chance = random.Random(seed)
    command = CommandLine(tmp_path)
    expected, chores = undisturbed
    kills = 0
    while kills < KILLS:
        command.ledger.unlink(missing_ok=True)
        begin = ("run", f"{JOBS / 'chores.py'}:chores")
        killed = live(command, chance, begin)
        run = command.last_run()
        while killed:
            kills += 1
            done, lines = command.done(), len(command.lines())
            killed = live(command, chance, ("resume", run))
            again = {line.split()[1] for line in command.lines()[lines:]}
            assert not done & again, f"done before the kill, and after it again: {sorted(done & again)}"
        shown = command.json("show", run)
        assert shown["status"] == "completed"
        assert shown["output"] == expected
        assert {line.split()[1] for line in command.lines()} == set(chores)
        command.database.unlink()


def live(command: CommandLine, chance: random.Random, arguments: tuple[str, str]) -> bool:
    """One life of a process: killed after some progress, unless it completes the run before that."""
    begun = len(command.lines())
    more = chance.randint(1, 3) if begun == 0 else chance.randint(MOST_AT_ONCE + 1, 16)
    with command.started(*arguments) as process:
        until(lambda: len(command.lines()) >= begun + more or process.poll() is not None, "progress")
        if process.poll() is None:
            process.kill()
        process.communicate()
    assert process.returncode in (0, -9), f"{arguments}: exit code {process.returncode}"
    return process.returncode == -9
