"""The grid: what can befall a run with effects, as axes; every pair of values, or every case of the whole.

In the whole the first axes are multiplied; the others, and the moment of a death, take turns.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dayjob
from dayjob.testing import Death, Moment

Case = Mapping[str, Any]
WRITES = 16
"""A run of the grid writes about so often; one that writes less often just ends."""
_MULTIPLIED = 7
SEED = 20
MOMENTS = tuple(Moment)

AXES: dict[str, Sequence[Any]] = {
    "death": (None, *(Death(write, moment) for write in range(1, WRITES + 1) for moment in MOMENTS)),
    "effect": ("read", "idempotent", "write to keys", "write to probe", "write to ask"),
    "approval": (False, True),
    "cancel": ("never", "early", "waiting", "during", "after", "unwinding"),
    "streaming": (False, True),
    "place": ("job", "branch", "child"),
    "end": ("complete", "fail", "reject", *(("limit",) if hasattr(dayjob, "Limits") else ())),
    "trouble": ("none", "slow", "drop", "500 after", "500 before", "refuse"),
    "join": ("gather", "map"),
    "undo": ("fine", "fine", "fine", "drop"),
}
_RULES: tuple[Callable[[Case], bool], ...] = (
    lambda case: case.get("cancel") != "waiting" or case.get("approval", True),
    lambda case: case.get("end") != "reject" or case.get("approval", True),
    lambda case: case.get("cancel") != "unwinding" or case.get("end", "fail") in ("fail", "reject"),
    lambda case: case.get("end") != "reject" or case.get("cancel", "never") not in ("during", "after"),
    lambda case: case.get("effect") != "read" or case.get("trouble", "none") in ("none", "500 before"),
)


def name_of(case: Case) -> str:
    death = case["death"]
    names = [
        f"{death.moment}_{death.write}" if death else "alive",
        *(case[axis] for axis in AXES if axis != "death"),
    ]
    return "-".join(str(name).replace(" ", "_") for name in names)


def pairs() -> list[Case]:
    """Cases in which every two values that may meet do meet; where that leaves a choice, chance makes it."""
    chance = random.Random(SEED)
    missing = {
        pair
        for one, other in itertools.combinations(AXES, 2)
        for pair in itertools.product(_values(one), _values(other))
        if _is_allowed(dict(pair))
    }
    cases: list[Case] = []
    while missing:
        case = dict(min(missing, key=repr))
        for axis in AXES:
            if axis not in case:
                fitting = [value for value in _values(axis) if _is_allowed({**case, axis: value[1]})]
                chance.shuffle(fitting)
                case[axis] = max(fitting, key=lambda value: len(_met(value, case) & missing))[1]
        case = {axis: case[axis] for axis in AXES}
        missing -= {pair for axis, value in case.items() for pair in _met((axis, value), case)}
        cases.append(case)
    return cases


def whole() -> Iterator[Case]:
    """Every allowed case of the first axes; the others take turns."""
    _, *names = AXES
    names, others = names[: _MULTIPLIED - 1], names[_MULTIPLIED - 1 :]
    turns = {name: itertools.cycle(AXES[name]) for name in others}
    for number, values in enumerate(itertools.product(*(AXES[name] for name in names))):
        case = dict(zip(names, values, strict=True))
        for write in range(WRITES + 1) if _is_allowed(case) else ():
            case["death"] = Death(write, MOMENTS[(number + write) % len(MOMENTS)]) if write else None
            for name, turn in turns.items():
                case[name] = next(value for value in turn if _is_allowed({**case, name: value}))
            yield dict(case)


def _values(axis: str) -> list[tuple[str, Any]]:
    return [(axis, value) for value in dict.fromkeys(AXES[axis])]


def _met(value: tuple[str, Any], case: Case) -> set[tuple[Any, Any]]:
    """The pairs that a value makes with those of a case, each as `missing` has it."""
    order = list(AXES)
    return {
        (value, other) if order.index(value[0]) < order.index(other[0]) else (other, value)
        for other in case.items()
        if other[0] != value[0]
    }


def _is_allowed(case: Case) -> bool:
    return all(rule(case) for rule in _RULES)
