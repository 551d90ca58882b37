"""Runs over the wire."""

from __future__ import annotations

from pathlib import Path

from tests.server.serving import serving


async def test_an_app_written_for_the_assistants_api_gets_its_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hello, you."]) as here:
        beta = here.client.beta
        assistant = await beta.assistants.create(model="gpt-4o", instructions="Be brief.")
        thread = await beta.threads.create()
        await beta.threads.messages.create(thread.id, role="user", content="Hello?")
        run = await beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
        assert (run.status, run.model, run.instructions) == ("completed", "gpt-4o", "Be brief.")
        messages = [message async for message in beta.threads.messages.list(thread.id)]
        assert [(each.role, each.content[0].text.value) for each in messages] == [
            ("assistant", "Hello, you."),
            ("user", "Hello?"),
        ]
        assert (messages[0].assistant_id, messages[0].run_id) == (assistant.id, run.id)
        steps = [step async for step in beta.threads.runs.steps.list(run.id, thread_id=thread.id)]
        assert [step.step_details.message_creation.message_id for step in steps] == [messages[0].id]
        assert [message["content"] for message in here.model.requests[0].messages] == ["Be brief.", "Hello?"]
