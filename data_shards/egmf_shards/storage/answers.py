"""What a store answered: whether it is what was asked for, whether it refuses for good, and its reason in a line."""

from __future__ import annotations

from typing import Any

from egmf_shards.messages import unbroken
from egmf_shards.storage.base import without_password

LONGEST_REASON = 300
"""Characters of a transport's own message that are repeated."""
_REFUSED = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}


def check_answer(response: Any) -> None:
    """Refuse an HTTP answer before its body is read, which may be a whole shard or endless.

    Raises:
        OSError: it is not the range that was asked for.
        aiohttp.ClientResponseError: the server says that it failed.
    """
    wanted = response.request_info.headers.get("Range")
    if wanted is None:  # the size was asked for; no body is read
        return
    response.raise_for_status()
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    length, said = int(last) + 1 - int(first), response.headers.get("Content-Range")
    coding = response.headers.get("Content-Encoding", "identity")
    if response.status not in (200, 206):
        raise OSError(f"the server answers with HTTP {response.status}")
    if coding.lower() not in ("identity", ""):
        raise OSError(f"the server sends its bytes encoded ({coding})")
    if response.content_length is None or "Transfer-Encoding" in response.headers:
        raise OSError("the server does not say how many bytes it sends (Content-Length)")
    if response.status == 200 and response.content_length != length:
        raise OSError("the server ignores ranges: it answers with the whole object (HTTP 200)")
    if response.status == 206 and not (said or "").startswith(f"bytes {first}-{last}/"):
        raise OSError(f"the server sends {said!r} instead of 'bytes {first}-{last}'")
    if response.content_length != length:
        raise OSError(f"the server sends {response.content_length} bytes instead of {length}")


def raise_refusal(error: BaseException) -> None:
    """Raise what the store refuses for good; return where it may help to try again.

    Raises:
        FileNotFoundError, PermissionError: it lacks the object, or the credentials do not do.
    """
    if isinstance(error, FileNotFoundError | PermissionError):
        raise error
    status = getattr(error, "status", None)
    if status in _REFUSED:
        raise _REFUSED[status](f"HTTP {status}") from error
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):  # botocore's, not always installed
        raise PermissionError(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """An error's type and message without a password, no longer than a line should be: aiohttp quotes whole answers."""
    text = without_password(unbroken(f"{type(error).__name__}: {error}").removesuffix(":"))
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
