"""`dayjob tools FILE`: the tools of a file as a model sees them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.acceptance.command_line import CommandLine, text_of

SHOP = Path(__file__).with_name("mcp_server.py")
TOOLS = '''
from dayjob import tool
from elsewhere import imported

@tool(effect="read", timeout=30, examples=[{"order_id": "A-1"}])
async def find_order(order_id: str, limit: int = 5) -> dict:
    """Look an order up.

    Args:
        order_id: The id on the receipt.
    """

def cancel(order_id: str) -> None: ...

same = find_order
more = [tool(effect="idempotent")(cancel), find_order]
'''


@pytest.fixture
def dayjob(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere.py").write_text(
        "from dayjob import tool\n@tool(effect='read')\ndef imported():\n    '''It.'''\n"
    )
    file = tmp_path / "shop.py"
    file.write_text(TOOLS)
    return file


def test_every_tool_is_shown_once_as_a_model_sees_it(dayjob: CommandLine, shop: Path) -> None:
    done = dayjob("tools", str(shop))
    assert done.returncode == 0, text_of(done)
    assert [line.rstrip() for line in done.stdout.splitlines()] == [
        "imported  read",
        "  It.",
        "",
        "find_order  read · timeout 30 s",
        "  Look an order up.",
        "",
        '  Example: {"order_id": "A-1"}',
        "  parameter  type     default",
        "  order_id   string   required  The id on the receipt.",
        "  limit      integer  5",
        "  ! limit: no description; tell of it in the docstring",
        "",
        "cancel  idempotent",
        "  parameter  type    default",
        "  order_id   string  required",
        "  ! no description: a model has only the name to go by; write a docstring",
        "  ! order_id: no description; tell of it in the docstring",
    ]


def test_json_holds_the_definitions_and_the_warnings(dayjob: CommandLine, shop: Path) -> None:
    done = dayjob("tools", str(shop), "--json")
    assert done.returncode == 0, text_of(done)
    imported, find_order, cancel = json.loads(done.stdout)["data"]
    assert [each["name"] for each in (imported, find_order, cancel)] == ["imported", "find_order", "cancel"]
    assert find_order["definition"]["function"]["parameters"]["required"] == ["order_id"]
    assert (find_order["effect"], find_order["timeout"], find_order["approve"]) == ("read", 30, False)
    assert find_order["warnings"] == ["limit: no description; tell of it in the docstring"]


def test_a_file_without_tools_exits_2(dayjob: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("x = 1\n")
    done = dayjob("tools", str(tmp_path / "bare.py"))
    assert done.returncode == 2
    assert "bare.py: has no tool; decorate a function with @tool" in text_of(done)


def test_a_file_that_is_not_there_exits_2(dayjob: CommandLine) -> None:
    done = dayjob("tools", "nowhere.py")
    assert done.returncode == 2
    assert "no such file" in text_of(done)


def test_a_tool_that_cannot_be_told_exits_2_and_is_named(dayjob: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(TOOLS.replace("from elsewhere import imported", "").replace('"A-1"', "7"))
    done = dayjob("tools", str(file))
    assert done.returncode == 2
    assert "find_order: examples: find_order.order_id: should be a valid string; got 7" in text_of(done)


def test_an_mcp_server_is_started_and_asked(dayjob: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "far.py"
    file.write_text(
        f"from dayjob.mcp import McpServer\nshop = McpServer({sys.executable!r}, {str(SHOP)!r}, prefix='shop_')\n"
    )
    done = dayjob("tools", str(file), "--json")
    assert done.returncode == 0, text_of(done)
    effects = {each["name"]: each["effect"] for each in json.loads(done.stdout)["data"]}
    assert (effects["shop_find_order"], effects["shop_refund"]) == ("read", "write")


def test_an_mcp_server_that_is_missing_exits_2(dayjob: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "far.py"
    file.write_text("from dayjob.mcp import McpServer\nshop = McpServer('no-such-command')\n")
    done = dayjob("tools", str(file))
    assert done.returncode == 2
    assert "MCP server `no-such-command`: cannot be started" in text_of(done)
