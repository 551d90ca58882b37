"""Which process this is, and whether another one of this host still lives."""

from __future__ import annotations

import socket
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def this_host() -> tuple[str, str]:
    """This host's name, and the ids of its boot and of the namespace in which process ids are counted.

    After a reboot no process is the one it was; those of another container cannot be seen from here.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname(), ""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return socket.gethostname(), f"{boot} {namespace}"


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
    """Whether a process certainly no longer runs; never certain of one of another host or container."""
    if not boot or host != this_host()[0]:
        return False
    boot, _, namespace = boot.partition(" ")
    booted, _, visible = this_host()[1].partition(" ")
    if boot != booted:
        return True
    if namespace != visible:
        return False
    now = start_of(pid)
    return now is None or (now != "" and start != "" and now != start)
