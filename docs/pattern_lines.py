"""Prints the table at the top of `patterns.md`: each pattern, the classic that it equals, the lines of its file.

    python docs/pattern_lines.py           prints it
    python docs/pattern_lines.py --write   puts it into the page

`tests/docs/test_patterns.py` compares the two.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("patterns.md")
FOLDER = Path(__file__).resolve().parents[1] / "src" / "dayjob" / "patterns"
CLASSICS = {
    "chain": "pipeline",
    "route": "event router",
    "fan_out": "map-reduce, voting",
    "orchestrate": "master–worker",
    "refine": "review loop",
    "agent": "long-running job",
}
HEAD = "| pattern | the classic | lines |\n|---|---|---|\n"


def table() -> str:
    written = {name: FOLDER / f"{name}.py" for name in CLASSICS}
    rows = [
        f"| [`{name}`](#{name}) | {CLASSICS[name]} | {len(file.read_text().splitlines())} |\n"
        for name, file in written.items()
        if file.exists()
    ]
    return HEAD + "".join(rows)


def with_table(page: str) -> str:
    return re.sub(re.escape(HEAD) + r"(?:\|.*\n)*", lambda _: table(), page)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(with_table(PAGE.read_text()))
    else:
        sys.stdout.write(table())
