"""egmf-dist: expert-guided multimodal fusion with a large language model, trained at scale.

To use a trained model::

    from egmf_dist import load
    model = load("FOLDER")          # what egmf export wrote
    model.predict(["I got the job!"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from egmf_shards.lazy import importing

if TYPE_CHECKING:
    from egmf_dist.inference.explanation import Explanation
    from egmf_dist.inference.model import Model, load
    from egmf_dist.inference.utterance import Answer, Utterance

__version__ = "0.1.0"
__all__ = ["Answer", "Explanation", "Model", "Utterance", "load"]

# The command line's help must not wait for torch.
__getattr__, __dir__ = importing(
    __name__,
    {
        "inference.explanation": ("Explanation",),
        "inference.model": ("Model", "load"),
        "inference.utterance": ("Answer", "Utterance"),
    },
)
