"""Prompts are stored once: chains of message hashes that share their beginning, rebuilt byte for byte."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dayjob.errors import InputError, NotJSON, ValueTooLarge
from dayjob.prompts import MAX_LINKS, Prompt, request_json, split_hashes
from dayjob.values import MAX_VALUE_BYTES, Redactor, canonical

HEAD = {"model": "m", "tools": [], "schema": None, "max_tokens": None, "options": {}}
OPEN = Redactor()


def said(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


class Kept:
    """A store in small: what the rows and the message table of one run would hold."""

    def __init__(self, redact: Redactor = OPEN) -> None:
        self.rows: dict[str, Prompt] = {}
        self.bytes: dict[bytes, bytes] = {}
        self.redact = redact
        self.written = 0

    def prompt(
        self, messages: list[dict[str, Any]], earlier: Prompt | None, head: dict[str, Any] | None = None
    ) -> Prompt:
        prompt = Prompt(head or HEAD, messages, earlier, self.redact)
        prompt.stored_by = f"1:model#{len(self.rows) + 1}"
        self.rows[prompt.stored_by] = prompt
        self.written += len(prompt.new)
        self.bytes.update(prompt.new)
        return prompt

    def hashes(self, prompt: Prompt) -> tuple[bytes, list[bytes]]:
        """Read back as the app reads it: from the row's own hashes and its base's."""
        head, own = split_hashes(prompt.stored_hashes)
        if prompt.base is None:
            return head, own
        return head, self.hashes(self.rows[prompt.base])[1][: prompt.keep] + own

    def links(self, prompt: Prompt) -> int:
        return 0 if prompt.base is None else 1 + self.links(self.rows[prompt.base])

    def rebuilt(self, prompt: Prompt) -> bytes:
        head, own = self.hashes(prompt)
        return request_json(self.bytes[head], [self.bytes[hash] for hash in own])


def test_a_longer_prompt_stores_only_its_new_messages() -> None:
    kept = Kept()
    first = kept.prompt([said("a"), said("b", "assistant")], None)
    second = kept.prompt([said("a"), said("b", "assistant"), said("c")], first)
    assert (second.base, second.keep) == (first.stored_by, 2)
    assert [data for _, data in second.new] == [canonical(said("c"))]
    assert len(split_hashes(second.stored_hashes)[1]) == 1


def test_a_prompt_that_differs_in_the_middle_keeps_the_common_beginning() -> None:
    kept = Kept()
    first = kept.prompt([said("a"), said("b"), said("c")], None)
    second = kept.prompt([said("a"), said("x"), said("c")], first)
    assert second.keep == 1
    assert kept.rebuilt(second) == canonical({**HEAD, "messages": [said("a"), said("x"), said("c")]})


def test_a_prompt_with_nothing_in_common_stands_alone() -> None:
    kept = Kept()
    first = kept.prompt([said("a")], None)
    second = kept.prompt([said("x")], first)
    assert (second.base, second.keep, second.links) == (None, 0, 0)


def test_a_shorter_prompt_needs_no_new_message() -> None:
    kept = Kept()
    first = kept.prompt([said("a"), said("b"), said("c")], None)
    second = kept.prompt([said("a"), said("b")], first)
    assert second.new == []
    assert kept.rebuilt(second) == canonical({**HEAD, "messages": [said("a"), said("b")]})


def test_a_new_head_is_stored_beside_kept_messages() -> None:
    kept = Kept()
    first = kept.prompt([said("a")], None)
    warmer = {**HEAD, "options": {"temperature": 1}}
    second = kept.prompt([said("a")], first, warmer)
    assert second.keep == 1
    assert second.fingerprint != first.fingerprint
    assert kept.rebuilt(second) == canonical({**warmer, "messages": [said("a")]})
    third = kept.prompt([said("a")], second, warmer)
    assert third.new == []


def test_no_chain_is_longer_than_64_links() -> None:
    kept = Kept()
    messages: list[dict[str, Any]] = []
    prompt = None
    for turn in range(3 * MAX_LINKS):
        messages.append(said(f"turn {turn}"))
        prompt = kept.prompt(messages, prompt)
        assert kept.links(prompt) <= MAX_LINKS == 64
        assert kept.rebuilt(prompt) == canonical({**HEAD, "messages": messages})
    assert kept.written == 3 * MAX_LINKS + 1  # each message once, and one head


def test_a_base_that_was_never_stored_is_not_referred_to() -> None:
    first = Prompt(HEAD, [said("a")], None, OPEN)
    second = Prompt(HEAD, [said("a"), said("b")], first, OPEN)
    assert second.base is None
    assert split_hashes(second.stored_hashes)[1] == second.hashes


def test_what_the_user_changes_later_does_not_reach_the_kept_copy() -> None:
    kept = Kept()
    part = {"type": "text", "text": "before"}
    message = {"role": "user", "content": [part]}
    flat = said("before")
    first = kept.prompt([message, flat], None)
    part["text"] = flat["content"] = "after"
    second = kept.prompt([message, flat], first)
    assert second.keep == 0
    assert b"after" in kept.rebuilt(second)
    assert b"after" not in kept.rebuilt(first)


def test_a_pydantic_model_in_a_message_is_json_of_it() -> None:
    class Part(BaseModel):
        type: str = "text"
        text: str

    kept = Kept()
    prompt = kept.prompt([{"role": "user", "content": [Part(text="hi")]}], None)
    assert prompt.messages == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_secrets_are_stored_redacted_and_sent_as_they_are() -> None:
    kept = Kept(Redactor(["sk-hunter2"]))
    prompt = kept.prompt([said("use sk-hunter2")], None, {**HEAD, "options": {"user": "sk-hunter2"}})
    assert prompt.messages == [said("use sk-hunter2")]
    assert b"hunter2" not in kept.rebuilt(prompt)
    assert kept.rebuilt(prompt).count(b"[redacted]") == 2


def test_the_fingerprint_tells_prompts_apart_and_does_not_depend_on_the_chain() -> None:
    first = Prompt(HEAD, [said("a"), said("b")], None, OPEN)
    grown = Prompt(HEAD, [said("a"), said("b")], Prompt(HEAD, [said("a")], None, OPEN), OPEN)
    assert grown.fingerprint == first.fingerprint
    assert Prompt(HEAD, [said("b"), said("a")], None, OPEN).fingerprint != first.fingerprint
    assert Prompt(HEAD, [said("a")], None, OPEN).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("messages", "error", "text"),
    [
        ([said("a"), "b"], InputError, r"messages\[1\]: expected a dict with a role, got str"),
        ([{"content": "a"}], InputError, r"messages\[0\]: expected a dict with a role, got dict"),
        ([{"role": "user", "content": {1}}], NotJSON, r"messages\[0\]: set at content is no JSON"),
        ([said("a"), said("x" * MAX_VALUE_BYTES)], ValueTooLarge, r"messages\[1\]: 8\.4 MB"),
    ],
)
def test_a_message_that_cannot_be_stored_is_named(
    messages: list[Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Prompt(HEAD, messages, None, OPEN)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": TEXTS | st.lists(TEXTS, max_size=2)}
)
EDITS = st.lists(
    st.tuples(st.sampled_from(["append", "pop", "replace", "insert", "head"]), st.integers(0, 6), MESSAGES),
    max_size=30,
)


@given(EDITS)
def test_every_prompt_of_any_conversation_is_rebuilt_byte_for_byte(edits: list[Any]) -> None:
    kept = Kept()
    messages: list[dict[str, Any]] = [said("start")]
    head: dict[str, Any] = HEAD
    sent = []
    prompt = None
    for verb, place, message in edits:
        if verb == "append":
            messages.append(message)
        elif verb == "pop" and len(messages) > 1:
            messages.pop()
        elif verb == "replace":
            messages[place % len(messages)] = message
        elif verb == "insert":
            messages.insert(place % len(messages), message)
        else:
            head = {**HEAD, "max_tokens": place}
        prompt = kept.prompt(messages, prompt, head)
        sent.append((prompt, canonical({**head, "messages": copy.deepcopy(messages)})))
    for prompt, given_bytes in sent:
        assert kept.rebuilt(prompt) == given_bytes
