"""A chain of steps, its gates, and the ladder that is climbed when one fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from dayjob import Dayjob, InputError, Limits, Run, RunCancelled, RunFailed, RunIncomplete, job
from dayjob.jobs import Job
from dayjob.ladder import REPHRASE, Rung, Tried, Trouble, pieces_of
from dayjob.models import ModelRequest
from dayjob.models.scripted import Scripted
from dayjob.patterns import again, ask_person, chain, rephrase, split, with_model
from dayjob.runs import Status
from dayjob.testing import CrashLab
from tests.ledger import everywhere, executed
from tests.until import until


class Claims(BaseModel):
    claims: list[str]


async def listed(text: str) -> Claims:
    executed["listed"] += 1
    return Claims(claims=text.split(", "))


async def counted(claims: Claims) -> int:
    executed["counted"] += 1
    return len(claims.claims)


def is_short(text: str) -> bool | str:
    executed["gate"] += 1
    return len(text) <= 12 or f"{len(text)} letters are too many"


def is_json(text: str) -> bool:
    orjson.loads(text)
    return True


def chain_job(*steps: Any, **how: Any) -> Job:
    async def work(run: Run, text: str = "a, b, c") -> Any:
        return await chain(
            run, text, how.get("named") or list(steps), **{k: v for k, v in how.items() if k != "named"}
        )

    return Job(work, "work", "v1")


def app_with(url: str, model: Any = None) -> Dayjob:
    return Dayjob(f"{url}?synchronous=off", model=model)


async def rungs(app: Dayjob, run: str) -> list[dict[str, Any]]:
    notes = [orjson.loads(step.value or b"") for step in await app.steps(run) if step.name == "note"]
    return [note["data"] for note in notes]


async def ends(url: str, model: Any, work: Job) -> tuple[Any, list[dict[str, Any]]]:
    async with app_with(url, model) as app:
        handle = await app.submit(work())
        try:
            result: Any = await handle.result(timeout=20)
        except RunFailed as end:
            result = end
        return result, await rungs(app, handle.id)


def prompts(model: Scripted) -> list[str]:
    return [request.messages[-1]["content"] for request in model.requests]


async def test_each_step_feeds_the_next_as_it_was_typed(url: str) -> None:
    assert await ends(url, None, chain_job(listed, counted)) == (3, [])


async def test_a_prompt_gets_its_input_where_it_says_so_or_after_itself(url: str) -> None:
    model = Scripted(["one", "two"])
    assert (await ends(url, model, chain_job("Sum up.", "Say {input} in {French}.")))[0] == "two"
    assert prompts(model) == ["Sum up.\n\na, b, c", "Say one in {French}."]
    assert [len(request.messages) for request in model.requests] == [1, 1]


async def test_what_is_no_text_reaches_a_prompt_as_json(url: str) -> None:
    model = Scripted(["fine"])
    await ends(url, model, chain_job(listed, "Check: {input}"))
    assert prompts(model) == ['Check: {"claims":["a","b","c"]}']


async def test_steps_and_gates_may_have_names(url: str) -> None:
    work = chain_job(named={"draft": "Draft.", "final": "Polish."}, gates={"final": is_short})
    async with app_with(url, Scripted(["a long, long draft", "short"])) as app:
        handle = await app.submit(work())
        assert await handle.result(timeout=20) == "short"
        keys = [step.key for step in await app.steps(handle.id) if step.name != "partial"]
    assert keys == ["draft", "final", "final gate"]


async def test_a_gate_for_no_step_is_refused(url: str) -> None:
    result, _ = await ends(url, None, chain_job(named={"draft": listed}, gates={"final": is_short}))
    assert "gates: 'final' is none of the steps: draft" in result.reason


async def test_a_prompt_in_the_place_of_the_steps_is_refused(url: str) -> None:
    @job
    async def work(run: Run) -> str:
        return await chain(run, "a, b, c", "Sum up.")

    result, _ = await ends(url, None, work)
    assert "steps: expected a list, or a dict that names them" in result.reason


async def test_a_gate_that_says_no_ends_the_chain_with_its_reason_and_what_there_was(url: str) -> None:
    result, _ = await ends(
        url, Scripted(["good", "far too long"]), chain_job("A", "B", gates=[None, lambda _: False])
    )
    assert "Refused: step 2: its gate said no" in result.reason
    assert result.partial == "good"


@pytest.mark.parametrize("option", ["returns", "tools"])
async def test_what_would_make_more_than_text_of_an_answer_is_refused(url: str, option: str) -> None:
    result, _ = await ends(url, Scripted(["[1]"]), chain_job("A", **{option: [listed]}))
    assert f"{option}: a prompt of a chain gives a text" in result.reason


async def test_a_gate_that_raises_has_refused(url: str) -> None:
    model = Scripted(["no JSON", "[1]"])
    result, notes = await ends(url, model, chain_job("A", gates=[is_json], otherwise=[again()]))
    assert (result, notes[0]["passed"]) == ("[1]", True)
    assert notes[0]["reason"].startswith("JSONDecodeError")


async def test_a_gate_that_gives_an_empty_text_has_said_no(url: str) -> None:
    result, _ = await ends(url, Scripted(["good"]), chain_job("A", gates=[lambda _: ""]))
    assert "Refused: step 1: its gate said no" in result.reason


@pytest.mark.parametrize("said", [None, 1, ["short"]], ids=repr)
async def test_a_gate_that_says_neither_yes_nor_no_is_no_reason_to_try_again(url: str, said: Any) -> None:
    model = Scripted(["good"])
    result, _ = await ends(url, model, chain_job("A", gates=[lambda _: said], otherwise=[again()]))
    assert "step 1 gate: expected True, False, or a text that says why not" in result.reason
    assert len(model.requests) == 1


# --- the ladder -------------------------------------------------------------------------------------------


async def test_again_does_the_same_once_more(url: str) -> None:
    model = Scripted(["much too long a text", "short"], price=0.25)
    result, notes = await ends(url, model, chain_job("Sum up.", gates=[is_short], otherwise=[again()]))
    assert result == "short"
    assert prompts(model)[0] == prompts(model)[1]
    reason = "Refused: step 1: 20 letters are too many"
    told = {"rung": "again", "passed": True, "reason": reason, "dollars": 0.25}
    assert notes == [{"pattern": "chain", "step": "step 1", **told}]


async def test_rephrase_lets_the_model_rewrite_the_prompt_knowing_the_failure(url: str) -> None:
    model = Scripted(["much too long a text", "In two words: {input}", "short"], price=0.25)
    result, notes = await ends(url, model, chain_job("Sum up.", gates=[is_short], otherwise=[rephrase()]))
    assert (result, notes[0]["dollars"]) == ("short", 0.5)
    reason = "Refused: step 1: 20 letters are too many"
    assert prompts(model)[1] == REPHRASE.format(prompt="Sum up.", reason=reason, place="{input}")
    assert prompts(model)[2] == "In two words: a, b, c"


async def test_with_model_asks_another_one(url: str) -> None:
    work = chain_job("Sum up.", gates=[is_short], otherwise=[with_model("no such model"), again()])
    result, notes = await ends(url, Scripted(["much too long a text", "short"]), work)
    assert result == "short"
    assert [(note["rung"], note["passed"]) for note in notes] == [
        ("with_model no such model", False),
        ("again", True),
    ]
    assert "'no such model' is not a model's name" in notes[1]["reason"]


async def test_split_does_the_step_on_each_part_side_by_side(url: str) -> None:
    def reply(request: ModelRequest) -> str:
        text = request.messages[-1]["content"]
        return "much too long a text" if "a, b" in text and "c" in text else text[-2:].strip()

    work = chain_job("Sum up.", gates=[is_short], otherwise=[split()])
    model = Scripted(reply, price=0.1)
    result, notes = await ends(url, model, work)
    assert result == "a,\n\nc"
    assert notes[0] | {"reason": ""} == {
        "pattern": "chain", "step": "step 1", "rung": "split", "passed": True, "reason": "", "dollars": 0.2,
    }  # fmt: skip


async def test_ask_person_takes_what_a_person_says_without_a_gate(url: str) -> None:
    work = chain_job("Sum up.", gates=[is_short], otherwise=[ask_person()])
    async with app_with(url, Scripted(["much too long a text"])) as app:
        handle = await app.submit(work())
        (action,) = await until(lambda: app.actions(handle.id))
        assert "'step 1' failed: Refused: step 1: 20 letters are too many" in action.question
        await app.answer(handle.id, action.id, "a person wrote this")
        assert await handle.result(timeout=20) == "a person wrote this"


async def test_what_a_person_says_is_of_the_type_that_the_step_gives(url: str) -> None:
    async def unreadable(text: str) -> Claims:
        raise ValueError("unreadable")

    work = chain_job(unreadable, counted, otherwise=[ask_person()])
    async with app_with(url) as app:
        handle = await app.submit(work())
        (action,) = await until(lambda: app.actions(handle.id))
        with pytest.raises(InputError, match="claims"):
            await app.answer(handle.id, action.id, {"claim": "a"})
        await app.answer(handle.id, action.id, {"claims": ["a", "b"]})
        assert await handle.result(timeout=20) == 2


@pytest.mark.parametrize("text", ["", " ", "a"], ids=repr)
async def test_what_has_no_parts_cannot_be_split(url: str, text: str) -> None:
    result, _ = await ends(url, Scripted([]), chain_job(lambda _: text, "B", otherwise=[split()]))
    assert "NoText: split: what goes into 'step 2' has no two parts" in result.reason


async def test_only_texts_can_be_joined_after_a_split(url: str) -> None:
    async def listed_if_short(text: str) -> Claims:
        if len(text) > 4:
            raise ValueError("too long")
        return Claims(claims=[text])

    result, _ = await ends(url, None, chain_job(listed_if_short, counted, otherwise=[split()]))
    assert "NoText: split: what 'step 1' gives is no text" in result.reason


async def test_rungs_are_climbed_in_order_each_told_why_the_last_one_failed(url: str) -> None:
    async def shorten(run: Run, trouble: Trouble) -> Tried:
        assert trouble.reason == "Refused: step 1: 13 letters are too many"
        return Tried("cut")

    work = chain_job("A", gates=[is_short], otherwise=[again(), Rung("shorten", shorten), ask_person()])
    result, notes = await ends(url, Scripted(["x" * 14, "x" * 13]), work)
    assert result == "cut"
    assert [(note["rung"], note["passed"]) for note in notes] == [("again", False), ("shorten", True)]


async def test_what_needs_a_prompt_is_no_rung_for_a_function(url: str) -> None:
    async def unreliable(text: str) -> str:
        executed["unreliable"] += 1
        if executed["unreliable"] == 1:
            raise ValueError("not today")
        return text

    work = chain_job(unreliable, otherwise=[rephrase(), with_model("local:"), again()])
    result, notes = await ends(url, None, work)
    assert result == "a, b, c"
    assert [note["rung"] for note in notes] == ["rephrase", "with_model local:", "again"]
    assert notes[0]["reason"] == "ValueError: not today"
    assert notes[2][
        "reason"
    ] == "NoPrompt: with_model local:: 'unreliable' is a function and has no prompt".replace(
        "'unreliable'", "'step 1'"
    )


async def test_when_no_rung_helps_the_last_error_is_raised(url: str) -> None:
    work = chain_job("A", otherwise=[again(), split()])
    result, notes = await ends(url, Scripted([]), work)
    assert "ModelRefused" in result.reason
    assert [note["passed"] for note in notes] == [False, False]


async def test_which_rung_works_is_a_sum_over_runs(url: str) -> None:
    replies = ["x" * 20, "short", "x" * 20, "x" * 20, "{input}", "short"]
    work = chain_job("A", gates=[is_short], otherwise=[again(), rephrase()])
    async with app_with(url, Scripted(replies, price=0.1)) as app:
        for _ in range(2):
            await (await app.submit(work())).result(timeout=20)
        climbed: Counter[tuple[str, bool]] = Counter()
        for record in await app.runs():
            climbed.update((note["rung"], note["passed"]) for note in await rungs(app, record.id))
    assert climbed == {("again", True): 1, ("again", False): 1, ("rephrase", True): 1}


@pytest.mark.parametrize("parts", [0, 1, "two"])
def test_a_split_into_fewer_than_two_parts_is_refused(parts: Any) -> None:
    with pytest.raises(InputError, match="split: parts="):
        split(parts)


def test_a_text_is_split_where_a_paragraph_a_line_or_a_word_ends() -> None:
    assert pieces_of("one\n\ntwo three\n\nfour five", 2) == ["one", "two three\n\nfour five"]
    assert pieces_of("one two three four", 2) == ["one two", "three four"]
    assert pieces_of("abcdef", 3) == ["ab", "cd", "ef"]
    assert pieces_of("", 2) == []


# --- crashes, cancels, limits -----------------------------------------------------------------------------


def unreliable_reply(request: ModelRequest) -> str:
    text = request.messages[-1]["content"]
    executed[text] += 1
    return {"A\n\na, b, c": "much too long a text", "B: a b": "fine"}.get(
        text, "B: {input}" if "Reason" in text else "ok"
    )


@job
async def laddered(run: Run, text: str) -> Any:
    return await chain(
        run, text, ["A", "C", listed, counted], gates=[is_short, is_short],
        otherwise=[split(), rephrase(), ask_person()],
    )  # fmt: skip


async def test_a_crash_at_any_write_changes_nothing(lab: CrashLab) -> None:
    request = laddered("a, b, c")
    calm = await lab.run(request, model=Scripted(unreliable_reply))
    assert (calm.status, calm.output) == (Status.COMPLETED, 1), calm.run.reason
    for ended in await everywhere(lab, request, model=Scripted(unreliable_reply)):
        assert (ended.status, ended.output) == (calm.status, calm.output), ended.death
        assert not [warning for warning in ended.warnings if "not deterministic" in warning], ended.death


async def test_a_crash_while_a_person_is_asked_changes_nothing(lab: CrashLab) -> None:
    async def outside(app: Dayjob, run: str) -> bool:
        actions = await app.actions(run)
        for action in actions:
            await app.answer(run, action.id, "by hand")
        return bool(actions)

    work = chain_job("A", gates=[is_short], otherwise=[again(), ask_person()])
    model = Scripted(lambda _: "much too long a text")
    for ended in await everywhere(lab, work(), model=model, outside=outside):
        assert ended.output == "by hand", ended.run.reason


async def test_a_cancelled_chain_is_over(url: str) -> None:
    begun = asyncio.Event()

    async def reply(request: ModelRequest) -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    async with app_with(url, Scripted(reply)) as app:
        handle = await app.submit(chain_job("A", otherwise=[again()])())
        await begun.wait()
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=20)
        assert await rungs(app, handle.id) == []


async def test_at_a_limit_what_the_last_step_gave_is_kept(url: str) -> None:
    async with app_with(url, Scripted(["one", "two", "three"])) as app:
        handle = await app.submit(chain_job("A", "B", "C", otherwise=[again()])(), limits=Limits(steps=2))
        with pytest.raises(RunIncomplete, match="limit of 2 steps") as end:
            await handle.result(timeout=20)
    assert end.value.partial == "two"
