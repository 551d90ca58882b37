"""The post office of `refunds.py`: an MCP server that speaks over its standard input and output.

It knows no keys. A crash while it works leaves a mail of which nobody knows whether it was sent, so a person is
asked.
"""

from typing import Annotated

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field
from refunds_shop import Shop

server = MCPServer("post office", log_level="ERROR")


@server.tool(structured_output=False)
def send_mail(
    to: Annotated[str, Field(description="A mail address.")],
    text: Annotated[str, Field(description="The whole letter.")],
) -> str:
    """Send a letter to a customer."""
    if to.endswith(".invalid"):
        raise ToolError(f"{to}: there is no such mailbox")
    Shop("shop.db").deliver(to, text)
    return f"sent to {to}"


if __name__ == "__main__":
    server.run()
