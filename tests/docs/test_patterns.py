"""`docs/patterns.md` tells the true lines of each pattern, and every prompt that a pattern adds."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

from dayjob import patterns
from tests.docs.pages import DOCS, section

PAGE = DOCS / "patterns.md"
MODULES = {
    "chain": ("dayjob.ladder",),
    "route": ("dayjob.patterns.route",),
    "orchestrate": ("dayjob.patterns.orchestrate", "dayjob.plans"),
    "agent": ("dayjob.patterns.agent", "dayjob.reflection", "dayjob.conversation", "dayjob.context"),
}


def prompts_of(module: ModuleType) -> list[str]:
    """Its constants that are sentences."""
    values = [value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)]
    return [value for value in values if " " in value]


def test_the_lines_are_those_that_the_script_prints() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "pattern_lines.py"], capture_output=True, text=True, check=True
    )
    assert done.stdout in PAGE.read_text(), "run python docs/pattern_lines.py --write"


def test_a_pattern_that_can_be_imported_has_a_section() -> None:
    page = PAGE.read_text()
    assert [
        name for name in patterns.__all__ if f"`{name}" not in page and f"\n## {name}\n" not in page
    ] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_prompt_that_it_adds_is_told(name: str) -> None:
    told = " ".join(section(PAGE, f"## {name}").split())
    prompts = [prompt for module in MODULES[name] for prompt in prompts_of(import_module(module))]
    assert prompts
    assert [prompt for prompt in prompts if " ".join(prompt.split()) not in told] == []
