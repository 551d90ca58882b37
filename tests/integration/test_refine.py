"""Evaluator and optimiser: the best attempt is kept, constraints gather, and there is one reason to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from dayjob import Dayjob, InputError, Limits, Run, job
from dayjob.models import ModelRequest
from dayjob.patterns import Adjust, Brief, Constraint, Refined, Verdict, refine
from dayjob.runs import Outcome, Status
from dayjob.testing import CrashLab, Delay, Scripted
from dayjob.verdicts import MOST_CONSTRAINTS
from tests.ledger import everywhere, executed, work
from tests.until import until

SHORT = {"text": "At most 12 characters.", "check": "short"}


async def make(run: Run, brief: Brief) -> str:
    await run.step(work, f"make {brief.round}")
    told = "; ".join(f"{constraint.text} ({constraint.origin})" for constraint in brief.constraints)
    reply = await run.model(f"draft {brief.round} [{told}] best={brief.best}", **brief.options)
    return reply.text


async def judge(run: Run, attempt: str) -> Verdict:
    reply = await run.model(f"judge {attempt}", returns=Verdict)
    return reply.value


def is_short(attempt: str) -> bool:
    return len(attempt) <= 12


@job
async def improve(run: Run, max_rounds: int = 5, given: list[Constraint] = []) -> Refined:  # noqa: B006
    return await refine(
        run, make, judge, max_rounds=max_rounds, constraints=given, checks={"short": is_short}
    )


def maker(*verdicts: Any, drafts: dict[int, str] | None = None) -> Scripted:
    """Writes `draft N` in round N, or what `drafts` says; judges the N-th draft with the N-th verdict."""

    def reply(request: ModelRequest) -> Any:
        verb, _, rest = request.messages[0]["content"].partition(" ")
        if verb == "draft":
            number = int(rest.split(" ")[0])
            return (drafts or {}).get(number, f"draft {number}")
        return verdicts[int(rest.split(" ")[1]) - 1]

    return Scripted(reply)


def score(value: float, **more: Any) -> dict[str, Any]:
    return {"score": value, **more}


async def test_it_stops_when_an_attempt_passes(lab: CrashLab) -> None:
    ended = await lab.run(improve(), model=maker(score(0.4), score(0.9), score(1.0)))
    assert ended.output == {
        "value": "draft 2", "score": 0.9, "reason": "passed", "rounds": 2, "constraints": [],
    }  # fmt: skip


async def test_what_failed_does_not_pass_whatever_its_score(lab: CrashLab) -> None:
    ended = await lab.run(improve(), model=maker(score(0.9, failed=["rude"]), score(0.85)))
    assert (ended.output["value"], ended.output["score"], ended.output["rounds"]) == ("draft 2", 0.85, 2)


async def test_the_best_is_returned_and_not_the_last(lab: CrashLab) -> None:
    ended = await lab.run(improve(), model=maker(score(0.3), score(0.6), score(0.5), score(0.6), score(0.9)))
    assert ended.output["value"] == "draft 2"
    assert ended.output["reason"] == "no gain in 2 rounds"
    assert ended.output["rounds"] == 4


async def test_rounds_are_bounded(lab: CrashLab) -> None:
    ended = await lab.run(improve(max_rounds=2), model=maker(score(0.1), score(0.2), score(0.3)))
    assert (ended.output["value"], ended.output["reason"]) == ("draft 2", "max_rounds of 2 reached")


async def test_constraints_gather_with_their_origin(lab: CrashLab) -> None:
    polite, brief = {"text": "Be polite."}, {"text": "Be brief.", "origin": "the editor"}
    model = maker(score(0.3, constraints=[polite]), score(0.4, constraints=[brief, polite]), score(1.0))
    ended = await lab.run(improve(given=[Constraint("Be kind.")]), model=model)
    assert [(each["text"], each["origin"]) for each in ended.output["constraints"]] == [
        ("Be kind.", "given"), ("Be polite.", "round 1"), ("Be brief.", "the editor"),
    ]  # fmt: skip
    drafts = [text for r in model.requests if (text := r.messages[0]["content"]).startswith("draft")]
    assert drafts[2] == (
        "draft 3 [Be kind. (given); Be polite. (round 1); Be brief. (the editor)] best=draft 2"
    )


async def test_a_judge_that_repeats_itself_does_not_fill_the_brief(lab: CrashLab) -> None:
    polite = {"text": "Be polite."}
    many = [{"text": f"Rule {number}."} for number in range(5000)]
    model = maker(
        score(0.2, constraints=[polite, polite, {"text": " "}]), score(0.3, constraints=many), score(0.9)
    )
    ended = await lab.run(improve(given=[Constraint("Be kind.")]), model=model)
    texts = [each["text"] for each in ended.output["constraints"]]
    assert texts[:3] == ["Be kind.", "Be polite.", "Rule 0."]
    assert len(texts) == MOST_CONSTRAINTS


async def test_what_a_judge_leaves_blank_it_has_not_said(lab: CrashLab) -> None:
    blank = {"model": "", "temperature": None}
    model = maker(score(0.3, failed=["rude"], adjust=blank), score(0.9, failed=["", " "]))
    ended = await lab.run(improve(), model=model)
    assert (ended.output["value"], ended.output["reason"]) == ("draft 2", "passed")


async def test_all_given_constraints_are_kept_however_many(lab: CrashLab) -> None:
    given = [Constraint(f"Rule {number}.") for number in range(MOST_CONSTRAINTS + 5)]
    given.append(Constraint("Rule 0.", "short"))
    model = maker(score(0.3, constraints=[{"text": "Be polite."}]), score(0.9))
    ended = await lab.run(improve(given=given), model=model)
    kept = [(each["text"], each["check"]) for each in ended.output["constraints"]]
    assert kept == [(each.text, each.check) for each in given]


async def test_code_checks_what_it_can_and_saves_the_judge(lab: CrashLab) -> None:
    model = maker(score(0.5, constraints=[SHORT]), None, score(0.9), drafts={2: "draft 2 is much too long"})
    ended = await lab.run(improve(), model=model)
    assert (ended.output["value"], ended.output["reason"]) == ("draft 3", "passed")
    assert not [r for r in model.requests if "judge draft 2" in r.messages[0]["content"]]
    checks = {step.key: step.value for step in ended.steps if step.name == "check short"}
    assert checks == {"check short": b"false", "check short#2": b"true"}


async def test_a_judge_may_change_model_and_temperature(lab: CrashLab) -> None:
    other = Scripted(["better"], name="other")
    seen: list[dict[str, Any]] = []

    async def make(run: Run, brief: Brief) -> str:
        seen.append(brief.options)
        return "better" if brief.options else "poor"

    async def judge(run: Run, attempt: str) -> Verdict:
        return Verdict(0.9) if attempt == "better" else Verdict(0.1, adjust=Adjust("openai:big", 0.9))

    @job
    async def adjusts(run: Run) -> Refined:
        return await refine(run, make, judge)

    ended = await lab.run(adjusts(), model=other)
    assert seen == [{}, {"model": "openai:big", "temperature": 0.9}]
    assert ended.output["reason"] == "passed"


@pytest.mark.parametrize("said", [False, "21 letters", ""], ids=repr)
async def test_a_check_passes_by_true_alone_and_may_say_why_not(lab: CrashLab, said: Any) -> None:
    briefs: list[Brief] = []

    def write(run: Run, brief: Brief) -> str:
        briefs.append(brief)
        return "text"

    @job
    async def never_passes(run: Run) -> Refined:
        return await refine(
            run, write, lambda run, attempt: Verdict(1.0),
            constraints=[Constraint("Be short.", "short")], checks={"short": lambda text: said},
        )  # fmt: skip

    assert (await lab.run(never_passes())).output["score"] == 0
    assert briefs[1].failed == ["Be short. (21 letters)" if said else "Be short."]


# --- bad input ------------------------------------------------------------------------------------------


async def test_a_score_out_of_range_goes_back_to_the_judge(lab: CrashLab) -> None:
    def reply(request: ModelRequest) -> Any:
        if request.messages[0]["content"].startswith("draft"):
            return "draft 1"
        return score(0.95) if "expected 0 to 1" in request.messages[-1]["content"] else score(95)

    assert (await lab.run(improve(), model=Scripted(reply))).output["score"] == 0.95


async def test_a_judge_that_stays_out_of_range_has_a_reason_and_the_attempt_is_kept(lab: CrashLab) -> None:
    model = maker(score(95))
    ended = await lab.run(improve(), model=model)
    assert (ended.status, ended.error) == (Status.FAILED, "InvalidAnswer")
    assert "score: expected 0 to 1, got 95" in (ended.run.reason or "")
    assert ended.output == "draft 1"
    assert len(model.requests) == 1 + 3


async def test_a_judge_that_fails_later_leaves_the_best_so_far(lab: CrashLab) -> None:
    ended = await lab.run(improve(), model=maker(score(0.5), score(-1)))
    assert ended.output["value"] == "draft 1"
    assert ended.output["reason"].startswith("round 2: InvalidAnswer: ")


@pytest.mark.parametrize("said", [{"score": 2}, "good", None], ids=str)
async def test_a_judge_of_code_must_give_a_verdict(lab: CrashLab, said: Any) -> None:
    @job
    async def judged(run: Run) -> Refined:
        return await refine(run, lambda run, brief: "text", lambda run, attempt: said)

    assert (await lab.run(judged())).error == "InvalidVerdict"


@pytest.mark.parametrize("said", [None, 1, ["short"]], ids=repr)
async def test_a_check_that_says_neither_yes_nor_no_is_no_check(lab: CrashLab, said: Any) -> None:
    @job
    async def checked(run: Run) -> Refined:
        rule = Constraint("Be short.", "short")
        judge = lambda run, attempt: Verdict(1.0)  # noqa: E731
        return await refine(
            run, lambda run, brief: "text", judge, constraints=[rule], checks={"short": lambda text: said}
        )

    reason = (await lab.run(checked())).run.reason or ""
    assert f"check short: expected True, False, or a text that says why not, got {said!r}" in reason


async def test_a_given_constraint_that_names_no_check_is_refused(lab: CrashLab) -> None:
    ended = await lab.run(improve(given=[Constraint("Be short.", "shrot")]), model=maker(score(1)))
    assert "constraints: 'shrot' is none of the checks: short" in (ended.run.reason or "")


async def test_a_constraint_of_the_judge_that_names_no_check_is_a_text_for_the_maker(lab: CrashLab) -> None:
    model = maker(score(0.1, constraints=[{"text": "Be kind.", "check": "kind"}]), score(1))
    assert (await lab.run(improve(), model=model)).output["reason"] == "passed"


@pytest.mark.parametrize("passing", [80, -1, float("nan")])
async def test_a_passing_score_that_no_verdict_can_have_is_refused(lab: CrashLab, passing: float) -> None:
    @job
    async def judged(run: Run) -> Refined:
        return await refine(run, lambda run, brief: "text", lambda run, attempt: Verdict(1), passing=passing)

    assert "passing: expected 0 to 1" in ((await lab.run(judged())).run.reason or "")


async def test_no_round_at_all_is_refused(lab: CrashLab) -> None:
    ended = await lab.run(improve(max_rounds=0), model=maker())
    assert "max_rounds: expected 1 or more" in (ended.run.reason or "")
    with pytest.raises(ValueError, match="expected 0 to 1"):
        Verdict(float("nan"))
    with pytest.raises(InputError):
        improve(max_rounds="many")


# --- crash, cancel, limit ---------------------------------------------------------------------------------


async def test_a_crash_anywhere_changes_nothing(lab: CrashLab) -> None:
    def model() -> Scripted:
        return maker(
            score(0.5, constraints=[SHORT]), None, score(0.9), drafts={2: "draft 2 is much too long"}
        )

    calm = await lab.run(improve(), model=model())
    for crashed in await everywhere(lab, improve(), model=model()):
        assert crashed.output == calm.output, crashed.death
        assert not crashed.warnings
        finished = [step for step in crashed.steps if step.outcome == Outcome.VALUE]
        assert len({step.key for step in finished}) == len(finished)


async def test_a_limit_keeps_the_best_so_far(lab: CrashLab) -> None:
    model = maker(score(0.3), score(0.6), score(0.5), score(0.1))
    ended = await lab.run(improve(), model=model, limits=Limits(steps=8))
    assert ended.status == Status.INCOMPLETE
    assert ended.output == "draft 2"


async def test_a_cancelled_run_stops_in_the_middle_of_a_round(lab: CrashLab) -> None:
    async with Dayjob(lab.store, model=Scripted(lambda request: Delay(60, "never"))) as app:
        handle = await app.submit(improve())
        await until(lambda: executed["make 1"])
        await asyncio.sleep(0)
        await handle.cancel()

        async def is_over() -> bool:
            return await handle.status() == Status.CANCELLED

        await until(is_over)


def test_what_a_judge_says_is_plain_data() -> None:
    made: Callable[..., Any] = asdict
    assert made(Verdict(0.5, ["long"], [Constraint("short")]))["constraints"][0]["check"] is None
