"""Which process this is, and whether another one of this host still lives."""

from __future__ import annotations

import socket
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def this_host() -> tuple[str, str]:
    """This host's name and the id of its boot; after a reboot no process is the one it was."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return socket.gethostname(), boot


def start_of(pid: int) -> str | None:
    """When a process of this host started, in the kernel's ticks; None if there is none; "" if unknown here."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "" if not Path("/proc/self").is_dir() else None
    except OSError:
        return ""
    return None if fields[0] in "ZX" else fields[19]


def is_gone(host: str, boot: str, pid: int, start: str) -> bool:
    """Whether a process certainly no longer runs. A process of another host is never certain."""
    if not boot or host != this_host()[0]:
        return False
    if boot != this_host()[1]:
        return True
    now = start_of(pid)
    return now is None or (now != "" and start != "" and now != start)
