"""Files with jobs: FILE:JOB imported by path, input parsed by the job's own annotations."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import orjson

from dayjob.assistant import JOB
from dayjob.errors import InputError, UnknownJob, text_of
from dayjob.jobs import Job, Request
from dayjob.models import open_model
from dayjob.runs import RunRecord
from dayjob.tools import Tool
from dayjob.values import convert

N = TypeVar("N", Job, Tool[..., Any])

DEBUG = "DAYJOB_DEBUG"


def load(target: str) -> tuple[Path, dict[str, Job]]:
    """The jobs in FILE (or FILE:JOB). Raises InputError saying what is wrong with it."""
    path, module = imported(target)
    jobs = _named(path, module, Job, "job")
    if not jobs:
        raise InputError(f"{path}: has no job; decorate an async function with @job")
    return path, jobs


def load_for_server(target: str) -> tuple[dict[str, Job], dict[str, Tool[..., Any]]]:
    """The jobs and the tools in FILE. Raises InputError saying what is wrong with it."""
    path, module = imported(target)
    jobs, tools = _named(path, module, Job, "job"), _named(path, module, Tool, "tool")
    if JOB in jobs:
        raise InputError(f"{path}: job {JOB!r} has the name of the server's own; give it @job(name=…)")
    if not jobs and not tools:
        raise InputError(f"{path}: has no job and no tool; decorate a function with @job or @tool")
    return jobs, tools


def _named(path: Path, module: ModuleType, kind: type[N], word: str) -> dict[str, N]:
    found: dict[str, N] = {}
    for value in vars(module).values():
        if isinstance(value, kind) and found.setdefault(value.name, value) is not value:
            raise InputError(f"{path}: two {word}s are named {value.name!r}; give one @{word}(name=…)")
    return found


def imported(target: str) -> tuple[Path, ModuleType]:
    """FILE (or FILE:JOB) as a module. Raises InputError saying what is wrong with it."""
    path = Path(_file_of(target)).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"{path}: {'is no file' if path.exists() else 'no such file'}; expected FILE.py:JOB")
    return path, _imported(path)


def job_of(target: str, jobs: dict[str, Job]) -> Job:
    file = _file_of(target)
    name = target[len(file) + 1 :]
    if name:
        return job_named(jobs, name, file)
    if len(jobs) == 1:
        return next(iter(jobs.values()))
    raise InputError(
        f"{target}: has more than one job; name one: {', '.join(f'{file}:{job}' for job in jobs)}"
    )


def job_named(jobs: dict[str, Job], name: str, file: str | Path) -> Job:
    if name not in jobs:
        raise UnknownJob(f"{file}: has no job {name!r}; it has {', '.join(jobs)}")
    return jobs[name]


def _file_of(target: str) -> str:
    file, colon, _ = target.rpartition(":")
    return file if colon and file else target


def _imported(path: Path) -> ModuleType:
    """Imports a file by its path, with its neighbours in reach, or as a part of its package."""
    root, name = path.parent, path.stem
    while (root / "__init__.py").is_file():
        root, name = root.parent, f"{root.name}.{name}"
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        return importlib.import_module(name) if "." in name else _imported_alone(path, name)
    except SyntaxError as problem:
        raise InputError(f"{problem.filename}:{problem.lineno}: {problem.msg}") from problem
    except (Exception, SystemExit) as problem:  # whatever the user's file does
        frames = traceback.extract_tb(problem.__traceback__)
        line = next((f":{frame.lineno}" for frame in reversed(frames) if frame.filename == str(path)), "")
        what = f"{type(problem).__name__}: {text_of(problem)} (the traceback: {DEBUG}=1)"
        raise InputError(f"{path}{line}: cannot be imported: {what}") from problem


def _imported_alone(path: Path, name: str) -> ModuleType:
    """A file may be called like a module that is there already, json.py for one: it must not replace it."""
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"dayjob file {name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def request_for(job: Job, inputs: Sequence[str], input_json: str | None) -> Request:
    """Raises InputError naming the field or the flag."""
    if input_json is not None and inputs:
        raise InputError("--input and --input-json: give one of them")
    if input_json is not None:
        try:
            fields = orjson.loads(input_json)
        except orjson.JSONDecodeError as problem:
            raise InputError(f"--input-json: is no JSON: {problem}") from None
        if not isinstance(fields, dict):
            raise InputError(f"--input-json: expected an object of {job.signature.described()}")
        return job.request(orjson.dumps(fields))
    given: dict[str, Any] = {}
    for pair in inputs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--input {pair!r}: expected NAME=VALUE")
        if name in given:
            raise InputError(f"--input {name}: given twice")
        given[name] = _parsed(name, text, job.signature.types.get(name, Any))
    return job.request(orjson.dumps(given))


def _parsed(name: str, text: str, declared: Any) -> Any:
    """A text as the type wants it: as it is if it fits, else read as JSON."""
    if declared is Any:
        return json_or_text(text)
    with contextlib.suppress(InputError):
        convert(text, declared)
        return text
    value = json_or_text(text)
    try:
        convert(value, declared)
    except InputError as problem:
        raise InputError(f"--input {name}: {problem}") from None
    return value


def json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def source_of(record: RunRecord) -> str:
    if record.source is None:
        raise InputError(
            f"{record.id}: was not started from a file; name the one of job {record.job!r}: --file FILE"
        )
    file, _, job = record.source.rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"{record.id}: its file {file} is gone; say where job {job!r} is now: --file FILE")
    return file


def model_of(record: RunRecord, given: str | None) -> str | None:
    """What the command line names, else what the run began with, else the environment's."""
    default = os.environ.get("DAYJOB_MODEL") or None
    tags = orjson.loads(record.tags) if record.tags else []
    remembered = next((tag.removeprefix("model=") for tag in tags if tag.startswith("model=")), None)
    return (remembered or default) if given in (None, default) else given


def check_model(model: str | None, option: str = "--model") -> None:
    """Raises InputError for what is no model's name; whether it answers is seen when it is used."""
    try:
        if model is not None:
            open_model(model)
    except InputError as problem:
        raise InputError(f"{option}: {problem.message.removeprefix('model: ')}") from None
