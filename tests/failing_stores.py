"""Stores that fail as in life: verbs that raise, replies that are lost, a file that another program holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dayjob.errors import StoreUnavailable
from dayjob.stores import Store


class Around:
    """A store of another kind, around a real one."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Failing(Around):
    """A store whose verbs, when told to, fail as those of a broken database do."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.failing: set[str] = set()
        self.failed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        verb: Callable[..., Any] = super().__getattr__(name)
        if name not in self.failing:
            return verb
        self.failed.append(name)
        if name == "beat":
            raise StoreUnavailable("broken")

        async def fails(*args: Any, **kwargs: Any) -> Any:
            raise StoreUnavailable("broken")

        return fails


class Locked:
    """Another program that holds the whole database."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def __enter__(self) -> None:
        self.connection.execute("BEGIN EXCLUSIVE")

    def __exit__(self, *_: object) -> None:
        self.connection.execute("ROLLBACK")
        self.connection.close()
