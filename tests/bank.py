"""A bank behind a real wire: what tools do to the world is booked here, in order, and outlives every worker.

    with Bank() as bank:
        account = bank.account(honours_keys=True)
        account.trouble("rent", "drop")         # the next request about "rent" goes wrong so
        ...                                     # POST account.url/rent, GET it, DELETE it
        assert account.standing() == ["rent"]

An account that honours keys answers a key that it knows with the reply that it gave before, and books
nothing; one that does not books whatever comes, and can be asked by reference (GET).
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import httpx2

Trouble = Literal["slow", "drop", "500 after", "500 before", "refuse"]
"""What goes wrong once: the reply comes too late, or never, or says 5xx though it was booked; or nothing is booked."""

PATIENCE_SECONDS = 20.0
_CONTEXT = httpx2.create_ssl_context(verify=False)


class Happened(NamedTuple):
    """What the bank saw or did, numbered over all its accounts.

    `what` is "asked" (POST), "booked", "looked" (GET), "asked back" (DELETE) or "reversed"; `found` is what
    a look found.
    """

    number: int
    what: str
    reference: str
    key: str | None = None
    found: bool = False


class Account:
    """One account: its entries, and what it was told to do wrong."""

    def __init__(self, bank: Bank, name: str, honours_keys: bool, slow_seconds: float) -> None:
        self.url = f"{bank.url}/{name}"
        self.honours_keys = honours_keys
        self.slow_seconds = slow_seconds
        self.history: list[Happened] = []
        self.replies: dict[str, int] = {}
        self.bank = bank
        self._troubles: dict[tuple[str, str], deque[Trouble]] = defaultdict(deque)
        self._hooks: dict[tuple[str, str], Callable[[], None]] = {}

    def trouble(self, reference: str, *troubles: Trouble, what: str = "asked") -> None:
        """The next requests about a reference go wrong so, one after the other."""
        self._troubles[what, reference].extend(troubles)

    def when(self, what: str, reference: str, act: Callable[[], None]) -> None:
        """Does something, once, when such a request has arrived, and before anything comes of it."""
        self._hooks[what, reference] = act

    def note(self, what: str, reference: str, key: str | None = None, found: bool = False) -> Happened:
        happened = Happened(self.bank.next_number(), what, reference, key, found)
        self.history.append(happened)
        return happened

    def all(self, *what: str, reference: str | None = None) -> list[Happened]:
        return [h for h in self.history if h.what in what and reference in (None, h.reference)]

    def count(self, what: str, reference: str) -> int:
        return len(self.all(what, reference=reference))

    def standing(self) -> list[str]:
        """What is booked and was not reversed, in order."""
        reversed_ = [h.reference for h in self.all("reversed")]
        booked = [h.reference for h in self.all("booked")]
        for reference in reversed_:
            booked.remove(reference)
        return booked

    # --- what its requests do, in threads of the server ---------------------------------------------

    def arrived(self, what: str, reference: str, key: str | None) -> Trouble | None:
        self.note(what, reference, key)
        if (act := self._hooks.pop((what, reference), None)) is not None:
            act()
        troubles = self._troubles[what, reference]
        return troubles.popleft() if troubles else None

    def book(self, reference: str, key: str | None) -> int:
        with self.bank.lock:
            if self.honours_keys and key is not None and key in self.replies:
                return self.replies[key]
            number = self.note("booked", reference, key).number
            if key is not None:
                self.replies[key] = number
            return number

    def reverse(self, reference: str) -> bool:
        with self.bank.lock:
            if reference not in self.standing():
                return False
            self.note("reversed", reference)
            return True

    def look(self, reference: str) -> int | None:
        with self.bank.lock:
            standing = self.standing()
            found = next((h for h in self.all("booked", reference=reference) if reference in standing), None)
            self.note("looked", reference, found=found is not None)
            return found.number if found else None


class Bank:
    """The server, on a port of its own, in threads of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.active = 0
        self._numbers = 0
        self._accounts: dict[str, Account] = {}
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def account(self, *, honours_keys: bool = False, slow_seconds: float = 1.0) -> Account:
        name = f"account{len(self._accounts)}"
        account = self._accounts[name] = Account(self, name, honours_keys, slow_seconds)
        return account

    def find(self, name: str) -> Account:
        return self._accounts[name]

    def next_number(self) -> int:
        with self.lock:
            self._numbers += 1
            return self._numbers

    async def settle(self) -> None:
        """Until all that was sent so far is dealt with: connections are accepted in their order."""
        async with client() as http:
            await http.get(f"{self.url}/settle")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.active:
                await asyncio.sleep(0.002)


def client() -> httpx2.AsyncClient:
    """A real HTTP client; each request has a connection of its own, so that a late one is seen as such."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncClient(verify=_CONTEXT, timeout=PATIENCE_SECONDS, limits=limits, trust_env=False)


async def book(url: str, reference: str, key: str | None = None) -> int:
    """Books, and gives the number of the entry. Raises as the client does."""
    async with client() as http:
        reply = await http.post(f"{url}/{reference}", headers={"Idempotency-Key": key} if key else {})
    reply.raise_for_status()
    return int(reply.json()["number"])


async def reverse(url: str, reference: str) -> bool:
    async with client() as http:
        reply = await http.delete(f"{url}/{reference}")
    reply.raise_for_status()
    return bool(reply.json()["reversed"])


async def look(url: str, reference: str) -> int | None:
    """The number of the standing entry of that reference, if there is one."""
    async with client() as http:
        reply = await http.get(f"{url}/{reference}")
    if reply.status_code == HTTPStatus.NOT_FOUND:
        return None
    reply.raise_for_status()
    return int(reply.json()["number"])


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.bank.lock:
            self.bank.active += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.bank.lock:
                self.bank.active -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whose client went away: that is what is tested here."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path == "/settle":
            self._say(200, {})
            return
        account, reference = self._place()
        if (act := account._hooks.pop(("looked", reference), None)) is not None:
            act()
        troubles = account._troubles["looked", reference]
        if troubles:
            troubles.popleft()
            self._say(500, {"error": "try later"})
            return
        number = account.look(reference)
        self._say(404 if number is None else 200, {"number": number})

    def do_POST(self) -> None:
        account, reference = self._place()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = self.headers.get("Idempotency-Key")
        trouble = account.arrived("asked", reference, key)
        self._respond(account, trouble, lambda: {"number": account.book(reference, key)})

    def do_DELETE(self) -> None:
        account, reference = self._place()
        trouble = account.arrived("asked back", reference, self.headers.get("Idempotency-Key"))
        self._respond(account, trouble, lambda: {"reversed": account.reverse(reference)})

    def _respond(self, account: Account, trouble: Trouble | None, do: Callable[[], Any]) -> None:
        if trouble == "500 before":
            self._say(500, {"error": "try later"})
            return
        if trouble == "refuse":
            self._say(422, {"error": "no such thing"})
            return
        done = do()
        if trouble == "drop":
            self.close_connection = True
            return
        if trouble == "slow":
            self._wait_for_the_client_to_leave(account.slow_seconds)
        if trouble == "500 after":
            self._say(503, {"error": "something broke"})
            return
        self._say(200, done)

    def _wait_for_the_client_to_leave(self, seconds: float) -> None:
        self.connection.settimeout(seconds)
        with suppress(TimeoutError, ConnectionError):
            self.connection.recv(1)

    def _place(self) -> tuple[Account, str]:
        _, name, reference = self.path.split("/", 2)
        return self.server.bank.find(name), reference

    def _say(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        with suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""
