"""A process killed in the middle of a payment: it is made once, and another process finds out how it stands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from tests.acceptance.command_line import JOBS, CommandLine, text_of, until
from tests.bank import Account, Bank

pytestmark = pytest.mark.timeout(240)
WAITS_FOR_SOMEONE = 6


@pytest.fixture(scope="module")
def bank() -> Iterator[Bank]:
    with Bank() as bank:
        yield bank


class Payments(CommandLine):
    """Commands that pay at one account."""

    def __init__(self, folder: Path, account: Account) -> None:
        super().__init__(folder)
        self.account = account
        self.environment["BANK"] = account.url

    def killed_while_paying(self, how: str, booked: bool) -> str:
        """Runs the job in a process that is killed when its second payment has reached the bank."""
        process: list[Popen[str]] = []
        started = threading.Event()

        def kill() -> None:
            started.wait(60)
            process[0].kill()
            process[0].wait()

        if not booked:
            self.account.trouble("second", "refuse")
        self.account.when("asked", "second", kill)
        with self.started("run", f"{JOBS / 'payer.py'}:pays", "-i", f"how={how}") as killed:
            process.append(killed)
            started.set()
            assert killed.wait(60) == -9
        until(lambda: self.account.bank.active == 0, "the bank to be done with it")
        assert self.account.count("booked", "second") == booked
        return self.last_run()


@pytest.fixture
def payments(tmp_path: Path, bank: Bank) -> Payments:
    return Payments(tmp_path, bank.account())


@pytest.mark.parametrize("booked", [True, False])
def test_a_receiver_that_knows_keys_gets_the_same_one_from_the_next_process(
    tmp_path: Path, bank: Bank, booked: bool
) -> None:
    payments = Payments(tmp_path, bank.account(honours_keys=True))
    run = payments.killed_while_paying("key", booked)
    resumed = payments("resume", run)
    assert resumed.returncode == 0, text_of(resumed)
    account = payments.account
    assert account.standing() == ["first", "second"]
    first, second = account.all("asked", reference="second")
    assert first.key == second.key
    assert payments.json("show", run)["output"] == [h.number for h in account.all("booked")]


@pytest.mark.parametrize("booked", [True, False])
def test_a_person_is_asked_what_became_of_a_payment_that_killed_its_process(
    payments: Payments, booked: bool
) -> None:
    run = payments.killed_while_paying("asking", booked)
    resumed = payments("resume", run)
    assert resumed.returncode == WAITS_FOR_SOMEONE, text_of(resumed)
    assert payments.account.count("asked", "second") == 1
    (action,) = payments.json("actions", run)["data"]
    if booked:
        number = payments.account.all("booked", reference="second")[0].number
        assert payments("answer", run, action["id"], f'{{"result": {number}}}').returncode == 0
    else:
        assert payments("reject", run, action["id"]).returncode == 0
    resumed = payments("resume", run)
    assert resumed.returncode == 0, text_of(resumed)
    assert payments.account.standing() == ["first", "second"]
    assert payments.account.count("asked", "second") == (1 if booked else 2)


def test_a_probe_finds_out_what_became_of_a_payment_that_killed_its_process(payments: Payments) -> None:
    run = payments.killed_while_paying("probe", booked=True)
    with payments.started("worker", JOBS / "payer.py") as worker:
        until(lambda: payments.json("show", run)["status"] == "completed", "the run to complete", worker)
    account = payments.account
    assert account.standing() == ["first", "second"]
    assert account.count("asked", "second") == 1
    assert account.all("looked", reference="second")


def test_another_process_finds_every_undo_again(payments: Payments) -> None:
    """That of a module's tool, of a tool that only a closure knows, and of a step; nothing is done for that."""
    result = payments("run", f"{JOBS / 'payer.py'}:waits")
    assert result.returncode == WAITS_FOR_SOMEONE, text_of(result)
    run = payments.last_run()
    assert payments.account.standing() == ["first", "second", "third"]
    payments("cancel", run)
    with payments.started("worker", JOBS / "payer.py") as worker:
        until(lambda: payments.json("show", run)["status"] == "cancelled", "the run to be cancelled", worker)
    assert [h.reference for h in payments.account.all("reversed")] == ["third", "second", "first"]
    assert len(payments.account.all("asked")) == 3
