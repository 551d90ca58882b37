"""Every Python block in the docs runs, as it stands, as a program of its own."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, named
from tests.wire import Wire, says

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def is_excerpt(block: str) -> bool:
    """Whether a block only shows a part of a program in docs/, which runs by itself."""
    return any(block in program.read_text() for program in DOCS.glob("*.py"))


BLOCKS = [
    pytest.param(block, id=f"{named(page)}-{number}")
    for page in PAGES
    for number, block in enumerate(BLOCK.findall(page.read_text()), 1)
    if not is_excerpt(block)
]


@pytest.mark.parametrize("block", BLOCKS)
async def test_block_runs(block: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(block)
    shutil.copy(ROOT / "README.md", tmp_path)
    async with Wire(says("Dayjob keeps runs.")) as wire:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "example.py",
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "OPENAI_BASE_URL": wire.url, "OPENAI_API_KEY": "sk-example"},
        )  # fmt: skip
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert told_in(block) in ([], out.decode().splitlines())


def told_in(block: str) -> list[str]:
    """What the comments at a block's prints promise: `print(…)  # → text`."""
    return re.findall(r"print\(.*#\s*→ (.*)$", block, re.MULTILINE)


def test_the_readme_shows_a_program() -> None:
    assert len(BLOCK.findall((ROOT / "README.md").read_text())) == 1
