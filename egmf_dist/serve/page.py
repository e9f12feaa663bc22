"""The page: one file of this package, which asks no server but its own."""

from __future__ import annotations

import base64
import re
from functools import cache
from hashlib import sha256
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")


@cache
def page() -> bytes:
    """Its bytes."""
    return _FILE.read_bytes()


def _hashes(tag: str) -> str:
    """The hashes of what stands between a tag, by which a browser is told that it may run: nothing else may."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page().decode("utf-8"), flags=re.S)
    digests = (base64.b64encode(sha256(text.encode()).digest()).decode("ascii") for text in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


POLICY = (
    f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; img-src data: blob:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "permissions-policy": "camera=(self), microphone=(self), geolocation=()",
    "cache-control": "no-cache",
}
