"""How a server behaves: what `dayjob serve` was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What a server is told once, when it starts.

    models              by the name that a client gives a model: the model that answers
    answers_any         whether the app's own model answers the names that are not among them
    expires_seconds     when an assistant's run expires, from when it was made; None: never
    when_busy           what happens to a message or a run for a thread whose run is active
    files               the folder of uploaded files
    max_body_bytes      of a request that is no upload
    max_upload_bytes    of an uploaded file
    heartbeat_seconds   between the signs of life of a stream that has nothing to say
    stalled_seconds     for which a client may take nothing of what it was sent; then its connection is closed
    body_seconds        in which a body has to arrive, and a second more for each 16 KB of it
    origins             the web pages that may call it (CORS)
    on_loopback         it is reached from this machine only, so that it may be open while no key exists
    """

    models: Mapping[str, str] = field(default_factory=dict)
    answers_any: bool = True
    expires_seconds: float | None = 600.0
    when_busy: Literal["refuse", "enqueue"] = "refuse"
    files: Path = Path("dayjob.files")
    max_body_bytes: int = 16 * MEGABYTE
    max_upload_bytes: int = 512 * MEGABYTE
    body_seconds: float = 30.0
    heartbeat_seconds: float = 15.0
    stalled_seconds: float = 30.0
    origins: tuple[str, ...] = ()
    on_loopback: bool = True
