"""What a reply costs: from the list that is installed, or unknown."""

from __future__ import annotations

import pytest

from dayjob.models import Usage
from dayjob.models.prices import dollars

OPENAI = "https://api.openai.com/v1"
USAGE = Usage(input_tokens=1_000_000, output_tokens=100_000, cached_tokens=400_000)


def test_cached_tokens_cost_what_cached_tokens_cost() -> None:
    fresh = dollars("gpt-5-mini", Usage(1_000_000, 0), base_url=OPENAI)
    cached = dollars("gpt-5-mini", Usage(1_000_000, 0, 1_000_000), base_url=OPENAI)
    assert fresh == pytest.approx(0.25)
    assert cached == pytest.approx(0.025)


def test_dated_name_of_a_model_has_its_price() -> None:
    assert dollars("gpt-5-mini-2025-08-07", USAGE, base_url=OPENAI) == dollars(
        "gpt-5-mini", USAGE, base_url=OPENAI
    )


@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("never-heard-of", OPENAI),
        ("gpt-5-mini", "http://127.0.0.1:8000/v1"),
        ("gpt-5-mini", "https://llm.example.com/v1"),
        ("gpt-5-mini", "https://api.groq.com/openai/v1"),
    ],
)
def test_unknown_model_or_provider_has_no_price(model: str, base_url: str) -> None:
    assert dollars(model, USAGE, base_url=base_url) is None


def test_other_provider_has_its_own_price() -> None:
    price = dollars("llama-3.3-70b-versatile", USAGE, base_url="https://api.groq.com/openai/v1")
    assert price is not None
    assert price > 0


@pytest.mark.parametrize("tier", [None, "", "default", "auto", "standard"])
def test_usual_tiers_have_the_usual_price(tier: str | None) -> None:
    assert dollars("gpt-5-mini", USAGE, base_url=OPENAI, tier=tier) == pytest.approx(
        0.6 * 0.25 + 0.4 * 0.025 + 0.1 * 2.0
    )


def test_tier_without_a_list_price_has_no_price() -> None:
    assert dollars("gpt-5-mini", USAGE, base_url=OPENAI, tier="express") is None


def test_tier_with_a_list_price_has_that() -> None:
    from genai_prices.data import providers

    (openai,) = [provider for provider in providers if provider.id == "openai"]
    model = next(
        model
        for model in openai.models
        if any(each.when == {"service_tier": "flex"} for each in model.price_variants or ())
    )
    usual = dollars(model.id, USAGE, base_url=OPENAI)
    flexible = dollars(model.id, USAGE, base_url=OPENAI, tier="flex")
    assert usual is not None
    assert flexible is not None
    assert 0 < flexible < usual


def test_counts_that_contradict_each_other_have_no_price() -> None:
    assert dollars("gpt-5-mini", Usage(10, 10, 20), base_url=OPENAI) is None


def test_writing_to_the_cache_costs_more_and_for_an_hour_more_still() -> None:
    def price(**written: int) -> float | None:
        address = "https://api.anthropic.com"
        return dollars("claude-sonnet-5-5", Usage(1_000_000, 0), base_url=address, **written)

    assert price() == pytest.approx(2.0)
    assert price(cache_writes=1_000_000) == pytest.approx(2.5)
    assert price(cache_writes=1_000_000, long_cache_writes=1_000_000) == pytest.approx(4.0)
