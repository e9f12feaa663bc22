"""CRC32 and JSON from libraries that do them faster, where these are installed; else from Python's own.

ISA-L's CRC32 is zlib's. The parsers agree on what our writer writes and refuse NaN and infinities, which are not JSON;
orjson also refuses lone surrogates, numbers beyond a double and very deep nesting. A sample of 27 KB takes about 15 us
to read in all, of which zlib's CRC32 alone would take 6 and json's parser 5.
"""

from __future__ import annotations

import json
from typing import Any

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this platform
    from zlib import crc32

try:
    from orjson import loads as parse_json
except ImportError:

    def _no_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    _decoder = json.JSONDecoder(parse_constant=_no_constant)

    def parse_json(data: bytes | memoryview) -> Any:  # type: ignore[misc]
        """The value of a JSON text in UTF-8.

        Raises:
            ValueError: it is not one.
        """
        return _decoder.decode(str(data, "utf-8"))


__all__ = ["crc32", "parse_json"]
