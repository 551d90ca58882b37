"""Server-sent events out of pieces that end anywhere, and the JSON of requests and events."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayjob.errors import ModelRefused
from dayjob.models.http import Event, Events, headers_in, of_json, to_json

STREAM = """\
: a comment, as some send to keep a connection open

id: 7
retry: 3000

event: greeting
data: {"text": "grüß dich ✓"}

data:no space
data:  two
data
extra: unknown

event: ping

data: last

data: not whole"""
TOLD = [
    (b"greeting", '{"text": "grüß dich ✓"}'.encode()),
    (b"", b"no space\n two\n"),
    (b"ping", b""),
    (b"", b"last"),
]


def read(*pieces: bytes) -> list[Event]:
    events = Events()
    return [event for piece in pieces for event in events.take(piece)]


class TestEvents:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @given(cuts=st.sets(st.integers(min_value=1, max_value=200)))
    def test_pieces_may_end_anywhere(self, end: str, cuts: set[int]) -> None:
        data = STREAM.replace("\n", end).encode()
        ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        assert read(*(data[start:stop] for start, stop in pairwise(ends))) == TOLD

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_pieces_may_be_single_bytes(self, end: str) -> None:
        data = STREAM.replace("\n", end).encode()
        assert read(*(data[index : index + 1] for index in range(len(data)))) == TOLD

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    def test_event_is_told_with_its_last_byte(self, end: bytes) -> None:
        events = Events()
        assert events.take(b"data: 1" + end) == []
        assert events.take(end[:1]) == [(b"", b"1")]
        assert events.take(end[1:] + b"data: 2" + end + end) == [(b"", b"2")]

    def test_many_events_come_in_one_piece(self) -> None:
        assert read(b"data: 1\n\n\n\ndata: 2\n\ndata: 3\n") == [(b"", b"1"), (b"", b"2")]

    def test_done_ends_the_stream_whatever_follows(self) -> None:
        events = Events()
        assert events.take(b"data: 1\n\n") == [(b"", b"1")]
        assert not events.over
        assert events.take(b"data: 2\n\ndata: [DONE]\n\ndata: 3\n\n") == [(b"", b"2")]
        assert events.over


class TestJson:
    @pytest.mark.parametrize(
        "body",
        [
            {"text": "grüß dich ✓\u2028", "number": 0.5, "nested": [1, {"a": True}]},
            {"content": None},
            {"many digits": 2**70},
            {1: "a key that is no text"},
        ],
    )
    def test_request_is_written_without_spaces_as_utf_8(self, body: Any) -> None:
        assert to_json(body) == json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

    @pytest.mark.parametrize("odd", [math.nan, math.inf, "\ud800", b"bytes", {1, 2}, object()])
    def test_request_that_has_no_json_is_refused(self, odd: Any) -> None:
        with pytest.raises(ModelRefused, match="cannot be written as JSON"):
            to_json({"odd": odd})

    def test_event_may_hold_what_strict_json_does_not_know(self) -> None:
        assert of_json(b'{"a": Infinity, "b": "\\ud83d"}') == {"a": math.inf, "b": "\ud83d"}

    @pytest.mark.parametrize("data", [b"", b"{nonsense", b'"\xff"', b"{} {}"])
    def test_event_that_is_no_json_is_an_error(self, data: bytes) -> None:
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            of_json(data)


def test_headers_stand_on_a_line_each() -> None:
    assert headers_in("X-One: 1\r\nX-Two:a:b\nno header\n") == {"x-one": "1", "x-two": "a:b"}
    assert headers_in("") == {}
