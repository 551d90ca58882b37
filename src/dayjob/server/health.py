"""`/health`: whether this server can do its work. Open to all."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from dayjob.app import PROJECT
from dayjob.errors import StoreError
from dayjob.server.answers import JSON
from dayjob.server.desk import AtDesk

router = APIRouter(tags=["health"])
STORE_SECONDS = 5.0


@router.get("/health")
async def health(desk: AtDesk) -> JSON:
    """200 when the store answers, else 503."""
    try:
        async with asyncio.timeout(STORE_SECONDS):
            await desk.app.store.object(PROJECT, "health", "")
    except (StoreError, TimeoutError):
        return JSON({"status": "failing", "store": "not reachable"}, 503)
    return JSON({"status": "ok"})
