"""How long the property tests search: `DAYJOB_SEARCH=long pytest tests/property`, or --hypothesis-profile."""

import os

from hypothesis import HealthCheck, settings

_everywhere = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}
settings.register_profile("ci", derandomize=True, max_examples=25, **_everywhere)
settings.register_profile("long", max_examples=1_000, **_everywhere)
settings.load_profile(os.environ.get("DAYJOB_SEARCH", "ci"))
