"""What a reply cost, from the price list that comes with `genai-prices`.

The list is the installed one: nothing is fetched. What it does not know is None, never a guess.
"""

from __future__ import annotations

from dayjob.models import Usage


def dollars(
    model: str,
    usage: Usage,
    *,
    base_url: str,
    tier: str | None = None,
    cache_writes: int = 0,
    long_cache_writes: int = 0,
) -> float | None:
    """The price of a reply; None when the provider at `base_url`, or its model, is not listed.

    `tier` is the service tier that the provider reports: no list price for it is None too.
    `cache_writes` are the input tokens whose writing to the cache costs extra, `long_cache_writes`
    those among them that are kept for an hour. The first call takes a quarter of a second, for the
    import.
    """
    import genai_prices

    written = {"cache_write_tokens": cache_writes} if cache_writes else {}
    if long_cache_writes:
        written["cache_write_1h_tokens"] = long_cache_writes
    special = tier if tier not in ("default", "standard", "auto", "") else None
    try:
        price = genai_prices.calc_price(
            genai_prices.Usage(
                input_tokens=usage.input_tokens,
                cache_read_tokens=usage.cached_tokens,
                output_tokens=usage.output_tokens,
                **written,
            ),
            model,
            provider_api_url=base_url,
            price_context={"service_tier": special} if special else None,
        )
    except (LookupError, ValueError):  # unknown, or counts that contradict each other
        return None
    if special and not any(
        variant.when.get("service_tier") == special for variant in price.model.price_variants or ()
    ):
        return None
    return float(price.total_price)
