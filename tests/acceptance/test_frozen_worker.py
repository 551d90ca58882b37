"""A worker that is stopped past its lease, and then continued, changes nothing any more."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.acceptance.command_line import JOBS, CommandLine, until

STEPS = 60
FEW = 10


def test_a_worker_that_thaws_after_its_lease_changes_nothing(tmp_path: Path) -> None:
    command = CommandLine(tmp_path)
    store = f"sqlite:///{command.database}"
    walk = f"{JOBS / 'chores.py'}:long_walk"
    python, script = Path(sys.executable), JOBS / "short_lease.py"
    with command.started("run", walk, "-i", f"steps={STEPS}") as first:
        until(lambda: len(command.lines()) >= 2, "a first step", first)
        first.send_signal(signal.SIGINT)
        assert first.wait() == 130
    run = command.last_run()

    with command.started(script, store, program=python) as frozen:
        until(lambda: held_by(command, run, frozen.pid) and len(command.lines()) >= FEW, "steps", frozen)
        frozen.send_signal(signal.SIGSTOP)
        until(lambda: state_of(frozen.pid) == "T", "the worker to stand still")

        with command.started("worker", JOBS / "chores.py") as second:
            until(
                lambda: status(command, run) == "completed", "the run to be taken over and completed", second
            )
            rows, lines = journal(command, run), command.lines()
            frozen.send_signal(signal.SIGCONT)
            until(
                lambda: registered(command, frozen.pid) == 2, "the thawed worker to notice its death", frozen
            )
            assert journal(command, run) == rows
            assert command.lines() == lines

            second.send_signal(signal.SIGTERM)
            assert second.wait() == 0
        frozen.send_signal(signal.SIGTERM)
        assert frozen.wait() == 0
    assert journal(command, run) == rows
    assert {line.split()[1] for line in lines} == {f"walk:{n}" for n in range(STEPS)}
    by_the_frozen = [line for line in lines if line.startswith(f"{frozen.pid} ")]
    assert by_the_frozen, "the frozen worker had never worked on the run"


def held_by(command: CommandLine, run: str, pid: int) -> bool:
    statement = (
        "SELECT 1 FROM runs JOIN workers ON workers.id = runs.worker WHERE runs.id = ? AND workers.pid = ?"
    )
    return bool(command.query(statement, run, pid))


def registered(command: CommandLine, pid: int) -> int:
    """How often this process has registered as a worker."""
    return len(command.query("SELECT 1 FROM workers WHERE pid = ?", pid))


def status(command: CommandLine, run: str) -> str:
    return str(command.query("SELECT status FROM runs WHERE id = ?", run)[0][0])


def journal(command: CommandLine, run: str) -> list[tuple[object, ...]]:
    steps = command.query("SELECT * FROM steps WHERE run = ? ORDER BY key, attempt", run)
    return steps + command.query("SELECT * FROM runs WHERE id = ?", run)


def state_of(pid: int) -> str:
    """The state of a process, as Linux tells it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
