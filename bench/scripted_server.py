"""A server whose model says one sentence at once: what is measured of it is the server.

python bench/scripted_server.py PORT FOLDER
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from dayjob import Dayjob
from dayjob.assistant import assistant_job
from dayjob.models.scripted import Scripted
from dayjob.server import Settings, create_server
from dayjob.server.listening import bound, listening


async def serve(port: int, folder: Path) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    model = Scripted(lambda request: "Runs are the life cycle.", keep_requests=False)
    async with Dayjob(f"sqlite:///{folder / 'served.db'}", model, [assistant_job()]) as app:
        server = create_server(app, Settings(files=folder / "files"))
        async with listening(server, bound("127.0.0.1", port)):
            await stopped.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
