"""The shop of `refunds.py`: orders, payments and mails in one SQLite file. It honours keys: one payment a key."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

ANSWERS_AFTER_SECONDS = 1.0
"""The bank is slow: when it has paid, and has not said so yet, is the moment to be killed in."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, customer, address, item, price, came_back);
CREATE TABLE IF NOT EXISTS payments (key TEXT PRIMARY KEY, order_id, amount, taken_back DEFAULT 0);
CREATE TABLE IF NOT EXISTS requests (key, order_id);
CREATE TABLE IF NOT EXISTS mails (address, text);
INSERT OR IGNORE INTO orders VALUES
    ('A-1042', 'Ada', 'ada@example.org', 'lamp', 129, 1),
    ('A-2718', 'Ben', 'ben@example.org', 'coat', 240, 1),
    ('A-3090', 'Cem', 'cem@gone.invalid', 'cup', 20, 1),
    ('A-4711', 'Dot', 'dot@example.org', 'book', 15, 0);
"""


class Order(BaseModel):
    id: str
    customer: str
    address: str
    item: str
    price: int
    came_back: bool


class Payment(NamedTuple):
    order_id: str
    amount: int
    taken_back: bool
    requests: int


class Shop:
    """Nothing is opened before it is needed, and each request is a transaction of its own."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def order(self, order_id: str) -> Order:
        with self._open() as shop:
            row = shop.execute("SELECT * FROM orders WHERE id = ?", (order_id,)).fetchone()
        if row is None:
            raise LookupError(f"there is no order {order_id}")
        return Order(**row)

    def pay_back(self, key: str, order_id: str, amount: int) -> str:
        with self._open() as shop:
            shop.execute("INSERT INTO requests VALUES (?, ?)", (key, order_id))
            shop.execute(
                "INSERT OR IGNORE INTO payments (key, order_id, amount) VALUES (?, ?, ?)",
                (key, order_id, amount),
            )
        time.sleep(ANSWERS_AFTER_SECONDS)
        return _receipt(key)

    def receipt(self, key: str) -> str | None:
        with self._open() as shop:
            found = shop.execute("SELECT 1 FROM payments WHERE key = ?", (key,)).fetchone()
        return _receipt(key) if found else None

    def take_back(self, key: str) -> None:
        with self._open() as shop:
            shop.execute("UPDATE payments SET taken_back = 1 WHERE key = ?", (key,))

    def deliver(self, address: str, text: str) -> None:
        with self._open() as shop:
            shop.execute("INSERT INTO mails VALUES (?, ?)", (address, text))

    def payments(self, order_id: str) -> list[Payment]:
        """What was paid for an order, and how many requests there were for each payment."""
        with self._open() as shop:
            rows = shop.execute(
                "SELECT order_id, amount, taken_back, (SELECT count(*) FROM requests r WHERE r.key = p.key)"
                " FROM payments p WHERE order_id = ?",
                (order_id,),
            ).fetchall()
        return [Payment(row[0], row[1], bool(row[2]), row[3]) for row in rows]

    def mails(self, address: str) -> list[str]:
        with self._open() as shop:
            return [row[0] for row in shop.execute("SELECT text FROM mails WHERE address = ?", (address,))]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            connection.executescript(SCHEMA)
            with connection:
                yield connection


def _receipt(key: str) -> str:
    return f"receipt {key[:6]}"
