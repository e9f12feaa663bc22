"""Published data sets' own files to shards. Each importer is one function that returns the written manifest."""

from egmf_shards.importers.label_csv import import_label_csv
from egmf_shards.importers.meld import import_meld

__all__ = ["import_label_csv", "import_meld"]
