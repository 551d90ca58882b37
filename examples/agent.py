"""An agent that reads this project's own pages to answer a question.

    dayjob run examples/agent.py:librarian --model local:
    dayjob run examples/agent.py:librarian --model openai:gpt-5-mini --input question="Where do I read about leases?"

It ends with an answer, or with the one reason why there is none. A small model proves the mechanics
and no more.
"""

from pathlib import Path

from dayjob import Run, StepError, job, tool
from dayjob.patterns import agent, auto

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINES = 12
WINDOW_TOKENS = 2000


@tool(effect="read")
def list_pages() -> list[str]:
    """The names of all pages."""
    return sorted(page.stem for page in DOCS.glob("*.md"))


@tool(effect="read", examples=[{"page": "concepts", "word": "lease"}])
def search(page: str, word: str) -> list[str]:
    """The lines of a page in which a word stands.

    Args:
        page: The name of a page, as list_pages gives it.
        word: One word.
    """
    file = DOCS / f"{page}.md"
    if file not in DOCS.glob("*.md"):
        raise ValueError(f"there is no page {page!r}; there are: {', '.join(list_pages())}")
    found = [line.strip() for line in file.read_text().splitlines() if word.lower() in line.lower()]
    return found[:LINES] or [f"no line of {page} has the word {word!r}"]


@job
async def librarian(
    run: Run, question: str = "Which page is about tools? Call list_pages, then search."
) -> str:
    try:
        return await agent(
            run, "You say in one sentence which page of Dayjob answers a question.", question,
            [list_pages, search], done=names_a_page, plan=True, max_steps=6, context=auto(WINDOW_TOKENS),
            max_tokens=60,
        )  # fmt: skip
    except StepError as problem:
        await run.verdict(False, reason=str(problem))
        return f"No answer: {problem}"


def names_a_page(answer: str) -> bool | str:
    return any(page in answer for page in list_pages()) or "Name one of the pages that list_pages gives."
