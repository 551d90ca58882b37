"""A shop as an MCP server: what `test_mcp.py` talks to over standard input and output.

Its arguments say how it behaves: `garbage` prints what is no message, `silent` answers nothing, `gone` ends
at once, `once` does so if the file named next is there; to a file it appends its process id when it starts.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from mcp import MCPError
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, ToolAnnotations
from pydantic import BaseModel, Field

shop = MCPServer("shop")


class Receipt(BaseModel):
    order_id: str
    amount: float


@shop.tool(annotations=ToolAnnotations(read_only_hint=True), structured_output=False)
def find_order(order_id: str, limit: Annotated[int, Field(ge=1, le=50)] = 5) -> str:
    """Look an order up."""
    return f"{order_id}: {limit} pieces"


@shop.tool(annotations=ToolAnnotations(idempotent_hint=True))
def set_price(item: str, price: float) -> dict[str, Any]:
    return {"item": item, "price": price}


@shop.tool()
def refund(order_id: str, amount: float) -> Receipt:
    """Give money back."""
    return Receipt(order_id=order_id, amount=amount)


@shop.tool(structured_output=False)
def refuse(reason: str) -> str:
    """Raise an error."""
    raise ToolError(reason)


@shop.tool(structured_output=False)
def answer_with(code: int) -> str:
    """Give an error of the protocol."""
    raise MCPError(code, "upstream 502 after the payment was posted")


@shop.tool(structured_output=False)
def die() -> str:
    """End the process while it works."""
    os._exit(7)


@shop.tool(name="stop.now", annotations=ToolAnnotations(read_only_hint=True), structured_output=False)
def stop_now() -> str:
    """The same, and only a read."""
    os._exit(7)


@shop.tool(structured_output=False)
async def wait_forever() -> str:
    """Answer nothing."""
    await asyncio.Event().wait()
    return ""


@shop.tool(structured_output=False)
def draw() -> ImageContent:
    """Draw."""
    return ImageContent(type="image", data="aGk=", mime_type="image/png")


@shop.tool(structured_output=False)
def who() -> str:
    """Tell the process id, and what it inherited."""
    return f"{os.getpid()} {os.environ.get('SHOP')} {os.environ.get('PYTEST_CURRENT_TEST')}"


def main(*habits: str) -> None:
    if habits[:1] == ("once",):
        habits = ("gone",) if Path(habits[1]).exists() else habits[1:]
    for habit in habits:
        if habit == "garbage":
            print("shop is open", flush=True)
        elif habit == "silent":
            sys.stdin.read()
        elif habit == "gone":
            os._exit(3)
        else:
            with Path(habit).open("a") as starts:
                starts.write(f"{os.getpid()}\n")
    shop.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
