"""`/v1/files`: uploaded files, on disk under a name of ours; what is known of each is in the store.

A file is written as it arrives, under `ID.….part`, and has its name when it is whole and on disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from dayjob.kept import ObjectRecord, Page
from dayjob.server.access import Caller, Member
from dayjob.server.answers import JSON
from dayjob.server.described import Responses, answers, answers_pages_of
from dayjob.server.desk import AtDesk, Desk, id_for
from dayjob.server.errors import Refused, logger
from dayjob.server.middleware import FORM_BYTES

router = APIRouter(prefix="/v1", tags=["Files"])
KIND = "file"
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data")
PIECE_BYTES = 1_000_000
MOST_FIELD_BYTES = 4_096
MOST_NAME = 255
PAGE = 1_000
FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": PURPOSES},
    },
}
CONTENT: Responses = {
    200: {
        "description": "The bytes",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    206: {"description": "The part that the header `Range` asks for"},
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PART = ".part"
STALE_SECONDS = 24 * 3_600


@router.post(
    "/files",
    responses=answers("FileObject"),
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}},
)
async def upload_file(request: Request, desk: AtDesk, caller: Member) -> JSON:
    """A form with `file` and `purpose`. The file is on disk when this is answered."""
    id = id_for("file", caller, request).replace("_", "-", 1)
    with _disk():
        async with Upload(
            _boundary(request), desk.settings.files, id, desk.settings.max_upload_bytes
        ) as upload:
            async for piece in request.stream():
                await upload.take(piece)
            body = await upload.finished()
            made = ObjectRecord(KIND, id, desk.app.now(), orjson.dumps(body))
            if await desk.app.store.object(caller.project, KIND, id) is None:  # else it was sent before
                await upload.keep()
    return JSON(file_object(await desk.app.store.create_object(caller.project, made)))


@router.get("/files", responses=answers_pages_of("FileObject"))
async def list_files(
    desk: AtDesk, caller: Member, purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc", after: str | None = None,
) -> JSON:  # fmt: skip
    """The project's files, newest first."""
    found = []
    async for record in _files(desk, caller, order == "asc", after or None, min(limit + 1, PAGE)):
        made = file_object(record)
        if purpose in (None, made["purpose"]):
            found.append(made)
        if len(found) > limit:
            break
    data = found[:limit]
    ends = (
        {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
        if data
        else {"first_id": None, "last_id": None}
    )
    return JSON({"object": "list", "data": data, **ends, "has_more": len(found) > limit})


@router.get("/files/{id}", responses=answers("FileObject"))
async def get_file(id: str, desk: AtDesk, caller: Member) -> JSON:
    """What is known of a file; not its content."""
    return JSON(file_object(await desk.object_of(caller, KIND, id)))


@router.delete("/files/{id}", responses=answers("FileDeleted"))
async def delete_file(id: str, desk: AtDesk, caller: Member) -> JSON:
    """It is gone from disk too; who is reading it reads on."""
    await desk.object_of(caller, KIND, id)
    await desk.app.store.delete_object(caller.project, KIND, id)
    await run_in_threadpool((desk.settings.files / id).unlink, missing_ok=True)
    return JSON({"id": id, "object": "file", "deleted": True})


@router.get("/files/{id}/content", response_class=Response, responses=CONTENT)
async def get_content(id: str, desk: AtDesk, caller: Member) -> FileResponse:
    """The bytes as they were uploaded: to be saved, never to be shown by a browser as a page of ours."""
    record = await desk.object_of(caller, KIND, id)
    path = desk.settings.files / record.id
    if not await run_in_threadpool(path.is_file):
        raise Refused(f"The content of file '{id}' is no longer there.", 404, code="content_missing")
    return FileResponse(path, media_type="application/octet-stream", filename=file_object(record)["filename"])


def file_object(record: ObjectRecord) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(record.body)
    return {
        "id": record.id,
        "object": "file",
        "created_at": int(record.created),
        "expires_at": None,
        "status": "processed",
        "status_details": None,
        **body,
    }


async def _files(
    desk: Desk, caller: Caller, ascending: bool, after: str | None, size: int
) -> AsyncIterator[ObjectRecord]:
    more = True
    while more:
        page = Page(size, ascending, after)
        found, more = await desk.app.store.objects(caller.project, KIND, page)
        for record in found:
            yield record
        after = found[-1].id if found else None


# --- uploading -------------------------------------------------------------------------------------


class Upload:
    """A form as it arrives: its fields in memory, its file on disk. What is not kept is removed."""

    def __init__(self, boundary: bytes, folder: Path, id: str, most_bytes: int) -> None:
        self._path = folder / id
        self._part = folder / f"{id}.{secrets.token_hex(4)}{PART}"
        self._most_bytes = most_bytes
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )
        self._fields: dict[str, bytearray] = {}
        self._field = ""
        self._name = self._value = b""
        self._disposition = b""
        self._filename: str | None = None
        self._pending = bytearray()
        self._bytes = self._arrived = 0
        self._ended = False

    async def __aenter__(self) -> Upload:
        self._file = await run_in_threadpool(_create, self._part)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Here and not in a thread: this has to be done when the request was cancelled, too.
        os.close(self._file)
        self._part.unlink(missing_ok=True)

    async def take(self, piece: bytes) -> None:
        """Raises Refused for what is no form, or too large a file."""
        self._arrived += len(piece)
        try:
            self._parser.write(piece)
        except FormParserError as problem:
            raise Refused(f"The multipart form is broken: {problem}.") from None
        if self._bytes > self._most_bytes:
            raise Refused(f"file: is larger than {self._most_bytes:,} bytes.", 413, param="file")
        if self._arrived - self._bytes > FORM_BYTES:
            raise Refused(f"The multipart form has more than {FORM_BYTES:,} bytes beside its file.", 413)
        if len(self._pending) >= PIECE_BYTES:
            await self._write()

    async def finished(self) -> dict[str, Any]:
        """What is known of the file, when the whole form is here. Raises Refused for what is missing in it."""
        if not self._ended:
            raise Refused("The multipart form ends too early.")
        if self._filename is None:
            raise Refused("body -> file field required", param="file")
        if "purpose" not in self._fields:
            raise Refused("body -> purpose field required", param="purpose")
        purpose = self._fields["purpose"].decode(errors="replace")
        if purpose not in PURPOSES:
            raise Refused(f"'{purpose}' is not one of {list(PURPOSES)} - 'purpose'", param="purpose")
        if any(name.startswith("expires_after") for name in self._fields):
            raise Refused("expires_after: files do not expire here; delete them.", param="expires_after")
        return {"bytes": self._bytes, "filename": self._filename, "purpose": purpose}

    async def keep(self) -> None:
        await self._write()
        await run_in_threadpool(_put_in_place, self._file, self._part, self._path)

    async def _write(self) -> None:
        pending, self._pending = self._pending, bytearray()
        await run_in_threadpool(_write_all, self._file, pending)

    # what the parser finds

    def _begin_part(self) -> None:
        self._disposition = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode(errors="replace")
        if self._field == "file":
            if self._filename is not None:
                raise Refused("file: expected one file, got more.", param="file")
            self._filename = plain_name(options.get(b"filename", b"").decode(errors="replace"))
        else:
            self._fields[self._field] = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field == "file":
            self._bytes += end - start
            self._pending += data[start:end]
        elif sum(map(len, self._fields.values())) + end - start > MOST_FIELD_BYTES:
            raise Refused(f"{self._field[:100]}: is too long.", param=self._field[:100])
        else:
            self._fields[self._field] += data[start:end]

    def _end(self) -> None:
        self._ended = True


def plain_name(given: str) -> str:
    """The last part of a client's name for a file. It is shown, and never made into a path."""
    last = given.replace("\\", "/").rpartition("/")[2]
    return "".join(each for each in last if each.isprintable())[:MOST_NAME] or "file"


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 256:
        raise Refused("Content-Type: expected 'multipart/form-data', with its boundary.", 415)
    return boundary


def _create(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _write_all(file: int, data: bytearray) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _put_in_place(file: int, part: Path, path: Path) -> None:
    os.fsync(file)
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _disk() -> Any:
    try:
        yield
    except OSError as problem:
        raise storage_problem(problem) from problem


def storage_problem(problem: OSError) -> Refused:
    """What a client is told when the disk does not take its file."""
    if problem.errno in FULL:
        return Refused("The server has no space left for this file.", 507, code="storage_full")
    logger.error("a file could not be stored: %s", problem)
    return Refused("The server could not store this file.", 500, code="storage_failed")


def remove_stale_parts(folder: Path) -> None:
    """Removes what uploads left behind whose server was killed."""
    with contextlib.suppress(OSError):
        for part in folder.glob(f"*{PART}"):
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink(missing_ok=True)
