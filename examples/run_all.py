"""Runs every example offline, with the packaged model: `make examples`."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DAYJOB = Path(sys.executable).with_name("dayjob")
TIMEOUT_SECONDS = 600
COMMANDS = {
    "digest.py": [DAYJOB, "run", HERE / "digest.py:digest", "--model", "local:"],
    "chain.py": [DAYJOB, "run", HERE / "chain.py:permissions", "--model", "local:"],
    "agent.py": [DAYJOB, "run", HERE / "agent.py:librarian", "--model", "local:"],
    "route.py": [DAYJOB, "run", HERE / "route.py:sort_passages", "--model", "local:"],
    "fan_out.py": [DAYJOB, "run", HERE / "fan_out.py:read_together", "--model", "local:"],
    "orchestrate.py": [DAYJOB, "run", HERE / "orchestrate.py:explain", "--model", "local:"],
    "refine.py": [DAYJOB, "run", HERE / "refine.py:sentence", "--model", "local:"],
    "demo.py": [sys.executable, HERE / "demo.py", "--model", "local:"],
    "refunds.py": [sys.executable, HERE / "refunds_demo.py", "--model", "local:"],
}
PARTS = ("refunds_demo.py", "refunds_mcp.py", "refunds_shop.py")


def main() -> int:
    others = {Path(__file__).name, *PARTS}
    examples = sorted(path.name for path in HERE.glob("*.py") if path.name not in others)
    failed = [example for example in examples if not passes(example)]
    print(f"{len(examples) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def passes(example: str) -> bool:
    if example not in COMMANDS:
        print(f"✗ {example}: say in {Path(__file__).name} how it is run", flush=True)
        return False
    begun = time.monotonic()
    problem = problem_of(COMMANDS[example])
    print(f"{'✗' if problem else '✓'} {example:<12}{time.monotonic() - begun:>7.1f} s", flush=True)
    if problem:
        print(problem, flush=True)
    return problem is None


def problem_of(command: list[str | Path]) -> str | None:
    """Runs an example in a folder of its own; what it said, if it failed."""
    with tempfile.TemporaryDirectory(prefix="dayjob-example-") as folder:
        environment = {**os.environ, "DAYJOB_STORE": f"sqlite:///{folder}/example.db"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, text=True, capture_output=True,
                timeout=TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"took more than {TIMEOUT_SECONDS} s"
    return None if done.returncode == 0 else f"exit code {done.returncode}\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    sys.exit(main())
