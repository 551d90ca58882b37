"""`/v1/files`: what is uploaded, listed, read and deleted; on disk under no name of a client's."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import openai
import pytest

from dayjob.server.files import plain_name, remove_stale_parts, storage_problem
from tests.server.raw import Raw
from tests.until import until


def on_disk(served: Any) -> list[str]:
    folder: Path = served.settings.files
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


async def upload(
    client: Any, name: str = "a.txt", data: bytes = b"hello", purpose: str = "assistants"
) -> Any:
    return await client.files.create(file=(name, data), purpose=purpose)


async def test_a_file_goes_in_and_out_unchanged(serving: Any) -> None:
    served = await serving()
    client = await served.openai()
    data = bytes(range(256)) * 20_000
    made = await upload(client, "daten.bin", data)
    assert made.id.startswith("file-")
    assert (made.object, made.bytes, made.filename, made.purpose, made.status) == (
        "file", len(data), "daten.bin", "assistants", "processed",
    )  # fmt: skip
    assert await client.files.retrieve(made.id) == made
    content = await client.files.content(made.id)
    assert content.content == data
    assert content.response.headers["content-type"] == "application/octet-stream"
    assert 'attachment; filename="daten.bin"' in content.response.headers["content-disposition"]
    assert on_disk(served) == [made.id]


async def test_a_deleted_file_is_gone_from_disk_too(serving: Any) -> None:
    served = await serving()
    client = await served.openai()
    made = await upload(client)
    gone = await client.files.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "file", True)
    assert on_disk(served) == []
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No file found with id"):
            await call(made.id)


async def test_lists_are_paged_and_filtered(serving: Any) -> None:
    served = await serving()
    client = await served.openai()
    made = [await upload(client, f"{n}", purpose="vision" if n % 2 else "assistants") for n in range(7)]
    names = [each.filename async for each in client.files.list()]
    assert names == ["6", "5", "4", "3", "2", "1", "0"]
    assert [each.filename async for each in client.files.list(limit=2, order="asc")] == names[::-1]
    assert [each.filename async for each in client.files.list(purpose="vision", limit=1)] == ["5", "3", "1"]
    page = await client.files.list(after=made[5].id, limit=2, purpose="assistants")
    assert [each.filename for each in page.data] == ["4", "2"]
    assert page.has_more
    with pytest.raises(openai.BadRequestError):
        await client.files.list(limit=0)


async def test_another_projects_files_are_not_there(serving: Any) -> None:
    served = await serving()
    mine, theirs = await served.openai(await served.key("a")), await served.openai(await served.key("b"))
    made = await upload(mine)
    assert (await theirs.files.list()).data == []
    for call in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
        with pytest.raises(openai.NotFoundError):
            await call(made.id)
    assert (await mine.files.content(made.id)).content == b"hello"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../../etc/passwd", "passwd"), ("/etc/cron.d/evil", "evil"), ("..\\..\\boot.ini", "boot.ini"),
        ("..", ".."), ("a\r\nx-evil: 1", "ax-evil: 1"), ('"; filename=evil.html', '"; filename=evil.html'),
        ("grüße 🙂.txt", "grüße 🙂.txt"), ("\x00", "file"), ("a/", "file"), ("x" * 300, "x" * 255),
    ],
)  # fmt: skip
async def test_a_clients_name_is_shown_and_never_a_path(serving: Any, name: str, kept: str) -> None:
    assert plain_name(name) == kept
    served = await serving()
    client = await served.openai()
    if not name.isprintable():
        return  # a client does not send these as they are
    made = await upload(client, name)
    assert on_disk(served) == [made.id]
    answer = (await client.files.content(made.id)).response
    assert answer.headers["content-disposition"].startswith("attachment; filename")
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize("id", ["..", "../dayjob.db", "%2e%2e%2fdayjob.db", "file-x", "."])
async def test_an_id_that_is_a_path_finds_nothing(serving: Any, id: str) -> None:
    served = await serving()
    async with Raw(served.url) as raw:
        await raw.send(f"GET /v1/files/{id}/content HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        assert " 404 " in await raw.head()


async def test_a_file_over_the_limit_is_refused_and_leaves_nothing(serving: Any) -> None:
    served = await serving(max_upload_bytes=1_000)
    client = await served.openai()
    assert (await upload(client, data=b"x" * 1_000)).bytes == 1_000
    with pytest.raises(openai.APIStatusError) as declared:
        await upload(client, data=b"x" * 200_000)
    with pytest.raises(openai.APIStatusError) as counted:
        await upload(client, data=b"x" * 1_001)
    assert declared.value.status_code == counted.value.status_code == 413
    assert len(on_disk(served)) == 1


async def test_a_chunked_upload_over_the_limit_is_refused_and_leaves_nothing(serving: Any) -> None:
    served = await serving(max_upload_bytes=100_000)
    async with Raw(served.url) as raw:
        await raw.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        await raw.send(b"%x\r\n" % len(OPENING) + OPENING + b"\r\n")
        for _ in range(20):
            await raw.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert " 413 " in await raw.head()
    assert on_disk(served) == []


async def test_an_upload_that_breaks_off_leaves_nothing(serving: Any) -> None:
    served = await serving()
    async with Raw(served.url) as raw:
        await raw.send(HEAD + b"content-length: 5000000\r\n\r\n" + OPENING + b"x" * 2_000_000)
        await until(lambda: on_disk(served), what="the upload to begin")
    await until(lambda: not on_disk(served), what="the partial file to be removed")


async def test_an_upload_that_trickles_in_is_dropped(serving: Any) -> None:
    served = await serving(body_seconds=0.3)
    async with Raw(served.url) as raw:
        await raw.send(HEAD + b"content-length: 5000\r\n\r\n" + OPENING)
        assert " 408 " in await raw.head()
    await until(lambda: not on_disk(served), what="the partial file to be removed")


HEAD = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
OPENING = b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
PURPOSE = b'\r\n--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nassistants'
END = b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (OPENING + b"x" + END, "purpose field required"),
        (PURPOSE[2:] + END, "file field required"),
        (OPENING + b"x" + PURPOSE + b"-not" + END, "is not one of"),
        (OPENING + b"x" + PURPOSE, "ends too early"),
        (OPENING + b"x\r\n" + OPENING + b"y" + PURPOSE + END, "expected one file"),
        (OPENING + b"x" + PURPOSE + b"x" * 10_000 + END, "too long"),
        (b"no form at all", "form is broken"),
        (
            OPENING + b"x" + PURPOSE + PURPOSE.replace(b"purpose", b"expires_after[seconds]") + END,
            "do not expire",
        ),
    ],
)
async def test_a_form_that_is_wrong_is_refused_and_leaves_nothing(
    serving: Any, form: bytes, told: str
) -> None:
    served = await serving()
    answer = await (await served.http()).post(
        "/v1/files", content=form, headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]["message"]
    assert on_disk(served) == []


async def test_a_form_of_endless_fields_is_refused_before_it_fills_the_memory(serving: Any) -> None:
    served = await serving()
    field = b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\n\r\n'
    async with Raw(served.url) as raw:
        await raw.send(HEAD + b"content-length: 5000000\r\n\r\n" + field * 2_000)
        assert " 413 " in await raw.head()
    assert on_disk(served) == []


async def test_an_upload_that_is_no_form_is_refused(serving: Any) -> None:
    served = await serving()
    for kind in ("application/json", "multipart/form-data"):
        answer = await (await served.http()).post("/v1/files", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415


async def test_an_upload_that_is_sent_again_makes_no_second_file(serving: Any) -> None:
    served = await serving()
    client = await served.openai()
    key = {"idempotency-key": "one"}
    first = await client.files.create(file=("a", b"hello"), purpose="vision", extra_headers=key)
    again = await client.files.create(file=("a", b"hello"), purpose="vision", extra_headers=key)
    assert first == again
    assert on_disk(served) == [first.id]


async def test_a_part_of_a_file_may_be_asked_for(serving: Any) -> None:
    served = await serving()
    made = await upload(await served.openai(), data=b"0123456789")
    answer = await (await served.http()).get(f"/v1/files/{made.id}/content", headers={"range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")


async def test_content_that_is_lost_is_a_404_that_says_so(serving: Any) -> None:
    served = await serving()
    client = await served.openai()
    made = await upload(client)
    (served.settings.files / made.id).unlink()
    with pytest.raises(openai.NotFoundError, match="no longer there"):
        await client.files.content(made.id)
    await client.files.delete(made.id)


async def test_a_folder_that_cannot_be_written_is_a_500_that_says_so(serving: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    served = await serving(files=tmp_path / "taken")
    with pytest.raises(openai.InternalServerError, match="could not store"):
        await upload(await served.openai())


def test_what_a_killed_server_left_is_removed_a_day_later(tmp_path: Path) -> None:
    for name in ("file-1", "file-2.aa.part", "file-3.bb.part"):
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / "file-1", (0, 0))
    os.utime(tmp_path / "file-2.aa.part", (0, 0))
    remove_stale_parts(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file-1", "file-3.bb.part"]


def test_a_full_disk_is_a_507() -> None:
    refused = storage_problem(OSError(errno.ENOSPC, "No space left on device"))
    assert refused.status == 507
    assert "no space left" in str(refused)
