"""Refining: one sentence about a licence, judged and made again until it is good or no better.

    dayjob run examples/refine.py:sentence --model local:
    dayjob run examples/refine.py:sentence --model openai:gpt-5-mini --input about="Grant of Patent License"

That it is short, and keeps to the words of the text, is checked by code; the rest is the judge's.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dayjob import Run, StepError, job
from dayjob.patterns import Brief, Constraint, Refined, Verdict, refine

LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"
WORDS = 60
CONSTRAINTS = [
    Constraint(f"At most {WORDS} words.", check="short"),
    Constraint("Use the words of the text.", check="grounded"),
]


@dataclass
class Opinion:
    score: Annotated[float, Field(ge=0, le=1)]
    failed: Annotated[str, Field(max_length=120)]


@job
async def sentence(run: Run, path: str = str(LICENSE), about: str = "Redistribution") -> Refined:
    text = await run.step(passage, path, about)

    async def write(run: Run, brief: Brief) -> str:
        rules = "\n".join(f"- {constraint.text}" for constraint in brief.constraints)
        wrong = "".join(f"\nThe last attempt failed: {what}" for what in brief.failed)
        prompt = f"Say in one sentence what this text is about.\n{rules}{wrong}\n\nText:\n{text}"
        options = {"temperature": 0.3 * brief.round, **brief.options}
        reply = await run.model(prompt, max_tokens=60, **options)
        return reply.text.strip()

    async def review(run: Run, attempt: str) -> Verdict:
        question = (
            f"Text:\n{text}\n\nSentence:\n{attempt}\n\nScore the sentence from 0 to 1, and say what failed."
        )
        try:
            opinion = (await run.model(question, returns=Opinion, max_tokens=200)).value
        except StepError as error:  # a judge that cannot speak has not passed it
            return Verdict(0.0, [error.type])
        return Verdict(opinion.score, [opinion.failed] if opinion.failed else [])

    checks = {"short": is_short, "grounded": lambda attempt: grounding(attempt, text) >= 0.3}
    best = await refine(run, write, review, max_rounds=4, constraints=CONSTRAINTS, checks=checks)
    await run.verdict(best.reason == "passed", score=best.score, reason=best.reason)
    return best


def passage(path: str, about: str) -> str:
    """What stands below a heading."""
    text = Path(path).read_text()
    found = re.search(rf"{re.escape(about)}\..*?(?=\n\s*\d+\. )", text, re.DOTALL)
    return " ".join((found[0] if found else text).split())[:900]


def is_short(attempt: str) -> bool:
    return 0 < len(attempt.split()) <= WORDS


def grounding(attempt: str, text: str) -> float:
    """The share of its longer words that stand in the text."""
    words = set(re.findall(r"[a-z]{5,}", attempt.lower()))
    return len(words & set(re.findall(r"[a-z]{5,}", text.lower()))) / max(len(words), 1)
