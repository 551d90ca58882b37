"""Routing: passages of a text, each to the desk that it belongs to; what fits none is put before a person.

    dayjob run examples/route.py:sort_passages --model local:
    dayjob run examples/route.py:sort_passages --model openai:gpt-5-mini --input path=report.txt

Afterwards `dayjob routes` lists the desks that the model would open, and the passages that led to them.
"""

from pathlib import Path

from dayjob import Run, job
from dayjob.patterns import route

CONCEPTS = Path(__file__).resolve().parents[1] / "docs" / "concepts.md"
SURE = 0.8


async def files(run: Run, passage: str) -> str:
    """The desk for what is stored: it needs no model."""
    return f"filed under {passage.split()[0]}"


DESKS = {
    "storage": ("Databases, files, what is written to disk and when", files),
    "recovery": "Crashes, replay, what is done again and what is not",
    "money": "Costs, prices, tokens, limits",
}


@job
async def sort_passages(run: Run, path: str = str(CONCEPTS), most: int = 6) -> list[str]:
    passages = await run.step(passages_of, path, most)
    sorted_to = []
    for number, passage in enumerate(passages, 1):
        desk = await route(run, passage, to=DESKS, floor=SURE, otherwise="a person", max_tokens=80)
        sorted_to.append(f"{' '.join(passage.split()[:8])} …  →  {desk}")
        await run.partial(sorted_to)
        run.progress(number, len(passages))
    return sorted_to


def passages_of(path: str, most: int) -> list[str]:
    """The first paragraph of each section."""
    sections = Path(path).read_text().split("\n## ")[2:]
    paragraphs = (section.partition("\n\n")[2].partition("\n\n")[0] for section in sections)
    plain = [" ".join(text.split())[:600] for text in paragraphs if text[:1].isalpha()]
    return plain[:most]
