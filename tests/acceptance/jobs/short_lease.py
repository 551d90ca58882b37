"""A worker whose lease is short enough for a test to wait for its end."""

import asyncio
import signal
import sys

import chores

from dayjob import Dayjob

LEASE_SECONDS = 4.0
BEAT_SECONDS = 0.2


async def main(store: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    lease = {"lease_seconds": LEASE_SECONDS, "beat_seconds": BEAT_SECONDS}
    async with Dayjob(store, jobs=[chores.long_walk], worker=False) as app, app.worker(**lease):
        await stop.wait()


asyncio.run(main(sys.argv[1]))
