"""What to try next when a step failed: the rungs of a ladder, cheapest first.

    otherwise=[again(), rephrase(), with_model("openai:gpt-5"), split(), ask_person()]

A step is a prompt, in which `{input}` stands for what goes in (or it follows the prompt), or a function
of what goes in. A rung is any `Rung(name, climb)`: `climb(run, trouble)` gives the next attempt's `Tried`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from dayjob.errors import InputError, StepError
from dayjob.run import Run
from dayjob.shapes import shape_of
from dayjob.values import encode

Step = str | Callable[..., Any]
PLACE = "{input}"

REPHRASE = """The answer to this prompt was not accepted.

Prompt:
{prompt}

Reason:
{reason}

Write a better prompt for the same task. Where {place} stands, its input is put in. Reply with the prompt and \
nothing else."""
ASK = "The step {name!r} failed: {reason}. What should its result be?"


@dataclass(frozen=True)
class Tried:
    """What an attempt gave, and what it cost in dollars: None where that is not known here."""

    value: Any
    dollars: float | None = None


@dataclass(frozen=True)
class Trouble:
    """The step that failed, what went into it, and why it was not accepted."""

    name: str
    step: Step
    input: Any
    reason: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    async def attempt(self, run: Run, **options: Any) -> Tried:
        """The step itself, done once more; `options` are those of `run.model`."""
        if not isinstance(self.step, str):
            return Tried(await run.step(self.step, self.input, name=self.name))
        reply = await run.model(self._prompt(), name=self.name, **{**self.options, **options})
        return Tried(reply.text, reply.dollars)

    @property
    def returns(self) -> Any:
        """The type of what the step gives."""
        return str if isinstance(self.step, str) else shape_of(self.step).returns

    def prompt_of(self, rung: str) -> str:
        if not isinstance(self.step, str):
            raise StepError("NoPrompt", f"{rung}: {self.name!r} is a function and has no prompt")
        return self.step

    def _prompt(self) -> str:
        prompt = self.prompt_of("attempt")
        text = self.input if isinstance(self.input, str) else encode(self.input).decode()
        return prompt.replace(PLACE, text) if PLACE in prompt else f"{prompt}\n\n{text}"


@dataclass(frozen=True)
class Rung:
    """One way to try again, by the name under which the journal counts it."""

    name: str
    climb: Callable[[Run, Trouble], Awaitable[Tried]]
    is_checked: bool = True


def again() -> Rung:
    """The same once more: for a model that does not always answer alike, and for what fails now and then."""
    return Rung("again", lambda run, trouble: trouble.attempt(run))


def rephrase() -> Rung:
    """A model rewrites the prompt, knowing the failure: two calls."""

    async def climb(run: Run, trouble: Trouble) -> Tried:
        asked = REPHRASE.format(prompt=trouble.prompt_of("rephrase"), reason=trouble.reason, place=PLACE)
        reply = await run.model(asked, name=f"{trouble.name} rephrased", **trouble.options)
        tried = await replace(trouble, step=reply.text).attempt(run)
        return Tried(tried.value, _sum(reply.dollars, tried.dollars))

    return Rung("rephrase", climb)


def with_model(name: str) -> Rung:
    """The same prompt to another model."""

    async def climb(run: Run, trouble: Trouble) -> Tried:
        trouble.prompt_of(f"with_model {name}")
        return await trouble.attempt(run, model=name)

    return Rung(f"with_model {name}", climb)


def split(parts: Any = 2) -> Rung:
    """The step on each part of a text, side by side; their results, joined by empty lines, are the result."""
    if not isinstance(parts, int) or parts < 2:
        raise InputError(f"split: parts={parts!r}: expected a whole number from 2")

    async def climb(run: Run, trouble: Trouble) -> Tried:
        if not isinstance(trouble.input, str):
            raise StepError("NoText", f"split: what goes into {trouble.name!r} is no text")
        pieces = pieces_of(trouble.input, parts)
        if len(pieces) < 2:
            raise StepError("NoText", f"split: what goes into {trouble.name!r} has no two parts")
        tried = await run.map(partial(_attempt, trouble=trouble), pieces, name=f"{trouble.name} split")
        texts = [each.value for each in tried]
        if not all(isinstance(text, str) for text in texts):
            raise StepError("NoText", f"split: what {trouble.name!r} gives is no text")
        return Tried("\n\n".join(texts), _sum(*(each.dollars for each in tried)))

    return Rung("split", climb)


def ask_person(timeout: float | None = None) -> Rung:
    """A person says what the result should be, in the type that the step gives; no gate looks at it.

    If nobody has after `timeout` seconds the run expires.
    """

    async def climb(run: Run, trouble: Trouble) -> Tried:
        question = ASK.format(name=trouble.name, reason=trouble.reason)
        name = f"{trouble.name} asked"
        return Tried(await run.ask(question, returns=trouble.returns, timeout=timeout, name=name), 0.0)

    return Rung("ask_person", climb, is_checked=False)


def pieces_of(text: str, parts: int) -> list[str]:
    """A text in up to so many parts of about the same length, cut where a paragraph, a line or a word ends."""
    pieces: list[str] = []
    for left in range(parts, 1, -1):
        middle = len(text) // left
        cut = next((at for mark in ("\n\n", "\n", " ") if (at := text.rfind(mark, 0, middle)) > 0), middle)
        pieces.append(text[:cut])
        text = text[cut:]
    return [piece.strip() for piece in (*pieces, text) if piece.strip()]


async def _attempt(run: Run, piece: str, trouble: Trouble) -> Tried:
    return await replace(trouble, input=piece).attempt(run)


def _sum(*dollars: float | None) -> float | None:
    known = [each for each in dollars if each is not None]
    return sum(known) if len(known) == len(dollars) else None
