"""Digest a long text: read it, summarise its parts side by side, merge them, check the result.

    dayjob run examples/digest.py:digest --model local:
    dayjob run examples/digest.py:digest --model openai:gpt-5-mini --input path=report.txt

Kill it at any moment; `dayjob resume RUN` goes on with the first step that is not finished.
"""

import re
from pathlib import Path
from textwrap import wrap

from pydantic import BaseModel, Field

from dayjob import Run, job

LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"


class Part(BaseModel):
    number: int
    of: int
    text: str


class Opinion(BaseModel):
    faithful: bool
    reason: str = Field(max_length=240)  # a small model would go on until it is cut off


class Digest(BaseModel):
    summary: str
    parts: list[str]
    grounded: float
    opinion: Opinion


@job
async def digest(run: Run, path: str = str(LICENSE), part_size: int = 1500) -> Digest:
    text = await run.step(read, path)
    parts = await run.step(split, text, part_size)
    await run.note(f"{len(text):,} characters in {len(parts)} parts")

    summaries = await run.map(summarise, parts, key=lambda part: str(part.number), limit=2, name="part")
    summary = await run.step(merge, summaries)

    grounded = await run.step(grounding, summary, text)
    opinion = await run.step(review, summary, summaries)
    await run.verdict(grounded >= 0.6, score=grounded, reason="share of its words that stand in the text")
    return Digest(summary=summary, parts=summaries, grounded=grounded, opinion=opinion)


def read(path: str) -> str:
    return Path(path).read_text()


def split(text: str, size: int) -> list[Part]:
    texts = wrap(" ".join(text.split()), size)
    return [Part(number=number, of=len(texts), text=part) for number, part in enumerate(texts, 1)]


async def summarise(run: Run, part: Part) -> str:
    reply = await run.model(f"Summarise this in one sentence.\n\n{part.text}", max_tokens=48)
    run.progress(part.number, part.of)
    return reply.text.strip()


async def merge(run: Run, summaries: list[str]) -> str:
    notes = "\n".join(f"- {summary}" for summary in summaries)
    reply = await run.model(f"Write one short paragraph that sums up these notes.\n\n{notes}", max_tokens=80)
    return reply.text.strip()


def grounding(summary: str, text: str) -> float:
    """The share of the summary's longer words that the text itself uses: a check that needs no model."""
    words = set(re.findall(r"[a-z]{5,}", summary.lower()))
    known = words & set(re.findall(r"[a-z]{5,}", text.lower()))
    return round(len(known) / len(words), 2) if words else 0.0


async def review(run: Run, summary: str, summaries: list[str]) -> Opinion:
    notes = "\n".join(f"- {summary}" for summary in summaries)
    question = f"Notes:\n{notes}\n\nSummary:\n{summary}\n\nDoes the summary say only what the notes say?"
    reply = await run.model(question, returns=Opinion, max_tokens=120)
    return reply.value
