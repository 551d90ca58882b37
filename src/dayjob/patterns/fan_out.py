"""Parallelisation: map and reduce over parts (sectioning), or the same work several times (voting).

await fan_out(run, parts, summarise, limit=4)                        # sectioning: [Ok(…), Err(…), …]
await fan_out(run, range(5), vote, quorum=3, merge=majority)         # voting: three are enough
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from dayjob.collection import Err, Ok
from dayjob.delegate import delegate
from dayjob.errors import StepError
from dayjob.jobs import Job
from dayjob.run import Run
from dayjob.values import canonical


async def fan_out(
    run: Run,
    items: Iterable[Any],
    work: Job | Callable[[Run, Any], Any],
    *,
    limit: int | None = None,
    quorum: int | None = None,
    merge: Callable[[list[Any]], Any] | None = None,
    name: str = "fan_out",
) -> Any:
    """Does `work(run, item)` for each item side by side, `limit` at a time: `Ok(value)` or `Err(error)` in input order.

    Once `quorum` of them have succeeded the others are cancelled; if fewer do, StepError of type
    QuorumNotMet is raised. `merge` makes one result of the values that came, in order. Work that turns out
    to be larger adds items while it runs, by `await run.more(item)`: their results stand behind the others.
    """
    one = work if not isinstance(work, Job) else lambda inside, item: delegate(inside, work, item, name="run")
    results = await run.collect(one, items, limit=limit, quorum=quorum, name=name)
    values = [result.value for result in results if isinstance(result, Ok)]
    if quorum is not None and len(values) < quorum:
        raise _not_met(results, quorum)
    return results if merge is None else await run.step(merge, values, name=f"{name} merge")


def majority(values: list[Any]) -> Any:
    """The value that was given most often; of several the one that stands first. None of no values."""
    ballots = Counter(map(canonical, values))
    return max(values, key=lambda value: ballots[canonical(value)], default=None)


def _not_met(results: list[Ok | Err], quorum: int) -> StepError:
    errors = [result.error for result in results if isinstance(result, Err)]
    told = f"; the first error: {errors[0]}" if errors else ""
    succeeded = len(results) - len(errors)
    return StepError("QuorumNotMet", f"{succeeded} of {len(results)} succeeded, {quorum} were needed{told}")
