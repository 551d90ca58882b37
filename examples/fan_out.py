"""Fanning out: the parts of a licence side by side, and a vote on what they come to.

    dayjob run examples/fan_out.py:read_together --model local:
    dayjob run examples/fan_out.py:read_together --model openai:gpt-5-mini --input path=report.txt

A part that turns out to be long adds its second half as a part of its own. Three equal minds of five
voters are enough: the others are cancelled.
"""

import re
from pathlib import Path

from dayjob import Run, StepError, job
from dayjob.patterns import Ok, fan_out, majority

LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"
LONG = 1_000
VOTERS, ENOUGH = 5, 3


@job
async def read_together(run: Run, path: str = str(LICENSE), most: int = 4) -> dict:
    parts = await run.step(parts_of, path, most)
    results = await fan_out(run, parts, sum_up, limit=2)
    sentences = [result.value for result in results if isinstance(result, Ok)]
    await run.partial({"sentences": sentences})

    notes = "\n".join(f"- {sentence}" for sentence in sentences)

    async def vote(run: Run, seed: int) -> bool:
        question = f"{notes}\n\nIs this mostly about what you may do? Answer true or false."
        reply = await run.model(question, returns=bool, max_tokens=8, temperature=1.0, seed=seed)
        return reply.value

    try:
        verdict = await fan_out(run, range(VOTERS), vote, quorum=ENOUGH, merge=majority, name="vote")
    except StepError as problem:
        await run.verdict(False, reason=str(problem))
        verdict = f"No answer: {problem}"
    return {"sentences": sentences, "mostly_permits": verdict}


async def sum_up(run: Run, part: str) -> str:
    if len(part) > LONG:
        half = part.rfind(". ", 0, LONG) + 1 or LONG
        await run.more(part[half:].strip())
        part = part[:half]
    reply = await run.model(f"Sum this up in one short sentence.\n\n{part}", max_tokens=40)
    return reply.text.strip()


def parts_of(path: str, most: int) -> list[str]:
    """The numbered sections of a licence; of another text the paragraphs."""
    text = Path(path).read_text()
    sections = re.split(r"\n\s*\d+\. ", text)[1:] or text.split("\n\n")
    return [" ".join(section.split())[: 2 * LONG] for section in sections][:most]
