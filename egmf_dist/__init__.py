"""egmf-dist: expert-guided multimodal fusion with a large language model, trained at scale.

To use a trained model::

    from egmf_dist import load
    model = load("FOLDER")          # what egmf export wrote
    model.predict(["I got the job!"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egmf_dist.inference.model import Model, load
    from egmf_dist.inference.utterance import Answer, Utterance

__version__ = "0.1.0"
__all__ = ["Answer", "Model", "Utterance", "load"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the command line's help must not wait for torch.
    if name in ("Model", "load"):
        from egmf_dist.inference import model

        return getattr(model, name)
    if name in ("Answer", "Utterance"):
        from egmf_dist.inference import utterance

        return getattr(utterance, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
