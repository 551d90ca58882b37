"""`/v1/vector_stores`: said to be missing, so that a client is told so and not that its path is wrong."""

from __future__ import annotations

from fastapi import APIRouter

from dayjob.server.access import Member
from dayjob.server.answers import JSON
from dayjob.server.errors import Refused

router = APIRouter(prefix="/v1", include_in_schema=False)
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


@router.api_route("/vector_stores", methods=METHODS)
@router.api_route("/vector_stores/{rest:path}", methods=METHODS)
async def vector_stores(caller: Member) -> JSON:
    answer = Refused(
        "Vector stores are not supported by this server yet.", 501, code="not_supported"
    ).answer()
    answer.headers["x-should-retry"] = "false"  # the clients send again what fails with 500 and above
    return answer
