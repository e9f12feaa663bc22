"""From samples to the packed batch that the model reads."""

from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.collate import Collator

__all__ = ["Collator", "RaggedBatch"]
