"""Which messages of a conversation are sent: what stays, what goes, and that a prefix stays the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dayjob.context import (
    LEFT_OUT,
    UNANSWERED,
    Policy,
    View,
    auto,
    head_of,
    last_messages,
    summarise,
    tokens_in,
)
from dayjob.errors import InputError, WindowTooSmall
from dayjob.models import Message

SYSTEM: Message = {"role": "system", "content": "You help."}
TASK: Message = {"role": "user", "content": "Do it."}


def asks(*ids: str, text: str = "") -> Message:
    calls = [{"id": id, "type": "function", "function": {"name": "look", "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": text or None, "tool_calls": calls}


def result(id: str, text: str = "seen") -> Message:
    return {"role": "tool", "tool_call_id": id, "content": text}


def says(text: str, role: str = "assistant") -> Message:
    return {"role": role, "content": text}


def looks(count: int) -> list[Message]:
    return [message for n in range(count) for message in (asks(str(n)), result(str(n), f"place {n}"))]


def test_what_fits_is_sent_as_it_is() -> None:
    messages = [SYSTEM, TASK, *looks(3)]
    for policy in (last_messages(6), auto(10_000), summarise(10_000)):
        assert policy.fit(messages, View()).of(messages) == messages


def test_the_head_stays_and_what_is_left_out_is_named() -> None:
    messages = [SYSTEM, TASK, *[says(f"thing {n}") for n in range(20)]]
    view = last_messages(10).fit(messages, View())
    sent = view.of(messages)
    assert sent[:2] == [SYSTEM, TASK]
    assert sent[2]["content"] == LEFT_OUT.format(first=3, last=16)
    assert sent[3:] == messages[16:]


def test_the_newest_stay() -> None:
    messages = [SYSTEM, TASK, *looks(50)]
    sent = auto(200).fit(messages, View()).of(messages)
    assert sent[-1] == messages[-1]
    assert tokens_in(sent) <= 200


def test_a_long_conversation_is_not_looked_through_again_for_every_cut() -> None:
    looked: list[int] = []
    messages = [SYSTEM, TASK, *looks(2_000)]
    policy = auto(5_000)
    counting = Policy(lambda messages, view: looked.append(view.start) or policy.fill(messages, view))
    assert counting.fit(messages, View()) == policy.fit(messages, View())
    assert len(looked) < 20


def test_the_task_of_a_long_thread_stays() -> None:
    messages = [SYSTEM, says("Hello.", "user"), *looks(3), TASK, *looks(5)]
    sent = View(start=13, task=8).of(messages)
    assert sent[0] == SYSTEM and sent[2] == TASK and messages[1] not in sent
    assert View(start=4, task=8).of(messages).count(TASK) == 1
    assert View(start=4, task=1).of(messages)[3:] == messages[4:]


def test_a_summary_stands_in_place_of_what_is_left_out() -> None:
    messages = [SYSTEM, TASK, *looks(5)]
    shown = View(start=4, summary="Nothing there.").of(messages)
    assert "Messages 3 to 4" in shown[2]["content"] and "Nothing there." in shown[2]["content"]


def test_the_parts_to_sum_up_are_what_is_newly_left_out() -> None:
    messages = [SYSTEM, TASK, *looks(20)]
    policy = summarise(100)
    before = policy.fit(messages[:12], View())
    after = policy.fit(messages, before)
    told = "".join(policy.parts(messages, before, after))
    assert f"place {(after.start - 2) // 2 - 1}" in told
    assert "place 0" not in told or before.start == 0
    assert all(len(part) <= 200 for part in policy.parts(messages, View(), after))
    assert list(auto(100).parts(messages, before, after)) == []


@pytest.mark.parametrize(
    "text", ["word " * 500, "日本語" * 500, "слово " * 500, "word " * 400 + "日本語" * 100]
)
def test_a_part_to_sum_up_and_its_summary_leave_room_in_the_window(text: str) -> None:
    messages, policy = [SYSTEM, TASK, *[says(text)] * 3, says("well")], summarise(400)
    view = policy.fit(messages, View())
    parts = list(policy.parts(messages, View(), view))
    assert "".join(parts).count(text) == 3
    sizes = [tokens_in([says(part)]) for part in [*parts, policy.shortened(text, view)]]
    assert max(sizes[:-1]) <= 204 and sizes[-1] <= 104
    assert max(tokens_in([says(part)]) for part in policy.parts(messages, View(), View(5, scale=2))) <= 104


def test_the_start_moves_in_blocks_so_that_the_prefix_stays() -> None:
    messages, view, sent = [SYSTEM, TASK], View(), []
    for n in range(100):
        messages = [*messages, *looks(n + 1)[-2:]]
        view = auto(300).fit(messages, view)
        sent.append(view.of(messages))
    same = sum(after[: len(before)] == before for before, after in pairwise(sent))
    assert same >= 70
    assert max(map(tokens_in, sent)) <= 300


@pytest.mark.parametrize("policy", [auto(10), last_messages(1)])
def test_a_window_too_small_for_one_message_is_a_named_error(policy: Any) -> None:
    messages = [SYSTEM, TASK, asks("1"), result("1", "a long, long result " * 10)]
    with pytest.raises(WindowTooSmall, match="the last 2 of its 4 messages do not fit"):
        policy.fit(messages, View())


def test_a_call_without_a_result_is_answered_by_that_and_a_result_without_its_call_is_not_sent() -> None:
    messages = [
        SYSTEM,
        TASK,
        asks("1", "2"),
        result("1"),
        says("go on", "user"),
        result("9"),
        says("", "tool"),
        says("well"),
    ]
    answered = [asks("1", "2"), result("1"), result("2", UNANSWERED)]
    assert View().of(messages) == [SYSTEM, TASK, *answered, says("go on", "user"), says("well")]


def test_results_in_another_order_or_after_what_a_person_said_follow_their_calls() -> None:
    messages = [SYSTEM, TASK, asks("1", "2"), result("2", "b"), says("go on", "user"), result("1", "a")]
    shown = [asks("1", "2"), result("1", "a"), result("2", "b"), says("go on", "user")]
    assert View().of(messages) == [SYSTEM, TASK, *shown]


def test_calls_that_share_an_id_keep_their_results() -> None:
    messages = [SYSTEM, TASK, asks("", ""), result("", "a"), result("", "b"), asks(""), result("", "c")]
    assert View().of(messages) == messages


def test_the_providers_count_corrects_the_estimate() -> None:
    messages = [SYSTEM, TASK, *[says("word " * 20) for _ in range(6)]]
    estimated = tokens_in(messages)
    view = View().counted(messages, 2 * estimated)
    assert view.scale == 2.0
    policy = auto(int(estimated * 1.5))
    assert policy.fit(messages, View()).start == 0
    assert policy.fit(messages, view).start > 0
    assert View().counted(messages, 0) == View()


def test_tokens_are_estimated_by_script() -> None:
    def tokens(text: str) -> int:
        return tokens_in([says(text)]) - tokens_in([says("")])

    assert tokens("a" * 400) == 100
    assert tokens("я" * 400) == 200
    assert tokens("日" * 400) == 400
    assert tokens_in([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]) > 500
    assert tokens_in([asks("1")]) > 10


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "8"])
def test_a_window_is_a_whole_number_from_1(value: Any) -> None:
    for policy in (last_messages, auto, summarise):
        with pytest.raises(InputError, match="expected a whole number from 1"):
            policy(value)


groups = st.one_of(
    st.builds(lambda text: [says(text)], st.text(max_size=200)),
    st.builds(lambda text: [says(text, "user")], st.text(max_size=50)),
    st.builds(lambda n, text: [asks(*map(str, range(n))), *(result(str(i), text) for i in range(n))],
              st.integers(1, 3), st.text(max_size=100)),
)  # fmt: skip


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.lists(groups, max_size=30),
    st.one_of(st.builds(auto, st.integers(1, 400)), st.builds(last_messages, st.integers(1, 20))),
)
def test_whatever_is_said_calls_and_results_stay_together_and_the_newest_is_sent(
    said: Any, policy: Any
) -> None:
    messages, view = [SYSTEM, TASK], View()
    for group in said:
        messages = [*messages, *group]
        try:
            moved = policy.fit(messages, view)
        except WindowTooSmall:
            return
        assert moved.start >= view.start
        view = moved
        sent = view.of(messages)
        assert sent[: head_of(messages)] == messages[: head_of(messages)]
        assert sent[-1] == messages[-1]
        assert policy.fill(messages, view) <= 1
        left, open = (max(2, view.start)), 0
        assert sent[-(len(messages) - left) :] == messages[left:]
        for message in sent:
            if message["role"] == "tool":
                open -= 1
            else:
                assert open == 0
                open = len(message.get("tool_calls") or ())
        assert open == 0
