"""The page at /: one self-contained HTML file whose script and style are allowed by a nonce."""

from secrets import token_urlsafe
from typing import NamedTuple

from pitcli import __version__
from pitcli.console import visible
from pitcli.pages.page import template


class PageFacts(NamedTuple):
    """What the page shows about the server. collects: whether pairs are kept."""

    collects: bool
    needs_key: bool
    has_upstream: bool
    max_iters: int
    threshold: float
    base: str
    run: str


class Page(NamedTuple):
    html: str
    headers: dict[str, str]


def render(facts: PageFacts) -> Page:
    """Render the page, once per server."""
    nonce = token_urlsafe(16)
    html = template("serve.html.jinja").render(version=__version__, nonce=nonce, facts=facts)
    policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
    headers = {
        "Content-Security-Policy": f"{policy}; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Page(visible(html.lstrip()), headers)
