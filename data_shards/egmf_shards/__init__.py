"""WebDataset shards out of any data set, and samples back in any order, checked, resumable by one integer.

Needs numpy, webdataset (to write) and rich; knows nothing of torch, models or training. Writing: :class:`ShardWriter`,
:func:`synthesize`, the importers. Reading: :class:`ShardSet`, :class:`Stream`. Looking: :func:`describe`,
:func:`print_info`, :func:`egmf_shards.check.verify.verify`, :func:`egmf_shards.importers.foreign_tars.index_foreign`.
"""

from egmf_shards.check.info import describe, print_info
from egmf_shards.errors import ShardError
from egmf_shards.format.sample import FEATURE_MODALITIES, MAX_CONTEXT_TURNS, MODALITIES, SPLITS, Sample, Turn
from egmf_shards.format.task import CLASSIFICATION, CONVENTIONS, REGRESSION, Task
from egmf_shards.importers import (
    import_cherma,
    import_csd,
    import_jsonl,
    import_label_csv,
    import_meld,
    import_mmsa,
    import_mse_adapter,
)
from egmf_shards.order.permutation import Mixture, Order, Permutation
from egmf_shards.order.stream import BadSlot, IndexBatch, MicroBatch, Slot, Stream, StreamOptions, partition, sequential
from egmf_shards.read.packed import BadSample, Packed
from egmf_shards.read.reader import ShardSet
from egmf_shards.storage.base import StorageOptions
from egmf_shards.synthetic.generate import synthesize
from egmf_shards.write.writer import ShardWriter

__all__ = [
    "CLASSIFICATION",
    "CONVENTIONS",
    "FEATURE_MODALITIES",
    "MAX_CONTEXT_TURNS",
    "MODALITIES",
    "REGRESSION",
    "SPLITS",
    "BadSample",
    "BadSlot",
    "IndexBatch",
    "MicroBatch",
    "Mixture",
    "Order",
    "Packed",
    "Permutation",
    "Sample",
    "ShardError",
    "ShardSet",
    "ShardWriter",
    "Slot",
    "StorageOptions",
    "Stream",
    "StreamOptions",
    "Task",
    "Turn",
    "describe",
    "import_cherma",
    "import_csd",
    "import_jsonl",
    "import_label_csv",
    "import_meld",
    "import_mmsa",
    "import_mse_adapter",
    "partition",
    "print_info",
    "sequential",
    "synthesize",
]
