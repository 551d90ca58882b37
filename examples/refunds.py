"""A support job: find the order, pay the money back, tell the customer; nothing is paid twice, or unasked.

    dayjob run examples/refunds.py:support --model local: \
        --input ticket="Where is my money for A-1042? The lamp came broken."

More than 50 euros wait for a person; the lines to type are printed. Kill it at any moment: `dayjob resume RUN`
asks the shop whether it has paid. When the mail comes back (order A-3090), so does the money.

The code decides, and states the facts; the model finds the kind words, which is what the small packaged one can
do. The shop is `refunds_shop.py`, the post office, an MCP server, `refunds_mcp.py`; both keep what they did in
shop.db, where you stand. `python examples/refunds_demo.py` shows it all.
"""

import re
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field
from refunds_shop import Order, Shop

from dayjob import Call, NotDone, Run, StepError, job, tool
from dayjob.mcp import McpServer

HERE = Path(__file__).resolve().parent
SHOP = Shop("shop.db")
POST_OFFICE = McpServer(sys.executable, HERE / "refunds_mcp.py")

KIND_WORDS = [
    {"role": "system", "content": "Write the first sentence of our answer to a customer."},
    {"role": "user", "content": "My B-7 is too big. I sent it back."},
    {"role": "assistant", "content": "Thank you for writing, and we are sorry that it did not fit."},
    {"role": "user", "content": "Where is my parcel? I am waiting!"},
    {"role": "assistant", "content": "Thank you for your patience, and we are sorry that you had to wait."},
    {"role": "user", "content": "My cup came broken."},
    {"role": "assistant", "content": "Thank you for telling us, and we are sorry that your cup came broken."},
]


@tool(effect="read")
def find_order(order_id: str) -> Order:
    """Look an order up.

    Args:
        order_id: The id on the receipt, like "A-1042".
    """
    return SHOP.order(order_id)


def was_paid(call: Call) -> str | NotDone:
    return SHOP.receipt(call.key) or NotDone("the shop has no such payment")


def take_back(call: Call, receipt: str) -> None:
    SHOP.take_back(call.key)


@tool(probe=was_paid, undo=take_back, approve=lambda amount, **_: amount > 50, timeout=3.0)
def refund(call: Call, order_id: str, amount: Annotated[int, Field(gt=0)]) -> str:
    """Pay money back for an order.

    Args:
        order_id: The id on the receipt.
        amount: In euros.
    """
    return SHOP.pay_back(call.key, order_id, amount)


@job
async def support(run: Run, ticket: str) -> str:
    order = await run.tool(find_order, order_id=order_id_in(ticket))
    opening = await run.model([*KIND_WORDS, {"role": "user", "content": ticket}], max_tokens=32)
    news, paid = await pay(run, order)

    letter = f"Dear {order.customer},\n\n{opening.text.strip()}\n{news}\n\nYour shop"
    (send_mail,) = await POST_OFFICE.tools()
    await run.tool(send_mail, to=order.address, text=letter)
    await run.verdict(paid, reason=news)
    return letter


async def pay(run: Run, order: Order) -> tuple[str, bool]:
    """What the customer is told, and whether there was a refund."""
    if not order.came_back:
        return f"We will pay as soon as your {order.item} is here.", False
    try:
        receipt = await run.tool(refund, order_id=order.id, amount=order.price)
    except StepError as problem:
        if problem.type != "Rejected":
            raise
        await run.note(problem.message)
        return f"A colleague will look at your {order.item} and write to you.", False
    return f"We have paid {order.price} euros back to you ({receipt}).", True


def order_id_in(ticket: str) -> str:
    found = re.search(r"\bA-\d{4}\b", ticket)
    if found is None:
        raise ValueError("the ticket names no order, such as A-1042")
    return found[0]
