"""Watch a real job work, be killed half-way with `kill -9`, and resume: `make demo`.

It runs the installed command line as you would type it, in a folder of its own, and proves at the
end, from the journal, that no finished step was done twice.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dayjob import Dayjob
from dayjob.runs import Kind, Outcome, StepRecord

DAYJOB = Path(sys.executable).with_name("dayjob")
DIGEST = Path(__file__).resolve().parent / "digest.py"
WORK = (Kind.CALL, Kind.MODEL)


async def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--model", default=os.environ.get("DAYJOB_MODEL") or "local:")
    model = options.parse_args().model
    with tempfile.TemporaryDirectory(prefix="dayjob-demo-") as folder:
        os.environ["DAYJOB_STORE"] = store = f"sqlite:///{folder}/demo.db"
        os.environ.pop("DAYJOB_MODEL", None)
        async with Dayjob(store, worker=False) as app:
            return await demonstrate(app, model)


async def demonstrate(app: Dayjob, model: str) -> int:
    begun = time.monotonic()
    worker = start("run", f"{DIGEST}:digest", "--model", model)
    try:
        run = await half_way(app, worker)
    finally:
        worker.kill()
        worker.wait()
    restore_cursor()
    before = await app.steps(run)
    say(f"Killed process {worker.pid} with SIGKILL: {len(done(before))} steps were done. Now resume it.")

    code = start("resume", run, output=subprocess.DEVNULL).wait()
    after = await app.steps(run)
    return verdict(before, after, code, time.monotonic() - begun)


def start(*arguments: str, output: int | None = None) -> subprocess.Popen[bytes]:
    say(f"$ dayjob {' '.join(arguments)}")
    return subprocess.Popen([DAYJOB, *arguments], stdout=output)


async def half_way(app: Dayjob, worker: subprocess.Popen[bytes]) -> str:
    """Waits until half of the parts are summarised, and says which run it is."""
    while worker.poll() is None:
        for run in await app.runs():
            steps = await app.steps(run.id)
            parts = next((len(json.loads(s.value or b"[]")) for s in steps if s.key == "split"), 0)
            summaries = [s for s in steps if s.scope == "part" and s.outcome == Outcome.VALUE]
            if parts and len(summaries) >= parts / 2:
                return run.id
        await asyncio.sleep(0.05)
    raise SystemExit(f"the run ended (exit code {worker.returncode}) before it was half-way")


def verdict(before: list[StepRecord], after: list[StepRecord], code: int, seconds: float) -> int:
    """Whether each step that was done before the kill is still that very row, and no step was done twice."""
    rows = {(step.key, step.attempt): identity(step) for step in after}
    redone = [step.key for step in done(before) if rows.get((step.key, step.attempt)) != identity(step)]
    keys = [step.key for step in done(after)]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    reused, now = len(done(before)), len(keys) - len(done(before))
    if code or redone or twice or not reused or not now:
        say(f"FAILED: exit code {code}; changed: {redone or 'none'}; done twice: {twice or 'none'}")
        return 1
    say(
        f"{reused} steps reused, {now} done after the kill, none done twice.  ({seconds:.0f} s in all)\n"
        "Proof: each reused row of the journal is, byte for byte, the one that stood there at the kill."
    )
    return 0


def done(steps: list[StepRecord]) -> list[StepRecord]:
    """Calls and model calls that gave something; a model's answer that had to be corrected did not."""
    return [step for step in steps if step.kind in WORK and step.value is not None and step.error is None]


def identity(step: StepRecord) -> tuple[object, ...]:
    """A step that is done again is another row: it gets another nonce, another time and another place."""
    return step.nonce, step.seq, step.epoch, step.started, step.ended, step.outcome, step.value


def say(text: str) -> None:
    print(f"\n{text}\n", file=sys.stderr, flush=True)


def restore_cursor() -> None:
    """A process that is killed cannot tidy up its terminal."""
    if sys.stderr.isatty():
        print("\033[?25h", end="", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
