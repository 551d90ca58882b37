"""The pages that are tested, and their parts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    """A page's path, as a test's id."""
    return page.relative_to(ROOT).as_posix()


def section(page: Path, title: str) -> str:
    """What stands below a heading, up to the next of its rank."""
    marks, _, _ = title.partition(" ")
    _, found, rest = page.read_text().partition(f"\n{title}\n")
    assert found, f"{named(page)} has no heading {title!r}"
    return re.split(rf"^#{{1,{len(marks)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their headings; `\\|` is a bar in a cell."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for line in table.splitlines()[2:]:
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.append([cell.strip().replace("\\|", "|") for cell in cells])
    return found


def tracked() -> Iterator[Path]:
    """The files of the project, those not yet committed too; none outside a git checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            yield ROOT / name
