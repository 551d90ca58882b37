"""Limits of a run and all its children together: dollars, tokens of input and output, steps and seconds.

A root run that was submitted with `Limits` has a budget in the store, and its children draw on it. What
a call may cost at most is reserved before the call and settled after it, so that calls side by side,
in other processes too, never spend more than there is. A `Budget` is what one worker knows of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

import orjson

from dayjob.errors import InputError
from dayjob.stores import COUNTED, OF_ANSWERS, BudgetRecord, Reservation, Settlement, Store

BILLION = 1_000_000_000
POLL_SECONDS = 0.5
"""How often is looked whether a call in another process has ended, for whose share one waits here."""
MOST = 1_000_000_000
"""Of any limit: what the store can count."""

NAMES = (*COUNTED, "seconds")
"""Everything that may be limited."""

QUESTIONS = {f"#{name}": name for name in NAMES}
"""The names of the actions that ask for a higher limit; no step's own key can begin with a "#"."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run and all its children may spend. Give at least one.

    `dollars` and `tokens` are counted for model calls, `input_tokens` for all their prompts together and
    `output_tokens` for all answers; `steps` for every try of a call, model or tool
    step; `seconds` by the clock on the wall since the run first started, waiting included. At a limit
    the run ends `incomplete` and keeps its partial output, or, with `on_limit="ask"`, waits for a
    person to give a higher one. Raises InputError naming the field.
    """

    dollars: float | None = None
    tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    steps: int | None = None
    seconds: float | None = None
    on_limit: str = "stop"

    def __post_init__(self) -> None:
        for name in NAMES:
            _check(name, getattr(self, name))
        if all(getattr(self, name) is None for name in NAMES):
            raise InputError(f"limits: give at least one of {', '.join(NAMES[:-1])} and {NAMES[-1]}")
        if self.on_limit not in ("stop", "ask"):
            raise InputError(f'limits: on_limit: expected "stop" or "ask", got {self.on_limit!r}')

    def to_json(self) -> bytes:
        return orjson.dumps({field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of each limit, None where there is none. What is in flight counts as spent."""

    dollars: float | None
    tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    steps: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Need:
    """The most that a step may cost, by what is counted.

    `max_tokens` is what the answer may have, `chosen` if the job did not say; `takes_rest` if that is less
    than it would be if more were left.
    """

    amounts: Mapping[str, int]
    max_tokens: int | None = None
    chosen: bool = False
    takes_rest: bool = False


@dataclass(frozen=True, slots=True)
class Reached:
    """A limit that does not allow what comes next, and the words for it; `most` is in the budget's own unit."""

    limit: str
    most: float
    allowed: float
    spent: float
    reason: str


class No(Enum):
    """Why nothing was reserved, besides a limit."""

    LOST = "lost"  # the run is another worker's now
    ROOM_YET = "no room yet"  # others are in flight; what they do not spend comes back


class Budget:
    """A budget, as last heard from the store, shared by all runs of one family in a worker."""

    def __init__(self, store: Store, record: BudgetRecord) -> None:
        self.record = record
        self.raises = 0
        self.most_output: dict[str, int] = {}
        """By model: the most `max_tokens` that its endpoint takes, where that is known to be less."""
        self._store = store
        self._line = asyncio.Lock()
        self._news = asyncio.Event()

    @property
    def asks(self) -> bool:
        return self.record.on_limit == "ask"

    @property
    def until(self) -> float | None:
        """When the time is up."""
        record = self.record
        if record.max_seconds is None or record.started is None:
            return None
        return record.started + record.max_seconds

    def left(self, now: float) -> Left:
        record, until = self.record, self.until
        left: dict[str, Any] = dict.fromkeys(COUNTED)
        left |= {name: _in_units(name, left_of(record, name) or 0) for name in record.most}
        return Left(**left, seconds=record.max_seconds if until is None else max(until - now, 0.0))

    def time_reached(self, now: float) -> Reached | None:
        until = self.until
        if until is None or now < until:
            return None
        allowed, spent = self.record.max_seconds or 0.0, now - (self.record.started or now)
        said = f"limit of {allowed:g} seconds reached: {spent:.1f} s since it started"
        return Reached("seconds", allowed, allowed, spent, said)

    async def look_again(self) -> None:
        """Another process may have raised a limit."""
        found = await self._store.budget(self.record.home, self.record.run)
        if found is not None:
            self.record = found

    async def reserve(self, who: Reservation, need: Callable[[BudgetRecord], Need]) -> Need | Reached | No:
        """Sets aside what a step needs. While others are in flight it waits in line for what they leave over.

        Whoever came first is served first, so that a call that needs much is not passed by small ones for ever.
        """
        if not self._line.locked():
            answer = await self._try(who, need)
            if answer is not No.ROOM_YET:
                return answer
        async with self._line:
            while True:
                self._news.clear()
                answer = await self._try(who, need)
                if answer is not No.ROOM_YET:
                    return answer
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._news.wait()

    async def _try(self, who: Reservation, need: Callable[[BudgetRecord], Need]) -> Need | Reached | No:
        while True:
            wanted = need(self.record)
            rest_of = self.record.spent if wanted.takes_rest else None
            reserved = await self._store.reserve(who._replace(amounts=wanted.amounts, rest_of=rest_of))
            self.record = record = reserved.budget
            if not reserved.held:
                return No.LOST
            if reserved.granted:
                return wanted
            now_wanted = need(record)
            short = _short_of(record, now_wanted)
            if short is not None and not record.reserved[short]:
                return _reached(record, short, now_wanted)
            if short is not None or (now_wanted.takes_rest and _in_flight(record)):
                return No.ROOM_YET

    def settled(self, held: Need, settlement: Settlement) -> None:
        """A step is over: what it left over is free again."""
        record = self.record
        spent, reserved = dict(record.spent), dict(record.reserved)
        for name in COUNTED:
            amount = held.amounts.get(name, 0)
            spent[name] += settlement.spent.get(name, amount)
            reserved[name] = max(reserved[name] - amount, 0)
        self.record = replace(record, spent=spent, reserved=reserved)
        self._news.set()

    def raised(self, limit: str, value: float | None) -> None:
        """A person has answered: with a higher limit, or None to stop at the limits from now on."""
        record = self.record
        self.raises += 1
        if value is None:
            self.record = replace(record, on_limit="stop")
        elif limit == "seconds":
            self.record = replace(record, max_seconds=max(record.max_seconds or 0.0, value))
        else:
            most = to_billionths(value) if limit == "dollars" else int(value)
            self.record = replace(record, most={**record.most, limit: max(record.most.get(limit, 0), most)})
        self._news.set()


def left_of(record: BudgetRecord, limit: str) -> int | None:
    """What can still be reserved, dollars in billionths; None without that limit."""
    most = record.most.get(limit)
    return None if most is None else max(most - record.spent[limit] - record.reserved[limit], 0)


def most_of(record: BudgetRecord, limit: str) -> float:
    """What a limit allows, in the budget's own unit."""
    return (record.max_seconds or 0.0) if limit == "seconds" else record.most[limit]


def to_billionths(dollars: float) -> int:
    """A price, rounded up: what is counted is never less than what was paid."""
    return math.ceil(dollars * BILLION - 0.001)


def limits_fields(record: BudgetRecord) -> dict[str, object]:
    """A budget for people and programs: by limit what is allowed, spent and in flight."""
    found: dict[str, object] = {}
    for name, most in record.most.items():
        counts = {"limit": most, "spent": record.spent[name], "reserved": record.reserved[name]}
        found[name] = {what: _in_units(name, count) for what, count in counts.items()}
    if record.max_seconds is not None:
        found["seconds"] = {"limit": record.max_seconds, "since": record.started}
    return {**found, "on_limit": record.on_limit, "run": record.run}


def in_words(limit: str) -> str:
    return limit.replace("_", " ")


def question_of(reached: Reached) -> dict[str, object]:
    """What a person is asked at a limit, and the schema of the answer: the new limit, or "stop"."""
    number = "number" if reached.limit in ("dollars", "seconds") else "integer"
    return {
        "question": f"{reached.reason[0].upper()}{reached.reason[1:]}. "
        f"Answer with a higher limit of {in_words(reached.limit)}, or stop.",
        "schema": {
            "anyOf": [
                {"type": number, "exclusiveMinimum": reached.allowed, "maximum": MOST},
                {"const": "stop"},
            ]
        },
    }


def _in_units(limit: str, count: int) -> float:
    """A count as people know it: dollars, not their billionths."""
    return count / BILLION if limit == "dollars" else count


def _in_flight(record: BudgetRecord) -> bool:
    return any(record.reserved[name] > 0 for name in OF_ANSWERS)


def _short_of(record: BudgetRecord, need: Need) -> str | None:
    """The first limit that a need does not fit."""
    for limit in reversed(COUNTED):
        most, wanted = record.most.get(limit), need.amounts.get(limit, 0)
        if most is not None and record.spent[limit] + record.reserved[limit] + wanted > most:
            return limit
    return None


def _reached(record: BudgetRecord, limit: str, need: Need) -> Reached:
    most, spent, wanted = record.most[limit], record.spent[limit], need.amounts.get(limit, 0)
    match limit:
        case "dollars":
            said = f"limit of {_money(most)} reached: {_money(spent)} spent"
            said += f", and the next call may cost up to {_money(wanted)}"
        case "steps":
            said = f"limit of {most:,} steps reached: {spent:,} done"
        case _:
            said = f"limit of {most:,} {in_words(limit)} reached: {spent:,} spent"
            said += f", and the next call may take up to {wanted:,}"
    return Reached(limit, most, _in_units(limit, most), _in_units(limit, spent), said)


def _money(billionths: int) -> str:
    dollars = f"{billionths / BILLION:.9f}".rstrip("0")
    whole, _, part = dollars.partition(".")
    return f"${int(whole):,}.{part:0<2}"


def _check(name: str, value: object) -> None:
    if value is None:
        return
    whole = name not in ("dollars", "seconds")
    fits = isinstance(value, int) if whole else isinstance(value, int | float)
    expected = "an int" if whole else "a number"
    if not fits or isinstance(value, bool) or not 0 < value <= MOST:  # type: ignore[operator]
        raise InputError(f"limits: {name}: expected {expected} above 0, up to {MOST:,}, got {value!r}")
