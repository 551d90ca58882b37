"""How a step gets its share of a budget before it is done, and settles it in the entry that writes its row."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import orjson

from dayjob.errors import StepError
from dayjob.limits import Budget, Need, No, Reached, left_of, most_of, question_of, to_billionths
from dayjob.models import Model, ModelReply, ModelRequest, Priced, Usage
from dayjob.runs import Kind, Outcome, StepRecord
from dayjob.steps import Steps, never, patiently
from dayjob.stores import COUNTED, BudgetRecord, Entry, Raise, Reservation, Settlement
from dayjob.values import canonical

MOST_OUTPUT_TOKENS = 131_072
"""More than this is not set aside for one answer: the models that would write more are few."""
LEAST_OUTPUT_TOKENS = 16
MESSAGE_TOKENS = 16
"""For what a chat template puts around a message."""
REQUEST_TOKENS = 128
"""For what a template puts around a conversation: a few open models have a preamble of their own."""
TOOLS_TOKENS = 512
"""For the instructions that some providers add when there are tools."""
IMAGE_TOKENS = 65_536
"""For an image: what the dearest counts of tiles come to."""


class Hold:
    """What a try of a step has reserved; it ends by `commit`, `spend_all` or `give_back`."""

    def __init__(self, run: Steps, budget: Budget, key: str, attempt: int, need: Need) -> None:
        self._run = run
        self._budget = budget
        self._key = key
        self._attempt = attempt
        self._need = need

    @property
    def max_tokens(self) -> int | None:
        """What the answer may have because of the limits; None: they leave it as it was asked for."""
        return self._need.max_tokens

    @property
    def chosen_max_tokens(self) -> int | None:
        """The same, where the job did not say how many."""
        return self._need.max_tokens if self._need.chosen else None

    async def commit(
        self, row: StepRecord, reply: ModelReply | None = None, billed: bool = True, **more: Any
    ) -> None:
        """Writes the step's row together with what it cost: with no figures, all that was reserved."""
        settlement = self._settlement(reply, billed)
        try:
            await self._run.commit(row, settled=settlement, **more)
        finally:
            self._budget.settled(self._need, settlement)

    def spend_all(self) -> None:
        """The step was cut off in flight: it may have been billed."""
        self._settle(Settlement(self._key, self._attempt, {}))

    def give_back(self) -> None:
        """Nothing was begun."""
        self._settle(Settlement(self._key, self._attempt, dict.fromkeys(COUNTED, 0)))

    def _settlement(self, reply: ModelReply | None, billed: bool) -> Settlement:
        spent: dict[str, int] = {}
        if not billed:
            spent = {name: 0 for name in COUNTED if name != "steps"}
        elif reply is not None:
            if reply.dollars is not None:
                spent["dollars"] = to_billionths(reply.dollars)
            usage = reply.usage
            if tokens := usage.input_tokens + usage.output_tokens:
                spent |= {
                    "tokens": tokens,
                    "input_tokens": usage.input_tokens,
                    "output_tokens": usage.output_tokens,
                }
        return Settlement(self._key, self._attempt, spent)

    def _settle(self, settlement: Settlement) -> None:
        """Without a row. If the run was lost meanwhile, who takes it over counts the reservation in full."""
        journal = self._run.journal
        durable = asyncio.get_running_loop().create_future()
        durable.add_done_callback(lambda _: self._budget.settled(self._need, settlement))
        journal.store.put(
            Entry(journal.home, journal.run, journal.epoch, durable=durable, settled=settlement, more=True)
        )


async def hold_step(run: Steps, key: str) -> Hold | None:
    """Reserves a step for a function or a tool. May end the run or wait for a person: see `Limits`."""
    budget = _budget_of(run)
    if run.keeper.end is not None:  # what is done at the end must not fail for a limit of steps or time
        return None
    if "steps" not in budget.record.most:
        await _until_in_time(run, budget)
        return None
    return await _hold(run, key, lambda record: Need({"steps": 1}))


async def hold_model(run: Steps, key: str, model: Model, request: ModelRequest) -> Hold | None:
    """Reserves the most that a model call may cost. May end the run or wait for a person: see `Limits`.

    Raises StepError if nobody can say beforehand what the call may cost.
    """
    budget = _budget_of(run)
    if not budget.record.most:
        if run.keeper.end is None:
            await _until_in_time(run, budget)
        return None
    return await _hold(run, key, await _most_of(run, budget, model, request))


def accept_less_output(run: Steps, model: Model, held: Hold, error: StepError) -> bool:
    """Whether an endpoint refused the call for a `max_tokens` that it was given because of the limits.

    Nobody publishes how many tokens each model may write; so half as many are tried, and that is kept in mind.
    """
    tried = held.chosen_max_tokens
    said = error.message.lower()
    told = any(word in said for word in ("max_tokens", "max_completion_tokens", "context length"))
    if tried is None or error.type != "ModelRefused" or not told or tried < 1024:
        return False
    _budget_of(run).most_output[model.name] = tried // 2
    return True


def _budget_of(run: Steps) -> Budget:
    assert run.keeper.budget is not None
    return run.keeper.budget


# --- reserving -----------------------------------------------------------------------------------


async def _hold(run: Steps, key: str, need: Callable[[BudgetRecord], Need]) -> Hold:
    """Reserves until it fits: others may have to end first, or a person to raise a limit."""
    keeper, journal, budget = run.keeper, run.journal, _budget_of(run)
    while True:
        attempt = journal.attempts_of(key) + 1
        who = Reservation(journal.home, journal.run, journal.epoch, budget.record.run, key, attempt, {})
        found: Need | Reached | No | None = None
        raises = budget.raises
        if keeper.end is None:
            found = budget.time_reached(journal.clock())
        if found is None:
            try:
                found = await patiently(partial(budget.reserve, who, need))
            except asyncio.CancelledError:  # the store may have granted it all the same
                Hold(run, budget, key, attempt, Need({})).give_back()
                raise
        if isinstance(found, Need):
            held = Hold(run, budget, key, attempt, found)
            if run.scope.closed:  # the run came to its end meanwhile, and its tasks are about to be cancelled
                held.give_back()
                await never()
            if keeper.dormant or not keeper.valid(journal.clock()):
                await keeper.ready(run.scope)
            return held
        if run.scope.closed:
            await never()
        if isinstance(found, No):
            keeper.lose()
            await never()
        else:
            await _at_limit(run, budget, found, raises)


async def _until_in_time(run: Steps, budget: Budget) -> None:
    while (reached := budget.time_reached(run.journal.clock())) is not None:
        await _at_limit(run, budget, reached, budget.raises)


async def _at_limit(run: Steps, budget: Budget, reached: Reached, raises: int) -> None:
    """Ends the run, or returns when the limit may be higher than it was.

    `raises` is how often it had been raised here before it was reached.
    """
    if run.keeper.end is not None:
        raise StepError("RunIncomplete", reached.reason, step=run.scope.current, limit=reached.limit)
    if budget.asks:
        await patiently(budget.look_again)  # another process may have been given more
        if raises != budget.raises or most_of(budget.record, reached.limit) > reached.most:
            return
    if not budget.asks:
        run.keeper.stop_at_limit(reached)
        await never()
    await _ask_for_more(run, budget, reached)


async def _ask_for_more(run: Steps, budget: Budget, reached: Reached) -> None:
    """Asks a person, once for all branches of the run that came to this limit."""
    journal = run.journal
    question = f"#{reached.limit}"
    row = next((row for row in journal.open.values() if row.key.startswith(question)), None)
    if row is None:
        row = _opened(run, question, reached)
    answer = await run.answered(row, mark=False)
    if row.outcome is not None:  # another branch took the answer
        return
    said = orjson.loads(answer)
    value = None if said == "stop" else float(said)
    journal.finish(row, Outcome.VALUE, answer)
    journal.put(update=(row,), raised=Raise(budget.record.run, question, reached.limit, value, answer))
    budget.raised(reached.limit, value)
    if run.keeper.events.active:
        run.announce(row)


def _opened(run: Steps, question: str, reached: Reached) -> StepRecord:
    journal, events = run.journal, run.keeper.events
    keys = (question if n == 1 else f"{question}#{n}" for n in itertools.count(1))
    key = next(key for key in keys if not journal.attempts_of(key))
    row = journal.row(
        "", key, question, Kind.ASK, None, journal.clock(), input=canonical(question_of(reached))
    )
    journal.open[key] = row
    journal.put((row,))
    events.emit(
        "run.limit", run=run.id, limit=reached.limit, allowed=reached.allowed, spent=reached.spent, on_limit="ask"
    )  # fmt: skip
    events.emit("step.opened", run=run.id, key=key, name=question, kind=Kind.ASK, due=None)
    return row


# --- the most that a call may cost -----------------------------------------------------------------


async def _most_of(
    run: Steps, budget: Budget, model: Model, request: ModelRequest
) -> Callable[[BudgetRecord], Need]:
    """From a budget, what a call needs of it.

    The answer may have `max_tokens`. A call without gets as many as what is left can pay for, up to
    `MOST_OUTPUT_TOKENS`, and is sent with that number; while others are in flight it waits for what
    they leave over, rather than take the scraps.
    """
    limited = budget.record.most
    steps = 1 if "steps" in limited and run.keeper.end is None else 0
    if limited.keys() <= {"steps"}:
        return lambda record: Need({"steps": steps})
    input_tokens = most_input_tokens(request)
    answers = max(_int(request.options.get("n")), 1)
    wanted = request.max_tokens or _int(request.options.get("max_completion_tokens")) or None
    dollars = await _price_of(budget, model, request, input_tokens, answers)

    def need(record: BudgetRecord) -> Need:
        if wanted is not None:
            return Need(amounts(wanted), wanted)
        most = budget.most_output.get(model.name, MOST_OUTPUT_TOKENS)
        room = most
        if (left_tokens := left_of(record, "tokens")) is not None:
            room = min(room, (left_tokens - input_tokens) // answers)
        if (left_output := left_of(record, "output_tokens")) is not None:
            room = min(room, left_output // answers)
        if (left_dollars := left_of(record, "dollars")) is not None and dollars(most) > left_dollars:
            room = min(room, bisect_right(range(most + 1), left_dollars, key=dollars) - 1)
        output = max(room, LEAST_OUTPUT_TOKENS)
        counts = not limited.keys().isdisjoint(("tokens", "output_tokens")) or dollars(most) > dollars(0)
        return Need(amounts(output), output if counts else None, True, room < most)

    def amounts(output: int) -> dict[str, int]:
        most = {
            "dollars": dollars(output),
            "tokens": input_tokens + output * answers,
            "input_tokens": input_tokens,
            "output_tokens": output * answers,
            "steps": steps,
        }
        return {name: amount for name, amount in most.items() if name in limited}

    return need


async def _price_of(
    budget: Budget, model: Model, request: ModelRequest, input_tokens: int, answers: int
) -> Callable[[int], int]:
    """By output tokens, what a call costs at most, in billionths; nothing where dollars are not limited."""
    if "dollars" not in budget.record.most:
        return lambda output: 0

    def dollars(output: int) -> float | None:
        usage = Usage(input_tokens, output * answers)
        return model.price(request, usage) if isinstance(model, Priced) else None

    if await asyncio.to_thread(dollars, LEAST_OUTPUT_TOKENS) is None:  # a price list may take time to load
        raise StepError(
            "UnknownPrice",
            f"the price of {model.name!r} is unknown, and this run has a limit of dollars. "
            "Use a model whose price is known, or limit tokens instead.",
        )
    return lambda output: to_billionths(dollars(output) or 0.0)


def most_input_tokens(request: ModelRequest) -> int:
    """A number of tokens that the input of a request is never billed above.

    A tokeniser makes at most one token of a byte, so it is the bytes of the messages, tools and schema
    as JSON, with a margin for what a chat template and the provider put around them, and a large one
    for each image. What is billed by other things (searches, files by reference) is not in it: Raises
    StepError for a part of a message whose size nobody can tell from here.
    """
    tokens = REQUEST_TOKENS + len(canonical(list(request.messages))) + MESSAGE_TOKENS * len(request.messages)
    if request.tools:
        tokens += TOOLS_TOKENS + len(canonical(list(request.tools)))
    if request.schema is not None:
        tokens += len(canonical(request.schema))
    for message in request.messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            tokens += _extra_tokens(part)
    return tokens


def _extra_tokens(part: Any) -> int:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("image_url", "image_file"):
        return IMAGE_TOKENS
    if kind in (None, "text", "refusal", "input_audio"):  # of sound, a token takes many bytes
        return 0
    raise StepError(
        "UnknownPrice",
        f"how many tokens a message part of type {kind!r} has is unknown, and this run has a limit of "
        "dollars or tokens. Put its text into the message instead.",
    )


def _int(option: Any) -> int:
    return option if isinstance(option, int) else 0
