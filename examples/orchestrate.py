"""Orchestrating: a model plans who reads what in a licence, and writes the answer from what they found.

    dayjob run examples/orchestrate.py:explain --model local:
    dayjob run examples/orchestrate.py:explain --model openai:gpt-5-mini --input approve=true

With `approve=true` the plan is put before you first. A small model may fail to make a valid plan: then
the answer is the reason, and what had been found by then.
"""

import re
from pathlib import Path

from dayjob import Run, StepError, job
from dayjob.patterns import Assignment, orchestrate

LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"
GOAL = "Explain in two sentences what someone who passes this software on has to do."


@job
async def explain(run: Run, goal: str = GOAL, path: str = str(LICENSE), approve: bool = False) -> str:
    async def reader(run: Run, task: Assignment) -> str:
        passage = await run.step(best_passage, path, task.goal)
        reply = await run.model(f"{task.goal}\n\nText:\n{passage}", max_tokens=60)
        return reply.text.strip()

    async def checker(run: Run, task: Assignment) -> str:
        notes = "\n".join(map(str, task.inputs.values())) or task.goal
        reply = await run.model(f"What is missing in these notes?\n\n{notes}", max_tokens=40)
        return reply.text.strip()

    workers = {
        "reader": ("Looks one thing up in the licence", reader),
        "checker": ("Says what is missing in the notes of the tasks that it needs", checker),
    }
    options = {"max_tokens": 250, "temperature": 0.9, "frequency_penalty": 1.0}
    try:
        return await orchestrate(run, goal, workers, approve=approve, limit=2, max_tasks=3, **options)
    except StepError as problem:
        await run.verdict(False, reason=str(problem))
        return f"No answer: {problem}"


def best_passage(path: str, wanted: str) -> str:
    """The paragraph that shares the most words with what is wanted."""
    words = set(re.findall(r"[a-z]{4,}", wanted.lower()))
    paragraphs = [" ".join(text.split()) for text in Path(path).read_text().split("\n\n")]
    return max(paragraphs, key=lambda text: len(words & set(re.findall(r"[a-z]{4,}", text.lower()))))[:1200]
