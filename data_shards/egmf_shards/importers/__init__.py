"""Published data sets' own files, one's own, and other programs' tars to shards. Each returns the written manifest.

A name is imported when it is first asked for: who reads a clip's features as training does needs no writer of shards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from egmf_shards.lazy import importing

if TYPE_CHECKING:
    from egmf_shards.importers.cherma import import_cherma
    from egmf_shards.importers.csd import import_csd
    from egmf_shards.importers.foreign_tars import index_foreign
    from egmf_shards.importers.jsonl import import_jsonl
    from egmf_shards.importers.label_csv import import_label_csv
    from egmf_shards.importers.meld import import_meld
    from egmf_shards.importers.mmsa import import_mmsa
    from egmf_shards.importers.mse_adapter import import_mse_adapter

_NAMES = {
    "cherma": ("import_cherma",),
    "csd": ("import_csd",),
    "foreign_tars": ("index_foreign",),
    "jsonl": ("import_jsonl",),
    "label_csv": ("import_label_csv",),
    "meld": ("import_meld",),
    "mmsa": ("import_mmsa",),
    "mse_adapter": ("import_mse_adapter",),
}
__getattr__, __dir__ = importing(__name__, _NAMES)

__all__ = [
    "import_cherma",
    "import_csd",
    "import_jsonl",
    "import_label_csv",
    "import_meld",
    "import_mmsa",
    "import_mse_adapter",
    "index_foreign",
]
