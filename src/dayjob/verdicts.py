"""What is said of an attempt, and what the next one is told: pure data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dayjob.errors import InputError

MOST_CONSTRAINTS = 30
"""So many are told to the maker; what a judge asks for beyond them is left out."""


def objection(said: Any, by: str) -> str | None:
    """What a gate or a check has said against a value: None if it passes, "" if it did not say why not.

    Raises InputError for what is neither: a function that forgot to return would else pass, or refuse, for ever.
    """
    if not isinstance(said, bool | str):
        raise InputError(f"{by}: expected True, False, or a text that says why not, got {said!r}")
    return None if said is True else said or ""


@dataclass(frozen=True)
class Constraint:
    """What the next attempt has to hold to, where code can check it the name of a check, and who asked for it."""

    text: str
    check: str | None = None
    origin: str = ""


@dataclass(frozen=True)
class Adjust:
    """What the next attempt does otherwise."""

    model: str | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge says of an attempt: a score from 0 to 1, what failed, and what to do about it."""

    score: float
    failed: list[str] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    adjust: Adjust | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score: expected 0 to 1, got {self.score!r}")

    def passes(self, score: float) -> bool:
        """Whether nothing failed, and the score is high enough; a blank text, as models leave it, is nothing."""
        return self.score >= score and not any(text.strip() for text in self.failed)


@dataclass(frozen=True)
class Brief:
    """What the maker is told: the best so far, what failed in the last attempt, and the constraints by now."""

    round: int
    best: Any = None
    last: Any = None
    failed: list[str] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    adjust: Adjust = Adjust()

    @property
    def options(self) -> dict[str, Any]:
        """For `run.model`: the model and temperature, where the judge has asked for others."""
        return {name: value for name, value in asdict(self.adjust).items() if value not in (None, "")}

    def after(self, made: Any, verdict: Verdict) -> Brief:
        """The brief of the next round: what this one failed in, and what it adds to the constraints."""
        constraints = [*self.constraints]
        for said in verdict.constraints:
            is_new = said.text.strip() and said.text not in {each.text for each in constraints}
            if is_new and len(constraints) < MOST_CONSTRAINTS:
                constraints.append(replace(said, origin=said.origin or f"round {self.round}"))
        return replace(
            self, round=self.round + 1, last=made, failed=verdict.failed,
            constraints=constraints, adjust=verdict.adjust or self.adjust,
        )  # fmt: skip


@dataclass(frozen=True)
class Refined:
    """The best attempt, its score, and why there was no further one."""

    value: Any
    score: float
    reason: str
    rounds: int
    constraints: list[Constraint]
