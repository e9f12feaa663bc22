"""WebDataset shards out of any data set, and samples back in any order, checked, resumable by one integer.

Needs numpy, webdataset (to write) and rich; knows nothing of torch, models or training. Writing: :class:`ShardWriter`,
:func:`synthesize`, the importers, :func:`index_foreign`. Reading: :class:`ShardSet`, :class:`Stream`. Looking:
:func:`describe`, :func:`print_info`, :func:`verify`, :func:`print_report`. What else users of a folder may need lies in
the sub-packages; ``docs/architecture.md`` lists them and has the glossary. A name is imported when it is first asked
for: who only wants :class:`Sample` waits for no reader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from egmf_shards.lazy import importing

if TYPE_CHECKING:
    from egmf_shards.check.info import describe, print_info
    from egmf_shards.check.verify import print_report, verify
    from egmf_shards.errors import ShardError
    from egmf_shards.format.manifest import FeatureStream
    from egmf_shards.format.sample import LABELLED_SPLITS, MAX_CONTEXT_TURNS, SPLITS, TEXT, UNLABELLED, Sample, Turn
    from egmf_shards.format.task import CLASSIFICATION, CONVENTIONS, REGRESSION, Task
    from egmf_shards.importers import (
        import_cherma,
        import_csd,
        import_jsonl,
        import_label_csv,
        import_meld,
        import_mmsa,
        import_mse_adapter,
        index_foreign,
    )
    from egmf_shards.order.mixture import Mixture
    from egmf_shards.order.order import Order, Slot
    from egmf_shards.order.partition import IndexBatch, partition, sequential
    from egmf_shards.order.permutation import Permutation
    from egmf_shards.order.stream import BadSlot, MicroBatch, Stream, StreamOptions
    from egmf_shards.read.packed import BadSample, FeatureInput, Packed
    from egmf_shards.read.reader import ShardSet
    from egmf_shards.storage.base import StorageOptions
    from egmf_shards.synthetic.generate import synthesize
    from egmf_shards.write.writer import ShardWriter

_NAMES = {
    "check.info": (
        "describe",
        "print_info",
    ),
    "check.verify": (
        "print_report",
        "verify",
    ),
    "errors": ("ShardError",),
    "format.manifest": ("FeatureStream",),
    "format.sample": (
        "LABELLED_SPLITS",
        "MAX_CONTEXT_TURNS",
        "SPLITS",
        "TEXT",
        "UNLABELLED",
        "Sample",
        "Turn",
    ),
    "format.task": (
        "CLASSIFICATION",
        "CONVENTIONS",
        "REGRESSION",
        "Task",
    ),
    "importers": (
        "import_cherma",
        "import_csd",
        "import_jsonl",
        "import_label_csv",
        "import_meld",
        "import_mmsa",
        "import_mse_adapter",
        "index_foreign",
    ),
    "order.mixture": ("Mixture",),
    "order.order": (
        "Order",
        "Slot",
    ),
    "order.partition": (
        "IndexBatch",
        "partition",
        "sequential",
    ),
    "order.permutation": ("Permutation",),
    "order.stream": (
        "BadSlot",
        "MicroBatch",
        "Stream",
        "StreamOptions",
    ),
    "read.packed": (
        "BadSample",
        "FeatureInput",
        "Packed",
    ),
    "read.reader": ("ShardSet",),
    "storage.base": ("StorageOptions",),
    "synthetic.generate": ("synthesize",),
    "write.writer": ("ShardWriter",),
}
__getattr__, __dir__ = importing(__name__, _NAMES)

__all__ = [
    "CLASSIFICATION",
    "CONVENTIONS",
    "LABELLED_SPLITS",
    "MAX_CONTEXT_TURNS",
    "REGRESSION",
    "SPLITS",
    "TEXT",
    "UNLABELLED",
    "BadSample",
    "BadSlot",
    "FeatureInput",
    "FeatureStream",
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
    "index_foreign",
    "partition",
    "print_info",
    "print_report",
    "sequential",
    "synthesize",
    "verify",
]
