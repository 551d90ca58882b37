"""Links between the pages resolve, and nothing in the project names a machine or a registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import FENCE, PAGES, ROOT, named, tracked

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Put together here, so that this file does not name them either.
REGISTRIES = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|crates|rubygems|ghcr|quay)" + r"\.(?:org|com|io)\b"
    r"|\bproxy\.golang" + r"\.org\b|/" + r"simple/"
)
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:home|work|Users|root)" + r"/[\w.]")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower()) for heading in headings)
    return {word.strip().replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_resolve(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("http:", "https:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{named(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{named(page)}: {link}: no such heading"


def test_every_page_is_linked() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text())
    }
    assert set(PAGES) - linked - {ROOT / "README.md"} == set()


@pytest.mark.parametrize("pattern", [REGISTRIES, MACHINE_PATHS], ids=["registries", "machine paths"])
def test_no_file_names(pattern: re.Pattern[str]) -> None:
    found = []
    for file in tracked():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{file.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []
