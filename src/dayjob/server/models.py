"""`/v1/models`: the names that a client may give a model here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from dayjob.server.access import Member
from dayjob.server.answers import JSON
from dayjob.server.described import answers, answers_all
from dayjob.server.desk import AtDesk, Desk
from dayjob.server.errors import Refused

router = APIRouter(prefix="/v1", tags=["Models"])
SINCE = 1_700_000_000
"""The wire wants to know when a model was made, which nobody tells us."""


@router.get("/models", responses=answers_all("Model"))
async def list_models(desk: AtDesk, caller: Member) -> JSON:
    """The names that were mapped to a model, and the server's own model."""
    return JSON({"object": "list", "data": [_model(name) for name in _names(desk)]})


@router.get("/models/{model:path}", responses=answers("Model"))
async def get_model(model: str, desk: AtDesk, caller: Member) -> JSON:
    """One of these names."""
    if model not in _names(desk):
        raise Refused(f"The model '{model}' does not exist.", 404, param="model", code="model_not_found")
    return JSON(_model(model))


def _names(desk: Desk) -> list[str]:
    own = desk.app.model_name
    return list(dict.fromkeys([*desk.settings.models, *([own] if own else [])]))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": SINCE, "owned_by": "dayjob"}
