"""`@job`: what it accepts, the requests that it makes, and the version of its code."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from dayjob import InputError, Run, job
from dayjob.jobs import Job


class Ticket(BaseModel):
    id: str
    tags: list[str] = []


@job
async def support(run: Run, ticket: Ticket, urgency: int = 1) -> str:
    """Answers a ticket."""
    return ticket.id


def test_a_job_is_named_and_documented_as_its_function() -> None:
    assert support.name == "support"
    assert support.__doc__ == "Answers a ticket."
    assert repr(support) == "<job support>"
    assert job(name="other")(support.fn).name == "other"


def test_calling_a_job_makes_a_request_and_runs_nothing() -> None:
    request = support(ticket=Ticket(id="A-1"))
    assert request.job is support
    assert orjson.loads(request.input) == {"ticket": {"id": "A-1", "tags": []}, "urgency": 1}
    assert support(Ticket(id="A-1"), 3).input == support(urgency=3, ticket=Ticket(id="A-1")).input


def test_a_request_from_json_fills_in_defaults_as_a_call_does() -> None:
    assert support.request(b'{"ticket":{"id":"A-1"}}') == support(ticket=Ticket(id="A-1"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (support, "job support: ticket: missing (expected ticket: Ticket, urgency: int)"),
        (lambda: support(ticket={"tags": []}), "job support: ticket: "),
        (
            lambda: support(ticket=Ticket(id="A"), urgency="high"),
            "job support: urgency: expected int, got str",
        ),
        (lambda: support(ticket=Ticket(id="A"), colour=1), "job support: colour: unknown"),
        (lambda: support(1, 2, 3), "job support: too many positional arguments"),
        (lambda: support.request(b"{}"), "job support: ticket: missing"),
        (lambda: support.request(b'{"ticket":{}}'), "job support: ticket: id: Field required"),
        (lambda: support.request(b"[]"), "job support: expected a JSON object of ticket: Ticket"),
        (lambda: support.request(b"{"), "job support: expected a JSON object"),
    ],
)
def test_wrong_input_names_the_job_and_the_field(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)


def sync(run: Run) -> None: ...
async def no_run() -> None: ...
async def many(run: Run, *words: str) -> None: ...
async def named(run: Run, **words: str) -> None: ...


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (sync, "job sync: must be an async function"),
        (no_run, "job no_run: its first parameter must be the run"),
        (many, r"job many: \*words is no typed input; name each field"),
        (named, r"job named: \*\*words is no typed input; name each field"),
    ],
)
def test_what_can_be_no_job_is_refused_naming_it(fn: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        job(fn)


# --- versions -----------------------------------------------------------------------------------------

JOB = """
from dayjob import Run, job

@job
async def work(run: Run) -> int:
    return 1
"""
numbers = count()


class Project:
    """A folder with a job in it, loaded anew for each look at its version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("jobs.py", JOB)

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def version(self, name: str = "jobs.py", module: str | None = None) -> str:
        module = module or f"project_{next(numbers)}"
        spec = importlib.util.spec_from_file_location(module, self.folder / name)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        spec.loader.exec_module(loaded)
        work: Job = loaded.work
        return work.version


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield Project(tmp_path)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_comments_and_layout_do_not_change_the_version(project: Project) -> None:
    version = project.version()
    project.write(
        "jobs.py", "# a remark\n\n\n" + JOB.replace("return 1", "return (\n        1  # one\n    )")
    )
    assert project.version() == version


def test_code_changes_the_version(project: Project) -> None:
    version = project.version()
    project.write("jobs.py", JOB.replace("return 1", "return 2"))
    assert project.version() != version


def test_a_helper_elsewhere_in_the_module_changes_the_version(project: Project) -> None:
    version = project.version()
    project.write("jobs.py", JOB + "\ndef helper(): ...\n")
    assert project.version() != version


@pytest.mark.parametrize(
    ("statement", "file"),
    [
        ("import prompts", "prompts.py"),
        ("from prompts import TEXT", "prompts.py"),
        ("import texts.english", "texts/english.py"),
        ("from texts import english", "texts/english.py"),
        ("from texts.english import TEXT", "texts/english.py"),
        ("import texts.english", "texts/__init__.py"),
        ("from texts.english import TEXT", "texts/__init__.py"),
        ("def later():\n    import prompts", "prompts.py"),
    ],
)
def test_project_modules_that_are_imported_change_the_version(
    project: Project, statement: str, file: str
) -> None:
    project.write("prompts.py", "TEXT = 'one'")
    project.write("texts/__init__.py", "")
    project.write("texts/english.py", "TEXT = 'one'")
    project.write("jobs.py", f"{statement}\n{JOB}")
    version = project.version()
    project.write(file, "TEXT = 'two'")
    assert project.version() != version


def test_modules_imported_by_imported_modules_change_the_version_and_circles_end(project: Project) -> None:
    project.write("first.py", "import second")
    project.write("second.py", "import first\nX = 1")
    project.write("jobs.py", "import first\n" + JOB)
    version = project.version()
    project.write("second.py", "import first\nX = 2")
    assert project.version() != version


def test_relative_imports_within_a_package_count(project: Project) -> None:
    project.write("pack/__init__.py", "")
    project.write("pack/helper.py", "X = 1")
    project.write("pack/deep/__init__.py", "")
    project.write("pack/deep/jobs.py", "from ..helper import X\nfrom .. import helper\n" + JOB)
    version = project.version("pack/deep/jobs.py", "pack.deep.jobs")
    project.write("pack/helper.py", "X = 2")
    assert project.version("pack/deep/jobs.py", "pack.deep.jobs") != version


def test_modules_that_are_not_imported_and_installed_packages_do_not_count(project: Project) -> None:
    project.write("unrelated.py", "X = 1")
    project.write("site-packages/library.py", "X = 1")
    project.write(
        "jobs.py", "import sys\nsys.path.append(__file__[:-7] + 'site-packages')\nimport library\n" + JOB
    )
    version = project.version()
    project.write("unrelated.py", "X = 2")
    project.write("site-packages/library.py", "X = 2")
    assert project.version() == version


def test_an_imported_module_that_cannot_be_read_is_left_out(project: Project) -> None:
    project.write("broken.py", "this is no python")
    (project.folder / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nX = 'é'".encode("latin-1"))
    project.write("jobs.py", "if False:\n    import broken\nimport latin\n" + JOB)
    version = project.version()
    (project.folder / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nX = 'è'".encode("latin-1"))
    assert project.version() != version


def test_a_version_that_was_given_is_kept(project: Project) -> None:
    project.write("jobs.py", JOB.replace("@job", "@job(version='2026-11')"))
    assert project.version() == "2026-11"


def test_the_version_does_not_depend_on_the_process_the_place_or_the_locale(
    project: Project, tmp_path: Path
) -> None:
    project.write("jobs.py", "TEXT = 'grüße'\n" + JOB)
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    (elsewhere / "jobs.py").write_bytes((project.folder / "jobs.py").read_bytes())
    code = "import jobs; print(jobs.work.version)"
    shown = {
        subprocess.run(
            [sys.executable, "-X", "utf8=0", "-c", code], cwd=folder, text=True, capture_output=True, check=True,
            env={"PYTHONHASHSEED": seed, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        ).stdout.strip()
        for folder in (project.folder, elsewhere)
        for seed in ("1", "2")
    }  # fmt: skip
    assert shown == {project.version()}


def test_a_job_without_a_file_has_a_version_of_its_own_code() -> None:
    def made(body: str) -> Job:
        source = f"from dayjob import job\n@job\nasync def work(run):\n    return {body}"
        namespace: dict[str, Any] = {"__name__": "nowhere"}
        exec(source, namespace)
        work: Job = namespace["work"]
        return work

    assert made("run.a").version == made("run.a").version
    assert made("run.a").version != made("run.b()").version
    assert made("1").version != made("2").version
