"""`import dayjob` is light: what costs is imported on first use."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "anthropic", "fastapi", "genai_prices", "httpx", "httpx2", "jsonschema", "mcp", "openai", "pydantic", "rich",
    "sqlite3", "starlette", "typer", "uvicorn", "xllamacpp",
)  # fmt: skip


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_importing_dayjob_loads_nothing_heavy() -> None:
    loaded = python("import dayjob, sys; print(*sys.modules)").split()
    assert "dayjob.app" in loaded
    assert sorted(set(HEAVY) & set(loaded)) == []


def test_the_command_line_loads_no_web_framework_unless_it_serves() -> None:
    loaded = python("import dayjob.cli, sys; print(*sys.modules)").split()
    assert {"fastapi", "starlette", "uvicorn"} & set(loaded) == set()


def test_an_app_with_a_job_and_a_plain_type_needs_no_pydantic_before_it_is_opened() -> None:
    code = (
        "import sys\nfrom dayjob import Dayjob, Run, job\n"
        "@job\nasync def work(run: Run, n: int, note: str = 'x') -> dict: ...\n"
        "app = Dayjob('sqlite:///never-opened.db', model='openai:gpt', jobs=[work])\nwork(n=1)\nprint(*sys.modules)"
    )
    assert sorted(set(HEAVY) & set(python(code).split())) == []


def test_importing_dayjob_does_nothing() -> None:
    code = (
        "import os, sys, threading\nbefore = set(os.listdir('.')), len(os.listdir('/dev/fd'))\nimport dayjob\n"
        "print(before == (set(os.listdir('.')), len(os.listdir('/dev/fd'))), threading.active_count())"
    )
    assert python(code).split() == ["True", "1"]
