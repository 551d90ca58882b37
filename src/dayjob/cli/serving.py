"""`dayjob serve`: the API and a worker in one process. Imported when it is used: a web framework is slow to load."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from rich.text import Text

from dayjob.app import Dayjob
from dayjob.assistant import JOB, assistant_job
from dayjob.cli.files import check_model, load_for_server
from dayjob.cli.printing import err, line_to_type, log_event, print_event, print_line
from dayjob.cli.work import DRAIN_SECONDS, STOPPING, Exit, signals
from dayjob.errors import InputError
from dayjob.jobs import Job
from dayjob.server import Settings, create_server
from dayjob.server.images import seeing
from dayjob.server.listening import bound, is_on_loopback, listening, url_of
from dayjob.server.settings import MEGABYTE
from dayjob.stores import folder_beside


def settings_of(
    store: str, model: str | None, maps: Sequence[str], expires: str, when_busy: str, files: Path | None,
    origins: Sequence[str], max_upload: int, max_body: int,
) -> Settings:  # fmt: skip
    """What the options say. Raises InputError naming the one that is wrong."""
    check_model(model)
    models = dict(_mapped(pair) for pair in maps)
    return Settings(
        models=models,
        answers_any=model is not None or not models,
        expires_seconds=_seconds(expires),
        when_busy=cast(Literal["refuse", "enqueue"], when_busy),
        files=files or folder_beside(store),
        max_body_bytes=max_body * MEGABYTE,
        max_upload_bytes=max_upload * MEGABYTE,
        origins=tuple(map(_origin, origins)),
    )


def _mapped(pair: str) -> tuple[str, str]:
    name, _, model = pair.partition("=")
    if not name or not model:
        raise InputError(f"--map: {pair!r}: expected NAME=MODEL, as gpt-4o=openai:gpt-5-mini")
    check_model(model, "--map")
    return name, model


def _seconds(text: str) -> float | None:
    if text == "none":
        return None
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise InputError(f"--expires: {text!r}: expected seconds, or none")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or url != f"{parts.scheme}://{parts.netloc}" or not parts.netloc:
        raise InputError(f"--origin: {url!r}: expected scheme and host, as https://app.example.com")
    return url


async def serve(
    file: str | None, host: str, port: int, settings: Settings, store: str, model: str | None,
    concurrency: int, as_json: bool,
) -> int:  # fmt: skip
    """Serves until a signal; then streams end, steps in progress may finish, and the runs are given back."""
    jobs = _jobs(file, settings.files)
    _check_folder(settings.files)
    with signals() as stop, _logging(), contextlib.closing(bound(host, port)) as listener:
        on_loopback = is_on_loopback(listener)
        settings = replace(settings, on_loopback=on_loopback)
        async with Dayjob(store, model, jobs.values(), worker=False) as app:
            has_keys = bool(await app.store.api_keys())
            if not has_keys and not on_loopback:
                make_one = line_to_type("keys", "create", "--name", "NAME", "--role", "admin", store=store)
                raise InputError(
                    f"--host: {host} is reached from other machines, and there is no API key yet; "
                    f"make one first: {make_one}"
                )
            app.subscribe(print_event if as_json else log_event)
            async with (
                app.worker(concurrency=concurrency) as worker,
                listening(create_server(app, settings), listener) as opened,
            ):
                _greet(listener, store, model, settings, has_keys, as_json)
                await stop.wait()
                if not as_json:
                    err.print(STOPPING, style="yellow")
                await asyncio.gather(opened.stop(), worker.stop(DRAIN_SECONDS))
    return Exit.COMPLETED


def _jobs(file: str | None, files: Path) -> dict[str, Job]:
    jobs, tools = ({}, {}) if file is None else load_for_server(file)
    return {JOB: assistant_job(tools.values(), seeing(files)), **jobs}


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as problem:
        raise InputError(f"--files: {folder}: {problem.strerror}") from None


def _greet(
    listener: socket.socket, store: str, model: str | None, settings: Settings, has_keys: bool, as_json: bool
) -> None:
    url, door = url_of(listener), "needs an API key" if has_keys else "open: any key or none is accepted"
    if as_json:
        about = {"url": url, "store": store, "model": model, "open": not has_keys}
        print_line({"event": "server.started", "at": time.time(), **about})
        return
    answers = [model] if model else []
    answers += [f"{name} → {answer}" for name, answer in settings.models.items()]
    facts = {
        "url": url,
        "store": store,
        "model": ", ".join(answers) or "none: runs that need one fail; see --model and --map",
        "files": str(settings.files),
        "access": door,
    }
    for name, fact in facts.items():
        err.print(Text.assemble((f"{name:<7}", "dim"), fact), soft_wrap=True)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """What goes wrong in the server is told on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("dayjob.server")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
