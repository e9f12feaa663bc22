"""Published data sets' own files, one's own, and other programs' tars to shards. Each returns the written manifest."""

from egmf_shards.importers.cherma import import_cherma
from egmf_shards.importers.csd import import_csd
from egmf_shards.importers.foreign_tars import index_foreign
from egmf_shards.importers.jsonl import import_jsonl
from egmf_shards.importers.label_csv import import_label_csv
from egmf_shards.importers.meld import import_meld
from egmf_shards.importers.mmsa import import_mmsa
from egmf_shards.importers.mse_adapter import import_mse_adapter

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
