"""Watch `refunds.py` ask before it pays, be killed while it pays, and pay once all the same.

It types what a person would: `dayjob run`, `actions`, `approve`, `reject`, `resume`, `show`, in a folder of its
own, and looks into the shop at the end of each story.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from refunds_shop import Shop

DAYJOB = Path(sys.executable).with_name("dayjob")
EXAMPLES = Path(__file__).resolve().parent
JOB = str(EXAMPLES / "refunds.py:support")
COMPLETED, FAILED, WAITING = 0, 1, 6
PATIENCE_SECONDS = 60


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--model", default=os.environ.get("DAYJOB_MODEL") or "local:")
    model = options.parse_args().model
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dayjob-refunds-") as folder:
        os.chdir(folder)
        os.environ |= {"DAYJOB_STORE": "sqlite:///dayjob.db", "DAYJOB_MODEL": model}
        shop = Shop("shop.db")
        ada = killed_while_paying(shop)
        refused(shop)
        taken_back(shop)
        paid_once(shop, ada)
    say(f"Every story ended as it must.  ({time.monotonic() - begun:.0f} s in all)")


def killed_while_paying(shop: Shop) -> str:
    say("1. Ada's 129 euros wait for a person. Then the process is killed while the bank is at work.")
    dayjob("run", JOB, "--input", "ticket=Where is my money for A-1042? The lamp came broken.", code=WAITING)
    action = only_action()
    check("nothing is paid before somebody said yes", shop.payments("A-1042") == [])
    dayjob("approve", action["run"], action["id"])

    worker = start("resume", action["run"])
    try:
        until_paid(shop, "A-1042", worker)
    finally:
        worker.kill()
        worker.wait()
    restore_cursor()
    say(f"Killed process {worker.pid} with SIGKILL: the bank has paid, and the journal does not know it.")
    return str(action["run"])


def refused(shop: Shop) -> None:
    say("2. Meanwhile a person refuses to pay Ben. The job hears why, and goes on without.")
    dayjob("run", JOB, "--input", "ticket=My coat A-2718 came too late. I sent it back.", code=WAITING)
    action = only_action()
    dayjob("reject", action["run"], action["id"], "--reason", "the coat was worn")
    dayjob("resume", action["run"])
    check("nothing was paid", shop.payments("A-2718") == [])
    check("Ben has one letter", len(shop.mails("ben@example.org")) == 1)


def taken_back(shop: Shop) -> None:
    say("3. Cem's 20 euros need nobody's yes, but his letter comes back: the job fails, and takes them back.")
    dayjob("run", JOB, "--input", "ticket=My cup A-3090 came broken. Where is my money?", code=FAILED)
    (failed,) = json.loads(dayjob("runs", "--status", "failed", "--json", quiet=True))["data"]
    dayjob("show", failed["id"])
    (payment,) = shop.payments("A-3090")
    check("the payment was taken back", payment.taken_back and payment.requests == 1)
    check("Cem has no letter", shop.mails("cem@gone.invalid") == [])


def paid_once(shop: Shop, run: str) -> None:
    say(
        "4. Back to Ada. As soon as the killed process cannot be sending any more, the shop is asked: did you pay?"
    )
    dayjob("resume", run)
    (payment,) = shop.payments("A-1042")
    check(f"one payment of {payment.amount} euros", payment.amount == 129 and not payment.taken_back)
    check("the shop was sent one request to pay, by the process that was killed", payment.requests == 1)
    check("Ada has one letter", len(shop.mails("ada@example.org")) == 1)


def only_action() -> dict[str, Any]:
    (action,) = json.loads(dayjob("actions", "--json", quiet=True))["data"]
    print(f"  one: {action['id']} of {action['run']}", file=sys.stderr, flush=True)
    return dict(action)


def until_paid(shop: Shop, order_id: str, worker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not shop.payments(order_id):
        check("the process works until it has paid", worker.poll() is None, quiet=True)
        check(f"it pays within {PATIENCE_SECONDS} s", time.monotonic() < deadline, quiet=True)
        time.sleep(0.02)


def dayjob(*arguments: str, code: int = COMPLETED, quiet: bool = False) -> str:
    """Types a command; what it printed, if `quiet` keeps that from the screen."""
    echo(*arguments)
    done = subprocess.run(
        [DAYJOB, *arguments], stdout=subprocess.PIPE if quiet else None, text=True, check=False
    )
    check(f"exit code {code}", done.returncode == code, quiet=True, got=f"exit code {done.returncode}")
    return done.stdout or ""


def start(*arguments: str) -> subprocess.Popen[bytes]:
    echo(*arguments)
    return subprocess.Popen([DAYJOB, *arguments])


def echo(*arguments: str) -> None:
    shown = (argument.replace(f"{EXAMPLES}/", "examples/") for argument in arguments)
    words = [f'"{word}"' if " " in word else word for word in shown]
    print(f"\n$ dayjob {' '.join(words)}", file=sys.stderr, flush=True)


def check(what: str, holds: bool, quiet: bool = False, got: str = "") -> None:
    if not holds:
        raise SystemExit(f"FAILED: expected: {what}{got and f'; got: {got}'}")
    if not quiet:
        print(f"  ✓ {what}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)


def restore_cursor() -> None:
    """A process that is killed cannot tidy up its terminal."""
    if sys.stderr.isatty():
        print("\033[?25h", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
