"""egmf-dist: expert-guided multimodal fusion with a large language model, trained at scale."""

__version__ = "0.1.0"
