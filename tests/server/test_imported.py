"""What was imported, as clients of the wire get it back."""

from __future__ import annotations

import io
import json
from pathlib import Path

from dayjob.app import PROJECT
from dayjob.importing import import_lines
from tests.integration.test_importing import assistant, message, run, step, thread
from tests.server.serving import serving


async def test_a_run_that_was_imported_has_the_steps_that_it_came_with(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(each) for each in (assistant(), thread(), message(), run(), step()))
    async with serving(tmp_path) as here:
        await import_lines(here.app.store, io.BytesIO(lines.encode()), PROJECT)
        steps = here.client.beta.threads.runs.steps
        [listed] = (await steps.list("run_abc123", thread_id="thread_abc123")).data
        assert listed.id == "step_abc123"
        again = await steps.retrieve("step_abc123", run_id="run_abc123", thread_id="thread_abc123")
        assert again == listed and again.usage is not None and again.usage.total_tokens == 579
