"""The tools of a real MCP server, a child process that also dies, hangs and talks nonsense."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dayjob import Dayjob, Run, job
from dayjob.errors import InputError, NotDone, StepError, Unknown
from dayjob.mcp import McpServer
from dayjob.tools import Tool
from tests.until import turns, until

SHOP = Path(__file__).with_name("mcp_server.py")


def shop(*habits: str | Path, **options: Any) -> McpServer:
    return McpServer(sys.executable, SHOP, *habits, **options)


def by_name(tools: list[Tool[..., Any]]) -> dict[str, Tool[..., Any]]:
    return {tool.name: tool for tool in tools}


def is_there(pid: int) -> bool:
    """Whether it runs, or is a zombie that nobody took notice of."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def runs(pid: int) -> bool:
    """Where nobody reaps orphans a zombie stays, and runs no more."""
    stat = Path(f"/proc/{pid}/stat")
    return is_there(pid) and not (stat.exists() and ") Z " in stat.read_text())


def started(starts: Path) -> list[int]:
    return [int(line) for line in starts.read_text().split()] if starts.exists() else []


class TestTools:
    async def test_they_are_told_as_the_server_tells_them(self) -> None:
        async with shop() as tools:
            told = by_name(tools)["find_order"].definition["function"]
        assert (told["name"], told["description"]) == ("find_order", "Look an order up.")
        assert told["parameters"]["required"] == ["order_id"]
        assert told["parameters"]["properties"]["limit"] == {
            "default": 5,
            "maximum": 50,
            "minimum": 1,
            "title": "Limit",
            "type": "integer",
        }

    async def test_their_effects_are_what_the_server_or_else_the_user_says(self) -> None:
        async with shop(effects={"refund": "idempotent", "stop.now": "write"}) as tools:
            effects = {name: tool.effect for name, tool in by_name(tools).items()}
        assert (effects["find_order"], effects["set_price"], effects["die"]) == (
            "read",
            "idempotent",
            "write",
        )
        assert (effects["refund"], effects["stop_now"]) == ("idempotent", "write")

    async def test_a_prefix_keeps_the_names_of_two_servers_apart(self) -> None:
        async with shop(prefix="shop_") as tools:
            names = by_name(tools)
            assert "shop_stop_now" in names
            assert await names["shop_find_order"](order_id="A") == "A: 5 pieces"

    async def test_results_are_text_structure_or_blocks(self) -> None:
        async with shop() as tools:
            named = by_name(tools)
            assert await named["find_order"](order_id="A", limit=2) == "A: 2 pieces"
            assert await named["refund"](order_id="A", amount=3) == {"order_id": "A", "amount": 3.0}
            assert await named["draw"]() == [{"type": "image", "data": "aGk=", "mimeType": "image/png"}]

    async def test_the_server_inherits_no_variables_but_those_given(self) -> None:
        assert "PYTEST_CURRENT_TEST" in os.environ
        async with shop(env={"SHOP": "corner"}) as tools:
            assert (await by_name(tools)["who"]()).split()[1:] == ["corner", "None"]

    async def test_arguments_are_checked_before_they_are_sent(self) -> None:
        complaints = {
            '{"order_id": 3}': "find_order.order_id: 3 is not of type 'string'",
            '{"order_id": "A", "limit": 99}': "find_order.limit: 99 is greater than the maximum of 50",
            "{}": "find_order: 'order_id' is a required property",
            "[1]": "find_order: should be an object; got [1]",
            '{"order_id": NaN}': "find_order: Invalid JSON: expected value",
            "{": "find_order: Invalid JSON: EOF",
        }
        async with shop() as tools:
            find_order = by_name(tools)["find_order"]
            assert find_order.validate('{"order_id": "A"}') == {"order_id": "A"}
            for arguments, complaint in complaints.items():
                with pytest.raises(InputError, match=f"^{re.escape(complaint)}"):
                    find_order.validate(arguments)

    async def test_a_job_offers_and_calls_them(self, tmp_path: Path) -> None:
        server = shop()

        @job
        async def look(run: Run, order_id: str) -> str:
            find_order = by_name(await server.tools())["find_order"]

            async def find() -> str:
                return str(await find_order(order_id=order_id))

            return str(await run.step(find))

        async with Dayjob(f"sqlite:///{tmp_path / 'test.db'}", jobs=[look]) as app:
            handles = [await app.submit(look(order_id=f"A-{n}")) for n in range(5)]
            found = [await handle.result() for handle in handles]
        await server.close()
        assert found == [f"A-{n}: 5 pieces" for n in range(5)]


class TestErrors:
    async def test_a_tools_own_error_is_an_ordinary_one(self) -> None:
        async with shop() as tools:
            with pytest.raises(StepError, match="no such order") as caught:
                await by_name(tools)["refuse"](reason="no such order " + "x" * 10_000)
        assert (caught.value.type, caught.value.retryable) == ("McpToolFailed", False)
        assert len(caught.value.message) <= 500

    async def test_a_command_that_is_missing_is_named(self) -> None:
        with pytest.raises(InputError, match=r"`no-such-command --fast`: cannot be started: .*No such file"):
            await McpServer("no-such-command", "--fast").tools()

    async def test_effects_of_a_tool_that_is_not_there_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"effects: it has no tool 'refnud'; it has find_order, "):
            async with shop(effects={"refnud": "write"}):
                pass

    async def test_a_server_that_ends_at_once_is_told_of(self) -> None:
        with pytest.raises(StepError, match="ended before it could begin") as caught:
            await shop("gone").tools()
        assert caught.value.retryable

    async def test_what_is_no_message_is_shown_when_nothing_else_comes(self) -> None:
        with pytest.raises(StepError, match=r"it printed what is no message: 'shop is open' \(logs belong"):
            await shop("garbage", "gone").tools()

    async def test_a_stray_line_does_no_harm(self) -> None:
        async with shop("garbage") as tools:
            assert await by_name(tools)["find_order"](order_id="A") == "A: 5 pieces"

    async def test_a_server_that_answers_nothing_is_given_up(self) -> None:
        with pytest.raises(StepError, match=r"did not begin within 0\.2 s"):
            await shop("silent", timeout=0.2).tools()


class TestLostCalls:
    async def test_a_write_is_unknown_when_the_server_dies_in_the_middle(self) -> None:
        async with shop() as tools:
            with pytest.raises(Unknown, match="ended before it could answer die"):
                await by_name(tools)["die"]()

    async def test_a_write_is_unknown_when_the_server_has_trouble_of_its_own(self) -> None:
        async with shop() as tools:
            answer_with = by_name(tools)["answer_with"]
            for code in (-32603, -32000, -32050, -32099):
                with pytest.raises(Unknown, match="answer_with: upstream 502 after the payment was posted"):
                    await answer_with(code=code)
            for code in (-32700, -32600, -32601, -32602, -31999, -32100, 7):
                with pytest.raises(StepError, match="upstream 502") as caught:
                    await answer_with(code=code)
                assert caught.value.type == "McpToolFailed"
        async with shop(effects={"answer_with": "read"}) as tools:
            with pytest.raises(StepError, match="upstream 502"):
                await by_name(tools)["answer_with"](code=-32603)

    async def test_a_read_may_be_tried_again(self) -> None:
        async with shop() as tools:
            with pytest.raises(StepError, match=r"ended before it could answer stop\.now") as caught:
                await by_name(tools)["stop_now"]()
        assert caught.value.retryable

    async def test_a_write_that_takes_too_long_is_unknown_and_the_server_lives_on(self) -> None:
        server = shop()
        tools = by_name(await server.tools())
        server.timeout = 0.1
        with pytest.raises(Unknown, match=r"did not answer wait_forever within 0\.1 s"):
            await tools["wait_forever"]()
        server.timeout = 60
        assert await tools["find_order"](order_id="A") == "A: 5 pieces"
        await server.close()

    async def test_the_next_call_starts_the_server_again_once_for_all(self, tmp_path: Path) -> None:
        async with shop(tmp_path / "starts") as tools:
            named = by_name(tools)
            with pytest.raises(Unknown):
                await named["die"]()
            answers = await asyncio.gather(*(named["who"]() for _ in range(5)))
        first, second = started(tmp_path / "starts")
        assert {int(answer.split()[0]) for answer in answers} == {second}
        assert first != second

    async def test_a_server_that_died_while_idle_is_not_noticed_by_the_caller(self, tmp_path: Path) -> None:
        async with shop(tmp_path / "starts") as tools:
            (pid,) = started(tmp_path / "starts")
            os.kill(pid, 9)
            await until(lambda: not is_there(pid), what="the server is gone")
            await turns()
            assert await by_name(tools)["refund"](order_id="A", amount=1) == {"order_id": "A", "amount": 1.0}
        assert len(started(tmp_path / "starts")) == 2

    async def test_a_write_that_was_never_sent_is_not_done(self, tmp_path: Path) -> None:
        async with shop("once", tmp_path / "starts") as tools:
            named = by_name(tools)
            with pytest.raises(Unknown):
                await named["die"]()
            with pytest.raises(NotDone, match="ended before it could begin"):
                await named["refund"](order_id="A", amount=1)
            with pytest.raises(StepError, match="ended before it could begin"):
                await named["find_order"](order_id="A")

    async def test_a_cancelled_call_leaves_the_others_alone(self) -> None:
        async with shop() as tools:
            named = by_name(tools)
            waiting = asyncio.create_task(named["wait_forever"]())
            assert await named["find_order"](order_id="A") == "A: 5 pieces"
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await named["find_order"](order_id="B") == "B: 5 pieces"


class TestEnd:
    async def test_close_ends_the_process(self, tmp_path: Path) -> None:
        server = shop(tmp_path / "starts")
        await server.tools()
        (pid,) = started(tmp_path / "starts")
        assert is_there(pid)
        await server.close()
        assert not is_there(pid)
        await server.close()

    async def test_close_does_not_wait_for_a_server_that_does_not_begin(self, tmp_path: Path) -> None:
        server = shop(tmp_path / "starts", "silent")
        waiting = asyncio.create_task(server.tools())
        (pid,) = await until(lambda: started(tmp_path / "starts"), what="the server is there")
        async with asyncio.timeout(30):  # of the sixty that it may take to begin
            await server.close()
        with pytest.raises(StepError, match="ended before it could begin"):
            await waiting
        assert not is_there(pid)

    def test_the_end_of_the_event_loop_ends_the_process_and_the_next_loop_has_its_own(
        self, tmp_path: Path
    ) -> None:
        server = shop(tmp_path / "starts")

        async def ask() -> str:
            return str(await by_name(await server.tools())["find_order"](order_id="A"))

        assert [asyncio.run(ask()), asyncio.run(ask())] == ["A: 5 pieces"] * 2
        assert len(started(tmp_path / "starts")) == 2
        assert [pid for pid in started(tmp_path / "starts") if is_there(pid)] == []

    async def test_any_task_may_close_what_another_began(self) -> None:
        server = shop()
        await asyncio.create_task(server.tools())
        await asyncio.create_task(server.close())

    async def test_a_process_that_is_killed_leaves_none_behind(self, tmp_path: Path) -> None:
        command = (sys.executable, str(SHOP), str(tmp_path / "starts"))
        program = (
            "import asyncio, os, signal\nfrom dayjob.mcp import McpServer\n"
            f"async def main():\n    await McpServer(*{command}).tools()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\nasyncio.run(main())"
        )
        killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], check=False)
        assert killed.returncode == -9
        (pid,) = started(tmp_path / "starts")
        await until(lambda: not runs(pid), what="the server is gone")


def test_a_missing_sdk_is_named(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\nsys.modules['mcp'] = None\nfrom dayjob.mcp import McpServer\n"
        "from dayjob import InputError\n"
        "try:\n    asyncio.run(McpServer('any').tools())\nexcept InputError as problem:\n    print(problem)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "type: pip install dayjob[mcp]" in told.stdout
