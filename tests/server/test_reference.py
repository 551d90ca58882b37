"""The page at `/docs`: every operation, readable without a network."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from tests.server.serving import serving


async def test_the_page_tells_every_operation_and_fetches_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        root = await here.http.get("/../", follow_redirects=True)
        document = (await here.http.get("/../openapi.json")).json()
    assert root.headers["content-type"].startswith("text/html")
    told = re.findall(r'<span class="verb">(\w+)</span>([^<]+)</code>', root.text)
    asked = [(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs]
    assert sorted((verb, unescape(path)) for verb, path in told) == sorted(asked)
    assert not re.search(r"(src|href)=\"(https?:)?//", root.text)
    assert "<script" not in root.text


async def test_what_the_document_says_cannot_become_markup(tmp_path: Path) -> None:
    from dayjob.server.reference import page_of

    operation = {
        "description": "<b>",
        "parameters": [{"name": "<i>", "in": "query", "schema": {"enum": ["<u>"]}}],
    }
    page = page_of({"info": {"title": "<t>", "version": "1"}, "paths": {"/<p>": {"get": operation}}})
    assert not re.search(r"<(b|i|u|t|p)>(?=<|[^<]*</(b|i|u|t)>)", page)
    assert "&lt;i&gt;" in page and "/&lt;p&gt;" in page
