"""Limits on the command line: given with `run`, shown by `show`, raised by `answer`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.command_line import CommandLine, text_of

JOB = """
from dayjob import Run, job

def twice(n: int) -> int:
    return 2 * n

@job
async def count(run: Run, n: int) -> int:
    for i in range(n):
        await run.partial(await run.step(twice, i))
    return n
"""


@pytest.fixture
def dayjob(tmp_path: Path) -> CommandLine:
    (tmp_path / "counting.py").write_text(JOB)
    return CommandLine(tmp_path)


def count(dayjob: CommandLine, tmp_path: Path, *options: str) -> str:
    done = dayjob("run", f"{tmp_path / 'counting.py'}:count", "-i", "n=5", *options)
    return f"{done.returncode}\n{text_of(done)}"


def test_a_run_that_reaches_its_limit_exits_5_with_the_reason(dayjob: CommandLine, tmp_path: Path) -> None:
    said = count(dayjob, tmp_path, "--max-steps", "3", "--max-dollars", "0.5", "--max-output-tokens", "9000")
    assert said.startswith("5\n")
    assert "limit of 3 steps reached: 3 done" in said
    run = dayjob.last_run()
    assert "$0 of $0.5000 · 0 of 9,000 output tokens · 3 of 3 steps" in dayjob("show", run).stdout
    shown = json.loads(dayjob("show", run, "--json").stdout)
    assert shown["status"] == "incomplete"
    assert shown["output"] == 4
    assert shown["limits"] == {
        "dollars": {"limit": 0.5, "spent": 0.0, "reserved": 0.0},
        "output_tokens": {"limit": 9000, "spent": 0, "reserved": 0},
        "steps": {"limit": 3, "spent": 3, "reserved": 0},
        "on_limit": "stop",
        "run": run,
    }


def test_a_run_that_asks_at_its_limit_exits_6_and_goes_on_with_a_higher_one(
    dayjob: CommandLine, tmp_path: Path
) -> None:
    said = count(dayjob, tmp_path, "--max-steps", "3", "--max-seconds", "86400", "--on-limit", "ask")
    run = dayjob.last_run()
    assert said.startswith("6\n")
    assert f"dayjob answer {run} '#steps' VALUE" in said
    assert dayjob("answer", run, "#steps", "2").returncode == 2
    assert dayjob("answer", run, "#steps", "9").returncode == 0
    assert dayjob("resume", run).returncode == 0


def test_a_run_without_limits_shows_none(dayjob: CommandLine, tmp_path: Path) -> None:
    assert count(dayjob, tmp_path).startswith("0\n")
    run = dayjob.last_run()
    assert "\nlimits " not in dayjob("show", run).stdout
    assert json.loads(dayjob("show", run, "--json").stdout)["limits"] is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--max-steps", "0"), "steps: expected an int above 0"),
        (("--max-dollars", "-1"), "dollars: expected a number above 0"),
        (("--on-limit", "ask"), "at least one of dollars, tokens, input_tokens"),
        (("--max-tokens", "many"), "--max-tokens"),
        (("--max-input-tokens", "0"), "input_tokens: expected an int above 0"),
        (("--max-output-tokens", "0"), "output_tokens: expected an int above 0"),
    ],
)
def test_limits_given_wrongly_exit_2(
    dayjob: CommandLine, tmp_path: Path, options: tuple[str, ...], named: str
) -> None:
    said = count(dayjob, tmp_path, *options)
    assert said.startswith("2\n")
    assert named in said
