"""Images that clients uploaded reach the model, and only the model."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import orjson
import pytest

from dayjob.models import Model, ModelReply, ModelRequest, Usage
from dayjob.models.local import Local
from dayjob.models.scripted import Scripted
from dayjob.server import images
from tests.server.serving import Serving, serving

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels of a cat" * 10
KINDS = {
    "image/png": PNG, "image/jpeg": b"\xff\xd8\xff\xe0" + b"x" * 20, "image/gif": b"GIF89a" + b"x" * 20,
    "image/webp": b"RIFF\x10\x00\x00\x00WEBPVP8 " + b"x" * 20,
}  # fmt: skip


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def bytes_of_store(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("jobs.db*"))


async def uploaded(here: Serving, data: bytes = PNG, purpose: Any = "vision") -> str:
    return (await here.client.files.create(file=("cat", data), purpose=purpose)).id


async def asked(here: Serving, *ids: str, role: Any = "user", **more: Any) -> Any:
    """The run that answers a message with these images."""
    images: list[Any] = [{"type": "image_file", "image_file": {"file_id": id, "detail": "low"}} for id in ids]
    content = [{"type": "text", "text": "What is this?"}, *images]
    assistant = await here.client.beta.assistants.create(model="m")
    return await here.client.beta.threads.create_and_run_poll(
        assistant_id=assistant.id,
        thread={"messages": [{"role": role, "content": content}]},
        **more,
    )


def told(here: Serving, call: int = 0) -> list[Any]:
    """What the model was given beside the question."""
    parts: list[Any] = here.model.requests[call].messages[-1]["content"]
    assert parts[0] == {"type": "text", "text": "What is this?"}
    return parts[1:]


@pytest.mark.parametrize(
    ("kind", "purpose"), [*((kind, "vision") for kind in KINDS), ("image/png", "assistants")]
)
async def test_an_uploaded_image_is_shown_to_the_model(tmp_path: Path, kind: str, purpose: str) -> None:
    async with serving(tmp_path, ["A cat."]) as here:
        run = await asked(here, await uploaded(here, KINDS[kind], purpose))
        assert run.status == "completed"
        shown = {"url": url_of(KINDS[kind], kind), "detail": "low"}
        assert told(here) == [{"type": "image_url", "image_url": shown}]


async def test_what_is_kept_of_the_prompt_is_the_reference(tmp_path: Path) -> None:
    async with serving(tmp_path, ["A cat."]) as here:
        id = await uploaded(here)
        run = await asked(here, id)
        [step] = [each for each in await here.app.store.steps(run.id) if each.model]
        request = orjson.loads(await here.app.request_of(step) or b"")
        part = {"type": "image_file", "image_file": {"file_id": id, "detail": "low"}}
        assert request["messages"][-1]["content"][1] == part
        [_, message] = (await here.client.beta.threads.messages.list(run.thread_id)).data
        assert message.content[1].image_file.file_id == id
    kept = await asyncio.to_thread(bytes_of_store, tmp_path)
    assert id.encode() in kept and base64.b64encode(PNG)[:40] not in kept


async def test_an_image_that_cannot_be_shown_is_a_text_that_says_why(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda request: "Hm.") as here:
        deleted, text, lost = await uploaded(here), await uploaded(here, b"hello"), await uploaded(here)
        large = await uploaded(here, PNG + bytes(images.MOST_IMAGE_BYTES))
        others = await here.client_of("another")
        foreign = (await others.files.create(file=("cat", PNG), purpose="vision")).id
        await here.client.files.delete(deleted)
        (tmp_path / "files" / lost).unlink()
        whys = {
            "file-none": images.NOT_THERE, "../jobs.db": images.NOT_THERE, foreign: images.NOT_THERE,
            deleted: images.NOT_THERE, lost: images.NOT_THERE, text: images.NO_IMAGE, large: images.TOO_LARGE,
        }  # fmt: skip
        run = await asked(here, *whys)
        assert run.status == "completed"
        assert [part["text"] for part in told(here)] == [
            f"[The image {id} is not shown: {why}.]" for id, why in whys.items()
        ]


async def test_where_there_is_no_room_for_all_images_the_newest_are_shown(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda request: "Hm.") as here:
        third = PNG + bytes(images.MOST_BYTES_OF_A_REQUEST // 3)
        ids = [await uploaded(here, third) for _ in range(4)]
        await asked(here, *ids)
        assert [part["type"] for part in told(here)] == ["text", "text", "image_url", "image_url"]
        assert images.TOO_MANY in told(here)[0]["text"]


async def test_an_image_in_what_an_assistant_said_is_told_as_text(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hm."]) as here:
        await asked(here, await uploaded(here), role="assistant")
        assert "users only" in told(here)[0]["text"]


async def test_a_run_with_a_limit_of_tokens_takes_an_image_for_what_it_may_cost(tmp_path: Path) -> None:
    async with serving(tmp_path, ["A cat."]) as here:
        run = await asked(here, await uploaded(here), max_prompt_tokens=100_000)
        assert run.status == "completed"
        run = await asked(here, await uploaded(here), max_prompt_tokens=10_000)
        assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_prompt_tokens")


async def test_a_model_that_reads_text_only_fails_the_run_and_says_so(tmp_path: Path) -> None:
    class Blind(Scripted):
        """Refuses what a local model refuses."""

        async def reply(self, request: ModelRequest, on_text: Any) -> ModelReply:
            return await Local().reply(request, on_text)

    async with serving(tmp_path, model=Blind([])) as here:
        run = await asked(here, await uploaded(here))
        assert run.status == "failed"
        assert "a local model reads text only" in run.last_error.message


async def test_the_model_that_sees_has_the_name_and_the_price_of_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path, worker=False) as here:
        for model, dollars in ((Scripted([], price=0.5), 0.5), (Unpriced(), None)):
            seeing: Model = images.Seeing(model, here.app.store, "default", tmp_path)
            request = ModelRequest("m", [])
            assert (seeing.name, images.Seeing.price(seeing, request, Usage())) == (model.name, dollars)


class Unpriced:
    name = "unpriced"

    async def reply(self, request: ModelRequest, on_text: Any) -> ModelReply:
        return ModelReply("")

    async def close(self) -> None: ...
