"""A chain with gates: what a licence allows, in a list, then in one sentence that stands in the text.

    dayjob run examples/chain.py:permissions --model local:
    dayjob run examples/chain.py:permissions --model openai:gpt-5-mini --input path=report.txt

When a gate says no, the ladder is climbed: again, with another prompt, with the text in two halves. If
nothing helps the answer is what there was, and why it was not good enough.
"""

import re
from pathlib import Path

from dayjob import Run, StepError, job
from dayjob.patterns import again, chain, rephrase, split

LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"
WORDS = 60
LIST = "List what this allows, one short line each:\n\n{input}"
SENTENCE = "Say this in one sentence:\n\n{input}"


@job
async def permissions(run: Run, path: str = str(LICENSE), about: str = "Grant of Copyright License") -> str:
    text = await run.step(passage, path, about)
    try:
        return await chain(
            run, text,
            {"list": LIST, "sentence": SENTENCE},
            gates={"list": grounded_in(text), "sentence": is_short},
            otherwise=[again(), rephrase(), split()],
            max_tokens=80,
        )  # fmt: skip
    except StepError as problem:
        await run.verdict(False, reason=str(problem))
        return f"No answer: {problem}"


def passage(path: str, about: str) -> str:
    """The paragraph that begins with a heading."""
    text = Path(path).read_text()
    found = re.search(rf"{re.escape(about)}\..*?(?=\n\n)", text, re.DOTALL)
    return " ".join((found[0] if found else text[:1500]).split())


def grounded_in(text: str):
    known = set(re.findall(r"[a-z]{5,}", text.lower()))

    def grounded(answer: str) -> bool | str:
        words = set(re.findall(r"[a-z]{5,}", answer.lower()))
        share = len(words & known) / max(len(words), 1)
        return share >= 0.5 or f"only {share:.0%} of its words stand in the text"

    return grounded


def is_short(answer: str) -> bool | str:
    count = len(answer.split())
    return 0 < count <= WORDS or f"it has {count} words; expected 1 to {WORDS}"
