"""The tools of an MCP server that runs as a child process, as tools like any other.

    shop = McpServer("python", "shop.py", effects={"find_order": "read"})

    @job
    async def support(run: Run, ticket: str) -> str:
        return await agent(run, "You answer tickets.", ticket, tools=await shop.tools())

The process is started when it is first needed, serves all runs of the event loop, and if it died the next
call starts it again. It ends with `close()` or with the event loop; should this process die, its standard
input closes, which tells it to go. The protocol: https://modelcontextprotocol.io/specification
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from dayjob.errors import InputError, NotDone, StepError, Unknown
from dayjob.tools import Effect, Tool, shorten, shorten_text

if TYPE_CHECKING:
    import mcp

_PAGES = 100
_PROBLEMS = 10
_INTERNAL_ERROR = -32603
_SERVER_ERRORS = range(-32099, -31999)
"""Codes of JSON-RPC 2.0, section 5.1."""
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


class McpServer:
    """A server that is started by a command and speaks MCP over its standard input and output.

    `env` is added to the few variables that it inherits (PATH, HOME and the like, so no keys); `prefix`
    is put before the names of its tools; `timeout` is that of each of its calls, in seconds. What a tool
    does to the world is what the server says of it (`readOnlyHint`, `idempotentHint`), else a write;
    `effects`, by the server's own names, is believed instead.
    """

    def __init__(
        self,
        command: str | PathLike[str],
        *args: str | PathLike[str],
        env: Mapping[str, str] | None = None,
        prefix: str = "",
        effects: Mapping[str, Effect] | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.command = [str(part) for part in (command, *args)]
        self.env = dict(env or {})
        self.prefix = prefix
        self.effects = dict(effects or {})
        self.timeout = timeout
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}

    def __str__(self) -> str:
        return f"MCP server `{shorten_text(shlex.join(self.command), 120)}`"

    async def __aenter__(self) -> list[Tool[..., Any]]:
        try:
            return await self.tools()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def tools(self) -> list[Tool[..., Any]]:
        """The tools that it has now.

        Raises InputError if it cannot be started or `effects` names a tool that it does not have, and
        StepError, retryable, if it does not answer.
        """
        connection = await self._connected()
        try:
            listed = await connection.list_tools()
        except Exception as problem:
            raise self._trouble(connection, problem, "list its tools") from problem
        if missing := self.effects.keys() - {each.name for each in listed}:
            names = ", ".join(each.name for each in listed)
            raise InputError(f"{self}: effects: it has no tool {min(missing)!r}; it has {names}")
        return [self._tool(each) for each in listed]

    async def close(self) -> None:
        """Ends the process that serves this event loop; the next call would start it again."""
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.close()

    def _tool(self, listed: mcp.types.Tool) -> Tool[..., Any]:
        effect = self.effects.get(listed.name) or _effect(listed.annotations)

        async def call(**arguments: Any) -> Any:
            return await self._call(listed.name, effect, arguments)

        return McpTool(
            call,
            self.prefix + _NOT_IN_A_NAME.sub("_", listed.name),
            effect,
            timeout=self.timeout,
            description=(listed.description or "").strip(),
            parameters=listed.input_schema,
        )

    async def _call(self, name: str, effect: Effect, arguments: dict[str, Any]) -> Any:
        writes = effect == "write"
        try:
            connection = await self._connected()
        except StepError as problem:
            raise (NotDone(problem.message) if writes else problem) from None
        try:
            result = await connection.call(name, arguments, self.timeout)
        except Exception as problem:
            if (refusal := connection.refusal_in(problem)) is not None:
                if writes and _may_be_done(problem):
                    raise Unknown(
                        f"{self} could not say what became of {name}: {shorten_text(refusal, 200)}"
                    ) from None
                raise _failed(name, refusal) from None
            trouble = self._trouble(connection, problem, f"answer {name}")
            raise (Unknown(trouble.message) if writes else trouble) from problem
        if result.is_error:
            raise _failed(name, _text(result.content))
        return _value(result)

    async def _connected(self) -> _Connection:
        """The connection of this event loop; a dead one is replaced, once for all who come meanwhile."""
        for closed in [loop for loop in self._connections if loop.is_closed()]:
            del self._connections[closed]
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None or connection.over.is_set():
            connection = self._connections[loop] = _Connection(self)
        await connection.ready.wait()
        match connection.problem:
            case None:
                return connection
            case InputError() as missing:
                raise InputError(f"{self}: {missing}")
            case FileNotFoundError() | PermissionError() | NotADirectoryError() as problem:
                raise InputError(f"{self}: cannot be started: {problem}")
            case problem:
                raise self._trouble(connection, problem, "begin")

    def _trouble(self, connection: _Connection, problem: Exception, doing: str) -> StepError:
        if connection.timed_out(problem):
            what = f"did not {doing} within {self.timeout:g} s"
        elif connection.over.is_set():
            what = f"ended before it could {doing}; its standard error may say why"
        else:
            what = f"could not {doing}: {shorten_text(str(problem), 200)}"
        if connection.garbage:
            what += f"; it printed what is no message: {connection.garbage} (logs belong on standard error)"
        return StepError("McpServerFailed", f"{self} {what}", retryable=True)


class _Connection:
    """A process and the session with it.

    Both are entered and left by one task of their own, as the SDK's task groups ask; what others want of
    them passes through the session, which any task may use.
    """

    def __init__(self, server: McpServer) -> None:
        self.ready = asyncio.Event()
        self.over = asyncio.Event()
        self.problem: Exception | None = None
        self.garbage = ""
        # In a context of its own: it outlives the run that happened to need it first.
        self._owner = asyncio.create_task(self._own(server), context=Context())

    async def _own(self, server: McpServer) -> None:
        command, *args = server.command
        try:
            self._sdk = await asyncio.to_thread(_sdk)
            started = self._sdk.StdioServerParameters(command=command, args=args, env=server.env)
            # Not sys.stderr, which need not be a file: a test or a notebook may have put another there.
            transport = self._overheard(self._sdk.stdio_client(started, errlog=sys.__stderr__))
            client = self._sdk.Client(transport, read_timeout_seconds=server.timeout, cache=None)
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(server.timeout):
                    self._client = await stack.enter_async_context(client)
                self.ready.set()
                await self.over.wait()
        except Exception as problem:
            self.problem = _innermost(problem)
        finally:
            self.over.set()
            self.ready.set()

    async def close(self) -> None:
        if not self.ready.is_set():  # it may never be: who waits for it hears of the end
            self.problem = ConnectionAbortedError("it was closed")
            self._owner.cancel()
        self.over.set()
        await asyncio.wait([self._owner])
        self.ready.set()  # by its owner too, if that ever began

    async def list_tools(self) -> list[mcp.types.Tool]:
        found: list[mcp.types.Tool] = []
        cursor = None
        for _ in range(_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    async def call(self, name: str, arguments: dict[str, Any], timeout: float) -> mcp.types.CallToolResult:
        """Not the SDK's `call_tool`, which may ask for the list of tools when the call is made already, and
        raises when a result is not of the declared form: what was done would then look as if it were not."""
        types = self._sdk.types
        parameters = types.CallToolRequestParams(name=name, arguments=arguments)
        request = types.CallToolRequest(params=parameters)
        result: mcp.types.CallToolResult = await self._client.session.send_request(
            request, types.CallToolResult, request_read_timeout_seconds=timeout
        )
        return result

    def timed_out(self, problem: Exception) -> bool:
        code = getattr(problem, "code", None)
        return isinstance(problem, TimeoutError) or bool(code == self._sdk.types.REQUEST_TIMEOUT)

    def refusal_in(self, problem: Exception) -> str | None:
        """What the server answered, if it did: the end of the connection comes as an answer too."""
        if not isinstance(problem, self._sdk.MCPError) or self.timed_out(problem) or self.over.is_set():
            return None
        return str(getattr(problem, "message", problem))

    @contextlib.asynccontextmanager
    async def _overheard(self, transport: Any) -> AsyncIterator[tuple[Any, Any]]:
        async with transport as (incoming, outgoing):
            yield _Overheard(incoming, self), outgoing


class _Overheard:
    """The stream of what the server says, by which the connection learns of its end and of what is no message:
    the SDK tells neither."""

    def __init__(self, stream: Any, connection: _Connection) -> None:
        self._stream = stream
        self._connection = connection

    async def receive(self) -> Any:
        heard = await self._stream.receive()
        self._note(heard)
        return heard

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            heard = await self._stream.__anext__()
        except StopAsyncIteration:
            self._connection.over.set()
            raise
        self._note(heard)
        return heard

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._stream.__aexit__(*raised)

    def _note(self, heard: Any) -> None:
        if isinstance(heard, Exception):
            told = heard.errors()[0]["input"] if hasattr(heard, "errors") else heard
            self._connection.garbage = shorten(told)


@dataclass(frozen=True, eq=False)
class McpTool(Tool[..., Any]):
    """A tool as its server describes it: the words and the JSON schema go to the model as they came."""

    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    def validate(self, arguments: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as they go to the server. Raises InputError naming each that does not fit."""
        given = self._parsed(arguments)
        if not isinstance(given, Mapping):
            raise InputError(f"{self.name}: should be an object; got {shorten(given)}")
        try:
            problems = list(islice(self._validator.iter_errors(given), _PROBLEMS))
        except Exception:  # a schema that cannot be applied here: the server knows what it meant
            return dict(given)
        if problems:
            secret = self.secret_arguments
            raise InputError("; ".join(_complaint(self.name, problem, secret) for problem in problems))
        return dict(given)

    def _parsed(self, arguments: Any) -> Any:
        from pydantic_core import from_json

        if not isinstance(arguments, str | bytes):
            return arguments
        try:
            return from_json(arguments.strip() or "{}", allow_inf_nan=False)
        except ValueError as problem:
            raise InputError(f"{self.name}: Invalid JSON: {problem}; got {shorten(arguments)}") from None

    @property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator, validators
        from referencing import Registry

        # An empty registry: a schema must not make this process fetch an address.
        validator = validators.validator_for(self.parameters, default=Draft202012Validator)
        return validator(self.parameters, registry=Registry())

    def _check_signature(self) -> None:
        """Its arguments are in the schema."""


def _complaint(tool_name: str, problem: Any, secret: frozenset[str]) -> str:
    place = shorten_text(".".join([tool_name, *map(str, problem.absolute_path)]), 160)
    if secret and (not problem.absolute_path or problem.absolute_path[0] in secret):
        return f"{place}: does not fit {problem.validator}: {shorten(problem.validator_value)}"
    if len(problem.message) <= 160:
        return f"{place}: {problem.message}"
    expected = f"{problem.validator}: {shorten(problem.validator_value)}"
    return f"{place}: does not fit {expected}; got {shorten(problem.instance)}"


def _may_be_done(problem: Exception) -> bool:
    """Whether an error of JSON-RPC is the server's own trouble, and not what it refused to begin with."""
    code = getattr(problem, "code", None)
    return code == _INTERNAL_ERROR or code in _SERVER_ERRORS


def _effect(annotations: mcp.types.ToolAnnotations | None) -> Effect:
    if annotations is not None and annotations.read_only_hint:
        return "read"
    if annotations is not None and annotations.idempotent_hint:
        return "idempotent"
    return "write"


def _value(result: mcp.types.CallToolResult) -> Any:
    """Structured content if there is any, else the text, else the blocks: images and such, as JSON."""
    if result.structured_content is not None:
        return result.structured_content
    if all(block.type == "text" for block in result.content):
        return _text(result.content)
    return [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]


def _text(content: list[Any]) -> str:
    return "\n".join(block.text for block in content if block.type == "text")


def _failed(name: str, text: str) -> StepError:
    return StepError("McpToolFailed", shorten_text(text.strip() or f"{name} failed", 500))


def _innermost(problem: Exception) -> Exception:
    while isinstance(problem, ExceptionGroup) and len(problem.exceptions) == 1:
        problem = problem.exceptions[0]
    return problem


def _sdk() -> ModuleType:
    """The one place where the SDK is imported, which takes seconds: by a thread."""
    try:
        import mcp
    except ImportError as error:
        raise InputError(
            f"the tools of MCP servers need its SDK ({error}); type: pip install dayjob[mcp]"
        ) from None
    # It logs a traceback for each line that is no message; ours say it in a sentence. Whoever set
    # logging up still gets them.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    return mcp
