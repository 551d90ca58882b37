"""The installed command line: exit codes, what it prints, and how it answers bad input."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from dayjob import Dayjob
from dayjob.cli.files import load
from tests.acceptance.command_line import JOBS, CommandLine, text_of, until
from tests.wire import Wire, fails, says

DESK = JOBS / "desk.py"


@pytest.fixture
def dayjob(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


# --- exit codes ----------------------------------------------------------------------------------


def test_a_completed_run_exits_0_with_its_output_on_stdout(dayjob: CommandLine) -> None:
    done = dayjob("run", f"{DESK}:echo", "-i", "n=21")
    assert done.returncode == 0, text_of(done)
    assert json.loads(done.stdout)["twice"] == 42
    assert "✓ double" in done.stderr
    assert "completed" in done.stderr


def test_a_value_as_deep_as_may_be_stored_is_shown(dayjob: CommandLine) -> None:
    deep = "[" * 253 + "1" + "]" * 253
    given = f'{{"n":1,"anything":{deep}}}'
    assert dayjob("run", f"{DESK}:echo", "--input-json", given).returncode == 0
    shown = dayjob.json("show", dayjob.last_run())
    assert json.dumps(shown["output"]["anything"]) == json.dumps(shown["input"]["anything"]) == deep


def test_a_failed_run_exits_1_and_says_how_to_go_on(dayjob: CommandLine) -> None:
    done = dayjob("run", f"{DESK}:fails")
    assert done.returncode == 1
    assert "step 'no_luck': ValueError: no luck today" in done.stderr
    assert f"dayjob resume {dayjob.last_run()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_was_undone_is_not_offered_to_be_resumed(dayjob: CommandLine) -> None:
    done = dayjob("run", f"{DESK}:regrets")
    assert done.returncode == 1
    assert "what it did was undone" in done.stderr
    assert f"dayjob show {dayjob.last_run()}" in done.stderr
    assert "dayjob resume" not in done.stderr


def test_a_cancelled_run_exits_3(dayjob: CommandLine) -> None:
    with dayjob.started("run", f"{DESK}:slow") as worker:
        run = until(lambda: begun(dayjob), "a step", worker)
        assert dayjob("cancel", run).returncode == 0
        assert worker.wait() == 3


def test_an_expired_run_exits_4(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:hurried")
    done = dayjob("resume", dayjob.last_run())
    assert done.returncode == 4, text_of(done)


def test_a_run_that_waits_for_someone_exits_6_with_the_line_to_type(dayjob: CommandLine) -> None:
    done = dayjob("run", f"{DESK}:interview")
    run = dayjob.last_run()
    assert done.returncode == 6
    assert "What is your name?" in done.stderr
    assert f"dayjob answer {run} name VALUE" in done.stderr
    assert f"dayjob resume {run}" in done.stderr


def test_a_run_whose_child_waits_for_someone_exits_6(dayjob: CommandLine) -> None:
    done = dayjob("run", f"{DESK}:parent")
    child = dayjob.json("runs", "--job", "interview")["data"][0]["id"]
    assert done.returncode == 6
    assert f"dayjob answer {child} name VALUE" in done.stderr


def test_a_run_that_waits_for_an_event_exits_6_and_goes_on_when_it_was_sent(dayjob: CommandLine) -> None:
    assert dayjob("run", f"{DESK}:listens").returncode == 6
    run = dayjob.last_run()
    assert dayjob("send", run, "go", "now").returncode == 0
    done = dayjob("resume", run)
    assert (done.returncode, done.stdout) == (0, "now\n")


def test_ctrl_c_leaves_the_run_resumable_and_prints_the_line_to_type(dayjob: CommandLine) -> None:
    with dayjob.started("run", f"{DESK}:slow") as worker:
        run = until(lambda: begun(dayjob), "a step", worker)
        worker.send_signal(signal.SIGINT)
        _, told = worker.communicate()
    assert worker.returncode == 130
    assert f"dayjob resume {run}" in told
    assert "Traceback" not in told
    assert dayjob.json("show", run)["status"] == "queued"


def test_ctrl_c_ends_a_job_that_swallows_its_cancellation(dayjob: CommandLine) -> None:
    with dayjob.started("run", f"{DESK}:stubborn") as worker:
        run = until(lambda: begun(dayjob), "a step", worker)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(30) == 130
    assert dayjob("cancel", run).returncode == 0
    assert dayjob.json("show", run)["status"] == "cancelled"


# --- the life of a run ---------------------------------------------------------------------------


def test_answers_are_taken_as_the_question_wants_them(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:interview")
    run = dayjob.last_run()
    assert dayjob("answer", run, "name", "42").returncode == 0
    assert dayjob("resume", run).returncode == 6
    wrong = dayjob("answer", run, "age", "old")
    assert wrong.returncode == 2
    assert "'age'" in wrong.stderr
    assert dayjob("answer", run, "age", "33").returncode == 0
    assert dayjob("resume", run).returncode == 6
    assert dayjob("approve", run, "hire").returncode == 0
    done = dayjob("resume", run)
    assert (done.returncode, done.stdout) == (0, "42, 33, hired\n")


def test_a_rejection_is_a_no(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:interview")
    run = dayjob.last_run()
    for command in (
        ("answer", run, "name", "Ann"),
        ("resume", run),
        ("answer", run, "age", "1"),
        ("resume", run),
    ):
        dayjob(*command)
    assert dayjob("reject", run, "hire").returncode == 0
    assert dayjob("resume", run).stdout == "Ann, 1, not hired\n"


def test_a_run_that_another_process_works_on_is_not_resumed_but_watched(dayjob: CommandLine) -> None:
    with dayjob.started("run", f"{DESK}:slow") as worker:
        run = until(lambda: begun(dayjob), "a step", worker)
        refused = dayjob("resume", run)
        assert refused.returncode == 2
        assert f"process {worker.pid}" in refused.stderr
        with dayjob.started("tail", run, "--json") as tail:
            until(lambda: begun(dayjob, 3), "more steps", worker)
            assert dayjob("cancel", run).returncode == 0
            told, _ = tail.communicate()
        assert tail.returncode == 3
    lines = [json.loads(line) for line in told.splitlines()]
    keys = [line["step"]["key"] for line in lines if line["event"] == "step.finished"]
    assert keys[:3] == ["tick", "tick#2", "tick#3"]
    assert lines[-1]["status"] == "cancelled"


def test_a_worker_drains_on_sigterm_and_exits_0(dayjob: CommandLine) -> None:
    with dayjob.started("worker", DESK, "--json") as worker:
        until(lambda: dayjob.database.exists() and alive(dayjob), "the worker", worker)
        dayjob("run", f"{DESK}:echo", "-i", "n=1")
        worker.send_signal(signal.SIGTERM)
        told, _ = worker.communicate()
    assert worker.returncode == 0
    events = [json.loads(line)["event"] for line in told.splitlines()]
    assert events[0] == "worker.started"
    assert events[-1] == "worker.stopped"


def test_resume_remembers_the_file_and_the_model(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:interview", "--model", "local:/nowhere.gguf")
    run = dayjob.last_run()
    dayjob("answer", run, "name", "Ann")
    assert "local:/nowhere.gguf" in dayjob("resume", run).stderr
    assert dayjob.json("show", run)["source"] == f"{DESK}:interview"


def test_resume_from_a_step_does_it_again(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:echo", "-i", "n=1")
    run = dayjob.last_run()
    refused = dayjob("resume", run)
    assert refused.returncode == 2
    assert "--from" in refused.stderr
    assert "1 step ·" in dayjob("resume", run, "--from", "double").stderr
    assert [step["outcome"] for step in dayjob.json("show", run)["steps"]] == ["superseded", "value"]
    assert "no finished step 'nope'" in dayjob("resume", run, "--from", "nope").stderr


async def test_a_run_of_another_queue_is_resumed_and_cancelled_by_its_id(dayjob: CommandLine) -> None:
    _, jobs = load(str(DESK))
    async with Dayjob(f"sqlite:///{dayjob.database}", worker=False) as app:
        wanted = await app.submit(jobs["echo"](n=21), queue="elsewhere")
        begun = await app.submit(jobs["interview"](), queue="elsewhere", source=f"{DESK}:interview")
    assert (await asyncio.to_thread(dayjob, "resume", wanted.id, "--file", str(DESK))).returncode == 0
    assert (await asyncio.to_thread(dayjob, "resume", begun.id)).returncode == 6
    assert "is cancelled" in (await asyncio.to_thread(dayjob, "cancel", begun.id)).stderr


def test_a_run_whose_process_was_killed_is_cancelled_at_once(dayjob: CommandLine) -> None:
    with dayjob.started("run", f"{DESK}:slow") as worker:
        run = until(lambda: begun(dayjob), "a step", worker)
        worker.kill()
    assert "is cancelled" in dayjob("cancel", run).stderr
    assert dayjob.json("show", run)["status"] == "cancelled"


def test_a_run_that_nobody_works_on_is_cancelled_at_once(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:parent")
    run = dayjob.last_run()
    assert "is cancelled" in dayjob("cancel", run).stderr
    statuses = {found["status"] for found in dayjob.json("runs")["data"]}
    assert statuses == {"cancelled"}
    assert dayjob("cancel", run).returncode == 0


def test_a_deadline_that_no_calendar_holds_is_shown_all_the_same(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:interview")
    run = dayjob.last_run()
    for due in ("1e300", "9e999", "-9e999"):
        with closing(sqlite3.connect(dayjob.database)) as connection, connection:
            connection.execute(f"UPDATE steps SET due = {due}")
        for look in (("actions",), ("show", run), ("show", run, "--json"), ("actions", "--json")):
            shown = dayjob(*look)
            assert (shown.returncode, "What is your name?" in shown.stdout) == (0, True), text_of(shown)


# --- looking -------------------------------------------------------------------------------------


def test_show_gives_the_whole_run_as_json(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:echo", "--input-json", '{"n": 1, "person": {"name": "Ann"}}')
    shown = dayjob.json("show", dayjob.last_run())
    assert shown["status"] == "completed"
    assert shown["input"]["person"] == {"name": "Ann", "age": 3}
    assert shown["output"]["person"] == "Ann"
    assert [(step["key"], step["kind"], step["value"]) for step in shown["steps"]] == [("double", "call", 2)]
    assert shown["usage"] == {"input_tokens": 0, "output_tokens": 0, "cached_tokens": 0}
    assert (shown["error"], shown["actions"], shown["dollars"]) == (None, [], 0)


async def test_show_step_prints_the_exact_prompt_and_the_reply(dayjob: CommandLine) -> None:
    async with Wire(says("Hello there")) as wire:
        done = await typed(dayjob, "run", f"{DESK}:says", "--model", "openai:m", url=wire.url)
    assert (done.returncode, done.stdout) == (0, "Hello there\n"), text_of(done)
    shown = dayjob("show", dayjob.last_run(), "--step", "model").stdout
    assert "Say hello." in shown
    assert "Hello there" in shown


def test_runs_lists_filters_and_sums(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:echo", "-i", "n=1")
    dayjob("run", f"{DESK}:fails")
    data = dayjob.json("runs")["data"]
    assert [(run["job"], run["status"]) for run in data] == [("fails", "failed"), ("echo", "completed")]
    assert [run["job"] for run in dayjob.json("runs", "--status", "failed")["data"]] == ["fails"]
    assert [run["job"] for run in dayjob.json("runs", "--job", "echo", "--limit", "1")["data"]] == ["echo"]
    table = dayjob("runs").stdout
    assert all(run["id"] in table for run in data)
    sums = {row["job"]: row for row in dayjob.json("runs", "--by-job")["data"]}
    assert (sums["echo"]["completed"], sums["fails"]["failed"]) == (1, 1)


def test_doctor_finds_an_interrupted_run_and_says_what_to_do(dayjob: CommandLine) -> None:
    with dayjob.started("run", f"{DESK}:slow") as worker:
        run = until(lambda: begun(dayjob), "a step", worker)
        assert dayjob("doctor").returncode == 0
        worker.kill()
        worker.wait()
    found = dayjob("doctor")
    assert found.returncode == 1
    assert f"dayjob resume {run}" in found.stdout
    assert dayjob.json("doctor")["ok"] is False


async def test_doctor_asks_the_endpoint_of_a_claude(dayjob: CommandLine) -> None:
    key = "sk-ant-secret-key"

    async def doctor(url: str, key: str) -> CompletedProcess[str]:
        told = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": key}
        return await asyncio.to_thread(dayjob, "doctor", "--model", "anthropic:claude-test", **told)

    async with Wire(says("Hi"), fails(401)) as wire:
        well, refused = await doctor(wire.url, key), await doctor(wire.url, key)
        (asked, _) = wire.requests
    missing = await doctor("", "")
    assert (well.returncode, refused.returncode, missing.returncode) == (0, 1, 1)
    assert "anthropic:claude-test: http://127.0.0.1" in well.stdout
    assert (asked.path, asked.headers["authorization"]) == ("/v1/models", f"Bearer {key}")
    assert "check ANTHROPIC_API_KEY" in refused.stdout
    assert "set ANTHROPIC_API_KEY" in missing.stdout
    assert key not in well.stdout + refused.stdout


# --- bad input -----------------------------------------------------------------------------------

MISTAKES = {
    "no such file": (["run", "nofile.py:x"], "nofile.py: no such file"),
    "unknown job": (["run", f"{DESK}:nope"], "has no job 'nope'; it has echo, fails"),
    "no job named": (["run", f"{DESK}"], "name one"),
    "missing field": (["run", f"{DESK}:echo"], "n: missing"),
    "unknown field": (["run", f"{DESK}:echo", "-i", "n=1", "-i", "m=1"], "m: unknown"),
    "wrong type": (["run", f"{DESK}:echo", "-i", "n=many"], "--input n: expected int, got str 'many'"),
    "no value": (["run", f"{DESK}:echo", "-i", "n"], "expected NAME=VALUE"),
    "given twice": (["run", f"{DESK}:echo", "-i", "n=1", "-i", "n=2"], "--input n: given twice"),
    "no JSON": (["run", f"{DESK}:echo", "--input-json", "{"], "--input-json: is no JSON"),
    "no object": (["run", f"{DESK}:echo", "--input-json", "[1]"], "--input-json: expected an object"),
    "both inputs": (["run", f"{DESK}:echo", "-i", "n=1", "--input-json", "{}"], "give one of them"),
    "no model's name": (["run", f"{DESK}:says", "--model", "gpt"], "--model: 'gpt' is not a model's name"),
    "no store's URL": (["runs", "--store", "dayjob.db"], "store: 'dayjob.db' is no URL"),
    "no such store": (["runs"], "no store is there"),
    "not yet": (["runs", "--store", "postgresql://localhost/x"], "postgresql:// is not supported yet"),
    "unwritable": (
        ["run", f"{DESK}:fails", "--store", "sqlite:////proc/no/x.db"],
        "/proc/no/x.db: cannot be",
    ),
    "a directory": (["run", f"{DESK}:fails", "--store", f"sqlite:///{JOBS}"], "is a directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_that_names_it(dayjob: CommandLine, mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    done = dayjob(*arguments)
    assert done.returncode == 2, text_of(done)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not dayjob.database.exists(), "a mistake made a store"


FILES = {
    "from dayjob import job\ndef f(:\n": "jobs.py:2: invalid syntax",
    "import nothing_of_that_name\n": "jobs.py:1: cannot be imported: ModuleNotFoundError",
    "\nraise SystemExit(3)\n": "jobs.py:2: cannot be imported: SystemExit: 3",
    "x = 1\n": "has no job",
}


@pytest.mark.parametrize("source", FILES)
def test_a_file_that_cannot_be_used_says_where(dayjob: CommandLine, source: str) -> None:
    (dayjob.folder / "jobs.py").write_text(source)
    done = dayjob("run", "jobs.py:x")
    assert done.returncode == 2
    assert FILES[source] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_sees_its_neighbours_and_may_be_called_like_a_module_of_python(dayjob: CommandLine) -> None:
    (dayjob.folder / "neighbour.py").write_text("NAME = 'Ann'\n")
    (dayjob.folder / "json.py").write_text(
        "from dayjob import job\nfrom neighbour import NAME\n\n@job\nasync def who(run):\n    return NAME\n"
    )
    assert dayjob("run", "json.py:who").stdout == "Ann\n"


def test_a_file_in_a_package_may_import_relatively(dayjob: CommandLine) -> None:
    package = dayjob.folder / "office"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "names.py").write_text("NAME = 'Bob'\n")
    (package / "work.py").write_text(
        "from dayjob import job\nfrom .names import NAME\n\n@job\nasync def who(run):\n    return NAME\n"
    )
    assert dayjob("run", "office/work.py:who").stdout == "Bob\n"


def test_unknown_runs_steps_and_actions_are_named(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:interview")
    run = dayjob.last_run()
    for arguments, message in (
        (["show", "run_x"], "run_x: no run of that id"),
        (["tail", "run_x"], "run_x: no run of that id"),
        (["resume", "run_x"], "run_x: no run of that id"),
        (["cancel", "run_x"], "run_x: no run of that id"),
        (["send", "run_x", "go"], "run_x: no run of that id"),
        (["show", run, "--step", "nope"], "no step 'nope'"),
        (["answer", run, "nope", "1"], "it waits for 'name'"),
    ):
        done = dayjob(*arguments)
        assert (done.returncode, message in done.stderr) == (2, True), f"{arguments}: {text_of(done)}"


def test_a_run_whose_file_has_moved_asks_for_it(dayjob: CommandLine) -> None:
    here, there = dayjob.folder / "here.py", dayjob.folder / "there.py"
    here.write_text(DESK.read_text())
    dayjob("run", "here.py:fails")
    here.rename(there)
    run = dayjob.last_run()
    refused = dayjob("resume", run)
    assert refused.returncode == 2
    assert "--file FILE" in refused.stderr
    assert dayjob("resume", run, "--file", "there.py").returncode == 1


def test_a_file_of_another_program_and_a_newer_store_are_left_alone(dayjob: CommandLine) -> None:
    dayjob.database.write_text("This is a letter, and no database at all.")
    refused = dayjob("run", f"{DESK}:fails")
    assert (refused.returncode, "is no SQLite database" in refused.stderr) == (2, True)
    dayjob.database.unlink()
    with closing(sqlite3.connect(dayjob.database)) as connection:
        connection.execute("CREATE TABLE notes (text)")
    refused = dayjob("run", f"{DESK}:fails")
    assert (refused.returncode, "another program" in refused.stderr) == (2, True)
    dayjob.database.unlink()
    dayjob("run", f"{DESK}:fails")
    with closing(sqlite3.connect(dayjob.database)) as connection:
        connection.execute("PRAGMA user_version = 99")
    refused = dayjob("runs")
    assert (refused.returncode, "has schema 99" in refused.stderr) == (2, True)


def test_a_store_that_another_program_locks_is_said_to_be(dayjob: CommandLine) -> None:
    dayjob("run", f"{DESK}:fails")
    with closing(sqlite3.connect(dayjob.database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        refused = dayjob("run", f"{DESK}:fails")
    assert refused.returncode == 1, text_of(refused)
    assert "lock" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("says", "step 'model': ModelNotConfigured"),
        ("no_json", "step 'pair': set is no JSON"),
        ("too_large", "step 'novel': 50.0 MB"),
    ],
)
def test_what_a_step_cannot_do_fails_the_run_and_names_the_step(
    dayjob: CommandLine, job: str, message: str
) -> None:
    done = dayjob("run", f"{DESK}:{job}")
    assert done.returncode == 1
    assert message in done.stderr
    assert dayjob.json("show", dayjob.last_run())["status"] == "failed"


async def test_a_wrong_key_fails_the_run_and_names_it(dayjob: CommandLine) -> None:
    async with Wire(fails(401, {"message": "Incorrect API key provided"})) as wire:
        done = await typed(dayjob, "run", f"{DESK}:says", "--model", "openai:m", url=wire.url)
    assert done.returncode == 1
    assert "401" in done.stderr
    assert "key" in done.stderr


async def test_a_model_that_answers_nonsense_fails_the_run_and_names_it(dayjob: CommandLine) -> None:
    async with Wire(says("A lovely shade of blue")) as wire:
        done = await typed(dayjob, "run", f"{DESK}:paints", "--model", "openai:m", url=wire.url)
    assert done.returncode == 1
    assert "InvalidAnswer" in done.stderr
    assert "no JSON" in done.stderr


# --- small parts ---------------------------------------------------------------------------------


async def typed(dayjob: CommandLine, *arguments: str, url: str) -> CompletedProcess[str]:
    """Types a command while the wire of this test's event loop answers."""
    return await asyncio.to_thread(dayjob, *arguments, OPENAI_BASE_URL=url, OPENAI_API_KEY="sk-secret-key")


def begun(dayjob: CommandLine, steps: int = 1) -> str:
    """The last run, once it has so many finished steps."""
    if not dayjob.database.exists() or not dayjob.query("SELECT 1 FROM sqlite_schema WHERE name = 'steps'"):
        return ""
    finished = dayjob.query("SELECT run FROM steps WHERE seq IS NOT NULL")
    return str(finished[0][0]) if len(finished) >= steps else ""


def alive(dayjob: CommandLine) -> bool:
    return bool(
        dayjob.query("SELECT 1 FROM sqlite_schema WHERE name = 'workers'")
        and dayjob.query("SELECT 1 FROM workers WHERE dead = 0")
    )
