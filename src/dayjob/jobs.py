"""`@job`: a typed async function and the version of its code."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from hashlib import blake2b
from pathlib import Path
from typing import Any, overload

from dayjob.errors import InputError
from dayjob.shapes import shape_of
from dayjob.values import Signature


@dataclass(frozen=True, slots=True)
class Request:
    """A job with its input: what `submit` and `start` are given. `input` is a JSON object."""

    job: Job
    input: bytes


class Job:
    """A job. Called with its input, it gives a `Request`; nothing runs before that is submitted.

    Raises InputError naming the field that is missing, unknown or of the wrong type.
    """

    def __init__(self, fn: Callable[..., Any], name: str | None = None, version: str | None = None) -> None:
        inner = inspect.unwrap(fn)
        self.name = name or inner.__name__
        if not inspect.iscoroutinefunction(inner):
            raise InputError(f"job {self.name}: must be an async function (run, …input)")
        parameters = list(inspect.signature(inner).parameters.values())
        if not parameters:
            raise InputError(f"job {self.name}: its first parameter must be the run")
        if variadic := [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]:
            shown = str(variadic[0]).partition(":")[0]
            raise InputError(f"job {self.name}: {shown} is no typed input; name each field")
        self.fn = fn
        self._given_version = version
        update_wrapper(self, fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Request:
        try:
            return Request(self, self.signature.encode(self.signature.bind(args, kwargs)))
        except InputError as problem:
            raise InputError(f"job {self.name}: {problem}") from None

    def __repr__(self) -> str:
        return f"<job {self.name}>"

    def request(self, data: bytes) -> Request:
        """A request from a JSON object of input, as a client sends it."""
        try:
            return Request(
                self,
                self.signature.encode(self.signature.bind((), self.signature.decode(data))),
            )
        except InputError as problem:
            raise InputError(f"job {self.name}: {problem}") from None

    @cached_property
    def signature(self) -> Signature:
        return Signature(inspect.unwrap(self.fn), skip_first=True)

    @cached_property
    def version(self) -> str:
        return self._given_version or version_of(inspect.unwrap(self.fn))


@overload
def job(fn: Callable[..., Any], /) -> Job: ...
@overload
def job(*, name: str | None = None, version: str | None = None) -> Callable[[Callable[..., Any]], Job]: ...


def job(
    fn: Callable[..., Any] | None = None, /, *, name: str | None = None, version: str | None = None
) -> Job | Callable[[Callable[..., Any]], Job]:
    """Makes a job of an async function whose first parameter is the run.

    `name` is the function's by default, and unique in an app. `version` is the hash of the code that
    the job reaches in its own project (see `version_of`); give one to decide yourself when code is new.
    """
    if fn is None:
        return lambda decorated: Job(decorated, name, version)
    return Job(fn, name, version)


def version_of(fn: Callable[..., Any]) -> str:
    """The hash of the syntax of the function's module and of the project's modules that it imports.

    Comments and layout do not count, nor do installed packages.
    """
    file = getattr(sys.modules.get(fn.__module__), "__file__", None)
    sources = _project_sources(Path(file), fn.__module__) if file and Path(file).suffix == ".py" else {}
    if not sources:
        try:
            sources = {fn.__qualname__: ast.parse(inspect.cleandoc("\n" + inspect.getsource(fn)))}
        except (OSError, TypeError, SyntaxError):
            return shape_of(fn).code.hex()[:16]
    hash = blake2b(digest_size=8)
    for name in sorted(sources):
        hash.update(name.encode() + b"\0" + ast.dump(sources[name]).encode() + b"\0")
    return hash.hexdigest()


def _project_sources(start: Path, module: str) -> dict[str, ast.Module]:
    """The parsed module and those below the same root that it imports, directly or not, by name."""
    root = start.resolve().parent
    for _ in range(module.count(".") - (0 if start.name != "__init__.py" else -1)):
        root = root.parent
    found: dict[str, ast.Module] = {}
    waiting = [start.resolve()]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(root).as_posix()
        if name in found or "site-packages" in path.parts:
            continue
        try:
            found[name] = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        waiting += _imported(found[name], path, root)
    return found


def _imported(tree: ast.Module, path: Path, root: Path) -> list[Path]:
    """Files below the root that a module imports, wherever in it the import stands; a package's own come with it."""
    names: list[tuple[Path, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(root, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = root if not node.level else path.parents[node.level - 1]
            module = f"{node.module}." if node.module else ""
            names += [(base, module + alias.name) for alias in node.names]
    candidates = [
        base.joinpath(*parts[:length])
        for base, name in names
        for parts in [name.split(".")]
        for length in range(1, len(parts) + 1)
    ]
    files = [file for c in candidates for file in (c.with_suffix(".py"), c / "__init__.py")]
    return [file for file in files if file.is_file() and file.is_relative_to(root)]
