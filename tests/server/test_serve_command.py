"""The installed `dayjob serve` and `dayjob keys`: how they start, refuse, and end."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from dayjob import Dayjob
from dayjob.cli.files import load
from dayjob.cli.printing import log_event
from tests.acceptance.command_line import JOBS, CommandLine, text_of, until

DESK = JOBS / "desk.py"
TOOLS = '''
from dayjob import tool


@tool(effect="read")
def find_order(order_id: str) -> str:
    """Look an order up."""
    return "on its way"
'''


def refused(dayjob: CommandLine, *arguments: str | Path) -> str:
    done = dayjob("serve", "--port", "0", *arguments)
    assert done.returncode == 2, text_of(done)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


# --- starting --------------------------------------------------------------------------------------


def test_it_says_where_it_is_and_that_it_is_open(served: Any) -> None:
    with served("--model", "local:", "--map", "gpt-4o=local:/small.gguf") as (_, url):
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", _strict_response_validation=True)
        assert [model.id for model in client.models.list()] == ["gpt-4o", "local:"]
        client.close()


def test_a_person_is_told_all_of_it_and_nothing_by_uvicorn(dayjob: CommandLine) -> None:
    with dayjob.started("serve", "--port", "0", "--model", "local:") as process:
        assert process.stderr is not None
        told = [process.stderr.readline() for _ in range(5)]
        assert [line.split()[0] for line in told] == ["url", "store", "model", "files", "access"]
        assert "open" in told[-1]
        httpx.get(told[0].split()[1] + "/v1/nothing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read().splitlines() == [
            "stopping: steps in progress may finish; once more to stop at once"
        ]


def test_it_refuses_to_be_reached_from_elsewhere_without_a_key(dayjob: CommandLine) -> None:
    for host in ("0.0.0.0", "::"):
        told = refused(dayjob, "--host", host)
        assert "--host" in told
        assert "dayjob keys create --name NAME --role admin" in told


def test_a_port_in_use_is_said(dayjob: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = refused(dayjob, "--port", str(taken.getsockname()[1]))
    assert "--port" in told
    assert "in use" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--map", "gpt-4o"], "--map: 'gpt-4o': expected NAME=MODEL"),
        (["--map", "gpt-4o=gpt-5"], "--map: 'gpt-5' is not a model's name"),
        (["--model", "gpt-5"], "--model: 'gpt-5' is not a model's name"),
        (["--expires", "soon"], "--expires: 'soon': expected seconds, or none"),
        (["--expires", "nan"], "--expires"),
        (["--origin", "*"], "--origin: '*'"),
        (["--origin", "https://app.example.com/"], "--origin"),
        (["--files", "/dev/null/x"], "--files: /dev/null/x"),
        (["--host", "256.0.0.1"], "--host: '256.0.0.1'"),
        (["nowhere.py"], "no such file"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(
    dayjob: CommandLine, arguments: list[str], told: str
) -> None:
    assert told in refused(dayjob, *arguments)
    assert not dayjob.database.exists()


def test_a_file_is_refused_that_has_nothing_or_the_servers_own_job(dayjob: CommandLine) -> None:
    for code, told in (
        ("x = 1", "has no job and no tool"),
        ("from dayjob import Run, job\n@job\nasync def assistant(run: Run) -> int: ...", "@job(name=…)"),
        ("1/0", "ZeroDivisionError"),
    ):
        file = dayjob.folder / "file.py"
        file.write_text(code)
        assert told in refused(dayjob, file)


# --- working ---------------------------------------------------------------------------------------


def test_tools_of_the_file_are_the_assistants(dayjob: CommandLine) -> None:
    from dayjob.cli.files import load_for_server

    file = dayjob.folder / "shop.py"
    file.write_text(TOOLS)
    jobs, tools = load_for_server(str(file))
    assert (list(jobs), list(tools)) == ([], ["find_order"])


async def test_it_works_on_runs_of_the_files_jobs(dayjob: CommandLine, served: Any) -> None:
    _, jobs = load(str(DESK))
    with served(DESK):
        async with Dayjob(f"sqlite:///{dayjob.database}", worker=False) as app:
            handle = await app.submit(jobs["echo"](n=21))
            assert (await handle.result(timeout=20))["twice"] == 42


async def test_a_key_that_is_made_meanwhile_shuts_the_door(dayjob: CommandLine, served: Any) -> None:
    with served() as (_, url):
        assert httpx.get(f"{url}/v1/models").status_code == 200
        secret = dayjob("keys", "create", "--name", "me", "--role", "admin").stdout.strip()
        until(lambda: httpx.get(f"{url}/v1/models").status_code == 401, "the door to shut")
        bearer = {"authorization": f"Bearer {secret}"}
        assert httpx.get(f"{url}/v1/models", headers=bearer).status_code == 200
        [key] = dayjob.json("keys", "list")["data"]
        assert dayjob("keys", "revoke", key["id"]).returncode == 0
        until(
            lambda: httpx.get(f"{url}/v1/models", headers=bearer).status_code == 401, "the key to be refused"
        )


def test_what_a_client_writes_begins_no_line_in_the_log_and_does_not_steer_the_terminal(capsys: Any) -> None:
    forged = "\x1b[8m\n12:00:00  run_2 echo completed"
    log_event("run.settled", {"run": "run_1", "job": "echo", "status": "cancelled", "reason": forged})
    told = capsys.readouterr().out
    assert "run_2 echo completed" in told
    assert "\x1b" not in told and len(told.splitlines()) == 1


# --- stopping --------------------------------------------------------------------------------------


async def test_sigterm_lets_a_step_finish_and_gives_its_run_back(dayjob: CommandLine, served: Any) -> None:
    file = dayjob.folder / "steps.py"
    file.write_text(STEPS)
    _, jobs = load(str(file))
    with served(file) as (process, url):
        async with Dayjob(f"sqlite:///{dayjob.database}", worker=False) as app:
            handle = await app.submit(jobs["steps"]())
            until((dayjob.folder / "begun").exists, "the first step", process)
            process.send_signal(signal.SIGTERM)
            until(lambda: _refuses(url), "the port to be shut")
            (dayjob.folder / "go").write_text("")
            assert process.wait(30) == 0
            assert str(await handle.status()) == "queued"
            assert [(step.name, step.outcome) for step in await app.steps(handle.id)] == [("first", "value")]
        assert process.stdout is not None
        events = [json.loads(line)["event"] for line in process.stdout.read().splitlines()]
        assert events[-1] == "worker.stopped"


STEPS = """
import time
from pathlib import Path
from dayjob import Run, job

HERE = Path(__file__).parent

def first() -> int:
    (HERE / "begun").write_text("")
    while not (HERE / "go").exists():
        time.sleep(0.01)
    return 1

def second() -> int:
    return 2

@job
async def steps(run: Run) -> int:
    return await run.step(first) + await run.step(second)
"""


def _refuses(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


async def test_a_second_signal_ends_it_at_once(dayjob: CommandLine, served: Any) -> None:
    file = dayjob.folder / "steps.py"
    file.write_text(STEPS)
    _, jobs = load(str(file))
    with served(file) as (process, url):
        async with Dayjob(f"sqlite:///{dayjob.database}", worker=False) as app:
            await app.submit(jobs["steps"]())
        until((dayjob.folder / "begun").exists, "the first step", process)
        process.send_signal(signal.SIGINT)
        until(lambda: _refuses(url), "the port to be shut")
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.wait(30) == 130
        assert time.monotonic() - begun < 5


def test_what_was_done_last_is_in_the_audit_log_after_sigterm(dayjob: CommandLine, served: Any) -> None:
    with served() as (process, url):
        httpx.delete(f"{url}/v1/files/file-nothing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert dayjob.query("SELECT action, status FROM audit") == [("DELETE /v1/files/file-nothing", 404)]


def test_an_idle_connection_holds_nothing_up(served: Callable[..., Any]) -> None:
    with served() as (process, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as idle, httpx.Client() as client:
            idle.send(b"GET /health HTTP/1.1\r\nhost: lo")
            client.get(f"{url}/health")
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0


# --- keys ------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_only_its_hash_is_kept(dayjob: CommandLine) -> None:
    made = dayjob("keys", "create", "--name", "me", "--project", "shop", "--role", "admin")
    secret = made.stdout.strip()
    assert made.returncode == 0, text_of(made)
    assert secret.startswith("dj_")
    assert secret not in made.stderr
    assert secret.encode() not in dayjob.database.read_bytes()
    listed = dayjob("keys", "list")
    assert secret not in listed.stdout
    assert secret[:8] in listed.stdout
    [key] = dayjob.json("keys", "list")["data"]
    assert (key["name"], key["project"], key["role"], key["revoked"]) == ("me", "shop", "admin", None)


def test_keys_as_json(dayjob: CommandLine) -> None:
    made = dayjob.json("keys", "create", "--name", "me")
    assert made["secret"].startswith(made["start"])
    assert made["role"] == "member"
    assert dayjob.json("keys", "revoke", made["id"]) == {"id": made["id"], "revoked": True}
    assert dayjob.json("keys", "list")["data"][0]["revoked"]
    assert "revoked" in dayjob("keys", "list").stdout
    again = dayjob("keys", "revoke", made["id"])
    assert (again.returncode, "before" in again.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "--name", ""), "--name"),
        (("create", "--name", "x", "--project", "a\nb"), "--project"),
        (("create", "--name", "x", "--role", "god"), "--role"),
        (("create",), "--name"),
        (("list",), "no store is there"),
        (("revoke", "key_1"), "no store is there"),
    ],
)
def test_keys_that_are_asked_for_wrongly(dayjob: CommandLine, arguments: tuple[str, ...], told: str) -> None:
    done = dayjob("keys", *arguments)
    assert (done.returncode, told in done.stderr) == (2, True), text_of(done)
    assert not dayjob.database.exists()


def test_an_unknown_key_cannot_be_revoked(dayjob: CommandLine) -> None:
    dayjob("keys", "create", "--name", "me")
    done = dayjob("keys", "revoke", "key_1")
    assert (done.returncode, "key_1: no such key" in done.stderr) == (2, True)
