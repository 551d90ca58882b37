"""Values to JSON and back: what reaches a job is what a replay would give it, and secrets stay out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, Secret, SecretBytes, SecretStr

from dayjob.errors import InputError, NotJSON, ValueTooLarge
from dayjob.values import (
    MAX_VALUE_BYTES,
    Redactor,
    Signature,
    canonical,
    convert,
    decode,
    digest,
    encode,
    schema_of,
    secrets_in,
)


class Order(BaseModel):
    id: str
    amount: float = 0.0
    when: datetime | None = None


class Colour(StrEnum):
    RED = "red"


@dataclass
class Point:
    x: float
    y: float


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)

# --- round trips ------------------------------------------------------------------------------------


@given(JSON)
def test_every_json_value_comes_back_equal(value: Any) -> None:
    assert decode(encode(value)) == value


@given(st.dictionaries(TEXT, JSON, max_size=6))
def test_canonical_bytes_do_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    reversed_order = dict(reversed(value.items()))
    assert canonical(value) == canonical(reversed_order)
    assert orjson.loads(canonical(value)) == value


@pytest.mark.parametrize(
    ("value", "declared"),
    [
        (Order(id="A-1", amount=2.5, when=datetime(2026, 1, 2, tzinfo=UTC)), Order),
        ([Order(id="A"), Order(id="B")], list[Order]),
        ({"a": Order(id="A")}, dict[str, Order]),
        (None, Order | None),
        (Order(id="A"), Order | None),
        ("open", Literal["open", "closed"]),
        (3, int),
        (3, int | str),
        ("3", int | str),
        (datetime(2026, 7, 4, 12, 30, tzinfo=UTC), datetime),
        (date(2026, 7, 4), date),
        (Decimal("12.30"), Decimal),
        (UUID(int=7), UUID),
        (Colour.RED, Colour),
        (Point(1.0, 2.0), Point),
        ((1, "a"), tuple[int, str]),
        ({3, 1}, set[int]),
        ({1: "one"}, dict[int, str]),
        (5, Annotated[int, Field(gt=0)]),
        ("with a \0 inside", str),
        ("Ünïcödé 🙂", str),
        (None, None),
    ],
)
def test_declared_types_come_back_as_declared(value: Any, declared: Any) -> None:
    back = decode(encode(value, declared), declared)
    assert back == value
    assert type(back) is type(value)


def test_undeclared_models_and_dates_come_back_as_json() -> None:
    assert decode(encode({"order": Order(id="A")})) == {"order": {"id": "A", "amount": 0.0, "when": None}}
    assert decode(encode(datetime(2026, 1, 2, tzinfo=UTC))) == "2026-01-02T00:00:00+00:00"
    assert decode(encode((1, 2))) == [1, 2]


# --- what is refused ----------------------------------------------------------------------------------


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "nan is no JSON"),
        (math.inf, "inf is no JSON"),
        ({"a": [1, -math.inf]}, "-inf at a[1] is no JSON"),
        (Point(math.nan, 1), "nan at x is no JSON"),
        ([Order(id="A", amount=math.nan)], "nan at [0].amount is no JSON"),
        ({1, 2}, "set is no JSON"),
        ({"found": {"ids": {1}}}, "set at found.ids is no JSON"),
        (Opaque(), "Opaque is no JSON"),
        (b"raw", "bytes is no JSON"),
        ({1: "a"}, "a dict key of type int is no JSON; keys must be str"),
        ({"a": {(1, 2): "b"}}, "a dict key of type tuple at a is no JSON; keys must be str"),
        (2**64, "an int of more than 64 bits cannot be stored; make it a str"),
        ({"n": [-(2**63) - 1]}, "an int of more than 64 bits at n[0] cannot be stored; make it a str"),
        ("\ud800", "a str with half a surrogate pair is no valid UTF-8"),
        ({"a": "x\udfff"}, "a str with half a surrogate pair at a is no valid UTF-8"),
    ],
)
def test_what_is_no_json_is_refused_naming_the_place_and_the_type(value: Any, message: str) -> None:
    with pytest.raises(NotJSON) as caught:
        encode(value)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [math.nan, {"a": [math.inf]}, {1, 2}, {"n": 2**64}, "\ud800"])
def test_canonical_refuses_what_encode_refuses(value: Any) -> None:
    with pytest.raises(NotJSON):
        canonical(value)


@pytest.mark.parametrize("declared", [list[int], list[int] | None, dict[str, int]])
def test_an_int_over_64_bits_is_refused_in_declared_types_too(declared: Any) -> None:
    value: Any = {"n": 2**70 + 1} if declared == dict[str, int] else [2**70 + 1]
    with pytest.raises(NotJSON, match="more than 64 bits"):
        encode(value, declared)


def test_long_digits_in_a_text_are_no_int() -> None:
    value = ["1" * 40, "9" * 25]
    assert decode(encode(value, list[str]), list[str]) == value


def test_a_cycle_is_refused_and_does_not_crash() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotJSON):
        encode(loop)


def test_a_value_that_does_not_fit_its_type_is_refused_naming_both() -> None:
    with pytest.raises(NotJSON, match=r"dict does not fit list\[int\]"):
        encode({"a": 1}, list[int])


def test_exactly_8_mb_is_stored_and_a_byte_more_is_not() -> None:
    assert len(encode("x" * (MAX_VALUE_BYTES - 2))) == MAX_VALUE_BYTES
    with pytest.raises(ValueTooLarge, match=r"8\.4 MB of JSON; the limit of a value is 8 MB"):
        encode("x" * (MAX_VALUE_BYTES - 1))


@pytest.mark.parametrize(
    ("data", "declared", "expected"),
    [
        (b'"3"', int, "expected int, got str '3'"),
        (b"true", int, "expected int, got bool True"),
        (b"true", float, "expected float, got bool True"),
        (b"1", bool, "expected bool, got int 1"),
        (b"null", str, "expected str, got NoneType None"),
        (b"[]", dict, "expected dict, got list []"),
        (b'{"amount": 1}', Order, "id: Field required"),
        (b'"broken"', Literal["open"], "Input should be 'open'"),
        (b'[1, "x"]', list[int], "1: Input should be a valid integer"),
    ],
)
def test_decode_says_what_was_expected_and_where(data: bytes, declared: Any, expected: str) -> None:
    with pytest.raises(InputError, match="^" + expected.replace("[", r"\[")):
        decode(data, declared)


def test_a_long_wrong_value_is_shown_shortened() -> None:
    with pytest.raises(InputError) as caught:
        decode(encode("x" * 5000), int)
    assert len(str(caught.value)) < 120


def test_convert_and_decode_agree() -> None:
    for data, declared in [(b"[1,2]", list[int]), (b'{"id":"A"}', Order), (b"null", Order | None)]:
        assert convert(orjson.loads(data), declared) == decode(data, declared)


def test_schema_of_a_type_is_json_schema() -> None:
    assert schema_of(Literal["a", "b"]) == {"enum": ["a", "b"], "type": "string"}
    assert schema_of(Order)["required"] == ["id"]


# --- secrets ------------------------------------------------------------------------------------------


def test_secret_str_never_reaches_json() -> None:
    assert encode({"key": SecretStr("hunter2hunter2")}) == b'{"key":"[redacted]"}'
    assert b"hunter2" not in encode(SecretStr("hunter2hunter2"), SecretStr)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "gh_token", "DB_PASSWORD", "A_SECRET", "LISTED"])
def test_values_of_secret_environment_names_are_redacted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAYJOB_REDACT", "OTHER, LISTED")
    monkeypatch.setenv(name, 's3cr3t-"é')
    redact = Redactor.from_environment()
    assert redact(encode({"a": 'token s3cr3t-"é!'})) == b'{"a":"token [redacted]!"}'


def test_other_environment_names_and_short_values_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CITY", "Lisbon-by-the-sea")
    monkeypatch.setenv("SHORT_KEY", "abc")
    redact = Redactor.from_environment()
    assert redact(b'"abc in Lisbon-by-the-sea"') == b'"abc in Lisbon-by-the-sea"'


def test_a_secret_within_a_longer_secret_leaves_no_rest() -> None:
    redact = Redactor(["secret-12", "secret-123456"])
    assert redact(b'"secret-123456 secret-12"') == b'"[redacted] [redacted]"'


@given(value=JSON, secret=st.text('0123456789truefalsenull.eE+-,:[]{}"\\n', min_size=6, max_size=8))
def test_redaction_always_leaves_json_of_the_same_shape(value: Any, secret: str) -> None:
    value = {"n": 1234567, "t": secret, "x": value}
    redacted = decode(Redactor([secret])(encode(value)))
    assert redacted["n"] == 1234567
    assert redacted["t"] == "[redacted]"


def test_a_secret_of_digits_does_not_touch_numbers() -> None:
    assert (
        Redactor(["123456"])(b'{"at":91234567.5,"pin":"123456"}') == b'{"at":91234567.5,"pin":"[redacted]"}'
    )


def test_a_secret_is_not_found_in_half_of_an_escape() -> None:
    assert Redactor(["n12345"])(encode("\n12345")) == encode("\n12345")


def test_redacted_text_is_for_people_as_it_is_for_json() -> None:
    assert Redactor(["hunter22"]).text('wrong "hunter22"') == 'wrong "[redacted]"'


# --- signatures ---------------------------------------------------------------------------------------


def handler(
    run: Any, order: Order, count: int, note: str = "hi", *, when: datetime | None = None
) -> None: ...


@pytest.fixture
def signature() -> Signature:
    return Signature(handler, skip_first=True)


def test_bind_fills_in_defaults_and_takes_positions_and_names(signature: Signature) -> None:
    order = Order(id="A")
    assert signature.bind((order,), {"count": 3}) == {"order": order, "count": 3, "note": "hi", "when": None}


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((), {"count": 1}, "order: missing"),
        ((), {}, "order: missing; count: missing"),
        ((), {"order": 1, "count": 1, "colour": "red"}, "colour: unknown"),
        ((), {"order": 1, "colour": "red"}, "colour: unknown; count: missing"),
        ((1, 2, 3, 4, 5), {}, "too many positional arguments"),
        ((1, 2), {"order": 3}, "multiple values for argument 'order'"),
    ],
)
def test_bind_names_what_is_missing_unknown_or_too_much(
    signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError) as caught:
        signature.bind(args, kwargs)
    assert named in str(caught.value)
    assert "expected order: Order, count: int, note: str, when: datetime.datetime | None" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"count": "3"}, "count: expected int, got str '3'"),
        ({"order": {"amount": 1}}, "order: "),
        ({"note": {1, 2}}, "note: set is no JSON"),
        ({"note": "x" * MAX_VALUE_BYTES}, "note: 8.4 MB of JSON"),
    ],
)
def test_encode_names_the_field(signature: Signature, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        signature.encode(arguments)
    assert str(caught.value).startswith(named)


def test_fields_that_are_too_large_together_are_all_named(signature: Signature) -> None:
    half = "x" * (MAX_VALUE_BYTES // 2)
    with pytest.raises(InputError, match=r"^order, note: 8\.4 MB in all; the limit is 8 MB"):
        signature.encode({"order": Order(id=half), "note": half})


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b'{"order":{"id":"A"},"count":"many"}', "count: expected int, got str 'many'"),
        (b'{"order":{"id":1},"count":1}', "order: id: Input should be a valid string"),
        (b'{"count":1}', "order: missing"),
        (b'{"order":{"id":"A"},"count":1,"colour":"red"}', "colour: unknown"),
        (b"[1]", "expected a JSON object of order: Order"),
        (b'"text"', "expected a JSON object of order: Order"),
        (b"{broken", "expected a JSON object of order: Order"),
    ],
)
def test_decode_names_the_field(signature: Signature, data: bytes, named: str) -> None:
    with pytest.raises(InputError) as caught:
        signature.decode(data)
    assert str(caught.value).startswith(named)


def test_arguments_come_back_as_their_types(signature: Signature) -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    arguments = {"order": Order(id="A"), "count": 2, "note": "n", "when": when}
    assert signature.decode(signature.encode(arguments)) == arguments


def test_a_signature_without_annotations_takes_any_json() -> None:
    def bare(run, a, b=2):  # type: ignore[no-untyped-def]
        ...

    signature = Signature(bare, skip_first=True)
    assert signature.decode(signature.encode({"a": [1], "b": None})) == {"a": [1], "b": None}
    assert Signature(lambda run: None, skip_first=True).described() == "nothing"


def test_digest_has_16_bytes_and_tells_values_apart() -> None:
    assert len(digest(b"a")) == 16
    assert digest(b"a") != digest(b"b")


def test_what_a_run_was_given_is_a_secret_of_that_run_alone() -> None:
    everyone = Redactor(["of-everyone"])
    one, other = everyone.for_run(), everyone.for_run()
    one.learn(["amount", "hunter22"])
    data = b'"amount of hunter22 of-everyone"'
    assert one(data) == b'"[redacted] of [redacted] [redacted]"'
    assert other(data) == everyone(data) == b'"amount of hunter22 [redacted]"'
    assert one.text("hunter22") == "[redacted]"


def test_what_a_run_was_given_stays_where_it_is_a_key() -> None:
    redact = Redactor(["of-everyone"]).for_run()
    redact.learn(["amount"])
    assert redact(b'{"amount":"amount","of-everyone":1}') == b'{"amount":"[redacted]","[redacted]":1}'


def test_secrets_are_found_wherever_they_are_nested() -> None:
    class Login(BaseModel, extra="allow"):
        password: SecretStr
        earlier: list[SecretBytes] = []

    @dataclass(slots=True)
    class Account:
        login: Login
        pins: tuple[SecretStr, ...] = ()
        code: Secret[int] | None = None

    extra: Any = {"token": SecretStr("of-an-extra")}
    login = Login(password=SecretStr("of-a-model"), earlier=[SecretBytes(b"of-bytes")], **extra)
    account = Account(login, (SecretStr("of-a-tuple"),), Secret(123456))
    found = secrets_in({"accounts": [account, account], "name": "no secret", "login": Login})
    assert sorted(found) == ["123456", "of-a-model", "of-a-tuple", "of-an-extra", "of-bytes"]


def test_what_holds_itself_holds_its_secrets_once() -> None:
    value: list[Any] = [SecretStr("of-a-list")]
    value.append(value)
    assert secrets_in(value) == ["of-a-list"]
